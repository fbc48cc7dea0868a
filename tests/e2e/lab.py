"""A scheduler, an agent and a namespace, all real processes: what every e2e test submits its actions to.

One lab lives as long as a test module (or a test that breaks things). After each submission the invariants are checked
by the observer; `close` checks that agent and scheduler leave as they should and that nothing remains.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tests.e2e import kube
from tests.e2e.observer import Observer, remains

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

COMMAND = [sys.executable, "-m", "agent"]
DEBIAN, BUSYBOX, BASH = (f"localhost/sealci-test/{name}:1" for name in ("debian", "busybox", "bash"))
SHELLS = {"dash": DEBIAN, "bash": BASH, "busybox": BUSYBOX}


@dataclass
class Report:
    """What was told of one action, and what stands on the scheduler's disk."""

    name: str
    folder: Path
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def finished(self) -> dict[str, Any]:
        """The one outcome."""
        found = [event for event in self.events if event["event"] == "finished"]
        assert len(found) == 1, f"{self.name}: {len(found)} outcomes in {self.events}"
        return found[0]

    @property
    def outcome(self) -> tuple[str, str | None, int | None]:
        """Outcome, reason and exit code."""
        return self.finished["outcome"], self.finished["reason"], self.finished["exit_code"]

    @property
    def log(self) -> bytes:
        """The log as the scheduler stored it."""
        return (self.folder / f"{self.name}.log").read_bytes()

    @property
    def text(self) -> str:
        """The log as text."""
        return self.log.decode("utf-8", "replace")

    @property
    def files(self) -> dict[str, Path]:
        """The files on the scheduler's disk, by their path in the workspace."""
        top = self.folder / self.name
        return {
            os.fsdecode(os.path.relpath(os.fsencode(path), os.fsencode(top))): path
            for path in top.rglob("*")
            if path.is_file()
        }

    @property
    def commands(self) -> list[tuple[int, int]]:
        """Index and exit code of each command that finished."""
        return [(event["index"], event["exit_code"]) for event in self.events if event["event"] == "command"]

    def __str__(self) -> str:
        return f"{self.finished}\n{self.text[-4000:]}"


@dataclass
class Submission:
    """A `sealci-agent submit` that runs."""

    lab: Lab
    process: subprocess.Popen[str]
    names: tuple[str, ...]
    reports: dict[str, Report] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)
    reader: threading.Thread | None = None
    errors: str = ""
    cancelled: bool = False

    def read(self) -> None:
        """Take the events as they come."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = json.loads(line)
            with self.changed:
                if event["event"] == "submitted":
                    for report in self.reports.values():
                        report.folder = Path(event["folder"])
                else:
                    self.reports[event["action"]].events.append(event)
                self.changed.notify_all()

    def until(self, action: str, condition: Any, timeout: float = 60) -> Any:
        """Wait until `condition(report)` is true."""
        deadline = time.monotonic() + timeout
        with self.changed:
            while not (found := condition(self.reports[action])):
                left = deadline - time.monotonic()
                assert left > 0, f"did not come: {self.reports[action].events[-5:]}"
                self.changed.wait(left)
        return found

    def until_running(self, action: str, text: str = "") -> None:
        """Wait until an action runs (and has written a text)."""
        self.until(action, lambda report: any(e["event"] == "log" and text in e["text"] for e in report.events))

    def wait(self, timeout: float = 180) -> dict[str, Report]:
        """Wait for the end, then check the invariants."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        assert self.reader is not None
        self.reader.join(10)
        assert self.process.stderr is not None
        self.errors = self.process.stderr.read()
        self.process.stdout.close()  # type: ignore[union-attr]
        self.process.stderr.close()
        assert not self.errors or self.cancelled, self.errors
        for report in self.reports.values():
            self.lab.check(report)
        return self.reports

    def abandon(self) -> None:
        """Stop to look on; what was submitted is not waited for."""
        self.process.kill()
        assert self.reader is not None
        self.reader.join(10)
        self.process.communicate(timeout=10)

    def cancel(self) -> None:
        """Press Ctrl-C."""
        self.cancelled = True
        self.process.send_signal(signal.SIGINT)


