"""Write the files of other actions into the workspace of a pod.

One delivery is one exec of the program `receive_inputs` in container `helper`. Each file goes as a line of JSON and its
bytes. The program checks the hashes and answers with one line. A delivery that broke may be repeated from the start:
the program replaces files that an earlier delivery has written.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.aio import cancelled_on_exit, first_of
from agent.cluster import packaging
from agent.cluster.api.exec import ExecError
from agent.cluster.in_pod.objects.file_records import encode_records
from agent.domain.artifacts import InputFile
from agent.domain.errors import ActionFailed, ClusterError, Reason, Stage
from agent.domain.json import Object
from agent.objects.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.cluster.api.exec import ExecStream
    from agent.domain.artifacts import FileData

# Maximum number of files of one object that one line names.
LINE_FILES = 1024
# Number of bytes that are collected before they are sent, so that small files share a frame of the exec.
BATCH_BYTES = 64 << 10
# Maximum number of bytes of the program's answer.
MAX_ANSWER = 64 << 10
# Reasons of the program's errors that no repetition can mend.
REASONS = {
    "refused": Reason.INVALID_CONFIGURATION,
    "digest": Reason.INTERNAL,
    "missing": Reason.INPUT_MISSING,
}


@dataclass(frozen=True, slots=True)
class ObjectFiles:
    """Files of one object of the object store, which the pod reads with the signed URL `url`."""

    url: str = field(repr=False)
    files: tuple[InputFile, ...]


def deliver_command(workspace: str, go: str, *, snapshot: bool, gated: bool = False) -> list[str]:
    """Return the command that writes the files and then starts the commands through the FIFO `go`.

    `snapshot`: the program takes the snapshot of the workspace before it starts the commands. `gated`: container
    `helper` does both, when the services of the action are ready too.
    """
    if gated:
        path, fifo, word = "", packaging.GATE, "tree"
    else:
        path, fifo, word = packaging.SNAPSHOT if snapshot else "", go, "run"
    return [*packaging.receive_inputs_program(), workspace, path, fifo, packaging.LOG_FOLDER, word]


async def deliver(stream: ExecStream, items: AsyncIterator[InputFile | FileData | ObjectFiles], ca: str = "") -> None:
    """Send files through an exec of `deliver_command` that is not entered yet.

    The program reads `ObjectFiles` from the object store, whose CA has the PEM certificates `ca`.

    Raises:
        ActionFailed: a file cannot be written at its path, or its content has another hash.
        ClusterError: the delivery broke. `retryable` is set if a new one may succeed.
        Exception: whatever `items` raises.
    """
    answer = bytearray()
    async with stream:
        sender = asyncio.create_task(send_files(stream, items, ca), name=f"inputs for {stream.target.pod}")
        reader = asyncio.create_task(read_answer(stream, answer), name=f"inputs of {stream.target.pod}")
        async with cancelled_on_exit(sender, reader):
            await first_of(sender, reader)
            # If the program ends early, the sender fails too. The program's answer then has the cause.
            if sender.done() and (error := sender.exception()) and not isinstance(error, ExecError):
                raise error
            await reader
    check_answer(stream, bytes(answer))


async def read_answer(stream: ExecStream, answer: bytearray) -> None:
    """Read the output of the program to its end."""
    async for data in stream:
        answer += data
        if len(answer) > MAX_ANSWER:
            raise ExecError(f"the program in {stream.target.pod} wrote more than {MAX_ANSWER} bytes")


async def send_files(
    stream: ExecStream, items: AsyncIterator[InputFile | FileData | ObjectFiles], ca: str = ""
) -> None:
    """Send the files, and then their number."""
    batch, files = bytearray(line({"ca": ca}) if ca else b""), 0
    async for item in items:
        if isinstance(item, InputFile):
            files += 1
            batch += header_line(item)
        elif isinstance(item, ObjectFiles):
            files += len(item.files)
            batch += object_lines(item)
        else:
            batch += item.data
        if len(batch) >= BATCH_BYTES:
            await stream.send(bytes(batch))
            batch.clear()
    batch += line({"end": files})
    await stream.send(bytes(batch))


def header_line(file: InputFile) -> bytes:
    return line({"path": text_of(file), "mode": file.mode, "size": file.size, "sha256": file.sha256.hex()})


def object_lines(item: ObjectFiles) -> bytes:
    """Return the lines that name the files of one object."""
    files = sorted(item.files, key=lambda file: file.offset)
    records = [(text_of(file), file.mode, file.size, file.sha256, file.offset) for file in files]
    starts = range(0, len(records), LINE_FILES)
    return b"".join(line({"url": item.url}) + encode_records(records[at : at + LINE_FILES]) + b"\n" for at in starts)


def text_of(file: InputFile) -> str:
    """Return the path of a file. Bytes that are not UTF-8 become halves of surrogate pairs, as in the program."""
    return file.path.decode("utf-8", "surrogateescape")


def line(value: Object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def check_answer(stream: ExecStream, data: bytes) -> None:
    """Raise the error that the program reports, if any."""
    try:
        answer = json.loads(data)
        error, message = str(answer.get("error", "")), str(answer.get("message", ""))
    except (ValueError, AttributeError, RecursionError) as failure:
        last = bytes(stream.stderr).decode("utf-8", "replace").strip().rpartition("\n")[2]
        why = last or f"exit code {stream.exit_code}"
        raise ClusterError(f"the program that writes the files failed: {why[:500]}", retryable=True) from failure
    if reason := REASONS.get(error):
        raise ActionFailed(Stage.SETUP, reason, f"the inputs cannot be copied: {message}")
    if error == "store":
        raise StoreError(f"the object store did not send the files: {message}", retryable=True)
    if error:
        raise ClusterError(f"the files were not written: {message}", retryable=True)
