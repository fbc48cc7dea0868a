"""The floor of the comparison: a short shell script that does the same work with kubectl only.

The script itself takes the time at which it has the exit code. `$1` is the name of the pod.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.e2e import kube

if TYPE_CHECKING:
    from pathlib import Path

# One watch shows when there is a log to follow, and the exit code, so that the script never polls.
WATCH = """
mkfifo "$FOLDER/$1.state"
path='{.status.containerStatuses[0].state}{"\\n"}'  # "action" comes before "files"
"$KUBECTL" get pod "$1" --namespace "$NAMESPACE" --watch -o jsonpath="$path" > "$FOLDER/$1.state" &
exec 3< "$FOLDER/$1.state"
until case $state in *running*|*terminated*) true;; *) false;; esac; do read -r state <&3; done
"""
CODE = """
until case $state in *terminated*) true;; *) false;; esac; do read -r state <&3; done
code=${state#*'"exitCode":'} code=${code%%[!0-9]*}
kill $!
"""
COPY = 'mkdir "$FOLDER/$1"; kubectl exec "$1" -c files -- tar cf - -C /workspace . | tar xf - -C "$FOLDER/$1"'
SCRIPT = """
kubectl create -f "$FOLDER/$1.json" >/dev/null
{watch}
kubectl logs -f "$1" -c action
{code}
{copy}
echo "read $(date +%s.%N) $code"
kubectl delete pod "$1" --grace-period=2 --wait >/dev/null
"""


@dataclass(frozen=True)
class Bare:
    """One run of the script: seconds from its start to the exit code (`read`) and until the pod is gone (`gone`)."""

    read: float
    gone: float


def pod(name: str, image: str, command: str, *, files: bool = False) -> dict[str, Any]:
    """Return a plain pod. If `files` is true, a second container keeps the workspace for the copy.

    The pod has the volume of its ServiceAccount's token, which is the default. Without any volume it would start 0.2 s
    sooner than an action, which has a workspace: the kubelet checks volumes every 0.3 s.
    """
    small = {"requests": {"cpu": "1m", "memory": "8Mi"}}
    mount = [{"name": "workspace", "mountPath": "/workspace"}] if files else []
    shell = {"image": image, "imagePullPolicy": "IfNotPresent", "resources": small, "volumeMounts": mount}
    action = {"name": "action", "command": ["/bin/sh", "-c", command], **shell}
    holder = {"name": "files", "command": ["/bin/sh", "-c", "trap exit TERM; sleep 1000 & wait"], **shell}
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 2,
        "containers": [holder, action] if files else [action],
        "volumes": [{"name": "workspace", "emptyDir": {}}] if files else [],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"bare": "yes"}}, "spec": spec}


async def script(namespace: str, folder: Path, number: int, image: str, command: str, *, files: bool = False) -> Bare:
    name = f"bare-{number}"
    (folder / f"{name}.json").write_text(json.dumps(pod(name, image, command, files=files)))
    text = SCRIPT.format(watch=WATCH, code=CODE, copy=COPY if files else "")
    began = time.time()
    done = await sh(namespace, text, name, FOLDER=str(folder))
    ended = time.time()
    words = next(line.split() for line in done.splitlines() if line.startswith("read "))
    assert words[2] == "0", done
    return Bare(float(words[1]) - began, ended - began)


async def sh(namespace: str, text: str, *words: str, timeout: float = 300, **env: str) -> str:
    """Run a shell script whose kubectl uses a namespace. Return its output."""
    environment = kube.environment() | env | {"KUBECTL": kube.kubectl_path(), "NAMESPACE": namespace}
    text = f'set -e; kubectl() {{ "$KUBECTL" --namespace "$NAMESPACE" "$@"; }}\n{text}'
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", text, "sh", *words), env=environment, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    try:
        async with asyncio.timeout(timeout):
            output, _ = await process.communicate()
    finally:
        with suppress(ProcessLookupError):  # no process of the script is left
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    return output.decode()
