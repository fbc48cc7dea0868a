"""The local scheduler over real gRPC, with fake agents."""

from __future__ import annotations

import asyncio
import io
import json
from typing import TYPE_CHECKING

import grpc
import pytest

from agent.cli.submit import Target, Unreachable, cancel_pipeline, list_pipelines, submit
from agent.console.reports.run_report import ExitCode, Report
from agent.domain.actions import Key
from agent.domain.errors import Reason, Rejection, Stage
from agent.domain.events import Accepted, ArtifactSummary, Finished, LogChunk, Rejected, StageChanged
from agent.domain.log_cursor import Cursor
from agent.domain.outcome import Result
from agent.domain.session_state import Readiness, SessionState
from agent.local_scheduler.local_service import Access
from agent.local_scheduler.options import SchedulerOptions
from agent.local_scheduler.server import open_scheduler
from agent.pipeline import event_codec, parser
from agent.pipeline.events import ActionEnded, LogText, PipelineEvent, WaitingForAgent
from agent.pipeline.wire import local_pb2, local_pb2_grpc
from agent.protocol import translate
from agent.protocol.wire import agent_pb2 as wire
from tests.fakes.agent import CANCELLED, FAILURE, FakeAgent, file_parts, life, succeed

if TYPE_CHECKING:
    from pathlib import Path

    from agent.local_scheduler.server import Scheduler

ONE = "name: p\nactions:\n  a: {configuration: {container: i}, commands: [x]}\n"
RUN = "pipeline1"
QUICK = SchedulerOptions(resume_grace=0.05)


def several(count: int) -> str:
    actions = "".join(f"  a{n}: {{configuration: {{container: i}}, commands: [x]}}\n" for n in range(count))
    return f"name: p\nactions:\n{actions}"


async def queue(scheduler: Scheduler, text: str = ONE, run_id: str = RUN) -> None:
    await scheduler.dispatcher.submit(run_id, parser.parse(text, "p.yaml"), {"TOKEN": "s3cret"})


async def watch(scheduler: Scheduler, run_id: str = RUN) -> tuple[Report, list[PipelineEvent]]:
    """Follow the pipeline `run_id` to its end. Return the report and the events of the pipeline."""
    report, seen = Report(), []
    async with asyncio.timeout(30):
        async for message in scheduler.registry.watch(run_id):
            event = event_codec.decode(message)
            assert event is not None
            report.add(event)
            seen.append(event)
    assert [event.position for event in seen] == list(range(1, len(seen) + 1))
    return report, seen


def everything(folder: Path) -> bytes:
    return b"".join(each.read_bytes() for each in folder.rglob("*") if each.is_file())


def texts(seen: list[PipelineEvent]) -> bytes:
    return b"".join(event.body.data for event in seen if isinstance(event.body, LogText))


async def test_an_action_goes_to_an_agent_that_has_its_class(tmp_path: Path) -> None:
    text = several(2).replace("a1: {", "a1: {class: gpu, ", 1)
    async with (
        open_scheduler("127.0.0.1:0", tmp_path, Access(), QUICK) as scheduler,
        FakeAgent(scheduler.address, pod="large", slots=9, classes=["large"]) as large,
    ):
        await queue(scheduler, text)
        following = asyncio.create_task(watch(scheduler))
        plain = await large.action()
        assert (plain.name, plain.environment_class) == ("a0", "")
        await large.live(plain)
        await large.health()
        assert large.queue("action").empty()
        async with FakeAgent(scheduler.address, pod="gpu", slots=1, classes=["gpu", "large"]) as gpu:
            action = await gpu.action()
            assert (action.name, action.environment_class) == ("a1", "gpu")
            await gpu.live(action)
            report, seen = await following
    waits = [event.body.detail for event in seen if isinstance(event.body, WaitingForAgent)]
    assert waits[0] == "no connected agent has the class gpu; there are: large"
    assert report.exit_code is ExitCode.SUCCEEDED


async def test_an_action_runs_and_its_log_is_stored(tmp_path: Path) -> None:
    async with open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler, FakeAgent(scheduler.address) as agent:
        await queue(scheduler)
        action = await agent.action()
        assert (action.action_id, action.attempt, action.claim, action.image) == (f"{RUN}/a", 1, 1, "i")
        await agent.live(action, life(b"bytes \xff\n"))
        report, seen = await watch(scheduler)
    assert report.exit_code is ExitCode.SUCCEEDED
    assert texts(seen) == b"bytes \xff\n"
    assert (tmp_path / RUN / "a.log").read_bytes() == b"bytes \xff\n"


