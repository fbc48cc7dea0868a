"""Files on their way from a pod into an object store: the agent's side, with the real program and a scripted store."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
import zlib
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast
from urllib.parse import quote, unquote

import pytest

from agent.cluster import packaging
from agent.cluster.api.exec import ExecStream
from agent.cluster.artifacts.archive_reader import ArchiveLimits
from agent.cluster.artifacts.collect import CollectionBroken
from agent.cluster.artifacts.objects import collect_objects, objects_command
from agent.cluster.in_pod.files.collect_files import Output
from agent.cluster.in_pod.objects import outgoing, send_objects, store_client
from agent.cluster.in_pod.objects.file_records import decode_records, encode_records
from agent.domain.actions import ArtifactRules
from agent.domain.artifacts import FileEnd, FilePart, FileStart, StoredObject
from agent.domain.errors import Reason
from agent.domain.events import ArtifactSummary
from agent.domain.observations import Collected
from agent.objects.errors import StoreError
from agent.objects.grants import StoredName, UploadGrants, WantedObject, object_name, pack_name
from tests.fakes.object_store import CHECKSUM, FakeStore, fake_store
from tests.unit.cluster.artifacts.local_exec import LocalExec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

LIMITS = ArchiveLimits(files=1000, file_bytes=1 << 28, total_bytes=1 << 29, seconds=30)


@dataclass
class Grants:
    """Grants for a store that checks no signature."""

    url: str
    asked: int = 0
    completed: int = 0
    aborted: int = 0
    crossed: int = 0
    signed: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ"))

    async def requests(self, batch: Sequence[WantedObject]) -> list[list[dict[str, object]]]:
        self.asked += 1
        return [[self.request(each, *part) for part in enumerate(each.parts, 1)] for each in batch]

    def request(self, wanted: WantedObject, number: int, digest: bytes) -> dict[str, object]:
        return {
            "url": f"{self.url}/{quote(name_of(wanted))}?part={number}&X-Amz-Date={self.signed}",
            "headers": {CHECKSUM: base64.b64encode(digest).decode()},
        }

    async def complete(self, wanted: WantedObject, etags: list[str]) -> StoredName:
        assert len(etags) == len(wanted.parts)
        self.completed += 1
        return StoredName(f"s3://b/{name_of(wanted)}", etags[-1])

    async def abort(self) -> None:
        self.aborted += 1


def name_of(wanted: WantedObject) -> str:
    return object_name(wanted.path) if wanted.path else pack_name(wanted.sha256)


@pytest.fixture
def store() -> Iterator[FakeStore]:
    with fake_store() as store:
        yield store


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "workspace").mkdir()
    (tmp_path / "snapshot").write_bytes(b"")
    return tmp_path / "workspace"


async def collect(
    store: FakeStore, workspace: Path, *paths: str, limits: ArchiveLimits = LIMITS, packs: bool = False
) -> tuple[list[FilePart], Collected, Grants]:
    command = objects_command(ArtifactRules(paths), limits, workspace=str(workspace), packs=packs)
    snapshot = str(workspace.parent / "snapshot")
    argv = [sys.executable, *(snapshot if word == packaging.SNAPSHOT else word for word in command[1:])]
    grants, found, end = Grants(store.url), [], None
    stream = LocalExec(argv)
    async for item in collect_objects(cast(ExecStream, stream), cast(UploadGrants, grants), limits):
        if isinstance(item, Collected):
            end = item
        else:
            found.append(item)
    assert end is not None
    assert grants.aborted == 1
    grants.crossed = stream.bytes
    return found, end, grants


async def test_files_go_into_the_store_with_their_hashes(store: FakeStore, workspace: Path) -> None:
    files = {f"d/{number}".encode(): os.urandom(number * 100) for number in range(40)} | {b"\xff \n%": b"odd"}
    (workspace / "d").mkdir()
    for path, data in files.items():
        with open(os.path.join(os.fsencode(workspace), path), "wb") as file:  # noqa: ASYNC230 - a test
            file.write(data)
    (workspace / "link").symlink_to("d/1")
    found, collected, grants = await collect(store, workspace)
    starts = {part.path: part for part in found if isinstance(part, FileStart)}
    assert {path: part.size for path, part in starts.items()} == {path: len(data) for path, data in files.items()}
    ends = [part.sha256 for part in found if isinstance(part, FileEnd)]
    assert sorted(ends) == sorted(hashlib.sha256(data).digest() for data in files.values())
    names = [part.uri for part in found if isinstance(part, StoredObject)]
    assert "s3://b/files/%FF %0A%25" in names
    assert sorted(store.objects.values()) == sorted(files.values())
    assert collected.summary.files == 41
    assert [each.path for each in collected.summary.left_out] == [b"link"]
    assert grants.completed == 41
    assert 1 < store.most <= store_client.CONNECTIONS


@pytest.mark.parametrize(
    ("faults", "requests", "asked"),
    [
        pytest.param([503, "cut", None, 429], 5, 1, id="three requests failed"),
        pytest.param(["cut", None, "cut", "cut"], 5, 1, id="a part broke three times"),
        pytest.param([None, 403], 3, 2, id="a URL expired in mid-upload"),
        pytest.param([None, "flip"], 3, 2, id="a bit changed on the way"),
    ],
)
async def test_a_large_file_goes_in_parts(
    store: FakeStore, workspace: Path, faults: list[int | str | None], requests: int, asked: int
) -> None:
    data = os.urandom(1 << 20) * 65
    (workspace / "big").write_bytes(data)
    store.faults.extend(faults)
    found, collected, grants = await collect(store, workspace, "big")
    assert [type(part) for part in found] == [FileStart, StoredObject, FileEnd]
    assert sorted(map(len, store.objects.values())) == [1 << 20, 64 << 20]
    assert len(store.requests) == requests, "only what failed was sent again"
    assert grants.asked == asked
    assert collected == Collected(ArtifactSummary(1, len(data)))


async def test_an_answer_before_the_end_of_the_upload_is_read(store: FakeStore, workspace: Path) -> None:
    (workspace / "big").write_bytes(bytes(32 << 20))
    store.faults.append("early")
    _, collected, grants = await collect(store, workspace, "big")
    assert grants.asked == 2, "the store has refused the URL, and then closed the connection"
    assert collected.summary.files == 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (403, "a: HTTP 403 Scripted"),
        (404, "a: HTTP 404 Scripted"),
        (503, "a: HTTP 503 Scripted"),
        ("cut", "a: RemoteDisconnected: "),
        ("stall", "a: (TimeoutError|timeout): "),
        ("flip", "a: HTTP 400 BadDigest"),
    ],
)
async def test_a_store_that_does_not_take_a_file_is_unavailable(
    store: FakeStore, workspace: Path, fault: int | str, message: str
) -> None:
    (workspace / "a").write_bytes(b"content")
    store.faults.extend([fault] * 50)
    with pytest.raises(StoreError, match=message) as failure:
        await collect(store, workspace, "a", limits=replace(LIMITS, seconds=2.2))
    assert failure.value.reason is Reason.OBJECT_STORE_UNAVAILABLE
    assert failure.value.retryable
    assert "X-Amz-Date" not in failure.value.message


async def test_after_a_part_has_failed_for_good_no_other_file_is_sent(store: FakeStore, workspace: Path) -> None:
    for number in range(send_objects.BATCH_FILES):
        (workspace / f"{number}").write_bytes(b"content")
    store.faults.extend([404] * 50)
    with pytest.raises(StoreError, match="HTTP 404"):
        await collect(store, workspace)
    assert len(store.requests) <= store_client.CONNECTIONS


@pytest.mark.parametrize(("clock", "when"), [(7200.0, "ago"), (-7200.0, "in the future")])
async def test_an_error_names_clocks_that_differ(store: FakeStore, workspace: Path, clock: float, when: str) -> None:
    (workspace / "a").write_bytes(b"content")
    store.clock = clock
    store.faults.extend([403] * 50)
    with pytest.raises(StoreError, match=rf"HTTP 403 Scripted \(by the store's clock, .* 7[12]\d\d s {when}: compare"):
        await collect(store, workspace, "a")


async def test_limits_and_missing_paths_are_as_without_a_store(store: FakeStore, workspace: Path) -> None:
    (workspace / "a").write_bytes(b"content")
    _, collected, _ = await collect(store, workspace, "a", "b/*")
    assert collected.refused == "no file for the artifact paths 'b/*'"
    small = ArchiveLimits(files=1000, file_bytes=3, total_bytes=1 << 20, seconds=30)
    _, collected, _ = await collect(store, workspace, "a", limits=small)
    assert "over the limit of 3" in collected.refused


def packed(found: list[FilePart], store: FakeStore) -> dict[bytes, tuple[int, bytes]]:
    """Return the mode and the content of each file, read from the objects of the store."""
    objects = {f"s3://b{name.partition('?')[0]}": data for name, data in store.objects.items()}
    files = {}
    for start, stored, end in zip(found[::3], found[1::3], found[2::3], strict=True):
        assert isinstance(start, FileStart)
        assert isinstance(stored, StoredObject)
        assert isinstance(end, FileEnd)
        data = objects[unquote(stored.uri)][stored.offset : stored.offset + start.size]
        assert hashlib.sha256(data).digest() == end.sha256
        files[start.path] = (start.mode, data)
    return files


@pytest.mark.parametrize(("faults", "asked"), [([], 1), ([503, None, "cut"], 1), ([403], 2), (["flip"], 2)])
async def test_small_files_share_objects(
    store: FakeStore, workspace: Path, faults: list[int | str | None], asked: int
) -> None:
    files = {f"target/module/{number:05}.class".encode(): os.urandom(number) for number in range(2500)}
    files |= {b"\xff \n%": b"odd", b"large": os.urandom(outgoing.PACKED_BYTES + 1)}
    (workspace / "target" / "module").mkdir(parents=True)
    for path, data in files.items():
        place = os.path.join(os.fsencode(workspace), path)
        with open(place, "wb") as file:  # noqa: ASYNC230 - a test
            file.write(data)
        os.chmod(place, 0o640)
    store.faults.extend(faults)
    found, collected, grants = await collect(store, workspace, limits=replace(LIMITS, files=3000), packs=True)
    assert packed(found, store) == {path: (0o640, data) for path, data in files.items()}
    assert (collected.summary.files, grants.asked) == (len(files), asked)
    names = {part.uri for part in found if isinstance(part, StoredObject)}
    assert len(names) == grants.completed == 4
    assert "s3://b/files/large" in names
    assert grants.crossed < asked * 50 * len(files), "the API server sees at most 50 bytes for each file"


async def test_few_small_files_are_objects_with_their_own_names(store: FakeStore, workspace: Path) -> None:
    for number in range(send_objects.BATCH_FILES):
        (workspace / f"{number}").write_bytes(b"content %d" % number)
    found, _, grants = await collect(store, workspace, packs=True)
    names = {part.uri for part in found if isinstance(part, StoredObject)}
    assert names == {f"s3://b/files/{number}" for number in range(send_objects.BATCH_FILES)}
    assert grants.asked == 1
    assert len(packed(found, store)) == send_objects.BATCH_FILES


def test_a_small_file_that_changes_while_it_is_read_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"content")
    facts = path.stat()
    path.write_bytes(b"changed")
    os.utime(path, ns=(0, 0))
    sender = send_objects.ObjectSender(Output(1), [10, 1000, 1000, 10], [], [], set())
    sender.packs = True
    with open(path, "rb") as file:
        sender.send_file("a", file.fileno(), facts)
    assert sender.left_out == [("a", "changed while it was read")]
    assert (sender.files, sender.bytes, sender.pack.records) == (0, 0, [])


BOMB = zlib.compress(bytes(9 << 20)).replace(b"=", b"=e").replace(b"\n", b"=n")
RECORD = ("a", 0o644, 7, bytes(32), 0)


@pytest.mark.parametrize(
    ("table", "size", "message"),
    [
        pytest.param(encode_records([RECORD]), 8, "its files do not fill it", id="another size than its files"),
        pytest.param(
            encode_records([(*RECORD[:4], 7 * at) for at in range(1025)]), 7 * 1025, "too large", id="too many files"
        ),
        pytest.param(encode_records([("../a", *RECORD[1:])]), 7, "ArchiveError", id="a path outside the workspace"),
        pytest.param(encode_records([RECORD])[:-1], 7, "differ in length", id="a hash is cut"),
        pytest.param(b"x\x9c", 7, "cut", id="a table is cut"),
        pytest.param(b"x", 7, "cut", id="no table"),
        pytest.param(BOMB, 7, "too large", id="a table is a bomb"),
    ],
)
async def test_a_pack_that_breaks_the_protocol_is_refused(
    store: FakeStore, tmp_path: Path, table: bytes, size: int, message: str
) -> None:
    asked = {"want": [{"id": 0, "size": size, "sha256": "00" * 32, "parts": ["00" * 32]}]}
    (tmp_path / "output").write_bytes(b"#" + table + b"\n" + json.dumps(asked).encode() + b"\n")
    command = ["cat", str(tmp_path / "output")]
    grants = Grants(store.url)
    with pytest.raises(CollectionBroken, match=message):
        async for _ in collect_objects(cast(ExecStream, LocalExec(command)), cast(UploadGrants, grants), LIMITS):
            pass
    assert grants.asked == 0


def test_the_short_form_of_files_has_no_line_feed() -> None:
    records = [(f"d/\udcff{number}", number, 7, os.urandom(32), 10 * number) for number in range(1000)]
    line = encode_records(records)
    assert b"\n" not in line
    assert decode_records(line) == records


async def test_a_program_that_dies_breaks_the_collection(store: FakeStore, workspace: Path) -> None:
    (workspace / "a").write_bytes(b"content")
    command = [sys.executable, "-c", 'print(\'{"want": [{"path": "../a"}]}\')']
    grants = cast(UploadGrants, Grants(store.url))
    with pytest.raises(CollectionBroken):
        async for _ in collect_objects(cast(ExecStream, LocalExec(command)), grants, LIMITS):
            pass


def test_names_are_short_and_distinct() -> None:
    long, other = b"d/" * 400 + b"x", b"d/" * 400 + b"y"
    names = {object_name(path) for path in (long, other, b"x" * 250, b"\xff" * 100, b"a/b", b"a%2Fb")}
    assert len(names) == 6
    assert all(len(name) < 700 and max(map(len, name.split("/"))) <= 200 for name in names)
