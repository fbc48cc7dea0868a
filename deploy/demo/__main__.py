"""Run the demo (`make demo`): install the chart, run a real pipeline, and leave a clean cluster.

The demo serves the source of a published Python package by git. It installs the chart with two agents and the demo
scheduler, submits the pipeline and shows the log. Then it checks that the wheel from the pipeline installs and imports,
shows metrics, scales to three agents, uninstalls the chart and looks for objects that are left. The demo prints the
duration of each step at its end.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from agent.cluster.api.local_cluster import find_local_cluster
from agent.settings import ClusterSettings
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
    # The demo serves its repository by git's own protocol, which the agent refuses by default.
    "policy": {"repository_schemes": ["https", "ssh", "git"]},
}
METRICS = re.compile(r"sealci_agent_(slots|actions_completed_total|log_bytes_total|artifact_(files|bytes)_total)\b")
# Label selectors that together find all objects of the agents and the chart. Each key lists resource types for kubectl.
CREATED_OBJECTS = {
    "pods,secrets,leases": "app.kubernetes.io/managed-by=sealci-agent",
    "all,configmaps,secrets,roles,rolebindings,networkpolicies,namespaces": f"app.kubernetes.io/instance={RELEASE}",
}
PIP_INSTALL = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")


class Stopwatch:
    """The durations of the demo's steps, for one run."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, float]] = []

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Print the name of a step, and record how long the `with` block runs."""
        print(f"\n\033[1m== {name}\033[0m" if sys.stdout.isatty() else f"\n== {name}", flush=True)
        began = time.monotonic()
        yield
        self.steps.append((name, time.monotonic() - began))

    def show(self) -> None:
        print("\n== times")
        for name, seconds in self.steps:
            print(f"{seconds:8.1f} s  {name}")


def main() -> int:
    """Run the demo. Return 0 if the pipeline and its artifacts are right and nothing is left in the cluster, else 1."""
    stopwatch = Stopwatch()
    out = Path(tempfile.mkdtemp(prefix="sealci-demo-"))
    kubeconfig = verb("kubeconfig")
    suggested = next_commands(kubeconfig, Path.cwd())
    os.environ["KUBECONFIG"] = kubeconfig
    with stopwatch.step(f"the source of {source.PACKAGE} {source.VERSION}, in a git repository"):
        source.make_repository(out / "repositories")
    with contextlib.ExitStack() as stack:
        with stopwatch.step("helm install: two agents and a scheduler"):
            install(stack)
        url = stack.enter_context(source.serve_git(out / "repositories", verb("address")))
        pipeline = out / "pipeline.yaml"
        pipeline.write_text((Path(__file__).parent / "pipeline.yaml").read_text("utf-8").replace("{url}", url))
        with stopwatch.step("the pipeline"):
            ok = submit(pipeline)
        with stopwatch.step("the files of the pipeline"):
            fetch(out / "out")
            ok = check(out / "out", out / "check") and ok
        with stopwatch.step("metrics of the agents"):
            show_metrics()
        with stopwatch.step("kubectl scale: three agents"):
            scale(3)
        with stopwatch.step("helm uninstall"):
            stack.close()
    with stopwatch.step("objects that are left in the cluster"):
        ok = is_cluster_clean() and ok
    stopwatch.show()
    print(f"\nlogs and files: {out / 'out'}")
    print("\nThe cluster still runs. Now try:", *suggested, sep="\n  ")
    return 0 if ok else 1


def next_commands(kubeconfig: str, folder: Path) -> list[str]:
    """Return three shell commands for a user whose current folder is `folder`.

    The commands set KUBECONFIG only if `sealci-agent` would not find the cluster by itself.
    """
    found = find_local_cluster(ClusterSettings())
    prefix = "" if found is not None and found.samefile(kubeconfig) else f"KUBECONFIG={shlex.quote(kubeconfig)} "
    # This is the `sealci-agent` of the virtual environment that runs the demo, as a path relative to `folder`.
    command = prefix + shlex.quote(os.path.relpath(Path(sys.executable).with_name("sealci-agent"), folder))
    names = ("pipeline.yaml", *(f"pipeline-{number}.yaml" for number in range(2, 100)))
    file = next(name for name in names if not (folder / name).exists())
    return [f"{command} init {file}", f"{command} run {file}", f"{command} doctor --only cluster"]


def verb(*arguments: str) -> str:
    """Run one verb of the command `python3 -m deploy.dev.cluster`. Return the last line that the verb prints."""
    command = [sys.executable, "-m", "deploy.dev.cluster", *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip().splitlines()[-1]


def kubectl(*arguments: str) -> str:
    command = [verb("kubectl"), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def install(stack: contextlib.ExitStack) -> None:
    """Install the chart. When `stack` is closed, the chart is uninstalled and the namespace is deleted."""
    helm = verb("helm")
    stack.callback(subprocess.run, [verb("kubectl"), "delete", "namespace", NAMESPACE, "--wait=true"], check=False)
    command = [helm, "install", RELEASE, str(ROOT / "charts" / "sealci-agent"), "--namespace", NAMESPACE]
    stack.callback(subprocess.run, [helm, "uninstall", RELEASE, "--namespace", NAMESPACE, "--wait"], check=False)
    words = [*command, "--create-namespace", "--wait", "--timeout", "120s", "--values", "-"]
    subprocess.run(words, input=json.dumps(VALUES), text=True, check=True)


def submit(pipeline: Path) -> bool:
    """Submit a pipeline to the scheduler in the cluster and show the pipeline's log.

    Return whether the pipeline succeeded.
    """
    service = f"service/{RELEASE}-sealci-agent-scheduler"
    forward = subprocess.Popen(
        [verb("kubectl"), "port-forward", "--namespace", NAMESPACE, service, ":7080"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        # kubectl chooses a free local port for the port forwarding and prints the port on its first line.
        line = forward.stdout.readline() if forward.stdout else ""
        found = re.search(r"127\.0\.0\.1:\d+", line)
        if found is None:
            raise SystemExit(f"kubectl port-forward to {service} failed")
        token = pipeline.with_name("token")
        token.touch(0o600)
        token.write_bytes(scheduler_token())
        command = [sys.executable, "-m", "agent", "submit", str(pipeline), "--scheduler", found[0], "--plaintext"]
        return subprocess.run([*command, "--token-file", str(token)], cwd=ROOT, check=False).returncode == 0
    finally:
        forward.terminate()
        forward.wait(10)


def scheduler_token() -> bytes:
    """Return the token that the chart made for people who submit to the demo scheduler."""
    secret = f"secret/{RELEASE}-sealci-agent-scheduler"
    return base64.b64decode(kubectl("get", "--namespace", NAMESPACE, secret, "--output=jsonpath={.data.submit-token}"))


def fetch(folder: Path) -> None:
    """Copy the logs and artifacts of the pipeline from the scheduler's pod into `folder`."""
    scheduler = f"deployment/{RELEASE}-sealci-agent-scheduler"
    words = ["exec", "--namespace", NAMESPACE, scheduler, "--", "tar", "-C", "/var/lib/sealci", "-cf", "-", "."]
    done = subprocess.run([verb("kubectl"), *words], check=True, stdout=subprocess.PIPE)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")


