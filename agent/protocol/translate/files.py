"""Translation of the parts of an upload (`UploadArtifacts`)."""

from __future__ import annotations

from dataclasses import dataclass

from agent.domain import actions as domain
from agent.domain import artifacts
from agent.protocol.wire import agent_pb2 as wire


@dataclass(frozen=True, slots=True)
class UploadEnd:
    """The last part of an upload, with the number of files and bytes in the upload."""

    files: int
    bytes: int


def upload_header_message(key: domain.Key, agent_id: str) -> wire.UploadHeader:
    return wire.UploadHeader(action_id=key.action_id, attempt=key.attempt, claim=key.claim, agent_id=agent_id)


def part_message(part: artifacts.FilePart | UploadEnd) -> wire.ArtifactPart:
    match part:
        case artifacts.FileStart():
            return wire.ArtifactPart(file=wire.FileStart(path=part.path, mode=part.mode, size=part.size))
        case artifacts.FileData():
            return wire.ArtifactPart(data=part.data)
        case artifacts.StoredObject():
            return wire.ArtifactPart(stored=wire.StoredFile(uri=part.uri, etag=part.etag, offset=part.offset))
        case artifacts.FileEnd():
            return wire.ArtifactPart(file_end=wire.FileEnd(sha256=part.sha256))
        case UploadEnd():
            return wire.ArtifactPart(end=wire.UploadEnd(files=part.files, bytes=part.bytes))


def part(message: wire.ArtifactPart) -> artifacts.FilePart | UploadEnd | None:
    """Return the part that a message holds, or None for a kind of part that this version does not know."""
    match message.WhichOneof("part"):
        case "file":
            return artifacts.FileStart(message.file.path, message.file.mode, message.file.size)
        case "data":
            return artifacts.FileData(message.data)
        case "stored":
            return artifacts.StoredObject(message.stored.uri, message.stored.etag, message.stored.offset)
        case "file_end":
            return artifacts.FileEnd(message.file_end.sha256)
        case "end":
            return UploadEnd(message.end.files, message.end.bytes)
    return None