async def test_actions_are_sent_by_free_slots_and_the_21st_waits(tmp_path: Path) -> None:
    async with (
        open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler,
        FakeAgent(scheduler.address, slots=20) as agent,
    ):
        await queue(scheduler, several(21))
        actions = [await agent.action() for _ in range(20)]
        await agent.health(running=20)
        assert agent.queue("action").empty()
        await agent.live(actions[0])
        assert agent.queue("action").empty(), "the slot is free only after the next health report"
        await agent.health(running=19)
        last = await agent.action()
        assert last.name == "a20"
        for action in (*actions[1:], last):
            await agent.live(action)
        report, _ = await watch(scheduler)
    assert len(report.actions) == 21
    assert report.exit_code is ExitCode.SUCCEEDED


async def test_actions_go_to_the_least_loaded_ready_agent(tmp_path: Path) -> None:
    async with (
        open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler,
        FakeAgent(scheduler.address, pod="busy", slots=4) as busy,
        FakeAgent(scheduler.address, pod="idle", slots=4) as idle,
        FakeAgent(scheduler.address, pod="leaving", slots=50) as leaving,
    ):
        await busy.health(running=2)
        await leaving.health(Readiness.DRAINING)
        await queue(scheduler, several(2))
        assert [(await idle.action()).name for _ in range(2)] == ["a0", "a1"]
        assert busy.queue("action").empty()
        assert leaving.queue("action").empty()


async def test_a_failed_action_cancels_the_actions_that_need_it(tmp_path: Path) -> None:
    text = (
        "name: p\nactions:\n"
        "  first: {configuration: {container: i}, commands: [x]}\n"
        "  second: {configuration: {container: i}, commands: [x], needs: [first]}\n"
        "  third: {configuration: {container: i}, commands: [x], needs: [second]}\n"
        "  fourth: {configuration: {container: i}, commands: [x], needs: [third]}\n"
    )
    async with (
        open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler,
        FakeAgent(scheduler.address, slots=9) as agent,
    ):
        await queue(scheduler, text)
        first = await agent.action()
        await agent.health()
        assert (first.name, agent.queue("action").empty()) == ("first", True)
        await agent.live(first)
        second = await agent.action()
        await agent.live(second, life(outcome=FAILURE))
        report, _ = await watch(scheduler)
    outcomes = {name: each.outcome for name, each in report.actions.items()}
    assert [outcome.result for outcome in outcomes.values() if outcome] == [
        Result.SUCCEEDED,
        Result.FAILED,
        Result.CANCELLED,
        Result.CANCELLED,
    ]
    assert outcomes["fourth"]
    assert outcomes["fourth"].message == "not run: it needs third, which did not succeed"
    assert report.exit_code is ExitCode.FAILED


async def test_repeated_events_are_stored_once_and_acknowledged_again(tmp_path: Path) -> None:
    async with open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler, FakeAgent(scheduler.address) as agent:
        await queue(scheduler)
        key = translate.key(await agent.action())
        await agent.event(key, Accepted("pod"))
        await agent.event(key, LogChunk(b"once\n"))
        await agent.acknowledged(key, 2)
        agent.acks.clear()
        await agent.event(key, LogChunk(b"once\n"), seq=2)
        await agent.acknowledged(key, 2)
        await agent.event(key, Finished(FAILURE))
        _, seen = await watch(scheduler)
    assert texts(seen) == b"once\n"


async def test_a_gap_ends_the_stream(tmp_path: Path) -> None:
    async with open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler, FakeAgent(scheduler.address) as agent:
        await queue(scheduler)
        key = translate.key(await agent.action())
        await agent.event(key, LogChunk(b"late\n"), seq=2)
        async with asyncio.timeout(30):
            await agent.ended.wait()


