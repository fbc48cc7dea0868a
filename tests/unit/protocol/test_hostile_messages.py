"""gRPC messages with unexpected values, as a hostile scheduler or a hostile agent could send them.

The receiver uses each message, or refuses it with one of the declared errors. The work is bounded by the size of the
message. The tests measure it as the number of executed lines of Python, and not in seconds.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cluster.pod import manifest, session_annotation
from agent.domain.actions import Action, Key
from agent.domain.errors import ActionFailed
from agent.execution.admission import MAX_PROBLEMS, admit
from agent.protocol import translate
from agent.protocol.wire import agent_pb2 as wire
from agent.scheduler.classic.call import CallRefused
from agent.scheduler.classic.service import read_action
from agent.scheduler.classic.wire import actions_pb2
from agent.scheduler.stream.inbox import Inbox
from agent.settings import ClassicSettings, PolicySettings, Settings
from agent.telemetry.metrics import Metrics
from tests.fakes.steps import within

# The largest number of executed lines of Python (steps) for an empty message, and for each byte of a message.
STEPS, STEPS_PER_BYTE = 3000, 40
POLICY = PolicySettings.model_validate(
    {
        "images": ["ghcr.io/**/a/**/b", "*"],
        "repository_hosts": ["github.com/**/a/**/b", "*"],
        "credentials": {"deploy": ["github.com/**/a/**/b/**/c"]},
        "repository_schemes": ["https", "ssh", "git"],
    }
)
SETTINGS = Settings.model_validate({"cluster": {"namespace": "ci"}, "policy": POLICY.model_dump()})
WORDS = ["", "a", "build", "alpine:3", "A", "PATH", "\0", "\x1b]0;x\x07", "\u202e", "é" * 200, "../..", "-x", "a\nb"]
URLS = ["https://github.com/" + "a/" * 900 + "b", "https://u:p@h/x", "git@h:x", "https://github.com/a/b/c", "ext::sh"]
NUMBERS = ["0", "-1", "1e999", "9" * 5000, "1Gi", "500m", "0.0Gi", "deploy", "feature/x"]
TEXTS = st.one_of(st.sampled_from([*WORDS, *URLS, *NUMBERS]), st.text(max_size=20))
BYTES = st.one_of(st.sampled_from([b"", b"{}", b"\xff" * 9, b'{"t":1e999}']), st.binary(max_size=40))
BITS = {
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_ENUM: (-1, 12),
}


def scalars(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Return a strategy for values of a field. For numbers, it includes the smallest and the largest value."""
    if field.type == FieldDescriptor.TYPE_STRING:
        return TEXTS
    if field.type == FieldDescriptor.TYPE_BYTES:
        return BYTES
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    low, high = BITS[field.type]
    return st.one_of(st.sampled_from([low, high, 0, 1]), st.integers(low, high))


