"""A SealCI 0.2 scheduler for tests: real gRPC in both directions, without state and without a queue.

Agents register with this scheduler and report their health. `run` dials the agent with the lowest score. Like the real
scheduler, this scheduler never removes an agent from its pool, and it retries nothing. It also replaces the reason of a
failed call with a sentence of its own.

The scheduler joins host and port, parses them as a URI, and drops responses without a result. `read` also plays the
controller, which is the client of the scheduler in SealCI. The scheduler notices only on a response that the controller
has gone away, and the controller cannot store a NUL. The scheduler lives from `start` to `stop`. After `stop`, a test
can start the scheduler again on the same port, without its state.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import grpc
from grpc import aio

from agent.scheduler.classic.wire import actions_pb2, actions_pb2_grpc, scheduler_pb2, scheduler_pb2_grpc
from tests.fakes.waiting import Changing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    Context = aio.ServicerContext[Any, Any]
    DialedCall = aio.UnaryStreamCall[actions_pb2.ActionRequest, actions_pb2.ActionResponseStream]

OPTIONS = (("grpc.http2.min_ping_interval_without_data_ms", 10), ("grpc.so_reuseport", 0))


@dataclass
class Entry:
    """One agent in the pool of the fake scheduler."""

    host: str
    port: int
    health: list[scheduler_pb2.Health] = field(default_factory=list)
    gone: bool = False

    @property
    def load(self) -> int:
        """Return the load of the agent in percent, from the agent's last health report."""
        return self.health[-1].cpu_avail

    @property
    def is_last(self) -> bool:
        """Return whether the last health report has the highest values that the contract can carry.

        The scheduler then picks the agent only after all others.
        """
        return (self.health[-1].cpu_avail, self.health[-1].memory_avail) == (2**32 - 1, 2**64 - 1)

    @property
    def score(self) -> float:
        """Return the score of the agent's last health report, computed as the real scheduler computes it.

        The real scheduler has one formula for the health in a registration and another for later reports.
        """
        last = self.health[-1]
        unit = 1 if len(self.health) == 1 else 10**8
        return (last.cpu_avail + last.memory_avail / unit) / 2


@dataclass
class Answer:
    """The responses of an agent to one gRPC call that the fake scheduler made for one of its own clients.

    `exit_code` and `code` (the gRPC status of the call) are None until they arrive. A test sets `client_gone` to
    simulate that the client disconnects from the scheduler. `client_failed` is True if the client could not store the
    log.
    """

    text: str = ""
    statuses: list[int] = field(default_factory=list)
    exit_code: int | None = None
    code: grpc.StatusCode | None = None
    details: str = ""
    dropped: int = 0
    responses: int = 0
    empty: int = 0
    client_gone: bool = False
    client_failed: bool = False


