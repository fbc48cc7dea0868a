"""The copied files of an action have the same content, mode and name as in the pod.

The tests use several images and each way in which an action can end.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.lab import BUSYBOX, DEBIAN

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.lab import Lab
    from tests.e2e.submission import Report

NOTAR, NONROOT = (f"localhost/sealci-test/{name}:1" for name in ("notar", "nonroot"))
BIG = 50 << 20

# A program that an action runs as its last command. As the last line of the log, it prints the sha256 and mode of every
# regular file in the workspace. The test compares the stored files with this line.
TRUTH = r"""
import hashlib, json, os, stat
found = {}
for folder, _, names in os.walk("."):
    for name in names:
        path = os.path.join(folder, name)
        facts = os.lstat(path)
        if stat.S_ISREG(facts.st_mode):
            with open(path, "rb") as file:
                found[os.path.relpath(path)] = [hashlib.sha256(file.read()).hexdigest(), facts.st_mode & 0o777]
print(json.dumps(found))
"""
NAMES = r"""
import os
deep = "/".join(["deep"] * 60)
os.makedirs(deep)
os.makedirs("a/..b")
contents = {
    b"empty": b"", b"with two  spaces ": b"1", b"line\nbreak": b"2", "ünïcødé-✓-日本".encode(): b"3",
    b"not-utf8-\xff\xfe": b"4", b"-dash": b"5", b"back\\slash": b"6", b"*": b"7", b"tab\tquote'\"": b"8",
    b"a/..b/c": b"9", b"n" * 255: b"10", os.fsencode(deep) + b"/bottom": b"11", b"...": b"12",
}
for name, content in contents.items():
    with open(name, "wb") as file:
        file.write(content)
for mode in (0o755, 0o711, 0o600, 0o640, 0o444, 0o4755):
    with open(f"mode-{mode:o}", "w") as file:
        file.write("mode")
    os.chmod(f"mode-{mode:o}", mode)
os.umask(0o077)
os.mkdir("private")
with open("private/file", "w") as file:
    file.write("mine")
"""
MANY = r"""
import os
for folder in range(50):
    os.mkdir(f"{folder}")
    for number in range(100):
        with open(f"{folder}/{number}", "w") as file:
            file.write(f"{folder} {number}\n" * (number + 1))
