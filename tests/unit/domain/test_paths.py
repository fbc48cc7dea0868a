"""Untrusted paths of files that an action's commands have created, and writes of many bytes to a descriptor."""

from __future__ import annotations

import os
import threading

import pytest

from agent.domain.paths import MAX_PATH_BYTES, safe_components, write_all


@pytest.mark.parametrize("path", [b"a", b"a/b", b"...", b"-rf", b" ", b"a\n\xff", b"a" * MAX_PATH_BYTES])
def test_a_path_inside_its_folder_is_split(path: bytes) -> None:
    assert safe_components(path) == tuple(path.split(b"/"))


@pytest.mark.parametrize(
    "path",
    [b"", b"/", b"/a", b"a/", b"a//b", b".", b"./a", b"a/.", b"..", b"../a", b"a/../b", b"a\0b", b"a" * 4097],
)
def test_any_other_path_is_refused(path: bytes) -> None:
    with pytest.raises(ValueError, match="is not a path within its folder"):
        safe_components(path)


def test_more_bytes_than_a_pipe_holds_are_all_written() -> None:
    reading, writing = os.pipe()
    data = os.urandom(1 << 20)
    received = bytearray()

    def read() -> None:
        with open(reading, "rb", buffering=0) as pipe:
            while piece := pipe.read(1 << 16):
                received.extend(piece)

    reader = threading.Thread(target=read)
    reader.start()
    write_all(writing, data)
    os.close(writing)
    reader.join()
    assert received == data