def messages(kind: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for messages of a generated class.

    Every field is unset, or has any value that protobuf can encode.
    """

    @st.composite
    def built(draw: st.DrawFn) -> Any:
        message = kind()
        for field in kind.DESCRIPTOR.fields:
            if draw(st.booleans()):
                fill(draw, message, field)
        return message

    return built()


def fill(draw: st.DrawFn, message: Message, field: FieldDescriptor) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        of_bytes = field.message_type.fields_by_name["value"].type == FieldDescriptor.TYPE_BYTES
        kind: st.SearchStrategy[Any] = BYTES if of_bytes else TEXTS
        getattr(message, field.name).update(draw(st.dictionaries(TEXTS, kind, max_size=4)))
    elif field.is_repeated:
        values = getattr(message, field.name)
        if field.message_type is None:
            values.extend(draw(st.lists(scalars(field), max_size=4)))
        else:
            values.extend(draw(st.lists(messages(GetMessageClass(field.message_type)), max_size=2)))
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(draw(messages(GetMessageClass(field.message_type))))
    else:
        setattr(message, field.name, draw(scalars(field)))


def bound(message: Message) -> int:
    return STEPS + STEPS_PER_BYTE * message.ByteSize()


class RecordingHandlers:
    """Stands for the inbox's handlers and for the outbox. Like the agent, it admits each action and plans the pod."""

    def __init__(self) -> None:
        self.planned = 0

    def action(self, action: Action) -> None:
        try:
            timeout = admit(action, POLICY)
        except ActionFailed as failed:
            check_report(failed)
            return
        plan = manifest.Plan(
            action=action,
            name="p",
            namespace="ci",
            agent_id="a",
            nonce="0123456789abcdef",
            timeout=timeout,
            user_namespace=True,
        )
        pod = manifest.pod(plan, SETTINGS)
        assert json.dumps(pod).encode()
        assert session_annotation.read(pod)[0].key == action.key
        self.planned += 1

    def action_failed(self, key: Key, failure: ActionFailed) -> None:
        assert key is not None
        check_report(failure)

    def resume(self, resume: Any) -> bool:
        assert resume.key.action_id
        return True

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def check_report(failure: ActionFailed) -> None:
    """Check that the report of a refused action can be sent, and that it is short."""
    assert failure.message
    assert failure.log.count("\n") <= MAX_PROBLEMS
    assert len(failure.message) < 100_000
    assert failure.message.encode("utf-8", "replace")


def handle(message: wire.SchedulerMessage) -> RecordingHandlers:
    """Pass a message to the agent's inbox. An error that the inbox raises fails the test."""
    handlers, metrics = RecordingHandlers(), METRICS
    inbox = Inbox(handlers, handlers, metrics)  # type: ignore[arg-type]  # what it calls is here
    within(bound(message), lambda: inbox.dispatch(message))
    return handlers


METRICS = Metrics()


@pytest.fixture(scope="module", autouse=True)
def built_programs() -> None:
    """Plan one pod before the tests count steps.

    The agent builds the programs of container `helper` once per process. The steps of that build must not count as
    steps of a message.
    """
    handlers = RecordingHandlers()
    handlers.action(Action(Key("build"), "i", ("x",)))
    assert handlers.planned


@given(messages(wire.SchedulerMessage))
@settings(max_examples=60)
def test_any_message_of_a_scheduler_is_used_or_refused(message: wire.SchedulerMessage) -> None:
    handle(message)


@st.composite
def nearly_valid_actions(draw: st.DrawFn) -> wire.Action:
    """Return an action with at most two hostile fields, so that the agent plans a pod for many of these actions."""
    action = wire.Action(action_id="build", attempt=1, claim=1, image="alpine:3", commands=["true"])
    for field in draw(st.lists(st.sampled_from(list(wire.Action.DESCRIPTOR.fields)), max_size=2)):
        message: Message = action
        message.ClearField(field.name)
        fill(draw, message, field)
    return action


@given(nearly_valid_actions())
@settings(max_examples=120)
def test_any_action_becomes_a_pod_or_a_report(action: wire.Action) -> None:
    handle(wire.SchedulerMessage(action=action))


@given(st.binary(max_size=300))
@settings(max_examples=60)
def test_any_bytes_are_a_message_or_a_decode_error(data: bytes) -> None:
    try:
        message = wire.SchedulerMessage.FromString(data)
    except DecodeError:
        return
    handle(message)


@given(messages(wire.Event))
@settings(max_examples=60)
def test_any_event_of_an_agent_is_read_or_refused(message: wire.Event) -> None:
    try:
        found = within(bound(message), lambda: translate.event(message))
    except ActionFailed as failed:
        check_report(failed)
        return
    if found.event is not None:
        assert translate.event_message(found.key, found.seq, found.event).SerializeToString() is not None


@given(messages(actions_pb2.ActionRequest))
@settings(max_examples=60)
def test_any_request_of_a_classic_scheduler_is_read_or_refused(message: actions_pb2.ActionRequest) -> None:
    settings = ClassicSettings.model_validate({"clone_credentials": {"h": "deploy"}})
    try:
        action = within(bound(message), lambda: read_action(message, settings))
        within(bound(message), lambda: admit(action, POLICY))
    except CallRefused:
        return
    except ActionFailed as failed:
        check_report(failed)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"commands": ["\0"] * 100_000}, id="commands"),
        pytest.param({"commands": ["x"], "env": {f"{n}": "" for n in range(50_000)}}, id="variables"),
        pytest.param({"commands": ["x"], "artifacts": wire.ArtifactRules(paths=["\0"] * 100_000)}, id="globs"),
        pytest.param({"commands": ["x"], "image": "a/" * 500_000}, id="image"),
        pytest.param({"commands": ["x"], "repository": wire.Repository(url=f"https://h/{'a/' * 500_000}")}, id="url"),
        pytest.param(
            {"commands": ["x"], "repository": wire.Repository(url=f"https://github.com/{'a/' * 900}", credentials="d")},
            id="path",
        ),
    ],
)
def test_a_large_action_costs_few_steps_and_a_short_report(fields: dict[str, Any]) -> None:
    message = wire.Action(action_id="a", attempt=1, claim=1, **{"image": "i", **fields})
    action = translate.action(message)
    try:
        within(300_000, lambda: admit(action, POLICY))
    except ActionFailed as failed:
        check_report(failed)