async def test_an_action_continues_after_a_restart_of_the_scheduler(tmp_path: Path) -> None:
    async with open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler, FakeAgent(scheduler.address) as agent:
        await queue(scheduler, several(3).replace("[x]", "[x], secrets: [TOKEN]"))
        action = await agent.action()
        key = translate.key(action)
        await agent.event(key, Accepted("pod"))
        await agent.event(key, StageChanged(Stage.COMMANDS))
        await agent.event(key, LogChunk(b"one\n", Cursor(4, 1)))
        await agent.acknowledged(key, 3)
    with (tmp_path / RUN / "a0.log").open("ab") as log:
        log.write(b"bytes without a stored event")
    async with open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler:
        held = SessionState(key, last_seq=4)
        async with FakeAgent(scheduler.address, slots=5, sessions=[held], answer=succeed) as agent:
            resume = await agent.take("resume")
            assert isinstance(resume, wire.Resume)
            assert (resume.seq, resume.cursor, resume.stage) == (
                3,
                Cursor(4, 1).encode(),
                wire.STAGE_COMMANDS,
            )
            assert not resume.secrets
            await agent.event(key, LogChunk(b"two\n"), seq=4)
            await agent.event(key, Finished(FAILURE), seq=5)
            report, seen = await watch(scheduler)
            assert (await agent.action()).secrets == {"TOKEN": "s3cret"}
    own = [event for event in seen if event.action == "a0"]
    assert texts(own) == b"one\ntwo\n"
    assert (tmp_path / RUN / "a0.log").read_bytes() == b"one\ntwo\n"
    assert report.exit_code is ExitCode.FAILED
    assert sum(isinstance(event.body, ActionEnded) for event in seen) == 3


async def test_the_owner_of_an_older_claim_is_fenced(tmp_path: Path) -> None:
    text = ONE.replace("commands: [x]", "commands: [x], secrets: [TOKEN]")
    async with (
        open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler,
        FakeAgent(scheduler.address, pod="frozen") as frozen,
    ):
        await queue(scheduler, text)
        action = await frozen.action()
        key = translate.key(action)
        await frozen.event(key, Accepted("pod"))
        await frozen.acknowledged(key, 1)
        adopted = Key(key.action_id, 1, 2)
        session = SessionState(adopted, adopted=True)
        async with FakeAgent(scheduler.address, pod="adopting", sessions=[session]) as adopting:
            resume = await adopting.take("resume")
            assert isinstance(resume, wire.Resume)
            assert (resume.seq, resume.claim, dict(resume.secrets)) == (1, 2, {"TOKEN": "s3cret"})
            # The adopting agent may have to begin the action.
            assert (resume.action.claim, resume.action.commands) == (2, action.commands)
            assert resume.action.secrets == resume.secrets
            await frozen.event(key, LogChunk(b"stale\n"))
            discard = await frozen.take("discard")
            assert isinstance(discard, wire.Discard)
            assert (discard.claim, discard.claimed_by_other) == (1, True)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await frozen.upload(key, file_parts((b"f", b"x")))
            assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            await adopting.event(adopted, LogChunk(b"right\n"), seq=2)
            await adopting.event(adopted, Finished(FAILURE), seq=3)
            _, seen = await watch(scheduler)
    assert texts(seen) == b"right\n"


async def test_an_adoption_during_a_stream_is_answered(tmp_path: Path) -> None:
    async with (
        open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler,
        FakeAgent(scheduler.address, pod="adopting", ready=False) as adopting,
    ):
        async with FakeAgent(scheduler.address, pod="dead") as dead:
            await queue(scheduler)
            key = translate.key(await dead.action())
            await dead.event(key, Accepted("pod"))
            await dead.acknowledged(key, 1)
        state = SessionState(Key(key.action_id, 1, 2), adopted=True)
        await adopting.write(wire.AgentMessage(adopted=translate.session_state_message(state)))
        resume = await adopting.take("resume")
        assert isinstance(resume, wire.Resume)
        assert resume.seq == 1


