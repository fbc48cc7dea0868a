"""Runs the real supervisor as PID 1 of a PID namespace under each shell that images bring as /bin/sh.

A `Container` lives for one test: its namespace dies with it, whatever the commands have started.
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
    """Return the path of a program: what runs inside may have no PATH."""
    path = shutil.which(name)
    assert path, f"{name} is not installed: apt-get install dash bash busybox-static util-linux"
    return path


@dataclass(frozen=True)
class Options:
    """What differs from a plain container. `own_pipe`: the log's pipe belongs to `uid`, as runc arranges it."""

    uid: int | None = None
    own_pipe: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    workspace: str = ""
    wait_for_files: bool = False


@dataclass(frozen=True)
class Result:
    """What came of one container: its code, raw log, and the record of the supervisor."""

    code: int
    raw: bytes
    message: str
    commands: int

    @cached_property
    def items(self) -> list[bytes | Marker]:
        """The log, taken apart."""
        reader = MarkerReader(NONCE)
        return [*reader.feed(self.raw), reader.flush()]

    @property
    def text(self) -> str:
        """The log without markers."""
        return b"".join(item for item in self.items if isinstance(item, bytes)).decode(errors="surrogateescape")

    @property
    def announced(self) -> str:
        """The markers in short: "s1 f1:0 l:0"."""
        return " ".join(announcement(item) for item in self.items if isinstance(item, Marker))

    @property
    def ending(self) -> termination.Ending | None:
        """The record, read back."""
        return termination.read_termination(self.message, NONCE)

    @property
    def verdict(self) -> termination.Verdict:
        """The verdict as the agent makes it."""
        return termination.judge(self.code, self.ending, self.commands)


def announcement(marker: Marker) -> str:
    """Return a marker in short."""
    number = str(marker.command) if marker.command else ""
    code = "" if marker.exit_code is None else f":{marker.exit_code}"
    return f"{marker.kind.value}{number}{code}"


class Container:
    """The supervisor as PID 1, with a pipe as its log that is read as it comes."""

    def __init__(self, folder: Path, shell: str, commands: Sequence[str], options: Options) -> None:
        self.folder = folder
        self.commands = commands
        self.options = options
        self.shell = self.furnish(shell)
        self.raw = bytearray()
        self.news = threading.Condition()
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
        # A stdin that stays open and silent: commands that read it must not see it.
        assert self.process.stdin
        self.stdin = self.process.stdin
        self.reader = threading.Thread(target=self.read, args=(reading,), daemon=True)
        self.reader.start()

    def furnish(self, shell: str) -> str:
        """Make what the kubelet makes, and a shell that is called `sh`, as images do; returns its path."""
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
            ready_path=str(self.folder / "ready"),
            termination_path=str(self.folder / "termination-log"),
            shell=self.shell,
        )
        return [*namespace, *ids, tool("setsid"), *entrypoint]

    def read(self, reading: int) -> None:
        with open(reading, "rb", buffering=0) as pipe:
            while data := pipe.read(1 << 16):
                with self.news:
                    self.raw += data
                    self.news.notify_all()

    def prints(self, text: bytes, within: float = DEADLINE) -> bool:
        """Whether the log holds a text, at the latest after some seconds."""
        with self.news:
            return self.news.wait_for(lambda: text in self.raw, within)

    def let_go(self) -> None:
        """Do what the files container does when it is up."""
        (self.folder / "ready").touch()

    def exec(self, argv: Sequence[str], **env: str) -> int:
        """Run a shell's script inside, as the kubelet does for exec and hooks; returns its exit code."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        entered = [tool("nsenter"), "--target", children[0], "--pid", "--mount", self.shell, *argv[1:]]
        done = subprocess.run(
            entered, stdin=subprocess.DEVNULL, env={**os.environ, **env}, timeout=DEADLINE, check=False
        )
        return done.returncode

    def wait(self) -> Result:
        """Wait for the end of PID 1 and of its log."""
        code = self.process.wait(DEADLINE)
        self.reader.join(DEADLINE)
        assert not self.reader.is_alive(), "somebody still holds the log"
        message = (self.folder / "termination-log").read_bytes()[-4096:].decode(errors="replace")
        return Result(code, bytes(self.raw), message, len(self.commands))

    def kill(self) -> None:
        """End the namespace, if it still lives."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(DEADLINE)
        self.stdin.close()
        self.reader.join(DEADLINE)


@contextmanager
def container(shell: str, *commands: str, options: Options | None = None) -> Iterator[Container]:
    """Start a container; it is gone at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="supervisor-") as folder:
        running = Container(Path(folder), shell, commands, options or Options())
        try:
            yield running
        finally:
            running.kill()


def run(shell: str, *commands: str, options: Options | None = None) -> Result:
    """Run commands to their end."""
    with container(shell, *commands, options=options) as running:
        return running.wait()
