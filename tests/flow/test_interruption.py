"""Interruptions of `sealci-agent run` at any moment: exit code 130, a message, no temporary folder left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from agent.console.follower import Interruptions

if TYPE_CHECKING:
    from pathlib import Path

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: c
clusters: [{name: k, cluster: {server: "http://127.0.0.1:9"}}]
contexts: [{name: c, context: {cluster: k, user: u}}]
users: [{name: u, user: {}}]
"""
# The program prints a line before it calls `main`, and the test sends its signal after this line. An earlier signal
# would end the Python interpreter before `main` handles signals.
PROGRAM = """
from agent.__main__ import main
print("started", flush=True)
main()
"""
PIPELINE = "configuration: {container: i}\ncommands: [x]\n"


async def test_a_closed_terminal_sends_two_signals_and_does_not_insist() -> None:
    interruptions = Interruptions()
    with interruptions.count_signals():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0.05)
        assert interruptions.first.is_set()
        assert not interruptions.second.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.05)
        assert interruptions.second.is_set()


# Seconds after the start. The command needs about half a second to load.
DELAYS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5)
# Pairs of a signal and its delay in seconds.
MOMENTS = [
    (number, delay)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for delay in (DELAYS if number is signal.SIGINT else DELAYS[::3])
]


@pytest.mark.parametrize(("number", "delay"), MOMENTS, ids=lambda value: getattr(value, "name", None))
def test_an_interruption_at_any_moment_leaves_nothing(tmp_path: Path, number: signal.Signals, delay: float) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    (tmp_path / "kubeconfig").write_text(KUBECONFIG)
    (tmp_path / "p.yaml").write_text(PIPELINE)
    (tmp_path / "tree").mkdir()
    command = [sys.executable, "-c", PROGRAM, "run", str(tmp_path / "p.yaml"), "--repo", str(tmp_path / "tree")]
    environment = os.environ | {"TMPDIR": str(folder), "KUBECONFIG": str(tmp_path / "kubeconfig")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    time.sleep(delay)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, (process.returncode, output, errors)
    assert "interrupted" in errors
    assert "Traceback" not in errors, errors
    assert not list(folder.iterdir())