async def test_the_next_attempt_starts_when_the_grace_of_a_lost_agent_ends(tmp_path: Path) -> None:
    async with open_scheduler("127.0.0.1:0", tmp_path, Access(), QUICK) as scheduler:
        async with FakeAgent(scheduler.address, pod="dies") as dies:
            await queue(scheduler)
            key = translate.key(await dies.action())
            await dies.event(key, Accepted("pod"))
            await dies.event(key, LogChunk(b"first\n"))
            await dies.upload(key, file_parts((b"deep/f", b"x"), (b"same", b"x")))
            await dies.acknowledged(key, 2)
        async with FakeAgent(scheduler.address, pod="lives") as lives:
            again = await lives.action()
            assert (again.action_id, again.attempt, again.claim) == (key.action_id, 2, 1)
            await lives.event(key, LogChunk(b"stale\n"), seq=3)
            discard = await lives.take("discard")
            assert isinstance(discard, wire.Discard)
            assert (discard.attempt, discard.claimed_by_other) == (1, False)
            await lives.upload(translate.key(again), file_parts((b"same", b"x")))
            await lives.live(again, life(b"second\n"))
            report, seen = await watch(scheduler)
    assert report.actions["a"].attempts == 2
    assert report.actions["a"].files == {b"same": 1}
    assert not (tmp_path / RUN / "a" / "deep" / "f").exists()
    assert texts(seen) == b"first\nsecond\n"
    assert (tmp_path / RUN / "a.log").read_bytes() == b"second\n"
    assert (tmp_path / RUN / "a.log.1").read_bytes() == b"first\n"


async def test_the_last_attempt_fails(tmp_path: Path) -> None:
    options = SchedulerOptions(resume_grace=0.01, attempts=2)
    async with open_scheduler("127.0.0.1:0", tmp_path, Access(), options) as scheduler:
        await queue(scheduler)
        for attempt in (1, 2):
            async with FakeAgent(scheduler.address, pod=f"pod{attempt}") as agent:
                action = await agent.action()
                assert action.attempt == attempt
        report, _ = await watch(scheduler)
    outcome = report.actions["a"].outcome
    assert outcome
    assert (outcome.reason, outcome.message) == (
        Reason.INTERNAL,
        "the agent was lost in attempt 2, which was the last attempt",
    )
    assert report.exit_code is ExitCode.INFRASTRUCTURE


async def test_a_rejected_action_goes_to_another_agent(tmp_path: Path) -> None:
    async with (
        open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler,
        FakeAgent(scheduler.address, pod="full", slots=9) as full,
    ):
        await queue(scheduler)
        key = translate.key(await full.action())
        await full.event(key, Rejected(Rejection.NO_SLOT, "no"))
        await full.acknowledged(key, 1)
        async with FakeAgent(scheduler.address, pod="other", answer=succeed):
            report, _ = await watch(scheduler)
    assert report.actions["a"].attempts == 1
    assert report.exit_code is ExitCode.SUCCEEDED


async def test_cancelling_ends_waiting_actions_and_stops_running_ones(tmp_path: Path) -> None:
    async with (
        open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler,
        FakeAgent(scheduler.address, slots=1) as agent,
    ):
        await queue(scheduler, several(2))
        key = translate.key(await agent.action())
        scheduler.dispatcher.cancel(RUN, "stop it")
        cancel = await agent.take("cancel")
        assert isinstance(cancel, wire.Cancel)
        assert (cancel.action_id, cancel.attempt, cancel.message) == (key.action_id, 1, "stop it")
        await agent.event(key, Finished(CANCELLED))
        report, _ = await watch(scheduler)
    assert [each.outcome.result for each in report.actions.values() if each.outcome] == [Result.CANCELLED] * 2


async def test_ended_and_unknown_sessions_are_discarded(tmp_path: Path) -> None:
    async with open_scheduler("127.0.0.1:0", tmp_path, Access(), QUICK) as scheduler:
        async with FakeAgent(scheduler.address) as agent:
            await queue(scheduler)
            action = await agent.action()
            await agent.live(action)
        held = SessionState(translate.key(action), last_seq=7)
        unknown = SessionState(Key("elsewhere/a"), last_seq=1)
        async with FakeAgent(scheduler.address, nonce="2", sessions=[held, unknown]) as agent:
            found = [await agent.take("discard") for _ in range(2)]
    assert {each.action_id for each in found if isinstance(each, wire.Discard)} == {f"{RUN}/a", "elsewhere/a"}


async def test_the_stream_of_a_silent_agent_is_closed(tmp_path: Path) -> None:
    options = SchedulerOptions(health_interval=0.02, resume_grace=0.02)
    async with (
        open_scheduler("127.0.0.1:0", tmp_path, Access(), options) as scheduler,
        FakeAgent(scheduler.address) as agent,
    ):
        async with asyncio.timeout(30):
            await agent.ended.wait()
        assert not scheduler.dispatcher.agents.streams


