"""Run the real supervisor as PID 1 of a PID namespace, under each shell that images use as /bin/sh.

A real process of the helper writes the order for the supervisor and keeps the log of the commands. A `Container` lives
for one test. When the supervisor ends, the kernel kills all processes of the PID namespace.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from agent.cluster import packaging
from agent.cluster.in_pod import workspace
from agent.cluster.in_pod.order import IDLE_SECONDS
from agent.cluster.supervisor import command, termination
from agent.cluster.supervisor.markers import Marker, MarkerReader
from agent.domain.json import Object

NONCE = "5ea1c15ea1c15ea1"
SHELLS = ("dash", "bash", "busybox")
DEADLINE = 30.0


def tool(name: str) -> str:
    """Return the absolute path of a program, because a process in the test's Linux namespaces can lack PATH."""
    path = shutil.which(name)
    assert path, f"{name} is not installed: apt-get install dash bash busybox-static util-linux"
    return path


@dataclass(frozen=True)
class Options:
    """Options of a `Container` in one test.

    `uid` is the user of the image. `image_env` holds the variables of the image, and `env` those of the action. If
    `late_helper` is true, the test itself starts the helper later. If `start` is false, the test itself starts the
    commands. If `cloned` is true, the workspace holds a file `cloned` that root owns, as after a clone. If
    `idle_seconds` is above 0, the helper of a warm pod waits that long for an order.
    """

    uid: int | None = None
    image_env: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    workspace: str = ""
    late_helper: bool = False
    start: bool = True
    cloned: bool = False
    pipefail: str = command.PIPEFAIL_OFF
    drain: float = 0.2
    log_limit: int = 1 << 30
    idle_seconds: float = 0.0


@dataclass(frozen=True)
class Result:
    """The exit code, the raw log and the termination message of one container that has ended."""

    code: int
    raw: bytes
    message: str
    commands: int

    @cached_property
    def items(self) -> list[bytes | Marker]:
        """The log, split into output and markers."""
        reader = MarkerReader(NONCE, self.commands)
        return [*reader.feed(self.raw), *reader.flush()]

    @property
    def text(self) -> str:
        """Return the log without markers."""
        return b"".join(item for item in self.items if isinstance(item, bytes)).decode(errors="surrogateescape")

    @property
    def markers(self) -> str:
        """Return the short forms of all markers in the log, such as "s1 f1:0 l:0"."""
        return " ".join(abbreviation(item) for item in self.items if isinstance(item, Marker))

    @property
    def ending(self) -> termination.Ending | None:
        """Return the supervisor's record, as the agent reads it from the termination message."""
        return termination.read_termination(self.message, NONCE)

    @property
    def verdict(self) -> termination.Verdict:
        """Return the verdict that the agent reaches for this result."""
        return termination.judge(self.code, self.ending, self.commands)


def abbreviation(marker: Marker) -> str:
    """Return the short form of a marker: "f1:0" if command 1 finished with exit code 0."""
    number = str(marker.command) if marker.command else ""
    code = "" if marker.exit_code is None else f":{marker.exit_code}"
    return f"{marker.kind.value}{number}{code}"


