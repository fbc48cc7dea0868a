"""Many short actions on three replicas of a real cluster, while random faults hit agents, scheduler and API server.

One seed determines every choice. The test prints the seed, and the variable `CHURN_SEED` sets another seed. No check
uses an agent's report. Outcomes and logs come from the scheduler's events and disk, exit codes from the cluster, and
resources from /proc.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import signal
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
import pytest

from agent.domain.events import Source
from agent.pipeline import event_codec, events
from agent.pipeline.wire import local_pb2 as wire
from agent.pipeline.wire import local_pb2_grpc
from tests.e2e import kube
from tests.e2e.lab import internal_errors, new_namespace
from tests.e2e.observer import Observer, remains, session_of
from tests.faults.agent_processes import AgentProcesses
from tests.faults.cluster.random_faults import REPLICAS, RandomFaults, until
from tests.faults.cluster.workload import NAME, PlannedAction, workload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from agent.domain.outcome import Outcome
    from agent.pipeline.events import PipelineEvent
    from tests.faults.cluster.random_faults import Measure, Replica

pytestmark = pytest.mark.alone
SEED = int(os.environ.get("CHURN_SEED", "20261124"))
# Number of actions that run at the same time.
AT_ONCE = 4 * REPLICAS
# Seconds until an action must have ended.
ACTION_SECONDS = 300.0
# Maximum number of bytes by which an agent's memory is allowed to grow during the test. The memory grows because Python
# keeps freed memory.
GROWTH = 48 << 20
# Maximum number of additional connections of an agent at the end of the test, compared with the agent's start. The
# agent keeps a connection for uploads to the scheduler, and idle connections to the API server for its next requests.
# One leaked socket per action would be about 20 per agent.
KEPT_CONNECTIONS = 3
CHANNEL = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000))


@dataclass
class SeenAction:
    """The events of one action, in the order in which the scheduler sent them."""

    planned: PlannedAction
    events: list[PipelineEvent] = field(default_factory=list)

    @property
    def outcomes(self) -> list[Outcome]:
        """Return all outcomes of the action. An action must have exactly one outcome."""
        return [each.body.outcome for each in self.events if isinstance(each.body, events.ActionEnded)]

    @property
    def attempt(self) -> int:
        """Return the number of the action's last attempt. Return 0 before the first attempt."""
        return max((each.attempt for each in self.events), default=0)

    def log(self, *sources: Source) -> bytes:
        """Return the part of the last attempt's log that comes from these sources."""
        texts = (each.body for each in self.events if each.attempt == self.attempt)
        return b"".join(each.data for each in texts if isinstance(each, events.LogText) and each.source in sources)

    def check(self, store: Path) -> None:
        """Compare the events, and the log and files that are stored below `store`, with the expected result."""
        planned, written = self.planned, self.log(Source.COMMANDS)
        (outcome,) = self.outcomes
        result, reason, code = planned.outcome
        actual = outcome.result.value, outcome.reason.value if outcome.reason else ""
        assert actual == (result, reason), f"{planned.run} ({planned.kind}): {outcome}\n{self.log(*Source)!r}"
        if code is not None:
            assert outcome.exit_code == code, f"{planned.run}: {outcome}"
            assert written == planned.written, f"{planned.run}: {difference(written, planned.written)}"
        # The shell of a cancelled action writes "Terminated" when the cancel ends the shell's child.
        cut = written.removesuffix(b"Terminated\n")
        assert planned.written.startswith(cut), f"{planned.run}: {difference(cut, planned.written)}"
        folder = store / planned.run
        stored = folder / f"{NAME}.log"
        assert (stored.read_bytes() if stored.exists() else b"") == self.log(*Source), planned.run
        found = {
            str(path.relative_to(folder / NAME)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (folder / NAME).rglob("*")
            if path.is_file()
        }
        if planned.kind != "cancel":
            assert found == {path: hashlib.sha256(data).hexdigest() for path, data in planned.files.items()}, (
                planned.run
            )


def difference(one: bytes, other: bytes) -> str:
    """Return a text that shows the first difference of two logs."""
    place = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return f"{len(one)} bytes for {len(other)}; at {place}: {one[place : place + 60]!r} for {other[place:][:60]!r}"


class Submitter:
    """Submits actions and follows each action to its end.

    After the end of each action, a Submitter calls `on_end` with the number of ended actions.
    """

    def __init__(self, address: str, on_end: Callable[[int], None]) -> None:
        self.on_end = on_end
        self.ended = 0
        self.channel = grpc.aio.insecure_channel(address, options=CHANNEL)
        self.stub = local_pb2_grpc.LocalStub(self.channel)
        self.room = asyncio.Semaphore(AT_ONCE)
        self.seen: list[SeenAction] = []

    async def one(self, planned: PlannedAction) -> None:
        """Submit one action and follow it to its end, also over restarts of the scheduler."""
        async with self.room, asyncio.timeout(ACTION_SECONDS):
            action = SeenAction(planned)
            self.seen.append(action)
            request = wire.SubmitRequest(
                pipeline=planned.run, file_name="p", text=planned.text, secrets=planned.secrets
            )
            position, cancelled = 0, planned.kind != "cancel"
            while True:
                watch = wire.WatchRequest(pipeline=planned.run, after=position)
                call = self.stub.Watch(watch) if position else self.stub.Submit(request)
                try:
                    async for message in call:
                        position = message.position
                        if (event := event_codec.decode(message)) is not None:
                            action.events.append(event)
                        if not cancelled and (planned.early or action.log(Source.COMMANDS) == planned.written):
                            await self.stub.Cancel(wire.CancelRequest(pipeline=planned.run, message="not wanted"))
                            cancelled = True
                        if message.HasField("ended"):
                            self.ended += 1
                            self.on_end(self.ended)
                            return
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.2)

    async def all(self, work: list[PlannedAction]) -> None:
        """Submit all actions in `work`, so that at most AT_ONCE of them run at a time."""
        async with asyncio.TaskGroup() as tasks:
            for planned in work:
                tasks.create_task(self.one(planned), name=planned.run)


