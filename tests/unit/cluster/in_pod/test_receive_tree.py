"""The program that unpacks a tar archive from stdin into the workspace. In a pod it runs in container `helper`."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

from agent.cli.working_tree import pack
from agent.cluster import packaging


def fifo(folder: Path) -> int:
    """Create the file `setup` and the FIFO `go`, as the helper does. Return the descriptor of the open FIFO."""
    (folder / "setup").touch()
    os.mkfifo(folder / "go")
    return os.open(folder / "go", os.O_RDWR | os.O_NONBLOCK)


def arrived(go: int) -> bytes:
    try:
        return os.read(go, 100)
    except BlockingIOError:
        return b""


def test_the_commands_may_begin_only_after_the_whole_tree_has_arrived(tmp_path: Path) -> None:
    tree, workspace = tmp_path / "tree", tmp_path / "workspace"
    go = fifo(tmp_path)
    (tree / "d").mkdir(parents=True)
    workspace.mkdir()
    (tree / "d" / "program").write_text("#!/bin/sh\n")
    (tree / "d" / "program").chmod(0o700)
    (tree / "outward").symlink_to("/etc/hostname")
    (tree / "big").write_bytes(bytes(range(256)) * 5000)
    archive = tmp_path / "t.tar"
    pack(tree, archive)
    command = [
        sys.executable,
        *packaging.receive_tree_program()[1:],
        str(workspace),
        str(tmp_path / "snapshot"),
        str(tmp_path / "go"),
    ]
    size = archive.stat().st_size
    with subprocess.Popen([*command, str(size)], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        data = archive.read_bytes()
        process.stdin.write(data[:-1])
        process.stdin.flush()
        assert process.poll() is None
        assert not arrived(go)
        # An exec cannot close the stdin of its program. The program knows from its size argument that this is the last
        # byte.
        process.stdin.write(data[-1:])
        process.stdin.flush()
        assert process.wait(30) == 0, process.stderr and process.stderr.read()
    assert arrived(go) == b"run\n"
    assert (workspace / "big").read_bytes() == (tree / "big").read_bytes()
    assert (workspace / "outward").readlink() == Path("/etc/hostname")
    assert stat.S_IMODE((workspace / "d" / "program").stat().st_mode) == 0o777
    assert stat.S_IMODE((workspace / "big").stat().st_mode) == 0o666
    assert b"big" in (tmp_path / "snapshot").read_bytes()


def test_an_invalid_archive_is_an_error_and_the_commands_do_not_begin(tmp_path: Path) -> None:
    go = fifo(tmp_path)
    command = [
        sys.executable,
        *packaging.receive_tree_program()[1:],
        str(tmp_path),
        str(tmp_path / "s"),
        str(tmp_path / "go"),
        "4",
    ]
    done = subprocess.run(command, input=b"nope", capture_output=True, check=False)
    assert done.returncode != 0
    assert b"Error" in done.stderr.splitlines()[-1]
    assert not arrived(go)
