"""A lab: the local scheduler, agents and a namespace, for tests that submit actions.

The scheduler and the agents are real processes. A lab lives as long as a test module, or as long as one test that
breaks the lab. After each submission, the observer (observer.py) checks rules that hold for every action. `close`
checks that the agents stop cleanly and leave no pod and no Secret.
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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tests.e2e import kube
from tests.e2e.observer import Observer, remains
from tests.e2e.submission import Report, Submission

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

COMMAND = [sys.executable, "-m", "agent"]
DEBIAN, BUSYBOX, BASH, SLIM = (f"localhost/sealci-test/{name}:1" for name in ("debian", "busybox", "bash", "slim"))
SHELLS = {"dash": DEBIAN, "bash": BASH, "busybox": BUSYBOX}


class Lab:
    """A scheduler and its agents in one namespace. `settings` are the default settings of its agents."""

    def __init__(
        self,
        namespace: str,
        folder: Path,
        *,
        listen: str = "127.0.0.1:0",
        scheduler_options: tuple[str, ...] = (),
        **settings: Any,
    ) -> None:
        self.namespace = namespace
        self.folder = folder
        self.pool = f"e2e-{secrets.token_hex(3)}"
        self.observer = Observer(namespace)
        self.agents: list[Agent] = []
        self.settings = settings
        self.secret_values: list[str] = []
        self.objects = "objects" in settings  # the files of actions are in an object store
        self.scheduler, self.address = start_scheduler(folder, listen, *scheduler_options)

    def agent(self, **settings: Any) -> Agent:
        """Start an agent and wait until it is ready. `settings` override the lab's settings."""
        agent = Agent(self, len(self.agents), merged(self.settings, settings))
        self.agents.append(agent)
        agent.until_ready()
        return agent

    def start(
        self, actions: Mapping[str, Mapping[str, Any]], *, secret_values: Mapping[str, str] | None = None
    ) -> Submission:
        """Submit actions, by their names, and return the submission.

        An action is written as in a pipeline file, but with `image` in place of `configuration`.
        """
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
        return self.start(actions, secret_values=secret_values).wait(timeout)

    def one(self, image: str, *commands: str, timeout: float = 180, **keys: Any) -> Report:
        """Run one action and return its report. `keys` are further keys of the action, as in a pipeline file."""
        return self.run({"action": {"image": image, "commands": list(commands), **keys}}, timeout=timeout)["action"]

    def check(self, report: Report) -> None:
        """Compare an action's report with the pods that the observer has seen and with what the scheduler stored."""
        outcome, _, code = report.outcome
        if outcome == "succeeded":
            message = f"{report.name} succeeded, but no container was seen to end"
            until(lambda: any(self.observer.exit_codes(each) for each in self.action_ids(report)), message, 10)
        for pod_action in self.action_ids(report):
            self.observer.check_outcome(pod_action, outcome, code)
        stored = report.log
        for value in self.secret_values:
            assert value.encode() not in stored, "a secret stands in the stored log"
        reported = {event["path"]: event["size"] for event in report.events if event["event"] == "artifact"}
        # If a path is not UTF-8, the reports have replacement characters in place of the wrong bytes. Replace these
        # bytes here too.
        shown = {os.fsencode(path).decode("utf-8", "replace"): file for path, file in report.files.items()}
        assert self.objects or {path: file.stat().st_size for path, file in shown.items()} == reported

    def action_ids(self, report: Report) -> list[str]:
        """Return the distinct action ids that the session annotations of the action's pods contain.

        `report` is the report of the action.
        """
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
        """Stop all processes. Check that no pod and no Secret is left, and that no agent has logged a secret value."""
        try:
            for agent in self.agents:
                agent.stop()
            until(lambda: not remains(self.namespace), f"pods or Secrets remain: {remains(self.namespace)}", 30)
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
    """One `sealci-agent serve` process."""

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
        """Return the text that the agent has logged until now."""
        return self.log_file.read_text()

    @property
    def port(self) -> int:
        """Return the port at which the agent serves metrics and the status page."""
        found = re.search(r'"port": (\d+)', self.log)
        assert found, self.log
        return int(found[1])

    def get(self, path: str) -> tuple[int, str]:
        """Send an HTTP request to the agent. Return the status code and the body of the response."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def until_ready(self) -> None:
        """Wait until the agent is ready."""

        def ready() -> bool:
            assert self.process.poll() is None, f"the agent ended with {self.process.returncode}: {self.log}"
            return "serving metrics" in self.log and self.get("/readyz")[0] == 200

        until(ready, "the agent did not become ready", 30)

    def stop(self) -> None:
        """Store the agent's metrics in `metrics`. Then stop the agent with SIGTERM, as Kubernetes does."""
        if self.process.poll() is None:
            self.metrics = self.get("/metrics")[1]
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(60) == 0, self.log

    def kill(self) -> None:
        """Kill the agent with SIGKILL if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)

    def check(self, secret_values: list[str]) -> None:
        """Check that the agent's log and metrics contain no secret value, and that no internal error was counted."""
        for value in secret_values:
            assert value not in self.log
            assert value not in self.metrics
        # If the test has killed the agent, `metrics` is empty.
        assert not self.metrics or internal_errors(self.metrics) == [], self.log


