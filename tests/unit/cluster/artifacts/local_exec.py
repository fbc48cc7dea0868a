"""A command of a pod as a process of this machine, for tests of programs that talk with the agent."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Self

from agent.cluster.api.exec import ExecError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class LocalExec:
    """Runs a command of a pod as a process of this machine, with the interface of `ExecStream`.

    `frame` is the number of bytes of one piece of the output. It is small, so that pieces do not end with a line.
    `bytes` is the number of bytes in both directions.
    """

    frame = 10

    def __init__(self, argv: list[str]) -> None:
        self.argv = argv
        self.target = SimpleNamespace(pod="pod-1")
        self.stderr = bytearray()
        self.cut_after: int | None = None
        self.sent = 0
        self.bytes = 0

    async def __aenter__(self) -> Self:
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(*self.argv, stdin=pipe, stdout=pipe, stderr=pipe)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            # A program of a pod removes its temporary files when its agent goes away.
            assert self.process.stdin is not None
            self.process.stdin.close()
            try:
                async with asyncio.timeout(10):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
                await self.process.wait()

    async def send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.sent += 1
        self.bytes += len(data)
        if self.sent == self.cut_after:
            self.process.kill()
        self.process.stdin.write(data)
        try:
            await self.process.stdin.drain()
        except OSError as error:
            raise ExecError("cut", retryable=True) from error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        while data := await self.process.stdout.read(self.frame):
            self.bytes += len(data)
            yield data
        self.stderr += await self.process.stderr.read()
        if await self.process.wait() < 0:
            raise ExecError("cut before its status", retryable=True)

    @property
    def exit_code(self) -> int | None:
        return self.process.returncode
