"""`sealci-agent run` on a pseudo-terminal and a real cluster, with every flag."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
import yaml

from tests.e2e import kube
from tests.e2e.lab import BUSYBOX, COMMAND, spelled, until
from tests.e2e.observer import MANAGED, remains
from tests.e2e.screen import Screen

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MISSING = "localhost/sealci-test/not-there:1"


class TerminalRuns:
    """Starts `sealci-agent run` on pseudo-terminals and ends the programs that still run."""

    def __init__(self, folder: Path, namespace: str) -> None:
        self.folder = folder
        self.namespace = namespace
        self.screens: list[Screen] = []
        self.file = folder / "pipeline.yaml"

    def write(self, actions: dict[str, Any]) -> None:
        """Write a pipeline file with these actions."""
        spelt = {key: spelled({"image": BUSYBOX, **each}) for key, each in actions.items()}
        partial = self.file.with_suffix(".part")
        partial.write_text(yaml.safe_dump({"name": "p", "actions": spelt}, sort_keys=False))
        partial.replace(self.file)

    def run(self, actions: dict[str, Any], *options: str, env: dict[str, str] | None = None) -> Screen:
        """Start `sealci-agent run` with these actions on a pseudo-terminal. Return its screen."""
        self.write(actions)
        command = [*COMMAND, "run", str(self.file), "--namespace", self.namespace, *options]
        command += ["--set", "policy.default_cpu=5m", "--set", "environment.grace=2s"]
        screen = Screen(command, kube.environment(), also=env)
        self.screens.append(screen)
        return screen


@pytest.fixture
def terminals(namespace: str, tmp_path: Path) -> Iterator[TerminalRuns]:
    """Yield TerminalRuns. Fail if a run leaves a pod or a Secret."""
    terminals = TerminalRuns(tmp_path, namespace)
    yield terminals
    for screen in terminals.screens:
        screen.close()
    try:
        until(lambda: not remains(namespace), f"pods or Secrets remain: {remains(namespace)}", 60)
    finally:
        # Delete pods and Secrets that a run left, so that they make only this test fail and no later test.
        kube.kubectl("delete", "pods,secrets", "-n", namespace, "-l", MANAGED, "--grace-period=0", "--force")


def test_a_live_tree_ends_in_a_table(terminals: TerminalRuns, tmp_path: Path) -> None:
    out, junit, page = tmp_path / "out", tmp_path / "r" / "junit.xml", tmp_path / "r" / "summary.md"
    actions = {
        "build": {"commands": ["echo the build speaks; until test -e go; do sleep 0.1; done", "echo made > file"]},
        "bad": {"needs": ["build"], "commands": ["true", "for i in $(seq 30); do echo word $i; done; nosuchprogram"]},
        "never": {"needs": ["bad"], "commands": ["true"]},
    }
    screen = terminals.run(actions, "--artifacts", str(out), "--report", str(junit), "--report", str(page))
    shown = screen.until("build  commands", "│ the build speaks", "· never  waiting")
    order = [next(i for i, line in enumerate(shown.splitlines()) if f" {name} " in line) for name in actions]
    assert order == sorted(order)
    pod = kube.get("pods", "-n", terminals.namespace)[0]["metadata"]["name"]
    kube.kubectl("exec", "-n", terminals.namespace, pod, "-c", "helper", "--", "touch", "/workspace/go")
    code, shown = screen.finish()
    assert code == 1, shown
    assert screen.colours
    assert "the build speaks" not in shown, "what has ended is collapsed"
    lines = shown.splitlines()
    block = lines.index("✘ bad: command 2 failed with exit code 127 (not found)")
    report = "\n".join(lines[block:])
    for part in ("│ $ for i in", "exit code 127", "last 20 lines", "│ word 30", "nosuchprogram: not found"):
        assert part in report
    assert "word 5\n" not in report
    assert "try: The program is not found" in report
    heads = next(line.split() for line in lines if line.startswith("action"))
    assert heads == ["action", "outcome", "reason", "set-up", "commands", "copying", "time", "files"]
    assert next(line.split()[1:2] for line in lines if line.startswith("build ")) == ["succeeded"]
    assert ["build/file", "5", "B"] in [line.split() for line in lines]
    assert (out / "build" / "file").read_text() == "made\n"
    suite = ET.parse(junit).getroot()[0]  # noqa: S314 - our own file
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "3",
        "failures": "1",
        "errors": "0",
        "skipped": "1",
    }
    assert "❌ failed COMMAND_FAILED (exit code 127)" in page.read_text()


def test_progress_of_set_up_and_files_is_shown(terminals: TerminalRuns) -> None:
    screen = terminals.run({"a": {"image": MISSING, "commands": ["true"]}})
    screen.until("a  setup", "pulling the image of action", timeout=90)
    screen.type("\x03")
    assert screen.finish()[0] == 130
    screen = terminals.run({"a": {"commands": ["dd if=/dev/zero of=big bs=1M count=700 2>/dev/null"]}})
    screen.until("a  artifacts", "MB/s  big", timeout=90)
    code, shown = screen.finish()
    assert (code, "1 (700.0 MiB)" in shown) == (0, True), shown


@pytest.mark.parametrize(
    ("env", "options", "colours"),
    [({"NO_COLOR": "1"}, (), False), ({"CI": "true"}, (), False), ({}, ("--output", "plain"), False)],
    ids=["no-color", "ci", "plain"],
)
def test_without_colours(terminals: TerminalRuns, env: dict[str, str], options: tuple[str, ...], colours: bool) -> None:
    screen = terminals.run({"a": {"commands": ["echo one"]}, "b": {"commands": ["echo two"]}}, *options, env=env)
    code, shown = screen.finish()
    assert (code, screen.colours) == (0, colours)
    assert ("a │ one" in shown) is ("NO_COLOR" not in env)


def test_json_lines_on_a_terminal(terminals: TerminalRuns) -> None:
    screen = terminals.run({"a": {"commands": ["echo one"]}}, "--output", "json")
    assert screen.finish()[0] == 0
    events = [json.loads(line) for line in screen.raw.decode().splitlines()]
    assert events[-1]["event"] == "finished"


def test_quiet(terminals: TerminalRuns) -> None:
    assert terminals.run({"a": {"commands": ["echo one"]}}, "--quiet").finish() == (0, "")
    code, shown = terminals.run({"a": {"commands": ["echo one; exit 3"]}}, "-q").finish()
    assert code == 1
    assert "✘ a: command 1 failed with exit code 3" in shown


def test_list_and_only(terminals: TerminalRuns) -> None:
    actions = {"one": {"commands": ["exit 1"]}, "two": {"needs": ["one"], "commands": ["echo only two"]}}
    code, shown = terminals.run(actions, "--list").finish()
    assert code == 0
    assert [line.split("  ")[0] for line in shown.splitlines()] == ["p", "└── one", ""]
    assert "    └── two  " in shown
    code, shown = terminals.run(actions, "--only", "two").finish()
    assert code == 0, shown
    assert "only two" in shown
    code, shown = terminals.run(actions, "--only", "tow").finish()
    assert code == 2
    assert "did you mean 'two'" in " ".join(shown.split())


def test_env_and_secrets(terminals: TerminalRuns) -> None:
    actions = {"a": {"env": {"KEPT": "1", "OVER": "file"}, "commands": ["echo $KEPT $OVER $NEW; echo s=$TOKEN"]}}
    options = ("--env", "OVER=option", "--env", "NEW=a=b", "--secret", "TOKEN")
    code, shown = terminals.run(actions, *options, env={"TOKEN": "value-of-the-token"}).finish()
    assert code == 0, shown
    assert "1 option a=b" in shown
    assert "s=***" in shown
    assert "value-of-the-token" not in shown
    assert terminals.run(actions, "--secret", "NOT_SET_ANYWHERE").finish()[0] == 2


def test_the_working_tree_is_the_workspace(terminals: TerminalRuns, tmp_path: Path) -> None:
    tree, out = tmp_path / "tree", tmp_path / "out"
    (tree / "src").mkdir(parents=True)
    (tree / ".gitignore").write_text("*.log\n/build/\n")
    (tree / "src" / "main").write_text("committed\n")
    (tree / "gone").write_text("x")
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "1"]):
        subprocess.run(["git", "-C", tree, *command], check=True)
    (tree / "src" / "main").write_text("changed\n")
    (tree / "new é").write_text("not added\n")
    (tree / "src" / "run").write_text("#!/bin/sh\necho I run\n")
    (tree / "src" / "run").chmod(0o755)
    (tree / "link").symlink_to("src/main")
    (tree / "gone").unlink()
    (tree / "x.log").write_text("ignored")
    (tree / "build").mkdir()
    (tree / "build" / "big").write_bytes(os.urandom(1 << 20))
    (tree / "blob").write_bytes(os.urandom(5 << 20))
    actions = {
        "a": {
            "repo": {"url": "https://example.invalid/x.git"},
            "commands": [
                "find . | sort",
                "cat link 'new é'; src/run; sha256sum blob",
                "nc db 5000 </dev/null",
                "echo made > made",
            ],
            # The commands wait for the tree, for the port and for the health command.
            "services": {
                "db": {
                    "container": BUSYBOX,
                    "command": ["sh", "-c", "sleep 1; while :; do echo I serve | nc -l -p 5000; done"],
                    "ports": [5000],
                },
                "slow": {
                    "container": BUSYBOX,
                    "command": ["sh", "-c", "sleep 2; touch /ready; sleep 60"],
                    "health": {"command": ["test", "-e", "/ready"]},
                },
            },
        }
    }
    code, shown = terminals.run(actions, "--repo", str(tree), "--artifacts", str(out)).finish()
    assert code == 0, shown
    found = {line for line in shown.splitlines() if line.startswith("./")}
    assert found == {"./.gitignore", "./blob", "./link", "./new é", "./src", "./src/main", "./src/run"}
    for part in ("changed", "not added", "I run", "I serve"):
        assert part in shown
    assert subprocess.run(["sha256sum", "blob"], cwd=tree, capture_output=True, text=True).stdout.strip() in shown
    assert sorted(os.listdir(out / "a")) == ["made"], "what was brought is not collected"


def test_keep_leaves_the_pod_and_prints_how_to_inspect_it(terminals: TerminalRuns) -> None:
    code, shown = terminals.run({"a": {"commands": ["echo kept > file; exit 4"]}}, "--keep").finish()
    assert code == 1, shown
    text = " ".join(shown.split())
    pod = kube.get("pods", "-n", terminals.namespace)[0]["metadata"]["name"]
    for verb in ("logs", "describe pod", "exec -it", "delete pod"):
        assert f"kubectl -n {terminals.namespace} {verb} {pod}" in text
    kept = kube.kubectl("exec", "-n", terminals.namespace, pod, "-c", "helper", "--", "cat", "/workspace/file")
    assert kept == "kept\n"
    kube.kubectl("delete", "pod", "-n", terminals.namespace, pod, "--grace-period=1")


def test_a_failure_opens_a_shell(terminals: TerminalRuns) -> None:
    command = "echo here > file; exit 5"
    actions = {"a": {"commands": [command], "artifacts": "none", "env": {"COLOUR": "red"}, "secrets": ["TOKEN"]}}
    screen = terminals.run(actions, "--shell-on-failure", env={"TOKEN": "hunter2-hunter2"})
    screen.until("command 1 failed with exit code 5", "A shell in /workspace", "/workspace $", timeout=90)
    # One `sh -c` runs both commands, because a Ctrl-C that comes between two commands of the outer shell would end
    # neither command. The test uses the builtin `read`, because dash ignores a Ctrl-C while dash starts a program.
    # The shell has the image of the action, in which busybox is every program, its variables and its secrets.
    screen.until("container shell")
    screen.type("readlink /bin/cat; echo $COLOUR ${#TOKEN}\r")
    screen.until("busybox", "red 15")
    screen.type("cat file; sh -c 'stty size; read -r line'\r")
    screen.until("here", "40 120")
    screen.type("\x03")
    # On Ctrl-C the terminal discards input that the shell has not read yet. So the test types the next input only after
    # "^C" is shown.
    screen.until("^C")
    screen.type("echo still $((40 + 2))\r")
    screen.until("still 42")
    screen.type("exit\r")
    code, shown = screen.finish()
    assert code == 1
    assert "✘ a: command 1 failed with exit code 5" in shown


def test_watch_runs_again_when_the_file_or_the_tree_changes(terminals: TerminalRuns, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "word").write_text("first\n")
    screen = terminals.run({"a": {"commands": ["cat word"]}}, "--watch", "--repo", str(tree))
    screen.until("first", "watching", timeout=90)
    terminals.file.write_text("name: [broken")
    screen.until("is not valid YAML")
    terminals.write({"a": {"commands": ["cat word; echo mended"]}})
    screen.until("mended", "succeeded", "watching", timeout=90)
    (tree / "word").write_text("second\n")
    screen.until("second", "succeeded", timeout=90)
    screen.type("\x03")
    assert screen.finish()[0] == 130


STAGES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "setup": ({"image": MISSING, "commands": ["true"]}, ("a  setup",)),
    "commands": ({"commands": ["echo begun; sleep 1000"]}, ("begun",)),
    "artifacts": ({"commands": ["dd if=/dev/zero of=big bs=1M count=900 2>/dev/null"]}, ("a  artifacts", "big")),
}


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_in_each_stage_deletes_the_pod_and_reports_it(terminals: TerminalRuns, stage: str) -> None:
    action, parts = STAGES[stage]
    screen = terminals.run({"a": action})
    screen.until(*parts, timeout=90)
    screen.type("\x03")
    code, shown = screen.finish()
    assert code == 130, shown
    assert "interrupted: cancelling and cleaning up. Press Ctrl-C again to exit at once" in shown
    assert "nothing is left in the cluster" in shown
    assert not remains(terminals.namespace)


def test_ctrl_c_before_the_agent_is_ready(terminals: TerminalRuns) -> None:
    screen = terminals.run({"a": {"commands": ["sleep 100"]}})
    until(lambda: screen.raw, "nothing is shown", 30)
    screen.type("\x03")
    assert screen.finish()[0] == 130
    assert not remains(terminals.namespace)


def test_ctrl_c_twice_exits_at_once(terminals: TerminalRuns) -> None:
    screen = terminals.run(
        {"a": {"commands": ["trap '' TERM; echo deaf; sleep 1000"]}}, "--set", "environment.grace=20s"
    )
    screen.until("deaf", timeout=90)
    screen.type("\x03")
    screen.until("cancelling")
    screen.type("\x03")
    code, shown = screen.finish(timeout=15)
    assert code == 130
    assert "exiting at once" in shown
    assert "sealci-agent cleanup --set agent.pool=run-" in " ".join(shown.split())
    leftover = kube.get("pods", "-n", terminals.namespace)
    kept = [pod["metadata"]["name"] for pod in leftover if not pod["metadata"].get("deletionTimestamp")]
    assert kept == [], "the deletion of a pod was not requested"
    for pod in leftover:
        kube.kubectl("delete", "pod", "-n", terminals.namespace, pod["metadata"]["name"], "--grace-period=0", "--force")


def test_a_missing_cluster_is_reported_with_the_command_that_creates_one(
    terminals: TerminalRuns, tmp_path: Path
) -> None:
    code, shown = terminals.run({"a": {"commands": ["true"]}}, env={"KUBECONFIG": str(tmp_path / "none")}).finish()
    assert code == 3
    assert shown.startswith("sealci-agent: ")
    assert "cluster" in shown
    assert "kind create cluster" in shown
    assert shown.count("\n") <= 2, shown


def test_help_has_examples_and_the_shell_completes(tmp_path: Path) -> None:
    code, shown = Screen([*COMMAND, "run", "--help"], kube.environment(), lines=90).finish()
    assert code == 0
    assert "sealci-agent run pipeline.yaml --repo ." in shown
    file = tmp_path / "p.yaml"
    file.write_text("actions: {tidy: {configuration: {container: x}, commands: [x]}}")
    line = f"sealci-agent run {file} --only t"
    env = kube.environment() | {"_SEALCI_AGENT_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": "4"}
    done = subprocess.run(COMMAND, env=env, capture_output=True, text=True)
    assert done.stdout == "plain,tidy\n", done
    for shell in ("bash", "zsh", "fish"):
        made = subprocess.run([*COMMAND, "completion", shell], capture_output=True, text=True, check=True)
        assert "_SEALCI_AGENT_COMPLETE" in made.stdout
