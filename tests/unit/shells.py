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
from pathlib import Path

from agent.cluster import supervisor
from agent.cluster.markers import Marker, MarkerReader

NONCE = "5ea1c15ea1c15ea1"
SHELLS = ("dash", "bash", "busybox")
DEADLINE = 30.0
NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


@dataclass
class Result:
    """What came of one container: its code, raw log, and the record of the supervisor."""

    code: int
    raw: bytes
    message: str
    commands: int
    log: bytes = field(init=False)
    markers: list[Marker] = field(init=False)

    def __post_init__(self) -> None:
        reader = MarkerReader(NONCE)
        items = [*reader.feed(self.raw), reader.flush()]
        self.log = b"".join(item for item in items if isinstance(item, bytes))
        self.markers = [item for item in items if isinstance(item, Marker)]

    @property
    def text(self) -> str:
        """The log without markers."""
        return self.log.decode(errors="surrogateescape")

    @property
    def announced(self) -> str:
        """The markers in short: "s1 f1:0 l:0"."""
        return " ".join(announcement(marker) for marker in self.markers)

    @property
    def ending(self) -> supervisor.Ending | None:
        """The record, read back."""
        return supervisor.read_termination(self.message, NONCE)

    @property
    def verdict(self) -> supervisor.Verdict:
        """The verdict as the agent makes it."""
        return supervisor.judge(self.code, self.ending, self.commands)


def announcement(marker: Marker) -> str:
    """Return a marker in short."""
    number = str(marker.command) if marker.command else ""
    code = "" if marker.exit_code is None else f":{marker.exit_code}"
    return f"{marker.kind.value}{number}{code}"


class Container:
    """The supervisor as PID 1, with a pipe as its log that is read as it comes."""

    def __init__(self, folder: Path, shell: str, commands: Sequence[str], **options: object) -> None:
        self.commands = len(commands)
        self.workspace = folder / "workspace"
        self.workspace.mkdir(exist_ok=True)
        self.ready = folder / "ready"
        self.record = folder / "termination-log"
        self.record.touch()
        self.shell = install(folder, shell)
        uid = options.get("uid")
        if uid is not None:
            hand_over(folder, int(str(uid)))
        env = options.get("env")
        assert env is None or isinstance(env, Mapping)
        self.raw = bytearray()
        self.news = threading.Condition()
        self.closed = False
        self.start(commands, uid, env, options)

    def start(
        self, commands: Sequence[str], uid: object, env: Mapping[str, str] | None, options: Mapping[str, object]
    ) -> None:
        argv = supervisor.entrypoint(
            commands,
            nonce=NONCE,
            workspace=str(options.get("workspace", self.workspace)),
            wait_for_files=bool(options.get("wait_for_files", False)),
            ready_path=str(self.ready),
            termination_path=str(self.record),
            shell=self.shell,
        )
        ids = [] if uid is None else ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        reading, writing = os.pipe()
        if options.get("own_pipe"):
            os.fchown(writing, int(str(uid)), int(str(uid)))
        self.process = subprocess.Popen(
            [*NAMESPACE, *ids, *argv],
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
            env={"PATH": os.environ["PATH"], **(env or {})},
        )
        os.close(writing)
        self.reader = threading.Thread(target=self.read, args=(reading,), daemon=True)
        self.reader.start()

    def read(self, reading: int) -> None:
        with open(reading, "rb", buffering=0) as pipe:
            while data := pipe.read(1 << 16):
                with self.news:
                    self.raw += data
                    self.news.notify_all()
        with self.news:
            self.closed = True
            self.news.notify_all()

    def printed(self, text: bytes) -> None:
        """Wait until the log holds a text."""
        with self.news:
            self.news.wait_for(lambda: text in self.raw or self.closed, DEADLINE)
            assert text in self.raw, bytes(self.raw)

    def exec(self, argv: Sequence[str]) -> int:
        """Run something inside, as the kubelet does for exec and hooks; returns its exit code."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        entered = ["nsenter", "--target", children[0], "--pid", "--mount", self.shell, *argv[1:]]
        return subprocess.run(
            entered,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=DEADLINE,
            check=False,
        ).returncode

    def wait(self) -> Result:
        """Wait for the end of PID 1 and of its log."""
        code = self.process.wait(DEADLINE)
        self.reader.join(DEADLINE)
        assert not self.reader.is_alive(), "somebody still holds the log"
        message = self.record.read_bytes()[-4096:].decode(errors="replace")
        return Result(code if code >= 0 else 128 - code, bytes(self.raw), message, self.commands)

    def kill(self) -> None:
        """End the namespace, if it still lives."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(DEADLINE)
        self.reader.join(DEADLINE)


def install(folder: Path, shell: str) -> str:
    """Make a shell that is called `sh`, as images do; returns its path."""
    path = shutil.which(shell)
    assert path, f"{shell} is not installed: apt-get install dash bash busybox-static"
    (folder / "bin").mkdir(exist_ok=True)
    link = folder / "bin" / "sh"
    if not link.exists():
        link.symlink_to(path)
    return str(link)


def hand_over(folder: Path, uid: int) -> None:
    """Let a user without rights do what it may in a container: write the workspace and the termination message."""
    folder.chmod(0o755)
    for name in ("workspace", "termination-log"):
        os.chown(folder / name, uid, uid)


@contextmanager
def container(shell: str, commands: Sequence[str], **options: object) -> Iterator[Container]:
    """Start a container; it is gone at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="supervisor-") as folder:
        running = Container(Path(folder), shell, commands, **options)
        try:
            yield running
        finally:
            running.kill()


def run(shell: str, *commands: str, **options: object) -> Result:
    """Run commands to their end."""
    with container(shell, commands, **options) as running:
        return running.wait()
