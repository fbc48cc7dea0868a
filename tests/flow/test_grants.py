"""The scheduler signs the requests for the object store: the agent's side and the local scheduler, over real gRPC."""

from __future__ import annotations

import hashlib
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import aiohttp
import grpc
import pytest
from yarl import URL

from agent.domain.actions import Key
from agent.domain.artifacts import FileEnd, FilePart, FileStart, StoredObject
from agent.local_scheduler.local_service import Access
from agent.local_scheduler.options import SchedulerOptions
from agent.local_scheduler.server import open_scheduler
from agent.objects.errors import StoreError
from agent.objects.grants import WantedObject
from agent.objects.store import ObjectStore
from agent.pipeline import parser
from agent.protocol import translate
from agent.scheduler.stream.grants import SchedulerIssuer
from agent.settings import ObjectSettings
from tests.fakes.agent import FakeAgent
from tests.fakes.object_store import FakeStore, fake_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from agent.scheduler.stream.connection import Connection

KEYS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "top secret"}
PIPELINE = """
actions:
  build: {configuration: {container: i}, commands: [x]}
  test: {configuration: {container: i}, commands: [x], inputs: [{from: build}]}
"""
CONTENT = b"content"
DIGEST = hashlib.sha256(CONTENT).digest()


class Direct:
    """The part of `Connection` that an issuer uses, over the channel of a fake agent."""

    def __init__(self, agent: FakeAgent) -> None:
        self.agent = agent

    async def request(self, call: Any, seconds: float) -> Any:
        return await call(self.agent.stub, self.agent.metadata)


@pytest.fixture
def store() -> Iterator[FakeStore]:
    with fake_store() as store:
        yield store


def settings(store: FakeStore, issuer: str = "scheduler") -> ObjectSettings:
    return ObjectSettings.model_validate({"issuer": issuer, "endpoint": store.url, "bucket": "b", "path_style": True})


@asynccontextmanager
async def signing_scheduler(
    folder: Path, objects: ObjectStore | None
) -> AsyncIterator[tuple[FakeAgent, SchedulerIssuer]]:
    """Serve a scheduler with the pipeline. Yield an agent, and the issuer of this agent."""
    async with (
        open_scheduler("127.0.0.1:0", folder, Access(), SchedulerOptions(objects=objects)) as scheduler,
        FakeAgent(scheduler.address, features=("inputs",)) as agent,
    ):
        await scheduler.dispatcher.submit("pipeline1", parser.parse(PIPELINE, "p.yaml"), {})
        issuer = SchedulerIssuer(ObjectSettings(issuer="scheduler"), agent.agent_id)
        issuer.connection = cast("Connection", Direct(agent))
        yield agent, issuer


def file(path: bytes = b"dist/x \xff", *parts: bytes) -> WantedObject:
    return WantedObject(path, 0o644, len(CONTENT), DIGEST, parts or (DIGEST,))


async def test_the_scheduler_signs_for_the_claim_of_a_session(store: FakeStore, tmp_path: Path) -> None:
    async with signing_scheduler(tmp_path, ObjectStore(settings(store), KEYS)) as (agent, issuer):
        action = await agent.action()
        key = translate.key(action)
        grants = issuer.uploads(key)
        ((request,),) = await grants.requests([file()])
        url, headers = str(request["url"]), cast("dict[str, str]", request["headers"])
        hashed = hashlib.sha256(key.action_id.encode()).hexdigest()
        folder = f"/b/sealci/scheduler/{hashed}/{key.attempt}/{key.claim}/"
        assert urlsplit(url).path == f"{folder}files/dist/x%20%25FF"
        assert parse_qs(urlsplit(url).query)["X-Amz-SignedHeaders"] == ["host;x-amz-checksum-sha256"]
        async with aiohttp.ClientSession() as http:
            async with http.put(URL(url, encoded=True), data=b"other", headers=headers) as answer:
                assert answer.status == 400, "the header binds the content"
            async with http.put(URL(url, encoded=True), data=CONTENT, headers=headers) as answer:
                assert answer.status == 200
        name = await grants.complete(file(), ["tag"])
        assert (unquote(name.uri), name.etag) == (f"s3:/{folder}files/dist/x %FF", "tag")

        def upload(uri: str) -> list[Any]:
            parts: list[FilePart] = [FileStart(b"x", 0o644, 7), StoredObject(uri, "tag"), FileEnd(DIGEST)]
            return [translate.part_message(part) for part in (*parts, translate.UploadEnd(1, 7))]

        with pytest.raises(grpc.aio.AioRpcError, match="not the name of an object that this attempt has put"):
            await agent.upload(key, upload("s3://b/sealci/scheduler/other/1/1/files/x"))
        await agent.upload(key, upload(name.uri))
        await agent.live(action)
        key = translate.key(await agent.action())
        (got,) = await issuer.input_urls(key, [name.uri])
        assert urlsplit(got).path == urlsplit(url).path
        with pytest.raises(StoreError, match="is no input of test") as failure:
            await issuer.input_urls(key, [f"{name.uri}y"])
        assert not failure.value.retryable


