"""PID 1 of container `helper`.

The helper writes the order for container `action` and keeps the log of the commands. When the log has ended, it writes
`drained` into the FIFO `go`.

The helper and the program `log`, which reads the log file, run as real processes with real FIFOs. The test takes the
place of container `action`.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import pytest

from agent.cluster import packaging
from agent.cluster.in_pod.workspace import fingerprint
from agent.cluster.supervisor import command

DEADLINE = 30.0
KEY = 0x5EA1C1
MIB = 1 << 20


@dataclass(frozen=True)
class Frame:
    offset: int
    payload: bytes
    flags: bytes


def frames(data: bytes) -> list[Frame]:
    """Return all complete frames in the helper's stdout, of which no byte is missing. Each CRC must be correct."""
    found: list[Frame] = []
    at = 0
    while at < len(data):
        end = data.find(b"\a", at)
        if end < 0:
            break
        offset, length, crc, flags = data[at:end].removeprefix(b"\x1b]5397;").split(b";", 3)
        rest, payload = data[end + 1 :], bytearray()
        taken = 0
        while len(payload) < int(length):
            if taken >= len(rest):
                return found
            # The helper doubles a CR before a line end.
            taken += rest[taken : taken + 3] == b"\r\r\n"
            payload.append(rest[taken])
            taken += 1
        if flags.startswith((b"p", b"e")):
            taken += rest[taken : taken + 2] == b"\r\n"
            taken += 1
        assert int(crc, 16) == crc32(payload, KEY)
        found.append(Frame(int(offset), bytes(payload), flags))
        at = end + 1 + taken
    return found


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


