"""Secrets reach the commands unchanged. In whatever form the commands print them, no trace of them is stored."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus

import pytest

from tests.e2e import kube
from tests.e2e.lab import BASH, BUSYBOX, DEBIAN, until

if TYPE_CHECKING:
    from tests.e2e.lab import Lab
    from tests.e2e.submission import Report

TOKEN = 'tök"en/+?&=$(HOME)$$ \\n%<end>' + "0123456789abcdef" * 2
KEY = "-----BEGIN KEY-----\n" + "".join(
    base64.b64encode(hashlib.sha256(b"%d" % number).digest()).decode() + "\n" for number in range(12)
)
PASSWORD = "correct-horse-battery-staple"
VALUES = {"TOKEN": TOKEN, "KEY": KEY + "-----END KEY-----\n", "PASSWORD": PASSWORD}
LINES = [line for line in VALUES["KEY"].splitlines() if not line.startswith("-")]
SUCCEEDED = ("succeeded", None, 0)

SPLIT = """
import os, time
token = os.environb[b"TOKEN"]
os.write(1, b"<" + token[:10]); time.sleep(1); os.write(1, token[10:] + b">\\n")
for index in range(len(token)):
    os.write(1, token[index : index + 1]); time.sleep(0.01)
print()
"""
ENCODED = """
import base64, json, os, urllib.parse
token = os.environ["TOKEN"]
raw = token.encode()
for before in (b"", b"u", b"us", b"user:"):
    print(base64.b64encode(before + raw + b":after").decode(), base64.urlsafe_b64encode(before + raw).decode())
print(base64.encodebytes(raw * 3).decode())
print(urllib.parse.quote(token), urllib.parse.quote(token, safe=""), urllib.parse.quote_plus(token))
print(json.dumps({"token": token}), json.dumps(token, ensure_ascii=False))
"""
LONG = """
import os, sys
for number in range(2000):
    sys.stdout.write("x" * (number % 97) + os.environ["PASSWORD"] + "y" * (number % 89))