def internal_errors(metrics: str) -> list[str]:
    """Return the lines for counters of internal errors that are not 0, from the text of an agent's metrics.

    Raises:
        AssertionError: the text has no such counter, so that a renamed metric does not pass as "no errors".
    """
    counters = [line for line in metrics.splitlines() if line.startswith("sealci_agent_internal_errors_total{")]
    assert counters, f"no counter of internal errors in {metrics[:500]!r}"
    return [line for line in counters if not line.endswith(" 0.0")]


def start_scheduler(folder: Path, listen: str = "127.0.0.1:0", *options: str) -> tuple[subprocess.Popen[bytes], str]:
    """Start a scheduler that stores its data below `folder`. Return its process and its address."""
    log_file = folder / "scheduler.log"
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            [*COMMAND, "scheduler", "--listen", listen, "--folder", str(folder / "scheduler"), *options],
            env=kube.environment(),
            stdout=log,
            stderr=log,
        )

    def address() -> str:
        assert process.poll() is None, log_file.read_text()
        found = re.findall(r'"address": "([^"]+)"', log_file.read_text())
        return str(found[-1]) if found else ""

    return process, until(address, "the scheduler did not start", 20)


def spelled(action: Mapping[str, Any]) -> dict[str, Any]:
    """Return the action in the format of a pipeline file.

    Tests write the image as the key `image`. A pipeline file has the image at `configuration.container`.
    """
    rest = {key: value for key, value in action.items() if key != "image"}
    return {"configuration": {"container": action["image"]}, **rest}


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the settings `base` in which the settings in `over` replace those of `base`.

    A section of settings is merged key by key.
    """
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def until(condition: Any, message: str, timeout: float = 30) -> Any:
    """Poll until `condition()` is true, and return its value. After `timeout` seconds, fail with `message`."""
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while not (found := condition()):
        assert time.monotonic() < deadline, message
        pause.wait(0.1)
    return found


@contextmanager
def open_lab(namespace: str, folder: Path, **settings: Any) -> Iterator[Lab]:
    """Yield a lab: a running scheduler and a namespace, in which a test starts agents. Close the lab at the end.

    `settings` are the default settings of these agents.
    """
    lab = Lab(namespace, folder, **settings)
    try:
        yield lab
    finally:
        lab.close()


@contextmanager
def new_namespace(*labels: str) -> Iterator[str]:
    """Create a Kubernetes namespace and wait for its ServiceAccount, which pods need.

    Each of `labels` is a label of the namespace in the form `KEY=VALUE`.

    Yield the name of the namespace, and delete the namespace at the end.
    """
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