@pytest.fixture
async def processes() -> AsyncIterator[AgentProcesses]:
    async with AgentProcesses() as processes:
        yield processes


@pytest.fixture
def namespace() -> Iterator[str]:
    with new_namespace() as name:
        yield name
        kube.settle()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("count", "every"), [(60, 2), pytest.param(1000, 4, marks=pytest.mark.soak)])
async def test_random_faults_lose_no_action_and_leave_no_pod(
    count: int, every: int, tmp_path: Path, processes: AgentProcesses, namespace: str
) -> None:
    secret = f"churn-{secrets.token_hex(8)}-"
    print(f"\nchurn: {count} actions, seed {SEED}")
    observer = Observer(namespace)
    began = time.monotonic()
    try:
        async with RandomFaults(tmp_path, processes, namespace, SEED).up() as faults:
            start = [await replica.measure() for replica in faults.replicas]
            async with asyncio.TaskGroup() as falling:

                def on_end(ended: int) -> None:
                    if ended % every == 0:
                        faults.inject_next(falling)

                submitter = Submitter(faults.address, on_end)
                await submitter.all(workload(SEED, count, secret))
            await submitter.channel.close()
            seconds = time.monotonic() - began
            await wait_gone(namespace)
            for replica, before in zip(faults.replicas, start, strict=True):
                await back_to(replica, before)
            scrapes = [(await replica.get("/metrics"))[1] for replica in faults.replicas]
            for replica in faults.replicas:
                assert await replica.child.end(signal.SIGTERM) == 0
    finally:
        observer.close()
    show(faults, submitter, observer, seconds)
    check(faults, submitter, observer, secret, scrapes)
    assert len(submitter.seen) == count


