"""Files that the agent must not copy: links out of the workspace, special files, too many or too large files.

The log or the outcome of the action gives a reason, and no action hangs.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.lab import BUSYBOX, DEBIAN, Lab, open_lab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.submission import Report

SUCCEEDED = ("succeeded", None, 0)
LIMITS = {"max_files": 10, "max_file_size": "64Ki", "max_total_size": "128Ki"}
LINKS = """
ln -s /etc/passwd passwd
ln -s ../../../etc/passwd up
ln -s /etc folder
ln -s .. parent
ln -s . loop
ln -s nowhere dangling
echo good > good
ln good twin
mkdir real && echo inside > real/file && ln -s real alias && ln -s /proc/self/environ real/environ
mkdir -p 'a/..b' && echo dots > 'a/..b/..c'
"""
SPECIAL = """
mkfifo pipe
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
mknod device c 1 5 || echo 'no devices here'
echo good > good
"""


def kib(*sizes: int) -> str:
    return "; ".join(f"head -c {size * 1024} /dev/zero > f{number}-{size}" for number, size in enumerate(sizes))


def declared(*paths: str) -> dict[str, Any]:
    return {"paths": list(paths)}


MANY = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13; do echo $i > f$i; done"
FREE: dict[str, dict[str, Any]] = {
    "links": {"image": DEBIAN, "commands": [LINKS]},
    "special": {"image": DEBIAN, "commands": [SPECIAL]},
    "declared-link": {"image": BUSYBOX, "commands": [LINKS], "artifacts": declared("passwd")},
    "declared-up": {"image": BUSYBOX, "commands": [LINKS], "artifacts": declared("folder/passwd", "parent/*")},
    "declared-pipe": {"image": BUSYBOX, "commands": ["mkfifo pipe"], "artifacts": declared("pipe")},
    "declared-folder": {"image": BUSYBOX, "commands": ["mkdir empty"], "artifacts": declared("empty")},
    "workspace-gone": {
        "image": BUSYBOX,
        "commands": ['cd / && rm -rf "$SEALCI_WORKSPACE"/* ; echo x > "$SEALCI_WORKSPACE/y"'],
    },
}
LIMITED: dict[str, dict[str, Any]] = {
    "many": {"image": BUSYBOX, "commands": [MANY]},
    "large": {"image": BUSYBOX, "commands": [kib(64, 65, 1)]},
    "total": {"image": BUSYBOX, "commands": [kib(60, 60, 60, 1)]},
    "declared-many": {"image": BUSYBOX, "commands": [MANY], "artifacts": declared("f*")},
    "declared-large": {"image": BUSYBOX, "commands": [kib(65)], "artifacts": declared("f*")},
    "declared-total": {"image": BUSYBOX, "commands": [kib(60, 60, 60)], "artifacts": declared("f*")},
    "declared-few": {"image": BUSYBOX, "commands": [f"{MANY}; {kib(65)}"], "artifacts": declared("f1", "f2")},
    "declared-large-failed": {
        "image": BUSYBOX,
        "commands": [kib(65), "exit 4"],
        "artifacts": declared("f*") | {"when": "always"},
    },
    "endless": {
        "image": BUSYBOX,
        "commands": ["truncate -s 900G a-sparse; i=0; while [ $i -lt 5000 ]; do : > e$i; i=$((i + 1)); done"],
    },
}


@pytest.fixture(scope="module")
def free(lab: Lab) -> dict[str, Report]:
    """Run the actions in FREE on an agent with the default limits of artifacts."""
    return lab.run(FREE)


@pytest.fixture(scope="module")
def limited(namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Report]]:
    """Run the actions in LIMITED on an agent with small limits of artifacts."""
    with open_lab(namespace, tmp_path_factory.mktemp("limited"), artifacts=LIMITS) as lab:
        lab.agent()
        yield lab.run(LIMITED)


def test_links_are_not_followed(free: dict[str, Report]) -> None:
    report = free["links"]
    assert report.outcome == SUCCEEDED, report
    assert {path: file.read_text() for path, file in report.files.items()} == {
        "good": "good\n",
        "twin": "good\n",
        "real/file": "inside\n",
        "a/..b/..c": "dots\n",
    }
    assert "[8 files were left out]" in report.text
    for link in ("passwd", "up", "folder", "parent", "loop", "dangling", "alias", "real/environ"):
        assert f"  {link}: a symbolic link\n" in report.text


def test_special_files_are_not_opened(free: dict[str, Report]) -> None:
    report = free["special"]
    assert report.outcome == SUCCEEDED, report
    assert set(report.files) == {"good"}
    assert "  pipe: a named pipe\n" in report.text
    assert "  socket: a socket\n" in report.text
    assert ("  device: a device\n" in report.text) != ("no devices here\n" in report.text)


@pytest.mark.parametrize(
    ("name", "glob"),
    [
        ("declared-link", "passwd"),
        ("declared-up", "folder/passwd"),
        ("declared-up", "parent/*"),
        ("declared-pipe", "pipe"),
        ("declared-folder", "empty"),
    ],
)
def test_a_declared_path_with_only_special_files_fails_the_action(
    free: dict[str, Report], name: str, glob: str
) -> None:
    report = free[name]
    assert report.outcome == ("failed", "ARTIFACTS_FAILED", 0), report
    assert repr(glob) in report.finished["message"]
    assert report.files == {}


def test_files_are_sent_after_the_workspace_was_emptied(free: dict[str, Report]) -> None:
    report = free["workspace-gone"]
    assert report.outcome == SUCCEEDED, report
    assert set(report.files) == {"y"}


@pytest.mark.parametrize(
    ("name", "sent", "message"),
    [
        ("many", 10, "over the limit of 10 files"),
        ("large", 2, "f1-65: 66560 bytes, over the limit of 65536 for a file"),
        ("total", 3, "f2-60: over the limit of 131072 bytes in all"),
        ("endless", 10, "a-sparse: 966367641600 bytes, over the limit of 65536 for a file"),
    ],
)
def test_limits_cut_the_default_files_with_a_message_and_keep_the_outcome(
    limited: dict[str, Report], name: str, sent: int, message: str
) -> None:
    report = limited[name]
    assert report.outcome == SUCCEEDED, report
    assert len(report.files) == sent
    assert "left out" in report.text.splitlines()[0]
    assert message in report.text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("declared-many", "over the limit of 10 files"),
        ("declared-large", "66560 bytes, over the limit of 65536 for a file"),
        ("declared-total", "over the limit of 131072 bytes in all"),
    ],
)
def test_declared_files_over_a_limit_fail_the_action(limited: dict[str, Report], name: str, message: str) -> None:
    report = limited[name]
    assert report.outcome == ("failed", "ARTIFACTS_FAILED", 0), report
    assert message in report.finished["message"]
    assert message in report.text


def test_limits_count_only_declared_files(limited: dict[str, Report]) -> None:
    report = limited["declared-few"]
    assert report.outcome == SUCCEEDED, report
    assert set(report.files) == {"f1", "f2"}


def test_a_limit_does_not_change_a_failure(limited: dict[str, Report]) -> None:
    report = limited["declared-large-failed"]
    assert report.outcome == ("failed", "COMMAND_FAILED", 4), report
    assert "over the limit" in report.text


def test_no_file_was_written_outside_of_the_folder(free: dict[str, Report], limited: dict[str, Report]) -> None:
    for report in (*free.values(), *limited.values()):
        for path in (report.folder / report.name).rglob("*"):
            assert not path.is_symlink()
            assert os.path.realpath(path) == os.fspath(path)
