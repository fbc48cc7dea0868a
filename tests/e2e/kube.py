"""Access of the tests to the cluster: kubectl and the commands of deploy.dev.cluster, never the agent's own client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from agent.domain.json import Object

ROOT = Path(__file__).resolve().parents[2]


def provider(*arguments: str, timeout: float = 300) -> str:
    """Run a verb of the command `python3 -m deploy.dev.cluster` and return its output. Fail if the verb fails."""
    command = [sys.executable, "-m", "deploy.dev.cluster", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"deploy.dev.cluster {' '.join(arguments)}: {done.stderr}{done.stdout}"
    return done.stdout.strip()


@cache
def kubeconfig() -> str:
    """Return the path of the cluster's kubeconfig. The cluster must run (`make cluster-up`)."""
    return provider("kubeconfig").splitlines()[-1]


@cache
def kubectl_path() -> str:
    """Return the path of a kubectl of the cluster's version."""
    return provider("kubectl").splitlines()[-1]


def environment() -> dict[str, str]:
    """Return the environment variables for programs that use the cluster, without the settings of an agent."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SEALCI_")}
    # No file can be created in this folder. So `sealci-agent run` keeps no record of its runs, and no test finds the
    # records of other runs that were killed.
    return kept | {"KUBECONFIG": kubeconfig(), "PYTHONUNBUFFERED": "1", "XDG_STATE_HOME": "/dev/null"}


def kubectl(*arguments: str, input: str | None = None, check: bool = True, timeout: float = 120) -> str:
    """Run kubectl and return its stdout. `input` is its stdin. Fail if kubectl fails and `check` is true."""
    done = subprocess.run(
        [kubectl_path(), *arguments],
        env=environment(),
        input=input,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def settle() -> None:
    """Start the API server and restart its clients in the cluster, after an outage of the API server.

    These components reconnect by themselves, but their pauses between tries grow with each outage. Without this
    restart, a controller manager once created no ServiceAccount for three minutes.
    """
    provider("apiserver", "start")
    provider("restart", "controller-manager", "scheduler", "kubelet")


@cache
def version() -> tuple[int, int]:
    """Return the major and minor version of the cluster's API server."""
    found = json.loads(kubectl("version", "--output", "json"))["serverVersion"]
    return int(found["major"]), int(found["minor"].rstrip("+"))


def get(kind: str, *arguments: str) -> list[Object]:
    """Return the objects of a kind, such as `pods`. `arguments` are further arguments for `kubectl get`."""
    answer = json.loads(kubectl("get", kind, *arguments, "-o", "json"))
    return list(answer["items"]) if "items" in answer else [answer]


def apply(*objects: Object) -> None:
    """Create these objects in the cluster, or change them if they exist."""
    kubectl("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))
