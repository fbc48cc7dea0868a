"""A shell script that does the work of an action with kubectl only. It is the baseline of the benchmark.

The script prints the time at which it has read the exit code. The argument `$1` of the script is the name of the pod.
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

# One watch of the pod reports first when the container runs, so that its log can be followed, and later the exit code.
# The script never polls.
WATCH = """
mkfifo "$FOLDER/$1.state"
path='{.status.containerStatuses[0].state}{"\\n"}'  # "action" comes before "helper"
"$KUBECTL" get pod "$1" --namespace "$NAMESPACE" --watch -o jsonpath="$path" > "$FOLDER/$1.state" &
exec 3< "$FOLDER/$1.state"
until case $state in *running*|*terminated*) true;; *) false;; esac; do read -r state <&3; done
"""
CODE = """
until case $state in *terminated*) true;; *) false;; esac; do read -r state <&3; done
code=${state#*'"exitCode":'} code=${code%%[!0-9]*}
kill $!
"""
COPY = 'mkdir "$FOLDER/$1"; kubectl exec "$1" -c helper -- tar cf - -C /workspace . | tar xf - -C "$FOLDER/$1"'
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
    """Durations of one run of the shell script that does the work of an action with kubectl only.

    `read` is the number of seconds until the script had read the exit code, `gone` until its pod was deleted.
    """

    read: float
    gone: float


def pod(name: str, image: str, command: str, *, files: bool = False) -> dict[str, Any]:
    """Return a plain pod that runs `command`.

    If `files` is true, a second container keeps the workspace reachable, so that files can be copied out. The pod
    mounts the token of its ServiceAccount, as pods do by default. A pod without any volume would start 0.2 s sooner
    than the pod of an action, because the kubelet checks volumes every 0.3 s.
    """
    small = {"requests": {"cpu": "1m", "memory": "8Mi"}}
    mount = [{"name": "workspace", "mountPath": "/workspace"}] if files else []
    shell = {"image": image, "imagePullPolicy": "IfNotPresent", "resources": small, "volumeMounts": mount}
    action = {"name": "action", "command": ["/bin/sh", "-c", command], **shell}
    holder = {"name": "helper", "command": ["/bin/sh", "-c", "trap exit TERM; sleep 1000 & wait"], **shell}
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
    """Run the shell script `text`, in which kubectl uses the given namespace. Return the output of the script.

    `words` are the arguments of the script, and `env` are additional environment variables.
    """
    environment = kube.environment() | env | {"KUBECTL": kube.kubectl_path(), "NAMESPACE": namespace}
    text = f'set -e; kubectl() {{ "$KUBECTL" --namespace "$NAMESPACE" "$@"; }}\n{text}'
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", text, "sh", *words), env=environment, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    try:
        async with asyncio.timeout(timeout):
            output, _ = await process.communicate()
    finally:
        # ProcessLookupError means that all processes of the script have ended already.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    return output.decode()