async def test_a_new_registration_of_a_pod_closes_the_older_stream(tmp_path: Path) -> None:
    async with (
        open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler,
        FakeAgent(scheduler.address) as older,
        FakeAgent(scheduler.address, nonce="2"),
    ):
        async with asyncio.timeout(30):
            await older.ended.wait()
        assert [each.agent_id for each in scheduler.dispatcher.agents.streams.values()] == ["pod.2"]


async def test_another_protocol_version_is_refused(tmp_path: Path) -> None:
    async with (
        open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler,
        FakeAgent(scheduler.address, protocol=2) as agent,
    ):
        refused = await agent.take("refused")
        assert isinstance(refused, wire.Refused)
        assert refused.why == wire.Refused.PROTOCOL_VERSION


async def test_no_call_passes_an_empty_token_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("\n")
    async with open_scheduler("127.0.0.1:0", tmp_path, Access(tmp_path / "token")) as scheduler:
        for token in ("", " "):
            async with FakeAgent(scheduler.address, token=token) as agent:
                assert agent.code is grpc.StatusCode.UNAUTHENTICATED


async def test_a_call_without_the_token_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("right\n")
    async with open_scheduler("127.0.0.1:0", tmp_path, Access(tmp_path / "token")) as scheduler:
        async with FakeAgent(scheduler.address, token="wrong") as agent:
            assert agent.code is grpc.StatusCode.UNAUTHENTICATED
        async with FakeAgent(scheduler.address, token="right") as agent:
            assert agent.registered.is_set()


async def test_agents_and_people_have_tokens_of_their_own(tmp_path: Path) -> None:
    # Attack: a program with the agents' token submits a pipeline. Or a program with a person's token registers as an
    # agent and gets the secrets of the next action.
    files = {name: tmp_path / name for name in ("agents", "people")}
    for name, file in files.items():
        file.write_text(f"{name}\n")
    access = Access(files["agents"], submit_token_file=files["people"])
    async with open_scheduler("127.0.0.1:0", tmp_path / "state", access) as scheduler:
        async with FakeAgent(scheduler.address, token="people") as agent:
            assert agent.code is grpc.StatusCode.UNAUTHENTICATED
        async with FakeAgent(scheduler.address, token="agents") as agent:
            assert agent.registered.is_set()
        async with grpc.aio.insecure_channel(scheduler.address) as channel:
            local = local_pb2_grpc.LocalStub(channel)
            codes: dict[str, list[grpc.StatusCode]] = {}
            for name in files:
                sent = (("authorization", f"Bearer {name}"),)
                for call in (
                    local.Submit(local_pb2.SubmitRequest(pipeline="p", text="[]"), metadata=sent),
                    local.Watch(local_pb2.WatchRequest(pipeline="p"), metadata=sent),
                    local.Cancel(local_pb2.CancelRequest(pipeline="p"), metadata=sent),
                ):
                    codes.setdefault(name, []).append(await call.code())
    missing = grpc.StatusCode.NOT_FOUND
    assert codes["agents"] == [grpc.StatusCode.UNAUTHENTICATED] * 3
    assert codes["people"] == [grpc.StatusCode.INVALID_ARGUMENT, missing, missing]


async def test_files_are_stored_and_a_second_upload_replaces_them(tmp_path: Path) -> None:
    async with open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler, FakeAgent(scheduler.address) as agent:
        await queue(scheduler)
        key = translate.key(await agent.action())
        await agent.event(key, Accepted("pod"))
        await agent.upload(key, file_parts((b"old", b"1"), (b"same", b"2")))
        receipt = await agent.upload(key, file_parts((b"deep/n\xc3\xa9w", b"3"), (b"same", b"2"), mode=0o4755))
        assert (receipt.files, receipt.bytes) == (2, 2)
        await agent.event(key, ArtifactSummary(2, 2))
        await agent.event(key, Finished(FAILURE))
        report, _ = await watch(scheduler)
    folder = tmp_path / RUN / "a"
    assert sorted(str(each.relative_to(folder)) for each in folder.rglob("*")) == ["deep", "deep/néw", "same"]
    assert (folder / "same").stat().st_mode & 0o7777 == 0o755
    assert set(report.actions["a"].files) == {b"old", b"same", b"deep/n\xc3\xa9w"}
    assert not list((tmp_path / RUN).glob(".upload-*"))