"""
OLD_TIMES = """
cd /tmp && mkdir from && echo packed > from/packed && touch -d 2001-01-01 from/packed from && tar cf old.tar from
cd "$SEALCI_WORKSPACE" && tar xf /tmp/old.tar
echo copied > /tmp/copied && touch -d 2001-01-01 /tmp/copied && cp -p /tmp/copied copied
ls -l --time-style=+%Y copied from/packed | grep -c ' 2001 '
"""
TREE = "mkdir -p out/sub out/tmp logs other && for f in out/a.bin out/sub/b.bin out/c.tmp out/tmp/d logs/1 other/no"
TREE += " report.xml other/deep.xml; do echo $f > $f; done"


def python(program: str) -> str:
    return f"python3 -c {shlex.quote(program)}"


TRUE = python(TRUTH)
ACTIONS: dict[str, dict[str, Any]] = {
    "no-files": {"image": DEBIAN, "commands": ["true"]},
    "big": {"image": DEBIAN, "commands": [f"head -c {BIG} /dev/urandom > big.bin", TRUE]},
    "many": {"image": DEBIAN, "commands": [python(MANY), TRUE]},
    "names": {"image": DEBIAN, "commands": [python(NAMES), TRUE]},
    "old-times": {"image": DEBIAN, "commands": [OLD_TIMES, TRUE]},
    "declared": {
        "image": BUSYBOX,
        "commands": [TREE],
        "artifacts": {"paths": ["out/**", "*.xml", "logs/"], "exclude": ["**/*.tmp", "out/tmp"]},
    },
    "excluded": {"image": BUSYBOX, "commands": [TREE], "artifacts": {"exclude": ["out", "*.xml"]}},
    "none": {"image": BUSYBOX, "commands": [TREE], "artifacts": "none"},
    "always-failed": {"image": BUSYBOX, "commands": [TREE, "exit 3"], "artifacts": {"when": "always"}},
    "always-succeeded": {"image": BUSYBOX, "commands": [TREE], "artifacts": {"when": "always"}},
    "always-timeout": {
        "image": BUSYBOX,
        "commands": [TREE, "sleep 1000"],
        "timeout": "3s",
        "artifacts": {"when": "always"},
    },
    "failure-failed": {"image": BUSYBOX, "commands": [TREE, "false"], "artifacts": {"when": "failure"}},
    "failure-succeeded": {"image": BUSYBOX, "commands": [TREE], "artifacts": {"when": "failure"}},
    "success-failed": {"image": BUSYBOX, "commands": [TREE, "false"]},
    "missing": {"image": BUSYBOX, "commands": [TREE], "artifacts": {"paths": ["report.xml", "no/such/*.file"]}},
    "missing-failed": {
        "image": BUSYBOX,
        "commands": ["exit 5"],
        "artifacts": {"paths": ["no-such"], "when": "always"},
    },
    "caches": {
        "image": BUSYBOX,
        "commands": ["mkdir -p node_modules/x .venv/lib a/.git && touch node_modules/x/y .venv/lib/z a/.git/HEAD made"],
    },
    "caches-declared": {
        "image": BUSYBOX,
        "commands": ["mkdir -p node_modules/x && echo y > node_modules/x/y"],
        "artifacts": {"paths": ["node_modules/x"]},
    },
    "no-tar": {"image": NOTAR, "commands": ["! command -v tar", "echo kept > file; : > empty"]},
    "non-root": {"image": NONROOT, "commands": ["umask 077; echo mine > file; mkdir d; echo too > d/e; id -u"]},
    "killed": {
        "image": BUSYBOX,
        "commands": ["echo before > file", "kill -9 $$"],
        "artifacts": {"when": "always", "paths": ["file"]},
    },
    "background-writer": {
        "image": BUSYBOX,
        "commands": ["(while :; do echo x >> growing; done) & sleep 0.5; echo y > f"],
    },
}
DECLARED = {"out/a.bin", "out/sub/b.bin", "report.xml", "logs/1"}
WHOLE_TREE = DECLARED | {"out/c.tmp", "out/tmp/d", "other/no", "other/deep.xml"}
SUCCEEDED = ("succeeded", None, 0)


@pytest.fixture(scope="module")
def reports(lab: Lab) -> dict[str, Report]:
    """Run all actions of this module at once."""
    return lab.run(ACTIONS, timeout=280)


def printed_and_stored(report: Report) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """Return sha256 and mode of each file, first as the action has printed them, then as the scheduler stored them."""
    printed = json.loads(report.text.splitlines()[-1])
    stored = {path: [digest(file), file.stat().st_mode & 0o777] for path, file in report.files.items()}
    return printed, stored


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def artifacts(report: Report) -> list[dict[str, Any]]:
    return [event for event in report.events if event["event"] == "artifact"]


def test_success_without_files(reports: dict[str, Report]) -> None:
    report = reports["no-files"]
    assert report.outcome == SUCCEEDED, report
    assert report.files == {}
    assert report.log == b""


@pytest.mark.parametrize(("name", "count"), [("big", 1), ("many", 5000), ("names", 20), ("old-times", 2)])
def test_files_arrive_unchanged(reports: dict[str, Report], name: str, count: int) -> None:
    report = reports[name]
    assert report.outcome == SUCCEEDED, report
    printed, stored = printed_and_stored(report)
    assert len(printed) == count
    assert stored == printed


def test_the_big_file_is_reported_with_its_sha256(reports: dict[str, Report]) -> None:
    (event,) = artifacts(reports["big"])
    assert (event["path"], event["size"]) == ("big.bin", BIG)
    assert event["sha256"] == digest(reports["big"].files["big.bin"])


def test_files_with_unusual_names_are_stored(reports: dict[str, Report]) -> None:
    names = {os.fsencode(path) for path in reports["names"].files}
    deep = b"deep/" * 60 + b"bottom"
    assert {b"line\nbreak", b"not-utf8-\xff\xfe", b"with two  spaces ", b"empty", deep, b"n" * 255, b"a/..b/c"} <= names
    assert "ünïcødé-✓-日本" in {event["path"] for event in artifacts(reports["names"])}


def test_files_with_old_timestamps_are_sent(reports: dict[str, Report]) -> None:
    assert reports["old-times"].text.splitlines()[0] == "2"


@pytest.mark.parametrize(
    ("name", "outcome", "files"),
    [
        ("declared", SUCCEEDED, DECLARED),
        ("excluded", SUCCEEDED, {"logs/1", "other/no", "other/deep.xml"}),
        ("none", SUCCEEDED, set()),
        ("always-failed", ("failed", "COMMAND_FAILED", 3), WHOLE_TREE),
        ("always-succeeded", SUCCEEDED, WHOLE_TREE),
        ("failure-failed", ("failed", "COMMAND_FAILED", 1), WHOLE_TREE),
        ("failure-succeeded", SUCCEEDED, set()),
        ("success-failed", ("failed", "COMMAND_FAILED", 1), set()),
        ("caches", SUCCEEDED, {"made"}),
        ("caches-declared", SUCCEEDED, {"node_modules/x/y"}),
        ("no-tar", SUCCEEDED, {"file", "empty"}),
        ("non-root", SUCCEEDED, {"file", "d/e"}),
        ("killed", ("failed", "COMMAND_FAILED", 137), {"file"}),
        ("background-writer", SUCCEEDED, {"growing", "f"}),
    ],
)
def test_which_files_are_sent(
    reports: dict[str, Report], name: str, outcome: tuple[str, str | None, int | None], files: set[str]
) -> None:
    report = reports[name]
    assert report.outcome == outcome, report
    assert set(report.files) == files, report
    assert {event["path"] for event in artifacts(report)} == files


def test_files_after_a_timeout(reports: dict[str, Report]) -> None:
    report = reports["always-timeout"]
    assert report.outcome[:2] == ("failed", "DEADLINE_EXCEEDED"), report
    assert set(report.files) == WHOLE_TREE


def test_content_of_declared_files(reports: dict[str, Report]) -> None:
    assert {path: file.read_text() for path, file in reports["declared"].files.items()} == {
        path: f"{path}\n" for path in DECLARED
    }


def test_a_declared_path_that_matches_nothing_fails_a_successful_action(reports: dict[str, Report]) -> None:
    report = reports["missing"]
    assert report.outcome == ("failed", "ARTIFACTS_FAILED", 0), report
    assert report.finished["stage"] == "artifacts"
    assert "'no/such/*.file'" in report.finished["message"]
    assert "'no/such/*.file'" in report.text
    assert "report.xml" not in report.finished["message"]


def test_a_declared_path_that_matches_nothing_keeps_a_failure(reports: dict[str, Report]) -> None:
    report = reports["missing-failed"]
    assert report.outcome == ("failed", "COMMAND_FAILED", 5), report
    assert "'no-such'" in report.text


def test_files_left_out_by_default_are_reported(reports: dict[str, Report]) -> None:
    text = reports["caches"].text
    assert "[3 files were left out]" in text
    for folder in ("node_modules", ".venv", "a/.git"):
        assert f"  {folder}: excluded by default" in text


def test_every_pod_has_a_helper(lab: Lab, reports: dict[str, Report]) -> None:
    for name in ("none", "no-files"):
        (action_id,) = lab.action_ids(reports[name])
        pod = lab.observer.pods(action_id)[-1]
        assert [each["name"] for each in pod["spec"]["containers"]] == ["helper", "action"]
