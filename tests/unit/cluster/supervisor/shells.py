"""Run the real supervisor as PID 1 of a PID namespace, under each shell that images use as /bin/sh.

A `Container` lives for one test. When its PID 1 ends, the kernel kills all processes of the namespace.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from agent.cluster.supervisor import command, termination
from agent.cluster.supervisor.markers import Marker, MarkerReader

NONCE = "5ea1c15ea1c15ea1"
SHELLS = ("dash", "bash", "busybox")
DEADLINE = 30.0


def tool(name: str) -> str:
    """Return the absolute path of a program. A process in the test's Linux namespaces may have no PATH."""
    path = shutil.which(name)
    assert path, f"{name} is not installed: apt-get install dash bash busybox-static util-linux"
    return path


@dataclass(frozen=True)
class Options:
    """Options of a `Container` in one test.

    If `own_pipe` is true, the log's pipe belongs to the user `uid`, as the runtime runc arranges it.
    """

    uid: int | None = None
    own_pipe: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    workspace: str = ""
    wait_for_files: bool = False
    pipefail: str = command.PIPEFAIL_OFF


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
    """The supervisor as PID 1, with a pipe as its log, which a thread reads. A Container lives for one test."""

    def __init__(self, folder: Path, shell: str, commands: Sequence[str], options: Options) -> None:
        self.folder = folder
        self.commands = commands
        self.options = options
        self.shell = self.create_files(shell)
        self.raw = bytearray()
        self.changed = threading.Condition()
        reading, writing = os.pipe()
        if options.own_pipe:
            os.fchown(writing, options.uid or 0, options.uid or 0)
        self.process = subprocess.Popen(
            self.argv(),
            stdin=subprocess.PIPE,
            stdout=writing,
            stderr=writing,
            env={"PATH": os.environ["PATH"], **options.env},
        )
        os.close(writing)
        # The stdin of PID 1 stays open and empty. A command must not inherit it, because reading it would wait forever.
        assert self.process.stdin
        self.stdin = self.process.stdin
        self.reader = threading.Thread(target=self.read, args=(reading,), daemon=True)
        self.reader.start()

    def create_files(self, shell: str) -> str:
        """Create the files that the kubelet creates, and a shell that is called `sh`. Return the path of the shell."""
        (self.folder / "workspace").mkdir()
        (self.folder / "termination-log").touch()
        link = self.folder / "sh"
        link.symlink_to(tool(shell))
        if self.options.uid is not None:
            self.folder.chmod(0o755)
            for name in ("workspace", "termination-log"):
                os.chown(self.folder / name, self.options.uid, self.options.uid)
        return str(link)

    def argv(self) -> list[str]:
        namespace = [tool("unshare"), "--pid", "--fork", "--mount-proc", "--kill-child"]
        uid = self.options.uid
        ids = [] if uid is None else [tool("setpriv"), f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        entrypoint = command.entrypoint(
            self.commands,
            nonce=NONCE,
            workspace=self.options.workspace or str(self.folder / "workspace"),
            wait_for_files=self.options.wait_for_files,
            pipefail=self.options.pipefail,
            ready_path=str(self.folder / "ready"),
            termination_path=str(self.folder / "termination-log"),
            shell=self.shell,
        )
        return [*namespace, *ids, tool("setsid"), *entrypoint]

    def read(self, reading: int) -> None:
        with open(reading, "rb", buffering=0) as pipe:
            while data := pipe.read(1 << 16):
                with self.changed:
                    self.raw += data
                    self.changed.notify_all()

    def prints(self, text: bytes, within: float = DEADLINE) -> bool:
        """Wait up to `within` seconds until the log contains `text`. Return whether it does."""
        with self.changed:
            return self.changed.wait_for(lambda: text in self.raw, within)

    def create_ready_file(self) -> None:
        """Create the ready file, as container `helper` does when the workspace is complete."""
        (self.folder / "ready").touch()

    def exec(self, argv: Sequence[str], **env: str) -> int:
        """Run a command in the container, as the kubelet does for exec and hooks. Return its exit code."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        entered = [tool("nsenter"), "--target", children[0], "--pid", "--mount", self.shell, *argv[1:]]
        done = subprocess.run(
            entered, stdin=subprocess.DEVNULL, env={**os.environ, **env}, timeout=DEADLINE, check=False
        )
        return done.returncode

    def wait(self) -> Result:
        """Wait until PID 1 and the log have ended. Return the result."""
        code = self.process.wait(DEADLINE)
        self.reader.join(DEADLINE)
        assert not self.reader.is_alive(), "a process still has the log open"
        message = (self.folder / "termination-log").read_bytes()[-4096:].decode(errors="replace")
        return Result(code, bytes(self.raw), message, len(self.commands))

    def kill(self) -> None:
        """Kill all processes of the container if its PID 1 still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(DEADLINE)
        self.stdin.close()
        self.reader.join(DEADLINE)


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
