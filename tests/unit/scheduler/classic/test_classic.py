"""The classic wire's pure parts: what is told as health, host and exit code; and the folder that keeps files."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from agent.domain.actions import Action, Key
from agent.domain.artifacts import FileData, FileEnd, FileStart
from agent.domain.errors import ActionFailed, Reason, SchedulerError, SettingsError, Stage
from agent.domain.events import Finished, LogChunk
from agent.domain.outcome import Outcome, Result
from agent.domain.session_state import Health, Readiness
from agent.scheduler.classic.call import Call, exit_code
from agent.scheduler.classic.connection import advertised, route
from agent.scheduler.classic.file_store import STAGING, Folder, checked
from agent.scheduler.classic.registration import health_message
from agent.settings import ClassicSettings, load
from agent.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from agent.domain.artifacts import FilePart


@pytest.mark.parametrize(
    ("health", "free"),
    [
        (Health(Readiness.READY, 20), (100, 20)),
        (Health(Readiness.READY, 20, 19), (5, 1)),
        (Health(Readiness.READY, 200, 199), (0, 1)),
        (Health(Readiness.READY, 20, 20), (0, 0)),
        (Health(Readiness.READY, 20, 23), (0, 0)),
        (Health(Readiness.DRAINING, 20), (0, 0)),
        (Health(Readiness.DEGRADED, 20), (0, 0)),
    ],
)
def test_free_slots_are_told_as_percent_and_memory(health: Health, free: tuple[int, int]) -> None:
    message = health_message(health, "256Mi")
    assert (message.cpu_avail, message.memory_avail) == (free[0], free[1] * (256 << 20))


def test_without_a_memory_in_the_policy_none_is_told() -> None:
    assert health_message(Health(Readiness.READY, 20), "").memory_avail == 0


@pytest.mark.parametrize(
    ("host", "tls", "told"),
    [
        ("10.1.2.3", False, "http://10.1.2.3"),
        ("fd00::7", False, "http://[fd00::7]"),
        ("[fd00::7]", True, "https://[fd00::7]"),
        ("agent.example", True, "https://agent.example"),
        ("http://10.1.2.3", True, "http://10.1.2.3"),
    ],
)
def test_the_host_carries_its_scheme(host: str, tls: bool, told: str) -> None:
    assert advertised(host, tls=tls) == told


@pytest.mark.parametrize("address", ["127.0.0.1:7080", "127.0.0.1", "dns:///127.0.0.1:80", "localhost:1"])
async def test_the_own_address_is_the_one_that_leads_to_the_scheduler(address: str) -> None:
    assert await route(address) in ("127.0.0.1", "::1")


async def test_a_scheduler_without_an_address_is_said() -> None:
    with pytest.raises(SchedulerError, match="no way leads to there-is-none"):
        await route("there-is-none.invalid:7080")


@pytest.mark.parametrize(
    ("result", "reason", "code", "told"),
    [
        (Result.SUCCEEDED, None, 0, 0),
        (Result.FAILED, Reason.COMMAND_FAILED, 42, 42),
        (Result.FAILED, Reason.COMMAND_FAILED, 0, 125),  # the shell was replaced
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
def test_only_success_is_0(result: Result, reason: Reason | None, code: int | None, told: int) -> None:
    assert exit_code(Outcome(result, Stage.COMMANDS, reason, code)) == told


def test_every_failure_without_a_code_has_one_here() -> None:
    for reason in Reason:
        assert exit_code(Outcome(Result.FAILED, Stage.SETUP, reason)) in (124, 125)


# ---- the folder


async def parts(*files: tuple[bytes, bytes], end: BaseException | None = None) -> AsyncIterator[FilePart]:
    for path, data in files:
        yield FileStart(path, 0o755, len(data))
        yield FileData(data)
        yield FileEnd(b"")
    if end is not None:
        raise end


def folder(top: Path, **settings: object) -> Folder:
    return Folder(top, ClassicSettings.model_validate(settings), Metrics())


def names(top: Path) -> list[str]:
    """Return everything below a folder."""
    return sorted(str(path.relative_to(top)) for path in top.rglob("*"))


async def test_a_second_try_replaces_the_first_and_one_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    kept = folder(tmp_path)
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
        checked(path)
    with pytest.raises(ActionFailed, match="cannot be kept"):
        await folder(tmp_path / "files").keep(Key("1-a"), parts((path, b"x")))
    assert names(tmp_path) == ["files"]


async def test_the_oldest_go_when_it_is_too_much_but_never_the_newest(tmp_path: Path) -> None:
    kept = folder(tmp_path, files_max_size=25)
    for number in range(4):
        await kept.keep(Key(f"{number}"), parts((b"file", b"0123456789")))
        os.utime(tmp_path / f"{number}", (number, time.time() - 100 + number))
    assert names(tmp_path) == ["2", "2/file", "3", "3/file"]
    await kept.keep(Key("big"), parts((b"file", b"x" * 100)))
    assert names(tmp_path) == ["big", "big/file"]


def test_what_is_too_old_goes_at_the_start_also_copies_that_were_never_finished(tmp_path: Path) -> None:
    for name, age in (("old", 90), ("new", 10), (f"{STAGING}old", 90), (f"{STAGING}under-way", 10)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, time.time() - age))
    (tmp_path / "a file of somebody else").write_text("x")
    folder(tmp_path, files_max_age="60s").prune()
    assert names(tmp_path) == [f"{STAGING}under-way", "a file of somebody else", "new"]


def test_settings_of_half_a_pair_are_refused() -> None:
    for wrong in ({"cert_file": "c"}, {"ca_file": "c"}):
        with pytest.raises(SettingsError, match=r"must be set together|needs cert_file"):
            load(None, {"scheduler": {"classic": wrong}}, {})


async def test_a_character_over_two_responses_is_whole_and_what_is_none_is_replaced() -> None:
    call = Call(7, Action(Key("7-a"), "alpine", ("a",)), 1 << 20, None)
    text = ""
    for data in (b"caf\xc3", b"\xa9 \xff \xe2\x82", b"\xac \xf0\x9f"):
        await call.send(LogChunk(data))
        text += (await call.next()).log
    await call.send(Finished(Outcome(Result.SUCCEEDED, Stage.COMMANDS, None, 0)))
    last = await call.next()
    assert text + last.log == "café \ufffd € \ufffd"
    assert (last.result.completion, last.result.exit_code) == (3, 0)
