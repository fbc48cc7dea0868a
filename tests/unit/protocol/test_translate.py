"""Translation between protobuf messages and the agent's own types: both directions agree, no enum member is missing,
and invalid fields are refused.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.duration_pb2 import Duration

from agent.domain.actions import (
    Action,
    ArtifactRules,
    Cancel,
    HealthCommand,
    Key,
    OnExit,
    Repository,
    Resources,
    Service,
    ServiceLog,
    When,
)
from agent.domain.artifacts import FileData, FileEnd, FilePart, FileStart, Input, InputFile, StoredObject
from agent.domain.errors import ActionFailed, Reason, Rejection, Stage
from agent.domain.events import (
    Accepted,
    ArtifactSummary,
    CommandFinished,
    CommandStarted,
    Event,
    Finished,
    LeftOut,
    LogChunk,
    Rejected,
    ServiceChanged,
    ServiceState,
    Source,
    StageChanged,
)
from agent.domain.log_cursor import Cursor
from agent.domain.outcome import Outcome, Result
from agent.domain.session_state import Feature, Health, Readiness, Resume, SessionState, WarmImage
from agent.protocol import translate
from agent.protocol.translate import fields
from agent.protocol.wire import agent_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

KEY = Key("übung/1", 2, 3)
CURSOR = Cursor(4000, 5, 4200, 30)

ACTIONS = [
    Action(KEY, "alpine", ("true",)),
    Action(
        key=KEY,
        image="alpine:3",
        commands=("cd /tmp", "echo 'ä'"),
        name="build",
        env={"A": "1", "EMPTY": ""},
        secrets={"TOKEN": "geheim"},
        repository=Repository("https://example.org/r.git", "main", 1, True, "creds", lfs=True),
        resources=Resources("500m", "1Gi", "2Gi"),
        timeout=90.25,
        artifacts=ArtifactRules(("out/**",), ("*.o",), When.ALWAYS),
        traceparent="00-1-2-03",
        pipefail=True,
    ),
    Action(KEY, "alpine", ("true",), pipefail=False),
    Action(KEY, "alpine", ("true",), artifacts=ArtifactRules(when=When.NEVER)),
    Action(
        KEY,
        "alpine",
        ("true",),
        inputs=(
            Input("build", "wheels", (InputFile(b"a/\xff", 0o755, 1 << 40, bytes(32), "s3://b/k"),)),
            Input("lint", "", (), optional=True),
        ),
    ),
    Action(
        KEY,
        "alpine",
        ("true",),
        secrets={"TOKEN": "geheim"},
        services=(
            Service("queue", "redis:8"),
            Service(
                "db",
                "postgres:18",
                aliases=("database",),
                command=("sh", "-c", "x"),
                args=("-c", ""),
                env={"A": "1"},
                secrets=("TOKEN",),
                ports=(5432, 65535),
                health=HealthCommand(("pg_isready",), 30.5),
                resources=Resources("500m", "1Gi", "2Gi"),
                scratch=("/data",),
                privileged=True,
                on_exit=OnExit.IGNORE,
                log=ServiceLog.NONE,
            ),
            *(Service(f"s{n}", "i", on_exit=each) for n, each in enumerate(OnExit)),
            *(Service(f"l{n}", "i", log=each) for n, each in enumerate(ServiceLog)),
            Service("health", "i", health=HealthCommand(("x",))),
        ),
    ),
]
EVENTS: list[Event] = [
    Accepted("ns/pod"),
    *(Rejected(why, "full") for why in Rejection),
    *(StageChanged(stage, "pulling image") for stage in Stage),
    CommandStarted(1, CURSOR),
    CommandFinished(2, -1, 1.5, CURSOR),
    LogChunk(b"\xff\x00", CURSOR),
    LogChunk(b"a\n", None, Source.SERVICE, "db", b"1|x|2"),
    ServiceChanged("db", ServiceState.ENDED, 137, "killed for memory"),
    *(ServiceChanged("db", state) for state in ServiceState),
    *(LogChunk(b"", None, source) for source in Source),
    ArtifactSummary(3, 4, (LeftOut(b"\xff/a", "too large"),), 7),
    Finished(Outcome(Result.SUCCEEDED, Stage.ARTIFACTS, None, 0, 3)),
    Finished(Outcome(Result.FAILED, Stage.SETUP, Reason.IMAGE_PULL_FAILED, None, 0, "no such image")),
    *(Finished(Outcome(Result.FAILED, Stage.COMMANDS, reason, 137, 1, "x")) for reason in Reason),
    Finished(Outcome(Result.CANCELLED, Stage.COMMANDS, Reason.CANCELLED, 143, 1)),
]
PARTS: list[FilePart | translate.UploadEnd] = [
    FileStart(b"\xff/a", 0o755, 1 << 40),
    FileData(b"\x00"),
    StoredObject("s3://b/a%20b", "etag"),
    FileEnd(bytes(32)),
    translate.UploadEnd(2, 1 << 40),
]


# ---- translation in both directions


@pytest.mark.parametrize("action", ACTIONS)
def test_actions(action: Action) -> None:
    assert translate.action(wire.Action.FromString(translate.action_message(action).SerializeToString())) == action


@pytest.mark.parametrize("event", EVENTS)
def test_events(event: Event) -> None:
    sent = translate.event_message(KEY, 9, event)
    assert translate.event(wire.Event.FromString(sent.SerializeToString())) == translate.Numbered(KEY, 9, event)


@pytest.mark.parametrize("part", PARTS)
def test_parts_of_an_upload(part: FilePart | translate.UploadEnd) -> None:
    assert translate.part(wire.ArtifactPart.FromString(translate.part_message(part).SerializeToString())) == part


@pytest.mark.parametrize("readiness", Readiness)
def test_health(readiness: Readiness) -> None:
    health = Health(readiness, 3, 4, False, "the cluster is away", 5, (WarmImage("alpine", "1", "1Gi", 2, "large"),))
    assert translate.health(translate.health_message(health)) == health


def test_session_states() -> None:
    state = SessionState(KEY, 7, True)
    assert translate.session_state(translate.session_state_message(state)) == state


@pytest.mark.parametrize(
    "resume",
    [Resume(KEY), Resume(KEY, 7, CURSOR, Stage.COMMANDS, 2, Cancel(0.5, "stop"), {"TOKEN": "geheim"}, {"db": b"1|x"})],
)
def test_resume_points(resume: Resume) -> None:
    assert translate.resume(translate.resume_message(resume)) == resume


@pytest.mark.parametrize("cancel", [Cancel(), Cancel(0.0), Cancel(2.5, "enough")])
def test_cancellations(cancel: Cancel) -> None:
    message = translate.cancel_message(("a", 2), cancel)
    assert (message.action_id, message.attempt) == ("a", 2)
    assert translate.cancel(message) == cancel


def test_a_log_chunk_without_a_cursor_has_none_on_the_wire() -> None:
    assert translate.event_message(KEY, 1, LogChunk(b"x")).log.cursor == b""


# ---- enums


def names(kind: Any, prefix: str = "") -> set[str]:
    """Return the names of a protobuf enum's values, without `prefix` and without the value UNSPECIFIED."""
    return {name.removeprefix(prefix) for name in kind.keys() if not name.endswith("UNSPECIFIED")}  # noqa: SIM118


