"""An observer of all pods in a Kubernetes namespace. Tests compare the reports of agents with the observed pods.

The observer is independent of the agent: it watches pods with `kubectl get --watch`. An Observer lives as long as the
lab that has created it.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time

from agent.domain.json import Object
from tests.e2e import kube

# Name of the class whose commands build images. Only container `action` of its pods has no seccomp profile.
IMAGE_BUILD = "image-build"
MANAGED = "app.kubernetes.io/managed-by=sealci-agent"


class Observer:
    """Stores every state of every pod of a namespace.

    `ended` maps the UID of a pod to the time at which the observer saw that container `action` had ended. `deleting`
    maps the UID of a pod to the time at which the observer saw the request to delete the pod, and `gone` to the time at
    which the observer saw the pod's deletion. The times are seconds of `time.monotonic`.
    """

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.states: list[Object] = []
        self.ended: dict[str, float] = {}
        self.deleting: dict[str, float] = {}
        self.gone: dict[str, float] = {}
        self.open()

    def open(self) -> None:
        """Start to watch the pods. A test may call this method again after `close`."""
        self.closing = threading.Event()
        self.process = self.watch()
        self.reader = threading.Thread(target=self.read, name="observer", daemon=True)
        self.reader.start()

    def watch(self) -> subprocess.Popen[str]:
        """Start `kubectl get pods --watch` and return its process."""
        return subprocess.Popen(
            [kube.kubectl_path(), "get", "pods", "-n", self.namespace, "-w", "-o", "json", "--output-watch-events"],
            env=kube.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def read(self) -> None:
        """Run in a thread: read the events that `kubectl get --watch` prints, until `close` is called.

        Start kubectl again whenever kubectl ends, for example because the API server restarts.
        """
        while True:
            with self.process as process:
                assert process.stdout is not None
                for line in process.stdout:
                    if not line.endswith("\n"):
                        # The line is not complete, because kubectl ended while it wrote the line.
                        break
                    self.take(json.loads(line), time.monotonic())
            if self.closing.wait(0.1):
                return
            self.process = self.watch()

    def take(self, event: Object, now: float) -> None:
        """Record the watch event `event` of a pod, which arrived at the time `now`."""
        pod = event["object"]
        self.states.append(pod)
        uid = pod["metadata"]["uid"]
        if event["type"] == "DELETED":
            self.gone[uid] = now
        if "deletionTimestamp" in pod["metadata"]:
            self.deleting.setdefault(uid, now)
        for status in pod.get("status", {}).get("containerStatuses", ()):
            if status["name"] == "action" and "terminated" in status.get("state", {}):
                self.ended.setdefault(uid, now)

    def remained(self) -> list[float]:
        """Return the seconds from the end of container `action` to the deletion of the pod.

        The list has one number for each pod whose container end and deletion the observer has seen.
        """
        return [self.gone[uid] - at for uid, at in self.ended.items() if uid in self.gone]

    def close(self) -> None:
        self.closing.set()
        while self.reader.is_alive():
            self.process.terminate()
            self.reader.join(0.2)

    def pods(self, action_id: str) -> list[Object]:
        """Return every observed state of the pods of an action, in order."""
        return [pod for pod in self.states if session_of(pod).get("action_id") == action_id]

    def exit_codes(self, action_id: str) -> set[int]:
        """Return all exit codes of containers `action` that were seen in the pods of an action."""
        return {
            status["state"]["terminated"]["exitCode"]
            for pod in self.pods(action_id)
            for status in pod.get("status", {}).get("containerStatuses", ())
            if status["name"] == "action" and "terminated" in status.get("state", {})
        }

    def check_outcome(self, action_id: str, outcome: str, exit_code: int | None) -> None:
        """Check the outcome and exit code that an agent has reported against the observed statuses of the pods."""
        seen = self.exit_codes(action_id)
        if outcome == "succeeded":
            assert seen == {0}, f"{action_id} succeeded, but its container ended with {seen}"
        if exit_code is not None and seen:
            assert exit_code in seen, f"{action_id} was reported to end with {exit_code}, but ended with {seen}"

    def check_pods(self, *secret_values: str) -> None:
        """Check that no pod of an action contained a secret value, had a ServiceAccount token or was privileged."""
        for pod in self.states:
            if not session_of(pod):
                continue
            spec, text = pod["spec"], json.dumps(pod)
            assert spec["automountServiceAccountToken"] is False
            assert spec["activeDeadlineSeconds"] > 0
            builds_images = pod["metadata"]["labels"].get("sealci.dev/class") == IMAGE_BUILD
            for container in [*spec["containers"], *spec.get("initContainers", ())]:
                security = container["securityContext"]
                assert security["allowPrivilegeEscalation"] is False
                unconfined = builds_images and container["name"] == "action"
                profile = security.get("seccompProfile") or spec["securityContext"].get("seccompProfile")
                assert profile == (None if unconfined else {"type": "RuntimeDefault"})
                capabilities = security.get("capabilities", {})
                if container["name"] not in ("helper", "repository"):
                    assert not capabilities.get("add")
                else:
                    assert capabilities["drop"] == ["ALL"]
                    assert set(capabilities.get("add", ())) <= {"CHOWN", "DAC_OVERRIDE", "FOWNER"}
                assert not security.get("privileged")
            for value in secret_values:
                assert value not in text, "a secret stands in a pod"


def session_of(pod: Object) -> Object:
    """Return the session that an agent has stored in an annotation of the pod.

    Return {} if the pod has no such annotation.
    """
    found: Object = json.loads(pod["metadata"].get("annotations", {}).get("sealci.dev/session", "{}"))
    return found


def remains(namespace: str) -> list[str]:
    """Return the pods and Secrets in a namespace that agents have created and not deleted, as KIND/NAME."""
    return [
        f"{item['kind']}/{item['metadata']['name']}"
        for item in kube.get("pods,secrets", "-n", namespace, "-l", MANAGED)
    ]
