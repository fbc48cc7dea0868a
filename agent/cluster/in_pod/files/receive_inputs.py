"""Write the files of other actions from stdin into the workspace, then let the commands begin.

An exec runs this program in container `helper`, with the program's source as an argument. Stdin has, for each file, a
line of JSON (`path`, `mode`, `size`, `sha256`) and then its bytes, and at last the line `{"end": FILES}`. A line with a
`url` has no bytes. The next line names files of one object (see `file_records`), which the program reads from there.
The program answers with one line of JSON: `files` and `bytes`, or `started` if the commands have begun before, or
`error` and `message`.

The agent repeats the program after a break, and so does an agent that adopts the session. A new run therefore ends an
older run that still works, and removes what that run has left. The content of the workspace is not trusted: no file is
written outside it or through a link. A file gets its name when it is complete and its hash is right.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import sys
from hashlib import sha256

from agent.cluster.in_pod.files.errand_lock import DONE, LOCK, Lock, read_user, remove_folder
from agent.cluster.in_pod.objects.downloads import PIECE_BYTES, Downloads, Refused, spans_of, write_whole
from agent.cluster.in_pod.objects.file_records import decode_records
from agent.cluster.in_pod.workspace import FOLDER, USER, send_word, start_commands, take_snapshot, wait_for_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, BinaryIO

LINE_BYTES = 12 << 20  # maximum number of bytes of a line: the table of many files, which is usually far smaller
SILENCE_SECONDS = 120  # seconds without a byte after which the program ends: the agent is gone, or the connection
LEFT = ".sealci-inputs-"
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Receiver:
    """Reads files from a stream and writes them into the workspace. Lives as long as the program."""

    def __init__(self, stream: BinaryIO, workspace: str, user: tuple[int, int] | None) -> None:
        self.stream = stream
        self.user = user
        self.root = os.open(workspace, FOLDER)
        self.temporary = f"{workspace}/{LEFT}{os.urandom(8).hex()}"
        self.files = self.bytes = 0
        # The stream is silent while the program waits for the object store. Each request has a limit of its own.
        self.downloads = Downloads(self.receive, lambda: signal.alarm(SILENCE_SECONDS))

    def run(self) -> None:
        """Receive all files.

        Raises:
            Refused: a file cannot be written, or the stream is broken.
        """
        while True:
            header = self.read_header()
            if "end" in header:
                break
            if "ca" in header:
                self.downloads.use_ca(header["ca"])
                continue
            if "url" in header:
                self.download(header)
            else:
                self.receive(self.temporary_name(header["size"]), header, self.copy)
        self.downloads.finish()
        if header["end"] != self.files:
            raise Refused("broken", f"{self.files} files arrived instead of {header['end']}")

    def temporary_name(self, size: int) -> str:
        """Count a file of SIZE bytes, and return the name that it has until it is complete."""
        name = f"{self.temporary}/{self.files}"
        self.files += 1
        self.bytes += size
        return name

    def download(self, header: dict[str, Any]) -> None:
        """Give the files of one object to the threads that read from the object store."""
        files = [
            (
                self.temporary_name(size),
                {"path": path, "mode": mode, "size": size, "sha256": digest.hex(), "start": start},
            )
            for path, mode, size, digest, start in decode_records(self.read_line()[:-1])
        ]
        for span in spans_of(header["url"], files):
            self.downloads.add(span)

    def read_header(self) -> dict[str, Any]:
        header: dict[str, Any] = json.loads(self.read_line())
        return header

    def read_line(self) -> bytes:
        line = self.stream.readline(LINE_BYTES)
        signal.alarm(SILENCE_SECONDS)
        if not line.endswith(b"\n"):
            raise Refused("broken", "the stream of files ended too early")
        return line

    def receive(self, name: str, header: dict[str, Any], copy: Callable[[int, dict[str, Any]], str]) -> None:
        """Receive one file: COPY its bytes to a temporary file, check them, and move the file to its path."""
        file = os.open(name, NEW, 0o600)
        try:
            digest = copy(file, header)
            if digest != header["sha256"]:
                raise Refused("digest", f"the content of {header['path']} has another sha256 than when it was stored")
            self.give(file)
            # After the change of the owner, which clears some bits of the mode.
            os.fchmod(file, header["mode"] & 0o777)
        except BaseException:
            # The download of the file may start again.
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        finally:
            os.close(file)
        self.move(name, header["path"])

    def copy(self, file: int, header: dict[str, Any]) -> str:
        """Copy the bytes of a file from the stream to FILE. Return their SHA-256."""
        digest, left = sha256(), header["size"]
        while left:
            data = self.stream.read1(min(left, PIECE_BYTES))  # type: ignore[attr-defined]
            signal.alarm(SILENCE_SECONDS)
            if not data:
                raise Refused("broken", "the stream of files ended too early")
            digest.update(data)
            left -= len(data)
            write_whole(file, data)
        return digest.hexdigest()

    def give(self, file: int) -> None:
        """Make the user of the commands the owner of FILE."""
        if self.user is not None and os.geteuid() == 0:
            os.fchown(file, *self.user)

    def move(self, source: str, path: str) -> None:
        """Move the file SOURCE to PATH in the workspace, and create the folders of PATH."""
        *folders, name = path.split("/")
        if any(part in ("", ".", "..") for part in (*folders, name)):
            raise Refused("refused", f"{path} is not a path within the workspace")
        folder = os.dup(self.root)
        try:
            for number, part in enumerate(folders, 1):
                below = self.open_below(folder, part, "/".join(folders[:number]))
                os.close(folder)
                folder = below
            self.check_place(folder, name, path)
            os.rename(source, name, dst_dir_fd=folder)
        except OSError as error:
            raise Refused("refused", f"{path} cannot be written: {os.strerror(error.errno or 0)}") from error
        finally:
            os.close(folder)

    def open_below(self, folder: int, name: str, path: str) -> int:
        """Open the folder NAME in FOLDER, and create it if it is missing. PATH is for the message of an error."""
        try:
            os.mkdir(name, 0o755, dir_fd=folder)
        except FileExistsError:
            try:
                return os.open(name, FOLDER, dir_fd=folder)
            except OSError as error:
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                what = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "no folder"
                raise Refused("refused", f"{path} is {what}, so no file can be written below it") from error
        below = os.open(name, FOLDER, dir_fd=folder)
        self.give(below)
        os.fchmod(below, 0o755)
        return below

    def check_place(self, folder: int, name: str, path: str) -> None:
        """Refuse a PATH at which there is something else than a regular file."""
        try:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not stat.S_ISREG(found.st_mode):
            what = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "no regular file"
            raise Refused("refused", f"{path} is {what}, so it is not replaced")


def receive_files(workspace: str, snapshot: str, go: str, folder: str, word: str) -> dict[str, object]:
    """Receive the files and send WORD, unless that was done before. Return the answer to the agent."""
    lock, done = Lock(f"{folder}/{LOCK}"), f"{folder}/{DONE}"
    lock.take()
    if os.path.exists(done):
        return {"started": True}
    receiver = Receiver(sys.stdin.buffer, workspace, read_user(f"{folder}/{USER}"))
    lock.write(receiver.temporary)
    os.mkdir(receiver.temporary, 0o700)
    try:
        receiver.run()
    finally:
        # After a failure, other downloads may still write. The next run then removes the folder.
        with contextlib.suppress(OSError):
            remove_folder(receiver.temporary)
    signal.alarm(0)
    if snapshot:
        take_snapshot(workspace, snapshot)
    # From here on a later run changes nothing, because the commands may begin.
    os.close(os.open(done, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    if word == "run":
        start_commands(workspace, "", go)
    else:
        wait_for_path(go)
        send_word(go, word)
    return {"files": receiver.files, "bytes": receiver.bytes}


def main(arguments: list[str]) -> None:
    """Run with the arguments WORKSPACE SNAPSHOT GO FOLDER WORD.

    SNAPSHOT is the file to write, "" for none. FOLDER is the log's folder. GO is the FIFO that gets WORD: `run` starts
    the commands, and `tree` is for the gate of container `helper`, which waits for services too.
    """
    signal.alarm(SILENCE_SECONDS)
    os.umask(0o022)
    try:
        answer = receive_files(*arguments)
    except Refused as error:
        answer = {"error": error.args[0], "message": error.args[1]}
    except OSError as error:
        answer = {"error": "broken", "message": str(error)}
    sys.stdout.write(json.dumps(answer) + "\n")
