"""Files of one action in a later one: the session of an agent, and the local scheduler over real gRPC."""

from __future__ import annotations

import asyncio
import hashlib
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc
import pytest

from agent.domain.actions import Action, Cancel, Key
from agent.domain.artifacts import FileData, FileEnd, FilePart, FileStart, Input, InputFile
from agent.domain.errors import ActionFailed, ClusterError, InputMissing, Reason, SchedulerError, Stage
from agent.domain.events import Accepted, CommandStarted, Event, StageChanged
from agent.domain.log_cursor import Cursor
from agent.domain.observations import Lost, Running
from agent.domain.outcome import Result
from agent.domain.session_state import Resume, SessionState
from agent.local_scheduler.local_service import Access
from agent.local_scheduler.server import open_scheduler
from agent.pipeline import parser
from agent.protocol import translate
from agent.protocol.wire import agent_pb2 as wire
from agent.scheduler.stream.fetch import fetch_call, parts_of, receive_chunk
from tests.fakes.agent import FakeAgent, file_parts
from tests.fakes.cluster import Script
from tests.fakes.scheduler import FakeScheduler
from tests.fakes.stream import rig as stream_rig
from tests.flow.test_run_action import Rig, life

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = b"wheel" * 1000


def stored(path: bytes, content: bytes, mode: int = 0o644) -> InputFile:
    return InputFile(path, mode, len(content), hashlib.sha256(content).digest())


def parts(path: bytes, content: bytes, *, name: bytes = b"") -> list[FilePart | Exception]:
    digest = hashlib.sha256(content).digest()
    return [FileStart(name or path, 0o644, len(content)), FileData(content), FileEnd(digest)]


WHEEL, SCRIPT = stored(b"a.whl", CONTENT), stored(b"run\xff", b"#!", 0o755)
INPUTS = (Input("build", "wheels", (WHEEL,)), Input("lint", "", (), optional=True), Input("tools", "", (SCRIPT,)))
WHOLE = Action(Key("a", 1, 2), "alpine", ("one", "two"), inputs=INPUTS)


@pytest.fixture
def rig() -> Rig:
    made = Rig()
    made.sink.inputs = {1: parts(b"a.whl", CONTENT), 3: parts(b"run\xff", b"#!")}
    return made


# ---- the session of an agent


async def test_inputs_are_copied_before_the_first_command(rig: Rig) -> None:
    sent = await life(rig, Script(interactive=True), inputs=INPUTS)
    environment = rig.backend.environments["a"]
    assert environment.inputs == {b"wheels/a.whl": (0o644, CONTENT), b"run\xff": (0o755, b"#!")}
    order = [each for each in environment.steps if each in ("upload_workspace", "inputs", "log")]
    assert order == ["upload_workspace", "inputs", "log"], "inputs are laid over the working tree"
    details = [each.detail for each in sent.events if isinstance(each, StageChanged) and "files" in each.detail]
    assert details[0] == "copying 2 files of other actions, 0.0 MB"
    assert details[1].startswith("copied 2 files of other actions, 0.0 MB, in ")
    assert details[1].endswith(" MB/s)")
    assert sent.outcome.result is Result.SUCCEEDED
    assert rig.sample("input_files_total") == 2
    assert rig.sample("input_bytes_total") == len(CONTENT) + 2
    assert rig.sample("phase_duration_seconds_count", phase="inputs") == 1


async def test_a_copy_that_breaks_starts_again(rig: Rig) -> None:
    rig.sink.inputs[3].insert(1, SchedulerError("the connection ended"))
    sent = await life(rig, Script(deliveries=[ClusterError("cut", retryable=True)]), inputs=INPUTS)
    environment = rig.backend.environments["a"]
    assert environment.inputs == {b"wheels/a.whl": (0o644, CONTENT), b"run\xff": (0o755, b"#!")}
    assert environment.steps.count("inputs") == 3
    assert sent.outcome.result is Result.SUCCEEDED
    assert rig.sample("input_retries_total") == 2