@pytest.mark.parametrize(
    ("domain", "on_the_wire"),
    [
        (Stage, names(wire.Stage, "STAGE_")),
        (Result, names(wire.Result)),
        (Rejection, names(wire.Rejected.Why)),
        (Source, names(wire.LogChunk.Source)),
        (When, names(wire.ArtifactRules.When)),
        (OnExit, names(wire.Service.OnExit)),
        (ServiceLog, names(wire.Service.Log)),
        (ServiceState, names(wire.ServiceChanged.State)),
        (Readiness, names(wire.Health.Status)),
        (Reason, names(wire.Reason) - {"CANCELLED_BY_REQUEST"} | {"CANCELLED"}),
    ],
)
def test_enums_are_those_of_the_contract(domain: type[Enum], on_the_wire: set[str]) -> None:
    assert {member.name for member in domain} == on_the_wire


def test_numbers_from_32_on_are_reasons_of_the_infrastructure() -> None:
    for reason, number in fields.REASONS.items():
        assert reason.infrastructure == (number >= 32), reason


# ---- messages that the agent refuses


GOOD = wire.Action(action_id="a", attempt=1, claim=1, image="alpine", commands=["true"])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"action_id": ""}, "action_id"),
        ({"action_id": "ü" * 129}, "action_id"),
        ({"attempt": 0}, "attempt"),
        ({"claim": 0}, "claim"),
        ({"image": ""}, "image"),
        ({"image": "  "}, "image"),
        ({"commands": []}, "commands"),
        ({"timeout": Duration(seconds=-1)}, "timeout"),
        ({"timeout": Duration()}, "timeout"),
        ({"timeout": Duration(seconds=2**63 - 1)}, "timeout"),
        ({"timeout": Duration(seconds=-(2**63))}, "timeout"),
        ({"timeout": Duration(seconds=1, nanos=-(2**31))}, "timeout"),
        ({"timeout": Duration(seconds=fields.MAX_DURATION + 1)}, "timeout"),
        ({"artifacts": wire.ArtifactRules(when=9)}, "artifacts.when"),  # type: ignore[arg-type]
        ({"repository": wire.Repository(ref="main")}, "repository.url"),
    ],
)
def test_an_invalid_action_fails_with_the_field_and_the_allowed_values(change: dict[str, Any], named: str) -> None:
    message = wire.Action()
    message.CopyFrom(GOOD)
    for field in change:
        message.ClearField(field)  # type: ignore[arg-type]
    message.MergeFrom(wire.Action(**change))
    with pytest.raises(ActionFailed) as failed:
        translate.action(message)
    assert (failed.value.stage, failed.value.reason) == (Stage.ADMISSION, Reason.INVALID_CONFIGURATION)
    assert failed.value.message.startswith(f"field {named}: ")
    assert "allowed is" in failed.value.message


