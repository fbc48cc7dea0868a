"""Artifacts of a session with an object store: when it is used, and what happens when it cannot be used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent.domain.actions import Key
from agent.domain.artifacts import FileData, FileEnd, FilePart, FileStart, StoredObject
from agent.domain.errors import ClusterError, InputMissing, Reason, Stage
from agent.domain.outcome import Result
from agent.local_scheduler.local_service import Access
from agent.local_scheduler.server import open_scheduler
from agent.pipeline import parser
from agent.protocol import translate
from agent.protocol.wire import agent_pb2 as wire
from agent.scheduler.stream.upload import Packer
from tests.fakes.agent import FakeAgent
from tests.fakes.cluster import Script, collected
from tests.flow.test_inputs import PIPELINE, RUN, fetch
from tests.flow.test_run_action import DECLARED, Rig, life

if TYPE_CHECKING:
    from pathlib import Path

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
