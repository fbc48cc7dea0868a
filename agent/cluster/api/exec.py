"""Run a command in a running container, over a websocket whose frames the agent reads itself.

An `ExecStream` lives for one command. Entering it connects, iterating it yields stdout in the frames that arrive, and
leaving it closes the connection. The Kubernetes library is used only for addresses and credentials. The library's own
reader decodes every frame as text, takes a broken stream for a success, and crashes on an error without an exit code.

Only the status frame at the end of the stream proves what the command did. A stream without a status frame is an
error of the infrastructure, whatever its close code. The connection is checked by pings only while the caller waits
for a frame. aiohttp's own heartbeat would close the connection of a slow reader, because the answer to a ping waits
behind unread data.
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

# Version 5 of the protocol adds only a signal for the end of stdin. The agent's programs in the pod know the size of
# their stdin beforehand.
PROTOCOL = "v4.channel.k8s.io"
# Maximum number of bytes of one frame. `MAX_STDERR` is the maximum of the stderr that is kept, `MAX_STATUS` the maximum
# of the status frame.
MAX_FRAME = 4 * 1024 * 1024
MAX_STDERR = 16 * 1024
MAX_STATUS = 64 * 1024
# Seconds to wait until the peer answers the close frame. Then the connection is dropped.
CLOSE_SECONDS = 1.0
FORBIDDEN = 403
PERMANENT = frozenset({400, 403, 404})


class ExecError(ClusterError):
    """The exec failed. It is unknown what the command did."""


class ExecDeadline(ExecError):
    """The command had not ended at its deadline and may still be running."""


@dataclass(frozen=True, slots=True)
class ExecResult:
    """Exit code and output of a short command. `stderr` holds at most the first 16 KiB of the error output."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class ExecStream:
    """One command in one container. Owned by the `async with` block of its caller.

    Args:
        argv: the command. No shell parses it.
        seconds: the deadline, counted from the entry into the `async with` block.
        stdin: whether the caller sends input.
        tty: whether the command runs on a terminal.
        silence: seconds without a frame, and without an answer to a ping, until the connection counts as dead.

    Raises:
        ExecError: on entry and while iterating. Without a status frame, the iteration ends with this error.
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
        self._frame_seen = False
        self._abort_error: ExecError | None = None

    @property
    def exit_code(self) -> int:
        """The command's exit code.

        Raises:
            ExecError: no status has arrived.
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
        self._watch = asyncio.create_task(self._watch_deadline(), name=f"exec-watch {self.target.pod}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.cancel()
        await asyncio.wait([self._watch])
        # The deadline task closes the socket too, but not if the task was cancelled before it started to run.
        await self._close_socket()
        if not self._watch.cancelled() and (failure := self._watch.exception()):
            raise failure

    async def send(self, data: bytes, *, channel: int = STDIN_CHANNEL) -> None:
        """Send bytes to the command or its terminal, on a channel of the exec protocol, by default as its stdin.

        Returns when the connection has room for more.

        Raises:
            ExecError: the connection is broken.
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
            self._frame_seen = True
            if message.type is aiohttp.WSMsgType.BINARY:
                if message.data[:1] == STDOUT:
                    return memoryview(message.data)[1:]
                self._read_side_channel(message.data)
            else:
                await self._handle_control(message)
        raise StopAsyncIteration

    def _read_side_channel(self, data: bytes) -> None:
        """Keep the content of a frame of the stderr channel or of the status channel."""
        if data[:1] == STDERR:
            self.stderr += data[1 : MAX_STDERR - len(self.stderr) + 1]
        elif data[:1] == STATUS:
            self._status += data[1:]
            if len(self._status) > MAX_STATUS:
                raise ExecError(f"{self._where}: the status is too long")
            self._exit_code = exit_code_of(bytes(self._status))

    async def _handle_control(self, message: aiohttp.WSMessage) -> None:
        """Answer a ping, or raise the reason for the end of the stream.

        Raises:
            ExecError: the stream has ended without a status.
        """
        if message.type is aiohttp.WSMsgType.PING:
            await self._socket.pong(message.data)
        elif message.type is aiohttp.WSMsgType.PONG:
            pass
        elif self._abort_error:
            raise self._abort_error
        elif message.type is aiohttp.WSMsgType.ERROR:
            raise ExecError(f"{self._where} broke: {message.data}", retryable=True)
        else:
            how = f"{message.type.name}, close code {self._socket.close_code}"
            raise ExecError(f"{self._where} was cut before its status ({how})", retryable=True)

    async def _connect(self) -> aiohttp.ClientWebSocketResponse:
        """Open the websocket. The metrics and the rate limit count the exec like every request of the client.

        Raises:
            ExecError: the API server refused the exec or did not answer in time.
        """
        code, now = "error", asyncio.get_running_loop().time()
        try:
            # If the API server does not answer, only the time of one request is lost, not the command's whole time.
            async with asyncio.timeout_at(min(self._end, now + self.client.settings.request_timeout)):
                await self.client.acquire_slot("create", "pods/exec")
                socket = await self._handshake()
            code = "2xx"
        except aiohttp.WSServerHandshakeError as error:
            code = f"{error.status // 100}xx"
            # The API server names the missing right in the body, but aiohttp's error does not hold the body.
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
            raise ExecDeadline(f"{self._where} was not started within {self.seconds:.0f} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ExecError(f"{self._where} could not be started: {error!r}", retryable=True) from error
        finally:
            metrics, took = self.client.metrics, asyncio.get_running_loop().time() - now
            metrics.requests.labels("create", "pods/exec", code).inc()
            metrics.request_duration.labels("create", "pods/exec").observe(took)
        return socket

    async def _handshake(self) -> aiohttp.ClientWebSocketResponse:
        target = self.target
        query = [("command", word) for word in self.argv]
        query += [("container", target.container), ("stdout", "true")]
        query += [("stdin", "true")] if self.stdin else []
        # A terminal has a single output, so stderr is requested only without a terminal.
        query += [("tty", "true")] if self.tty else [("stderr", "true")]
        path = f"/api/v1/namespaces/{target.namespace}/pods/{target.pod}/exec"
        return await self.client.session.ws_connect(
            self.client.url(path, query),
            headers=await self.client.credentials(),
            protocols=(PROTOCOL,),
            autoping=False,
            max_msg_size=MAX_FRAME,
            server_hostname=self.client.server_hostname,
            timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_SECONDS),
        )

    async def _watch_deadline(self) -> None:
        """Close the socket when `_wait_for_abort` returns, or when this task is cancelled."""
        try:
            self._abort_error = await self._wait_for_abort()
        except (aiohttp.ClientError, OSError) as error:
            self._abort_error = ExecError(f"{self._where} broke: {error!r}", retryable=True)
        finally:
            await self._close_socket()

    async def _wait_for_abort(self) -> ExecError:
        """Wait for the deadline, or for a ping without an answer while the caller waits for a frame.

        Return the error that the iteration over the stream then raises.
        """
        now = asyncio.get_running_loop().time
        pinged = False
        while (left := self._end - now()) > 0:
            self._frame_seen = False
            await asyncio.sleep(min(left, self.silence / 2))
            if self._frame_seen or not self._listening:
                pinged = False
            elif pinged:
                return ExecError(f"{self._where} does not answer", retryable=True)
            else:
                pinged = True
                await self._socket.ping()
        return ExecDeadline(f"{self._where} did not end within {self.seconds:.0f} s")

    async def _close_socket(self) -> None:
        """Close the websocket. If the peer does not answer or goes on sending, the connection is dropped."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._socket.close()
        except TimeoutError:
            pass  # aiohttp has dropped the connection.


STDOUT, STDERR, STATUS = (bytes([channel]) for channel in (STDOUT_CHANNEL, STDERR_CHANNEL, ERROR_CHANNEL))


def exit_code_of(status: bytes) -> int:
    """Return the exit code of a status frame.

    Raises:
        ExecError: the status has no exit code, so the command did not run to its end.
    """
    try:
        answer = json.loads(status)
        if answer["status"] == "Success":
            return 0
        if answer.get("reason") == "NonZeroExitCode":
            codes = [cause["message"] for cause in answer["details"]["causes"] if cause.get("reason") == "ExitCode"]
            return int(codes[0])
        message = str(answer.get("message") or answer.get("reason") or "no message")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise ExecError(f"a status that cannot be read: {status[:500]!r}", retryable=True) from error
    raise ExecError(f"the command was not run, or not to its end: {message[:2000]}", retryable=True)


async def run(
    client: Client, target: ContainerRef, argv: Sequence[str], *, seconds: float, max_stdout: int = 64 * 1024
) -> ExecResult:
    """Run a short command and return its exit code and output.

    Raises:
        ExecError: the command could not be run, or wrote more than `max_stdout` bytes.
    """
    stdout = bytearray()
    async with ExecStream(client, target, argv, seconds=seconds) as stream:
        async for chunk in stream:
            stdout += chunk
            if len(stdout) > max_stdout:
                raise ExecError(f"{argv[0]} in {target.pod} wrote more than {max_stdout} bytes")
    return ExecResult(stream.exit_code, bytes(stdout), bytes(stream.stderr))
