"""Read the frames that container `helper` writes to its stdout. Performs no I/O.

The helper copies the log of the commands to its stdout in frames. Each frame names the position of its bytes in the
log, so the reader needs no timestamp. A header `ESC ] 5397 ; OFFSET ; LENGTH ; CRC ; FLAGS BEL` stands directly before
the bytes. Terminals do not show such a sequence, so `kubectl logs` shows the log alone.

The bytes of a log may look like headers. A frame therefore counts only if its checksum holds, which begins with a key
that the commands cannot read. The node may cut frames anywhere, and a stream may begin within a frame. A frame that is
not whole is never returned. The caller sees its absence in the position of the next frame.

A `FrameReader` lives as long as one response. It buffers at most one frame.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

LEAD = b"\x1b]5397;"
HEADER = re.compile(rb"\x1b\]5397;(\d{1,16});(\d{1,6});([0-9a-f]{1,8});(?:(p?)|e;(\d{1,16}))\x07")
# Maximum number of bytes in a header.
MAX_HEADER = 80
# Maximum number of bytes of log in a frame.
MAX_PAYLOAD = 64 * 1024
# Maximum number of checksums in a row that may fail. Each failed checksum costs as much CPU time as a whole frame.
# After more failures the reader gives the stream up.
MAX_FAILURES = 64
CRLF, DOUBLED = b"\r\n", b"\r\r\n"


@dataclass(frozen=True, slots=True)
class Frame:
    """A part of the log. `dropped` is set in the last frame alone: the number of bytes over the limit of the log."""

    offset: int
    data: bytes
    dropped: int | None = None

    @property
    def end(self) -> int:
        """Return the position after the last byte."""
        return self.offset + len(self.data)


class FrameReader:
    """Reads the frames of one response. `failures` counts the failed checksums since the last whole frame."""

    def __init__(self, key: int) -> None:
        self.key = key
        self.failures = 0
        self.parts: list[bytes] = []
        self.size = 0
        # Minimum number of bytes in `parts` with which a new search can find a frame.
        self.needed = 1

    @property
    def pending(self) -> bool:
        """Whether the bytes so far end within a frame, or within something that looks like a frame."""
        return self.size > 0

    @property
    def unusable(self) -> bool:
        """Whether too many checksums have failed. The caller must then stop reading this response."""
        return self.failures > MAX_FAILURES

    def feed(self, data: bytes) -> list[Frame]:
        """Process the next bytes of the response. Return the frames that are complete."""
        self.parts.append(data)
        self.size += len(data)
        return self.search() if self.size >= self.needed else []

    def resync(self) -> list[Frame]:
        """Give up the frame that is not complete, and return the frames behind its header.

        The caller calls this method when the rest of the frame does not arrive in time. The header may belong to a
        frame that the node has cut.
        """
        frames = self.search(give_up=True)
        self.parts, self.size, self.needed = [], 0, 1
        return frames

    def search(self, *, give_up: bool = False) -> list[Frame]:
        """Return the complete frames of the buffered bytes, and keep the bytes that may begin another frame."""
        text = b"".join(self.parts)
        frames: list[Frame] = []
        at, self.needed = 0, 1
        while not self.unusable:
            start = text.find(LEAD, at)
            if start < 0:
                at = start_of_partial_lead(text, at)
                break
            found = self.read_frame(text, start)
            if isinstance(found, int) and not give_up:
                at, self.needed = start, found - start
                break
            if found is None or isinstance(found, int):
                at = start + 1
                continue
            frame, at = found
            self.failures = 0
            frames.append(frame)
        self.parts = [text[at:]] if at < len(text) else []
        self.size = len(text) - at
        self.needed = max(self.needed, self.size + 1)
        return frames

    def read_frame(self, text: bytes, start: int) -> tuple[Frame, int] | int | None:
        """Return the frame whose header begins at `start`, and its end.

        Return None if no frame begins there, or the number of bytes that the text must have until this is known.
        """
        header = HEADER.match(text, start)
        if header is None:
            cut_off = len(text) - start < MAX_HEADER and b"\x07" not in text[start:]
            return len(text) + 1 if cut_off else None
        offset, length, checksum = int(header[1]), int(header[2]), int(header[3], 16)
        if length > MAX_PAYLOAD:
            return None
        body = header.end()
        if len(text) < body + length:
            return body + length
        data, end = text[body : body + length], body + length
        if zlib.crc32(data, self.key) != checksum:
            restored = restore(text, body, length)
            if isinstance(restored, int):
                return restored
            data, end = restored
            if end == body + length or zlib.crc32(data, self.key) != checksum:
                self.failures += 1
                return None
        return Frame(offset, data, None if header[5] is None else int(header[5])), end


def restore(text: bytes, body: int, length: int) -> tuple[bytes, int] | int:
    """Return `length` bytes of log from `body` on, and their end in the text, for a node that has kept every CR.

    The helper writes CR LF as CR CR LF, because containerd removes a CR before LF. Other container runtimes do not.
    Return the number of bytes that the text must have, if the text is too short.
    """
    end = body + length
    while (wider := body + length + text.count(DOUBLED, body, end)) > end:
        if wider > len(text):
            return wider
        end = wider
    if text[end - 2 : end] == DOUBLED[:2]:
        # The LF of the last CR LF decides whether the CR before belongs to the log.
        if end == len(text):
            return end + 1
        end += text[end : end + 1] == b"\n"
    return text[body:end].replace(DOUBLED, CRLF), end


def start_of_partial_lead(text: bytes, since: int) -> int:
    """Return where the beginning of a header stands at the end of the text.

    If no header begins there, return the length of the text.
    """
    at = text.rfind(LEAD[:1], max(since, len(text) - len(LEAD) + 1))
    return at if at >= 0 and LEAD.startswith(text[at:]) else len(text)
