"""Starts agents as processes within milliseconds: a helper process imports the agent once and forks for each start.

AgentProcesses lives as long as a test. Each child runs the command line `sealci-agent`. A test ends a child by a signal
to its process id.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from agent.domain.json import Object

if TYPE_CHECKING:
    from pathlib import Path

# Seconds until an agent must have ended after a signal. An agent that gets SIGTERM waits until its pods are gone. After
# several restarts of the API server, a kubelet once learned of a deletion after 43 s, because it had paused between two
# connection attempts.
LEAVING = 90.0


class Child:
    """One agent process. `code` is its exit code.

    The code is None while the process runs, and negative if a signal ended it.
    """

    def __init__(self, pid: int, log: Path) -> None:
        self.pid = pid
        self.log_file = log
        self.code: int | None = None
        self.ended = asyncio.Event()

    @property
    def log(self) -> str:
        """Return the text that the agent process has logged until now."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    async def end(self, number: signal.Signals) -> int:
        """Send the signal `number` to the process, wait for its end and return its exit code."""
        if self.code is None:
            os.kill(self.pid, number)
        async with asyncio.timeout(LEAVING):
            await self.ended.wait()
        assert self.code is not None
        return self.code


class AgentProcesses:
    """A helper process, and the agent processes that it has started by forking."""

    def __init__(self) -> None:
        self.children: dict[int, Child] = {}
        self.started: asyncio.Queue[Child] = asyncio.Queue()
        self.starting = asyncio.Lock()
        self.log_file: Path | None = None

    async def __aenter__(self) -> AgentProcesses:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", __name__, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        self.reader = asyncio.create_task(self.read(), name="processes")
        return self

    async def __aexit__(self, *_: object) -> None:
        for child in self.children.values():
            if child.code is None:
                await child.end(signal.SIGKILL)
        assert self.process.stdin is not None
        self.process.stdin.close()
        await self.process.wait()
        await self.reader

    async def read(self) -> None:
        """Read the reports of the helper process.

        A report names a process that has started, or one that has ended with a code.
        """
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            report = json.loads(line)
            if "code" in report:
                child = self.children[report["pid"]]
                child.code = report["code"]
                child.ended.set()
            else:
                assert self.log_file is not None
                child = self.children[report["pid"]] = Child(report["pid"], self.log_file)
                self.started.put_nowait(child)

    async def start(self, log: Path, *arguments: str) -> Child:
        """Start a process that runs `sealci-agent` with these arguments.

        The process writes its output to the file `log`.
        """
        assert self.process.stdin is not None
        async with asyncio.timeout(30), self.starting:
            self.log_file = log
            self.process.stdin.write(json.dumps({"arguments": arguments, "log": str(log)}).encode() + b"\n")
            return await self.started.get()


def main() -> None:
    """Run as the helper process. For each line of the input, fork a process that runs `sealci-agent`.

    Report the start and the end of each forked process, until the input ends.
    """
    for module in ("agent.app.serve", "agent.cli.main", "agent.local_scheduler.server"):
        importlib.import_module(module)

    def reap(*_: object) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            os.write(1, json.dumps({"pid": pid, "code": os.waitstatus_to_exitcode(status)}).encode() + b"\n")

    signal.signal(signal.SIGCHLD, reap)
    while line := sys.stdin.readline():
        order = json.loads(line)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        pid = os.fork()
        if not pid:
            become(order)
        os.write(1, json.dumps({"pid": pid}).encode() + b"\n")
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def become(order: Object) -> None:
    """Run `sealci-agent` with the arguments in `order` in the forked process, then exit."""
    from agent.cli.main import main as command_line

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    sys.argv = ["sealci-agent", *order["arguments"]]
    code: Any = 1
    try:
        command_line()
        code = 0
    except SystemExit as error:
        code = error.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    main()
