"""The gRPC server that a classic scheduler calls: one call runs one action.

A `Service` lives as long as the process. A classic scheduler has no queue. It sends each action at once to the agent
with the lowest load, and treats a refusal as the end of the action. Therefore calls wait in the agent for a slot, first
come, first served. The setting `queue` limits the number of waiting calls. While the cluster does not answer, calls
wait too. When the client ends its call, the agent cancels the action.

A classic scheduler ignores the status and the text of a failed call. Therefore the agent answers a call that it refuses
with a response, which has the reason in its log and an exit code.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections import deque
from typing import TYPE_CHECKING

import grpc
import structlog

from agent.domain.actions import Action, ArtifactRules, Cancel, Key, Repository, When
from agent.domain.errors import AgentError, SchedulerError
from agent.domain.references.repository_url import holds_credentials
from agent.domain.session_state import Readiness
from agent.protocol.grpc_transport import FileUnreadable, server_credentials, server_options
from agent.scheduler.classic.call import NOT_RUN, Call, CallRefused
from agent.scheduler.classic.callers import Callers
from agent.scheduler.classic.timings import DEFAULT_TIMINGS
from agent.scheduler.classic.wire import actions_pb2 as wire
from agent.scheduler.stream.channel import unreadable

if TYPE_CHECKING:
    from grpc import aio

    from agent.scheduler.classic.file_store import FileStore
    from agent.scheduler.classic.timings import ClassicTimings
    from agent.scheduler.stream.health import HealthReporter
    from agent.scheduler.stream.inbox import Handlers
    from agent.settings import ClassicSettings, SchedulerSettings
    from agent.telemetry.metrics import Metrics

    Context = aio.ServicerContext[wire.ActionRequest, wire.ActionResponseStream]

OPTIONS = server_options(min_ping_interval=5.0)
# Seconds that open calls have to end when the server stops.
STOP_GRACE = 1.0
# Forms of a repository's URL: scheme://user@host:port/path, or user@host:path, which git reads as an SSH address.
REMOTE = re.compile(
    r"(?:[A-Za-z][A-Za-z0-9+.-]*://)?(?:[^@/?#]*@)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^:/?#@]+)(?::(?P<port>\d+)(?=/|$))?"
)
LEAVING = "the agent is leaving; the action was not run"

log = structlog.get_logger(__name__)


class ClientStalled(AgentError):
    """The client did not read a response for `write_timeout`, so it counts as gone."""


class CannotListen(SchedulerError):
    """The port cannot be opened, or a TLS file cannot be used."""


class Service:
    """Starts actions for calls. `calls` holds calls with a session, `waiting` holds calls that have no slot yet."""

    def __init__(
        self,
        settings: SchedulerSettings,
        handlers: Handlers,
        metrics: Metrics,
        health: HealthReporter,
        files: FileStore | None,
        timings: ClassicTimings = DEFAULT_TIMINGS,
    ) -> None:
        self.settings = settings.classic
        self.callers = Callers(settings)
        self.window = settings.window
        self.handlers = handlers
        self.metrics = metrics
        self.health = health
        self.files = files
        self.timings = timings
        self.calls: dict[tuple[str, int], Call] = {}
        self.waiting: deque[Call] = deque()

    # ---- the life of one call

    async def execute(self, request: wire.ActionRequest, context: Context) -> None:
        """Run the action of a request and write its log and its exit code."""
        peer = context.peer()
        if not await self.callers.admit(peer):
            log.warning("refused a call of an address that is not in scheduler.classic.callers", peer=peer)
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "this address may not run actions")
        self.metrics.stream_messages.labels("received", "action").inc()
        try:
            action = read_action(request, self.settings)
            call = Call(request.action_id, action, self.window, self.files, self.timings, echo=self.settings.echo)
            try:
                await self.serve_call(call, context)
            finally:
                self.remove(call)
        except CallRefused as refused:
            log.warning("refused a call", action_id=request.action_id, why=str(refused))
            with contextlib.suppress(ClientStalled):
                await self.write(context, not_run(request.action_id, str(refused)))
        except ClientStalled as stalled:
            log.warning("ended a call", action_id=request.action_id, why=str(stalled))
            await context.abort(grpc.StatusCode.ABORTED, str(stalled))

    async def serve_call(self, call: Call, context: Context) -> None:
        """Wait for a slot, then write the responses of the session.

        Raises:
            CallRefused: the queue is full, or no slot became free in time.
            ClientStalled: the client does not read.
        """
        self.add(call)
        if not call.admitted.is_set():
            await self.write(context, call.response(self.waiting_text(call)))
            try:
                async with asyncio.timeout(self.settings.queue_timeout):
                    await self.wait_for_slot(call, context)
            except TimeoutError:
                why = f"no slot became free within {self.settings.queue_timeout:g} s; the action was not run"
                raise CallRefused(why) from None
        while not (message := await self.next_response(call)).result.HasField("exit_code"):
            await self.write(context, message)
        await self.write(context, message)
        if call.refusal is not None:
            log.warning("refused a call", action_id=call.number, why=call.refusal)
        call.end_waits()

    async def wait_for_slot(self, call: Call, context: Context) -> None:
        """Wait until the call is admitted or refused. Meanwhile, send empty responses to detect a client that is gone.

        Raises:
            ClientStalled: the client does not read.
        """
        while not call.admitted.is_set():
            try:
                async with asyncio.timeout(self.timings.silence):
                    await call.admitted.wait()
            except TimeoutError:
                await self.write(context, call.response(""))

    async def next_response(self, call: Call) -> wire.ActionResponseStream:
        """Return the next response of a call, or an empty response if the call has nothing to write for a while."""
        try:
            async with asyncio.timeout(self.timings.silence):
                return await call.next()
        except TimeoutError:
            return call.response("")

    async def write(self, context: Context, message: wire.ActionResponseStream) -> None:
        """Write one response.

        Raises:
            ClientStalled: the client did not read for `write_timeout`, so it counts as gone.
        """
        try:
            async with asyncio.timeout(self.settings.write_timeout):
                await context.write(message)
        except TimeoutError as error:
            raise ClientStalled(f"the client did not read for {self.settings.write_timeout:g} s") from error
        self.metrics.stream_messages.labels("sent", "event").inc()
        self.metrics.log_bytes.inc(len(message.log.encode()))

    def add(self, call: Call) -> None:
        """Put a call into the queue, and start it at once if a slot is free.

        Raises:
            CallRefused: the queue is full.
        """
        self.waiting.append(call)
        self.admit()
        if call.refusal is None and self.position(call) > self.settings.queue:
            count = self.settings.queue
            why = f"no slot is free and {count} {'action waits' if count == 1 else 'actions wait'} already"
            self.waiting.remove(call)
            raise CallRefused(f"{why}; the action was not run")
        self.count_waiting()

    def count_waiting(self) -> None:
        """Report the number of waiting calls, which are a part of the agent's load."""
        self.metrics.calls_waiting.set(len(self.waiting))
        self.health.notify()

    def admit(self) -> None:
        """Start as many waiting calls as slots are free. While the agent drains, refuse all waiting calls."""
        while self.waiting:
            health = self.health.current()
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
            self.count_waiting()
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
        health = self.health.current()
        what = f"for one of {health.slots} slots" if health.status is Readiness.READY else f"because {health.message}"
        before = self.position(call) - 1
        others = "1 other" if before == 1 else f"{before} others"
        return f"[the action waits {what}{f', behind {others}' if before > 0 else ''}]\n"