class Lab:
    """Agent and scheduler over one namespace."""

    def __init__(self, namespace: str, folder: Path, *, listen: str = "127.0.0.1:0", **settings: Any) -> None:
        self.namespace = namespace
        self.folder = folder
        self.pool = f"e2e-{secrets.token_hex(3)}"
        self.observer = Observer(namespace)
        self.agents: list[Agent] = []
        self.settings = settings
        self.secret_values: list[str] = []
        self.scheduler, self.address = start_scheduler(folder, listen)

    def agent(self, **settings: Any) -> Agent:
        """Start an agent and wait until it is ready."""
        agent = Agent(self, len(self.agents), merged(self.settings, settings))
        self.agents.append(agent)
        agent.until_ready()
        return agent

    def start(
        self, actions: Mapping[str, Mapping[str, Any]], *, secret_values: Mapping[str, str] | None = None
    ) -> Submission:
        """Submit actions given as in a pipeline file; `image` and `commands` are at the top for short."""
        name = f"test-{secrets.token_hex(3)}"
        file = self.folder / f"{name}.yaml"
        file.write_text(
            yaml.safe_dump({"name": name, "actions": {key: spelled(each) for key, each in actions.items()}})
        )
        values = dict(secret_values or {})
        self.secret_values += values.values()
        process = subprocess.Popen(
            [*COMMAND, "submit", str(file), "--scheduler", self.address, "--plaintext", "--output", "json"],
            env=kube.environment() | values,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        submission = Submission(self, process, tuple(actions))
        submission.reports = {key: Report(key, Path()) for key in actions}
        submission.reader = threading.Thread(target=submission.read, name=name, daemon=True)
        submission.reader.start()
        return submission

    def run(
        self,
        actions: Mapping[str, Mapping[str, Any]],
        *,
        secret_values: Mapping[str, str] | None = None,
        timeout: float = 180,
    ) -> dict[str, Report]:
        """Submit actions and wait for their end."""
        return self.start(actions, secret_values=secret_values).wait(timeout)

    def one(self, image: str, *commands: str, timeout: float = 180, **keys: Any) -> Report:
        """Run one action."""
        return self.run({"action": {"image": image, "commands": list(commands), **keys}}, timeout=timeout)["action"]

    def check(self, report: Report) -> None:
        """Hold what was told against what was seen."""
        outcome, _, code = report.outcome
        if outcome == "succeeded":
            message = f"{report.name} succeeded, but no container was seen to end"
            until(lambda: any(self.observer.exit_codes(each) for each in self.action_ids(report)), message, 10)
        for pod_action in self.action_ids(report):
            self.observer.check_outcome(pod_action, outcome, code)
        stored = report.log
        for value in self.secret_values:
            assert value.encode() not in stored, "a secret stands in the stored log"
        told = {event["path"]: event["size"] for event in report.events if event["event"] == "artifact"}
        # What is no UTF-8 in a name is told with a replacement.
        shown = {os.fsencode(path).decode("utf-8", "replace"): file for path, file in report.files.items()}
        assert {path: file.stat().st_size for path, file in shown.items()} == told

    def action_ids(self, report: Report) -> list[str]:
        """Return the ids under which the scheduler gave the action to agents."""
        suffix = f"{report.folder.name}/{report.name}"
        return sorted(
            {
                session["action_id"]
                for pod in self.observer.states
                if (session := json.loads(pod["metadata"].get("annotations", {}).get("sealci.dev/session", "{}")))
                and session["action_id"].endswith(suffix)
            }
        )

    def close(self) -> None:
        """End everything; nothing may remain, and no secret may have shown."""
        try:
            for agent in self.agents:
                agent.stop()
            until(lambda: not remains(self.namespace), f"remains: {remains(self.namespace)}", 30)
            self.observer.check_pods(*self.secret_values)
            for agent in self.agents:
                agent.check(self.secret_values)
        finally:
            for agent in self.agents:
                agent.kill()
            self.scheduler.terminate()
            self.scheduler.wait(10)
            self.observer.close()


class Agent:
    """One `sealci-agent serve`."""

    def __init__(self, lab: Lab, number: int, settings: Mapping[str, Any]) -> None:
        self.log_file = lab.folder / f"agent-{number}.log"
        base = {
            "scheduler": {"address": lab.address, "tls": {"enabled": False}},
            "agent": {"pool": lab.pool, "slots": 20},
            "cluster": {"namespace": lab.namespace},
            "environment": {"grace": "2s"},
            "policy": {"default_cpu": "5m", "default_memory": "16Mi"},
            "http": {"host": "127.0.0.1", "port": 0, "status_page": True},
            "logging": {"format": "json"},
        }
        config = lab.folder / f"agent-{number}.yaml"
        config.write_text(yaml.safe_dump(merged(base, settings)))
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "serve", "--config", str(config)], env=kube.environment(), stdout=log, stderr=log
            )
        self.metrics = ""

    @property
    def log(self) -> str:
        """Its own log."""
        return self.log_file.read_text()

    @property
    def port(self) -> int:
        """The port for probes and metrics."""
        found = re.search(r'"port": (\d+)', self.log)
        assert found, self.log
        return int(found[1])

    def get(self, path: str) -> tuple[int, str]:
        """Ask its HTTP port."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def until_ready(self) -> None:
        """Wait until it takes actions."""

        def ready() -> bool:
            assert self.process.poll() is None, f"the agent ended with {self.process.returncode}: {self.log}"
            return "serving metrics" in self.log and self.get("/readyz")[0] == 200

        until(ready, "the agent does not become ready", 30)

    def stop(self) -> None:
        """Ask it to leave, as Kubernetes would."""
        if self.process.poll() is None:
            self.metrics = self.get("/metrics")[1]
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(60) == 0, self.log

    def kill(self) -> None:
        """End it without asking."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)

    def check(self, secret_values: list[str]) -> None:
        """No error that should not happen, no secret in its log or metrics."""
        for value in secret_values:
            assert value not in self.log
            assert value not in self.metrics
        bad = [line for line in self.metrics.splitlines() if line.startswith("sealci_agent_internal_errors_total{")]
        assert all(line.endswith(" 0.0") for line in bad), f"{bad}\n{self.log}"


