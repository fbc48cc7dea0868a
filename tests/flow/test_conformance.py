"""`sealci-agent conformance` against schedulers that keep the contract, and against schedulers that break one point."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from click.testing import CliRunner

from agent.cli.main import NAME, cli
from agent.cli.submit import Target
from agent.conformance import points
from agent.conformance.player import Options
from agent.conformance.registration import UNKNOWN_FIELD
from agent.conformance.tool import SchedulerSilent, check_conformance
from agent.domain.check_result import Finding, Verdict
from agent.local_scheduler.local_service import Access
from agent.local_scheduler.options import SchedulerOptions
from agent.local_scheduler.server import open_scheduler
from agent.protocol.wire import agent_pb2 as wire
from agent.protocol.wire import agent_pb2_grpc
from tests.fakes.waiting import poll_until
from tests.unit.pages import ROOT, anchors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from agent.conformance.points import Point

MINIMAL = ROOT / "docs" / "minimal_scheduler.py"
CONTRACT = ROOT / "proto" / "sealci" / "agent" / "v1" / "agent.proto"
OPTIONS = Options(timeout=3.0, quiet=0.2, wait=3.0)
POINTS = {each.name: each for each in vars(points).values() if isinstance(each, points.Point)}


def minimal_scheduler() -> Any:
    spec = importlib.util.spec_from_file_location("minimal_scheduler", MINIMAL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Scheduler


Minimal = minimal_scheduler()


async def check(
    target: Target, options: Options = OPTIONS, notify: Callable[[str], None] = print
) -> dict[str, Finding]:
    """Return the findings of the tool by the names of their points."""
    async with asyncio.timeout(50):
        return {each.check: each async for each in check_conformance(target, options, notify)}


def broken(findings: dict[str, Finding]) -> dict[str, str]:
    return {name: each.detail for name, each in findings.items() if each.verdict is Verdict.FAILED}


def unchecked(findings: dict[str, Finding]) -> set[str]:
    return {each for each in POINTS if each not in findings or findings[each].verdict is Verdict.SKIPPED}


@asynccontextmanager
async def serving(scheduler: Any) -> AsyncIterator[Target]:
    server = grpc.aio.server()
    agent_pb2_grpc.add_SchedulerServicer_to_server(scheduler, server)
    port = server.add_insecure_port("localhost:0")
    await server.start()
    try:
        yield Target(f"localhost:{port}", tls=False)
    finally:
        await server.stop(None)


async def test_the_local_scheduler_keeps_the_contract(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret")
    quick = SchedulerOptions(resume_grace=1.0)
    async with open_scheduler("localhost:0", tmp_path / "state", Access(token_file=token), quick) as scheduler:
        notices: list[str] = []
        findings = await check(Target(scheduler.address, token, tls=False), notify=notices.append)
        outcomes = [record.state.outcome for run in scheduler.registry.runs.values() for record in run.records.values()]
    assert not broken(findings)
    assert not unchecked(findings)
    # The tool prints what it waits for only if the other checks end before the scheduler's grace.
    assert set(notices) <= {"waiting up to 4 s for the answer to a session that the scheduler does not know"}
    assert len(outcomes) == 3
    assert all(outcomes), "the tool has left an action in the queue"


async def test_the_minimal_scheduler_keeps_the_contract_by_the_commands_of_the_docs(tmp_path: Path) -> None:
    """The scheduler and the tool are processes, as a person starts them."""
    orders = tmp_path / "orders"
    os.mkfifo(orders)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    handle = os.open(orders, os.O_RDWR)
    scheduler = await asyncio.create_subprocess_exec(
        sys.executable, str(MINIMAL), f"localhost:{port}", stdin=handle, stdout=asyncio.subprocess.DEVNULL
    )
    os.close(handle)
    try:
        await poll_until("the scheduler listens", lambda: answers(port))
        tool = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agent", "conformance", "--plaintext", "--scheduler", f"localhost:{port}"),
            *("--submit", f'for n in $(seq $ACTIONS); do echo "debian:12 true" > {orders}; done'),
            *("--cancel", f'echo "cancel $ACTION_ID" > {orders}'),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await tool.communicate()
    finally:
        scheduler.terminate()
        await scheduler.wait()
    text = output.decode()
    assert tool.returncode == 0, text
    assert text.splitlines()[-1] == f"{len(POINTS) - 1} ok", f"every point but {points.TOKEN.name}: {text}"


def answers(port: int) -> bool:
    with socket.socket() as found:
        return found.connect_ex(("localhost", port)) == 0


def test_the_minimal_scheduler_is_short() -> None:
    assert len(MINIMAL.read_text().splitlines()) < 200


async def test_actions_can_be_queued_by_hand() -> None:
    scheduler = Minimal()

    def queue(prompt: str) -> None:
        assert "queue 3 actions now" in prompt
        for _ in range(3):
            scheduler.order("debian:12 true")

    async with serving(scheduler) as target:
        findings = await check(target, notify=queue)
    assert not broken(findings)
    assert unchecked(findings) == {points.CANCEL.name, points.TOKEN.name}


async def test_a_scheduler_that_is_not_there_is_no_finding() -> None:
    with pytest.raises(SchedulerSilent, match="localhost:1 cannot be reached"):
        await check(Target("localhost:1", tls=False), Options(timeout=2.0))


# ---- schedulers that break a point


def edits(**change: Callable[[Any, Any], Any]) -> dict[str, Any]:
    """Return an override of `send` that changes the messages of some kinds. A change to None drops the message.

    A change gets the scheduler and the message.
    """

    def send(self: Any, stream: Any, **message: Any) -> None:
        ((kind, body),) = message.items()
        body = getattr(wire.SchedulerMessage(**message), kind)
        if kind in change:
            body = change[kind](self, body)
        if body is not None:
            Minimal.send(self, stream, **{kind: body})

    return {"send": send}


def reads(change: Callable[[Any, Any], Any]) -> dict[str, Any]:
    """Return an override of `Connect` that changes the messages of the agent. The stream ends at a change to None."""

    async def connect(self: Any, requests: Any, context: Any) -> AsyncIterator[Any]:
        async def changed() -> AsyncIterator[Any]:
            async for message in requests:
                if (found := change(self, message)) is None:
                    return
                yield found

        async for message in Minimal.Connect(self, changed(), context):
            yield message

    return {"Connect": connect}


def before(method: str, act: Callable[..., None]) -> dict[str, Any]:
    """Return an override of a method that first calls `act` with the same arguments."""

    def changed(self: Any, *arguments: Any) -> Any:
        act(self, *arguments)
        return getattr(Minimal, method)(self, *arguments)

    return {method: changed}


def changed(message: Any, **fields: Any) -> Any:
    """Set fields of a message and return the message."""
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def of_events(act: Callable[[Any, Any], Any]) -> dict[str, Any]:
    """Return an override that changes the acknowledgements of events, and not those of Health."""
    return edits(ack=lambda self, ack: act(self, ack) if ack.action_id else ack)


def fill_gap(self: Any, stream: Any, event: Any) -> None:
    events = self.works[event.action_id].events
    while not event.HasField("rejected") and len(events) < event.seq - 1:
        events.append(wire.Event())


def count_twice(self: Any, stream: Any, event: Any) -> Any:
    events = self.works[event.action_id].events
    if event.seq <= len(events) and not event.HasField("rejected"):
        event.seq = len(events) + 1
    return Minimal.store(self, stream, event)


def lower_claim(self: Any, stream: Any, session: Any) -> None:
    if (work := self.works.get(session.action_id)) is not None:
        work.claim = min(work.claim, session.claim)


def lose_rejected(self: Any, stream: Any, event: Any) -> Any:
    result = Minimal.store(self, stream, event)
    if event.HasField("rejected"):
        self.works[event.action_id].waiting = False
    return result


def reopen(self: Any, stream: Any, state: Any) -> None:
    if (work := self.works.get(state.action_id)) is not None:
        work.ended = False


def resume_unknown(self: Any, stream: Any, state: Any) -> None:
    if state.action_id not in self.works:
        self.send(stream, resume={"action_id": state.action_id, "attempt": 3, "claim": 2, "seq": state.last_seq})


def with_unknown_field(self: Any, action: Any) -> Any:
    action.MergeFromString(UNKNOWN_FIELD)
    return action


def any_version(self: Any, message: Any) -> Any:
    if message.HasField("register"):
        message.register.protocol_version = 1
    return message


def keep_older(self: Any, message: Any) -> Any:
    if message.HasField("register"):
        self.streams.pop(message.register.agent_id.partition(".")[0], None)
    return message


def ready_always(status: Any) -> Callable[[Any, Any], Any]:
    def change(_: Any, message: Any) -> Any:
        if message.HasField("health") and message.health.status == status:
            message.health.status = wire.Health.READY
        return message

    return change


def early(self: Any, stream: Any, **message: Any) -> None:
    Minimal.send(self, stream, **message)
    if "registered" in message:
        stream.free = 1


def crowded(self: Any, stream: Any, **message: Any) -> None:
    Minimal.send(self, stream, **message)
    if "ack" in message and stream.free > 0:
        stream.free = 3


async def stay(self: Any, requests: Any, context: Any) -> AsyncIterator[Any]:
    """Serve a stream that does not end when the agent has ended its side."""

    async def endless() -> AsyncIterator[Any]:
        async for message in requests:
            yield message
        await asyncio.Event().wait()

    async for message in Minimal.Connect(self, endless(), context):
        yield message


async def any_files(self: Any, requests: Any, context: Any) -> Any:
    files = [part async for chunk in requests for part in chunk.parts if part.HasField("file")]
    return wire.UploadReceipt(files=len(files), bytes=sum(part.file.size for part in files))


async def no_upload(self: Any, requests: Any, context: Any) -> Any:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no files here")


UPLOAD_POINTS = (points.HASH, points.PATH, points.INCOMPLETE, points.STALE)
# What is wrong, the overrides of the minimal scheduler, the points that break, and words of the first one's sentence.
BROKEN: list[tuple[str, dict[str, Any], tuple[Point, ...], str]] = [
    ("no ack", of_events(lambda *_: None), (points.STORED,), "without an Ack of event 1"),
    (
        "ack too far",
        of_events(lambda _, ack: changed(ack, seq=ack.seq + 1)),
        (points.ACK_SEQ,),
        "event 2 of attempt 1, claim 1 of action '1' was acknowledged, the agent sent 1",
    ),
    (
        "ack of another claim",
        of_events(lambda _, ack: changed(ack, claim=ack.claim + 1)),
        (points.ACK_KEY,),
        "an Ack came for attempt 1, claim 2 of action '1', the agent sent events of attempt 1, claim 1",
    ),
    ("ack of another action", of_events(lambda _, ack: changed(ack, action_id="x")), (points.ACK_KEY,), "action 'x'"),
    (
        "no ack of Health",
        edits(ack=lambda _, ack: ack if ack.action_id else None),
        (points.HEALTH,),
        "an Ack of Health",
    ),
    ("gap stored", before("store", fill_gap), (points.GAP,), "event 11 was acknowledged, but event 10 was never sent"),
    (
        "duplicate applied twice",
        {"store": count_twice},
        (points.ACK_SEQ, points.RESUME),
        "event 8 of attempt 1, claim 1",
    ),
    ("no Resume", edits(resume=lambda *_: None), (points.RESUME,), "without Resume or Discard for attempt 1, claim 1"),
    (
        "Resume too far",
        edits(resume=lambda _, resume: changed(resume, seq=resume.seq + 1)),
        (points.RESUME,),
        "Resume names event 9, the agent sent 8",
    ),
    (
        "Resume from the start",
        edits(resume=lambda _, resume: changed(resume, seq=0)),
        (points.RESUME,),
        "Resume names event 0, but event 8 was acknowledged",
    ),
    (
        "Resume without cursor",
        edits(resume=lambda _, resume: changed(resume, cursor=b"")),
        (points.ADOPTED,),
        "field cursor of Resume is b''",
    ),
    (
        "lower claim accepted",
        before("owner", lower_claim),
        (points.FENCED,),
        "claim 1 was acknowledged, but claim 2 owns it",
    ),
    (
        "Discard that lets the pod die",
        edits(discard=lambda _, discard: changed(discard, claimed_by_other=False)),
        (points.FENCED,),
        "Discard has no claimed_by_other",
    ),
    ("ended session resumed", before("answer", reopen), (points.ENDED,), "whose outcome was acknowledged"),
    ("unknown session resumed", before("answer", resume_unknown), (points.UNKNOWN,), "Resume from event 5"),
    ("any version", reads(any_version), (points.VERSION,), "protocol version 4000000000 was answered with registered"),
    ("older stream stays", reads(keep_older), (points.REPLACED,), "a newer one of the pod replaces"),
    (
        "unknown message ends the stream",
        reads(lambda _, message: message if message.WhichOneof("message") else None),
        (points.UNKNOWN_FIELDS,),
        "the stream ended with OK in place of an Ack of event 7",
    ),
    (
        "action before Health",
        {"send": early},
        (points.NOT_READY, points.REJECTED),
        "while the agent's Health was not reported",
    ),
    (
        "action while DEGRADED",
        reads(ready_always(wire.Health.DEGRADED)),
        (points.NOT_READY, points.REJECTED),
        "Health was DEGRADED",
    ),
    ("action while DRAINING", reads(ready_always(wire.Health.DRAINING)), (points.DRAINING,), "Health was DRAINING"),
    ("too many actions", {"send": crowded}, (points.SLOTS, points.REJECTED), "came while 1 of 1 slots were in use"),
    (
        "no image",
        edits(action=lambda _, action: changed(action, image="")),
        (points.FIELDS,),
        "action '1' has no image",
    ),
    ("field without its feature", edits(action=with_unknown_field), (points.FEATURES,), "has the unknown field 1000"),
    (
        "class without an agent",
        edits(action=lambda _, action: changed(action, environment_class="gpu")),
        (points.FEATURES,),
        "has class 'gpu', the agent named no class",
    ),
    (
        "rejected action lost",
        {"store": lose_rejected},
        (points.REJECTED,),
        "was rejected with NO_SLOT and did not come",
    ),
    ("no Cancel", edits(cancel=lambda *_: None), (points.CANCEL,), "without Cancel for action"),
    (
        "outcome not acknowledged",
        of_events(lambda self, ack: None if self.works[ack.action_id].ended else ack),
        (points.FINISHED,),
        "without an Ack of event",
    ),
    ("stream stays open", {"Connect": stay}, (points.LEAVE,), "after the agent ended its side"),
    ("no uploads", {"UploadArtifacts": no_upload}, (points.UPLOAD,), "answered with UNIMPLEMENTED no files here"),
    ("any files", {"UploadArtifacts": any_files}, UPLOAD_POINTS, "a wrong sha256 got a receipt for 2 files"),
]


async def judge(overrides: dict[str, Any], folder: Path) -> dict[str, Finding]:
    """Run the tool against a broken scheduler, whose orders come from shell commands through a file."""
    scheduler = type("Broken", (Minimal,), overrides)()
    orders = folder / "orders"
    os.mkfifo(orders)
    handle = os.open(orders, os.O_RDWR | os.O_NONBLOCK)

    def order() -> None:
        for line in os.read(handle, 4096).decode().splitlines():
            scheduler.order(line)

    asyncio.get_running_loop().add_reader(handle, order)
    options = Options(
        timeout=OPTIONS.timeout,
        quiet=OPTIONS.quiet,
        wait=OPTIONS.wait,
        submit=f'for n in 1 2 3; do echo "debian:12 true"; done > {orders}',
        cancel=f'echo "cancel $ACTION_ID" > {orders}',
    )
    try:
        async with serving(scheduler) as target:
            return await check(target, options)
    finally:
        asyncio.get_running_loop().remove_reader(handle)
        os.close(handle)


async def test_each_broken_scheduler_fails_with_its_point(tmp_path: Path) -> None:
    """All schedulers are checked side by side, because most of them make the tool wait for an answer."""
    folders = [tmp_path / str(number) for number in range(len(BROKEN))]
    for folder in folders:
        folder.mkdir()
    results = await asyncio.gather(*(judge(each[1], folder) for each, folder in zip(BROKEN, folders, strict=True)))
    wrong = []
    for (name, _, expected, words), findings in zip(BROKEN, results, strict=True):
        found = broken(findings)
        if set(found) != {each.name for each in expected} or words not in found[expected[0].name]:
            wrong.append(f"{name}: {found}")
    assert not wrong, "\n".join(wrong)


async def test_a_scheduler_that_ignores_the_token_fails(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret")
    async with serving(Minimal()) as target:
        findings = await check(Target(target.address, token, tls=False), Options(timeout=4.0, quiet=0.05, wait=0.1))
    assert broken(findings)[points.TOKEN.name] == "a call without the token was answered with a message"


def test_each_point_names_a_place_that_exists() -> None:
    text = CONTRACT.read_text()
    headings = anchors(ROOT / "docs" / "scheduler-protocol.md")
    for point in POINTS.values():
        assert point.anchor in headings, point
        assert any(f"{start}{point.section}{end}" in text for start, end in (("", " {"), ("", "("), ("// ", "\n"))), (
            point
        )


def test_the_command_needs_submit_for_cancel() -> None:
    result = CliRunner().invoke(cli, ["conformance", "--cancel", "true"], prog_name=NAME)
    assert (result.exit_code, "--cancel needs --submit" in result.output) == (2, True)
