"""Keep the log of the commands: read it from a FIFO, append it to a file, and copy it to standard output in frames.

This is the main loop of container `helper` (Python 3.9, standard library). Only the file is complete. Standard output,
which the kubelet serves as the container's log, may skip parts of a fast log. Its reader never delays the commands.

A frame on standard output is `ESC ] 5397 ; OFFSET ; LENGTH ; CRC ; FLAGS BEL`, then LENGTH bytes of the file from
OFFSET on. A terminal hides the header, so `kubectl logs` shows the plain log. If a payload does not end in a line end,
the frame adds one, and the flag `p` (partial) marks the added line end as no part of the log. CR LF is written as
CR CR LF, because containerd drops one CR before a line end. Flag `e;DROPPED` in a frame without payload ends the log.

The CRC starts from a random key that only the agent and this container know. Otherwise the commands could print whole
frames, and a reader that begins in the middle of a real frame would take them for real.
"""

from __future__ import annotations

import os
import select
import signal
import time
from zlib import crc32

from agent.cluster.in_pod.order import CONTROL, GO, LOG, LOG_END, LOG_FILE, PIPE_BYTES, enlarge_pipe, remove_order
from agent.cluster.in_pod.start_gate import NOT_READY
from agent.cluster.in_pod.workspace import write_termination

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.cluster.in_pod.start_gate import StartGate

FRAME_BYTES = 64 * 1024  # largest payload of a frame
BEHIND_BYTES = 1024 * 1024  # if the copy is this many bytes behind the log file, it skips to the end of the file
SMALL_BYTES = 8 * 1024  # a frame of fewer payload bytes is followed by the shorter pause `SMALL_PAUSE`
SMALL_PAUSE, PAUSE = 0.02, 0.05  # seconds of pause after a frame below `SMALL_BYTES`, and after a larger frame
COPY_BURST = 512 * 1024  # bytes that are copied to standard output without a pause, after a quiet time
COPY_RATE = 1024 * 1024  # bytes per second that are copied later; the node formats and stores each line
PARTIAL_SECONDS = 0.25  # seconds until the beginning of a line is shown, although the line has not ended
LAST_SECONDS = 1.0  # seconds that the FIFO is read after PID 1 of container `action` has ended
MARKER_BYTES = 4096  # number of bytes that the log can hold in any case, for the markers of ready services
READING = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


def frame(offset: int, payload: bytes, key: int) -> bytes:
    """Return a frame for these bytes of the file, which begin at OFFSET."""
    partial = not payload.endswith(b"\n")
    head = b"\x1b]5397;%d;%d;%08x;%s\a" % (offset, len(payload), crc32(payload, key), b"p" if partial else b"")
    # The line end is added before the replacement, because containerd also drops a CR before the added line end.
    return head + (payload + b"\n" if partial else payload).replace(b"\r\n", b"\r\r\n")


def final_frame(size: int, dropped: int, key: int) -> bytes:
    """Return the frame that ends the log."""
    return b"\x1b]5397;%d;0;%08x;e;%d\a\n" % (size, crc32(b"", key), dropped)


class Copy:
    """Copies the file to a descriptor that must not block. The `LogKeeper` owns it. Times are monotonic seconds."""

    def __init__(self, fd: int, file: int) -> None:
        self.fd = fd
        self.file = file
        self.key = 0
        self.copied = self.size = 0  # bytes of the log file that are in frames, and size of the log file
        self.pending_since = 0.0  # when the first byte arrived that is not yet in a frame
        self.next_frame = 0.0  # the earliest time of the next frame
        self.allowance, self.allowed_at = float(COPY_BURST), 0.0  # bytes that the rate permits to copy, as of that time
        self.out = b""  # the bytes of the current frame that are not written yet
        self.ending = b""  # the final frame, b"" before the log has ended
        os.set_blocking(fd, False)

    @property
    def complete(self) -> bool:
        """Return whether the whole file, and the final frame if the log has ended, are written to the descriptor."""
        return not self.out and not self.ending and self.copied == self.size

    def grow(self, size: int, now: float) -> None:
        """Record that the file has grown to SIZE bytes."""
        if self.copied == self.size:
            self.pending_since = now
        self.size = size

    def run(self, now: float) -> float | None:
        """Write the frames that are due.

        Return the time of the next frame. None if the next frame needs new bytes, or a process that reads the
        descriptor.
        """
        while True:
            if self.out and not self.flush():
                return None
            if self.copied == self.size:
                self.out, self.ending = self.ending, b""
                if not self.out:
                    return None
                continue
            if self.size - self.copied > BEHIND_BYTES:
                self.copied = self.size - FRAME_BYTES
            due, payload = self.next_payload(now)
            if not payload:
                return due
            self.out = frame(self.copied, payload, self.key)
            self.copied += len(payload)
            self.pending_since = now
            self.allowance -= len(payload)
            self.next_frame = now + (SMALL_PAUSE if len(payload) < SMALL_BYTES else PAUSE)

    def next_payload(self, now: float) -> tuple[float, bytes]:
        """Return the time at which the next frame is due, and its payload: b"" if the frame is not due yet."""
        self.allowance = min(COPY_BURST, self.allowance + (now - self.allowed_at) * COPY_RATE)
        self.allowed_at = now
        waiting = self.size - self.copied
        if not self.ending:
            if waiting < FRAME_BYTES and now < self.next_frame:
                return self.next_frame, b""
            if self.allowance < min(waiting, FRAME_BYTES):
                return now + (min(waiting, FRAME_BYTES) - self.allowance) / COPY_RATE, b""
        payload = os.pread(self.file, min(waiting, FRAME_BYTES), self.copied)
        lines = payload.rfind(b"\n") + 1
        if lines or waiting >= FRAME_BYTES or self.ending:
            return now, payload[: lines or len(payload)]
        due = self.pending_since + PARTIAL_SECONDS
        return due, payload if now >= due else b""

    def flush(self) -> bool:
        """Write the rest of the current frame. Return False if the descriptor takes no more bytes now."""
        while self.out:
            try:
                self.out = self.out[os.write(self.fd, self.out) :]
            except BlockingIOError:
                return False
            except OSError:
                # No process reads standard output any more. The log file is complete without this copy.
                self.out = self.ending = b""
                self.copied = self.size
        return True


