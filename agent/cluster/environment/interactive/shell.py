"""An interactive shell in a container, on the terminal of this process.

A shell stays open until the person ends it. Meanwhile the terminal is in raw mode, so the shell receives Ctrl-C and not
the agent.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import termios
import tty
from contextlib import contextmanager
from typing import TYPE_CHECKING

from agent.aio import cancelled_on_exit
from agent.cluster.api.exec import ExecStream
from agent.domain.paths import write_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.cluster.api.client import Client
    from agent.cluster.api.container_ref import ContainerRef

# Seconds until the agent closes a shell that is still open.
MAX_SECONDS = 24 * 3600.0
SHELL = 'cd "$1"; export TERM="$2" PS1="\\w \\$ "; command -v bash >/dev/null && exec bash --norc -i; exec sh -i'


async def run_shell(client: Client, target: ContainerRef, folder: str) -> int:
    """Run a shell in `folder` of a container on the terminal of this process. Return the exit code of the shell.

    Raises:
        ExecError: the shell could not be started, or its connection broke.
    """
    argv = ["/bin/sh", "-c", SHELL, "sh", folder, os.environ.get("TERM", "xterm")]
    stream = ExecStream(client, target, argv, seconds=MAX_SECONDS, stdin=True, tty=True)
    input_queue: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
    async with stream:
        with raw_mode(sys.stdin.fileno()), terminal_input(input_queue):
            sender = asyncio.create_task(send_input(stream, input_queue), name="keys of the shell")
            async with cancelled_on_exit(sender):
                async for chunk in stream:
                    await asyncio.to_thread(write_all, sys.stdout.fileno(), bytes(chunk))
    return stream.exit_code


async def send_input(stream: ExecStream, input_queue: asyncio.Queue[tuple[int, bytes]]) -> None:
    """Send keys and terminal sizes to the shell until cancelled."""
    while True:
        channel, data = await input_queue.get()
        await stream.send(data, channel=channel)


@contextmanager
def raw_mode(fd: int) -> Iterator[None]:
    """Put the terminal with descriptor `fd` into raw mode during the `with` block."""
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextmanager
def terminal_input(input_queue: asyncio.Queue[tuple[int, bytes]]) -> Iterator[None]:
    """Put typed keys and terminal sizes into the queue during the `with` block. The first item is the current size."""
    loop, fd = asyncio.get_running_loop(), sys.stdin.fileno()

    def queue_size() -> None:
        size = os.get_terminal_size(sys.stdout.fileno())
        data = json.dumps({"Width": size.columns, "Height": size.lines}).encode()
        input_queue.put_nowait((ExecStream.RESIZE, data))

    def queue_keys() -> None:
        data = os.read(fd, 4096)
        if data:
            input_queue.put_nowait((ExecStream.STDIN, data))
        else:
            loop.remove_reader(fd)

    queue_size()
    loop.add_signal_handler(signal.SIGWINCH, queue_size)
    loop.add_reader(fd, queue_keys)
    try:
        yield
    finally:
        loop.remove_reader(fd)
        loop.remove_signal_handler(signal.SIGWINCH)
