"""The states of one scripted pod in the format of the API, and its log in the format of the kubelet.

The last command of an action is the script of its pod, in words such as `life=1 every=0.05`. So the scheduler controls
the pods, and the agent needs no change. A pod has the same states as on a real cluster: bound, creating, running,
succeeded, deleted. It also has the supervisor's markers and termination message. The JSON is built from prepared parts,
because the server must use much less CPU than the agent.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from agent.domain.json import Object


@dataclass(frozen=True, slots=True)
class Script:
    """The behaviour of a scripted pod.

    `life` is the number of seconds from the creation of the pod to its end, `start` the number of seconds until the pod
    runs, and `every` the number of seconds between two lines (0: only one line). `size` is the number of bytes of a
    line. If `flood` is true, the pod writes its log as fast as possible. `file` is the number of bytes of the pod's
    file.
    """

    life: float = 1.0
    start: float = 0.1
    every: float = 0.0
    size: int = 64
    flood: bool = False
    file: int = 1024

    @classmethod
    def read(cls, command: str) -> Script:
        """Return the Script that a command such as `life=1 every=0.05` describes. Unknown words are ignored."""
        words = dict(word.split("=", 1) for word in command.split() if "=" in word)
        return cls(
            life=float(words.get("life", 1)),
            start=float(words.get("start", 0.1)),
            every=float(words.get("every", 0)),
            size=int(words.get("size", 64)),
            flood=words.get("flood") == "1",
            file=int(words.get("file", 1024)),
        )


def managed(manager: str, fields: tuple[str, ...], depth: int = 12) -> Object:
    """Return an entry of `metadata.managedFields` that is as large as an entry in a real cluster.

    No component reads this entry.
    """
    leaf: Object = {f"f:{name}{number}": {} for number in range(depth) for name in fields}
    return {
        "manager": manager,
        "operation": "Update",
        "apiVersion": "v1",
        "time": stamp(),
        "fieldsType": "FieldsV1",
        "fieldsV1": {"f:spec": {'k:{"name":"action"}': leaf}},
    }


def stamp() -> str:
    """Return the current time in whole seconds, in the format of the Kubernetes API."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def nanoseconds() -> str:
    """Return the current time in the format that the kubelet writes before a log line."""
    now = time.time_ns()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9)) + f".{now % 10**9:09d}Z"


MANAGED = json.dumps([managed("agent", ("name", "image", "value")), managed("kubelet", ("type", "status", "reason"))])
RUNNING = '{"running":{"startedAt":"%s"}}'
CREATING = '{"waiting":{"reason":"ContainerCreating"}}'


