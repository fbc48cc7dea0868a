"""The services of one environment: start the commands that wait for them, and read their logs.

A `PodServices` lives as long as its environment. Services with ports cost no request, because container `helper` dials
the ports. The last lines of a log, and a log that is followed, cost one request per service.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import aiohttp
import structlog

from agent.backoff import Backoff
from agent.cluster.api import exec as execs
from agent.cluster.api.container_ref import ContainerRef
from agent.cluster.packaging import release_command
from agent.cluster.pod.fields import container_status, is_running, terminated_state
from agent.cluster.pod.manifest import ACTION, HELPER
from agent.cluster.pod.services.containers import PREFIX, largest_request
from agent.cluster.pod.services.status import service_states
from agent.domain.errors import ActionFailed, ClusterError, Reason, Stage
from agent.domain.observations import Lost, ServiceOutput, SetupFailed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from agent.cluster.environment.environment import PodEnvironment
    from agent.cluster.environment.interactive.debugging import DebugOptions
    from agent.domain.json import Object
    from agent.domain.observations import Observation

log = structlog.get_logger(__name__)

# Number of bytes of a service's log that are kept of its end, and that are sent at once.
MAX_BYTES = 64 * 1024
# Number of lines and of bytes that are read to find the end of a service's log. A line in the file of the node has at
# most 16 KiB. If the bytes did not suffice for the lines, the API server would send the beginning of these lines.
TAIL_LINES, TAIL_BYTES = 1000, 16 << 20
# Seconds until the read of the last lines is given up.
TAIL_SECONDS = 10.0
# Seconds between TERM and KILL when a pod with services is deleted.
SERVICES_GRACE = 1
# Seconds until the exec that starts the commands is given up.
RELEASE_SECONDS = 30.0
# Seconds of failures in a row until a log is no longer followed.
GIVE_UP_SECONDS = 60.0
# Reasons of a pod that asks for more than the cluster has or allows.
NO_ROOM = (Reason.UNSCHEDULABLE, Reason.QUOTA_EXCEEDED)
FOLLOW = aiohttp.ClientTimeout(total=None, sock_connect=10)
# A line of a log with a time: the time to the second, the rest of the time, and the text.
STAMPED = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)([.0-9]*)(Z|[+-]\d\d:\d\d) (.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Position:
    """A position in the log of a service: the time of the last line, and how many lines with this time were read."""

    time: str = ""
    lines: int = 0

    def encode(self) -> bytes:
        return f"1|{self.time}|{self.lines}".encode()

    @classmethod
    def decode(cls, data: bytes) -> Position:
        """Return the position that `encode` wrote. Any other data is the start of the log."""
        match = re.fullmatch(rb"1\|([-+:.TZ0-9]{1,40})\|(\d{1,9})", data)
        return cls(match[1].decode(), int(match[2])) if match else cls()

    @property
    def since(self) -> str:
        """Return the time in whole seconds, as a request for a log takes it; "" for the start of the log."""
        match = STAMPED.fullmatch(f"{self.time} ".encode())
        return (match[1] + match[3]).decode() if match else ""


class LineReader:
    """Reads a log with times and drops the lines up to a position. It lives as long as one request.

    The memory is bounded: a line of more than `MAX_BYTES` becomes several lines.
    """

    def __init__(self, position: Position) -> None:
        self.position = position
        self.start = position
        self.dropped = 0  # number of lines with the time of the start that were dropped
        self.rest = b""
        self.in_line = False  # the beginning of the current line was taken already
        self.drops_line = False  # the current line was read before

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes. Return the complete new lines without their times."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        found = [text for line in lines if (text := self.take(line, ended=True)) is not None]
        if len(self.rest) > MAX_BYTES:
            if (text := self.take(self.rest, ended=False)) is not None:
                found.append(text)
            self.rest = b""
        return b"".join(found)

    def take(self, line: bytes, *, ended: bool) -> bytes | None:
        """Return the text of a line, None for a line that was read before."""
        continues, self.in_line = self.in_line, not ended
        if continues:
            return None if self.drops_line else line + b"\n"
        match = STAMPED.fullmatch(line)
        if match is None:
            return line + b"\n"
        stamp = (match[1] + match[2] + match[3]).decode()
        self.drops_line = self.is_known(stamp)
        if self.drops_line:
            return None
        same = stamp == self.position.time
        self.position = Position(stamp, self.position.lines + 1 if same else 1)
        return match[4] + b"\n"

    def is_known(self, stamp: str) -> bool:
        """Return whether a line with this time was read by an earlier request."""
        # The node writes all times with the same number of digits, so they compare as texts.
        if stamp != self.start.time:
            return stamp < self.start.time
        self.dropped += 1
        return self.dropped <= self.start.lines


class PodServices:
    """The services of one pod. Owned by its environment."""

    def __init__(self, environment: PodEnvironment) -> None:
        self.environment = environment
        self.client = environment.client
        self.running_since: float | None = None

    # ---- the start of the commands

    def reset(self) -> None:
        """Forget all about an earlier pod of the environment."""
        environment = self.environment
        environment.expectations = replace(environment.expectations, released=False, ready=frozenset())
        self.running_since = None

    def with_states(self, pod: Object | None, seen: Observation, now: float) -> Observation:
        """Return the observation with the states of the services. `now` is in monotonic seconds."""
        environment = self.environment
        if not environment.plan.action.services or isinstance(seen, Lost):
            return seen
        if self.running_since is None and is_running(container_status((pod or {}).get("status", {}), ACTION)):
            self.running_since = now
        states = service_states(pod, environment.expectations)
        if isinstance(seen, SetupFailed):
            return replace(seen, services=states, message=self.explain(seen.reason, seen.message))
        return replace(seen, services=states)

    def explain(self, reason: Reason, message: str) -> str:
        """Return a message with what the services request, if the pod found no room."""
        if reason not in NO_ROOM or not self.environment.plan.action.services:
            return message
        return f"{message}; {largest_request(self.environment.plan, self.environment.context.settings)}"

    async def release_commands(self) -> None:
        """Start the commands if container `helper` waits for the agent. A repeated call is safe.

        Raises:
            ActionFailed: container `helper` could not be reached.
        """
        environment = self.environment
        if not any(each.needs_release for each in environment.plan.action.services):
            return
        target = ContainerRef(environment.plan.namespace, environment.plan.name, HELPER)

        async def release() -> Object:
            result = await execs.run(self.client, target, release_command(), seconds=RELEASE_SECONDS)
            if result.exit_code:
                why = result.stderr.decode("utf-8", "replace").strip()[-500:]
                raise ClusterError(f"start the commands: {why or result.exit_code}")
            return {}

        try:
            seconds = environment.context.settings.cluster.retry_for
            await self.client.retry("start the commands", release, seconds=seconds)
        except ClusterError as error:
            text = f"the commands could not be started after the services: {error.message}"
            raise ActionFailed(Stage.SETUP, error.reason, text) from error

    def note_ready(self, name: str) -> None:
        """Record that the ports of a service accept."""
        environment = self.environment
        ready = environment.expectations.ready | {name}
        environment.expectations = replace(environment.expectations, ready=ready)

    def note_released(self) -> None:
        """Record that the commands have begun, because all services are ready."""
        environment = self.environment
        if environment.plan.action.services and not environment.expectations.released:
            environment.expectations = replace(environment.expectations, released=True)
            if environment.setup_timing is not None and self.running_since is not None:
                seconds = time.monotonic() - self.running_since
                environment.metrics.phase_duration.labels("services").observe(seconds)

    @property
    def gated(self) -> bool:
        """Return whether the commands wait for services."""
        return bool(self.environment.plan.action.services)

    async def upload_tree(self, debug: DebugOptions, notify: Callable[[str], Awaitable[None]]) -> None:
        """Upload the working tree of the person who started `run`. The commands then wait for the services only."""
        environment = self.environment
        await debug.upload_tree(
            self.client,
            environment.helper_container,
            environment.workspace,
            notify,
            action_id=environment.plan.action.key.action_id,
            gated=self.gated,
            inputs=environment.plan.action.awaits_files,
        )

    @property
    def delete_grace(self) -> int | None:
        """Return the seconds between TERM and KILL when the pod is deleted. None: the grace period of the pod."""
        # A service may ignore TERM, and its data is of no use any more.
        return SERVICES_GRACE if self.gated else None

    # ---- the logs of services

    @property
    def path(self) -> str:
        return f"{self.environment.path}/{self.environment.plan.name}/log"

    async def last_lines(self, name: str) -> bytes:
        """Return the end of a service's log, at most `TAIL_LINES` and `MAX_BYTES`. "" if it never started.

        Raises:
            ClusterError: the log cannot be read.
        """
        if not self.has_started(name):
            return b""
        query = {"container": PREFIX + name, "tailLines": str(TAIL_LINES), "limitBytes": str(TAIL_BYTES)}
        timeout = aiohttp.ClientTimeout(total=TAIL_SECONDS)
        blocks: deque[bytes] = deque()
        size = 0
        try:
            async with self.client.stream("get", "pods/log", self.path, query=query, timeout=timeout) as response:
                async for block in response.content.iter_any():
                    blocks.append(block)
                    size += len(block)
                    while size - len(blocks[0]) >= MAX_BYTES:
                        size -= len(blocks.popleft())
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ClusterError(f"get pods/log: {error!r}", retryable=True) from error
        data = b"".join(blocks)
        if len(data) > MAX_BYTES:
            # Leave out the first line, which is cut, unless it is the only line. A line end may follow.
            cut = data[1 - MAX_BYTES :]
            data = cut.partition(b"\n")[2] or cut
        return data if data.endswith(b"\n") or not data else data + b"\n"

    async def live_log(self, name: str, cursor: bytes) -> AsyncGenerator[ServiceOutput, None]:
        """Yield the log of a service from a cursor on, until the service has ended.

        Raises:
            ClusterError: the log cannot be followed.
        """
        turns = self.environment.context.live_logs
        if turns.locked():
            raise ClusterError("the agent follows as many logs of services as it can")
        async with turns:
            await self.wait_for_start(name)
            reader = LineReader(Position.decode(cursor))
            backoff, failing_since = Backoff(0.1, 5.0), None
            while True:
                ended_before = self.has_ended(name)
                try:
                    async for data in self.blocks(name, reader.position):
                        backoff.reset()
                        failing_since = None
                        if lines := reader.feed(data):
                            yield ServiceOutput(lines, reader.position.encode())
                    if ended_before:
                        return
                except ClusterError as error:
                    now = time.monotonic()
                    failing_since = now if failing_since is None else failing_since
                    if not error.retryable or now - failing_since > GIVE_UP_SECONDS:
                        raise
                reader = LineReader(reader.position)
                if not self.has_ended(name):
                    await asyncio.sleep(backoff.next())

    async def blocks(self, name: str, position: Position) -> AsyncIterator[bytes]:
        """Yield the parts of one request that follows the log of a service.

        Raises:
            ClusterError: the request failed, or the response broke off.
        """
        query = {"container": PREFIX + name, "follow": "true", "timestamps": "true"}
        if position.since:
            query["sinceTime"] = position.since
        try:
            async with self.client.stream("get", "pods/log", self.path, query=query, timeout=FOLLOW) as response:
                async for block in response.content.iter_any():
                    yield block
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ClusterError(f"get pods/log: the answer broke off: {error!r}", retryable=True) from error

    async def wait_for_start(self, name: str) -> None:
        """Wait until the container of a service runs or has ended."""
        state = self.environment.pod_state
        while not self.has_started(name):
            await state.wait_for_change(state.version)

    def has_started(self, name: str) -> bool:
        return is_running(self.status(name)) or self.has_ended(name)

    def has_ended(self, name: str) -> bool:
        # Before the pod is created, it has no last state either.
        state = self.environment.pod_state
        return terminated_state(self.status(name)) is not None or (state.pod is None and state.last is not None)

    def status(self, name: str) -> Object | None:
        pod = self.environment.pod_state.pod or self.environment.pod_state.last or {}
        return container_status(pod.get("status", {}), PREFIX + name)
