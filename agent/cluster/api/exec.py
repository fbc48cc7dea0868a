"""Runs a command in a running container, over a websocket read raw.

An `ExecStream` lives for one command: entered it connects, iterated it hands out stdout in the frames that come, left
it hangs up. The library's own reader decodes each frame as text, takes a stream that was cut for a success and an
error without an exit code for a crash of its own, so only its addresses and credentials are used here.

What a command did is known from one thing alone: the status frame at its end. A stream without one is an error of the
infrastructure, whatever the close code says. Liveness is asked for only while somebody listens: aiohttp's heartbeat
would hang up on a reader that is slow on purpose, because the answer to its ping waits behind the data.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import aiohttp
from kubernetes.aio.stream.ws_client import ERROR_CHANNEL, RESIZE_CHANNEL, STDERR_CHANNEL, STDIN_CHANNEL, STDOUT_CHANNEL

from agent.cluster.api.errors import whole_seconds
from agent.domain.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from agent.cluster.api.client import Client
    from agent.cluster.api.container_ref import ContainerRef

PROTOCOL = "v4.channel.k8s.io"  # v5 adds only the end of stdin; who reads it here is told its size
MAX_FRAME = 4 * 1024 * 1024
MAX_STDERR = 16 * 1024
MAX_STATUS = 64 * 1024
HANG_UP_SECONDS = 1.0
FORBIDDEN = 403
PERMANENT = frozenset({400, 403, 404})


class ExecError(ClusterError):
    """The exec failed: nothing is known of what the command did."""


class ExecDeadline(ExecError):
    """The command had not ended at its deadline; it may still be running."""


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What a short command did; `stderr` is its first 16 KiB."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class ExecStream:
    """One command in one container.

    Args:
        argv: the command; no shell reads it.
        seconds: until it is given up, counted from the entry.
        stdin: whether something is sent to it; tty: whether it runs on a terminal of its own.
        silence: seconds without a byte, and without an answer to a ping, after which the connection counts as dead.

    Raises:
        ExecError: on entry and while iterating; iteration ends only with a status.
    """

    STDIN, RESIZE = STDIN_CHANNEL, RESIZE_CHANNEL

    def __init__(
        self,
        client: Client,
        target: ContainerRef,
        argv: Sequence[str],
        *,
        seconds: float,
        silence: float = 30.0,
        stdin: bool = False,
        tty: bool = False,
    ) -> None:
        self.client = client
        self.target = target
        self.argv = argv
        self.seconds = seconds
        self.silence = silence
        self.stdin = stdin
        self.tty = tty
        self.stderr = bytearray()
        self._status = bytearray()
        self._exit_code: int | None = None
        self._listening = False
        self._heard = False
        self._gave_up: ExecError | None = None

    @property
    def exit_code(self) -> int:
        """The command's exit code.

        Raises:
            ExecError: no status has come.
        """
        if self._exit_code is None:
            raise ExecError(f"{self._where} has no status", retryable=True)
        return self._exit_code

    @property
    def _where(self) -> str:
        return f"the exec of {self.argv[0]} in {self.target.pod}/{self.target.container}"

    async def __aenter__(self) -> Self:
        self._end = asyncio.get_running_loop().time() + self.seconds
        self._socket = await self._connect()
        self._watch = asyncio.create_task(self._watch_over(), name=f"exec-watch {self.target.pod}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.cancel()
        await asyncio.wait([self._watch])
        await self._hang_up()  # again: a watch that was cancelled before its first step never did
        if not self._watch.cancelled() and (failure := self._watch.exception()):
            raise failure

    async def send(self, data: bytes, *, channel: int = STDIN_CHANNEL) -> None:
        """Send bytes to the command, or to its terminal; returns when the connection has room for more.

        Raises:
            ExecError: the connection is gone.
        """
        try:
            await self._socket.send_bytes(bytes([channel]) + data)
        except (aiohttp.ClientError, OSError) as error:
            raise ExecError(f"{self._where} broke: {error!r}", retryable=True) from error

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> memoryview:
        while self._exit_code is None:
            self._listening = True
            message = await self._socket.receive()
            self._listening = False
            self._heard = True
            if message.type is aiohttp.WSMsgType.BINARY:
                if message.data[:1] == STDOUT:
                    return memoryview(message.data)[1:]
                self._aside(message.data)
            else:
                await self._control(message)
        raise StopAsyncIteration

    def _aside(self, data: bytes) -> None:
        """Take what is not stdout."""
        if data[:1] == STDERR:
            self.stderr += data[1 : MAX_STDERR - len(self.stderr) + 1]
        elif data[:1] == STATUS:
            self._status += data[1:]
            if len(self._status) > MAX_STATUS:
                raise ExecError(f"{self._where}: the status is too long")
            self._exit_code = exit_code_of(bytes(self._status))

    async def _control(self, message: aiohttp.WSMessage) -> None:
        """Answer what is no data.

        Raises:
            ExecError: the stream is over.
        """
        if message.type is aiohttp.WSMsgType.PING:
            await self._socket.pong(message.data)
        elif message.type is aiohttp.WSMsgType.PONG:
            pass
        elif self._gave_up:
            raise self._gave_up
        elif message.type is aiohttp.WSMsgType.ERROR:
            raise ExecError(f"{self._where} broke: {message.data}", retryable=True)
        else:
            how = f"{message.type.name}, close code {self._socket.close_code}"
            raise ExecError(f"{self._where} was cut before its status ({how})", retryable=True)

    async def _connect(self) -> aiohttp.ClientWebSocketResponse:
        """Open the websocket, counted and paced as every request of the client.

        Raises:
            ExecError: it was refused, or could not be reached in time.
        """
        code, now = "error", asyncio.get_running_loop().time()
        try:
            # An answer that never comes costs one request's timeout, not all the time that the command has.
            async with asyncio.timeout_at(min(self._end, now + self.client.settings.request_timeout)):
                await self.client.acquire_slot("create", "pods/exec")
                socket = await self._handshake()
            code = "2xx"
        except aiohttp.WSServerHandshakeError as error:
            code = f"{error.status // 100}xx"
            # The handshake's error does not hold the body, in which the API says this itself.
            why = ": pods/exec is forbidden, its verbs get and create are needed" if error.status == FORBIDDEN else ""
            raise ExecError(
                f"{self._where} was refused (HTTP {error.status}){why}",
                retryable=error.status not in PERMANENT,
                retry_after=whole_seconds(error.headers.get("Retry-After") if error.headers else None),
                status=error.status,
            ) from error
        except TimeoutError as error:
            if asyncio.get_running_loop().time() < self._end:
                raise ExecError(f"{self._where} was not answered", retryable=True) from error
            raise ExecDeadline(f"{self._where} was not begun within {self.seconds:.0f} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ExecError(f"{self._where} could not be begun: {error!r}", retryable=True) from error
        finally:
            metrics, took = self.client.metrics, asyncio.get_running_loop().time() - now
            metrics.requests.labels("create", "pods/exec", code).inc()
            metrics.request_duration.labels("create", "pods/exec").observe(took)
        return socket

    async def _handshake(self) -> aiohttp.ClientWebSocketResponse:
        target = self.target
        query = [("command", word) for word in self.argv]
        query += [("container", target.container), ("stdout", "true")]
        # A terminal has one output.
        query += [("stdin", "true")] if self.stdin else []
        query += [("tty", "true")] if self.tty else [("stderr", "true")]
        path = f"/api/v1/namespaces/{target.namespace}/pods/{target.pod}/exec"
        return await self.client.session.ws_connect(
            self.client.url(path, query),
            headers=await self.client.credentials(),
            protocols=(PROTOCOL,),
            autoping=False,
            max_msg_size=MAX_FRAME,
            server_hostname=self.client.server_hostname,
            timeout=aiohttp.ClientWSTimeout(ws_close=HANG_UP_SECONDS),
        )

    async def _watch_over(self) -> None:
        """Hang up when it is time to, at the latest when the stream is left."""
        try:
            self._gave_up = await self._time_to_give_up()
        except (aiohttp.ClientError, OSError) as error:
            self._gave_up = ExecError(f"{self._where} broke: {error!r}", retryable=True)
        finally:
            await self._hang_up()

    async def _time_to_give_up(self) -> ExecError:
        """Return at the deadline, or when a ping has not been answered although somebody listened."""
        now = asyncio.get_running_loop().time
        asked = False
        while (left := self._end - now()) > 0:
            self._heard = False
            await asyncio.sleep(min(left, self.silence / 2))
            if self._heard or not self._listening:
                asked = False
            elif asked:
                return ExecError(f"{self._where} does not answer", retryable=True)
            else:
                asked = True
                await self._socket.ping()
        return ExecDeadline(f"{self._where} did not end within {self.seconds:.0f} s")

    async def _hang_up(self) -> None:
        """Close the websocket; a peer that goes on sending, or never answers, loses its connection."""
        try:
            async with asyncio.timeout(HANG_UP_SECONDS):
                await self._socket.close()
        except TimeoutError:
            pass  # aiohttp dropped the connection when the wait was cut: there is nothing left to close


STDOUT, STDERR, STATUS = (bytes([channel]) for channel in (STDOUT_CHANNEL, STDERR_CHANNEL, ERROR_CHANNEL))


def exit_code_of(status: bytes) -> int:
    """Read the status at the end of a command.

    Raises:
        ExecError: it tells of anything but an exit code.
    """
    try:
        told = json.loads(status)
        if told["status"] == "Success":
            return 0
        if told.get("reason") == "NonZeroExitCode":
            codes = [cause["message"] for cause in told["details"]["causes"] if cause.get("reason") == "ExitCode"]
            return int(codes[0])
        said = str(told.get("message") or told.get("reason") or "no message")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise ExecError(f"a status that cannot be read: {status[:500]!r}", retryable=True) from error
    raise ExecError(f"the command was not run, or not to its end: {said[:2000]}", retryable=True)


async def run(
    client: Client, target: ContainerRef, argv: Sequence[str], *, seconds: float, max_stdout: int = 64 * 1024
) -> ExecResult:
    """Run a short command and return all that it said.

    Raises:
        ExecError: it could not be run, or said more than `max_stdout` bytes.
    """
    stdout = bytearray()
    async with ExecStream(client, target, argv, seconds=seconds) as stream:
        async for chunk in stream:
            stdout += chunk
            if len(stdout) > max_stdout:
                raise ExecError(f"{argv[0]} in {target.pod} wrote more than {max_stdout} bytes")
    return ExecResult(stream.exit_code, bytes(stdout), bytes(stream.stderr))