class ClassicScheduler(Changing, scheduler_pb2_grpc.AgentServicer):
    """The gRPC server at which agents register, and the gRPC client that calls these agents to run actions."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        self.port = 0
        self.pool: dict[int, Entry] = {}
        self.registrations = 0
        self.refuses = False
        self.refusals = 0
        self.changed = asyncio.Condition()
        self.server: aio.Server | None = None
        self.channels: list[aio.Channel] = []
        self.options: Sequence[tuple[str, Any]] = ()
        self.credentials: grpc.ChannelCredentials | None = None

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    async def start(self) -> None:
        """Listen for agents. If the scheduler was stopped before, listen on the same port again."""
        self.server = aio.server(options=OPTIONS)
        scheduler_pb2_grpc.add_AgentServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port(self.address)
        await self.server.start()

    async def stop(self) -> None:
        """End all streams and calls, and empty the pool of agents."""
        channels, self.channels = self.channels, []
        for channel in channels:
            await channel.close()
        if self.server is not None:
            await self.server.stop(None)
            self.server = None
        self.pool.clear()

    def describe(self) -> str:
        """Return the address and the last score of each agent of the pool, and whether the agent has left."""
        pool = [f"{each.host}:{each.port}: score {each.score}, gone {each.gone}" for each in self.pool.values()]
        return "\n".join([f"registrations: {self.registrations}, refusals: {self.refusals}", *pool])

    async def registered(self) -> Entry:
        """Wait until an agent has registered and reported its health. Return the agent with the lowest score."""
        await self.until(
            "an agent has registered and reported its health",
            lambda: any(len(each.health) > 1 and not each.gone for each in self.pool.values()),
        )
        return self.best()

    def best(self) -> Entry:
        """Return the agent with the lowest score, which gets the next action.

        Like the real scheduler, do not check whether the agent is alive.
        """
        return min(self.pool.values(), key=lambda each: each.score)

    # ---- calls that agents make

    async def RegisterAgent(  # noqa: N802 - the contract's name
        self, request: scheduler_pb2.RegisterAgentRequest, context: Context
    ) -> scheduler_pb2.RegisterAgentResponse:
        """Add an agent to the pool."""
        if self.refuses:
            self.refusals += 1
            await self.notify()
            await context.abort(grpc.StatusCode.INTERNAL, "no")
        number = len(self.pool)
        self.pool[number] = Entry(request.hostname.host, request.hostname.port, [request.health])
        self.registrations += 1
        await self.notify()
        return scheduler_pb2.RegisterAgentResponse(id=number)

    async def ReportHealthStatus(  # noqa: N802 - the contract's name
        self, request_iterator: AsyncIterator[scheduler_pb2.HealthStatus], context: Context
    ) -> scheduler_pb2.Empty:
        """Record the health reports of an agent until the agent's stream ends."""
        entry: Entry | None = None
        try:
            async for status in request_iterator:
                entry = self.pool[status.agent_id]
                entry.health.append(status.health)
                await self.notify()
        finally:
            if entry is not None:
                entry.gone = True
                await self.notify()
        return scheduler_pb2.Empty()

    # ---- calls to agents, which this scheduler makes

    def dial(self, request: actions_pb2.ActionRequest, entry: Entry | None = None) -> DialedCall:
        """Connect to an agent and send it the request of an action. Return the call, whose responses the caller reads.

        By default, the agent is the one with the lowest score.
        """
        entry = entry or self.best()
        uri = urlsplit(f"{entry.host}:{entry.port}")
        assert uri.scheme in ("http", "https")
        assert (uri.hostname, uri.port) == (entry.host.partition("://")[2].strip("[]"), entry.port)
        # The real scheduler opens a connection for each action. gRPC shares connections within a process, unless this
        # option is set.
        options = (*self.options, ("grpc.use_local_subchannel_pool", 1))
        if self.credentials is None:
            channel = aio.insecure_channel(uri.netloc, options=options)
        else:
            channel = aio.secure_channel(uri.netloc, self.credentials, options=options)
        self.channels.append(channel)
        call: DialedCall = actions_pb2_grpc.ActionServiceStub(channel).ExecutionAction(request)
        return call

    async def run(self, image: str, *commands: str, number: int = 7, repo_url: str = "") -> Answer:
        """Run an action on the agent with the lowest score, and read the responses to their end.

        `number` is the action id.
        """
        call = self.dial(asked(image, *commands, number=number, repo_url=repo_url))
        answer = Answer()
        await read(call, answer)
        return answer


def asked(image: str, *commands: str, number: int = 7, repo_url: str = "") -> actions_pb2.ActionRequest:
    """Return the request for an action in the form in which the real scheduler sends it. `number` is the action id."""
    context = actions_pb2.ExecutionContext(type=actions_pb2.RUNNER_TYPE_DOCKER, container_image=image)
    return actions_pb2.ActionRequest(action_id=number, context=context, commands=commands, repo_url=repo_url)


async def read(call: DialedCall, answer: Answer) -> None:
    """Read the responses of a call to their end, or until the client is gone or has failed. Record them in `answer`."""
    try:
        while isinstance(response := await call.read(), actions_pb2.ActionResponseStream):
            take(response, answer)
            if answer.client_gone or answer.client_failed:
                call.cancel()
                return
        answer.code = await call.code()
    except aio.AioRpcError:
        # The real scheduler passes on neither the status nor the text of an agent's error. If a response was sent
        # before, the client sees a normal end.
        answer.code = grpc.StatusCode.OK if answer.responses else grpc.StatusCode.INTERNAL
        answer.details = "" if answer.responses else "Failed to execute Action"


def take(response: actions_pb2.ActionResponseStream, answer: Answer) -> None:
    """Add one response of an agent to `answer`. A response without a result is dropped, as in the real scheduler."""
    answer.responses += 1
    if not response.HasField("result"):
        answer.dropped += 1
        return
    assert answer.exit_code is None, "a response came after the exit code"
    if "\0" in response.log:
        answer.client_failed = True
        return
    answer.empty += not response.log
    answer.text += response.log
    if not answer.statuses or answer.statuses[-1] != response.result.completion:
        answer.statuses.append(response.result.completion)
    if response.result.HasField("exit_code"):
        answer.exit_code = response.result.exit_code


async def until_text(call: DialedCall, answer: Answer, text: str) -> None:
    """Read the responses of a call until the log in `answer` contains `text`. The remaining responses stay unread."""
    while text not in answer.text:
        response = await call.read()
        assert isinstance(response, actions_pb2.ActionResponseStream), answer
        take(response, answer)
