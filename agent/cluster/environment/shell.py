"""An interactive shell in a container, on the terminal of this process.

Lives as long as the person stays in it. The terminal is raw meanwhile: Ctrl-C belongs to the shell.
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

from agent.cluster.api.exec import ExecStream
from agent.domain.paths import write_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.cluster.api.client import Client
    from agent.cluster.api.exec import Target

LONGEST = 24 * 3600.0
SHELL = 'cd "$1"; export TERM="$2" PS1="\\w \\$ "; command -v bash >/dev/null && exec bash --norc -i; exec sh -i'


async def shell(client: Client, target: Target, folder: str) -> int:
    """Give the terminal to a shell in FOLDER of a container; returns its exit code.

    Raises:
        ExecError: it could not be begun, or broke.
    """
    argv = ["/bin/sh", "-c", SHELL, "sh", folder, os.environ.get("TERM", "xterm")]
    stream = ExecStream(client, target, argv, seconds=LONGEST, stdin=True, tty=True)
    typed: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
    async with stream:
        with raw(sys.stdin.fileno()), listening(typed):
            sender = asyncio.create_task(send(stream, typed), name="keys of the shell")
            try:
                async for chunk in stream:
                    await asyncio.to_thread(write_all, sys.stdout.fileno(), bytes(chunk))
            finally:
                sender.cancel()
                await asyncio.wait({sender})
    return stream.exit_code


async def send(stream: ExecStream, typed: asyncio.Queue[tuple[int, bytes]]) -> None:
    """Send what is typed, and each size of the window, until cancelled."""
    while True:
        channel, data = await typed.get()
        await stream.send(data, channel=channel)


@contextmanager
def raw(fd: int) -> Iterator[None]:
    """Hand every key through meanwhile."""
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextmanager
def listening(typed: asyncio.Queue[tuple[int, bytes]]) -> Iterator[None]:
    """Put what is typed, and the size of the window whenever it changes, into the queue."""
    loop, fd = asyncio.get_running_loop(), sys.stdin.fileno()

    def resized() -> None:
        size = os.get_terminal_size(sys.stdout.fileno())
        typed.put_nowait((ExecStream.RESIZE, json.dumps({"Width": size.columns, "Height": size.lines}).encode()))

    def read() -> None:
        data = os.read(fd, 4096)
        if data:
            typed.put_nowait((ExecStream.STDIN, data))
        else:
            loop.remove_reader(fd)

    resized()
    loop.add_signal_handler(signal.SIGWINCH, resized)
    loop.add_reader(fd, read)
    try:
        yield
    finally:
        loop.remove_reader(fd)
        loop.remove_signal_handler(signal.SIGWINCH)
