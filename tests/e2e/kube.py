"""The cluster as the tests see it: kubectl and the provider's verbs, never the agent's own client."""

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
    """Run a verb of `deploy/dev/cluster`."""
    command = [sys.executable, "-m", "deploy.dev.cluster", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"deploy.dev.cluster {' '.join(arguments)}: {done.stderr}{done.stdout}"
    return done.stdout.strip()


@cache
def kubeconfig() -> str:
    """Return the path of the kubeconfig; the cluster must be up (`make cluster-up`)."""
    return provider("kubeconfig").splitlines()[-1]


@cache
def kubectl_path() -> str:
    """Return the kubectl that fits the cluster."""
    return provider("kubectl").splitlines()[-1]


def environment() -> dict[str, str]:
    """Return the environment of programs that speak to the cluster."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SEALCI_")}
    return kept | {"KUBECONFIG": kubeconfig(), "PYTHONUNBUFFERED": "1"}


def kubectl(*arguments: str, input: str | None = None, check: bool = True, timeout: float = 120) -> str:
    """Run kubectl and return what it prints."""
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
    """Let the cluster's own parts begin anew after the API server was away.

    They come back to it by themselves, but their pauses between tries grow with each outage: a controller manager was
    seen to make no ServiceAccount for three minutes.
    """
    provider("apiserver", "start")
    provider("restart", "controller-manager", "scheduler", "kubelet")


@cache
def version() -> tuple[int, int]:
    """Return the cluster's version: major, minor."""
    told = json.loads(kubectl("version", "--output", "json"))["serverVersion"]
    return int(told["major"]), int(told["minor"].rstrip("+"))


def get(kind: str, *arguments: str) -> list[Object]:
    """Return objects of a kind."""
    answer = json.loads(kubectl("get", kind, *arguments, "-o", "json"))
    return list(answer["items"]) if "items" in answer else [answer]


def apply(*objects: Object) -> None:
    """Create or change objects."""
    kubectl("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))
