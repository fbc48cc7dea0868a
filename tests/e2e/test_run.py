"""`sealci-agent run` on a real cluster: its exit codes, its output and its files."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.e2e import kube
from tests.e2e.lab import BUSYBOX, COMMAND, spelled, until
from tests.e2e.observer import remains

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Terminal:
    """Runs pipelines with `sealci-agent run` in one namespace. The output goes to pipes and not to a terminal."""

    def __init__(self, folder: Path, namespace: str) -> None:
        self.folder = folder
        self.namespace = namespace

    def start(self, actions: dict[str, Any], *options: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start `sealci-agent run` with these actions. Return its process."""
        file = self.folder / "pipeline.yaml"
        file.write_text(yaml.safe_dump({"name": "p", "actions": {key: spelled(each) for key, each in actions.items()}}))
        return self.start_file(file, *options, env=env)

    def start_file(self, file: Path, *options: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start `sealci-agent run` with a pipeline file. Return its process."""
        command = [*COMMAND, "run", str(file), "--namespace", self.namespace, *options]
        return subprocess.Popen(
            [*command, "--set", "policy.default_cpu=5m", "--set", "environment.grace=2s"],
            env=kube.environment() | (env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def finish(process: subprocess.Popen[str], timeout: float = 120) -> tuple[int, str, str]:
    """Wait for the end of a `sealci-agent run`. Return its exit code, stdout and stderr."""
    with process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return process.returncode, out, err


def lines(out: str) -> list[dict[str, Any]]:
    """Parse an output whose lines are JSON objects."""
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def terminal(namespace: str, tmp_path: Path) -> Iterator[Terminal]:
    """Yield a Terminal. Fail if its runs leave a pod or a Secret in the namespace."""
    yield Terminal(tmp_path, namespace)
    until(lambda: not remains(namespace), f"pods or Secrets remain: {remains(namespace)}", 30)


@pytest.fixture(scope="module", autouse=True)
def unanswered(namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """Start a run on a cluster that does not answer. The run gives up after 30 s, while other tests run."""
    folder = tmp_path_factory.mktemp("unanswered")
    known = json.loads(kube.kubectl("config", "view", "--raw", "-o", "json"))
    known["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    (folder / "kubeconfig").write_text(json.dumps(known))
    actions = {"a": {"image": BUSYBOX, "commands": ["true"]}}
    run = Terminal(folder, namespace).start(actions, env={"KUBECONFIG": str(folder / "kubeconfig")})
    yield run
    run.kill()
    run.wait(10)


def test_success_leaves_logs_and_files(terminal: Terminal, tmp_path: Path) -> None:
    out = tmp_path / "out"
    actions = {"one": {"image": BUSYBOX, "commands": ["echo hello", "mkdir d; echo made > d/f"]}}
    code, text, _ = finish(terminal.start(actions, "--artifacts", str(out), "--output", "plain"))
    assert code == 0, text
    assert (out / "one.log").read_bytes() == b"hello\n"
    assert (out / "one" / "d" / "f").read_text() == "made\n"
    assert "hello" in text
    assert "succeeded" in text


def test_a_failing_command_is_printed_as_json(terminal: Terminal, tmp_path: Path) -> None:
    actions = {"bad": {"image": BUSYBOX, "commands": ["echo one", "exit 5"]}}
    code, out, _ = finish(terminal.start(actions, "--output", "json", "--artifacts", str(tmp_path / "out")))
    assert code == 1
    assert (tmp_path / "out" / "bad.log").read_text() == "one\n", "the log has text that no command wrote"
    last = lines(out)[-1]
    assert (last["event"], last["outcome"], last["reason"]) == ("finished", "failed", "COMMAND_FAILED")
    assert (last["stage"], last["exit_code"], last["fault"]) == ("commands", 5, "user")
    assert {"event": "command", "action": "bad", "index": 2, "exit_code": 5}.items() <= [
        each for each in lines(out) if each["event"] == "command"
    ][-1].items()


def test_a_missing_image_fails_within_its_time_limit(terminal: Terminal) -> None:
    actions = {"bad": {"image": "localhost/sealci-test/not-there:1", "commands": ["echo never"]}}
    # No registry answers at localhost, so `registry_grace` is the limit.
    options = ["--output", "json", "--set", "policy.registry_grace=3s"]
    code, out, _ = finish(terminal.start(actions, *options), timeout=90)
    assert code == 1
    events = lines(out)
    assert (events[-1]["outcome"], events[-1]["reason"]) == ("failed", "IMAGE_PULL_FAILED")
    log = "".join(each["text"] for each in events if each["event"] == "log")
    for part in ("could not be set up", "not-there", "Events of the pod", "Check the name and the tag"):
        assert part in log


def test_files_are_printed_with_their_sha256(terminal: Terminal, tmp_path: Path) -> None:
    out = tmp_path / "out"
    actions = {"one": {"image": BUSYBOX, "commands": ["mkdir d; echo made > d/f; : > empty"]}}
    code, text, _ = finish(terminal.start(actions, "--artifacts", str(out), "--output", "json"))
    assert code == 0, text
    printed = {each["path"]: (each["size"], each["sha256"]) for each in lines(text) if each["event"] == "artifact"}
    content = {path: (out / "one" / path).read_bytes() for path in ("d/f", "empty")}
    assert printed == {path: (len(data), hashlib.sha256(data).hexdigest()) for path, data in content.items()}


def test_several_actions_are_prefixed_and_needs_are_kept(terminal: Terminal) -> None:
    actions = {
        "first": {"image": BUSYBOX, "commands": ["echo I am first"]},
        "second": {"image": BUSYBOX, "commands": ["echo I am second"], "needs": ["first"]},
    }
    code, out, _ = finish(terminal.start(actions, "--output", "plain"))
    assert code == 0
    shown = [line for line in out.splitlines() if "I am" in line and "$" not in line]
    assert [line.split()[0] for line in shown] == ["first", "second"]


def test_an_invalid_file_is_reported_with_line_and_key(terminal: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("name: x\nactions:\n  a:\n    configuration: {container: b}\n    comands: [c]\n")
    code, _, err = finish(terminal.start_file(file))
    assert code == 2
    assert "5" in err
    assert "comands" in err
    assert "commands" in err


USAGE: dict[str, tuple[list[str], str]] = {
    "no-such-option": (["--colour"], "--colour"),
    "output": (["--output", "xml"], "--output"),
    "timeout": (["--timeout", "soon"], "--timeout"),
    "setting": (["--set", "policy.pull_graze=3s"], "policy.pull_graze"),
    "value": (["--set", "environment.profile=rootless"], "environment.profile"),
    "secrets-file": (["--secrets-file", "does-not-exist"], "does-not-exist"),
    "secret": ([], "NO_SUCH_SECRET"),
}


@pytest.mark.parametrize("name", USAGE)
def test_wrong_usage_is_explained(terminal: Terminal, name: str) -> None:
    options, says = USAGE[name]
    wanted = ["NO_SUCH_SECRET"] if name == "secret" else []
    actions = {"a": {"image": BUSYBOX, "commands": ["true"], "secrets": wanted}}
    code, out, err = finish(terminal.start(actions, *options))
    assert code == 2, err
    assert says in err
    assert "Traceback" not in err
    assert out == ""


def test_a_missing_file_is_named(terminal: Terminal, tmp_path: Path) -> None:
    code, _, err = finish(terminal.start_file(tmp_path / "missing.yaml"))
    assert code == 2
    assert "missing.yaml" in err


@pytest.mark.parametrize("what", ["missing", "context", "closed"])
def test_a_missing_cluster_is_reported_in_one_sentence(
    terminal: Terminal, unanswered: subprocess.Popen[str], tmp_path: Path, what: str
) -> None:
    env = {} if what == "context" else {"KUBECONFIG": str(tmp_path / what)}
    options = ["--context", "no-such-context"] if what == "context" else []
    run = unanswered
    if what != "closed":
        run = terminal.start({"a": {"image": BUSYBOX, "commands": ["true"]}}, *options, env=env)
    code, out, err = finish(run)
    assert code == 3
    assert len(err.splitlines()) == 1, err
    assert "cluster" in err
    assert out == ""


@pytest.mark.parametrize("image", [BUSYBOX, "localhost/sealci-test/not-there:1"], ids=["running", "setup"])
def test_an_interrupted_run_deletes_its_pods_and_reports_it(terminal: Terminal, namespace: str, image: str) -> None:
    process = terminal.start({"long": {"image": image, "commands": ["sleep 1000"]}}, "--output", "plain")
    until(lambda: remains(namespace), "no pod was created", 30)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process, timeout=60)
    assert code == 130
    assert "cancelled" in out + err
    assert not remains(namespace)


def test_the_time_of_a_pipeline_is_limited(terminal: Terminal) -> None:
    actions = {"long": {"image": BUSYBOX, "commands": ["sleep 1000"]}}
    code, out, _ = finish(terminal.start(actions, "--timeout", "6s", "--output", "json"))
    assert code == 1
    assert lines(out)[-1]["outcome"] == "cancelled"


def test_secrets_come_from_the_environment_and_a_file(terminal: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    file.write_text("FROM_FILE=file-value-2\n")
    actions = {
        "a": {
            "image": BUSYBOX,
            "secrets": ["FROM_ENV", "FROM_FILE"],
            "commands": [
                'test "$FROM_ENV" = env-value-1',
                'test "$FROM_FILE" = file-value-2',
                "echo $FROM_ENV $FROM_FILE",
            ],
        }
    }
    options = ["--secrets-file", str(file), "--output", "json"]
    code, out, _ = finish(terminal.start(actions, *options, env={"FROM_ENV": "env-value-1"}))
    assert code == 0, out
    assert "".join(each["text"] for each in lines(out) if each["event"] == "log") == "*** ***\n"


def test_a_misspelt_field_of_the_pod_template_is_refused(terminal: Terminal) -> None:
    template = '{"spec": {"nodeSelectr": {"disk": "ssd"}}}'
    actions = {"a": {"image": BUSYBOX, "commands": ["true"]}}
    code, out, _ = finish(terminal.start(actions, "--output", "json", "--set", f"environment.pod_template={template}"))
    assert code == 3
    last = lines(out)[-1]
    assert (last["reason"], last["fault"]) == ("CLUSTER_UNAVAILABLE", "infrastructure")
    assert 'unknown field "spec.nodeSelectr"' in last["message"]
    assert "environment.pod_template" in last["message"]
