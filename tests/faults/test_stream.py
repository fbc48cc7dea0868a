"""The stream to the scheduler breaks in many ways while an action runs. The action continues, and no line is lost."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent.cli.submit import Target
from agent.cli.submit import submit as submit_pipeline
from agent.local_scheduler import grpc_service
from agent.local_scheduler.local_service import Access
from agent.local_scheduler.options import SchedulerOptions
from agent.local_scheduler.server import open_scheduler
from agent.pipeline import parser
from agent.protocol.wire import agent_pb2 as wire
from tests.fakes.waiting import LONG
from tests.faults.agent_processes import AgentProcesses
from tests.faults.crash_case import FILES, RUN, SCRIPT, SECRETS, TEXT, CrashCase, outcomes
from tests.faults.node import Cluster
from tests.faults.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from agent.local_scheduler.server import Scheduler
    from tests.faults.agent_processes import Child

NOTICED = 30.0
OPTIONS = SchedulerOptions(health_interval=0.5, resume_grace=60.0)
# A message to the agent that contains only field 1001. The agent does not know a kind of message with this number.
UNKNOWN = b"\xca\x3e\x03new"
MEBIBYTE = 1 << 20
LOST = "(cannot reach the scheduler)"


class Line(CrashCase):
    """One agent behind a proxy, and one action, which stops in the middle of a log line.

    The action continues when a test sets `points.open`.
    """

    scheduler: Scheduler
    proxy: Proxy
    child: Child
    peak = 0

    def __init__(self, folder: Path, processes: AgentProcesses, script: Sequence[bytes | str] = SCRIPT) -> None:
        super().__init__(folder, processes, "mid-line", "same")
        self.cluster = Cluster(self.points, folder, script, FILES)
        self.registrations = asyncio.Semaphore(0)
        self.log = b"".join(each for each in script if isinstance(each, bytes))

    @asynccontextmanager
    async def up(self) -> AsyncIterator[Line]:
        """Start cluster, scheduler, proxy and agent, and submit the action.

        Stop all of them at the end of the block.
        """
        async with (
            self.cluster.serving(),
            open_scheduler("127.0.0.1:0", self.folder, Access(), OPTIONS) as self.scheduler,
            Proxy(self.scheduler.address, seed=1) as self.proxy,
        ):
            try:
                self.listen(self.scheduler)
                self.count_registrations()
                self.child = await self.agent(self.scheduler, "replica-a", self.proxy.address)
                await self.until_registered()
                await self.scheduler.dispatcher.submit(RUN, parser.parse(TEXT, "p.yaml"), SECRETS)
                yield self
            finally:
                self.points.open.set()
                for agent in self.agents:
                    await agent.end(signal.SIGKILL)
                await self.cluster.close()

    def count_registrations(self) -> None:
        """Wrap the scheduler's method `register`, so that `until_registered` can wait for the next registration."""
        register = self.scheduler.dispatcher.register

        async def counted(*arguments: Any) -> None:
            await register(*arguments)
            self.registrations.release()

        self.scheduler.dispatcher.register = counted  # type: ignore[method-assign,assignment]

    async def until_registered(self) -> None:
        async with asyncio.timeout(NOTICED):
            await self.registrations.acquire()

    async def check_end(self) -> None:
        """Wait for the outcome.

        Check that it is a success with the whole log and all files, and without an adoption.
        """
        async with asyncio.timeout(50):
            assert await outcomes(self.scheduler) == ["succeeded"]
            assert (self.folder / RUN / "a.log").read_bytes() == self.log
            assert {path.name: path.read_bytes() for path in (self.folder / RUN / "a").iterdir()} == FILES
            await self.cluster.until(
                "every pod and Secret is deleted", lambda: not self.cluster.pods and not self.cluster.secrets, LONG
            )
            state = self.scheduler.registry.get(RUN).records["a"].state
            assert (state.attempt, state.claim) == (1, 1), "begun again, or adopted, without need"
            self.peak = self.memory("VmHWM")
            assert await self.child.end(signal.SIGTERM) == 0
            assert "Traceback" not in self.child.log

    def memory(self, key: str) -> int:
        """Return a memory value of the agent's process in bytes.

        `key` is the name of the value in /proc/PID/status, such as VmHWM.
        """
        found = re.search(rf"^{key}:\s+(\d+) kB$", Path(f"/proc/{self.child.pid}/status").read_text(), re.MULTILINE)
        assert found
        return int(found[1]) * 1024

    @property
    def over(self) -> bool:
        """Return whether the commands of the only pod have ended."""
        statuses = [each for pod in self.cluster.pods.values() for each in pod["status"].get("containerStatuses", ())]
        return any("terminated" in each["state"] for each in statuses)


@pytest.fixture
async def processes() -> AsyncIterator[AgentProcesses]:
    async with AgentProcesses() as processes:
        yield processes


BREAKS: dict[str, Callable[[Proxy], None]] = {
    "fin": Proxy.fin,
    "reset": Proxy.reset,
    "black hole": Proxy.swallow,
    "half-open": Proxy.half_open,
}


