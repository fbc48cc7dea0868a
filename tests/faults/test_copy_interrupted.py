"""A copy of 100 MiB from a pod to the scheduler is interrupted after each tenth of the bytes.

The test interrupts the connection between pod and agent, or the connection between agent and scheduler. The scheduler
must never store a part of a file. The agent is a real process, with a proxy between agent and scheduler. The exec is a
websocket to which the real collector (the program that copies files out of a pod) writes. Each case interrupts only the
first try of the copy. cluster/test_copy_on_the_cluster.py has cases on a cluster.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import shutil
import signal
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from agent.domain.json import Object
from agent.local_scheduler.local_service import Access
from agent.local_scheduler.options import SchedulerOptions
from agent.local_scheduler.server import open_scheduler
from agent.pipeline import parser
from tests.faults.agent_processes import AgentProcesses
from tests.faults.crash_case import SECRETS, TEXT, CrashCase, outcomes
from tests.faults.node import Cluster, Points
from tests.faults.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from agent.local_scheduler.server import Scheduler

SIZE = 100 << 20
CHUNK = 1 << 18
TENTHS = range(10)
SIDES = ("exec", "scheduler")
BUILT_ONLY = TEXT + "    artifacts: {paths: [built]}\n"
SCRIPT: list[bytes | str] = ["s:1", b"line\n", "f:1:0", "s:2", b"line\n", "f:2:0", "l:0:0"]


class Pods(Cluster):
    """A scripted cluster that interrupts an exec after `cut_at` bytes of output.

    The cluster interrupts the first exec, or every exec if `for_ever` is true.
    """

    cut_at: int | None = None
    for_ever = False
    how = "reset"
    execs = 0

    async def on_exec(self, request: web.Request) -> web.WebSocketResponse:
        """Run the program that copies files out of a pod over the pod's simulated workspace, and forward its output.

        If the case demands it, interrupt the exec after `cut_at` bytes.
        """
        self.execs += 1
        socket, process = await self.start_collector(request)
        assert process.stdout is not None
        left = self.cut_at
        if not self.for_ever:
            self.cut_at = None
        try:
            while data := await process.stdout.read(CHUNK):
                if left is not None and len(data) > left:
                    await socket.send_bytes(b"\x01" + data[:left])
                    await self.break_off(request, socket, process)
                    return socket
                left = None if left is None else left - len(data)
                await socket.send_bytes(b"\x01" + data)
            await socket.send_bytes(b'\x03{"metadata":{},"status":"Success"}')
        except ConnectionError:
            # A ConnectionError means that the agent has closed the connection, as the case demands.
            pass
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()
        return socket

    async def break_off(
        self, request: web.Request, socket: web.WebSocketResponse, process: asyncio.subprocess.Process
    ) -> None:
        """Interrupt an exec in one of three ways.

        The attribute `how` is "reset" (of the connection), "closed" (without a status) or "killed" (the program that
        copies files out of the pod).
        """
        if self.how == "reset":
            assert request.transport
            request.transport.abort()
        elif self.how == "killed":
            process.kill()
            causes = [{"reason": "ExitCode", "message": "137"}]
            failure = {"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": causes}}
            await socket.send_bytes(b"\x03" + json.dumps(failure).encode())


class Copy(CrashCase):
    """A CrashCase in which no agent is killed. One agent serves all cases, and each case is a pipeline of its own."""

    def __init__(self, folder: Path, processes: AgentProcesses, data: bytes) -> None:
        super().__init__(folder, processes, "", "same")
        self.pods = Pods(Points(), folder, SCRIPT, {"built": data})
        self.cluster = self.pods
        self.sum = hashlib.sha256(data).hexdigest()

    def settings(self, address: str, pod: str) -> Object:
        """Return the settings of the agent, with longer time limits than in other crash cases."""
        settings = super().settings(address, pod)
        # The intervals are long, so that a busy machine does not break the stream.
        settings["scheduler"] |= {"keepalive": "20s", "register_timeout": "20s"}
        settings["cluster"] |= {"lease_duration": "20s", "lease_renew": "2s"}
        return settings

    async def one(self, scheduler: Scheduler, run: str) -> str:
        """Run the pipeline `run`, which has one action, and return the outcome of the action."""
        await scheduler.dispatcher.submit(run, parser.parse(BUILT_ONLY, "p.yaml"), SECRETS)
        async with asyncio.timeout(110):
            (outcome,) = await outcomes(scheduler, run)
        return outcome

    def stored(self, run: str) -> str | None:
        """Return the sha256 of the file that the scheduler stored for the pipeline `run`, or None if there is none."""
        file = self.folder / run / "a" / "built"
        if not file.exists():
            return None
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()

    def forget(self, run: str) -> None:
        """Delete the stored file of the pipeline `run`, and the workspaces of all pods."""
        (self.folder / run / "a" / "built").unlink()
        for folder in self.folder.glob("*.workspace"):
            shutil.rmtree(folder)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("side", SIDES)
async def test_a_copy_interrupted_at_any_tenth_is_complete_after_a_retry(
    side: str, tmp_path: Path, in_table: Callable[[str, str, Mapping[str, str]], None]
) -> None:
    data = random.Random(1).randbytes(SIZE)
    async with AgentProcesses() as processes:
        copy = Copy(tmp_path, processes, data)
        async with (
            copy.pods.serving(),
            open_scheduler("127.0.0.1:0", tmp_path, Access(), SchedulerOptions(resume_grace=60.0)) as scheduler,
            Proxy(scheduler.address) as proxy,
        ):
            try:
                copy.listen(scheduler)
                await copy.agent(scheduler, "replica-a", proxy.address)
                for tenth in TENTHS:
                    run = f"pipeline{tenth}"
                    before = copy.pods.execs
                    if side == "exec":
                        copy.pods.how = ("reset", "closed", "killed")[tenth % 3]
                        copy.pods.cut_at = SIZE * tenth // 10
                    else:
                        proxy.reset_after(SIZE * tenth // 10 + CHUNK)
                    outcome = await copy.one(scheduler, run)
                    tries = copy.pods.execs - before
                    whole = copy.stored(run) == copy.sum
                    seen = f"{outcome}, {tries} tries, {'complete' if whole else 'INCOMPLETE'}"
                    in_table("100 MiB cut at", f"{tenth * 10} %", {side: seen})
                    assert (outcome, whole) == ("succeeded", True), seen
                    assert tries >= 2, "nothing was cut"
                    copy.forget(run)
            finally:
                for agent in copy.agents:
                    await agent.end(signal.SIGKILL)
                await copy.cluster.close()


@pytest.mark.timeout(180)
async def test_a_copy_that_is_always_interrupted_never_succeeds(tmp_path: Path) -> None:
    async with asyncio.TaskGroup() as group:
        for how in ("reset", "closed", "killed"):
            (tmp_path / how).mkdir()
            group.create_task(always_cut(how, tmp_path / how), name=how)


async def always_cut(how: str, tmp_path: Path) -> None:
    """Run an action whose copy is interrupted at every try, and check that it fails.

    `how` is "reset", "closed" or "killed".
    """
    async with AgentProcesses() as processes:
        copy = Copy(tmp_path, processes, b"x" * (2 * CHUNK))
        copy.pods.for_ever, copy.pods.how, copy.pods.cut_at = True, how, CHUNK
        async with (
            copy.pods.serving(),
            open_scheduler("127.0.0.1:0", tmp_path, Access(), SchedulerOptions(resume_grace=60.0)) as scheduler,
        ):
            try:
                copy.listen(scheduler)
                await copy.agent(scheduler, "replica-a")
                assert await copy.one(scheduler, "pipeline1") == "failed"
                outcome = scheduler.registry.get("pipeline1").records["a"].state.outcome
                assert outcome is not None
                assert outcome.reason is not None
                assert outcome.reason.value == "ARTIFACTS_FAILED"
                assert outcome.exit_code == 0
                assert "the last attempt copied 0 whole files, " in outcome.message
                assert copy.stored("pipeline1") is None
                assert copy.pods.execs > 1
            finally:
                for agent in copy.agents:
                    await agent.end(signal.SIGKILL)
                await copy.cluster.close()
