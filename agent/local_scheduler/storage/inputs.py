"""The inputs of an action: select the stored files of other actions, and send them to an agent.

The files of an action do not change after its success. So the scheduler selects the inputs of an action once, before
the action goes to its first agent, and keeps the selection in memory. After a restart it selects the same files. An
action that did not succeed has no files for others, because they may be incomplete.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.domain.artifacts import MAX_INPUT_FILES, FileData, FileEnd, FileStart, Input, InputFile
from agent.domain.errors import AgentError, Reason
from agent.domain.outcome import Result
from agent.local_scheduler.storage.downloads import open_stored
from agent.pipeline.events import FileStored, Transfer
from agent.pipeline.inputs import select
from agent.protocol import translate
from agent.protocol.translate import UploadEnd
from agent.protocol.wire import agent_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from agent.domain.artifacts import FilePart
    from agent.local_scheduler.records import ActionRecord
    from agent.pipeline.inputs import InputRule

# Number of bytes of data in one chunk. The contract (ArtifactChunk.parts) names the same limit.
CHUNK_BYTES = 256 << 10
# Number of bytes that each part counts for in addition to its data, so that a chunk of many empty files stays small.
PART_OVERHEAD = 64
# Maximum number of bytes of all paths of an action's inputs. An agent receives messages of at most 16 MiB.
MAX_PATHS_BYTES = 8 << 20
# Maximum number of artifacts that the message about a missing input names.
MAX_NAMED = 5


class InputsUnusable(AgentError):
    """The inputs of an action cannot be given to an agent. `reason` becomes the reason of the action's outcome."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class FileGone(AgentError):
    """A stored file of an input cannot be read any more. The agent gets the message."""


@dataclass(frozen=True, slots=True)
class SelectedInput:
    """An input with the stored files behind it. `files` and `target.files` have the same order.

    `in_packs`: an agent can read the files only if it knows that files share objects.
    """

    target: Input
    files: tuple[FileStored, ...]
    in_packs: bool = False


def selected_inputs(record: ActionRecord) -> tuple[SelectedInput, ...]:
    """Return the inputs of an action whose needs have all ended.

    Raises:
        InputsUnusable: a glob matches no artifact, two files have one path, or there are too many files.
    """
    if record.inputs is None:
        found = tuple(
            select_input(f"inputs[{number}]", rule, record.run.records[rule.source])
            for number, rule in enumerate(record.plan.inputs, 1)
        )
        check_selection(found)
        record.inputs = found
    return record.inputs


def inputs_of(record: ActionRecord) -> tuple[Input, ...]:
    """Return the inputs of an action as its agent gets them. See `selected_inputs`."""
    return tuple(each.target for each in selected_inputs(record))


def inputs_error(record: ActionRecord) -> InputsUnusable | None:
    """Return why an action whose needs have all ended cannot get its inputs, None if it can."""
    try:
        selected_inputs(record)
    except InputsUnusable as error:
        return error
    return None


def resumed_inputs(record: ActionRecord) -> tuple[Input, ...]:
    """Return the inputs of an action for an agent that has adopted it.

    After a state loss the scheduler has no files of the needed actions. Each input is then empty, and the agent reports
    that it is missing.
    """
    try:
        return inputs_of(record)
    except InputsUnusable:
        return tuple(Input(rule.source, "", ()) for rule in record.plan.inputs)


def select_input(field: str, rule: InputRule, source: ActionRecord) -> SelectedInput:
    outcome = source.state.outcome
    succeeded = outcome is not None and outcome.result is Result.SUCCEEDED
    files = {each.path: each for each in source.files} if succeeded else {}
    chosen, unmatched = select(rule, files)
    if unmatched and not rule.optional:
        text = missing_text(rule, unmatched[0], files) if succeeded else f"{rule.source} did not succeed"
        raise InputsUnusable(Reason.INPUT_MISSING, f"{field}: {text}")
    found = tuple(files[path] for path, _ in chosen)
    targets = tuple(
        InputFile(path, file.mode, file.size, file.sha256, file.uri, file.offset)
        for (_, path), file in zip(chosen, found, strict=True)
    )
    folder = rule.to if rule.to is not None else ""
    # The first file of a pack has the offset 0 too, so the other files show that the object is a pack.
    uses = Counter(file.uri for file in files.values() if file.uri)
    in_packs = any(file.offset or uses[file.uri] > 1 for file in found)
    return SelectedInput(Input(rule.source, folder, targets, rule.optional), found, in_packs)