def start_scheduler(folder: Path, listen: str = "127.0.0.1:0") -> tuple[subprocess.Popen[bytes], str]:
    """Start a scheduler over a folder; returns it and its address."""
    log_file = folder / "scheduler.log"
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            [*COMMAND, "scheduler", "--listen", listen, "--folder", str(folder / "scheduler")],
            env=kube.environment(),
            stdout=log,
            stderr=log,
        )

    def address() -> str:
        assert process.poll() is None, log_file.read_text()
        found = re.findall(r'"address": "([^"]+)"', log_file.read_text())
        return str(found[-1]) if found else ""

    return process, until(address, "the scheduler does not listen", 20)


def spelled(action: Mapping[str, Any]) -> dict[str, Any]:
    """Spell an action out as a pipeline file does."""
    rest = {key: value for key, value in action.items() if key != "image"}
    return {"configuration": {"container": action["image"]}, **rest}


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay nested settings over others."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def until(condition: Any, message: str, timeout: float = 30) -> Any:
    """Wait until something outside this process is so."""
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while not (found := condition()):
        assert time.monotonic() < deadline, message
        pause.wait(0.1)
    return found


@contextmanager
def open_lab(namespace: str, folder: Path, *, listen: str = "127.0.0.1:0", **settings: Any) -> Iterator[Lab]:
    """Yield a lab without agents; `settings` are the defaults of its agents. Close the lab at the end."""
    lab = Lab(namespace, folder, listen=listen, **settings)
    try:
        yield lab
    finally:
        lab.close()


@contextmanager
def new_namespace(*labels: str) -> Iterator[str]:
    """Make a namespace, and drop it in the end; pods can be created in it when its ServiceAccount is there."""
    name = f"sealci-e2e-{secrets.token_hex(3)}"
    kube.kubectl("create", "namespace", name)
    try:
        if labels:
            kube.kubectl("label", "namespace", name, *labels)
        until(
            lambda: kube.kubectl("get", "serviceaccount", "default", "-n", name, check=False), "no ServiceAccount", 60
        )
        yield name
    finally:
        kube.kubectl("delete", "namespace", name, "--wait=false")
