"""The local scheduler's store: changes survive a restart, callbacks run after the write, a crash does no damage."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from agent.domain.errors import Reason, Stage
from agent.domain.events import Source
from agent.domain.outcome import Outcome, Result
from agent.local_scheduler.action_state import ActionState, ActionStatus
from agent.local_scheduler.storage.changes import ActionFiles, Change, StoredPipeline
from agent.local_scheduler.storage.store import BATCH, DATABASE, MAX_WAITING, Store, StoreFailed
from agent.pipeline.events import ActionEnded, FileStored, LogText, PipelineEvent, Submitted

if TYPE_CHECKING:
    from pathlib import Path

PIPELINE = StoredPipeline("pipeline1", "ci.yaml", "text", 1.0)
START = ActionState("pipeline1", "a")
RUNNING = replace(
    START,
    status=ActionStatus.RUNNING,
    claim=2,
    agent="pod.1",
    started=5.0,
    seq=3,
    cursor=b"2|3|4|0|0",
    stage=Stage.COMMANDS,
    command=1,
    log_bytes=4,
    cancel="stop",
    service_cursors={"db": b"1|\xff|2"},
)
OUTCOME = Outcome(Result.FAILED, Stage.COMMANDS, Reason.COMMAND_FAILED, 3, 1, "sentence")


def text(position: int, data: bytes, offset: int, attempt: int = 1) -> PipelineEvent:
    return PipelineEvent("pipeline1", position, 2.0, LogText(data, Source.COMMANDS, offset), "a", attempt)


async def begin(store: Store) -> None:
    await store.open()
    first = PipelineEvent("pipeline1", 1, 1.0, Submitted("p", (), "folder"))
    await store.save_and_wait(Change(pipeline=PIPELINE, states=[START], events=[first]))


async def test_everything_is_loaded_after_a_restart(tmp_path: Path) -> None:
    store = Store(tmp_path, durable=True)
    await begin(store)
    await store.save_and_wait(Change(states=[RUNNING], events=[text(2, b"one\n", 0)]))
    await store.save_and_wait(Change(files=ActionFiles("pipeline1", "a", [FileStored(b"\xff", 1, b"digest")])))
    await store.close()

    store = Store(tmp_path, durable=True)
    (loaded,) = await store.open()
    assert loaded.pipeline == PIPELINE
    assert loaded.actions == [RUNNING]
    assert (loaded.position, loaded.files) == (2, {"a": [FileStored(b"\xff", 1, b"digest")]})
    events = await store.events("pipeline1", 1)
    assert [(event.position, event.log.data) for event in events] == [(2, b"one\n")]
    ended = RUNNING.with_outcome(OUTCOME)
    finished = PipelineEvent("pipeline1", 3, 3.0, ActionEnded(OUTCOME, 1.0), "a", 1)
    await store.save_and_wait(Change(pipeline=replace(PIPELINE, ended=True), states=[ended], events=[finished]))
    await store.close()

    store = Store(tmp_path, durable=True)
    (loaded,) = await store.open()
    await store.close()
    assert loaded.pipeline.ended
    assert loaded.actions == [ended]


async def test_bytes_that_were_not_committed_are_cut(tmp_path: Path) -> None:
    store = Store(tmp_path, durable=True)
    await begin(store)
    await store.save_and_wait(Change(states=[RUNNING], events=[text(2, b"one\n", 0)]))
    await store.close()
    log = tmp_path / "pipeline1" / "a.log"
    with log.open("ab") as file:
        file.write(b"written before the crash, never committed")
    store = Store(tmp_path, durable=True)
    await store.open()
    assert log.read_bytes() == b"one\n"
    await store.save_and_wait(Change(states=[replace(RUNNING, seq=4, log_bytes=8)], events=[text(3, b"two\n", 4)]))
    await store.close()
    assert log.read_bytes() == b"one\ntwo\n"


async def test_a_crash_at_the_start_of_a_new_attempt_is_repaired(tmp_path: Path) -> None:
    store = Store(tmp_path, durable=True)
    await begin(store)
    await store.save_and_wait(Change(states=[RUNNING], events=[text(2, b"one\n", 0)]))
    await store.close()
    log = tmp_path / "pipeline1" / "a.log"
    log.rename(log.with_name("a.log.1"))
    log.touch()
    store = Store(tmp_path, durable=True)
    await store.open()
    await store.close()
    assert log.read_bytes() == b"one\n"
    assert sorted(os.listdir(log.parent)) == ["a.log"]


async def test_attempts_have_logs_of_their_own_in_one_batch(tmp_path: Path) -> None:
    store = Store(tmp_path, durable=True)
    await begin(store)
    second = RUNNING.next_attempt()
    store.save(Change(states=[RUNNING], events=[text(2, b"one\n", 0)]))
    store.save(Change(states=[second], new_attempt=second))
    await store.save_and_wait(Change(states=[second], events=[text(3, b"two\n", 0, attempt=2)]))
    events = await store.events("pipeline1", 1)
    await store.close()
    assert [event.log.data for event in events] == [b"one\n", b"two\n"]
    assert (tmp_path / "pipeline1" / "a.log.1").read_bytes() == b"one\n"


async def test_callbacks_wait_until_their_change_is_stored(tmp_path: Path) -> None:
    store = Store(tmp_path, durable=True)
    await begin(store)
    seen: list[int] = []
    for seq in (4, 5):
        state = replace(RUNNING, seq=seq)
        store.save(Change(states=[state]), lambda seq=seq: seen.append(seq))  # type: ignore[misc]
    assert seen == []
    await store.save_and_wait(Change())
    assert seen == [4, 5]
    await store.close()


async def test_a_failed_write_is_reported_and_its_callback_is_not_called(tmp_path: Path) -> None:
    store = Store(tmp_path, durable=True)
    await begin(store)
    stored = asyncio.Event()
    log = tmp_path / "pipeline1" / "a.log"
    log.unlink()
    log.mkdir()
    store.save(Change(states=[RUNNING], events=[text(2, b"one\n", 0)]), stored.set)
    with pytest.raises(StoreFailed, match="cannot be written"):
        await store.wait_until(stored)
    with pytest.raises(StoreFailed, match="Is a directory"):
        store.failed.result()
    with pytest.raises(StoreFailed):
        store.save(Change())
    await store.close()
    assert not stored.is_set()


async def test_the_number_of_waiting_changes_is_bounded(tmp_path: Path) -> None:
    store = Store(tmp_path, durable=False)
    await begin(store)
    for _ in range(MAX_WAITING + BATCH):
        store.save(Change(states=[START]))
    waiting = asyncio.create_task(store.wait_for_room())
    await asyncio.sleep(0)
    assert not waiting.done()
    async with asyncio.timeout(30):
        await waiting
    await store.close()


async def test_a_second_scheduler_does_not_get_the_folder(tmp_path: Path) -> None:
    store = Store(tmp_path, durable=True)
    await begin(store)
    second = Store(tmp_path, durable=True)
    with pytest.raises(StoreFailed, match="another scheduler uses it"):
        await second.open()
    await store.close()


async def test_the_folder_of_another_version_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / DATABASE)
    connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(StoreFailed, match="its tables have version 9, this program reads 3"):
        await Store(tmp_path, durable=True).open()


async def test_the_tables_of_older_versions_are_upgraded(tmp_path: Path) -> None:
    store = Store(tmp_path, durable=True)
    await begin(store)
    await store.close()
    connection = sqlite3.connect(tmp_path / DATABASE)
    # `uri` and `mode` are columns of version 3, `service_cursors` is one of version 2.
    drops = (("actions", "service_cursors"), ("files", "mode"), ("files", "uri"))
    statements = "; ".join(f"ALTER TABLE {table} DROP COLUMN {column}" for table, column in drops)
    connection.executescript(f"{statements}; PRAGMA user_version = 1;")
    connection.close()
    store = Store(tmp_path, durable=True)
    (loaded,) = await store.open()
    assert loaded.actions == [START]
    await store.save_and_wait(Change(states=[RUNNING]))
    await store.close()


async def test_only_the_owner_can_read_the_database(tmp_path: Path) -> None:
    store = Store(tmp_path, durable=True)
    await begin(store)
    await store.close()
    assert (tmp_path / DATABASE).stat().st_mode & 0o777 == 0o600


async def test_without_durable_only_logs_stay_on_the_disk(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("of an earlier run")
    (tmp_path / "a.log.1").write_text("of an earlier run")
    store = Store(tmp_path, durable=False)
    await begin(store)
    await store.save_and_wait(Change(states=[RUNNING], events=[text(2, b"one\n", 0)]))
    await store.close()
    assert sorted(os.listdir(tmp_path)) == ["a.log"]
    assert (tmp_path / "a.log").read_bytes() == b"one\n"
