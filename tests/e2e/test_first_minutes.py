"""The first minutes of a user: `init`, `run` without a kube context, a closed terminal, and a run that was killed."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.e2e import kube
from tests.e2e.lab import BUSYBOX, COMMAND, spelled, until
from tests.e2e.observer import MANAGED, remains
from tests.e2e.screen import Screen

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SMALL = ("--set", "policy.default_cpu=5m", "--set", "environment.grace=2s")
SLEEPS = {"actions": {"a": spelled({"image": BUSYBOX, "commands": ["echo begun; sleep 1000"]})}}


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """Return the environment variables of a user who has a local cluster and has configured nothing else."""
    local = tmp_path / ".cache" / "sealci-agent" / "run" / "0"
    local.mkdir(parents=True)
    (local / "kubeconfig").symlink_to(kube.kubeconfig())
    left_out = ("KUBECONFIG", "XDG_STATE_HOME", "CLUSTER_NUMBER")
    kept = {name: value for name, value in kube.environment().items() if name not in left_out}
    return kept | {"HOME": str(tmp_path)}


@pytest.fixture
def clean(namespace: str) -> Iterator[str]:
    """Yield a namespace. Fail if the test leaves a pod or a Secret there."""
    yield namespace
    try:
        until(lambda: not remains(namespace), f"pods or Secrets remain: {remains(namespace)}", 30)
    finally:
        kube.kubectl("delete", "pods,secrets", "-n", namespace, "-l", MANAGED, "--grace-period=0", "--force")


def command(*words: str, env: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `sealci-agent` in a folder. Return its exit code and output."""
    return subprocess.run(
        [*COMMAND, *words], env=env, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_file_of_init_runs_on_the_local_cluster(home: dict[str, str], clean: str, tmp_path: Path) -> None:
    made = command("init", env=home, folder=tmp_path)
    assert made.returncode == 0, made
    done = command("run", "pipeline.yaml", "--namespace", clean, *SMALL, env=home, folder=tmp_path)
    assert done.returncode == 0, done
    assert "using the local cluster of `make cluster-up`" in done.stderr
    assert "hello" in done.stdout


def test_the_next_run_deletes_what_a_killed_run_left(home: dict[str, str], clean: str, tmp_path: Path) -> None:
    file = tmp_path / "sleeps.yaml"
    file.write_text(yaml.safe_dump(SLEEPS))
    options = ("--namespace", clean, "--output", "plain", *SMALL)
    with subprocess.Popen(
        [*COMMAND, "run", str(file), *options], env=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        assert run.stdout is not None
        next(line for line in run.stdout if line == "begun\n")
        assert "no killed run" in command("cleanup", "--runs", env=home, folder=tmp_path).stdout, "the run is alive"
        run.kill()
    (pod,) = kube.get("pods", "-n", clean)
    name = pod["metadata"]["name"]
    dry = command("cleanup", "--runs", "--dry-run", env=home, folder=tmp_path)
    assert f"would delete {clean}/{name}" in dry.stdout, dry
    file.write_text(yaml.safe_dump({"actions": {"a": spelled({"image": BUSYBOX, "commands": ["true"]})}}))
    done = command("run", str(file), *options, env=home, folder=tmp_path)
    assert done.returncode == 0, done
    assert "deleted 1 pod of a run that was killed (pool run-" in done.stderr
    assert "no killed run" in command("cleanup", "--runs", env=home, folder=tmp_path).stdout
    until(lambda: not remains(clean), "the pod of the killed run remains", 30)


def test_a_closed_terminal_cancels_and_cleans(home: dict[str, str], clean: str, tmp_path: Path) -> None:
    file, errors = tmp_path / "sleeps.yaml", tmp_path / "errors"
    file.write_text(yaml.safe_dump(SLEEPS))
    run = f'"$@" 2> {errors}; echo $? > {tmp_path / "code"}'
    # With this trap, the shell survives SIGHUP and can write the exit code of `sealci-agent`. A child process does not
    # inherit the trap.
    shell = ["bash", "-c", f"trap : HUP; {run}", "bash", *COMMAND, "run", str(file), "--namespace", clean, *SMALL]
    screen = Screen(shell, home)
    screen.until("begun")
    for _ in range(2):
        # When a terminal closes, its processes get SIGHUP twice: from the kernel and from the login shell.
        os.killpg(screen.process.pid, signal.SIGHUP)
    os.close(screen.master)
    screen.master = -1
    screen.process.wait(60)
    assert (tmp_path / "code").read_text() == "130\n"
    assert "cancelled: nothing is left in the cluster" in errors.read_text()
    assert not remains(clean)