@pytest.mark.parametrize(
    ("fetched", "delivery", "reason", "message"),
    [
        ([InputMissing("artifact a.whl of build is no longer stored")], None, Reason.INPUT_MISSING, "no longer stored"),
        (parts(b"a.whl", b"x" * 5000), None, Reason.INTERNAL, "another sha256 for a.whl of build"),
        (parts(b"a.whl", CONTENT, name=b"b.whl"), None, Reason.INTERNAL, "sent b'b.whl', which is not the next file"),
        (parts(b"a.whl", CONTENT)[:1], None, Reason.INTERNAL, "did not send all files of inputs[1]"),
        (parts(b"a.whl", CONTENT) * 2, None, Reason.INTERNAL, "is not the next file"),
        ([*parts(b"a.whl", CONTENT)[:2], FileData(b"more")], None, Reason.INTERNAL, "more than the 5000 bytes"),
        (
            parts(b"a.whl", CONTENT),
            ActionFailed(Stage.SETUP, Reason.INVALID_CONFIGURATION, "wheels is a symbolic link"),
            Reason.INVALID_CONFIGURATION,
            "wheels is a symbolic link",
        ),
        (parts(b"a.whl", CONTENT), ClusterError("no exec"), Reason.CLUSTER_UNAVAILABLE, "no exec"),
    ],
)
async def test_inputs_that_cannot_be_copied_fail_the_set_up(
    rig: Rig, fetched: list[FilePart | Exception], delivery: Exception | None, reason: Reason, message: str
) -> None:
    # An error of the scheduler's side is permanent here.
    rig.sink.inputs[1] = fetched if not isinstance(fetched[0], Exception) else fetched * 20
    sent = await life(rig, Script(deliveries=[delivery]), inputs=INPUTS)
    outcome = sent.outcome
    assert (outcome.result, outcome.stage, outcome.reason) == (Result.FAILED, Stage.SETUP, reason)
    assert message in outcome.message
    assert sent.started == []


@pytest.mark.parametrize(
    ("inputs", "settings", "reason"),
    [
        ((Input("build", "", ()),), {}, Reason.INPUT_MISSING),
        (INPUTS, {"max_files": 1}, Reason.INVALID_CONFIGURATION),
        (INPUTS, {"max_file_size": 4999}, Reason.INVALID_CONFIGURATION),
        (INPUTS, {"max_total_size": 5001}, Reason.INVALID_CONFIGURATION),
    ],
)
async def test_missing_and_too_large_inputs_are_not_copied(
    inputs: tuple[Input, ...], settings: dict[str, int], reason: Reason
) -> None:
    rig = Rig(artifacts=settings)
    sent = await life(rig, Script(), inputs=inputs)
    assert (sent.outcome.stage, sent.outcome.reason) == (Stage.SETUP, reason)
    assert "inputs" not in rig.backend.environments["a"].steps


async def test_a_cancel_ends_the_copy(rig: Rig) -> None:
    rig.backend.script = lambda _: Script(holds=frozenset({"inputs"}))
    async with rig.open() as sessions:
        sessions.action(Action(Key("a"), "alpine", ("one",), inputs=INPUTS))
        await rig.backend.at("a", "inputs")
        sessions.cancel(("a", 1), Cancel())
    assert rig.sink["a"].outcome.result is Result.CANCELLED


@pytest.mark.looptime
@pytest.mark.parametrize(
    ("uris", "reason"),
    [
        (("s3://b/sealci/a", "s3://b/sealci/b"), Reason.OBJECT_STORE_UNAVAILABLE),
        (("s3://b/sealci/a", ""), Reason.INTERNAL),
    ],
)
async def test_a_copy_that_is_too_slow_is_the_stores_fault_if_all_files_are_there(
    uris: tuple[str, ...], reason: Reason
) -> None:
    rig = Rig(artifacts={"timeout": 5})
    inputs = tuple(Input("build", "", (replace(WHEEL, uri=uri),)) for uri in uris)
    sent = await life(rig, Script(objects=True, holds=frozenset({"inputs"})), inputs=inputs)
    assert (sent.outcome.stage, sent.outcome.reason) == (Stage.SETUP, reason)
    assert "not copied within 5 s" in sent.outcome.message


async def test_a_pod_that_is_lost_during_the_copy_is_re_created(rig: Rig) -> None:
    lost = Lost(Reason.EVICTED, "the node was full", unstarted=True)
    rig.backend.script = lambda _: Script(holds=frozenset({"inputs"}))
    async with rig.open() as sessions:
        sessions.action(Action(Key("a"), "alpine", ("one",), inputs=INPUTS))
        environment = await rig.backend.at("a", "inputs")
        await environment.show(lost)
        environment.unblocked.add("inputs")
        await rig.backend.notify()
    assert (environment.creations, environment.steps.count("inputs")) == (2, 2)
    assert rig.sink["a"].outcome.result is Result.SUCCEEDED


