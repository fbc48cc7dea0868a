"""`make demo`: the chart installed, a real pipeline from its submission to its files, and a clean cluster at the end.

Starts a git server with a published package's source, installs the chart with two agents and the scheduler that comes
with it, submits the pipeline, shows its log as it comes, checks what came back (the wheel installs and imports), shows
the agents' metrics, scales them to three, uninstalls, and looks for remains. Says how long each step took.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from deploy.demo import source

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
RELEASE, NAMESPACE = "demo", "sealci-demo"
AGENTS = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=agent"
VALUES = {
    "replicaCount": 2,
    "image": {"repository": "localhost/sealci-agent", "tag": "dev"},
    "demoScheduler": {"enabled": True},
    # The repository of the demo is served by git's own protocol, which is off by default.
    "policy": {"repository_schemes": ["https", "ssh", "git"]},
}
# What is shown of the metrics.
SHOWN = re.compile(r"sealci_agent_(slots|actions_completed_total|log_bytes_total|artifact_(files|bytes)_total)\b")
LEFT = {"pods,secrets,leases": "app.kubernetes.io/managed-by=sealci-agent", "all,configmaps,roles,rolebindings":
        f"app.kubernetes.io/instance={RELEASE}"}  # fmt: skip


class Clock:
    """Says what begins, and at the end how long each step took."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, float]] = []

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step."""
        print(f"\n\033[1m== {name}\033[0m" if sys.stdout.isatty() else f"\n== {name}", flush=True)
        began = time.monotonic()
        yield
        self.steps.append((name, time.monotonic() - began))

    def show(self) -> None:
        """Print the times."""
        print("\n== times")
        for name, seconds in self.steps:
            print(f"{seconds:8.1f} s  {name}")


def main() -> int:
    """Run the demo; 0 when everything was as it should be."""
    clock = Clock()
    out = Path(tempfile.mkdtemp(prefix="sealci-demo-"))
    os.environ["KUBECONFIG"] = verb("kubeconfig")
    with clock.step(f"the source of {source.PACKAGE} {source.VERSION}, in a git repository"):
        source.make_repository(out / "repositories")
    with contextlib.ExitStack() as stack:
        with clock.step("helm install: two agents and a scheduler"):
            install(stack)
        url = stack.enter_context(source.served(out / "repositories", verb("address")))
        pipeline = out / "pipeline.yaml"
        pipeline.write_text((Path(__file__).parent / "pipeline.yaml").read_text().replace("{url}", url))
        with clock.step("the pipeline, as it runs"):
            ok = submit(pipeline)
        with clock.step("what came back"):
            fetch(out / "out")
            ok = check(out / "out", out / "check") and ok
        with clock.step("what the agents measured"):
            show_metrics()
        with clock.step("kubectl scale: three agents"):
            scale(3)
        with clock.step("helm uninstall"):
            stack.close()
    with clock.step("what is left in the cluster"):
        ok = nothing_left() and ok
    clock.show()
    print(f"\nlogs and files: {out / 'out'}")
    return 0 if ok else 1


def verb(*arguments: str) -> str:
    """Ask the cluster's provider."""
    command = [sys.executable, "-m", "deploy.dev.cluster", *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip().splitlines()[-1]


def kubectl(*arguments: str) -> str:
    """Run kubectl and return what it prints."""
    command = [verb("kubectl"), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def install(stack: contextlib.ExitStack) -> None:
    """Install the chart; it is uninstalled, and its namespace removed, when the stack is closed."""
    helm = verb("helm")
    stack.callback(subprocess.run, [verb("kubectl"), "delete", "namespace", NAMESPACE, "--wait=true"], check=False)
    command = [helm, "install", RELEASE, str(ROOT / "charts" / "sealci-agent"), "--namespace", NAMESPACE]
    stack.callback(subprocess.run, [helm, "uninstall", RELEASE, "--namespace", NAMESPACE, "--wait"], check=False)
    words = [*command, "--create-namespace", "--wait", "--timeout", "120s", "--values", "-"]
    subprocess.run(words, input=json.dumps(VALUES), text=True, check=True)


def submit(pipeline: Path) -> bool:
    """Submit a pipeline to the scheduler in the cluster and show it; whether it succeeded."""
    service = f"service/{RELEASE}-sealci-agent-scheduler"
    forward = subprocess.Popen(
        [verb("kubectl"), "port-forward", "--namespace", NAMESPACE, service, ":7080"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        line = forward.stdout.readline() if forward.stdout else ""
        found = re.search(r"127\.0\.0\.1:\d+", line)
        if found is None:
            raise SystemExit(f"{service} cannot be reached")
        command = [sys.executable, "-m", "agent", "submit", str(pipeline), "--scheduler", found[0], "--plaintext"]
        return subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    finally:
        forward.terminate()
        forward.wait(10)


def fetch(folder: Path) -> None:
    """Copy logs and files from the scheduler's folder."""
    scheduler = f"deployment/{RELEASE}-sealci-agent-scheduler"
    words = ["exec", "--namespace", NAMESPACE, scheduler, "--", "tar", "-C", "/var/lib/sealci", "-cf", "-", "."]
    done = subprocess.run([verb("kubectl"), *words], check=True, stdout=subprocess.PIPE)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")


def show_metrics() -> None:
    """Print a few of the metrics of each agent."""
    for name in kubectl("get", "pods", "--namespace", NAMESPACE, "--selector", AGENTS, "--output=name").split():
        print(name)
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{name.removeprefix('pod/')}:8080/proxy/metrics"
        for line in kubectl("get", "--raw", path).splitlines():
            if SHOWN.match(line) and not line.endswith(" 0.0"):
                print(f"  {line}")


def scale(replicas: int) -> None:
    """Have so many agents, and show them once they are ready."""
    deployment = f"deployment/{RELEASE}-sealci-agent"
    kubectl("scale", "--namespace", NAMESPACE, deployment, f"--replicas={replicas}")
    kubectl("rollout", "status", "--namespace", NAMESPACE, deployment, "--timeout=90s")
    print(kubectl("get", "pods", "--namespace", NAMESPACE, "--selector", AGENTS), end="")


def check(folder: Path, scratch: Path) -> bool:
    """List the files; the wheel must install and import, the report must tell of tests that passed."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and "sqlite" not in path.name):
        print(f"{path.stat().st_size:10d}  {path.relative_to(folder)}")
    wheel = next(folder.rglob("*.whl"))
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--target",
            str(scratch),
            str(wheel),
        ],
        check=True,
    )
    program = f"import {source.PACKAGE}; print('imported', {source.PACKAGE}.__name__, {source.PACKAGE}.__version__)"
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"PYTHONPATH": str(scratch)})
    suite = ElementTree.parse(next(folder.rglob("report.xml"))).getroot().find("testsuite")  # noqa: S314 - made by us
    if suite is None:
        return False
    print(f"its own tests: {suite.get('tests')} run, {suite.get('failures')} failed, {suite.get('errors')} errors")
    return int(suite.get("tests", 0)) > 0 and suite.get("failures") == suite.get("errors") == "0"


def nothing_left() -> bool:
    """Show what is of the agents or of the release in all namespaces: there must be nothing."""
    clean = True
    for kinds, selector in LEFT.items():
        words = ["get", kinds, "-A", "-l", selector]
        done = subprocess.run([verb("kubectl"), *words], check=True, capture_output=True, text=True)
        print(f"$ kubectl {' '.join(words)}\n{done.stdout}{done.stderr}".rstrip())
        clean = clean and not done.stdout
    return clean


if __name__ == "__main__":
    sys.exit(main())
