"""Write the files of other actions from stdin into the workspace, then let the commands begin.

An exec runs this program in container `helper`, with the program's source as an argument. Stdin has, for each file, a
line of JSON (`path`, `mode`, `size`, `sha256`) and then its bytes, and at last the line `{"end": FILES}`. A line with a
`url` has no bytes: the program reads the file from the object store, several at the same time. The program answers with
one line of JSON: `files` and `bytes`, or `started` if the commands have begun before, or `error` and `message`.

The agent repeats the program after a break, and so does an agent that adopts the session. A new run therefore ends an
older run that still works, and removes what that run has left. The content of the workspace is not trusted: no file is
written outside it or through a link. A file gets its name when it is complete and its hash is right.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import queue
import signal
import ssl
import stat
import sys
import threading
import time
from hashlib import sha256
from urllib.parse import urlsplit

from agent.cluster.in_pod.workspace import FOLDER, USER, send_word, start_commands, take_snapshot, wait_for_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, BinaryIO

LINE_BYTES = 64 * 1024  # maximum number of bytes of a line: a path of 4096 bytes has up to six characters for a byte
PIECE_BYTES = 256 * 1024  # number of bytes of one read
SILENCE_SECONDS = 120  # seconds without a byte after which the program ends: the agent is gone, or the connection
CONNECTIONS = 8  # number of files that are read from the object store at the same time
WAITING = 64  # maximum number of files that wait for a connection, so that their URLs are fresh
TRIES = 5  # number of tries for one file
REQUEST_SECONDS = 60.0  # seconds without progress after which a request fails
GONE = (404, 410)
LOCK, DONE, LEFT = "inputs.lock", "inputs.done", ".sealci-inputs-"
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Refused(Exception):
    """The files cannot be written. The first argument is the kind of the error, the second one is for people."""


class Lock:
    """The right to write inputs, which one run has at a time. The file names the run and its temporary folder."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self) -> None:
        """Take the lock from a run that still works, and remove what earlier runs have left."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # The older run waits for bytes of an agent that has lost this pod.
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(self.read()[0]), signal.SIGKILL)
            fcntl.flock(self.fd, fcntl.LOCK_EX)
        remove_folder(self.read()[1])

    def read(self) -> tuple[str, str]:
        """Return the process number and the temporary folder of the last run."""
        number, _, folder = os.pread(self.fd, 8192, 0).decode("utf-8", "surrogateescape").partition(" ")
        return number, folder

    def write(self, folder: str) -> None:
        data = f"{os.getpid()} {folder}".encode("utf-8", "surrogateescape")
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, data, 0)


class Receiver:
    """Reads files from a stream and writes them into the workspace. Lives as long as the program."""

    def __init__(self, stream: BinaryIO, workspace: str, user: tuple[int, int] | None) -> None:
        self.stream = stream
        self.user = user
        self.root = os.open(workspace, FOLDER)
        self.temporary = f"{workspace}/{LEFT}{os.urandom(8).hex()}"
        self.files = self.bytes = 0
        self.trust: ssl.SSLContext | None = None
        self.threads: list[threading.Thread] = []
        self.waiting: queue.Queue[tuple[str, dict[str, Any]] | None] = queue.Queue(WAITING)
        self.failures: list[Refused] = []

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
                self.trust = ssl.create_default_context(cadata=header["ca"])
                continue
            name = f"{self.temporary}/{self.files}"
            self.files += 1
            self.bytes += header["size"]
            if "url" in header:
                self.download_later(name, header)
            else:
                self.receive(name, header, self.copy)
        self.finish_downloads()
        if header["end"] != self.files:
            raise Refused("broken", f"{self.files} files arrived instead of {header['end']}")

    def read_header(self) -> dict[str, Any]:
        line = self.stream.readline(LINE_BYTES)
        signal.alarm(SILENCE_SECONDS)
        if not line.endswith(b"\n"):
            raise Refused("broken", "the stream of files ended too early")
        header: dict[str, Any] = json.loads(line)
        return header

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

    # ---- files in the object store

    def download_later(self, name: str, header: dict[str, Any]) -> None:
        """Give a file to the threads that read from the object store. Wait while too many files wait."""
        if len(self.threads) < CONNECTIONS:
            thread = threading.Thread(target=self.download_all, daemon=True)
            self.threads.append(thread)
            thread.start()
        self.waiting.put((name, header))
        self.raise_failure()

    def finish_downloads(self) -> None:
        """Wait for all files of the object store."""
        for _ in self.threads:
            self.waiting.put(None)
        for thread in self.threads:
            while thread.is_alive():
                thread.join(1.0)
                # The stream is silent meanwhile. Each request has a limit of its own.
                signal.alarm(SILENCE_SECONDS)
        self.raise_failure()

    def raise_failure(self) -> None:
        if self.failures:
            raise self.failures[0]

    def download_all(self) -> None:
        """Read files until there are no more. This is the body of a thread. After a failure, files are skipped."""
        while True:
            item = self.waiting.get()
            if item is None:
                return
            if self.failures:
                continue
            try:
                self.receive(*item, self.download)
            except Refused as error:
                self.failures.append(error)
            except OSError as error:
                self.failures.append(Refused("broken", os.strerror(error.errno or 0)))

    def download(self, file: int, header: dict[str, Any]) -> str:
        """Read a file from the object store into FILE, with retries. Return its SHA-256."""
        why = ""
        for attempt in range(TRIES):
            os.ftruncate(file, 0)
            os.lseek(file, 0, os.SEEK_SET)
            try:
                status, digest = self.get(file, header)
            except (OSError, http.client.HTTPException) as error:
                why = f"{type(error).__name__}: {error}"
            else:
                if status == 200:
                    return digest
                if status in GONE:
                    raise Refused("missing", f"{header['path']} is no longer in the object store (HTTP {status})")
                why = f"HTTP {status}"
                if status < 500 and status not in (408, 425, 429):
                    break
            time.sleep(min(5.0, 0.2 * 2**attempt))
        raise Refused("store", f"{header['path']}: {why}")

    def get(self, file: int, header: dict[str, Any]) -> tuple[int, str]:
        """Send one request. Return the status and the SHA-256 of the bytes that were written to FILE."""
        url = urlsplit(header["url"])
        if url.scheme == "https":
            trust = self.trust or ssl.create_default_context()
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                url.netloc, timeout=REQUEST_SECONDS, context=trust
            )
        else:
            connection = http.client.HTTPConnection(url.netloc, timeout=REQUEST_SECONDS)
        digest, left = sha256(), header["size"]
        with contextlib.closing(connection):
            connection.request("GET", f"{url.path}?{url.query}", headers={"Accept-Encoding": "identity"})
            answer = connection.getresponse()
            while answer.status == 200 and left:
                data = answer.read(min(left, PIECE_BYTES))
                if not data:
                    raise http.client.IncompleteRead(b"", left)
                digest.update(data)
                write_whole(file, data)
                left -= len(data)
            return answer.status, digest.hexdigest()

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


def write_whole(file: int, data: bytes) -> None:
    """Write all bytes of DATA to FILE. `os.write` alone may write fewer."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def remove_folder(path: str) -> None:
    """Remove the folder PATH, which holds files only, if it exists."""
    if not os.path.isdir(path):
        return
    for name in os.listdir(path):
        os.unlink(f"{path}/{name}")
    os.rmdir(path)


def read_user(path: str) -> tuple[int, int] | None:
    """Return user and group of the commands from the file PATH, for which it waits; None if they are not known."""
    wait_for_path(path)
    with open(path) as file:
        words = file.read().split()
    return (int(words[0]), int(words[1])) if len(words) == 2 else None


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
    the commands, and `tree` tells the gate of container `helper`, which waits for services too.
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
