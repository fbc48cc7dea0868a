"""What a classic scheduler dials: one call runs one action.

Lives as long as the agent. That scheduler has no queue: it sends every action at once to whom it likes best, and takes
a refusal for the end of the action. So calls wait here for a slot, first come, first served, within a bound; while the
cluster does not answer they wait too. A client that goes away ends its action.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from typing import TYPE_CHECKING

import grpc
import structlog

from agent.domain.actions import Action, ArtifactRules, Cancel, Key, Repository, When
from agent.domain.errors import SchedulerError
from agent.domain.session_state import Readiness
from agent.protocol.grpc_transport import FileUnreadable, server_credentials, server_options
from agent.scheduler.classic.call import NOT_RUN, Call, CallRefused
from agent.scheduler.classic.wire import actions_pb2 as wire
from agent.scheduler.stream.channel import unreadable

if TYPE_CHECKING:
    from collections.abc import Callable

    from grpc import aio

    from agent.domain.session_state import Health
    from agent.scheduler.classic.file_store import Folder
    from agent.scheduler.stream.inbox import Handlers
    from agent.settings import ClassicSettings, SchedulerSettings
    from agent.telemetry.metrics import Metrics

    Context = aio.ServicerContext[wire.ActionRequest, wire.ActionResponseStream]

OPTIONS = server_options(min_ping_interval=5.0)
STOP_GRACE = 1.0
LEAVING = CallRefused(grpc.StatusCode.UNAVAILABLE, "the agent is leaving")

log = structlog.get_logger(__name__)


class CannotListen(SchedulerError):
    """The address cannot be listened on, or a file of TLS cannot be used."""


class Service:
    """Lets calls in. `calls` are those that arrived, `waiting` those of them that have no slot yet."""

    def __init__(
        self,
        settings: SchedulerSettings,
        handlers: Handlers,
        metrics: Metrics,
        health: Callable[[], Health],
        folder: Folder | None,
    ) -> None:
        self.settings = settings.classic
        self.window = settings.window
        self.handlers = handlers
        self.metrics = metrics
        self.health = health
        self.folder = folder
        self.calls: dict[tuple[str, int], Call] = {}
        self.waiting: deque[Call] = deque()

    # ---- one call

    async def execute(self, request: wire.ActionRequest, context: Context) -> None:
        """Run an action and write what happens to it until it has ended."""
        self.metrics.stream_messages.labels("received", "action").inc()
        try:
            action = asked(request, keep_files=self.folder is not None)
            call = Call(request.action_id, action, self.window, self.folder)
            try:
                await self.take(call, context)
            finally:
                self.leave(call)
        except CallRefused as refused:
            log.warning("refused a call", action_id=request.action_id, why=refused.message, code=refused.code.name)
            await context.abort(refused.code, refused.message)

    async def take(self, call: Call, context: Context) -> None:
        """Give a call its turn, then write what its session says.

        Raises:
            CallRefused: it does not come to an outcome.
        """
        self.enter(call)
        if not call.begun.is_set():
            await self.write(context, call.response(self.wait_sentence(call)))
            try:
                async with asyncio.timeout(self.settings.queue_timeout):
                    await call.begun.wait()
            except TimeoutError:
                await self.write(context, self.no_turn(call))
                return
        while not (message := await call.next()).result.HasField("exit_code"):
            await self.write(context, message)
        await self.write(context, message)
        call.gone()

    async def write(self, context: Context, message: wire.ActionResponseStream) -> None:
        """Write one response; a client that takes nothing for too long is gone.

        Raises:
            CallRefused: it is gone.
        """
        try:
            async with asyncio.timeout(self.settings.write_timeout):
                await context.write(message)
        except TimeoutError as error:
            why = f"the client took nothing for {self.settings.write_timeout:g} s"
            raise CallRefused(grpc.StatusCode.ABORTED, why) from error
        self.metrics.stream_messages.labels("sent", "event").inc()
        self.metrics.log_bytes.inc(len(message.log.encode()))

    def enter(self, call: Call) -> None:
        """Take a call into the queue, and out of it at once if there is room.

        Raises:
            CallRefused: nothing is taken now, or too many wait already.
        """
        self.waiting.append(call)
        self.admit()
        if call.refused is None and self.place(call) > self.settings.queue:
            why = f"no slot is free and {self.settings.queue} actions wait already"
            self.waiting.remove(call)
            raise CallRefused(grpc.StatusCode.RESOURCE_EXHAUSTED, why)
        self.metrics.calls_waiting.set(len(self.waiting))

    def admit(self) -> None:
        """Begin the calls that there is room for, or refuse all of them while the agent leaves."""
        while self.waiting:
            health = self.health()
            if health.status is Readiness.DRAINING:
                self.waiting.popleft().refuse(LEAVING)
            elif health.status is Readiness.READY and health.running < health.slots:
                self.begin(self.waiting.popleft())
            else:
                break
        self.metrics.calls_waiting.set(len(self.waiting))

    def begin(self, call: Call) -> None:
        """Start the session of a call."""
        self.calls[call.key.attempt_key] = call
        call.begun.set()
        self.handlers.action(call.action)

    def leave(self, call: Call) -> None:
        """Forget a call that has ended; its action is cancelled if it has not ended too."""
        self.calls.pop(call.key.attempt_key, None)
        if call in self.waiting:
            self.waiting.remove(call)
            self.metrics.calls_waiting.set(len(self.waiting))
        if call.begun.is_set() and not call.done.is_set():
            log.warning("the client of an action is gone: cancelling it", action=call.key.action_id)
            self.handlers.cancel(call.key.attempt_key, Cancel(message="the scheduler ended its call"))
        call.gone()

    # ---- what is said

    def place(self, call: Call) -> int:
        """Return how many wait up to this call, itself included; 0 when it does not wait."""
        return self.waiting.index(call) + 1 if call in self.waiting else 0

    def wait_sentence(self, call: Call) -> str:
        """Say for what an action waits."""
        health = self.health()
        what = f"for one of {health.slots} slots" if health.status is Readiness.READY else f"because {health.message}"
        before = self.place(call) - 1
        return f"[the action waits {what}{f', behind {before} others' if before > 0 else ''}]\n"

    def no_turn(self, call: Call) -> wire.ActionResponseStream:
        """Return the only outcome of an action that never got a slot."""
        result = wire.ActionResult(completion=wire.ACTION_STATUS_COMPLETED, exit_code=NOT_RUN)
        text = f"[no slot became free within {self.settings.queue_timeout:g} s: the action was not run]\n"
        return wire.ActionResponseStream(action_id=call.number, log=text, result=result)


def asked(request: wire.ActionRequest, *, keep_files: bool) -> Action:
    """Read what is asked. The id is made unique: that scheduler counts anew after each of its restarts.

    Raises:
        CallRefused: it cannot be read.
    """
    problem = ""
    if not request.HasField("context"):
        problem = "context is missing"
    elif request.context.type != wire.RUNNER_TYPE_DOCKER:
        problem = f"context.type {request.context.type} is not known here; allowed is RUNNER_TYPE_DOCKER (0)"
    elif not request.context.container_image:
        problem = "context.container_image is missing"
    if problem:
        raise CallRefused(grpc.StatusCode.INVALID_ARGUMENT, problem)
    return Action(
        key=Key(f"{request.action_id}-{secrets.token_hex(4)}"),
        image=request.context.container_image,
        commands=tuple(request.commands),
        name=f"action {request.action_id}",
        repository=Repository(request.repo_url) if request.repo_url else None,
        artifacts=ArtifactRules(when=When.SUCCESS if keep_files else When.NEVER),
    )


# ---- the server


async def start(service: Service, settings: ClassicSettings) -> tuple[aio.Server, int]:
    """Serve the port that the scheduler dials; returns the server and its port.

    Raises:
        CannotListen: the address, or a file of TLS, cannot be used.
    """
    server = grpc.aio.server(options=OPTIONS)
    # By hand, not as a servicer: only a plain coroutine is told at once, and where it stands, that its client is gone.
    handler = grpc.unary_stream_rpc_method_handler(
        service.execute,
        request_deserializer=wire.ActionRequest.FromString,
        response_serializer=wire.ActionResponseStream.SerializeToString,
    )
    generic = grpc.method_handlers_generic_handler("actions.ActionService", {"ExecutionAction": handler})
    server.add_generic_rpc_handlers((generic,))
    address = f"{settings.listen}:{settings.port}"
    try:
        tls = server_credentials(settings)
        port = server.add_secure_port(address, tls) if tls else server.add_insecure_port(address)
    except FileUnreadable as error:
        why = unreadable("scheduler.classic", error)
        raise CannotListen(f"scheduler.classic: cannot listen on {address}: {why}") from error
    except RuntimeError as error:
        raise CannotListen(f"scheduler.classic: cannot listen on {address}: {error}") from error
    await server.start()
    return server, port
