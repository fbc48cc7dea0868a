"""What a real object store answers to wrong clocks, regions, keys and bytes, and what the agent makes of the answers.

The program of container `helper` runs as a process of this machine, so no test needs a pod.
"""

from __future__ import annotations

import hashlib
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from agent.cluster import packaging
from agent.cluster.api.exec import ExecStream
from agent.cluster.artifacts.archive_reader import ArchiveLimits
from agent.cluster.artifacts.objects import collect_objects, objects_command
from agent.cluster.in_pod.objects.outgoing import PART_BYTES
from agent.domain.actions import ArtifactRules
from agent.domain.artifacts import StoredObject
from agent.objects.checks import check_store
from agent.objects.errors import StoreError
from agent.objects.grants import UploadGrants
from agent.objects.store import ObjectStore
from agent.settings import ObjectSettings
from tests.e2e.object_store import Store, object_store
from tests.unit.cluster.artifacts.local_exec import LocalExec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from agent.objects.grants import Request, WantedObject

HOURS = 7200.0
LIMITS = ArchiveLimits(files=1000, file_bytes=1 << 30, total_bytes=1 << 30, seconds=60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with object_store(tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "workspace").mkdir()
    (tmp_path / "snapshot").write_bytes(b"")
    (tmp_path / "workspace" / "small").write_bytes(b"content")
    return tmp_path / "workspace"


def store_of(server: Store, **changes: Any) -> ObjectStore:
    return ObjectStore(ObjectSettings.model_validate(server.settings | changes))


async def upload(grants: UploadGrants, workspace: Path, limits: ArchiveLimits = LIMITS) -> list[str]:
    """Put the files of a workspace, and return the names of the objects."""
    command = objects_command(ArtifactRules(("*",)), limits, workspace=str(workspace))
    snapshot = str(workspace.parent / "snapshot")
    argv = [sys.executable, *(snapshot if word == packaging.SNAPSHOT else word for word in command[1:])]
    stream = cast(ExecStream, LocalExec(argv))
    return [item.uri async for item in collect_objects(stream, grants, limits) if isinstance(item, StoredObject)]


async def unfinished(store: ObjectStore) -> bool:
    """Return whether the bucket has uploads in parts that are not complete."""
    _, body = await store.request("GET", query={"uploads": ""})
    return b"<Upload>" in body


class LateGrants(UploadGrants):
    """Grants whose first URLs have expired long ago."""

    asked = 0

    async def requests(self, batch: Sequence[WantedObject]) -> list[list[Request]]:
        self.asked += 1
        # The upload in parts itself begins now.
        for wanted in batch:
            if len(wanted.parts) > 1 and self.name(wanted) not in self.uploads:
                self.uploads[self.name(wanted)] = await self.store.begin_upload(self.name(wanted))
        self.store.clock = lambda: time.time() - (HOURS if self.asked == 1 else 0)
        return await super().requests(batch)


async def test_expired_urls_are_asked_again(server: Store, workspace: Path) -> None:
    large = bytes(range(256)) * (PART_BYTES // 256 + 4)
    (workspace / "large").write_bytes(large)
    grants = LateGrants(store_of(server), "sealci/late")
    names = await upload(grants, workspace)
    assert sorted(names) == ["s3://artifacts/sealci/late/files/large", "s3://artifacts/sealci/late/files/small"]
    assert grants.asked == 2
    assert server.objects["sealci/late/files/large"].read_bytes() == large
    assert not await unfinished(grants.store)


@pytest.mark.parametrize(
    ("changes", "clock", "message"),
    [
        ({}, -HOURS, r"HTTP 403 .* signed the URL 7[12]\d\d s ago: compare the two clocks"),
        ({"region": "eu-north-1"}, 0, r"HTTP 400 .* the region \"eu-north-1\" is wrong; expecting \"us-east-1\""),
        ({"bucket": "other"}, 0, r"HTTP 404 NoSuchBucket"),
        ({"credentials_file": "wrong"}, 0, r"HTTP 403 SignatureDoesNotMatch"),
    ],
)
async def test_requests_that_the_store_refuses(
    server: Store, workspace: Path, tmp_path: Path, changes: dict[str, Any], clock: float, message: str
) -> None:
    if "credentials_file" in changes:
        changes = {"credentials_file": str(tmp_path / "wrong")}
        (tmp_path / "wrong").write_text("[default]\naws_access_key_id = tests\naws_secret_access_key = wrong\n")
    store = store_of(server, **changes)
    store.clock = lambda: time.time() + clock
    with pytest.raises(StoreError, match=message) as failure:
        await upload(UploadGrants(store, "sealci/refused"), workspace)
    for word in ("X-Amz-Signature", server.secret):
        assert word not in failure.value.message
    with pytest.raises(StoreError, match="HTTP 40"):
        await store.begin_upload("sealci/refused/parts")
    if not clock:
        (finding,) = [each async for each in check_store(store.settings)]
        assert "HTTP 40" in finding.detail


async def test_the_store_refuses_other_bytes_than_were_signed(server: Store, workspace: Path) -> None:
    class WrongHash(UploadGrants):
        async def requests(self, batch: Sequence[WantedObject]) -> list[list[Request]]:
            other = hashlib.sha256(b"other").digest()
            return await super().requests([replace(each, sha256=other) for each in batch])

    with pytest.raises(StoreError, match="HTTP 400 "):
        await upload(WrongHash(store_of(server), "sealci/other"), workspace)
    assert not [name for name in server.objects if name.startswith("sealci/other")]


async def test_a_store_that_ends_during_an_upload(server: Store, workspace: Path) -> None:
    store = store_of(server)
    (workspace / "large").write_bytes(bytes(PART_BYTES + 1))
    grants = UploadGrants(store, "sealci/dead")

    class Stopping(LateGrants):
        async def requests(self, batch: Sequence[WantedObject]) -> list[list[Request]]:
            found = await UploadGrants.requests(self, batch)
            server.stop()
            return found

    try:
        with pytest.raises(StoreError, match="Connection refused"):
            await upload(Stopping(store, "sealci/dead"), workspace, replace(LIMITS, seconds=3))
    finally:
        server.start()
    assert len(await upload(grants, workspace)) == 2, "the same files can be put again"