def not_run(number: int, why: str) -> wire.ActionResponseStream:
    """Return the last response of a call whose action did not run. `number` is the scheduler's id of the action."""
    result = wire.ActionResult(completion=wire.ACTION_STATUS_COMPLETED, exit_code=NOT_RUN)
    return wire.ActionResponseStream(action_id=number, log=f"[{why}]\n", result=result)


def read_action(request: wire.ActionRequest, settings: ClassicSettings) -> Action:
    """Return the action of a request. Its id gets a random suffix, because the scheduler's ids repeat after a restart.

    A request has no field for the credentials of a repository. The agent chooses them by the host of the repository's
    URL.

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
    elif holds_credentials(request.repo_url):
        problem = (
            "repo_url must not hold credentials; the operator of the agent names a Secret for the host of the URL"
            " in scheduler.classic.clone_credentials"
        )
    if problem:
        raise CallRefused(f"the action cannot be run: {problem}")
    return Action(
        key=Key(f"{request.action_id}-{secrets.token_hex(4)}"),
        image=request.context.container_image,
        commands=tuple(request.commands),
        name=f"action {request.action_id}",
        repository=read_repository(request.repo_url, settings) if request.repo_url else None,
        artifacts=ArtifactRules(when=When.NEVER if settings.files is None else When.SUCCESS),
    )


def read_repository(url: str, settings: ClassicSettings) -> Repository:
    """Return the repository with the Secret for its host. An entry for `host:port` overrides an entry for `host`."""
    match = REMOTE.match(url)
    host, port = (match["host"].lower(), match["port"]) if match else ("", "")
    names = settings.clone_credentials
    return Repository(url, credentials=names.get(f"{host}:{port}", "") or names.get(host, ""))


# ---- start of the gRPC server


async def start(service: Service, settings: ClassicSettings) -> tuple[aio.Server, int]:
    """Open the port that the scheduler calls. Returns the server and its port.

    Raises:
        CannotListen: the port cannot be opened, or a TLS file cannot be used.
    """
    server = grpc.aio.server(options=OPTIONS)
    # `execute` is a plain coroutine and not the async generator of a generated servicer, because gRPC cancels only a
    # plain coroutine at once when its client is gone.
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
