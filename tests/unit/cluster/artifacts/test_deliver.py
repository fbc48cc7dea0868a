"""Files on their way into a pod: the agent's side, with the real program as the other side."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from agent.cluster import packaging
from agent.cluster.api.exec import ExecStream
from agent.cluster.artifacts.deliver import deliver, deliver_command
from agent.cluster.environment.transfers import with_urls
from agent.domain.actions import Key
from agent.domain.artifacts import FileData, InputFile
from agent.domain.errors import ActionFailed, ClusterError, Reason, SchedulerError
from tests.fakes.object_store import fake_store
from tests.unit.cluster.artifacts.local_exec import LocalExec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path


@pytest.fixture
def stream(tmp_path: Path) -> LocalExec:
    for name in ("workspace", "order", "log"):
        (tmp_path / name).mkdir()
    (tmp_path / "order" / "setup").touch()
    (tmp_path / "log" / "user").touch()
    # A regular file in place of the FIFO keeps the word that starts the commands.
    (tmp_path / "order" / "go").touch()
    argv = deliver_command(str(tmp_path / "workspace"), str(tmp_path / "order" / "go"), snapshot=True)
    places = {packaging.SNAPSHOT: str(tmp_path / "snapshot"), packaging.LOG_FOLDER: str(tmp_path / "log")}
    return LocalExec([sys.executable, *(places.get(word, word) for word in argv[1:])])


def named(path: bytes, data: bytes, mode: int = 0o644) -> InputFile:
    return InputFile(path, mode, len(data), hashlib.sha256(data).digest())


async def items(*files: tuple[InputFile, bytes], error: Exception | None = None) -> AsyncIterator[InputFile | FileData]:
    for file, data in files:
        yield file
        for at in range(0, len(data), 100_000):
            yield FileData(data[at : at + 100_000])
    if error is not None:
        raise error


async def send(stream: LocalExec, *files: tuple[InputFile, bytes], **more: Any) -> None:
    async with asyncio.timeout(30):
        await deliver(cast(ExecStream, stream), items(*files, **more))


def read(path: bytes) -> bytes:
    with open(path, "rb") as file:
        return file.read()


async def test_files_arrive_and_the_commands_start(stream: LocalExec, tmp_path: Path) -> None:
    files = {f"d/{number}".encode(): os.urandom(number * 1000) for number in range(50)} | {b"\xff": os.urandom(300_000)}
    await send(stream, *((named(path, data), data) for path, data in files.items()))
    top = os.fsencode(tmp_path / "workspace")
    for path, data in files.items():
        assert read(os.path.join(top, path)) == data
    assert (tmp_path / "order" / "go").read_bytes() == b"run\n"
    assert stream.sent < len(files), "small files share a frame"


async def test_files_of_one_object_share_a_line(stream: LocalExec, tmp_path: Path) -> None:
    pack = os.urandom(300_000)
    files = [
        InputFile(b"d/%d\xff" % at, 0o644, 100, hashlib.sha256(pack[at : at + 100]).digest(), "s3://b/p", at)
        for at in range(0, len(pack), 100)
    ]

    class Issuer:
        ca = ""

        async def input_urls(self, _: Key, uris: Sequence[str]) -> list[str]:
            assert uris == ["s3://b/p"], "one URL is enough"
            return [f"{store.url}/pack?s"]

    async def named() -> AsyncIterator[InputFile | FileData]:
        for file in reversed(files):
            yield file

    with fake_store() as store:
        store.objects["/pack?s"] = pack
        async with asyncio.timeout(30):
            await deliver(cast(ExecStream, stream), with_urls(cast("Any", Issuer()), Key("a"), named()))
        assert len(store.requests) == 3, "one for each line"
    for file in files:
        found = read(os.path.join(os.fsencode(tmp_path / "workspace"), file.path))
        assert found == pack[file.offset : file.offset + 100]
    assert stream.bytes < 50 * len(files), "the API server sees at most 50 bytes for each file"


@pytest.mark.parametrize(
    ("path", "wrong_hash", "reason"),
    [(b"../out", False, Reason.INVALID_CONFIGURATION), (b"a", True, Reason.INTERNAL)],
)
async def test_what_no_repetition_can_mend_fails_the_action(
    stream: LocalExec, path: bytes, wrong_hash: bool, reason: Reason, tmp_path: Path
) -> None:
    content = b"y" * 1_000_000
    file = named(path, content)
    file = replace(file, sha256=bytes(32)) if wrong_hash else file
    with pytest.raises(ActionFailed) as failure:
        await send(stream, (file, content), *((named(b"b", b"z" * 100_000), b"z" * 100_000) for _ in range(30)))
    assert failure.value.reason is reason
    assert (tmp_path / "order" / "go").read_bytes() == b""


async def test_an_error_of_the_scheduler_and_a_cut_end_the_copy(stream: LocalExec, tmp_path: Path) -> None:
    with pytest.raises(SchedulerError, match="gone"):
        await send(stream, (named(b"a", b"x"), b"x"), error=SchedulerError("gone"))
    stream.cut_after, stream.sent = 2, 0
    with pytest.raises(ClusterError) as failure:
        await send(stream, (named(b"a", b"x" * 10_000_000), b"x" * 10_000_000))
    assert failure.value.retryable
    assert (tmp_path / "order" / "go").read_bytes() == b""
    assert not (tmp_path / "workspace" / "a").exists()
