"""The tables of the store, and the conversion of values to rows and back.

The functions keep no state. They run on the store's thread, which owns the connection. The connection's `row_factory`
is `sqlite3.Row`, so that every column is read by its name.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.domain.errors import Stage
from agent.local_scheduler.action_state import ActionState, ActionStatus
from agent.local_scheduler.storage.changes import StoredPipeline
from agent.pipeline import event_codec
from agent.pipeline.events import FileStored, LogText
from agent.pipeline.wire import local_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.local_scheduler.storage.changes import ActionFiles
    from agent.pipeline.events import PipelineEvent

VERSION = 4
# The statements that bring the tables of an older version to the next version. The mode of files is not known before
# version 3, so it becomes 0644.
UPGRADES = {
    1: "ALTER TABLE actions ADD COLUMN service_cursors TEXT NOT NULL DEFAULT '{}'",
    2: "ALTER TABLE files ADD COLUMN mode INTEGER NOT NULL DEFAULT 420; "
    "ALTER TABLE files ADD COLUMN uri TEXT NOT NULL DEFAULT ''",
    3: "ALTER TABLE files ADD COLUMN start INTEGER NOT NULL DEFAULT 0",
}
TABLES = """
CREATE TABLE pipelines (
    id TEXT PRIMARY KEY, source TEXT NOT NULL, text TEXT NOT NULL, submitted REAL NOT NULL, ended INTEGER NOT NULL
) STRICT;
CREATE TABLE actions (
    pipeline TEXT NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL, attempt INTEGER NOT NULL, claim INTEGER NOT NULL,
    agent TEXT NOT NULL, started REAL NOT NULL, seq INTEGER NOT NULL, cursor BLOB NOT NULL, stage TEXT,
    command INTEGER NOT NULL, log_bytes INTEGER NOT NULL, cancel TEXT, outcome BLOB,
    service_cursors TEXT NOT NULL DEFAULT '{}', PRIMARY KEY (pipeline, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE events (
    pipeline TEXT NOT NULL, position INTEGER NOT NULL, event BLOB NOT NULL, PRIMARY KEY (pipeline, position)
) STRICT, WITHOUT ROWID;
CREATE TABLE files (
    pipeline TEXT NOT NULL, action TEXT NOT NULL, path BLOB NOT NULL, size INTEGER NOT NULL, sha256 BLOB NOT NULL,
    mode INTEGER NOT NULL DEFAULT 420, uri TEXT NOT NULL DEFAULT '', start INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (pipeline, action, path)
) STRICT, WITHOUT ROWID;
"""
SAVE_PIPELINE = """
INSERT INTO pipelines (id, source, text, submitted, ended) VALUES (:id, :source, :text, :submitted, :ended)
ON CONFLICT (id) DO UPDATE SET ended = excluded.ended
"""
SAVE_ACTION = """
INSERT OR REPLACE INTO actions (
    pipeline, name, state, attempt, claim, agent, started, seq, cursor, stage, command, log_bytes, cancel, outcome,
    service_cursors
) VALUES (
    :pipeline, :name, :state, :attempt, :claim, :agent, :started, :seq, :cursor, :stage, :command, :log_bytes, :cancel,
    :outcome, :service_cursors
)
"""
SAVE_EVENT = "INSERT INTO events (pipeline, position, event) VALUES (:pipeline, :position, :event)"
SAVE_FILE = """
INSERT INTO files (pipeline, action, path, size, sha256, mode, uri, start)
VALUES (:pipeline, :action, :path, :size, :sha256, :mode, :uri, :start)
"""


def prepare(connection: sqlite3.Connection) -> None:
    """Create the tables of a new database, or bring those of an older version to this version.

    Raises:
        ValueError: a newer version created the tables.
    """
    connection.row_factory = sqlite3.Row
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    while found in UPGRADES:
        connection.executescript(f"BEGIN IMMEDIATE; {UPGRADES[found]}; PRAGMA user_version = {found + 1}; COMMIT;")
        found += 1
    if found == VERSION:
        return
    if found:
        raise ValueError(f"its tables have version {found}, this program reads {VERSION}")
    connection.executescript(f"BEGIN IMMEDIATE; {TABLES} PRAGMA user_version = {VERSION}; COMMIT;")


# ---- rows of pipelines


def save_pipeline(connection: sqlite3.Connection, pipeline: StoredPipeline) -> None:
    """Insert a pipeline, or update its row when the pipeline has ended."""
    values = {
        "id": pipeline.id,
        "source": pipeline.source,
        "text": pipeline.text,
        "submitted": pipeline.submitted,
        "ended": int(pipeline.ended),
    }
    connection.execute(SAVE_PIPELINE, values)


def load_pipelines(connection: sqlite3.Connection) -> list[StoredPipeline]:
    """Return all pipelines, oldest first."""
    rows = connection.execute("SELECT id, source, text, submitted, ended FROM pipelines ORDER BY submitted, rowid")
    return [
        StoredPipeline(row["id"], row["source"], row["text"], row["submitted"], ended=bool(row["ended"]))
        for row in rows.fetchall()
    ]


def drop_oldest(connection: sqlite3.Connection, kept: int) -> None:
    """Delete the rows of ended pipelines beyond the newest `kept`. Their log files and artifacts stay on the disk."""
    old = connection.execute(
        "SELECT id FROM pipelines WHERE ended ORDER BY submitted DESC LIMIT -1 OFFSET ?", (kept,)
    ).fetchall()
    ids = [(row["id"],) for row in old]
    connection.executemany("DELETE FROM events WHERE pipeline = ?", ids)
    connection.executemany("DELETE FROM files WHERE pipeline = ?", ids)
    connection.executemany("DELETE FROM actions WHERE pipeline = ?", ids)
    connection.executemany("DELETE FROM pipelines WHERE id = ?", ids)


# ---- rows of actions


def save_states(connection: sqlite3.Connection, states: Iterable[ActionState]) -> None:
    """Insert or replace the rows of actions."""
    connection.executemany(SAVE_ACTION, (action_row(each) for each in states))


def action_row(state: ActionState) -> dict[str, object]:
    """Return the columns of an action by name."""
    outcome = event_codec.encode_outcome(state.outcome).SerializeToString() if state.outcome else None
    return {
        "pipeline": state.pipeline,
        "name": state.name,
        "state": state.status.value,
        "attempt": state.attempt,
        "claim": state.claim,
        "agent": state.agent,
        "started": state.started,
        "seq": state.seq,
        "cursor": state.cursor,
        "stage": state.stage.value if state.stage else None,
        "command": state.command,
        "log_bytes": state.log_bytes,
        "cancel": state.cancel,
        "outcome": outcome,
        "service_cursors": json.dumps({name: cursor.hex() for name, cursor in state.service_cursors.items()}),
    }


def load_states(connection: sqlite3.Connection, pipeline: str) -> list[ActionState]:
    """Return the states of a pipeline's actions.

    Raises:
        ValueError: a stored value is unknown to this version.
    """
    rows = connection.execute("SELECT * FROM actions WHERE pipeline = ?", (pipeline,))
    return [action_state(row) for row in rows.fetchall()]


def action_state(row: sqlite3.Row) -> ActionState:
    """Return the `ActionState` of a row that `action_row` made."""
    outcome = row["outcome"]
    return ActionState(
        pipeline=row["pipeline"],
        name=row["name"],
        status=ActionStatus(row["state"]),
        attempt=row["attempt"],
        claim=row["claim"],
        agent=row["agent"],
        started=row["started"],
        seq=row["seq"],
        cursor=row["cursor"],
        stage=Stage(row["stage"]) if row["stage"] else None,
        command=row["command"],
        log_bytes=row["log_bytes"],
        cancel=row["cancel"],
        outcome=event_codec.decode_outcome(wire.Finished.FromString(outcome)) if outcome else None,
        service_cursors={name: bytes.fromhex(text) for name, text in json.loads(row["service_cursors"]).items()},
    )


def newest_attempts(connection: sqlite3.Connection, pipeline: str) -> dict[str, int]:
    """Return the number of the newest attempt of each action, by the action's name."""
    rows = connection.execute("SELECT name, attempt FROM actions WHERE pipeline = ?", (pipeline,))
    return {row["name"]: row["attempt"] for row in rows.fetchall()}


# ---- rows of events


def save_events(connection: sqlite3.Connection, events: Iterable[PipelineEvent]) -> None:
    """Insert events. The bytes of the logs go into the log files, not into the table."""
    rows = ({"pipeline": each.pipeline, "position": each.position, "event": event_row(each)} for each in events)
    connection.executemany(SAVE_EVENT, rows)


def event_row(event: PipelineEvent) -> bytes:
    """Return the stored form of an event. A log event keeps only the length of its bytes."""
    if not isinstance(event.body, LogText):
        return event_codec.encode(event).SerializeToString()
    message = event_codec.encode(replace(event, body=replace(event.body, data=b"")))
    message.log.length = len(event.body.data)
    return message.SerializeToString()


def load_events(connection: sqlite3.Connection, pipeline: str, after: int, limit: int) -> list[wire.PipelineEvent]:
    """Return the events after position `after`, at most `limit`. Log events come without their bytes."""
    rows = connection.execute(
        "SELECT event FROM events WHERE pipeline = ? AND position > ? ORDER BY position LIMIT ?",
        (pipeline, after, limit),
    )
    return [wire.PipelineEvent.FromString(row["event"]) for row in rows.fetchall()]


def last_position(connection: sqlite3.Connection, pipeline: str) -> int:
    """Return the position of a pipeline's last event, 0 when it has none."""
    query = "SELECT coalesce(max(position), 0) AS position FROM events WHERE pipeline = ?"
    return int(connection.execute(query, (pipeline,)).fetchone()["position"])


# ---- rows of files


def replace_files(connection: sqlite3.Connection, files: ActionFiles) -> None:
    """Replace the list of an action's files."""
    delete_files(connection, files.pipeline, files.action)
    rows = (
        {
            "pipeline": files.pipeline,
            "action": files.action,
            "path": each.path,
            "size": each.size,
            "sha256": each.sha256,
            "mode": each.mode,
            "uri": each.uri,
            "start": each.offset,
        }
        for each in files.files
    )
    connection.executemany(SAVE_FILE, rows)


def delete_files(connection: sqlite3.Connection, pipeline: str, action: str) -> None:
    """Delete the list of an action's files."""
    connection.execute("DELETE FROM files WHERE pipeline = ? AND action = ?", (pipeline, action))


def load_files(connection: sqlite3.Connection, pipeline: str) -> dict[str, list[FileStored]]:
    """Return the files of a pipeline by the name of their action."""
    files: dict[str, list[FileStored]] = {}
    query = "SELECT action, path, size, sha256, mode, uri, start FROM files WHERE pipeline = ?"
    for row in connection.execute(query, (pipeline,)):
        file = FileStored(row["path"], row["size"], row["sha256"], row["mode"], row["uri"], row["start"])
        files.setdefault(row["action"], []).append(file)
    return files
