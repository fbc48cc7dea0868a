"""The scheduler stores the bytes that commands write: all of them, in order and once."""

from __future__ import annotations

import random
import re
import shlex
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e import kube
from tests.e2e.lab import BASH, BUSYBOX, DEBIAN

if TYPE_CHECKING:
    from tests.e2e.lab import Lab
    from tests.e2e.submission import Report, Submission

LONG = 5 << 20
LINES = 100_000
SEEDED = "import random, sys; sys.stdout.buffer.write(random.Random(7).randbytes({}){})"
ALL_BYTES = bytes(range(256)) * 40
TAIL = "".join(f"line {number}\n" for number in range(200))
PROGRESS = "".join(f"\r{percent}% {'#' * percent}" for percent in range(101)) + "\ndone\n"


def python(program: str) -> str:
    return f"python3 -c {shlex.quote(program)}"


def count(first: int, last: int) -> str:
    return "".join(f"{number}\n" for number in range(first, last + 1))


# By the name of a case: the image, the commands, and the whole log that the scheduler must store.
CASES: dict[str, tuple[str, list[str], bytes]] = {
    "nothing": (BUSYBOX, ["true"], b""),
    "no-final-newline": (BUSYBOX, ["printf 'one\\ntwo'"], b"one\ntwo"),
    "no-newline-between-commands": (BUSYBOX, ["printf a", "printf b", "printf c"], b"abc"),
    "only-newlines": (BUSYBOX, ["printf '\\n\\n\\n'", "echo"], b"\n\n\n\n"),
    "ff": (BUSYBOX, ["printf '\\377\\376 x\\n'"], b"\xff\xfe x\n"),
    "nul": (BUSYBOX, ["printf 'a\\000b\\n\\000'"], b"a\0b\n\0"),
    "all-bytes": (DEBIAN, [python("import sys; sys.stdout.buffer.write(bytes(range(256)) * 40)")], ALL_BYTES),
    "progress": (DEBIAN, [python(f"print({PROGRESS!r}, end='')")], PROGRESS.encode()),
    "long-line": (
        DEBIAN,
        [python(SEEDED.format(LONG // 2, ".hex().encode()"))],
        random.Random(7).randbytes(LONG // 2).hex().encode(),
    ),
    "long-line-in-others": (
        DEBIAN,
        ["echo before", python(SEEDED.format(LONG // 2, ".hex().encode() + b'\\n'")), "echo after"],
        b"before\n" + random.Random(7).randbytes(LONG // 2).hex().encode() + b"\nafter\n",
    ),
    "random-bytes": (DEBIAN, [python(SEEDED.format(2 << 20, ""))], random.Random(7).randbytes(2 << 20)),
    "windows": (
        BUSYBOX,
        ["printf 'a\\r\\nb\\r\\r\\n\\r'", "printf '\\nc\\r\\n'"],
        b"a\r\nb\r\r\n\r\nc\r\n",
    ),
    "several-names-of-stdout": (
        DEBIAN,
        ["echo one > /dev/stdout; echo two > /proc/1/fd/1; echo three > /proc/self/fd/2"],
        b"one\ntwo\nthree\n",
    ),
    "many-lines": (DEBIAN, [f"seq 1 {LINES}"], count(1, LINES).encode()),
    "silence": (BUSYBOX, ["echo before; sleep 8; echo after"], b"before\nafter\n"),
    "interleaved": (
        BASH,
        ["for i in {1..1000}; do echo out $i; echo err $i >&2; done"],
        "".join(f"out {i}\nerr {i}\n" for i in range(1, 1001)).encode(),
    ),
    "paced": (BUSYBOX, ["for i in $(seq 1 50); do echo $i; sleep 0.05; done"], count(1, 50).encode()),
    "almost-markers": (
        BUSYBOX,
        ["printf '\\036sealci:'; printf '\\036sealci:00000000:s:1\\n'; printf '\\036'"],
        b"\x1esealci:\x1esealci:00000000:s:1\n\x1e",
    ),
}
# Each of these actions writes its last lines right before it ends. The repetitions make it likely that a race shows.
LAST = {f"last-moment-{number}": (DEBIAN, [python(f"print({TAIL!r}, end='')")], TAIL.encode()) for number in range(6)}
KILLED = "import os, signal; os.write(1, {!r}); os.kill(os.getppid(), signal.SIGKILL)"
CASES |= LAST


@pytest.fixture(scope="module")
def lab_settings() -> dict[str, Any]:
    """Return settings with which the agent probes the silent log of the case `silence` twice."""
    return {"logs": {"probe_after": "2s"}}


@pytest.fixture(scope="module")
def reports(lab: Lab) -> dict[str, Report]:
    """Run all cases at once."""
    actions: dict[str, dict[str, Any]] = {
        name: {"image": image, "commands": commands, "artifacts": "none"}
        for name, (image, commands, _) in CASES.items()
    }
    return lab.run(actions)


@pytest.fixture(scope="module")
def failed(lab: Lab) -> dict[str, Report]:
    """Run actions that write to the log and then fail."""
    return lab.run(
        {
            "exit": {"image": DEBIAN, "commands": [f"printf %s {shlex.quote(TAIL)}; exit 3"]},
            "killed": {"image": DEBIAN, "commands": [python(KILLED.format(TAIL.encode()))]},
            "timeout": {"image": DEBIAN, "commands": [f"printf %s {shlex.quote(TAIL)}; sleep 1000"], "timeout": "2s"},
            "last-words": {
                "image": BUSYBOX,
                "commands": ["trap 'echo bye; exit 1' TERM; echo hello; while :; do :; done"],
                "timeout": "2s",
            },
        }
    )


@pytest.mark.parametrize("name", CASES)
def test_log(reports: dict[str, Report], name: str) -> None:
    report, expected = reports[name], CASES[name][2]
    assert report.outcome == ("succeeded", None, 0), report.finished
    assert len(report.log) == len(expected)
    assert report.log == expected


@pytest.mark.parametrize("name", CASES)
def test_the_printed_text_is_the_stored_log(reports: dict[str, Report], name: str) -> None:
    printed = "".join(event["text"] for event in reports[name].events if event["event"] == "log")
    assert printed == reports[name].text


@pytest.mark.parametrize(
    ("name", "outcome", "log"),
    [
        ("exit", ("failed", "COMMAND_FAILED", 3), TAIL),
        ("killed", ("failed", "COMMAND_FAILED", 137), TAIL),
        # The shell of the action writes "Terminated" when a signal ends its child process.
        ("timeout", ("failed", "DEADLINE_EXCEEDED", 143), f"{TAIL}Terminated\n"),
        ("last-words", ("failed", "DEADLINE_EXCEEDED", 1), "hello\nbye\n"),
    ],
)
def test_the_log_of_a_failure_is_complete(
    failed: dict[str, Report], name: str, outcome: tuple[str, str, int], log: str
) -> None:
    assert failed[name].outcome == outcome, failed[name]
    assert failed[name].text == log


def test_lines_arrive_while_the_action_runs(lab: Lab) -> None:
    command = "echo first; until [ -e go ]; do sleep 0.1; done; echo last"
    submission = lab.start({"action": {"image": BUSYBOX, "commands": [command], "timeout": "60s"}})
    submission.until_running("action", "first")
    (action_id,) = lab.action_ids(submission.reports["action"])
    pod = lab.observer.pods(action_id)[-1]["metadata"]["name"]
    kube.kubectl("exec", "-n", lab.namespace, pod, "-c", "action", "--", "touch", "go")
    assert submission.wait()["action"].text == "first\nlast\n"


def waiting_for_a_file(lab: Lab, before: str, after: str) -> tuple[Submission, str]:
    """Start an action that writes `before`, waits for the file `go`, and then writes `after`.

    Return the submission and the name of the action's pod.
    """
    command = f"printf {shlex.quote(before)}; until [ -e go ]; do sleep 0.1; done; printf {shlex.quote(after)}"
    submission = lab.start({"action": {"image": BUSYBOX, "commands": [command], "timeout": "60s"}})
    submission.until_running("action", before)
    (action_id,) = lab.action_ids(submission.reports["action"])
    return submission, lab.observer.pods(action_id)[-1]["metadata"]["name"]


def test_a_prompt_arrives_while_the_action_waits(lab: Lab) -> None:
    submission, pod = waiting_for_a_file(lab, "go on? [y/N] ", "y")
    kube.kubectl("exec", "-n", lab.namespace, pod, "-c", "action", "--", "touch", "go")
    assert submission.wait()["action"].text == "go on? [y/N] y"


def test_kubectl_logs_shows_the_log(lab: Lab) -> None:
    """Container `helper` writes the log to its stdout in pieces with headers.

    The headers are terminal escape sequences (OSC), which terminals do not show.
    """
    submission, pod = waiting_for_a_file(lab, "first\n", "last\n")
    shown = kube.kubectl("logs", "-n", lab.namespace, pod)
    kube.kubectl("exec", "-n", lab.namespace, pod, "-c", "action", "--", "touch", "go")
    assert submission.wait()["action"].text == "first\nlast\n"
    assert re.sub("\x1b][^\x07]*\x07|\x1esealci[^\n]*\n", "", shown) == "first\n"
