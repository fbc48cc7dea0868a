"""The copy of files from a pod is complete or raises an error, over streams that break in every way."""

from __future__ import annotations

import ast
import asyncio
import binascii
import os
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.cluster import packaging
from agent.cluster.api.exec import ExecDeadline, ExecError
from agent.cluster.artifacts import collect as collect_module
from agent.cluster.artifacts.archive_reader import ArchiveLimits
from agent.domain.actions import ArtifactRules
from agent.domain.artifacts import FileData, FileEnd, FileStart
from agent.domain.events import ArtifactSummary, LeftOut
from agent.domain.observations import Collected

LIMITS = ArchiveLimits(files=100, file_bytes=1 << 20, total_bytes=1 << 22, seconds=60)


@dataclass
class Pod:
    """A stand-in for container `helper`.

    It streams the output of the real collector, the program that sends artifacts out of a pod. It fails as the test has
    set.
    """

    workspace: Path
    snapshot: Path
    cut_at: int | None = None
    exit_code: int = 0
    failure: ExecError | None = None
    frame: int = 1 << 15
    stderr: bytes = b""
    commands: list[list[str]] = field(default_factory=list)
    frames_read: int = 0
    silent: bool = False
    left: bool = False

    @asynccontextmanager
    async def open(self, command: list[str], seconds: float) -> AsyncIterator[Pod]:
        assert seconds == LIMITS.seconds
        self.commands.append(command)
        program = [sys.executable, *command[1:]]
        program[program.index(packaging.SNAPSHOT)] = str(self.snapshot)
        process = await asyncio.create_subprocess_exec(*program, stdout=subprocess.PIPE)
        self.data = (await process.communicate())[0][: self.cut_at]
        assert process.returncode == 0
        try:
            yield self
        finally:
            self.left = True

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        for at in range(0, len(self.data), self.frame):
            self.frames_read += 1
            yield memoryview(self.data)[at : at + self.frame]
            if self.silent:
                await asyncio.Event().wait()
        if self.failure:
            raise self.failure

    async def collect(self, rules: ArtifactRules = ArtifactRules()) -> tuple[dict[bytes, bytes], Collected]:  # noqa: B008
        found: dict[bytes, bytes] = {}
        name = b""
        async for item in collect_module.collect(self.open, rules, LIMITS, workspace=str(self.workspace)):
            if isinstance(item, FileStart):
                name, found[item.path] = item.path, b""
            elif isinstance(item, FileData):
                found[name] += item.data
            elif isinstance(item, Collected):
                return found, item
        raise AssertionError("no summary")


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    made = Pod(tmp_path / "workspace", tmp_path / "snapshot")
    made.workspace.mkdir()
    made.snapshot.write_bytes(b"")
    return made


async def test_files_and_their_summary(pod: Pod) -> None:
    (pod.workspace / "one").write_bytes(b"1" * 100_000)
    (pod.workspace / "two").write_bytes(b"2")
    (pod.workspace / "link").symlink_to("two")
    found, collected = await pod.collect()
    assert found == {b"one": b"1" * 100_000, b"two": b"2"}
    assert collected.summary == ArtifactSummary(2, 100_001, (LeftOut(b"link", "a symbolic link"),), 1)
    assert collected.refused == ""
    assert pod.left


async def test_an_empty_collection_is_a_result(pod: Pod) -> None:
    assert await pod.collect() == ({}, Collected(ArtifactSummary()))


async def test_a_stream_that_breaks_anywhere_is_broken_whatever_the_status(pod: Pod) -> None:
    (pod.workspace / "one").write_bytes(os.urandom(5000))
    await pod.collect()
    whole = len(pod.data)
    for tenth in range(10):
        pod.cut_at = whole * tenth // 10
        with pytest.raises(collect_module.CollectionBroken, match="did not arrive whole") as raised:
            await pod.collect()
        assert raised.value.retryable
    pod.cut_at = whole - 1024
    with pytest.raises(collect_module.CollectionBroken):
        await pod.collect()


async def test_all_bytes_without_a_status_are_broken(pod: Pod) -> None:
    pod.failure = ExecError("cut", retryable=True)
    with pytest.raises(collect_module.CollectionBroken, match="cut") as raised:
        await pod.collect()
    assert raised.value.retryable


async def test_all_bytes_with_another_exit_code_are_broken(pod: Pod) -> None:
    pod.exit_code, pod.stderr = 137, b"Traceback ...\nMemoryError\xff\n"
    with pytest.raises(collect_module.CollectionBroken, match=r"ended with 137: .*\n.*MemoryError") as raised:
        await pod.collect()
    assert raised.value.retryable


async def test_a_collection_over_its_deadline_is_not_retryable(pod: Pod) -> None:
    pod.failure = ExecDeadline("too long")
    with pytest.raises(collect_module.CollectionBroken) as raised:
        await pod.collect()
    assert not raised.value.retryable


async def test_a_collection_that_falls_silent_is_broken(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect_module, "SILENT_SECONDS", 0.2)
    pod.silent = True
    with pytest.raises(collect_module.CollectionBroken, match=r"no file came for 0\.2 s") as raised:
        await pod.collect()
    assert raised.value.retryable
    assert pod.left


