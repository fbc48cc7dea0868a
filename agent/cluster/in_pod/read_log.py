"""Send bytes of the log file to standard output: the errand `log`, one exec in container `helper`.

The output is a sequence of JSON lines: `{"at": OFFSET, "bytes": N}`, followed by N raw bytes of the file;
`{"now": SIZE}` at the present end of the file, if the argument is `once`; `{"end": {"size": SIZE, "dropped": N}}` at
the end of the log; and `{"error": TEXT}`. `packaging` sends this source with the exec (Python 3.9, standard library).
"""

from __future__ import annotations

import os
import time

from agent.cluster.in_pod.order import LOG_END, LOG_FILE, enlarge_pipe

BLOCK = 256 * 1024  # largest number of raw bytes after one JSON line
PAUSE = 0.04  # seconds between two looks at the file; handling a small block costs the agent as much as a large one
SMALL = 64 * 1024  # a block of fewer bytes is followed by a pause


def write_all(*pieces: bytes) -> None:
    """Write PIECES to standard output."""
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(1, rest) :]


def read_end(log_folder: str) -> bytes:
    """Return the JSON that describes the log's end; b"" if the log has not ended."""
    try:
        with open(log_folder + "/" + LOG_END, "rb") as file:
            return file.read().strip()
    except FileNotFoundError:
        return b""


def send_log(log_folder: str, offset: int, follow: bool) -> None:
    """Send the file from OFFSET to its present end, or with FOLLOW to the end of the log."""
    file = os.open(log_folder + "/" + LOG_FILE, os.O_RDONLY | os.O_CLOEXEC)
    enlarge_pipe(1)
    size = os.fstat(file).st_size
    if offset > size:
        write_all(b'{"error": "the log has %d bytes, and byte %d was asked for"}\n' % (size, offset))
        return
    while True:
        end = read_end(log_folder)  # asked before the file is read: after the log's end the file no longer grows
        while data := os.pread(file, BLOCK if follow else min(BLOCK, size - offset), offset):
            write_all(b'{"at": %d, "bytes": %d}\n' % (offset, len(data)), data)
            offset += len(data)
            if follow and not end and len(data) < SMALL:
                break
        if end and offset == os.fstat(file).st_size:
            write_all(b'{"end": ' + end + b"}\n")
            return
        if not follow:
            write_all(b'{"now": %d}\n' % offset)
            return
        time.sleep(PAUSE)


def main(arguments: list[str]) -> None:
    """Run with the arguments LOG_FOLDER OFFSET and `follow` or `once`."""
    log_folder, offset, mode = arguments
    send_log(log_folder, int(offset), mode == "follow")