def show_metrics() -> None:
    for name in kubectl("get", "pods", "--namespace", NAMESPACE, "--selector", AGENTS, "--output=name").split():
        print(name)
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{name.removeprefix('pod/')}:8080/proxy/metrics"
        for line in kubectl("get", "--raw", path).splitlines():
            if METRICS.match(line) and not line.endswith(" 0.0"):
                print(f"  {line}")


def scale(replicas: int) -> None:
    """Scale the agents to `replicas` replicas, wait until all of them are ready, and print their pods."""
    deployment = f"deployment/{RELEASE}-sealci-agent"
    kubectl("scale", "--namespace", NAMESPACE, deployment, f"--replicas={replicas}")
    kubectl("rollout", "status", "--namespace", NAMESPACE, deployment, "--timeout=90s")
    print(kubectl("get", "pods", "--namespace", NAMESPACE, "--selector", AGENTS), end="")


def check(folder: Path, scratch: Path) -> bool:
    """Print the artifacts of the pipeline in `folder`. Return whether all tests in their test report have passed.

    Install the wheel among the artifacts into the folder `scratch`, and import the package. Raise CalledProcessError if
    this fails.
    """
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and "sqlite" not in path.name):
        print(f"{path.stat().st_size:10d}  {path.relative_to(folder)}")
    wheel = next(folder.rglob("*.whl"))
    subprocess.run([*PIP_INSTALL, "--target", str(scratch), str(wheel)], check=True)
    program = f"import {source.PACKAGE}; print('imported', {source.PACKAGE}.__name__, {source.PACKAGE}.__version__)"
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"PYTHONPATH": str(scratch)})
    suite = ElementTree.parse(next(folder.rglob("report.xml"))).getroot().find("testsuite")  # noqa: S314 - trusted input
    if suite is None:
        return False
    tests, failures, errors = (suite.get(name) for name in ("tests", "failures", "errors"))
    print(f"tests of {source.PACKAGE}: {tests} run, {failures} failed, {errors} errors")
    return int(tests or 0) > 0 and failures == errors == "0"


def is_cluster_clean() -> bool:
    """Print all objects of the agents and of the Helm release in all namespaces. Return whether there are none."""
    clean = True
    for kinds, selector in CREATED_OBJECTS.items():
        words = ["get", kinds, "-A", "-l", selector]
        done = subprocess.run([verb("kubectl"), *words], check=True, capture_output=True, text=True)
        print(f"$ kubectl {' '.join(words)}\n{done.stdout}{done.stderr}".rstrip())
        clean = clean and not done.stdout
    return clean


if __name__ == "__main__":
    sys.exit(main())