@pytest.mark.parametrize(
    ("resume", "copies"),
    [
        (Resume(Key("a", 1, 2), 3, stage=Stage.SETUP, action=WHOLE), 1),
        (Resume(Key("a", 1, 2), 4, stage=Stage.COMMANDS, action=WHOLE), 0),
        (Resume(Key("a", 1, 2), 5, stage=Stage.COMMANDS, command=1), 0),
    ],
)
async def test_an_adopting_agent_repeats_the_copy_unless_commands_have_begun(
    rig: Rig, resume: Resume, copies: int
) -> None:
    adopted = Action(Key("a", 1, 2), "", ("", ""), timeout=60.0)
    async with rig.open() as sessions:
        environment = rig.backend.environment(adopted)
        environment.creations = 1
        await environment.show(Running())
        assert sessions.adopt(adopted, environment)
        sessions.resume(resume)
    assert environment.steps.count("inputs") == copies
    assert rig.sink["a"].outcome.result is Result.SUCCEEDED


async def test_a_call_that_ends_with_the_connection_is_an_error_of_the_scheduler() -> None:
    scheduler, held = FakeScheduler(), asyncio.Event()
    whole = wire.ArtifactChunk(parts=file_parts((b"a", b"1"), (b"b", b"2")))
    scheduler.inputs = [wire.ArtifactChunk(parts=whole.parts[:4]), held, wire.ArtifactChunk(parts=whole.parts[4:])]
    async with stream_rig(scheduler) as agent:
        session = agent.outbox.open(Key("a", 2, 3))
        await agent.handlers.got("registered")

        async def names() -> list[bytes]:
            return [part.path async for part in session.fetch(7) if isinstance(part, FileStart)]

        fetching = asyncio.create_task(names(), name="fetch")
        await scheduler.until("the call has begun", lambda: len(scheduler.fetches) == 1)
        scheduler.peer.end(grpc.StatusCode.UNAVAILABLE)
        with pytest.raises(SchedulerError, match="the connection to the scheduler ended"):
            await fetching
        held.set()
        assert await names() == [b"a", b"b"]
        (request,) = {(each.action_id, each.attempt, each.claim, each.input) for each in scheduler.fetches}
        assert request == ("a", 2, 3, 7)
        scheduler.inputs = [wire.ArtifactChunk(parts=whole.parts[:-1])]
        with pytest.raises(SchedulerError, match="before all files were sent"):
            await names()


# ---- the local scheduler

PIPELINE = """
actions:
  build: {configuration: {container: i}, commands: [x]}
  test:
    configuration: {container: i}
    commands: [x]
    inputs:
      - {from: build, paths: ["dist/*"], to: wheels}
      - {from: build, paths: ["no/*"], optional: true}
      - {from: build, paths: [run.sh]}
"""
RUN = "pipeline1"


async def build(agent: FakeAgent, *files: tuple[bytes, bytes], mode: int = 0o644) -> None:
    """Run the action `build`, which stores these files."""
    action = await agent.action()
    assert action.name == "build"
    await agent.upload(translate.key(action), file_parts(*files, mode=mode))
    await agent.live(action)


async def fetch(agent: FakeAgent, key: Key, number: int) -> dict[bytes, tuple[int, bytes]]:
    """Fetch an input with the agent's own code."""
    call = fetch_call(agent.stub, key, agent.agent_id, number)
    found, path = {}, b""
    async for part in parts_of(lambda: receive_chunk(call)):
        match part:
            case FileStart():
                path = part.path
                found[path] = (part.mode, b"")
            case FileData():
                found[path] = (found[path][0], found[path][1] + part.data)
            case FileEnd():
                assert hashlib.sha256(found[path][1]).digest() == part.sha256
    return found