class LogKeeper:
    """Keeps the log of one pod. It lives as long as container `helper`.

    Args:
        folder: the order's folder, which holds the FIFOs.
        log_folder: the folder for the log file.
        deadline: when the program ends in any case, in monotonic seconds.

    The order sets `deadline`, `limit` (the largest size of the file; further bytes are counted and dropped), `drain`
    (seconds to wait for the output of processes that outlive the commands shell) and the key of the frames' checksums.
    """

    def __init__(self, folder: str, log_folder: str, deadline: float) -> None:
        self.folder = folder
        self.log_folder = log_folder
        self.deadline = deadline
        self.limit, self.drain = 0, 0.0
        os.umask(0)
        for name in (LOG, CONTROL):
            os.mkfifo(folder + "/" + name, 0o666)
        self.log = os.open(folder + "/" + LOG, READING)
        enlarge_pipe(self.log)
        self.control = os.open(folder + "/" + CONTROL, READING)
        os.mkfifo(folder + "/." + GO, 0o666)
        self.go = os.open(folder + "/." + GO, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self.file = os.open(log_folder + "/" + LOG_FILE, flags, 0o644)
        self.size = self.dropped = 0
        self.copy = Copy(1, self.file)
        self.output_watched = False
        self.poll = select.poll()
        self.poll.register(self.log, select.POLLIN)
        self.poll.register(self.control, select.POLLIN)
        self.drain_at: float | None = None  # when the wait for output of leftover processes ends
        self.end_at: float | None = None  # when the log ends even if processes still write
        self.writers_gone = False  # the log's FIFO has no writer
        self.present = self.ended = self.leaving = False
        self.gate: StartGate | None = None  # what the commands wait for, None if they were started
        self.start: Callable[[], None] = lambda: None  # starts the commands when the gate is open
        # The kernel gives PID 1 no default action for TERM.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.leave)

    def open_for_commands(self) -> None:
        """Make the FIFO `go` visible, for which container `action` waits."""
        os.rename(self.folder + "/." + GO, self.folder + "/" + GO)

    def wait_for_user(self, seconds: float) -> tuple[int, int] | None:
        """Wait for PID 1 of container `action`. Return the user and group that it reports, None without a report."""
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        if not poll.poll(max(0, int(seconds * 1000))):
            return None
        words = os.read(self.control, 4096).split()
        self.present = bool(words)
        return (int(words[1]), int(words[2])) if len(words) == 3 else None

    def hold_commands(self, gate: StartGate, start: Callable[[], None]) -> None:
        """Call `start` when the gate is open."""
        self.gate, self.start = gate, start
        self.limit = max(self.limit, MARKER_BYTES)
        self.poll.register(gate.fifo, select.POLLIN)

    def action_has_ended(self) -> bool:
        """Return whether PID 1 of container `action` was there and has ended."""
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        return any(event & select.POLLHUP for _, event in poll.poll(0))

    def send_word(self, word: bytes) -> None:
        """Write a word into the FIFO `go`, which PID 1 of container `action` reads."""
        os.write(self.go, word)

    def leave(self, *_: object) -> None:
        """Exit on TERM: at once, or after the log's end if commands may still write."""
        self.close_gate()  # no command starts in a pod that ends
        if (self.ended and self.copy.complete) or not self.present:
            os._exit(0)
        self.leaving = True

    def run(self) -> None:
        """Keep the log until it has ended and is copied."""
        while True:
            now = time.monotonic()
            gate_at = self.check_gate(now)
            copy_at = self.copy.run(now)
            if now > self.deadline or (self.ended and self.copy.complete):
                return
            times = (copy_at, gate_at, self.drain_at, self.end_at, self.deadline)
            due = [each for each in times if each is not None]
            self.poll_output()
            events = dict(self.poll.poll(max(0, int((min(due) - now) * 1000) + 1)))
            if self.log in events:
                self.receive()
            if self.control in events:
                self.obey()
            if self.gate is not None and self.gate.fifo in events:
                self.gate.read_words()
            self.check_times(time.monotonic())

    def check_gate(self, now: float) -> float | None:
        """Start the commands if the services are ready. Return when the gate needs to be checked again."""
        gate = self.gate
        if gate is None:
            return None
        for marker in gate.dial(now):
            self.append(marker)
        if gate.is_open:
            self.close_gate()
            self.start()
            return None
        if late := gate.overdue(now, present=self.present):
            write_termination(late)
            os._exit(NOT_READY)
        return gate.next_dial if gate.ports else None

    def close_gate(self) -> None:
        """Forget the gate, because the commands may start or will never start."""
        if self.gate is not None:
            self.poll.unregister(self.gate.fifo)
            self.gate = None

    def stay(self) -> None:
        """Wait for TERM or the deadline, so that the agent can read the log and the files."""
        if not self.leaving:
            time.sleep(max(0.0, self.deadline - time.monotonic()))

    def poll_output(self) -> None:
        """Let `poll` wait for standard output only while a frame is unfinished because standard output was full."""
        if self.output_watched and not self.copy.out:
            self.poll.unregister(self.copy.fd)
        elif self.copy.out:
            self.poll.register(self.copy.fd, select.POLLOUT)
        self.output_watched = bool(self.copy.out)

    def receive(self) -> None:
        """Read what the FIFO of the log holds, at most 1 MiB, and append it to the log file."""
        for _ in range(4):
            try:
                data = os.read(self.log, PIPE_BYTES)
            except BlockingIOError:
                return
            if not data:
                # No process has the FIFO open for writing. As long as that is so, each poll would return at once.
                self.poll.unregister(self.log)
                self.writers_gone = True
                if self.end_at is not None:
                    self.end()
                elif self.drain_at is not None:
                    self.answer_drained()
                return
            self.append(data)

    def append(self, data: bytes) -> None:
        room = max(0, self.limit - self.size)
        written = 0
        try:
            while written < min(len(data), room):
                written += os.write(self.file, data[written:room])
        except OSError:
            pass  # the disk is full: the bytes that are not written are counted as dropped
        self.size += written
        if written < len(data):
            self.limit = self.size  # after dropped bytes nothing more is written, not even a piece that would fit
            self.dropped += len(data) - written
        self.copy.grow(self.size, time.monotonic())

    def obey(self) -> None:
        """Read what PID 1 of container `action` wrote into the FIFO `control`, and act on it.

        PID 1 writes `here`, `loaded` and `ended`. Its exit closes the FIFO.
        """
        try:
            words = os.read(self.control, 4096).split()
        except BlockingIOError:
            return
        if not words:
            self.poll.unregister(self.control)
            self.close_gate()
            self.drain_at, self.end_at = None, time.monotonic() + LAST_SECONDS
            self.writers_gone = False
            self.poll.register(self.log, select.POLLIN)
            self.receive()
            return
        self.present = True
        if b"loaded" in words:
            remove_order(self.folder)
        if b"ended" in words:
            self.drain_at = time.monotonic() + self.drain
            if self.writers_gone:
                self.answer_drained()

    def answer_drained(self) -> None:
        self.drain_at = None
        self.send_word(b"drained\n")

    def check_times(self, now: float) -> None:
        if self.drain_at is not None and now >= self.drain_at:
            self.answer_drained()
        if self.end_at is not None and now >= self.end_at and not self.ended:
            self.end()

    def end(self) -> None:
        """Record that the log has ended: in the file `end`, which `read_log` reads, and in the final frame."""
        self.ended = True
        self.end_at = None
        part = self.log_folder + "/." + LOG_END
        with open(part, "w") as file:
            file.write(f'{{"size": {self.size}, "dropped": {self.dropped}}}\n')
        os.rename(part, self.log_folder + "/" + LOG_END)
        self.copy.ending = final_frame(self.size, self.dropped, self.copy.key)
