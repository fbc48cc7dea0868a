"""`make demo`: a real pipeline, from its submission to a clean cluster, with the time that each step took.

Starts a git server with a published package's source, a scheduler and an agent, submits the pipeline, shows its log as
it comes, checks what came back (the wheel installs and imports), ends everything and looks for remains.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).parent))

import source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
AGENT = [sys.executable, "-m", "agent"]
SETTINGS = {
    "SEALCI_SCHEDULER__TLS__ENABLED": "false",
    "SEALCI_AGENT__POOL": "demo",
    "SEALCI_POLICY__REPOSITORY_SCHEMES": '["https", "ssh", "git"]',
    "SEALCI_HTTP__HOST": "127.0.0.1",
    "SEALCI_HTTP__PORT": "0",
}
SELECTOR = "app.kubernetes.io/managed-by=sealci-agent"


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
    env = os.environ | SETTINGS | {"KUBECONFIG": verb("kubeconfig"), "PYTHONUNBUFFERED": "1"}
    with clock.step(f"the source of {source.PACKAGE} {source.VERSION}, in a git repository"):
        source.make_repository(out / "repositories")
    address = verb("address")
    with contextlib.ExitStack() as stack:
        with clock.step("scheduler, agent and git server start"):
            url = stack.enter_context(source.served(out / "repositories", address))
            pipeline = out / "pipeline.yaml"
            pipeline.write_text((Path(__file__).parent / "pipeline.yaml").read_text().replace("{url}", url))
            scheduler = start(stack, out, "scheduler", ["--listen", "127.0.0.1:0", "--folder", str(out / "out")], env)
            listening = found(scheduler, r"address\W+(127\.0\.0\.1:\d+)")
            agent = start(stack, out, "serve", [], env | {"SEALCI_SCHEDULER__ADDRESS": listening})
            found(agent, r"(registered with the scheduler)")
        with clock.step("the pipeline, as it runs"):
            code = subprocess.run(
                [*AGENT, "submit", str(pipeline), "--scheduler", listening, "--plaintext"], env=env, check=False
            )
        with clock.step("agent and scheduler leave"):
            stack.close()
    with clock.step("what came back"):
        ok = code.returncode == 0 and check(out / "out", out / "check")
    with clock.step("what is left in the cluster"):
        ok = nothing_left(env) and ok
    clock.show()
    print(f"\nlogs and files: {out / 'out'}")
    return 0 if ok else 1


def verb(*arguments: str) -> str:
    """Ask the cluster's provider."""
    command = [sys.executable, str(ROOT / "deploy" / "cluster"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1]


def start(stack: contextlib.ExitStack, out: Path, name: str, arguments: list[str], env: dict[str, str]) -> Path:
    """Start a command of the agent that ends with the stack; returns its log."""
    log = out / f"{name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen([*AGENT, name, *arguments], env=env, cwd=ROOT, stdout=file, stderr=file)
    stack.callback(end, process)
    return log


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to leave and wait for it."""
    process.terminate()
    process.wait(120)


def found(log: Path, pattern: str) -> str:
    """Wait until a log says something."""

    def look() -> str:
        match = re.search(pattern, log.read_text())
        return match[1] if match else ""

    return until(look, lambda: f"{log} does not say {pattern}:\n{log.read_text()}")


def until(look: Callable[[], str], why: Callable[[], str]) -> str:
    """Look again and again, for half a minute."""
    deadline = time.monotonic() + 30
    while not (answer := look()):
        if time.monotonic() > deadline:
            raise SystemExit(why())
        time.sleep(0.05)
    return answer


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


def nothing_left(env: dict[str, str]) -> bool:
    """Show pods and Secrets of ours in all namespaces: there must be none."""
    command = [verb("kubectl"), "get", "pods,secrets", "-A", "-l", SELECTOR]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    print(f"$ kubectl get pods,secrets -A -l {SELECTOR}\n{done.stdout}{done.stderr}".rstrip())
    return not done.stdout


if __name__ == "__main__":
    sys.exit(main())