@pytest.mark.parametrize("path", [b"../x", b"/etc/x", b"a/../x", b"", b"a//b", b"a/./b", b"a\0b", b"n" * 300])
async def test_hostile_paths_are_refused(tmp_path: Path, path: bytes) -> None:
    async with open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler, FakeAgent(scheduler.address) as agent:
        await queue(scheduler)
        key = translate.key(await agent.action())
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await agent.upload(key, file_parts((path, b"x")))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not [each for each in (tmp_path / RUN).rglob("*") if each.name not in ("a", "a.log")]


async def test_a_wrong_sha256_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    parts = file_parts((b"good", b"1"), (b"bad", b"2"))
    parts[5].file_end.sha256 = b"\0" * 32
    async with open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler, FakeAgent(scheduler.address) as agent:
        await queue(scheduler)
        key = translate.key(await agent.action())
        with pytest.raises(grpc.aio.AioRpcError, match="sha256 of b'bad' is wrong"):
            await agent.upload(key, parts)
    assert sorted(each.name for each in (tmp_path / RUN).iterdir()) == ["a.log"]


async def test_submit_shows_json_lines(tmp_path: Path) -> None:
    output = io.StringIO()
    async with (
        open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler,
        FakeAgent(scheduler.address, answer=fail_with_files),
    ):
        code = await submit(
            Target(scheduler.address, tls=False),
            parser.parse(ONE, "p.yaml"),
            secrets={},
            output="json",
            stream=output,
        )
    lines = [json.loads(line) for line in output.getvalue().splitlines()]
    assert code is ExitCode.FAILED
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    assert [line for line in lines if line["event"] not in ("submitted", "stage")] == [
        {"event": "artifact", "action": "a", "path": "f", "size": 1, "sha256": digest},
        {"event": "log", "action": "a", "text": "é\n", "source": "commands"},
        {"event": "command", "action": "a", "index": 1, "exit_code": 3, "seconds": 0.5},
        {
            "event": "finished",
            "action": "a",
            "outcome": "failed",
            "stage": "commands",
            "reason": "COMMAND_FAILED",
            "fault": "user",
            "exit_code": 3,
            "message": "command 1 failed",
        },
    ]