def missing_text(rule: InputRule, glob: str, files: Mapping[bytes, FileStored]) -> str:
    """Return which glob matches no artifact, and what the other action has stored."""
    names = [path.decode("utf-8", "backslashreplace") for path in sorted(files)]
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    there = f"it has stored {', '.join(names[:MAX_NAMED])}{more}" if names else "it has stored no files"
    what = f"no artifact of {rule.source} matches {glob!r}" if rule.paths else f"{rule.source} has no artifacts"
    return f"{what}; {there}"


def check_selection(inputs: Sequence[SelectedInput]) -> None:
    """Refuse too many files, and two files with one path in the workspace."""
    targets = [each.target.target(file) for each in inputs for file in each.target.files]
    if len(targets) > MAX_INPUT_FILES:
        text = f"inputs: {len(targets)} files are too many; at most {MAX_INPUT_FILES}"
        raise InputsUnusable(Reason.INVALID_CONFIGURATION, text)
    if sum(map(len, targets)) > MAX_PATHS_BYTES:
        text = f"inputs: the paths of the files have more than {MAX_PATHS_BYTES} bytes"
        raise InputsUnusable(Reason.INVALID_CONFIGURATION, text)
    seen: dict[bytes, int] = {}
    for number, each in enumerate(inputs, 1):
        for file in each.target.files:
            path = each.target.target(file)
            if path in seen:
                name = path.decode("utf-8", "backslashreplace")
                text = f"inputs[{number}]: {name} is also a file of inputs[{seen[path]}]; give one of them another `to`"
                raise InputsUnusable(Reason.INVALID_CONFIGURATION, text)
            seen[path] = number


class InputReader:
    """Reads the files of one input for one call of an agent. It blocks, so the caller runs it on a thread."""

    def __init__(self, folder: Path, selected: SelectedInput) -> None:
        self.folder = folder
        self.selected = selected
        self.began = time.monotonic()
        self.sent_files = self.sent_bytes = self.done = 0
        self.current: InputFile | None = None

    def transfer(self) -> Transfer:
        """Return the progress of the call."""
        path, size = (self.current.path, self.current.size) if self.current else (b"", 0)
        seconds = time.monotonic() - self.began
        return Transfer(self.sent_files, self.sent_bytes, path, self.done, size, seconds)

    def chunks(self) -> Iterator[wire.ArtifactChunk]:
        """Yield the chunks of all files.

        Raises:
            FileGone: a file cannot be read, or has another size than when it was stored.
        """
        chunk, room = wire.ArtifactChunk(), CHUNK_BYTES
        for part in self.parts():
            chunk.parts.append(translate.part_message(part))
            size = len(part.data) if isinstance(part, FileData) else 0
            self.sent_bytes += size
            room -= PART_OVERHEAD + size + (len(part.path) if isinstance(part, FileStart) else 0)
            if room <= 0:
                yield chunk
                chunk, room = wire.ArtifactChunk(), CHUNK_BYTES
        end = UploadEnd(self.sent_files, self.sent_bytes)
        chunk.parts.append(translate.part_message(end))
        yield chunk

    def parts(self) -> Iterator[FilePart]:
        for target, stored in zip(self.selected.target.files, self.selected.files, strict=True):
            self.current, self.done = target, 0
            yield FileStart(target.path, target.mode, target.size)
            yield from self.data(stored)
            self.sent_files += 1
            yield FileEnd(target.sha256)

    def data(self, stored: FileStored) -> Iterator[FileData]:
        """Yield the content of a stored file."""
        source = self.selected.target.source
        name = f"artifact {stored.path.decode('utf-8', 'backslashreplace')} of {source}"
        if stored.uri:
            raise FileGone(f"{name} is in an object store that the agent does not use ({stored.uri})")
        try:
            handle = open_stored(self.folder, source, stored.path)
        except OSError as error:
            raise FileGone(f"{name} is no longer stored ({error.strerror})") from error
        with os.fdopen(handle, "rb", buffering=0) as file:
            while self.done < stored.size:
                data = file.read(min(CHUNK_BYTES, stored.size - self.done))
                if not data:
                    raise FileGone(f"{name} has become shorter since it was stored")
                self.done += len(data)
                yield FileData(data)
