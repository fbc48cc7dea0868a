"""The floor: the same work by a script of bare kubectl, as short as a person can make it.

Times are taken by the script itself, where it has what it waited for. `$1` is the name of the pod.
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

# One watch tells when there is a log to follow, and the exit code: nothing is polled.
WATCH = """
mkfifo "$FOLDER/$1.told"
path='{.status.containerStatuses[0].state}{"\\n"}'  # "action" comes before "files"
"$KUBECTL" get pod "$1" --namespace "$NAMESPACE" --watch -o jsonpath="$path" > "$FOLDER/$1.told" &
exec 3< "$FOLDER/$1.told"
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
    """One run of the script: seconds from its start until the exit code was read, and until the pod was gone."""

    read: float
    gone: float


def pod(name: str, image: str, command: str, *, files: bool = False) -> dict[str, Any]:
    """Return the pod that a person would write; with `files`, a second container holds the workspace.

    It has the token of its ServiceAccount, as every pod that says nothing of it: without any volume it would start
    0.2 s sooner, because the kubelet looks after volumes every 0.3 s, and an action has its workspace.
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
    """Run the script once."""
    name = f"bare-{number}"
    (folder / f"{name}.json").write_text(json.dumps(pod(name, image, command, files=files)))
    text = SCRIPT.format(watch=WATCH, code=CODE, copy=COPY if files else "")
    began = time.time()
    done = await sh(namespace, text, name, FOLDER=str(folder))
    ended = time.time()
    told = next(line.split() for line in done.splitlines() if line.startswith("read "))
    assert told[2] == "0", done
    return Bare(float(told[1]) - began, ended - began)


async def sh(namespace: str, text: str, *words: str, timeout: float = 300, **env: str) -> str:
    """Run a shell script whose kubectl speaks of a namespace; returns what it prints."""
    environment = kube.environment() | env | {"KUBECTL": kube.kubectl_path(), "NAMESPACE": namespace}
    text = f'set -e; kubectl() {{ "$KUBECTL" --namespace "$NAMESPACE" "$@"; }}\n{text}'
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", text, "sh", *words), env=environment, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    try:
        async with asyncio.timeout(timeout):
            output, _ = await process.communicate()
    finally:
        with suppress(ProcessLookupError):  # nothing of it is left
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    return output.decode()