"""


def python(program: str) -> str:
    return f"python3 -c {shlex.quote(program)}"


def action(image: str, *commands: str, **keys: Any) -> dict[str, Any]:
    return {"image": image, "commands": list(commands), "secrets": list(VALUES), **keys}


ACTIONS = {
    "arrives": action(BUSYBOX, *(f'printf %s "${name}" | sha256sum' for name in VALUES)),
    "whole": action(BUSYBOX, 'echo "<$TOKEN>"; printf "%s" "$PASSWORD$PASSWORD"; echo "[$PASSWORD]" >&2'),
    "environment": action(BUSYBOX, "env"),
    "split": action(DEBIAN, python(SPLIT)),
    "encoded": action(DEBIAN, python(ENCODED), 'printf %s "$TOKEN" | base64; printf %s "$TOKEN" | base64 -w0; echo'),
    "multi-line": action(
        DEBIAN, 'echo "$KEY"; echo "$KEY" | sed "s/^/    /"; echo "$KEY" | tac; printf %s "$KEY" | base64'
    ),
    "traced": action(BASH, "set -x\n: $PASSWORD", "true $PASSWORD", "set +x"),
    "errors": action(DEBIAN, '"$PASSWORD" || true; ls "/no/$PASSWORD" || true'),
    "many": action(DEBIAN, python(LONG)),
    "unfinished": action(BUSYBOX, "printf 'a correct-horse-'", "printf '<correct-horse-battery-stapl'"),
    "failing": action(BUSYBOX, 'echo "$PASSWORD"; exit 3', artifacts={"when": "always"}),
    "killed": action(BUSYBOX, 'printf %s "$PASSWORD"; kill -9 $$'),
    "left-out": action(BUSYBOX, 'ln -s nowhere "link-$PASSWORD"'),
    "declared-left-out": action(BUSYBOX, 'mkfifo "pipe-$PASSWORD"; : > file', artifacts={"paths": ["*"]}),
}
FAILURES = {"failing": 3, "killed": 137}


def traces() -> list[bytes]:
    """Return the byte strings that must not be stored: the secret values, their lines, and their usual encodings."""
    found = []
    for value in (TOKEN, PASSWORD, *LINES):
        raw = value.encode()
        found += [raw, base64.b64encode(raw).rstrip(b"="), quote(value).encode(), quote_plus(value).encode()]
        found += [quote(value, safe="").encode(), json.dumps(value)[1:-1].encode()]
        # The base64 of a value depends on the number of bytes before the value, modulo 3. So a value has three
        # encodings.
        found += [base64.b64encode(raw[skipped:])[:-4] for skipped in (1, 2)]
    return found


@pytest.fixture(scope="module")
def reports(lab: Lab) -> dict[str, Report]:
    """Run all actions of this module at once."""
    return lab.run(ACTIONS, secret_values=VALUES)


@pytest.mark.parametrize("name", ACTIONS)
def test_outcome(reports: dict[str, Report], name: str) -> None:
    expected = ("failed", "COMMAND_FAILED", FAILURES[name]) if name in FAILURES else SUCCEEDED
    assert reports[name].outcome == expected, reports[name]


@pytest.mark.parametrize("name", ACTIONS)
def test_no_trace_in_the_stored_and_printed_data(reports: dict[str, Report], name: str) -> None:
    report = reports[name]
    printed = json.dumps(report.events, ensure_ascii=False).encode()
    for trace in traces():
        assert trace not in report.log
        assert trace not in printed


def test_the_values_arrive_unchanged(reports: dict[str, Report]) -> None:
    digests = [line.split()[0] for line in reports["arrives"].text.splitlines()]
    assert digests == [hashlib.sha256(value.encode()).hexdigest() for value in VALUES.values()]


def test_the_rest_of_the_log_is_as_written(reports: dict[str, Report]) -> None:
    assert reports["whole"].text == "<***>\n******[***]\n"
    assert reports["split"].text == "<***>\n***\n"
    assert [line.lstrip("+") for line in reports["traced"].text.splitlines()] == [" : ***", " true ***", " set +x"]
    assert reports["unfinished"].text == "a correct-horse-<correct-horse-battery-stapl"
    assert reports["many"].text == "".join("x" * (n % 97) + "***" + "y" * (n % 89) for n in range(2000))
    assert reports["killed"].text == "***"


def test_a_secret_in_a_reported_file_name_is_masked(reports: dict[str, Report]) -> None:
    assert "link-***: a symbolic link" in reports["left-out"].text
    assert "pipe-***: a named pipe" in reports["declared-left-out"].text


def test_no_trace_on_the_schedulers_disk_after_the_end(lab: Lab, reports: dict[str, Report]) -> None:
    assert reports
    stored = [path for path in lab.folder.rglob("*") if path.is_file()]
    assert "scheduler.sqlite3" in [path.name for path in stored]
    for path in stored:
        data = path.read_bytes()
        for trace in traces():
            assert trace not in data, path


def test_no_trace_in_pods_metrics_and_logs_of_the_agent(lab: Lab, reports: dict[str, Report]) -> None:
    assert reports
    pods = json.dumps(lab.observer.states, ensure_ascii=False).encode()
    (agent,) = lab.agents
    shown = (pods, agent.log.encode(), agent.get("/metrics")[1].encode(), (lab.folder / "scheduler.log").read_bytes())
    for trace in traces():
        assert [text[:200] for text in shown if trace in text] == []
    assert b'"secretKeyRef"' in pods


def test_the_secret_exists_only_as_long_as_its_pod(lab: Lab) -> None:
    wait = "echo $PASSWORD; until [ -e go ]; do sleep 0.1; done"
    submission = lab.start({"action": action(BUSYBOX, wait)}, secret_values=VALUES)
    submission.until_running("action", "***")
    report = submission.reports["action"]
    (action_id,) = lab.action_ids(report)
    name = lab.observer.pods(action_id)[-1]["metadata"]["name"]
    pod = kube.get("pods", "-n", lab.namespace, f"--field-selector=metadata.name={name}")[0]
    helper = pod["spec"]["containers"][0]
    (secret_name,) = {
        each["valueFrom"]["secretKeyRef"]["name"]
        for each in helper["env"]
        if "secretKeyRef" in each.get("valueFrom", {})
    }
    (found,) = kube.get("secrets", "-n", lab.namespace, f"--field-selector=metadata.name={secret_name}")
    assert {key: base64.b64decode(value).decode() for key, value in found["data"].items()} == VALUES
    assert [owner["kind"] for owner in found["metadata"]["ownerReferences"]] == ["Pod"]
    kube.kubectl("exec", "-n", lab.namespace, name, "-c", "action", "--", "touch", "go")
    assert submission.wait()["action"].outcome == SUCCEEDED
    until(
        lambda: not kube.get("secrets", "-n", lab.namespace, f"--field-selector=metadata.name={secret_name}"),
        "the Secret remains",
    )
