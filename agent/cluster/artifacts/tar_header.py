"""Headers of the archive that the collector writes. The parser accepts only the form that the collector writes.

The collector is the program `collect_files` in the pod. The functions perform no I/O. General tar files have links,
devices, owners, sparse files, names in three places and numbers in two bases. Most security holes of unpacking programs
come from these features. This parser accepts none of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.domain.errors import AgentError
from agent.domain.paths import safe_components


class ArchiveError(AgentError):
    """The stream is not in the collector's form, is not complete, or exceeds a limit."""


@dataclass(slots=True)
class Header:
    """One checked header block. It is kept until the content of its file has been read."""

    kind: bytes
    name: bytes
    mode: int
    size: int


def parse_header(block: bytes) -> Header:
    """Check the 512 bytes of a header and return the fields that the agent uses.

    Raises:
        ArchiveError: the block is not a header, or a field has another form than the program in the pod writes.
    """
    if block[257:265] != b"ustar\x0000":
        raise ArchiveError("a block that is no header of the archive")
    if octal(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * 32:
        raise ArchiveError("a header with a wrong checksum")
    if block[157:257].strip(b"\0") or block[345:].strip(b"\0"):
        raise ArchiveError("a header with a link or a prefix")
    name = block[:100].rstrip(b"\0")
    return Header(kind=block[156:157], name=name, mode=octal(block[100:108]), size=octal(block[124:136]))


def octal(field: bytes) -> int:
    """Read an octal number. Signs and the base-256 form of general tar files are refused.

    Raises:
        ArchiveError: the field is not an octal number.
    """
    digits = field.rstrip(b"\0 ")
    if not digits or digits.strip(b"01234567"):
        raise ArchiveError(f"a header with {field!r} for a number")
    return int(digits, 8)


def parse_pax(body: bytes) -> dict[bytes, bytes]:
    """Return the fields of a pax header: `path` and `size`, each at most once, and nothing else.

    Raises:
        ArchiveError: the header is not in the collector's form.
    """
    found: dict[bytes, bytes] = {}
    while body:
        length, space, _ = body[:10].partition(b" ")
        if not space or not length.isdigit() or not 0 < int(length) <= len(body):
            raise ArchiveError("an extended header with a wrong length")
        record, body = body[: int(length)], body[int(length) :]
        key, equals, value = record[len(length) + 1 :].partition(b"=")
        if not equals or not value.endswith(b"\n") or key not in (b"path", b"size") or key in found:
            raise ArchiveError(f"an extended header with {key[:50]!r}")
        found[key] = value[:-1]
    if not found or not found.get(b"size", b"0").isdigit() or len(found.get(b"size", b"0")) > 18:
        raise ArchiveError("an extended header without a meaning")
    return found


def checked_name(name: bytes) -> bytes:
    """Return `name` if it is a safe path of a file.

    Raises:
        ArchiveError: the name may lead out of the folder to which it is relative.
    """
    try:
        safe_components(name)
    except ValueError as error:
        raise ArchiveError(f"a file with the path {name[:200]!r}") from error
    return name
