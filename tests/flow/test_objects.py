"""Artifacts of a session with an object store: when it is used, and what happens when it cannot be used."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from agent.domain.actions import Key
from agent.domain.artifacts import FileData, FileEnd, FilePart, FileStart, StoredObject
from agent.domain.errors import ClusterError, InputMissing, Reason, Stage
from agent.domain.outcome import Result
from agent.local_scheduler.local_service import Access
from agent.local_scheduler.options import SchedulerOptions
from agent.local_scheduler.server import open_scheduler
from agent.objects.store import ObjectStore
from agent.pipeline import parser
from agent.pipeline.wire import local_pb2, local_pb2_grpc
from agent.protocol import translate
from agent.protocol.wire import agent_pb2 as wire
from agent.scheduler.stream.upload import Packer
from agent.settings import ObjectSettings
from tests.fakes.agent import FakeAgent
from tests.fakes.cluster import Script, collected
from tests.fakes.object_store import fake_store
from tests.flow.test_inputs import PIPELINE, RUN, fetch
from tests.flow.test_run_action import DECLARED, Rig, life

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

KEYS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"}
AWAY = ClusterError("connection refused", reason=Reason.OBJECT_STORE_UNAVAILABLE, retryable=True)


def kinds(parts: list[FilePart]) -> set[type]:
    return {type(part) for part in parts} & {FileData, StoredObject}


async def test_files_go_into_the_store_if_the_scheduler_stores_their_names() -> None:
    rig = Rig()
    sent = await life(rig, Script(objects=True))
    assert kinds(sent.uploads[0]) == {StoredObject}
    assert sent.outcome.result is Result.SUCCEEDED
    assert rig.sample("objects_total", direction="put") == 1
    assert rig.sample("object_bytes_total", direction="put") == len(Script().content)


async def test_files_go_to_a_scheduler_that_stores_no_names() -> None:
    rig = Rig()
    rig.sink.stores_references = False
    sent = await life(rig, Script(objects=True))
    assert kinds(sent.uploads[0]) == {FileData}


async def test_without_its_store_the_files_go_to_the_scheduler() -> None:
    rig = Rig()
    sent = await life(rig, Script(objects=True, collections=[AWAY, AWAY, AWAY, collected()]), artifacts=DECLARED)
    assert [kinds(upload) for upload in sent.uploads] == [{StoredObject}] * 3 + [{FileData}]
    assert sent.outcome.result is Result.SUCCEEDED
    assert b"connection refused; the files now go through the scheduler]" in sent.log
    assert rig.sample("object_fallbacks_total") == 1
    assert rig.sample("objects_total", direction="put") == 0


async def test_without_a_fallback_the_store_is_the_reason() -> None:
    rig = Rig(objects={"fallback": "none"})
    sent = await life(rig, Script(objects=True, collections=[AWAY]), artifacts=DECLARED)
    outcome = sent.outcome
    assert (outcome.stage, outcome.reason) == (Stage.ARTIFACTS, Reason.OBJECT_STORE_UNAVAILABLE)
    assert outcome.exit_code == 0
    assert rig.sample("artifact_failures_total", reason="store") == 1


@pytest.mark.parametrize(("knows", "offset"), [(True, 100), (False, 0)])
async def test_files_share_objects_if_the_scheduler_stores_their_places(knows: bool, offset: int) -> None:
    rig = Rig()
    rig.sink.stores_packs = knows
    sent = await life(rig, Script(objects=True))
    assert [part.offset for part in sent.uploads[0] if isinstance(part, StoredObject)] == [offset]


@pytest.mark.parametrize("offset", [0, 3])
async def test_the_local_scheduler_reads_and_hands_out_a_file_within_an_object(tmp_path: Path, offset: int) -> None:
    parts: list[FilePart] = [
        FileStart(b"dist/x", 0o755, 7),
        StoredObject("s3://b/sealci/p", "t", offset),
        FileEnd(bytes(32)),
        FileStart(b"y", 0o755, 3),
        StoredObject("s3://b/sealci/p", "t", offset + 7),
        FileEnd(bytes(32)),
    ]
    message = [translate.part_message(part) for part in (*parts, translate.UploadEnd(2, 10))]
    with fake_store() as store:
        store.objects["/b/sealci/p"] = b"." * offset + b"content..."
        settings = {"issuer": "agent", "endpoint": store.url, "bucket": "b", "path_style": True}
        objects = ObjectStore(ObjectSettings.model_validate(settings), KEYS)
        options = SchedulerOptions(objects=objects)
        async with (
            open_scheduler("127.0.0.1:0", tmp_path, Access(), options) as scheduler,
            FakeAgent(scheduler.address, features=("inputs",)) as agent,
        ):
            text = PIPELINE.replace("      - {from: build, paths: [run.sh]}\n", "")
            await scheduler.dispatcher.submit(RUN, parser.parse(text, "p.yaml"), {})
            action = await agent.action()
            await agent.upload(translate.key(action), message)
            request = local_pb2.DownloadRequest(pipeline=RUN, action="build", path=b"dist/x")
            stub = local_pb2_grpc.LocalStub(agent.channel)
            store.ranges = False
            assert b"".join([part.data async for part in stub.Download(request)]) == b"content"
            store.ranges = True
            assert b"".join([part.data async for part in stub.Download(request)]) == b"content"
            await agent.live(action)
            async with asyncio.timeout(10):
                detail = await next_wait(scheduler.registry.watch(RUN))
            assert detail == "no connected agent has the feature object-packs"
        async with (
            open_scheduler("127.0.0.1:0", tmp_path, Access(), options) as scheduler,
            FakeAgent(scheduler.address, features=("inputs", "object-packs")) as agent,
        ):
            (file,) = translate.action(await agent.action()).inputs[0].files
            assert (file.path, file.size, file.uri, file.offset) == (b"x", 7, "s3://b/sealci/p", offset)


async def next_wait(events: AsyncIterator[local_pb2.PipelineEvent]) -> str:
    """Return what an action of a pipeline waits for."""
    async for event in events:
        if event.WhichOneof("event") == "waiting":
            return event.waiting.detail
    raise AssertionError("the pipeline has ended")


@pytest.mark.parametrize("uri", ["s3://bucket/sealci/x", ""])
async def test_the_local_scheduler_keeps_the_name_of_an_object(tmp_path: Path, uri: str) -> None:
    parts: list[FilePart] = [FileStart(b"dist/x", 0o755, 7), StoredObject(uri, "tag"), FileEnd(bytes(32))]
    packer = Packer(wire.UploadHeader())
    for part in parts:
        assert list(packer.feed(part)) == []
    chunk = packer.last_chunk()
    async with (
        open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler,
        FakeAgent(scheduler.address, features=("inputs",)) as agent,
    ):
        text = PIPELINE.replace("      - {from: build, paths: [run.sh]}\n", "")
        await scheduler.dispatcher.submit(RUN, parser.parse(text, "p.yaml"), {})
        action = await agent.action()
        if not uri:
            with pytest.raises(Exception, match="the name of an object"):
                await agent.upload(translate.key(action), list(chunk.parts))
            return
        receipt = await agent.upload(translate.key(action), list(chunk.parts))
        assert (receipt.files, receipt.bytes) == (1, 7)
        await agent.live(action)
    async with (
        open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler,
        FakeAgent(scheduler.address, features=("inputs",)) as agent,
    ):
        action = await agent.action()
        (file,) = translate.action(action).inputs[0].files
        assert (file.path, file.mode, file.size, file.uri) == (b"x", 0o755, 7, uri)
        with pytest.raises(InputMissing, match="in an object store that the agent does not use"):
            await fetch(agent, Key(action.action_id), 1)
        assert not (tmp_path / RUN / "build").exists() or list((tmp_path / RUN / "build").iterdir()) == []