class PodLife:
    """One scripted pod. `body` is the request that created the pod. `status` is the pod's current status as JSON."""

    def __init__(self, body: bytes, uid: str, address: int) -> None:
        pod = json.loads(body)
        metadata, spec = pod["metadata"], pod["spec"]
        self.name: str = metadata["name"]
        self.uid = uid
        self.labels: dict[str, str] = metadata["labels"]
        self.containers: list[str] = [each["name"] for each in spec["containers"]]
        self.images: dict[str, str] = {each["name"]: each["image"] for each in spec["containers"]}
        command: list[str] = next(each["command"] for each in spec["containers"] if each["name"] == "action")
        self.nonce, self.commands = nonce_of(pod), commands_of(command)
        self.script = Script.read(self.commands[-1])
        self.made = stamp()
        self.address = f"10.{address >> 16 & 255}.{address >> 8 & 255}.{address & 255}"
        # The fields stand in the same order as in an answer of a real API server.
        head = {"name": self.name, "namespace": metadata["namespace"], "uid": uid, "resourceVersion": "@VERSION@"}
        rest = {"generation": 1, "creationTimestamp": self.made, "labels": self.labels}
        metadata = head | rest | {"annotations": metadata["annotations"]}
        self.head, self.meta = json.dumps(metadata, separators=(",", ":")).encode()[:-1].split(b"@VERSION@")
        self.meta += b',"managedFields":' + MANAGED.encode()
        spec |= {"dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler", "priority": 0}
        self.spec = json.dumps(spec, separators=(",", ":")).encode()[:-1]
        self.bound = b""
        self.deleted = b""
        self.status = b'{"phase":"Pending","qosClass":"Burstable"}'
        self.finished = False
        self.log: list[bytes] = []

    # ---- states

    def bind(self) -> None:
        """Set the state of the pod to bound: it has a node, and no container yet."""
        self.bound = b',"nodeName":"node-1"'
        self.status = self.phase("Pending")

    def creating(self) -> None:
        """Set the state of the pod to creating. The containers do not run yet."""
        states = dict.fromkeys(self.containers, CREATING)
        self.status = self.phase("Pending", states)

    def running(self) -> None:
        """Set the state of the pod to running."""
        self.status = self.phase("Running", dict.fromkeys(self.containers, RUNNING % stamp()))

    def ended(self) -> None:
        """Set the state of the pod to succeeded. If the pod has a container `files`, this container still runs."""
        self.finished = len(self.containers) == 1
        now = stamp()
        message = f"sealci {self.nonce} completed {len(self.commands)}\nsealci {self.nonce} end 0\n"
        ended = {"exitCode": 0, "reason": "Completed", "message": message, "startedAt": now, "finishedAt": now}
        ended["containerID"] = f"containerd://{self.uid}"
        states = dict.fromkeys(self.containers, RUNNING % now)
        states["action"] = json.dumps({"terminated": ended}, separators=(",", ":"))
        self.status = self.phase("Succeeded" if self.finished else "Running", states)

    def deleting(self) -> None:
        """Set the state of the pod to being deleted: it gets a deletionTimestamp and a grace period."""
        self.deleted = f',"deletionTimestamp":"{stamp()}","deletionGracePeriodSeconds":10'.encode()

    def phase(self, phase: str, states: dict[str, str] | None = None) -> bytes:
        """Return a status of the pod as JSON, in the format of the kubelet. `phase` is the phase of the pod.

        `states` has the state of each container as JSON. If `states` is None, the status has no containers.
        """
        kinds = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
        conditions = ",".join(
            f'{{"type":"{kind}","status":"True","observedGeneration":1,"lastProbeTime":null,'
            f'"lastTransitionTime":"{self.made}"}}'
            for kind in (kinds if states else kinds[-1:])
        )
        if states is None:
            return f'{{"phase":"{phase}","conditions":[{conditions}],"qosClass":"Burstable"}}'.encode()
        statuses = ",".join(
            f'{{"name":"{name}","state":{state},"lastState":{{}},"ready":true,"restartCount":0,"started":true,'
            f'"image":"{self.images[name]}","imageID":"sha256:{self.uid}","containerID":"containerd://{self.uid}"}}'
            for name, state in states.items()
        )
        return (
            f'{{"observedGeneration":1,"phase":"{phase}","conditions":[{conditions}],"hostIP":"10.0.0.1",'
            f'"hostIPs":[{{"ip":"10.0.0.1"}}],"podIP":"{self.address}","podIPs":[{{"ip":"{self.address}"}}],'
            f'"startTime":"{self.made}","containerStatuses":[{statuses}],"qosClass":"Burstable"}}'
        ).encode()

    def text(self, version: int) -> bytes:
        """Return the whole pod as JSON. `version` is its resource version."""
        return b'{"kind":"Pod","apiVersion":"v1","metadata":%b%d%b%b},"spec":%b%b},"status":%b}' % (
            self.head, version, self.meta, self.deleted, self.spec, self.bound, self.status,
        )  # fmt: skip

    # ---- the log

    def marker(self, text: str) -> bytes:
        """Return a line of the log with a marker of the supervisor. `text` is the content of the marker."""
        return line(f"\x1esealci:{self.nonce}:{text}".encode())

    def stamped(self) -> bytes:
        """Return a line of the log with the current time, from which the scheduler computes the delay of the line."""
        text = b"at %d " % time.time_ns()
        return line(text.ljust(self.script.size, b"."))


def line(text: bytes) -> bytes:
    """Return `text` as a line of the log in the kubelet's format, after a timestamp."""
    return nanoseconds().encode() + b" " + text + b"\n"


def nonce_of(pod: Object) -> str:
    """Return the nonce of the session that the pod's annotation describes."""
    return str(json.loads(pod["metadata"]["annotations"]["sealci.dev/session"])["nonce"])


def commands_of(command: list[str]) -> list[str]:
    """Return the user's commands, which are the last words in the command line of the supervisor."""
    # The command line is: shell -c SUPERVISOR sealci SHELL SETUP LIST NONCE WORKSPACE READY FILE COMMANDS...
    return command[11:]