async def test_the_scheduler_names_a_pack_by_its_hash(store: FakeStore, tmp_path: Path) -> None:
    async with signing_scheduler(tmp_path, ObjectStore(settings(store), KEYS)) as (agent, issuer):
        grants = issuer.uploads(translate.key(await agent.action()))
        others = hashlib.sha256(b"other").digest()
        packs = [replace(file(b""), sha256=digest, parts=(digest,)) for digest in (DIGEST, others)]
        for (request,), pack in zip(await grants.requests(packs), packs, strict=True):
            assert urlsplit(str(request["url"])).path.endswith(f"/packs/{pack.sha256.hex()}")
            assert (await grants.complete(pack, ["tag"])).uri.endswith(f"/packs/{pack.sha256.hex()}")
        with pytest.raises(StoreError, match="a pack, which has no path, is put whole"):
            await grants.requests([file(b"", DIGEST, DIGEST)])


async def test_uploads_in_parts_go_on_after_a_second_question(store: FakeStore, tmp_path: Path) -> None:
    other = hashlib.sha256(b"other").digest()
    async with signing_scheduler(tmp_path, ObjectStore(settings(store), KEYS)) as (agent, issuer):
        grants = issuer.uploads(translate.key(await agent.action()))
        large, lost = file(b"large", DIGEST, other), file(b"lost", other, DIGEST)
        for _ in range(2):
            for requests in await grants.requests([large, lost]):
                queries = [parse_qs(urlsplit(str(each["url"])).query) for each in requests]
                assert [each["partNumber"] for each in queries] == [["1"], ["2"]]
                assert [each["uploadId"] for each in queries] == [["upload-1"]] * 2
        assert sum("uploads=" in each for each in store.requests) == 2, "a second question begins no second upload"
        assert (await grants.complete(large, ["a", "b"])).etag == "tag-of-all"
        await grants.abort()
        await grants.abort()
        deleted = [urlsplit(each.split()[1]).path for each in store.requests if each.startswith("DELETE")]
        assert [path.rpartition("/")[2] for path in deleted] == ["lost"]


async def test_a_store_that_does_not_answer_can_be_tried_again(store: FakeStore, tmp_path: Path) -> None:
    async with signing_scheduler(tmp_path, ObjectStore(settings(store), KEYS)) as (agent, issuer):
        grants = issuer.uploads(translate.key(await agent.action()))
        for status, retryable in ((503, True), (403, False)):
            store.faults.append(status)
            with pytest.raises(StoreError, match=f"HTTP {status} Scripted") as failure:
                await grants.requests([file(b"large", DIGEST, DIGEST)])
            assert failure.value.retryable is retryable


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"claim": 1}, "FAILED_PRECONDITION: claim 1 owns|FAILED_PRECONDITION: claim"),
        ({"path": b"../x"}, "is not a path within the folder"),
        ({"sha256": b"short"}, "need a sha256"),
        ({"size": 51 << 30}, "has 54760833024 bytes; at most 53687091200"),
        ({"number": 31}, "31 are too many; at most 30"),
    ],
)
async def test_the_scheduler_refuses_what_a_session_may_not_put(
    store: FakeStore, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    async with signing_scheduler(tmp_path, ObjectStore(settings(store), KEYS)) as (agent, issuer):
        key = translate.key(await agent.action())
        key = Key(key.action_id, key.attempt, key.claim + change.get("claim", 0))
        digest = change.get("sha256", DIGEST)
        wanted = WantedObject(change.get("path", b"x"), 0, change.get("size", 7), digest, (digest,))
        with pytest.raises(StoreError, match=message) as failure:
            await issuer.uploads(key).requests([wanted] * change.get("number", 1))
        assert not failure.value.retryable
        assert KEYS["AWS_SECRET_ACCESS_KEY"] not in failure.value.message


async def test_a_scheduler_that_only_reads_objects_signs_nothing(store: FakeStore, tmp_path: Path) -> None:
    async with signing_scheduler(tmp_path, ObjectStore(settings(store, "agent"), KEYS)) as (agent, issuer):
        key = translate.key(await agent.action())
        with pytest.raises(StoreError, match="this scheduler signs no URLs"):
            await issuer.uploads(key).requests([file()])
