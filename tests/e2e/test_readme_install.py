"""The installation that the README describes, on this cluster: its commands, with the address of a real scheduler."""

from __future__ import annotations

import re
import secrets
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.e2e import kube
from tests.e2e.lab import start_scheduler
from tests.e2e.release import helm_path

README = (kube.ROOT / "README.md").read_text()
PLACEHOLDERS = ("PATH_OF_THE_TOKEN", "scheduler.example.org:443")


def commands() -> list[str]:
    """Return the commands of the README's quick start for a platform team."""
    section = README.partition("## Quick start: agents for a platform team")[2]
    block = re.search(r"```\n(.*?)```", section, re.DOTALL)
    assert block
    return block[1].replace("\\\n", " ").splitlines()


def run(command: str, replaced: dict[str, str], *more: str) -> str:
    """Run a command of the README with the additional arguments `more`. Return its standard output.

    Before the run, each key of `replaced` (a placeholder or a name in the command) is replaced by its value.
    """
    for name, value in replaced.items():
        command = command.replace(name, value)
    program, *words = shlex.split(command)
    path = {"helm": helm_path, "kubectl": kube.kubectl_path}[program]()
    done = subprocess.run(
        [path, *words, *more],
        cwd=kube.ROOT,
        env=kube.environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.timeout(400)
def test_the_agents_of_the_readme_become_ready_and_pass_helm_test(tmp_path: Path) -> None:
    create, secret, install, test = commands()
    assert [name for name in PLACEHOLDERS if name not in secret + install] == []
    (tmp_path / "token").write_text("a-token-of-the-test")
    address = kube.provider("address").splitlines()[-1]
    scheduler, at = start_scheduler(tmp_path, f"{address}:0")
    namespace = f"readme-{secrets.token_hex(3)}"
    replaced = {
        "PATH_OF_THE_TOKEN": str(tmp_path / "token"),
        "scheduler.example.org:443": at,
        "sealci-actions": f"{namespace}-actions",
        "namespace sealci": f"namespace {namespace}",
        "-n sealci ": f"-n {namespace} ",
    }
    try:
        run(create, replaced)
        run(secret, replaced)
        # The scheduler of the test speaks plaintext. `--wait` ends when the agents are ready.
        plaintext = ("--set", "scheduler.tls.enabled=false")
        run(install, replaced, *plaintext, "--wait", "--timeout", "150s")
        passed = run(test, replaced)
        assert re.search(r"Phase: +Succeeded", passed), passed
    finally:
        scheduler.terminate()
        scheduler.wait(10)
        run(f"helm uninstall agent --namespace {namespace} --ignore-not-found --wait", {})
        run(f"kubectl delete namespace {namespace} --wait=false", {})