class Helper:
    """A process of the helper. The test decides when it reads the helper's stdout. Lives for one test."""

    def __init__(self, folder: Path, here: str = "", **changes: object) -> None:
        self.order, self.folder = folder / "order", folder / "log"
        self.snapshot = self.folder / "snapshot"
        for name in (self.order, self.folder):
            name.mkdir()
        order = command.order(
            ["echo 'a'", "-x"],
            nonce="5ea1c15ea1c15ea1",
            env={"A": "it's", "SHELLOPTS": "xtrace"},
            secrets=["TOKEN"],
            workspace=str(folder),
            seconds=DEADLINE,
            log_limit=64 * MIB,
            log_key=KEY,
            drain=0.2,
            snapshot=False,
        )
        program = packaging.helper_program(command.SUPERVISOR, command.SETUP)
        self.process = subprocess.Popen(
            [sys.executable, *program[1:], str(self.order), str(self.folder), str(self.snapshot)],
            env=packaging.order_variables(order | changes) | {"SEALCI_SECRET_TOKEN": "hunter2\nü"},
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout
        os.set_blocking(self.process.stdout.fileno(), False)
        self.out = b""
        wait_until((self.order / "go").exists)
        self.go = os.open(self.order / "go", os.O_RDWR | os.O_NONBLOCK)
        if here:
            self.pid_1 = self.start_pid_1(here)
        if not changes.get("gate"):
            wait_until(lambda: self.answers() == "run\n")

    def start_pid_1(self, here: str = "here") -> tuple[int, int]:
        """Open the log and the control FIFO, as PID 1 of container `action` does. Return the two descriptors."""
        log, control = (os.open(self.order / name, os.O_RDWR) for name in ("log", "control"))
        os.write(control, f"{here}\n".encode())
        return log, control

    def answers(self) -> str:
        try:
            return os.read(self.go, 100).decode()
        except BlockingIOError:
            return ""

    @property
    def log(self) -> bytes:
        return (self.folder / "log").read_bytes()

    def read(self) -> list[Frame]:
        assert self.process.stdout
        while data := self.process.stdout.read(1 << 16) or b"":
            self.out += data
        return frames(self.out)

    def end(self) -> dict[str, int]:
        wait_until((self.folder / "end").exists)
        found: dict[str, int] = json.loads((self.folder / "end").read_text())
        return found


@contextmanager
def helper(folder: Path, here: str = "", **changes: object) -> Iterator[Helper]:
    running = Helper(folder, here, **changes)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait(DEADLINE)
        assert running.process.stdout
        running.process.stdout.close()


def shown(found: list[Frame]) -> bytes:
    """Return the bytes of the log that the frames hold. The frames must be complete and in order."""
    text = b""
    for each in found:
        assert each.offset == len(text)
        text += each.payload
    return text


def test_the_order_is_written_for_the_shell_and_removed_when_it_is_loaded(tmp_path: Path) -> None:
    with helper(tmp_path) as running:
        script = '. ./order; . ./env; . ./setup; printf \'%s|%s|%s|%s|%s\' "$A" "$TOKEN" "$__sealci_1" "$__sealci_2" '
        script += '"$__sealci_options"'
        setup = (running.order / "setup").read_text()
        (running.order / "setup").write_text(setup.partition("\n__sealci_pipefail")[0])
        shell = subprocess.run(["sh", "-c", script], cwd=running.order, capture_output=True, check=True)
        assert shell.stdout.decode() == "it's|hunter2\nü|echo 'a'| -x|xtrace"
        assert all((running.order / name).stat().st_mode & 0o777 == 0o666 for name in os.listdir(running.order))
        _, control = running.start_pid_1()
        os.write(control, b"loaded\n")
        wait_until(lambda: not (running.order / "env").exists())
        assert not (running.order / "setup").exists()


def test_every_byte_arrives_in_the_file_and_in_frames(tmp_path: Path) -> None:
    text = b"a\nb\r\nc\r\r\n\0\xff\xfe\x1b]5397;0;1;00000000;\aforged\nno line end\r"
    with helper(tmp_path) as running:
        log, control = running.start_pid_1()
        for at in range(len(text)):
            os.write(log, text[at : at + 1])
        wait_until(lambda: len(running.log) == len(text))
        os.close(log)
        os.close(control)
        assert running.end() == {"size": len(text), "dropped": 0}
        wait_until(lambda: running.read() and running.read()[-1].flags.startswith(b"e"))
        *pieces, last = running.read()
        assert running.log == shown(pieces) == text
        assert last == Frame(len(text), b"", b"e;0")
        assert pieces[-1].flags == b"p"


def test_the_beginning_of_a_line_is_shown_before_the_line_ends(tmp_path: Path) -> None:
    with helper(tmp_path) as running:
        log, _ = running.start_pid_1()
        os.write(log, b"password: ")
        wait_until(lambda: running.read() == [Frame(0, b"password: ", b"p")])
        os.write(log, b"10 %\r20 %\r")
        wait_until(lambda: running.read()[-1] == Frame(10, b"10 %\r20 %\r", b"p"))


def test_a_reader_of_standard_output_that_stops_delays_nothing(tmp_path: Path) -> None:
    line = b"x" * 79 + b"\n"
    with helper(tmp_path) as running:
        log, control = running.start_pid_1()
        os.write(log, line)
        wait_until(running.read)
        for _ in range(16 * MIB // 65520):
            os.write(log, line * 819)
        os.close(log)
        os.close(control)
        size = running.end()["size"]
        assert running.log == line * (size // 80)
        wait_until(lambda: running.read()[-1].flags.startswith(b"e"))
        *pieces, last = running.read()
        assert last.offset == size
        assert pieces[-1].offset + len(pieces[-1].payload) == size
        skipped = [b.offset - a.offset - len(a.payload) for a, b in itertools.pairwise(pieces)]
        assert all(skip >= 0 for skip in skipped)
        assert sum(skipped) > 14 * MIB


def test_bytes_over_the_limit_are_counted(tmp_path: Path) -> None:
    with helper(tmp_path, log_limit=10) as running:
        log, control = running.start_pid_1()
        os.write(log, b"12345678")
        wait_until(lambda: running.log == b"12345678")
        os.write(log, b"90abc")
        os.write(log, b"de")
        os.close(log)
        os.close(control)
        assert running.end() == {"size": 10, "dropped": 5}
        assert running.log == b"1234567890"
        wait_until(lambda: running.read()[-1] == Frame(10, b"", b"e;5"))


def test_the_end_of_the_commands_waits_for_processes_that_still_write(tmp_path: Path) -> None:
    with helper(tmp_path, drain=DEADLINE) as running:
        log, control = running.start_pid_1()
        filter_of_the_user = os.open(running.order / "log", os.O_WRONLY)
        os.close(log)
        os.write(control, b"ended\n")
        os.write(filter_of_the_user, b"late\n")
        wait_until(lambda: running.log == b"late\n")
        assert running.answers() == ""
        os.close(filter_of_the_user)
        wait_until(lambda: running.answers() == "drained\n")
        log = os.open(running.order / "log", os.O_RDWR)
        os.write(log, b"last\n")
        assert not (running.folder / "end").exists()
        os.close(log)
        os.close(control)
        assert running.end() == {"size": 10, "dropped": 0}


def test_a_process_that_keeps_the_log_open_delays_the_end_for_a_while_only(tmp_path: Path) -> None:
    with helper(tmp_path) as running:
        _, control = running.start_pid_1()
        os.write(control, b"ended\n")
        wait_until(lambda: running.answers() == "drained\n")
        os.close(control)
        assert running.end() == {"size": 0, "dropped": 0}


def test_term_ends_the_helper_at_once_without_commands(tmp_path: Path) -> None:
    with helper(tmp_path) as running:
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(DEADLINE) == 0


def test_term_lets_the_helper_keep_the_log_of_running_commands(tmp_path: Path) -> None:
    with helper(tmp_path) as running:
        log, control = running.start_pid_1()
        os.write(log, b"a\n")
        wait_until(running.read)
        running.process.send_signal(signal.SIGTERM)
        os.write(log, b"the trap of the user\n")
        wait_until(lambda: b"trap" in running.log)
        assert running.process.poll() is None
        os.close(log)
        os.close(control)
        wait_until(lambda: running.read()[-1].flags.startswith(b"e"))
        assert running.process.wait(DEADLINE) == 0


# ---- the program `log`, which the agent starts by exec to read the log file


def errand(running: Helper, offset: int, mode: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, *packaging.read_log_program()[1:], str(running.folder), str(offset), mode]
    return subprocess.Popen(argv, stdout=subprocess.PIPE)


def blocks(data: bytes) -> tuple[bytes, list[dict[str, object]]]:
    """Split the output of the errand `log`: JSON lines, and after a line with `bytes` that number of bytes of the log.

    Return all bytes of the log joined, and the JSON lines without `bytes`.
    """
    text, notes = b"", []
    while data:
        line, _, data = data.partition(b"\n")
        found = json.loads(line)
        if "at" in found:
            assert found["bytes"] <= 256 << 10
            text, data = text + data[: found["bytes"]], data[found["bytes"] :]
        else:
            notes.append(found)
    return text, notes


def test_the_errand_reads_once_and_follows_to_the_end(tmp_path: Path) -> None:
    text = bytes(range(256)) * 4096
    with helper(tmp_path) as running:
        log, control = running.start_pid_1()
        with errand(running, 0, "follow") as following:
            os.write(log, text)
            wait_until(lambda: len(running.log) == len(text))
            with errand(running, 7, "once") as once:
                assert blocks(once.communicate(timeout=DEADLINE)[0]) == (text[7:], [{"now": len(text)}])
            os.write(log, b"end")
            os.close(log)
            os.close(control)
            end: dict[str, object] = {"end": {"size": len(text) + 3, "dropped": 0}}
            assert blocks(following.communicate(timeout=DEADLINE)[0]) == (text + b"end", [end])
        with errand(running, len(text), "once") as after:
            assert blocks(after.communicate(timeout=DEADLINE)[0]) == (b"end", [end])
        with errand(running, len(text) + 4, "once") as beyond:
            assert "error" in blocks(beyond.communicate(timeout=DEADLINE)[0])[1][0]


@pytest.mark.parametrize("commands", [1, 3])
def test_a_long_order_arrives_in_pieces(tmp_path: Path, commands: int) -> None:
    texts = ["echo " + "é$" * 80_000] * commands
    variables = packaging.order_variables({"commands": texts})
    assert all(len(value.encode()) < 128 << 10 for value in variables.values())
    assert json.loads("".join(variables[f"SEALCI_ORDER_{number}"] for number in range(len(variables)))) == {
        "commands": texts
    }


def make_clone(folder: Path) -> Path:
    """Create files as a clone does, with symbolic links to targets outside the workspace. Return the workspace."""
    workspace = folder / "workspace"
    (workspace / "sub").mkdir(parents=True)
    workspace.chmod(0o777)
    (workspace / "sub" / "script").touch(0o755)
    (folder / "outside").mkdir()
    (folder / "outside" / "file").touch()
    (workspace / "to-file").symlink_to(folder / "outside" / "file")
    (workspace / "to-folder").symlink_to(folder / "outside")
    return workspace


def owners(*paths: Path) -> set[tuple[int, int]]:
    return {(path.lstat().st_uid, path.lstat().st_gid) for path in paths}


@pytest.mark.parametrize("user", [(0, 0), (1234, 5678)])
def test_the_user_of_the_commands_gets_the_clone(tmp_path: Path, user: tuple[int, int]) -> None:
    workspace = make_clone(tmp_path)
    changes: dict[str, object] = {"workspace": str(workspace), "change_owner": True, "snapshot": True}
    with helper(tmp_path, "here {} {}".format(*user), **changes) as running:
        inside = sorted(workspace.rglob("*"))
        assert owners(workspace, *inside) == {user}
        assert owners(tmp_path / "outside", tmp_path / "outside" / "file") == {(0, 0)}
        assert workspace.stat().st_mode & 0o777 == 0o755
        # A file that still has the ctime of the snapshot is no artifact.
        files = [path for path in inside if path.is_symlink() or path.is_file()]
        expected = [fingerprint(str(path.relative_to(workspace)), path.lstat()) for path in files]
        assert sorted(running.snapshot.read_bytes().split(b"\0")[:-1]) == sorted(expected)


def test_the_commands_of_an_order_without_a_clone_start_before_pid_1_is_there(tmp_path: Path) -> None:
    workspace = make_clone(tmp_path)
    with helper(tmp_path, workspace=str(workspace)):
        assert workspace.stat().st_mode & 0o777 == 0o777
