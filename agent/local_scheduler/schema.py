"""The tables of the store, and its values as their rows.

Pure apart from the connection that is handed in; everything here runs on the store's one thread.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from agent.domain.errors import Stage
from agent.local_scheduler.action_state import ActionState, ActionStatus
from agent.pipeline import event_codec
from agent.pipeline.events import LogText
from agent.pipeline.wire import local_pb2 as wire

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from agent.pipeline.events import PipelineEvent

VERSION = 1
TABLES = """
CREATE TABLE pipelines (
    id TEXT PRIMARY KEY, source TEXT NOT NULL, text TEXT NOT NULL, submitted REAL NOT NULL, ended INTEGER NOT NULL
) STRICT;
CREATE TABLE actions (
    pipeline TEXT NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL, attempt INTEGER NOT NULL, claim INTEGER NOT NULL,
    agent TEXT NOT NULL, started REAL NOT NULL, seq INTEGER NOT NULL, cursor BLOB NOT NULL, stage TEXT,
    command INTEGER NOT NULL, log_bytes INTEGER NOT NULL, cancel TEXT, outcome BLOB, PRIMARY KEY (pipeline, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE events (
    pipeline TEXT NOT NULL, position INTEGER NOT NULL, event BLOB NOT NULL, PRIMARY KEY (pipeline, position)
) STRICT, WITHOUT ROWID;
CREATE TABLE files (
    pipeline TEXT NOT NULL, action TEXT NOT NULL, path BLOB NOT NULL, size INTEGER NOT NULL, sha256 BLOB NOT NULL,
    PRIMARY KEY (pipeline, action, path)
) STRICT, WITHOUT ROWID;
"""
SAVE_ACTION = "INSERT OR REPLACE INTO actions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


def prepare(connection: sqlite3.Connection) -> None:
    """Make the tables unless they are there.

    Raises:
        ValueError: they were made by another version.
    """
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found == VERSION:
        return
    if found:
        raise ValueError(f"its tables have version {found}, this program reads {VERSION}")
    connection.executescript(f"BEGIN IMMEDIATE; {TABLES} PRAGMA user_version = {VERSION}; COMMIT;")


def save_states(connection: sqlite3.Connection, rows: Iterable[ActionState]) -> None:
    """Write how far actions are."""
    connection.executemany(SAVE_ACTION, (action_row(each) for each in rows))


def action_row(state: ActionState) -> tuple[object, ...]:
    """Return the columns of an action."""
    outcome = event_codec.encode_outcome(state.outcome).SerializeToString() if state.outcome else None
    return (
        state.pipeline,
        state.name,
        state.status.value,
        state.attempt,
        state.claim,
        state.agent,
        state.started,
        state.seq,
        state.cursor,
        state.stage.value if state.stage else None,
        state.command,
        state.log_bytes,
        state.cancel,
        outcome,
    )


def load_states(connection: sqlite3.Connection, pipeline: str) -> list[ActionState]:
    """Read how far the actions of a pipeline are."""
    found = []
    for row in connection.execute("SELECT * FROM actions WHERE pipeline = ?", (pipeline,)):
        _, name, state, attempt, claim, agent, started, seq, cursor, stage, command, log_bytes, cancel, outcome = row
        found.append(
            ActionState(
                pipeline=pipeline,
                name=name,
                status=ActionStatus(state),
                attempt=attempt,
                claim=claim,
                agent=agent,
                started=started,
                seq=seq,
                cursor=cursor,
                stage=Stage(stage) if stage else None,
                command=command,
                log_bytes=log_bytes,
                cancel=cancel,
                outcome=event_codec.decode_outcome(wire.Finished.FromString(outcome)) if outcome else None,
            )
        )
    return found


def save_events(connection: sqlite3.Connection, rows: Iterable[PipelineEvent]) -> None:
    """Write events; the bytes of logs stand in the log files."""
    connection.executemany(
        "INSERT INTO events VALUES (?, ?, ?)", ((each.pipeline, each.position, event_row(each)) for each in rows)
    )


def event_row(event: PipelineEvent) -> bytes:
    """Return an event as it is kept."""
    if not isinstance(event.body, LogText):
        return event_codec.encode(event).SerializeToString()
    message = event_codec.encode(replace(event, body=replace(event.body, data=b"")))
    message.log.length = len(event.body.data)
    return message.SerializeToString()
