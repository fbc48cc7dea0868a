"""The gRPC server that a classic scheduler calls: one call runs one action.

A `Service` lives as long as the process. A classic scheduler has no queue. It sends each action at once to the agent
with the most free slots, and treats a refusal as the end of the action. Therefore calls wait here for a slot, first
come, first served, up to the setting `queue`. While the cluster does not answer, calls wait too. When a client goes
away, the agent cancels its action.
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
    from agent.scheduler.classic.file_store import FileStore
    from agent.scheduler.stream.inbox import Handlers
    from agent.settings import ClassicSettings, SchedulerSettings
    from agent.telemetry.metrics import Metrics

    Context = aio.ServicerContext[wire.ActionRequest, wire.ActionResponseStream]

OPTIONS = server_options(min_ping_interval=5.0)
# Seconds that open calls have to end when the server stops.
STOP_GRACE = 1.0
LEAVING = CallRefused(grpc.StatusCode.UNAVAILABLE, "the agent is leaving")

log = structlog.get_logger(__name__)


class CannotListen(SchedulerError):
    """The port cannot be opened, or a file of TLS cannot be used."""


class Service:
    """Starts actions for calls. `calls` holds calls with a session, `waiting` holds calls that have no slot yet."""

    def __init__(
        self,
        settings: SchedulerSettings,
        handlers: Handlers,
        metrics: Metrics,
        health: Callable[[], Health],
        files: FileStore | None,
    ) -> None:
        self.settings = settings.classic
        self.window = settings.window
        self.handlers = handlers
        self.metrics = metrics
        self.health = health
        self.files = files
        self.calls: dict[tuple[str, int], Call] = {}
        self.waiting: deque[Call] = deque()

    # ---- the life of one call

    async def execute(self, request: wire.ActionRequest, context: Context) -> None:
        """Run the action of a request and write its log and its exit code."""
        self.metrics.stream_messages.labels("received", "action").inc()
        try:
            action = read_action(request, keep_files=self.files is not None)
            call = Call(request.action_id, action, self.window, self.files)
            try:
                await self.serve_call(call, context)
            finally:
                self.remove(call)
        except CallRefused as refused:
            log.warning("refused a call", action_id=request.action_id, why=refused.message, code=refused.code.name)
            await context.abort(refused.code, refused.message)

    async def serve_call(self, call: Call, context: Context) -> None:
        """Wait for a slot, then write the responses of the session.

        Raises:
            CallRefused: the call ends without an exit code.
        """
        self.add(call)
        if not call.admitted.is_set():
            await self.write(context, call.response(self.waiting_text(call)))
            try:
                async with asyncio.timeout(self.settings.queue_timeout):
                    await call.admitted.wait()
            except TimeoutError:
                await self.write(context, self.timeout_response(call))
                return
        while not (message := await call.next()).result.HasField("exit_code"):
            await self.write(context, message)
        await self.write(context, message)
        call.end_waits()

    async def write(self, context: Context, message: wire.ActionResponseStream) -> None:
        """Write one response.

        Raises:
            CallRefused: the client did not read for `write_timeout`, so it counts as gone.
        """
        try:
            async with asyncio.timeout(self.settings.write_timeout):
                await context.write(message)
        except TimeoutError as error:
            why = f"the client did not read for {self.settings.write_timeout:g} s"
            raise CallRefused(grpc.StatusCode.ABORTED, why) from error
        self.metrics.stream_messages.labels("sent", "event").inc()
        self.metrics.log_bytes.inc(len(message.log.encode()))

    def add(self, call: Call) -> None:
        """Put a call into the queue, and start it at once if a slot is free.

        Raises:
            CallRefused: the agent is leaving, or the queue is full.
        """
        self.waiting.append(call)
        self.admit()
        if call.refusal is None and self.position(call) > self.settings.queue:
            why = f"no slot is free and {self.settings.queue} actions wait already"
            self.waiting.remove(call)
            raise CallRefused(grpc.StatusCode.RESOURCE_EXHAUSTED, why)
        self.metrics.calls_waiting.set(len(self.waiting))

    def admit(self) -> None:
        """Start as many waiting calls as slots are free. While the agent drains, refuse all of them."""
        while self.waiting:
            health = self.health()
            if health.status is Readiness.DRAINING:
                self.waiting.popleft().refuse(LEAVING)
            elif health.status is Readiness.READY and health.running < health.slots:
                self.start_session(self.waiting.popleft())
            else:
                break
        self.metrics.calls_waiting.set(len(self.waiting))

    def start_session(self, call: Call) -> None:
        self.calls[call.key.attempt_key] = call
        call.admitted.set()
        self.handlers.action(call.action)

    def remove(self, call: Call) -> None:
        """Remove a call that has ended. If its action still runs, the client is gone and the action is cancelled."""
        self.calls.pop(call.key.attempt_key, None)
        if call in self.waiting:
            self.waiting.remove(call)
            self.metrics.calls_waiting.set(len(self.waiting))
        if call.admitted.is_set() and not call.done.is_set():
            log.warning("the client of an action is gone; cancelling the action", action=call.key.action_id)
            self.handlers.cancel(call.key.attempt_key, Cancel(message="the scheduler ended its call"))
        call.end_waits()

    # ---- texts for the client

    def position(self, call: Call) -> int:
        """Return the position in the queue, from 1. Returns 0 if the call does not wait."""
        return self.waiting.index(call) + 1 if call in self.waiting else 0

    def waiting_text(self, call: Call) -> str:
        """Return a line of log with the reason why the action waits."""
        health = self.health()
        what = f"for one of {health.slots} slots" if health.status is Readiness.READY else f"because {health.message}"
        before = self.position(call) - 1
        return f"[the action waits {what}{f', behind {before} others' if before > 0 else ''}]\n"

    def timeout_response(self, call: Call) -> wire.ActionResponseStream:
        """Return the last response of a call that got no slot in time."""
        result = wire.ActionResult(completion=wire.ACTION_STATUS_COMPLETED, exit_code=NOT_RUN)
        text = f"[no slot became free within {self.settings.queue_timeout:g} s; the action was not run]\n"
        return wire.ActionResponseStream(action_id=call.number, log=text, result=result)


def read_action(request: wire.ActionRequest, *, keep_files: bool) -> Action:
    """Return the action of a request. Its id gets a random suffix, because the scheduler's ids repeat after a restart.

    Raises:
        CallRefused: a field is missing or not supported.
    """
    problem = ""
    if not request.HasField("context"):
        problem = "context is missing"
    elif request.context.type != wire.RUNNER_TYPE_DOCKER:
        problem = f"context.type {request.context.type} is not supported; allowed is RUNNER_TYPE_DOCKER (0)"
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


# ---- start of the gRPC server


async def start(service: Service, settings: ClassicSettings) -> tuple[aio.Server, int]:
    """Open the port that the scheduler calls. Returns the server and its port.

    Raises:
        CannotListen: the port cannot be opened, or a file of TLS cannot be used.
    """
    server = grpc.aio.server(options=OPTIONS)
    # The handler is built by hand and is no generated servicer. gRPC cancels only a plain coroutine at once when its
    # client is gone.
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
