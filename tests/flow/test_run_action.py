"""Whole runs of actions: each way in which an action can end, with its log and outcome, and nothing left behind."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs
from tenacity import wait_none

from agent.domain.actions import Action, ArtifactRules, Cancel, Key, When
from agent.domain.errors import ActionFailed, ClusterError, Reason, Rejection, SchedulerError, Stage
from agent.domain.events import Accepted, LogChunk, Rejected, Source, StageChanged
from agent.domain.observations import Collected, Exited, LogGap, LogLost, Lost, Running, SetupFailed, Waiting
from agent.domain.outcome import Result
from agent.domain.session_state import Resume
from agent.execution.registry import SessionRegistry
from agent.execution.timings import SessionTimings
from agent.settings import Settings
from agent.telemetry.metrics import Metrics
from tests.fakes.cluster import FakeBackend, Script, collected
from tests.fakes.sink import RecordingEventSink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ADMISSION, SETUP, COMMANDS, ARTIFACTS = Stage
ALWAYS = ArtifactRules(when=When.ALWAYS)
DECLARED = ArtifactRules(paths=("out/**",))
NONE = ArtifactRules(when=When.NEVER)
TIMINGS = SessionTimings(kill_margin=0.05, upload_backoff=wait_none())
# Seconds of a sleep in virtual time. Virtual time advances only when every task waits, so all pending work is done
# after a sleep of SETTLE.
SETTLE = 0.01


class Rig:
    """The session registry of an agent, with a cluster in memory and a sink that records the events."""

    def __init__(self, **settings: Any) -> None:
        agent = {"slots": 3} | settings.pop("agent", {})
        self.settings = Settings.model_validate({"agent": agent, **settings})
        self.backend = FakeBackend()
        self.sink = RecordingEventSink()
        self.metrics = Metrics()
        self.sessions: SessionRegistry

    @asynccontextmanager
    async def open(self) -> AsyncIterator[SessionRegistry]:
        """Run a session registry. At the end of the block all sessions must end and leave nothing behind."""
        async with asyncio.TaskGroup() as tasks:
            self.sessions = SessionRegistry(
                self.settings, self.backend, self.sink, self.metrics, tasks, timings=TIMINGS
            )
            yield self.sessions
            async with asyncio.timeout(30):
                await self.sessions.idle()
        self.clean()

    def clean(self) -> None:
        """Check that every environment was removed and that every slot is free."""
        assert self.backend.alive == set()
        for environment in self.backend.environments.values():
            assert environment.removals == max(1, environment.creations), environment.steps
            assert environment.steps[-1] == "removed", environment.steps
        assert all(outlet.closed == 1 for outlet in self.sink.outlets.values())
        assert (self.sessions.used, self.sessions.attempt_tasks) == (0, {})
        assert self.sample("slots_used") == 0

    def sample(self, name: str, **labels: str) -> float:
        """Return the value of the metric `name`, or 0.0 if it has no sample."""
        return self.metrics.registry.get_sample_value(f"sealci_agent_{name}", labels) or 0.0


@pytest.fixture
def rig() -> Rig:
    return Rig()


def action(name: str = "a", **fields: Any) -> Action:
    return Action(Key(name), "alpine", ("one", "two"), **fields)


async def life(rig: Rig, script: Script, **fields: Any) -> Any:
    """Run one action to its end. Return its RecordingSessionSink, which has the recorded events.

    `script` is what the pod does. `fields` are fields of the action.
    """
    rig.backend.script = lambda _: script
    async with rig.open() as sessions:
        sessions.action(action(**fields))
    return rig.sink["a"]


# ---- success and failure


async def test_success_from_acceptance_to_files(rig: Rig) -> None:
    sent = await life(rig, Script())
    assert isinstance(sent.events[0], Accepted)
    assert sent.events[0].environment == "memory/a"
    assert sent.stages == [SETUP, COMMANDS, ARTIFACTS]
    assert (sent.started, sent.log) == ([1, 2], b"hello\nhello\n")
    assert (sent.outcome.result, sent.outcome.exit_code, sent.outcome.command) == (Result.SUCCEEDED, 0, 2)
    assert sent.outcome.stage is ARTIFACTS
    assert [type(part).__name__ for part in sent.uploads[0]] == ["FileStart", "FileData", "FileEnd"]
    assert [summary.files for summary in sent.summaries] == [1]
    steps = rig.backend.environments["a"].steps
    assert [step for step in steps if step in ("create", "log ended", "files", "remove")] == [
        "create",
        "log ended",
        "files",
        "remove",
    ]
    assert rig.sample("actions_completed_total", result="succeeded", stage="artifacts", reason="", fault="") == 1
    assert rig.sample("phase_duration_seconds_count", phase="commands") == 1


async def test_a_later_command_fails(rig: Rig) -> None:
    sent = await life(rig, Script(codes=(0, 7), output=b"no newline"))
    outcome = sent.outcome
    assert (outcome.result, outcome.stage, outcome.reason) == (Result.FAILED, COMMANDS, Reason.COMMAND_FAILED)
    assert (outcome.exit_code, outcome.command) == (7, 2)
    assert sent.log == b"no newlineno newline"
    assert (sent.uploads, sent.summaries, sent.stages[-1]) == ([], [], COMMANDS)


@pytest.mark.parametrize(
    ("rules", "code", "copied"),
    [
        (ArtifactRules(), 0, True),
        (ArtifactRules(), 1, False),
        (ALWAYS, 0, True),
        (ALWAYS, 1, True),
        (ArtifactRules(when=When.FAILURE), 0, False),
        (ArtifactRules(when=When.FAILURE), 1, True),
        (NONE, 0, False),
        (NONE, 1, False),
    ],
)
async def test_when_files_are_copied(rig: Rig, rules: ArtifactRules, code: int, copied: bool) -> None:
    sent = await life(rig, Script(codes=(0, code)), artifacts=rules)
    assert bool(sent.uploads) == copied
    assert sent.outcome.result is (Result.FAILED if code else Result.SUCCEEDED)


async def test_secrets_are_masked_in_the_log(rig: Rig) -> None:
    sent = await life(rig, Script(output=b"my hunter2-hunter2!\n"), secrets={"TOKEN": "hunter2-hunter2"})
    assert sent.log == b"my ***!\n" * 2


@pytest.mark.parametrize(
    ("piece", "says"),
    [
        (LogLost("the pod is gone"), b"[the log ends here: the pod is gone]"),
        (LogGap(8, 1234), b"[gap in the log: 1234 bytes are missing: "),
    ],
)
async def test_missing_log_has_a_notice_and_changes_no_verdict(rig: Rig, piece: LogLost | LogGap, says: bytes) -> None:
    sent = await life(rig, Script(tail=(piece,)))
    assert says in sent.log
    assert sent.outcome.result is Result.SUCCEEDED


@pytest.mark.looptime
async def test_the_log_is_sent_to_its_end_after_the_commands_have_ended(rig: Rig) -> None:
    rig.backend.script = lambda _: Script(holds=frozenset({"commands"}))
    async with rig.open() as sessions:
        sessions.action(action())
        environment = await rig.backend.at("a", "commands")
        await environment.show(Exited(0, 2, None))
        await asyncio.sleep(SETTLE)
        assert "files" not in environment.steps
        await environment.unblock("commands")
    assert rig.sink["a"].log == b"hello\nhello\n"


# ---- set-up


async def test_a_failed_set_up_has_its_log_and_stage(rig: Rig) -> None:
    failure = SetupFailed(Reason.IMAGE_PULL_FAILED, "the image cannot be pulled", "a long text\nfor people")
    sent = await life(rig, Script(setups=[(Waiting("pulling"), failure)]))
    outcome = sent.outcome
    assert (outcome.result, outcome.stage, outcome.reason) == (Result.FAILED, SETUP, Reason.IMAGE_PULL_FAILED)
    assert (outcome.message, outcome.exit_code, outcome.command) == ("the image cannot be pulled", None, 0)
    chunks = [event for event in sent.events if isinstance(event, LogChunk)]
    assert [(chunk.data, chunk.source) for chunk in chunks] == [(b"a long text\nfor people\n", Source.SETUP)]
    assert (sent.uploads, sent.stages) == ([], [SETUP])


async def test_a_refused_create_fails_the_set_up(rig: Rig) -> None:
    refused = ActionFailed(SETUP, Reason.QUOTA_EXCEEDED, "no quota", log="the words of the API")
    sent = await life(rig, Script(creates=[refused]))
    assert (sent.outcome.stage, sent.outcome.reason, sent.log) == (
        SETUP,
        Reason.QUOTA_EXCEEDED,
        b"the words of the API\n",
    )


async def test_the_reasons_for_waiting_are_reported(rig: Rig) -> None:
    sent = await life(rig, Script(setups=[(Waiting("for a node"), Waiting("pulling"), Running())]))
    details = [event.detail for event in sent.events if getattr(event, "stage", None) is SETUP]
    assert details == ["", "for a node", "pulling"]


async def test_commands_that_are_quicker_than_the_watch_succeed(rig: Rig) -> None:
    script = Script(setups=[(Exited(0, 2, None),)])
    rig.backend.script = lambda _: script
    async with rig.open() as sessions:
        sessions.action(action())
        environment = await rig.backend.at("a", "create")
        await environment.write(b"quick\n")
        environment.log_is_over = True
        await rig.backend.notify()
    sent = rig.sink["a"]
    assert (sent.outcome.result, sent.log) == (Result.SUCCEEDED, b"quick\n")


async def test_a_notice_of_the_set_up_stands_in_the_log_before_the_output(rig: Rig) -> None:
    sent = await life(rig, Script(setup_notice="the clone has pointers"))
    assert sent.outcome.result is Result.SUCCEEDED
    assert sent.log.startswith(b"the clone has pointers\nhello\n")


async def test_a_pod_that_never_ran_a_command_is_re_created(rig: Rig) -> None:
    lost = Lost(Reason.UNSCHEDULABLE, "the node refused the pod", unstarted=True)
    sent = await life(rig, Script(setups=[(lost,), (Waiting("pulling"), Running())]))
    assert sent.outcome.result is Result.SUCCEEDED
    assert b"the node refused the pod; no command had run, so the pod is re-created\n" in sent.log
    environment = rig.backend.environments["a"]
    assert (environment.creations, environment.removals) == (2, 2)


async def test_a_pod_is_re_created_only_once(rig: Rig) -> None:
    lost = Lost(Reason.UNSCHEDULABLE, "the node refused the pod", unstarted=True, log="why")
    sent = await life(rig, Script(setups=[(lost,)]))
    assert (sent.outcome.stage, sent.outcome.reason) == (SETUP, Reason.UNSCHEDULABLE)
    assert sent.log.endswith(b"why\n")
    assert rig.backend.environments["a"].creations == 2


async def test_a_pod_that_may_have_run_a_command_is_not_re_created(rig: Rig) -> None:
    sent = await life(rig, Script(setups=[(Lost(Reason.NODE_LOST, "the node is away"),)]))
    assert (sent.outcome.result, sent.outcome.stage, sent.outcome.reason) == (Result.FAILED, SETUP, Reason.NODE_LOST)
    assert rig.backend.environments["a"].creations == 1


@pytest.mark.parametrize("unstarted", [False, True])
async def test_a_loss_while_the_commands_run_is_the_infrastructures(rig: Rig, unstarted: bool) -> None:
    sent = await life(rig, Script(end=Lost(Reason.EVICTED, "low on memory", unstarted, "the set-up log")))
    outcome = sent.outcome
    assert (outcome.stage, outcome.reason, outcome.exit_code) == (COMMANDS, Reason.EVICTED, None)
    assert Reason.EVICTED.infrastructure
    assert sent.log.endswith(b"the set-up log\n")
    assert rig.backend.environments["a"].creations == 1


# ---- cancelled actions and timeouts


@pytest.mark.parametrize(
    ("step", "stage", "code"),
    [("create", SETUP, None), ("setup", SETUP, None), ("commands", COMMANDS, 143), ("files", ARTIFACTS, None)],
)
async def test_a_cancel_in_every_stage(rig: Rig, step: str, stage: Stage, code: int | None) -> None:
    rig.backend.script = lambda _: Script(holds=frozenset({step}))
    async with rig.open() as sessions:
        sessions.action(action(artifacts=ALWAYS))
        environment = await rig.backend.at("a", step)
        sessions.cancel(("a", 1), Cancel(grace=3.0, message="not wanted"))
        sessions.cancel(("a", 1), Cancel(grace=9.0, message="again"))
    outcome = rig.sink["a"].outcome
    assert (outcome.result, outcome.reason, outcome.message) == (Result.CANCELLED, Reason.CANCELLED, "not wanted")
    assert (outcome.stage, outcome.exit_code) == (stage, code)
    assert environment.interrupts == ([3.0] if step == "commands" else [])
    assert "files" not in environment.steps or step == "files"


async def test_a_cancel_while_the_pod_is_removed_changes_nothing(rig: Rig) -> None:
    rig.backend.script = lambda _: Script(holds=frozenset({"remove"}))
    async with rig.open() as sessions:
        sessions.action(action())
        environment = await rig.backend.at("a", "remove")
        sessions.cancel(("a", 1), Cancel())
        assert sessions.used == 1
        await environment.unblock("remove")
    assert rig.sink["a"].outcome.result is Result.SUCCEEDED


async def test_a_cancel_of_an_unknown_session_is_ignored(rig: Rig) -> None:
    async with rig.open() as sessions:
        sessions.cancel(("a", 1), Cancel())


async def test_commands_that_cannot_be_stopped_end_with_their_environment(rig: Rig) -> None:
    rig.backend.script = lambda _: Script(holds=frozenset({"commands"}), deaf=True)
    async with rig.open() as sessions:
        sessions.action(action(artifacts=ALWAYS))
        await rig.backend.at("a", "commands")
        sessions.cancel(("a", 1), Cancel())
    outcome = rig.sink["a"].outcome
    assert (outcome.result, outcome.exit_code) == (Result.CANCELLED, None)
    assert rig.sink["a"].uploads == []


@pytest.mark.looptime
@pytest.mark.parametrize(("rules", "copied"), [(ArtifactRules(), False), (ALWAYS, True), (NONE, False)])
async def test_a_timeout_ends_the_commands_and_may_still_have_files(
    rig: Rig, rules: ArtifactRules, copied: bool
) -> None:
    rig.backend.script = lambda _: Script(holds=frozenset({"commands", "files"}))
    async with rig.open() as sessions:
        sessions.action(action(timeout=0.02, artifacts=rules))
        if copied:
            environment = await rig.backend.at("a", "files")
            # The stop request of the timeout has ended the commands. It must not end the copy of artifacts too.
            await asyncio.sleep(SETTLE)
            await environment.unblock("files")
    sent = rig.sink["a"]
    outcome = sent.outcome
    assert (outcome.result, outcome.stage, outcome.reason) == (Result.FAILED, COMMANDS, Reason.DEADLINE_EXCEEDED)
    assert (outcome.exit_code, outcome.message) == (143, "the commands did not end within 0.02 s")
    assert rig.backend.environments["a"].interrupts == [10.0]
    assert len(sent.summaries) == copied


@pytest.mark.looptime
async def test_a_timeout_does_not_count_the_set_up(rig: Rig) -> None:
    rig.backend.script = lambda _: Script(holds=frozenset({"setup"}))
    async with rig.open() as sessions:
        sessions.action(action(timeout=1.0))
        environment = await rig.backend.at("a", "setup")
        # The set-up takes 2 s, which is longer than the action's timeout of 1 s. The timeout must not count the set-up.
        await asyncio.sleep(2.0)
        await environment.unblock("setup")
    assert rig.sink["a"].outcome.stage in (COMMANDS, ARTIFACTS)
    assert rig.sink["a"].started == [1, 2]


# ---- copied files


@pytest.mark.parametrize("error", [ClusterError("cut", retryable=True), SchedulerError("broke")])
async def test_a_broken_copy_starts_again(rig: Rig, error: Exception) -> None:
    script = Script()
    if isinstance(error, SchedulerError):
        rig.sink.upload_errors = [error]
    else:
        script.collections = [error, collected()]
    sent = await life(rig, script)
    assert sent.outcome.result is Result.SUCCEEDED
    assert (len(sent.uploads), len(sent.summaries)) == (2, 1)
    assert rig.sample("artifact_retries_total") == 1


@pytest.mark.parametrize(
    ("collection", "rules", "tries", "says"),
    [
        (ClusterError("no such container"), ArtifactRules(), 1, "no such container"),
        (ClusterError("cut", retryable=True), ArtifactRules(), TIMINGS.upload_attempts, "cut"),
        (collected(refused="out/x is over the limit"), DECLARED, 1, "out/x is over the limit"),
    ],
)
async def test_files_that_cannot_be_copied_fail_a_success(
    rig: Rig,
    collection: Collected | Exception,
    rules: ArtifactRules,
    tries: int,
    says: str,
) -> None:
    sent = await life(rig, Script(collections=[collection]), artifacts=rules)
    outcome = sent.outcome
    assert (outcome.result, outcome.stage, outcome.reason) == (Result.FAILED, ARTIFACTS, Reason.ARTIFACTS_FAILED)
    assert (outcome.exit_code, len(sent.uploads)) == (0, tries)
    assert says in outcome.message
    assert says.encode() in sent.log


async def test_files_that_cannot_be_copied_do_not_hide_a_failure(rig: Rig) -> None:
    sent = await life(rig, Script(codes=(3,), collections=[ClusterError("gone")]), artifacts=ALWAYS)
    assert (sent.outcome.reason, sent.outcome.exit_code) == (Reason.COMMAND_FAILED, 3)
    assert b"gone" in sent.log


@pytest.mark.parametrize(
    ("rules", "result"), [(ArtifactRules(), Result.SUCCEEDED), (DECLARED, Result.FAILED), (NONE, Result.SUCCEEDED)]
)
async def test_files_lost_with_the_pod_fail_only_actions_that_named_them(
    rig: Rig, rules: ArtifactRules, result: Result
) -> None:
    end = Exited(0, 2, None, "", files=False, files_lost="DeadlineExceeded")
    sent = await life(rig, Script(end=end), artifacts=rules)
    assert sent.outcome.result is result
    assert (b"the files are lost: DeadlineExceeded" in sent.log) == (rules is not NONE)
    assert sent.uploads == []


async def test_left_out_files_are_reported(rig: Rig) -> None:
    sent = await life(rig, Script(collections=[collected(left_out=3)]))
    assert sent.outcome.result is Result.SUCCEEDED
    assert b"[3 files were left out]\n  and 3 more\n" in sent.log


async def test_a_copy_has_a_deadline() -> None:
    rig = Rig(artifacts={"timeout": 0.02})
    sent = await life(rig, Script(holds=frozenset({"files"})))
    assert (sent.outcome.reason, sent.outcome.stage) == (Reason.ARTIFACTS_FAILED, ARTIFACTS)
    assert "within 0.02 s" in sent.outcome.message


# ---- acknowledgements and messages of the scheduler


async def test_the_environment_is_kept_until_the_scheduler_has_everything(rig: Rig) -> None:
    rig.sink.acknowledges.clear()
    async with rig.open() as sessions:
        sessions.action(action())
        await rig.backend.at("a", "files")
        await rig.sink["a"].settling.wait()
        assert rig.backend.alive == {"memory/a"}
        assert sessions.used == 1
        rig.sink.acknowledges.set()


@pytest.mark.parametrize("step", ["create", "setup", "commands", "files"])
async def test_a_discard_ends_a_session_without_an_outcome(rig: Rig, step: str) -> None:
    rig.backend.script = lambda _: Script(holds=frozenset({step}))
    async with rig.open() as sessions:
        sessions.action(action())
        await rig.backend.at("a", step)
        sessions.discard(Key("a"), claimed_by_other=False, message="superseded")
        sessions.discard(Key("a"), claimed_by_other=False, message="again")
    assert not [event for event in rig.sink["a"].events if hasattr(event, "outcome")]


async def test_a_discard_of_a_finished_session_does_not_stop_its_cleaning(rig: Rig) -> None:
    rig.backend.script = lambda _: Script(holds=frozenset({"remove"}))
    async with rig.open() as sessions:
        sessions.action(action())
        environment = await rig.backend.at("a", "remove")
        sessions.discard(Key("a"), claimed_by_other=False, message="it is finished")
        await environment.unblock("remove")
    assert rig.sample("actions_completed_total", result="succeeded", stage="artifacts", reason="", fault="") == 1


async def test_a_discard_of_an_older_claim_is_ignored(rig: Rig) -> None:
    rig.backend.script = lambda _: Script(holds=frozenset({"commands"}))
    async with rig.open() as sessions:
        sessions.action(Action(Key("a", 1, 2), "alpine", ("one",)))
        environment = await rig.backend.at("a", "commands")
        sessions.discard(Key("a", 1, 1), claimed_by_other=True, message="older")
        await environment.unblock("commands")
    assert rig.sink["a"].outcome.result is Result.SUCCEEDED


# ---- admission


async def test_a_repeated_action_is_the_session_that_exists(rig: Rig) -> None:
    rig.backend.script = lambda _: Script(holds=frozenset({"commands"}))
    async with rig.open() as sessions:
        sessions.action(action())
        environment = await rig.backend.at("a", "commands")
        sessions.action(action())
        assert sessions.used == 1
        await environment.unblock("commands")
    assert environment.creations == 1
    assert rig.sample("actions_received_total") == 1


async def test_actions_beyond_the_slots_are_rejected() -> None:
    rig = Rig(agent={"slots": 1})
    rig.backend.script = lambda _: Script(holds=frozenset({"commands", "remove"}))
    async with rig.open() as sessions:
        sessions.action(action("a"))
        environment = await rig.backend.at("a", "commands")
        sessions.action(action("b"))
        await environment.unblock("commands")
        await rig.backend.at("a", "remove")
        sessions.action(action("c"))
        await environment.unblock("remove")
    for name in ("b", "c"):
        (event,) = rig.sink[name].events
        assert isinstance(event, Rejected)
        assert (event.why, event.message) == (Rejection.NO_SLOT, "all 1 slots are in use")
    assert list(rig.backend.environments) == ["a"]
    assert rig.sample("actions_rejected_total", reason="no_slot") == 2


async def test_a_draining_agent_rejects_actions_and_finishes_its_sessions(rig: Rig) -> None:
    rig.backend.script = lambda _: Script(holds=frozenset({"commands"}))
    async with rig.open() as sessions:
        sessions.action(action("a"))
        environment = await rig.backend.at("a", "commands")
        sessions.drain("SIGTERM")
        sessions.action(action("b"))
        await environment.unblock("commands")
    (event,) = rig.sink["b"].events
    assert isinstance(event, Rejected)
    assert event.why is Rejection.DRAINING
    assert rig.sink["a"].outcome.result is Result.SUCCEEDED
    assert rig.sample("draining") == 1


async def test_actions_are_rejected_while_the_cluster_is_away(rig: Rig) -> None:
    rig.backend.reachable = False
    async with rig.open() as sessions:
        sessions.action(action())
    (event,) = rig.sink["a"].events
    assert isinstance(event, Rejected)
    assert event.why is Rejection.CLUSTER_UNAVAILABLE
    assert rig.backend.environments == {}


async def test_an_action_against_the_policy_fails_with_a_log(rig: Rig) -> None:
    sent = await life(rig, Script(), timeout=-1.0)
    assert [type(event).__name__ for event in sent.events] == ["Accepted", "LogChunk", "Finished"]
    assert (sent.outcome.stage, sent.outcome.reason) == (ADMISSION, Reason.INVALID_CONFIGURATION)
    assert sent.log.startswith(b"The action cannot be run:\ntimeout: -1 s is not allowed")
    assert rig.backend.environments == {}
    assert (
        rig.sample(
            "actions_completed_total", result="failed", stage="admission", reason="INVALID_CONFIGURATION", fault="user"
        )
        == 1
    )


# ---- many sessions, and faults


@pytest.mark.parametrize("where", ["create", "files", "remove", "sink"])
async def test_a_fault_in_one_of_twenty_sessions_harms_no_other(where: str) -> None:
    rig = Rig(agent={"slots": 20})
    poison = RuntimeError("poison")
    scripts = {
        "create": Script(creates=[poison]),
        "files": Script(collections=[poison]),
        "remove": Script(remove_error=poison),
        "sink": Script(),
    }
    rig.backend.script = lambda action: scripts[where] if action.key.action_id == "7" else Script()
    rig.sink.poisoned = {"7"} if where == "sink" else set()
    async with rig.open() as sessions:
        for number in range(20):
            sessions.action(action(str(number)))
        assert sessions.used == 20
    others = [rig.sink[str(number)].outcome.result for number in range(20) if number != 7]
    assert others == [Result.SUCCEEDED] * 19
    assert rig.sample("internal_errors_total", where="session") == 1
    if where in ("create", "files"):
        outcome = rig.sink["7"].outcome
        assert (outcome.result, outcome.reason) == (Result.FAILED, Reason.INTERNAL)
        assert "poison" in outcome.message
    if where == "remove":
        assert rig.sink["7"].outcome.result is Result.SUCCEEDED


async def test_an_unknown_class_fails_with_the_list_and_makes_no_pod() -> None:
    rig = Rig(environment={"classes": {"large": {}, "gpu": {}}})
    sent = await life(rig, Script(), environment_class="gpux")
    assert (sent.outcome.stage, sent.outcome.reason) == (ADMISSION, Reason.INVALID_CONFIGURATION)
    assert sent.outcome.message == "class: there is no class 'gpux'; there are: large, gpu"
    assert rig.backend.environments == {}


async def test_a_backend_without_an_environment_fails_the_session(rig: Rig) -> None:
    def broken(_: Action) -> Script:
        raise RuntimeError("no")

    rig.backend.script = broken
    async with rig.open() as sessions:
        sessions.action(action())
    assert rig.sink["a"].outcome.reason is Reason.INTERNAL


async def test_cancel_all_ends_every_session(rig: Rig) -> None:
    rig.backend.script = lambda _: Script(holds=frozenset({"commands"}))
    async with rig.open() as sessions:
        for name in ("a", "b", "c"):
            sessions.action(action(name))
            await rig.backend.at(name, "commands")
        sessions.cancel_all("the agent was stopped")
    assert {rig.sink[name].outcome.message for name in ("a", "b", "c")} == {"the agent was stopped"}


async def test_abandoned_sessions_still_remove_their_environments(rig: Rig) -> None:
    rig.backend.script = lambda _: Script(holds=frozenset({"commands"}))
    async with rig.open() as sessions:
        sessions.action(action())
        await rig.backend.at("a", "commands")
        sessions.abandon()


async def test_a_session_that_is_not_even_accepted_leaves_nothing(rig: Rig) -> None:
    blocked: list[object] = []

    async def full(event: object) -> None:
        blocked.append(event)
        await asyncio.Event().wait()

    async with rig.open() as sessions:
        sessions.action(action())
        rig.sink["a"].send = full  # type: ignore[method-assign]
        await asyncio.sleep(0)
        sessions.discard(Key("a"), claimed_by_other=False, message="superseded")
    assert len(blocked) == 1
    assert rig.backend.environments["a"].removals == 1


# ---- interactive environments


async def test_the_workspace_is_uploaded_before_the_commands_and_held_after_a_failure(rig: Rig) -> None:
    with capture_logs() as logs:
        sent = await life(rig, Script(interactive=True, codes=(3,)))
    (began,) = (each for each in logs if each["event"] == "session began")
    assert began["environment"] == rig.backend.environments["a"].name
    details = [each.detail for each in sent.events if isinstance(each, StageChanged)]
    assert "copying the working tree, 1.5 MB" in details
    steps = rig.backend.environments["a"].steps
    assert [
        step for step in steps if step in ("create", "upload_workspace", "log", "hold_for_debugging", "remove")
    ] == [
        "create",
        "upload_workspace",
        "log",
        "hold_for_debugging",
        "remove",
    ]
    assert sent.log.endswith(b"the pod shows the cause\n"), "the cluster's message about a failure is in its log"
    assert sent.outcome.reason is Reason.COMMAND_FAILED


async def test_without_a_terminal_nothing_is_uploaded_or_held(rig: Rig) -> None:
    await life(rig, Script(codes=(3,)))
    assert not {"upload_workspace", "hold_for_debugging"} & set(rig.backend.environments["a"].steps)


@pytest.mark.parametrize("step", ["upload_workspace", "hold_for_debugging"])
async def test_a_cancel_ends_the_upload_and_the_hold(rig: Rig, step: str) -> None:
    rig.backend.script = lambda _: Script(interactive=True, codes=(3,), holds=frozenset({step}))
    async with rig.open() as sessions:
        sessions.action(action())
        await rig.backend.at("a", step)
        sessions.cancel(("a", 1), Cancel())
    outcome = rig.sink["a"].outcome
    assert outcome.result is (Result.CANCELLED if step == "upload_workspace" else Result.FAILED)


# ---- adopted sessions that no command has begun


@pytest.mark.parametrize("sent_again", [True, False])
async def test_an_adopted_action_that_has_not_begun_begins_only_if_the_scheduler_sends_it(
    rig: Rig, *, sent_again: bool
) -> None:
    rig.backend.script = lambda _: Script(begun=False)
    key = Key("a", 1, 2)
    async with rig.open() as sessions:
        environment = rig.backend.environment(Action(key, "", ("", ""), traceparent="trace"))
        rig.backend.alive.add(environment.name)
        assert sessions.adopt(environment.action, environment)
        # The scheduler may name the claim of the former agent in the action.
        whole = action(secrets={"TOKEN": "hunter2-hunter2"}) if sent_again else None
        sessions.resume(Resume(key, seq=2, stage=SETUP, action=whole))
    outcome = rig.sink["a"].outcome
    if not sent_again:
        assert (outcome.stage, outcome.reason) == (SETUP, Reason.INTERNAL)
        assert "create" not in environment.steps
        return
    assert outcome.result is Result.SUCCEEDED
    assert environment.steps[:3] == ["take over", "begin again", "create"]
    assert (environment.action.key, environment.action.traceparent) == (key, "trace")
    assert environment.action.commands == ("one", "two")
    assert rig.sink["a"].log.startswith(b"the former agent was lost before the first command")


async def test_an_adopted_action_that_has_not_begun_and_is_cancelled_never_begins(rig: Rig) -> None:
    rig.backend.script = lambda _: Script(begun=False)
    key = Key("a", 1, 2)
    async with rig.open() as sessions:
        environment = rig.backend.environment(Action(key, "", ("", "")))
        rig.backend.alive.add(environment.name)
        assert sessions.adopt(environment.action, environment)
        sessions.resume(Resume(key, seq=2, stage=SETUP, action=action(), cancel=Cancel()))
    assert rig.sink["a"].outcome.result is Result.CANCELLED
    assert "create" not in environment.steps
