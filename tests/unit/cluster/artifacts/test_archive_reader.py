"""The reader of artifact archives refuses broken, forged and oversized archives.

The tests cut each archive into pieces of many sizes, as an exec stream does.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import tarfile
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cluster.artifacts.archive_manifest import ArchiveManifest
from agent.cluster.artifacts.archive_reader import ArchiveEnd, ArchiveLimits, ArchiveReader, Item
from agent.cluster.artifacts.tar_header import ArchiveError, parse_header
from agent.cluster.in_pod.files.collect_files import MANIFEST_TYPE, header, pad_to_block, pax_record
from agent.domain.artifacts import FileData, FileEnd, FileStart
from agent.domain.events import LeftOut

LIMITS = ArchiveLimits(files=5, file_bytes=5000, total_bytes=8000, seconds=1)
FILES = {b"a": b"data", b"empty": b"", "sub/ü\n".encode(): b"x" * 1300, b"n" * 300: b"y" * 512, b"\xff": b"\0" * 100}


def member(name: bytes, data: bytes, *, kind: bytes = b"0") -> bytes:
    before = b""
    if len(name) > 100:
        more = pax_record(b"path", name)
        before = header(b"pax", 0o644, len(more), 0, b"x") + pad_to_block(more)
    return before + header(name, 0o644, len(data), 0, kind) + pad_to_block(data)


def file_line(name: bytes, data: bytes) -> bytes:
    path = name.decode("utf-8", "surrogateescape")
    return json.dumps(["file", path, len(data), 0o644, hashlib.sha256(data).hexdigest()]).encode() + b"\n"


def manifest_text(files: dict[bytes, bytes], *more: Sequence[object]) -> bytes:
    lines = b"".join(file_line(*each) for each in files.items())
    lines += b"".join(json.dumps(line).encode() + b"\n" for line in more)
    return lines + json.dumps(["end", len(files), sum(map(len, files.values())), len(more)]).encode() + b"\n"


def archive(files: dict[bytes, bytes], manifest: bytes | None = None, end: bytes = bytes(1024)) -> bytes:
    text = manifest_text(files) if manifest is None else manifest
    return b"".join(member(*each) for each in files.items()) + member(b"manifest", text, kind=MANIFEST_TYPE) + end


def read(data: bytes, splits: Sequence[int] = (), limits: ArchiveLimits = LIMITS) -> list[Item]:
    reader = ArchiveReader(limits)
    items: list[Item] = []
    bounds = [0, *sorted(splits), len(data)]
    for begin, end in itertools.pairwise(bounds):
        items += reader.feed(memoryview(data)[begin:end])
    reader.close()
    return items


def files_of(items: list[Item]) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    name = b""
    for item in items:
        if isinstance(item, FileStart):
            name, found[item.path] = item.path, b""
        elif isinstance(item, FileData):
            found[name] += item.data
        elif isinstance(item, FileEnd):
            assert item.sha256 == hashlib.sha256(found[name]).digest()
    return found


def test_a_whole_archive() -> None:
    items = read(archive(FILES))
    assert files_of(items) == FILES
    assert [item.size for item in items if isinstance(item, FileStart)] == [len(data) for data in FILES.values()]
    assert isinstance(items[-2], ArchiveManifest)
    assert items[-1] is ArchiveEnd.END
    assert items[-2] == ArchiveManifest(5, sum(map(len, FILES.values())), (), 0, (), None, ())


def test_the_fields_of_the_manifest() -> None:
    text = manifest_text(
        {b"a": b"1"},
        ("changed", "a"),
        ("left", "\udcff", "a symbolic link"),
        ("left", ".git", "excluded by default"),
        ("unmatched", "*.xml"),
        ("exceeded", "big", "too \ud800 big"),
    )
    (manifest,) = (item for item in read(archive({b"a": b"1"}, text)) if isinstance(item, ArchiveManifest))
    assert manifest.changed == (b"a",)
    assert manifest.left_out == (LeftOut(b"\xff", "a symbolic link"), LeftOut(b".git", "excluded by default"))
    assert manifest.left_out_files == 5
    assert manifest.unmatched == ("*.xml",)
    assert manifest.exceeded == LeftOut(b"big", "too ? big")


WHOLE = archive(FILES)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, len(WHOLE)), max_size=40))
def test_frames_may_end_anywhere(splits: list[int]) -> None:
    items = read(WHOLE, splits)
    assert files_of(items) == FILES
    assert items[-1] is ArchiveEnd.END


def test_frames_of_one_byte() -> None:
    assert files_of(read(WHOLE, range(len(WHOLE)))) == FILES


def test_an_archive_that_breaks_off_anywhere_is_refused() -> None:
    # A tar archive ends with two empty blocks of 512 bytes. The reader needs only the first of them, so the last 512
    # bytes may be missing.
    for length in range(len(WHOLE) - 512):
        with pytest.raises(ArchiveError):
            read(WHOLE[:length])


def test_a_changed_byte_is_detected_or_does_not_matter() -> None:
    for at in range(len(WHOLE)):
        forged = bytearray(WHOLE)
        forged[at] ^= 0x01
        try:
            items = read(bytes(forged))
        except ArchiveError:
            continue
        assert files_of(items) == FILES, at


def test_bytes_are_passed_on_as_they_arrive() -> None:
    limits = ArchiveLimits(1, 1 << 40, 1 << 40, 1)
    reader = ArchiveReader(limits)
    size = 1 << 36
    more = pax_record(b"size", b"%d" % size)
    reader.feed(header(b"pax", 0o644, len(more), 0, b"x") + pad_to_block(more) + header(b"large", 0o644, size, 0))
    chunk = bytes(1 << 15)
    for _ in range(10):
        assert reader.feed(chunk) == [FileData(chunk)]
    with pytest.raises(ArchiveError, match=r"broke off in b'large'"):
        reader.close()


# ---- hostile archives


def python_tar(change: Callable[[tarfile.TarInfo], None], tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    info = tarfile.TarInfo("name")
    change(info)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format) as tar:
        tar.addfile(info, io.BytesIO(bytes(info.size)))
    return out.getvalue()


def with_type(kind: bytes, link: str = "") -> bytes:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname = kind, link

    return python_tar(change)


def named(name: str, tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    return python_tar(lambda info: setattr(info, "name", name), tar_format)


def extended(body: bytes, after: bytes = b"") -> bytes:
    return header(b"pax", 0o644, len(body), 0, b"x") + pad_to_block(body) + (after or member(b"a", b"1"))


def resummed(block: bytes, at: int, data: bytes) -> bytes:
    block = block[:at] + data + block[at + len(data) :]
    return block[:148] + b"%06o\0 " % (sum(block) - sum(block[148:156]) + 256) + block[156:]


HEADER = header(b"a", 0o644, 1, 0)
HOSTILE = {
    "symbolic link": with_type(tarfile.SYMTYPE, "/etc/passwd"),
    "hard link": with_type(tarfile.LNKTYPE, "other"),
    "named pipe": with_type(tarfile.FIFOTYPE),
    "character device": with_type(tarfile.CHRTYPE),
    "block device": with_type(tarfile.BLKTYPE),
    "folder": with_type(tarfile.DIRTYPE),
    "contiguous file": with_type(tarfile.CONTTYPE),
    "sparse file": with_type(tarfile.GNUTYPE_SPARSE),
    "old type": resummed(HEADER, 156, b"\0") + pad_to_block(b"1"),
    "gnu long name": named("n" * 200, tarfile.GNU_FORMAT),
    "prefix of a name": named("d" * 100 + "/" + "n" * 60, tarfile.USTAR_FORMAT),
    "global header": header(b"pax", 0o644, 12, 0, b"g") + pad_to_block(b"12 path=abc\n"),
    "absolute path": named("/etc/passwd"),
    "path upwards": named("../x"),
    "path upwards inside": named("a/../../x"),
    "path of a dot": named("./x"),
    "empty component": named("a//b"),
    "slash at the end": member(b"a/", b"1"),
    "no name": member(b"", b"1"),
    "dots": member(b"..", b"1"),
    "nul in a name": extended(pax_record(b"path", b"a\0b")),
    "nul in a short name": member(b"a\0b", b"1"),
    "long path upwards": extended(pax_record(b"path", b"../" + b"n" * 200)),
    "absolute long path": extended(pax_record(b"path", b"/" + b"n" * 200)),
    "name too long": extended(pax_record(b"path", b"n" * 4097)),
    "unknown record": extended(pax_record(b"linkpath", b"/etc/passwd")),
    "sparse record": extended(pax_record(b"GNU.sparse.major", b"1")),
    "record without an end": extended(b"9 path=ab"),
    "record too long": extended(b"99 path=a\n"),
    "record of length nothing": extended(b"0 path=a\n"),
    "record without a length": extended(b"path=a\n"),
    "record with a sign": extended(b"-1 path=a\n"),
    "record twice": extended(pax_record(b"path", b"a") * 2),
    "no record": extended(b""),
    "size that is no number": extended(pax_record(b"size", b"-5")),
    "size with a sign": extended(pax_record(b"size", b"+5")),
    "size without end": extended(pax_record(b"size", b"9" * 100)),
    "two extended headers": extended(pax_record(b"path", b"a"), extended(pax_record(b"path", b"b"))),
    "extended header too long": header(b"pax", 0o644, 1 << 20, 0, b"x"),
    "extended header at the end": extended(pax_record(b"path", b"a"), bytes(1024)),
    "wrong checksum": HEADER[:120] + b"1" + HEADER[121:],
    "other magic": resummed(HEADER, 257, b"ustar  \0"),
    "no magic": resummed(HEADER, 257, bytes(8)),
    "negative size": resummed(HEADER, 124, b"-0000000001\0"),
    "size of base 256": resummed(HEADER, 124, b"\x80" + bytes(10) + b"\x01"),
    "size with spaces": resummed(HEADER, 124, b" 1         \0"),
    "size of no digits": resummed(HEADER, 124, bytes(12)),
    "size with an eight": resummed(HEADER, 124, b"00000000008\0"),
    "size with an underscore": resummed(HEADER, 124, b"000000_0001\0"),
    "link name of a file": resummed(HEADER, 157, b"/etc/passwd"),
    "owner's prefix": resummed(HEADER, 345, b"/etc"),
    "random bytes": hashlib.sha512(b"x").digest() * 16,
    "too many files": b"".join(member(b"%d" % index, b"") for index in range(6)),
    "file too large": header(b"a", 0o644, 5001, 0),
    "too much": header(b"a", 0o644, 4500, 0) + bytes(4608) + header(b"b", 0o644, 4500, 0),
    "no manifest": member(b"a", b"1") + bytes(1024),
    "only an end": bytes(1024),
    "file after the manifest": archive({}, end=member(b"a", b"1")),
    "two manifests": archive({}, end=b"") + archive({}),
    "something after the end": archive({}) + member(b"a", b"1"),
    "something after one block of the end": archive({}, end=bytes(512)) + HEADER,
    "nothing after the manifest": archive({}, end=b""),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_the_collector_never_sends_is_refused(data: bytes) -> None:
    with pytest.raises(ArchiveError) as raised:
        read(data)
    if data not in (HOSTILE["nothing after the manifest"],):
        assert "cut" not in str(raised.value)


MANIFESTS = {
    "other bytes": manifest_text({b"a": b"2"}),
    "other name": manifest_text({b"b": b"1"}),
    "one file less": manifest_text({}),
    "one file more": manifest_text({b"a": b"1", b"b": b""}),
    "files twice": file_line(b"a", b"1") + manifest_text({b"a": b"1"}),
    "other mode": manifest_text({b"a": b"1"}).replace(b"420", b"493"),
    "other sum of bytes": manifest_text({b"a": b"1"}).replace(b'["end", 1, 1,', b'["end", 1, 2,'),
    "other number of files": manifest_text({b"a": b"1"}).replace(b'["end", 1, 1,', b'["end", 2, 1,'),
    "no end": file_line(b"a", b"1"),
    "two ends": manifest_text({b"a": b"1"}) + b'["end", 1, 1, 0]\n',
    "end without numbers": file_line(b"a", b"1") + b'["end"]\n',
    "end with words": file_line(b"a", b"1") + b'["end", "1", "1", "0"]\n',
    "end with less than nothing": file_line(b"a", b"1") + b'["end", 1, 1, -1]\n',
    "nothing": b"",
    "no json": manifest_text({b"a": b"1"}) + b"hello\n",
    "not a list": manifest_text({b"a": b"1"}) + b"5\n",
    "empty list": manifest_text({b"a": b"1"}) + b"[]\n",
    "unknown line": manifest_text({b"a": b"1"}) + b'["device", "a"]\n',
    "left out without a reason": manifest_text({b"a": b"1"}) + b'["left", "a"]\n',
    "no line's end": manifest_text({b"a": b"1"})[:-1],
    "something after the last line": manifest_text({b"a": b"1"}) + b"x",
    "a line without end": b'["' + b"x" * 200_000,
    "too many lines": b'["left", "a", "b"]\n' * 3000 + manifest_text({b"a": b"1"}),
    "deep json": b"[" * 60_000 + b"\n" + manifest_text({b"a": b"1"}),
}


@pytest.mark.parametrize("text", MANIFESTS.values(), ids=MANIFESTS.keys())
def test_a_manifest_that_does_not_fit_is_refused(text: bytes) -> None:
    with pytest.raises(ArchiveError):
        read(archive({b"a": b"1"}, text))


def test_limits_hold_to_the_byte() -> None:
    exact = {b"%d" % index: bytes(1600) for index in range(5)}
    assert files_of(read(archive(exact))) == exact
    assert files_of(read(archive({b"a": bytes(5000)}))) == {b"a": bytes(5000)}


def test_large_sizes_and_modes_of_a_header() -> None:
    parsed = parse_header(header(b"x" * 100, 0o4755, 0o77777777777, 0o77777777777))
    assert (parsed.kind, parsed.name, parsed.mode, parsed.size) == (b"0", b"x" * 100, 0o4755, 0o77777777777)


def test_gnu_tar_reads_the_archive() -> None:
    with tarfile.open(fileobj=io.BytesIO(archive(FILES))) as tar:
        members = [each for each in tar.getmembers() if each.type == tarfile.REGTYPE]
        found = {}
        for each in members:
            content = tar.extractfile(each)
            assert content is not None
            found[each.name.encode("utf-8", "surrogateescape")] = content.read()
    assert found == FILES