async def wait_gone(namespace: str) -> None:
    """Wait until no pod and no Secret of an action is left."""

    async def gone() -> bool:
        return not await asyncio.to_thread(remains, namespace)

    await until(gone, f"pods or Secrets remain: {remains(namespace)}", 60)


async def back_to(replica: Replica, start: Measure) -> None:
    """Wait until a replica's agent has no more tasks than at `start`, and at most KEPT_CONNECTIONS more sockets.

    Then check that the agent's memory has grown by less than GROWTH bytes.
    """
    await replica.ready()

    async def back() -> Measure | None:
        now = await replica.measure()
        few = now.sockets <= start.sockets + KEPT_CONNECTIONS
        return now if few and now.tasks <= start.tasks else None

    message = f"replica {replica.number} held {start}"
    try:
        now = await until(back, message, 60)
    except AssertionError:
        raise AssertionError(f"{message}, and now {await replica.measure()}") from None
    print(f"replica {replica.number}, {replica.starts} starts: held {start}; now {now}")
    assert now.memory - start.memory < GROWTH


def show(faults: RandomFaults, submitter: Submitter, observer: Observer, seconds: float) -> None:
    """Print a summary of the run: actions, outcomes, faults, and how soon pods were deleted."""
    outcomes = Counter(
        f"{each.result.value} {each.reason.value if each.reason else ''}".strip()
        for action in submitter.seen
        for each in action.outcomes
    )
    again = sum(action.attempt > 1 for action in submitter.seen)
    print(f"{len(submitter.seen)} actions in {seconds:.0f} s; {again} in a later attempt; remains 0")
    stayed = statistics.quantiles(observer.remained(), n=100, method="inclusive")
    print(f"gone after the commands' end: p50 {stayed[49]:.1f} s, p99 {stayed[98]:.1f} s")
    print(f"faults: {sum(faults.injected.values())}: {dict(sorted(faults.injected.items()))}")
    print(f"outcomes: {dict(sorted(outcomes.items()))}")


def check(faults: RandomFaults, submitter: Submitter, observer: Observer, secret: str, scrapes: list[str]) -> None:
    """Check the outcomes, exit codes, pods, logs and metrics of the whole run."""
    for action in submitter.seen:
        action.check(faults.store)
    seen = exit_codes(observer)
    unseen = 0
    for action in submitter.seen:
        codes = seen.get((action.planned.run, action.attempt), set())
        if action.planned.outcome[0] == "succeeded":
            unseen += not codes
            assert codes <= {0}, f"{action.planned.run} succeeded, but its container ended with {codes}"
    print(f"successes whose container was seen to end with 0: all but {unseen}")
    # The observer sees nothing while the API server restarts. So it misses the end of a pod that is deleted meanwhile.
    assert unseen <= AT_ONCE * faults.injected["apiserver restart"]
    observer.check_pods(secret)
    logs = [child.log for replica in faults.replicas for child in replica.children]
    for text in [*logs, *(each.log for each in faults.schedulers), *scrapes]:
        assert secret not in text
        assert "Traceback" not in text, text[text.index("Traceback") - 2000 :][:6000]
    for path in faults.store.rglob("*"):
        if path.is_file() and not path.name.startswith("scheduler.sqlite3"):
            assert secret.encode() not in path.read_bytes(), path
    assert [error for text in scrapes for error in internal_errors(text)] == []


def exit_codes(observer: Observer) -> dict[tuple[str, int], set[int]]:
    """Return the observed exit codes of containers `action`, by pipeline run and attempt.

    Only the exit codes of an action's last attempt determine the outcome, because an agent has ended the commands of
    the earlier attempts.
    """
    found: dict[tuple[str, int], set[int]] = {}
    for pod in observer.states:
        session = session_of(pod)
        for status in pod.get("status", {}).get("containerStatuses", ()) if session else ():
            if status["name"] == "action" and "terminated" in status.get("state", {}):
                key = session["action_id"].split("/")[0], session["attempt"]
                found.setdefault(key, set()).add(status["state"]["terminated"]["exitCode"])
    return found
