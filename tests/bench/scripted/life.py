"""The states of one simulated pod in the format of the API, and its log in the frames of container `helper`.

The last command of an action is the script of its pod, in words such as `life=1 every=0.05`. So the scheduler controls
the pods, and the agent needs no change. A pod has the same states as on a real cluster: bound, creating, running,
succeeded, deleted. It also has the supervisor's markers and termination message. The JSON is built from prepared parts,
because the server must use much less CPU than the agent.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from agent.cluster.in_pod.order import PIECE
from agent.cluster.pod.session_annotation import log_key_of
from agent.domain.json import Object
from tests.fakes.helper_log import frame, last_frame


@dataclass(frozen=True, slots=True)
class Script:
    """The behaviour of a simulated pod.

    `life` is the number of seconds from the creation of the pod to its end. `start` is the number of seconds until the
    pod runs. `every` is the number of seconds between two lines of the log, or 0 for a log with one line. `size` is the
    number of bytes of a line. If `flood` is true, the pod writes its log as fast as possible. `file` is the number of
    bytes of the pod's file.
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


MANAGED = json.dumps([managed("agent", ("name", "image", "value")), managed("kubelet", ("type", "status", "reason"))])
# Bytes that `PodLife.read` returns in place of log text that is not stored.
FILLER = (b"." * 199 + b"\n") * 2000
RUNNING = '{"running":{"startedAt":"%s"}}'
CREATING = '{"waiting":{"reason":"ContainerCreating"}}'


class PodLife:
    """One simulated pod. `body` is the request that created the pod. `status` is the pod's current status as JSON."""

    def __init__(self, body: bytes, uid: str, address: int) -> None:
        pod = json.loads(body)
        metadata, spec = pod["metadata"], pod["spec"]
        self.name: str = metadata["name"]
        self.uid = uid
        self.labels: dict[str, str] = metadata["labels"]
        self.containers: list[str] = [each["name"] for each in spec["containers"]]
        self.images: dict[str, str] = {each["name"]: each["image"] for each in spec["containers"]}
        self.nonce, self.log_key, self.commands = nonce_of(pod), log_key_of(pod), commands_of(pod)
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
        # The stored parts of the log file, each with its offset, and the stored frames of the helper's stdout. The text
        # of pods with `flood` is not stored.
        self.parts: list[tuple[int, bytes]] = []
        self.stdout: list[bytes] = []
        self.log_size = 0
        self.log_ended = False

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
        """Set the state of the commands to succeeded. Container `helper` still runs."""
        now = stamp()
        message = f"sealci {self.nonce} completed {len(self.commands)}\nsealci {self.nonce} end 0\n"
        ended = {"exitCode": 0, "reason": "Completed", "message": message, "startedAt": now, "finishedAt": now}
        ended["containerID"] = f"containerd://{self.uid}"
        states = dict.fromkeys(self.containers, RUNNING % now)
        states["action"] = json.dumps({"terminated": ended}, separators=(",", ":"))
        self.status = self.phase("Running", states)

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
        return f"\x1esealci:{self.nonce}:{text}\n".encode()

    def stamped(self) -> bytes:
        """Return a line of the log with the current time, from which the scheduler computes the delay of the line."""
        text = b"at %d " % time.time_ns()
        return text.ljust(self.script.size, b".") + b"\n"

    def append(self, text: bytes, *, stored: bool = True) -> bytes:
        """Append text to the log. Return the text as a frame of the helper's stdout.

        If `stored` is false, only the size of the text is kept.
        """
        data = frame(self.log_size, text, self.log_key)
        if stored:
            self.parts.append((self.log_size, text))
            self.stdout.append(data)
        self.log_size += len(text)
        return data

    def end_log(self) -> bytes:
        """End the log. Return the last frame of the helper's stdout."""
        self.log_ended = True
        self.stdout.append(last_frame(self.log_size, 0, self.log_key))
        return self.stdout[-1]

    def read(self, offset: int, limit: int) -> bytes:
        """Return up to `limit` bytes of the log file from `offset` on. `FILLER` replaces text that is not stored."""
        end = self.log_size
        for start, text in self.parts:
            if start <= offset < start + len(text):
                return text[offset - start : offset - start + limit]
            if start > offset:
                end = start
                break
        return FILLER[: min(limit, end - offset)]


def nonce_of(pod: Object) -> str:
    """Return the nonce of the session that the pod's annotation describes."""
    return str(json.loads(pod["metadata"]["annotations"]["sealci.dev/session"])["nonce"])


def commands_of(pod: Object) -> list[str]:
    """Return the user's commands from the order in the environment of container `helper`."""
    helper = next(each for each in pod["spec"]["containers"] if each["name"] == "helper")
    pieces = [each["value"] for each in helper["env"] if each["name"].startswith(PIECE)]
    commands: list[str] = json.loads("".join(pieces).replace("$$", "$"))["commands"]
    return commands