class Container:
    """The supervisor as PID 1, and a helper that keeps the log of the commands in a file. Lives for one test."""

    def __init__(self, folder: Path, shell: str, commands: Sequence[str], options: Options) -> None:
        self.folder = folder
        self.commands = commands
        self.options = options
        self.order = str(folder / "order")
        self.log = folder / "log" / "log"
        self.shell = self.create_files(shell)
        self.helper: subprocess.Popen[bytes] | None = None
        if not options.late_helper:
            self.start_helper()
        self.process = subprocess.Popen(
            self.argv(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], **options.image_env},
        )
        # The stdin of PID 1 stays open and empty. A command must not inherit it, because reading it would wait forever.
        assert self.process.stdin
        self.stdin = self.process.stdin

    def create_files(self, shell: str) -> str:
        """Create the files that the kubelet creates, and a shell that is called `sh`. Return the path of the shell."""
        for name in ("workspace", "order", "log"):
            (self.folder / name).mkdir()
        (self.folder / "termination-log").touch()
        link = self.folder / "sh"
        link.symlink_to(tool(shell))
        if self.options.uid is not None:
            self.folder.chmod(0o755)
            for name in ("termination-log",) if self.options.cloned else ("workspace", "termination-log"):
                os.chown(self.folder / name, self.options.uid, self.options.uid)
        if self.options.cloned:
            (self.folder / "workspace").chmod(0o777)
            (self.folder / "workspace" / "cloned").touch(0o644)
        return str(link)

    def start_helper(self) -> None:
        """Start the helper as PID 1 of container `helper` starts, with the order in its environment."""
        program = packaging.helper_program(command.SUPERVISOR, command.SETUP)
        idle = {IDLE_SECONDS: f"{self.options.idle_seconds:g}"}
        self.helper = subprocess.Popen(
            [sys.executable, *program[1:], self.order, str(self.log.parent), str(self.log.parent / "snapshot")],
            env=idle if self.options.idle_seconds else packaging.order_variables(self.whole_order()),
            stdout=subprocess.DEVNULL,
        )

    def whole_order(self) -> Object:
        """Return the order of the commands, as the agent writes it."""
        return command.order(
            self.commands,
            nonce=NONCE,
            env=self.options.env,
            workspace=self.options.workspace or str(self.folder / "workspace"),
            seconds=DEADLINE,
            log_limit=self.options.log_limit,
            pipefail=self.options.pipefail,
            snapshot=False,
            change_owner=self.options.cloned,
            start=self.options.start,
            drain=self.options.drain,
            termination_path=str(self.folder / "termination-log"),
            shell=self.shell,
        )

    def wait_for_pid_1(self) -> None:
        """Wait until the supervisor has opened the FIFO `go`, in which it waits for the start of the commands."""
        end = time.monotonic() + DEADLINE
        while f"{self.order}/go" not in self.files_of_pid_1():
            assert time.monotonic() < end
            time.sleep(0.002)

    def files_of_pid_1(self) -> list[str]:
        """Return the names of the files that PID 1 has open."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        try:
            return [os.readlink(each) for child in children for each in Path(f"/proc/{child}/fd").iterdir()]
        except OSError:
            return []

    def start_commands(self) -> None:
        """Start the commands, as a program does that the agent has started by exec to fill the workspace."""
        workspace.start_commands("", "", f"{self.order}/go")

    def argv(self) -> list[str]:
        namespace = [tool("unshare"), "--pid", "--fork", "--mount-proc", "--kill-child"]
        uid = self.options.uid
        ids = [] if uid is None else [tool("setpriv"), f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        return [*namespace, *ids, tool("setsid"), *command.entrypoint(self.order, self.shell)]

    @property
    def raw(self) -> bytes:
        return self.log.read_bytes() if self.log.exists() else b""

    def prints(self, text: bytes, within: float = DEADLINE) -> bool:
        """Wait up to `within` seconds until the log contains `text`. Return whether it does."""
        end = time.monotonic() + within
        while text not in self.raw:
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        return True

    def interrupt(self, grace: float) -> int:
        return self.exec(command.interrupt(grace, self.order))

    def pre_stop(self) -> int:
        return self.exec(command.pre_stop(self.order))

    def exec(self, argv: Sequence[str], **env: str) -> int:
        """Run a command in the container, as the kubelet does for exec and hooks. Return its exit code."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        entered = [tool("nsenter"), "--target", children[0], "--pid", "--mount", self.shell, *argv[1:]]
        done = subprocess.run(
            entered, stdin=subprocess.DEVNULL, env={**os.environ, **env}, timeout=DEADLINE, check=False
        )
        return done.returncode

    def wait(self) -> Result:
        """Wait until PID 1 has ended and the helper has recorded the end of the log. Return the result."""
        code = self.process.wait(DEADLINE)
        end = time.monotonic() + DEADLINE
        while self.helper and not (self.log.parent / "end").exists():
            assert time.monotonic() < end, "the log has no end"
            time.sleep(0.002)
        message = (self.folder / "termination-log").read_bytes()[-4096:].decode(errors="replace")
        return Result(code, self.raw, message, len(self.commands))

    def kill(self) -> None:
        """Kill all processes of the container and its helper."""
        for process in (self.process, self.helper):
            if process and process.poll() is None:
                process.kill()
                process.wait(DEADLINE)
        self.stdin.close()


@contextmanager
def container(shell: str, *commands: str, options: Options | None = None) -> Iterator[Container]:
    """Start a container. It is killed at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="supervisor-") as folder:
        running = Container(Path(folder), shell, commands, options or Options())
        try:
            yield running
        finally:
            running.kill()


def run(shell: str, *commands: str, options: Options | None = None) -> Result:
    """Run the commands in a new container under `shell`. Return the result when the container has ended."""
    with container(shell, *commands, options=options) as running:
        return running.wait()