@pytest.mark.parametrize("fault", BREAKS)
async def test_a_broken_stream_is_noticed_and_no_line_is_lost_or_doubled(
    fault: str, tmp_path: Path, processes: AgentProcesses
) -> None:
    async with Line(tmp_path, processes).up() as line:
        await line.points.reached.wait()
        BREAKS[fault](line.proxy)
        # While the stream is broken, the action writes the rest of its log and ends.
        line.points.open.set()
        await line.cluster.until("the action has ended", lambda: line.over, LONG)
        await until_logged(line.child, LOST)
        line.proxy.heal()
        await line.until_registered()
        await line.check_end()


async def test_small_slices_and_latency_do_not_break_the_stream(tmp_path: Path, processes: AgentProcesses) -> None:
    line = Line(tmp_path, processes)
    line.points.open.set()
    async with line.up():
        line.proxy.pieces, line.proxy.latency = 300, 0.002
        await line.cluster.until("a pod is created", lambda: bool(line.cluster.pods), LONG)
        line.proxy.pieces = 3000
        await line.check_end()
        assert line.registrations.locked(), "the stream was broken"


async def test_a_connection_of_limited_age_is_opened_again(
    tmp_path: Path, processes: AgentProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    age = (("grpc.max_connection_age_ms", 400), ("grpc.max_connection_age_grace_ms", 100))
    monkeypatch.setattr(grpc_service, "OPTIONS", (*grpc_service.OPTIONS, *age))
    line = Line(tmp_path, processes)

    async def pace(number: int) -> None:
        if number in (8, 20, 30):
            await line.until_registered()

    line.cluster.pace = pace
    line.points.open.set()
    async with line.up():
        await line.check_end()


async def test_a_message_of_an_unknown_kind_is_ignored(tmp_path: Path, processes: AgentProcesses) -> None:
    async with Line(tmp_path, processes).up() as line:
        await line.points.reached.wait()
        (stream,) = line.scheduler.dispatcher.agents.streams.values()
        stream.send(wire.SchedulerMessage.FromString(UNKNOWN))
        line.points.open.set()
        await line.check_end()
        assert line.registrations.locked(), "the stream was broken"


async def test_a_slow_scheduler_does_not_fill_the_memory_of_the_agent(
    tmp_path: Path, processes: AgentProcesses
) -> None:
    lines = [b"%08d %s\n" % (number, b"x" * 1000) for number in range(12_000)]
    line = Line(tmp_path, processes, ["s:1", *lines[:6_000], "f:1:0", "s:2", *lines[6_000:], "f:2:0", "l:0:0"])
    async with line.up():
        await line.points.reached.wait()
        before = line.memory("VmRSS")
        line.proxy.rate = 4 * MEBIBYTE
        line.points.open.set()
        await line.check_end()
        print(f"12 MB of log to a slow reader: {(line.peak - before) / MEBIBYTE:.1f} MiB more at the most")
        assert line.peak - before < 24 * MEBIBYTE


async def test_a_frozen_scheduler_is_noticed_and_the_action_continues(
    tmp_path: Path, processes: AgentProcesses
) -> None:
    line = Line(tmp_path, processes)
    store = tmp_path / "store"
    arguments = ("scheduler", "--listen", "127.0.0.1:0", "--folder", str(store))
    async with line.cluster.serving(), asyncio.timeout(55):
        scheduler = await processes.start(tmp_path / "scheduler.log", *arguments)
        address = await until_logged(scheduler, r'"address": "([^"]+)"')
        config = tmp_path / "agent.json"
        config.write_text(json.dumps(line.settings(address, "replica-a")))
        agent = await processes.start(tmp_path / "agent.log", "serve", "--config", str(config))
        parsed = parser.parse(TEXT, "p.yaml")
        work = submit_pipeline(Target(address, tls=False), parsed, secrets=SECRETS, output="json")
        submission = asyncio.create_task(work, name="submission")
        await line.points.reached.wait()
        os.kill(scheduler.pid, signal.SIGSTOP)
        line.points.open.set()
        await until_logged(agent, LOST)
        os.kill(scheduler.pid, signal.SIGCONT)
        assert (await submission).value == 0
        assert [each.read_bytes() for each in store.glob("*/a.log")] == [line.log]
        await line.cluster.until("every pod is deleted", lambda: not line.cluster.pods, LONG)
        assert await agent.end(signal.SIGTERM) == 0
        assert await scheduler.end(signal.SIGTERM) == 0
        await line.cluster.close()


async def until_logged(child: Child, pattern: str) -> str:
    """Wait until the log of a process matches the regular expression `pattern`.

    Return the first group of the match.
    """
    async with asyncio.timeout(NOTICED):
        while not (found := re.search(pattern, child.log)):
            assert child.code is None, child.log
            # The test polls, because no event reports that another process has written to its log file.
            await asyncio.sleep(0.05)
    return found[1]