async def test_changing_files_are_broken(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    (pod.workspace / "log").write_bytes(b"x")
    program = CHANGES + packaging.collect_files_program()[-1]
    monkeypatch.setattr(packaging, "collect_files_program", lambda: (*packaging.PYTHON, program))
    with pytest.raises(collect_module.CollectionBroken, match="changed while they were copied: log"):
        await pod.collect()


# Python code that runs before the collector. It makes the second `os.fstat` of a file return another modification time
# than the first `os.fstat`.
CHANGES = """
import os, itertools
look, turns = os.fstat, itertools.count()
def fstat(fd):
    if next(turns) == 2:
        os.utime(fd, (1, 1))
    return look(fd)
os.fstat = fstat
"""


async def test_missing_declared_files_are_reported(pod: Pod) -> None:
    (pod.workspace / "there").write_bytes(b"x")
    found, collected = await pod.collect(ArtifactRules(paths=("there", "gone/*.xml")))
    assert found == {b"there": b"x"}
    assert collected.refused == "no file for the artifact paths 'gone/*.xml'"

    (pod.workspace / "big").write_bytes(bytes(LIMITS.file_bytes + 1))
    found, collected = await pod.collect(ArtifactRules(paths=("*",)))
    assert collected.refused == "artifact 'big': 1048577 bytes, over the limit of 1048576 for a file"


async def test_a_declared_path_behind_a_link_names_the_link(pod: Pod) -> None:
    (pod.workspace / "build-1").mkdir()
    (pod.workspace / "build-1" / "app").write_bytes(b"x")
    (pod.workspace / "dist").symlink_to("build-1")
    (pod.workspace / "other").symlink_to("build-1")
    _, collected = await pod.collect(ArtifactRules(("dist/**", "dist/app", "build-1/*")))
    assert collected.refused == ("no file for the artifact paths 'dist/**', 'dist/app'; links are not followed: 'dist'")
    _, collected = await pod.collect(ArtifactRules(("nothing/**",)))
    assert collected.refused == "no file for the artifact paths 'nothing/**'"


async def test_the_default_set_is_never_missing(pod: Pod) -> None:
    (pod.workspace / "big").write_bytes(bytes(LIMITS.file_bytes + 1))
    found, collected = await pod.collect(ArtifactRules(exclude=("nothing",)))
    assert (found, collected.refused) == ({}, "")
    assert collected.summary.left_out == (LeftOut(b"big", "1048577 bytes, over the limit of 1048576 for a file"),)


async def test_a_slow_consumer_slows_the_stream(pod: Pod) -> None:
    (pod.workspace / "big").write_bytes(bytes(LIMITS.file_bytes))
    async with aclosing(
        collect_module.collect(pod.open, ArtifactRules(), LIMITS, workspace=str(pod.workspace))
    ) as items:
        async for item in items:
            assert pod.frames_read <= 2
            if isinstance(item, FileData):
                break
    assert pod.left


async def test_a_file_is_never_in_memory_as_a_whole(pod: Pod) -> None:
    (pod.workspace / "big").write_bytes(bytes(LIMITS.file_bytes))
    async with aclosing(
        collect_module.collect(pod.open, ArtifactRules(), LIMITS, workspace=str(pod.workspace))
    ) as items:
        sizes = [len(item.data) async for item in items if isinstance(item, FileData)]
    assert sum(sizes) == LIMITS.file_bytes
    assert max(sizes) <= pod.frame


async def test_every_file_ends_with_its_hash(pod: Pod) -> None:
    for name in ("a", "b", "c"):
        (pod.workspace / name).write_bytes(b"")
    async with aclosing(
        collect_module.collect(pod.open, ArtifactRules(), LIMITS, workspace=str(pod.workspace))
    ) as items:
        kinds = [type(item) async for item in items]
    assert kinds == [FileStart, FileEnd] * 3 + [Collected]


# ---- command lines for the pod


def test_commands_are_short_enough_for_a_url() -> None:
    log = packaging.log_command(7, follow=True)
    assert log[:3] == ["python3", "-I", "-S"]
    assert log[-3:] == ["/log", "7", "follow"]
    collect = collect_module.collect_command(ArtifactRules(("a", "b"), ("c",)), LIMITS, workspace="/workspace")
    assert collect[-9:] == [packaging.SNAPSHOT, "100", "1048576", "4194304", "45", "2", "a", "b", "c"]
    assert sum(map(len, log)) < 4 * 1024
    assert sum(map(len, collect)) < 8 * 1024
    assert "\n" not in "".join(log + collect)


@pytest.mark.parametrize(
    "command",
    [
        packaging.helper_program("", ""),
        packaging.collect_files_program(),
        packaging.receive_tree_program(),
        packaging.receive_inputs_program(),
        packaging.read_log_program(),
    ],
    ids=["helper", "collect", "fill", "inputs", "log"],
)
def test_programs_run_on_the_oldest_supported_python(command: tuple[str, ...]) -> None:
    _, encoded, _ = command[-1].split("'")
    text = zlib.decompress(binascii.a2b_base64(encoded)).decode()
    ast.parse(text, feature_version=(3, 9))
    assert '"""' not in text
    assert "agent." not in text