async def test_submit_brings_logs_and_files_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with (
        open_scheduler("127.0.0.1:0", tmp_path / "stored", Access()) as scheduler,
        FakeAgent(scheduler.address, answer=fail_with_files),
    ):
        target, pipeline = Target(scheduler.address, tls=False), parser.parse(ONE, "p.yaml")
        output = io.StringIO()
        code = await submit(target, pipeline, secrets={}, output="plain", artifacts=home, stream=output)
    assert code is ExitCode.FAILED
    found = {path.relative_to(home).as_posix(): path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert found == {"a.log": "é\n".encode(), "a/f": b"x"}
    assert str(home) in output.getvalue()
    assert "on the scheduler's machine" not in output.getvalue()


async def test_only_stored_files_can_be_downloaded(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("secret")
    async with (
        open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler,
        FakeAgent(scheduler.address, answer=fail_with_files),
    ):
        target = Target(scheduler.address, tls=False)
        await submit(target, parser.parse(ONE, "p.yaml"), secrets={}, output="json", stream=io.StringIO())
        (line,) = await list_pipelines(target)
        async with target.channel() as channel:
            stub = local_pb2_grpc.LocalStub(channel)
            for pipeline, action, path in (
                (line.split()[0], "a", b"../../other"),
                (line.split()[0], "../a", b""),
                ("none", "a", b"f"),
            ):
                request = local_pb2.DownloadRequest(pipeline=pipeline, action=action, path=path)
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await stub.Download(request).read()
                assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_pipelines_are_listed_and_cancelled_and_submit_writes_a_report(tmp_path: Path) -> None:
    report = tmp_path / "out" / "report.md"
    async with open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler, FakeAgent(scheduler.address) as agent:
        target = Target(scheduler.address, tls=False)
        client = asyncio.create_task(
            submit(
                target, parser.parse(ONE, "p.yaml"), secrets={}, output="json", reports=[report], stream=io.StringIO()
            )
        )
        key = translate.key(await agent.action())
        (line,) = await list_pipelines(target)
        run_id, state, ended, *_, name = line.split()
        assert (state, ended, name) == ("running", "0/1", "p.yaml")
        with pytest.raises(Unreachable, match="no pipeline has the id 'none'"):
            await cancel_pipeline(target, "none")
        await cancel_pipeline(target, run_id)
        await agent.take("cancel")
        await agent.event(key, Finished(CANCELLED))
        assert await client is ExitCode.FAILED
        (line,) = await list_pipelines(target)
        assert line.split()[1:3] == ["cancelled", "1/1"]
    assert "p" in report.read_text("utf-8")


async def fail_with_files(agent: FakeAgent, action: wire.Action) -> None:
    await agent.upload(translate.key(action), file_parts((b"f", b"x")))
    await agent.live(action, life("é\n".encode(), FAILURE))


async def test_submit_continues_after_a_restart_of_the_scheduler(tmp_path: Path) -> None:
    output = io.StringIO()
    async with open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler:
        address = scheduler.address
        target = Target(address, tls=False)
        client = asyncio.create_task(
            submit(target, parser.parse(ONE, "p.yaml"), secrets={}, output="json", stream=output)
        )
        async with FakeAgent(address) as agent:
            key = translate.key(await agent.action())
            await agent.event(key, LogChunk(b"one\n"))
            await agent.acknowledged(key, 1)
    async with (
        open_scheduler(address, tmp_path, Access()) as scheduler,
        FakeAgent(address, nonce="2", sessions=[SessionState(key, 1)]) as agent,
    ):
        await agent.take("resume")
        await agent.event(key, LogChunk(b"two\n"), seq=2)
        await agent.event(key, Finished(FAILURE), seq=3)
        async with asyncio.timeout(30):
            assert await client is ExitCode.FAILED
    assert [line["text"] for line in map(json.loads, output.getvalue().splitlines()) if "text" in line] == [
        "one\n",
        "two\n",
    ]


async def test_an_action_continues_after_a_state_loss_when_submit_sends_it_again(tmp_path: Path) -> None:
    output = io.StringIO()
    async with open_scheduler("127.0.0.1:0", tmp_path / "old", Access()) as scheduler:
        address = scheduler.address
        target = Target(address, tls=False)
        client = asyncio.create_task(
            submit(target, parser.parse(ONE, "p.yaml"), secrets={}, output="json", stream=output)
        )
        async with FakeAgent(address) as agent:
            key = translate.key(await agent.action())
            await agent.event(key, LogChunk(b"one\n"))
            await agent.acknowledged(key, 1)
    # The agent reports attempt 2 and claim 3 to the new scheduler. Without this report, a scheduler without state would
    # begin with attempt 1 and claim 1.
    key = Key(key.action_id, 2, 3)
    async with (
        open_scheduler(address, tmp_path / "new", Access()) as scheduler,
        FakeAgent(address, nonce="2", sessions=[SessionState(key, 1)]) as agent,
    ):
        resume = await agent.take("resume")
        assert isinstance(resume, wire.Resume)
        assert (translate.key(resume), resume.seq) == (key, 0)
        await agent.event(key, LogChunk(b"one\n"), seq=1)
        await agent.event(key, LogChunk(b"two\n"), seq=2)
        await agent.event(key, Finished(FAILURE), seq=3)
        async with asyncio.timeout(30):
            assert await client is ExitCode.FAILED
        run_id = key.action_id.partition("/")[0]
        assert (tmp_path / "new" / run_id / "a.log").read_bytes() == b"one\ntwo\n"
        assert "action" not in agent.received, "the action was sent a second time"


async def test_no_secret_is_stored_after_the_end_of_a_pipeline(tmp_path: Path) -> None:
    text = ONE.replace("commands: [x]", "commands: [x], secrets: [TOKEN]")
    async with open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler, FakeAgent(scheduler.address) as agent:
        await queue(scheduler, text)
        action = await agent.action()
        assert action.secrets == {"TOKEN": "s3cret"}
        (kept,) = (tmp_path / "secrets").iterdir()
        assert kept.stat().st_mode & 0o777 == 0o600
        await agent.live(action)
        await watch(scheduler)
    assert b"s3cret" not in everything(tmp_path)


async def test_submit_prints_what_it_waits_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("agent.cli.submit.NOTICE_SECONDS", 0.0)
    target = Target("127.0.0.1:9", tls=False)
    code = await submit(target, parser.parse(ONE, "p.yaml"), secrets={}, output="plain", give_up=0.6)
    assert code is ExitCode.INFRASTRUCTURE
    assert capsys.readouterr().err.count("waiting for the scheduler at 127.0.0.1:9, giving up after 0.6 s") == 1
