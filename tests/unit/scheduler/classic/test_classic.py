"""The parts of the classic protocol that need no gRPC.

These are the health, the address, the exit code, the decoding of the log, and the file store.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

import pytest
import structlog

from agent.domain.actions import Action, Key
from agent.domain.artifacts import FileData, FileEnd, FileStart
from agent.domain.errors import ActionFailed, Reason, SchedulerError, SettingsError, Stage
from agent.domain.events import CommandStarted, Finished, LogChunk, Source, StageChanged
from agent.domain.log_cursor import Cursor
from agent.domain.outcome import Outcome, Result
from agent.domain.references.repository_url import holds_credentials
from agent.domain.session_state import Health, Readiness
from agent.scheduler.classic.call import Call, exit_code
from agent.scheduler.classic.connection import source_address, with_scheme
from agent.scheduler.classic.file_store import STAGING_PREFIX, FileStore, safe_path
from agent.scheduler.classic.registration import health_message
from agent.scheduler.classic.service import read_repository
from agent.scheduler.classic.timings import ClassicTimings
from agent.settings import ClassicSettings, load
from agent.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from agent.domain.artifacts import FilePart
    from agent.domain.events import Event
    from agent.scheduler.classic.wire.actions_pb2 import ActionResponseStream


LAST = (2**32 - 1, 2**64 - 1)


@pytest.mark.parametrize(
    ("health", "load"),
    [
        (Health(Readiness.READY, 20), (0, 0)),
        (Health(Readiness.READY, 20, 19), (95, 0)),
        (Health(Readiness.READY, 200, 1), (1, 0)),
        (Health(Readiness.READY, 20, 20), (100, 0)),
        (Health(Readiness.READY, 20, 23), (115, 0)),
        (Health(Readiness.READY, 1, 10**9), (2**32 - 1, 0)),
        (Health(Readiness.DRAINING, 20), LAST),
        (Health(Readiness.DEGRADED, 20), LAST),
    ],
)
def test_the_health_reports_the_load_in_percent_and_the_maximum_while_the_agent_cannot_work(
    health: Health, load: tuple[int, int]
) -> None:
    message = health_message(health)
    assert (message.cpu_avail, message.memory_avail) == load


@pytest.mark.parametrize(
    ("host", "tls", "expected"),
    [
        ("10.1.2.3", False, "http://10.1.2.3"),
        ("fd00::7", False, "http://[fd00::7]"),
        ("[fd00::7]", True, "https://[fd00::7]"),
        ("agent.example", True, "https://agent.example"),
        ("http://10.1.2.3", True, "http://10.1.2.3"),
    ],
)
def test_the_host_carries_its_scheme(host: str, tls: bool, expected: str) -> None:
    assert with_scheme(host, tls=tls) == expected


@pytest.mark.parametrize("address", ["127.0.0.1:7080", "127.0.0.1", "dns:///127.0.0.1:80", "localhost:1"])
async def test_the_source_address_is_on_the_route_to_the_scheduler(address: str) -> None:
    assert await source_address(address) in ("127.0.0.1", "::1")


async def test_a_scheduler_whose_name_does_not_resolve_is_an_error() -> None:
    with pytest.raises(SchedulerError, match="there is no route to there-is-none"):
        await source_address("there-is-none.invalid:7080")


@pytest.mark.parametrize(
    ("result", "reason", "code", "expected"),
    [
        (Result.SUCCEEDED, None, 0, 0),
        (Result.FAILED, Reason.COMMAND_FAILED, 42, 42),
        # The failed command has exit code 0, because a command replaced the shell and ended with 0.
        (Result.FAILED, Reason.COMMAND_FAILED, 0, 125),
        (Result.FAILED, Reason.OUT_OF_MEMORY, 137, 137),
        (Result.FAILED, Reason.IMAGE_PULL_FAILED, None, 125),
        (Result.FAILED, Reason.ARTIFACTS_FAILED, 0, 125),
        (Result.FAILED, Reason.DEADLINE_EXCEEDED, 0, 124),
        (Result.FAILED, Reason.DEADLINE_EXCEEDED, 143, 124),
        (Result.CANCELLED, Reason.CANCELLED, None, 130),
        (Result.CANCELLED, Reason.CANCELLED, 0, 130),
        (Result.CANCELLED, Reason.CANCELLED, 143, 143),
    ],
)
def test_only_a_success_has_exit_code_0(result: Result, reason: Reason | None, code: int | None, expected: int) -> None:
    assert exit_code(Outcome(result, Stage.COMMANDS, reason, code)) == expected


def test_every_failure_without_an_exit_code_gets_one() -> None:
    for reason in Reason:
        assert exit_code(Outcome(Result.FAILED, Stage.SETUP, reason)) in (124, 125)


# ---- the file store


async def parts(*files: tuple[bytes, bytes], end: BaseException | None = None) -> AsyncIterator[FilePart]:
    for path, data in files:
        yield FileStart(path, 0o755, len(data))
        yield FileData(data)
        yield FileEnd(b"")
    if end is not None:
        raise end


def file_store(top: Path, **settings: object) -> FileStore:
    return FileStore(top, ClassicSettings.model_validate(settings), Metrics())


def names(top: Path) -> list[str]:
    """Return the relative paths of all files and folders below `top`."""
    return sorted(str(path.relative_to(top)) for path in top.rglob("*"))


async def test_a_second_copy_replaces_the_first_and_a_broken_copy_leaves_nothing(tmp_path: Path) -> None:
    kept = file_store(tmp_path)
    await kept.keep(Key("1-a"), parts((b"old", b"1"), (b"sub/both", b"2")))
    with pytest.raises(SchedulerError):
        await kept.keep(Key("2-b"), parts((b"x", b"1"), end=SchedulerError("broke")))
    await kept.keep(Key("1-a"), parts((b"sub/both", b"3")))
    await kept.keep(Key("3-c"), parts())
    assert names(tmp_path) == ["1-a", "1-a/sub", "1-a/sub/both"]
    assert (tmp_path / "1-a" / "sub" / "both").read_bytes() == b"3"
    assert (tmp_path / "1-a" / "sub" / "both").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("path", [b"../x", b"/x", b"a/../../x", b"a//b", b"", b"a\0b", b"./a"])
async def test_a_path_that_leaves_the_folder_is_not_kept(tmp_path: Path, path: bytes) -> None:
    with pytest.raises(OSError, match="is not a path within"):
        safe_path(path)
    with pytest.raises(ActionFailed, match="cannot be kept"):
        await file_store(tmp_path / "files").keep(Key("1-a"), parts((path, b"x")))
    assert names(tmp_path) == ["files"]


async def test_the_oldest_files_are_removed_when_the_folder_is_full_but_never_the_newest(tmp_path: Path) -> None:
    kept = file_store(tmp_path, files_max_size=25)
    for number in range(4):
        await kept.keep(Key(f"{number}"), parts((b"file", b"0123456789")))
        os.utime(tmp_path / f"{number}", (number, time.time() - 100 + number))
    assert names(tmp_path) == ["2", "2/file", "3", "3/file"]
    await kept.keep(Key("big"), parts((b"file", b"x" * 100)))
    assert names(tmp_path) == ["big", "big/file"]


def test_old_files_and_old_staging_folders_are_removed_at_the_start(tmp_path: Path) -> None:
    for name, age in (("old", 90), ("new", 10), (f"{STAGING_PREFIX}old", 90), (f"{STAGING_PREFIX}under-way", 10)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, time.time() - age))
    (tmp_path / "another file").write_text("x")
    file_store(tmp_path, files_max_age="60s").prune()
    assert names(tmp_path) == [f"{STAGING_PREFIX}under-way", "another file", "new"]


async def test_a_folder_that_another_copy_renames_meanwhile_does_not_fail_an_action(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (staging := tmp_path / f"{STAGING_PREFIX}of another action").mkdir()
    list_folder = os.scandir

    def rename_after_listing(folder: str | Path) -> contextlib.nullcontext[list[os.DirEntry[str]]]:
        with list_folder(folder) as found:
            entries = list(found)
        staging.rename(tmp_path / "another action")
        monkeypatch.undo()
        return contextlib.nullcontext(entries)

    monkeypatch.setattr(os, "scandir", rename_after_listing)
    await file_store(tmp_path).keep(Key("1-a"), parts((b"file", b"1")))
    assert names(tmp_path) == ["1-a", "1-a/file", "another action"]


async def test_old_folders_that_cannot_be_removed_do_not_fail_an_action(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = file_store(tmp_path)

    def refuse(newest: str) -> None:
        raise PermissionError(13, f"Permission denied, newest is {newest}")

    monkeypatch.setattr(kept, "prune", refuse)
    with structlog.testing.capture_logs() as logged:
        await kept.keep(Key("1-a"), parts((b"file", b"1")))
    assert names(tmp_path) == ["1-a", "1-a/file"]
    assert [entry["event"] for entry in logged] == ["old folders of files cannot be removed"]


def test_a_certificate_without_its_key_is_refused() -> None:
    for wrong in ({"cert_file": "c"}, {"ca_file": "c"}):
        with pytest.raises(SettingsError, match=r"must be set together|needs cert_file"):
            load(None, {"scheduler": {"classic": wrong}}, {})


async def test_a_character_split_over_two_chunks_is_decoded_and_an_invalid_byte_is_replaced() -> None:
    call = Call(7, Action(Key("7-a"), "alpine", ("a",)), 1 << 20, None)
    text = ""
    for data in (b"caf\xc3", b"\xa9 \xff \xe2\x82", b"\xac \xf0\x9f"):
        await call.send(LogChunk(data))
        text += (await call.next()).log
    await call.send(Finished(Outcome(Result.SUCCEEDED, Stage.COMMANDS, None, 0)))
    last = await call.next()
    assert text + last.log == "café \ufffd € \ufffd"
    assert (last.result.completion, last.result.exit_code) == (3, 0)


def make_call(*commands: str, echo: bool = False) -> Call:
    return Call(
        7, Action(Key("7-a"), "alpine", commands or ("a",)), 1 << 20, None, ClassicTimings(gather=0.01), echo=echo
    )


async def responses_of(call: Call, *events: Event, outcome: Outcome | None = None) -> list[ActionResponseStream]:
    """Send `events` and the end of the action to a call, after its first response. Return its later responses.

    Without `outcome`, the action ends with success.
    """
    await call.next()
    for event in events:
        await call.send(event)
    await call.send(Finished(outcome or Outcome(Result.SUCCEEDED, Stage.COMMANDS, None, 0)))
    responses = [await call.next()]
    while not responses[-1].result.HasField("exit_code"):
        responses.append(await call.next())
    return responses


async def test_the_log_of_a_moment_and_the_exit_code_are_one_response() -> None:
    chunks = [LogChunk(b"line %d\n" % number) for number in range(100)]
    (last,) = await responses_of(make_call(), *chunks)
    assert last.log.count("\n") == 100


async def test_the_client_sees_that_the_action_ran_before_it_sees_the_end() -> None:
    running, last = await responses_of(make_call(), StageChanged(Stage.COMMANDS), LogChunk(b"a\n"))
    assert (running.log, running.result.completion) == ("a\n", 2)
    assert (last.log, last.result.completion) == ("", 3)


async def test_log_without_a_pause_comes_in_responses_of_at_most_64_kib() -> None:
    responses = await responses_of(make_call(), *(LogChunk(b"x" * 1000) for _ in range(200)))
    assert [len(each.log) for each in responses] == [65000, 65000, 65000, 5000]


async def test_sentences_of_the_agent_begin_on_a_new_line() -> None:
    failed = Outcome(Result.FAILED, Stage.COMMANDS, Reason.COMMAND_FAILED, 3, message="command 1 failed")
    (last,) = await responses_of(make_call(), LogChunk(b"no newline"), outcome=failed)
    assert last.log == "no newline\n[command 1 failed]\n"
    (last,) = await responses_of(
        make_call(),
        LogChunk(b"no newline"),
        LogChunk(b"[a no", source=Source.AGENT),
        LogChunk(b"te]\n", source=Source.AGENT),
    )
    assert last.log == "no newline\n[a note]\n"


async def test_faults_that_the_log_names_are_not_repeated_with_the_exit_code() -> None:
    failure = ActionFailed(Stage.ADMISSION, Reason.INVALID_CONFIGURATION, "image: is missing; commands: none", log="")
    notice = LogChunk(b"The action cannot be run:\nimage: is missing\ncommands: none\n", source=Source.SETUP)
    failed = Outcome(Result.FAILED, failure.stage, failure.reason, message=failure.message)
    (last,) = await responses_of(make_call(), notice, outcome=failed)
    assert last.log.count("is missing") == 1


async def test_the_log_shows_the_set_up_and_each_command_unless_the_echo_is_off() -> None:
    events = (
        StageChanged(Stage.SETUP, "pulling alpine"),
        StageChanged(Stage.SETUP, "pulling alpine"),
        StageChanged(Stage.COMMANDS),
        CommandStarted(1, Cursor()),
        LogChunk(b"one"),
        CommandStarted(2, Cursor()),
    )
    commands = ("echo -n one", "if true; then\n  echo two\nfi\n")
    shown = await responses_of(make_call(*commands, echo=True), *events)
    expected = "[pulling alpine]\n$ echo -n one\none\n$ if true; then\n>   echo two\n> fi\n"
    assert "".join(each.log for each in shown) == expected
    hidden = await responses_of(make_call(*commands), *events)
    assert "".join(each.log for each in hidden) == "one"


@pytest.mark.parametrize(
    ("url", "secret"),
    [
        ("https://git.example/a/b.git", "plain"),
        ("https://GIT.example:443/a", "plain"),
        ("https://git.example:8443/a", "port"),
        ("ssh://git@git.example:22/a", "plain"),
        ("git@git.example:a/b", "plain"),
        ("https://[fd00::7]/a", "six"),
        ("https://other.example/git.example/a", ""),
        ("https://git.example.evil.example/a", ""),
        ("https://evil.example#git.example/a", ""),
        ("https://evil.example/@git.example/a", ""),
        ("https://git.example@evil.example/a", ""),
        ("hello", ""),
    ],
)
def test_the_secret_for_a_clone_follows_from_the_host(url: str, secret: str) -> None:
    known = {"git.example": "plain", "git.example:8443": "port", "[fd00::7]": "six"}
    settings = ClassicSettings.model_validate({"clone_credentials": known})
    assert read_repository(url, settings).credentials == secret


@pytest.mark.parametrize("wrong", [{"https://x": "s"}, {"Host": "s"}, {"h": "S_"}, {"h:x": "s"}, {"": "s"}])
def test_wrong_hosts_and_names_of_secrets_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="clone_credentials"):
        load(None, {"scheduler": {"classic": {"clone_credentials": wrong}}}, {})


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://me:pw@h/x", True),
        ("https://token@h/x", True),
        ("git://me:pw@h/x", True),
        ("ssh://git:pw@h/x", True),
        ("https://me:a@b@h/x", True),
        ("ssh://git@h/x", False),
        ("git@h:x", False),
        ("https://h/x@y", False),
        ("https://h/x", False),
    ],
)
def test_credentials_are_found_in_urls_of_every_scheme(url: str, expected: bool) -> None:
    assert holds_credentials(url) is expected