async def test_the_scheduler_selects_and_sends_the_files_of_a_needed_action(tmp_path: Path) -> None:
    big = os.urandom(600_000)
    async with (
        open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler,
        FakeAgent(scheduler.address, features=("inputs",)) as agent,
    ):
        await scheduler.dispatcher.submit(RUN, parser.parse(PIPELINE, "p.yaml"), {})
        await build(
            agent, (b"dist/\xff\n", b"odd"), (b"dist/big", big), (b"other", b""), (b"run.sh", b"#!"), mode=0o775
        )
        action = await agent.action()
        key = translate.key(action)
        first, second, third = translate.action(action).inputs
        assert (first.source, first.to, [each.path for each in first.files]) == ("build", "wheels", [b"big", b"\xff\n"])
        assert first.files[0] == stored(b"big", big, 0o775)
        assert (second.files, second.optional) == ((), True)
        assert third.files == (stored(b"run.sh", b"#!", 0o775),)
        assert await fetch(agent, key, 1) == {b"\xff\n": (0o775, b"odd"), b"big": (0o775, big)}
        assert await fetch(agent, key, 1) == await fetch(agent, key, 1), "a call may be repeated"
        assert await fetch(agent, key, 2) == {}
        # A file that is gone from the disk is named. Other calls are refused.
        (tmp_path / RUN / "build" / "run.sh").unlink()
        with pytest.raises(InputMissing, match=r"artifact run\.sh of build is no longer stored"):
            await fetch(agent, key, 3)
        with pytest.raises(SchedulerError, match="there is no 4"):
            await fetch(agent, key, 4)
        with pytest.raises(SchedulerError, match="FAILED_PRECONDITION"):
            await fetch(agent, Key(key.action_id, 2, 1), 1)
        # An agent that adopts the session gets the inputs again, until a command has started.
        for claim, command in ((2, 0), (3, 1)):
            adopted = SessionState(Key(key.action_id, 1, claim), adopted=True)
            async with FakeAgent(
                scheduler.address, pod=f"adopting{claim}", sessions=[adopted], features=("inputs",)
            ) as other:
                resume = await other.take("resume")
                assert isinstance(resume, wire.Resume)
                whole = translate.resume(resume).action
                assert whole is not None
                assert len(whole.inputs) == 3
                assert translate.resume(resume).command == command
                if not command:
                    await other.live(wire.Action(action_id=key.action_id, attempt=1, claim=claim), started())


def started() -> list[Event]:
    return [Accepted("actions/pod"), StageChanged(Stage.COMMANDS), CommandStarted(1, Cursor(command=1))]


@pytest.mark.parametrize(
    ("files", "reason", "message"),
    [
        (
            [(b"run.sh", b"")],
            Reason.INPUT_MISSING,
            "inputs[1]: no artifact of build matches 'dist/*'; it has stored run.sh",
        ),
        ([], Reason.INPUT_MISSING, "it has stored no files"),
        ([(b"dist/x", b""), (b"run.sh", b"")], None, ""),
    ],
)
async def test_an_action_without_its_inputs_never_goes_to_an_agent(
    tmp_path: Path, files: list[tuple[bytes, bytes]], reason: Reason | None, message: str
) -> None:
    async with (
        open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler,
        FakeAgent(scheduler.address, features=("inputs",)) as agent,
    ):
        await scheduler.dispatcher.submit(RUN, parser.parse(PIPELINE, "p.yaml"), {})
        await build(agent, *files)
        if reason is None:
            await agent.live(await agent.action())
        async with asyncio.timeout(30):
            kinds = [event.WhichOneof("event") async for event in scheduler.registry.watch(RUN)]
        outcome = scheduler.registry.get(RUN).records["test"].state.outcome
        assert outcome is not None
        assert (outcome.reason, kinds.count("started")) == (reason, 1 if reason else 2)
        assert message in outcome.message


async def test_two_files_with_one_path_are_refused(tmp_path: Path) -> None:
    text = PIPELINE.replace("paths: [run.sh]", "paths: [other/x], to: wheels")
    async with (
        open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler,
        FakeAgent(scheduler.address, features=("inputs",)) as agent,
    ):
        await scheduler.dispatcher.submit(RUN, parser.parse(text, "p.yaml"), {})
        await build(agent, (b"dist/x", b"1"), (b"other/x", b"2"))
        async with asyncio.timeout(30):
            async for _ in scheduler.registry.watch(RUN):
                pass
        outcome = scheduler.registry.get(RUN).records["test"].state.outcome
        assert outcome is not None
        assert outcome.reason is Reason.INVALID_CONFIGURATION
        assert outcome.message == "inputs[3]: wheels/x is also a file of inputs[1]; give one of them another `to`"


async def test_modes_and_inputs_survive_a_restart_of_the_scheduler(tmp_path: Path) -> None:
    async with (
        open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler,
        FakeAgent(scheduler.address, features=("inputs",)) as agent,
    ):
        await scheduler.dispatcher.submit(RUN, parser.parse(PIPELINE, "p.yaml"), {})
        await build(agent, (b"dist/x", b"1"), (b"run.sh", b"#!"), mode=0o766)
    async with (
        open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler,
        FakeAgent(scheduler.address, features=("inputs",)) as agent,
    ):
        action = await agent.action()
        assert await fetch(agent, translate.key(action), 3) == {b"run.sh": (0o766, b"#!")}
        with pytest.raises(grpc.aio.AioRpcError):
            await agent.stub.FetchInput(wire.FetchInputRequest(action_id="unknown", input=1)).read()