@pytest.mark.parametrize(
    ("at", "named"),
    [
        (lambda message: message, "field number 1000:"),
        (lambda message: message.repository, "field repository.number 1000:"),
        (lambda message: message.timeout, "field timeout.number 1000:"),
    ],
)
def test_an_action_with_a_field_of_a_newer_version_is_refused(at: Callable[[wire.Action], Message], named: str) -> None:
    message = translate.action_message(ACTIONS[1])
    at(message).MergeFromString(b"\xc2\x3e\x01x")  # the field 1000, a text of one byte
    with pytest.raises(ActionFailed) as failure:
        translate.action(wire.Action.FromString(message.SerializeToString()))
    assert failure.value.reason is Reason.INVALID_CONFIGURATION
    assert named in failure.value.message
    assert "Register.features" in failure.value.message


def test_features_of_a_newer_version_are_left_out() -> None:
    assert translate.features(["services", "teleport"]) == {Feature.SERVICES}


def test_the_longest_action_id_is_allowed() -> None:
    message = wire.Action(action_id="ü" * 128)
    message.MergeFrom(wire.Action(attempt=1, claim=1, image="alpine", commands=["true"]))
    assert translate.action(message).key.action_id == "ü" * 128


@pytest.mark.parametrize(
    ("message", "named"),
    [
        (wire.Resume(action_id="a", attempt=1, claim=1, cursor=b"3|x"), "cursor"),
        (wire.Resume(action_id="a", attempt=1, claim=1, stage=77), "stage"),  # type: ignore[arg-type]
        (wire.Resume(action_id="a", claim=1), "attempt"),
    ],
)
def test_an_invalid_resume_point_fails(message: wire.Resume, named: str) -> None:
    with pytest.raises(ActionFailed, match=f"field {named}: "):
        translate.resume(message)


def test_an_invalid_grace_does_not_prevent_the_cancellation() -> None:
    message = wire.Cancel(action_id="a", attempt=1, grace=Duration(seconds=-5), message="stop")
    assert translate.cancel(message) == Cancel(None, "stop")


def test_an_absurd_grace_does_not_prevent_the_end_of_the_commands() -> None:
    message = wire.Cancel(action_id="a", attempt=1, grace=Duration(seconds=2**63 - 1), message="stop")
    assert translate.cancel(message) == Cancel(fields.MAX_GRACE, "stop")


@pytest.mark.parametrize("value", [1e30, float("inf"), float("nan"), -1e30, -1.0, 0.0, 1e-12, 3e11, 5e-324])
def test_every_number_can_be_encoded_as_a_duration(value: float) -> None:
    message = translate.duration(value)
    message.ToJsonString()
    assert 0 <= translate.seconds(message) <= fields.MAX_DURATION


@pytest.mark.parametrize(
    "message",
    [
        wire.Event(action_id="a", attempt=1, claim=1, log=wire.LogChunk(data=b"x")),
        wire.Event(action_id="a", attempt=1, claim=1, finished=wire.Outcome(stage=wire.STAGE_SETUP)),
        wire.Event(action_id="a", attempt=1, claim=1, stage=wire.StageChanged()),
        wire.Event(action_id="a", claim=1, accepted=wire.Accepted()),
    ],
)
def test_an_invalid_event_fails(message: wire.Event) -> None:
    with pytest.raises(ActionFailed, match="field "):
        translate.event(message)


def test_messages_of_a_newer_version_are_no_error() -> None:
    unknown = wire.Event.FromString(
        wire.Event(action_id="a", attempt=1, claim=1, seq=4).SerializeToString() + b"\xfa\x01\x00"
    )
    assert translate.event(unknown) == translate.Numbered(Key("a"), 4, None)
    assert translate.part(wire.ArtifactPart()) is None
    later = wire.Health(status=9)  # type: ignore[arg-type]
    assert translate.health(later).status is Readiness.DEGRADED


# ---- values that can always be sent


def test_text_for_people_is_truncated_and_made_valid_utf8() -> None:
    outcome = Outcome(Result.FAILED, Stage.SETUP, Reason.INTERNAL, None, 0, "bad \udcff " + "x" * 100_000)
    message = translate.event_message(KEY, 1, Finished(outcome))
    assert message.ByteSize() < 20_000
    assert message.finished.message.startswith("bad ? xxx")
    assert message.finished.message.endswith("more characters)")


@pytest.mark.parametrize(
    ("seconds", "whole", "nanos"),
    [(0.0, 0, 0), (1.5, 1, 500_000_000), (0.9999999999, 1, 0), (-3.0, 0, 0), (86400.0, 86400, 0)],
)
def test_durations(seconds: float, whole: int, nanos: int) -> None:
    assert translate.duration(seconds) == Duration(seconds=whole, nanos=nanos)


def test_no_repr_contains_a_secret() -> None:
    assert "geheim" not in repr(ACTIONS[1])
    assert "geheim" not in repr(Resume(KEY, secrets={"TOKEN": "geheim"}))
