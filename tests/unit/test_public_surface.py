"""The public surface, on which installers, schedulers and pods of other releases rely, compared with golden files.

A refactoring must not change a file in `public_surface/`. These files contain no prose, such as help texts and
messages. `UPDATE_GOLDEN=1 pytest tests/unit/test_public_surface.py` rewrites the files that differ.
"""

from __future__ import annotations

import difflib
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
import yaml
from click.testing import CliRunner
from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from prometheus_client.parser import text_string_to_metric_families

from agent import settings
from agent.app import serve
from agent.cli import main
from agent.cluster import packaging
from agent.cluster.pod import action_order, manifest
from agent.cluster.pod import labels as labels_module
from agent.cluster.supervisor import command as command_module
from agent.console.reports import run_report
from agent.domain import actions, check_result, errors, events, observations, outcome, session_state
from agent.domain.json import Object
from agent.pipeline.wire import local_pb2
from agent.protocol.wire import agent_pb2
from agent.scheduler.classic import call
from agent.scheduler.classic.wire import actions_pb2, scheduler_pb2
from agent.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Iterator
    from enum import Enum


ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "public_surface"
CONTRACTS = [agent_pb2, local_pb2, actions_pb2, scheduler_pb2]
VALUES_OF_THE_MACHINE = "sealci_agent_build_info"

ACTION = actions.Action(
    actions.Key("build/1", 2, 3),
    "alpine:3",
    ("echo $HOME", "true"),
    name="build",
    env={"A": "$(B) $$ $"},
    secrets={"TOKEN": "hunter2-hunter2"},
    repository=actions.Repository("https://example.org/r", "main", 1, submodules=True, credentials="deploy", lfs=True),
    resources=actions.Resources("500m", "1Gi", "2Gi"),
    artifacts=actions.ArtifactRules(("out/**",), ("*.o",), actions.When.ALWAYS),
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
)
PLAN = manifest.Plan(
    ACTION,
    labels_module.pod_name("default", ACTION.key.action_id, ACTION.key.attempt),
    namespace="ci",
    agent_id="agent-1",
    nonce="0123456789abcdef",
    timeout=60.0,
)
BARE = replace(
    PLAN,
    action=actions.Action(
        actions.Key("bare"), "alpine:3", ("true",), artifacts=actions.ArtifactRules(when=actions.When.NEVER)
    ),
    user_namespace=True,
    owner={"apiVersion": "v1", "kind": "ConfigMap", "name": "anchor", "uid": "anchor-uid"},
)
RESTRICTED: Object = {
    "environment": {
        "profile": "restricted",
        "labels": {"team": "a"},
        "pod_template": {"spec": {"nodeSelector": {"disk": "ssd"}}},
    }
}


class Dumper(yaml.SafeDumper):
    """A YAML writer. It writes a text of several lines as a block, and never writes aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else "")
)


def as_yaml(*documents: Object) -> str:
    return yaml.dump_all(documents, Dumper=Dumper, sort_keys=False, width=1 << 20, allow_unicode=True)


def check(name: str, actual: str) -> None:
    """Compare a text with a golden file, and fail if they differ. With `UPDATE_GOLDEN=1`, rewrite the file first."""
    file = GOLDEN / name
    golden = file.read_text(encoding="utf-8") if file.exists() else ""
    if golden == actual:
        return
    if os.environ.get("UPDATE_GOLDEN") == "1":
        file.write_text(actual, encoding="utf-8")
        pytest.fail(f"{file} was rewritten: review the difference, then run again without UPDATE_GOLDEN")
    difference = difflib.unified_diff(golden.splitlines(), actual.splitlines(), "golden", "actual", lineterm="")
    pytest.fail(f"the public surface changed ({name}):\n" + "\n".join(difference))


@pytest.fixture(autouse=True)
def no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("SEALCI_"):
            monkeypatch.delenv(name)


# ---- the command line


def parameter(param: click.Parameter) -> tuple[str, Object]:
    """Return the spelling of a command's parameter, and its properties for the golden file.

    `nargs` is left out if the parameter takes one value.
    """
    info = param.to_info_dict()
    kept = ("required", "multiple", "is_flag", "default", "envvar", "hidden")
    found = {key: info[key] for key in kept if info.get(key) not in (None, False)}
    if info["nargs"] != 1:
        found["nargs"] = info["nargs"]
    if "choices" in info["type"]:
        found["choices"] = list(info["type"]["choices"])
    flags = [param.human_readable_name] if isinstance(param, click.Argument) else [*param.opts, *param.secondary_opts]
    return ", ".join(flags), {"type": info["type"]["name"]} | found


def commands(command: click.Command, path: str, parent: click.Context | None = None) -> Iterator[tuple[str, Object]]:
    """Yield the path and the parameters of a command, then of all its subcommands.

    `path` is the words that call the command, such as the program's name and a subcommand.
    """
    context = click.Context(command, parent, info_name=path.rpartition(" ")[2], **command.context_settings)
    yield path, dict(parameter(each) for each in command.get_params(context))
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands(below, f"{path} {name}", context)


def test_commands() -> None:
    check("commands.yaml", as_yaml(dict(commands(main.cli, main.NAME))))


def test_config() -> None:
    result = CliRunner().invoke(main.cli, ["config"], catch_exceptions=False)
    assert result.exit_code == 0
    check("config.yaml", result.output)


# ---- metrics


def test_metrics() -> None:
    """The golden file also has the bucket bounds of histograms, because these bounds are values of the label `le`."""
    found: Object = {}
    for family in text_string_to_metric_families(metrics.Metrics().text().decode()):
        labels: dict[str, dict[str, None]] = {}
        for sample in family.samples:
            for label, value in sample.labels.items():
                labels.setdefault(label, {})[value] = None
        values = {label: [] if family.name == VALUES_OF_THE_MACHINE else list(each) for label, each in labels.items()}
        samples = list(dict.fromkeys(sample.name for sample in family.samples))
        found[family.name] = {"type": family.type, "samples": samples, "labels": values}
    check("metrics.yaml", as_yaml(found))


# ---- objects in the cluster


def without_program(pod: Object) -> Object:
    """Replace the helper's packed program by PROGRAM, because its bytes depend on the versions of Python and zlib."""
    helper = pod["spec"]["containers"][0]
    program = packaging.helper_program(command_module.SUPERVISOR, command_module.SETUP)[-1]
    helper["command"] = ["PROGRAM" if each == program.replace("$", "$$") else each for each in helper["command"]]
    return pod


def test_manifests() -> None:
    defaults, restricted = (settings.Settings.model_validate(given) for given in ({}, RESTRICTED))
    check(
        "manifests.yaml",
        as_yaml(
            without_program(manifest.pod(PLAN, defaults)),
            without_program(manifest.pod(PLAN, restricted)),
            without_program(manifest.pod(BARE, defaults)),
            action_order.secret(PLAN, defaults, "pod-uid"),
            {"command that interrupts the commands": command_module.interrupt(10.0)},
            {"supervisor": command_module.SUPERVISOR, "setup": command_module.SETUP},
        ),
    )


# ---- values of enums, and exit codes


def values(kind: type[Enum]) -> list[Any]:
    return [each.value for each in kind]


def exit_code(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> object:
    """Return the exit code of `sealci-agent` if one of its commands raises `error`."""

    def fail() -> None:
        raise error

    monkeypatch.setattr(main.cli.commands["version"], "callback", fail)
    monkeypatch.setattr(sys, "argv", [main.NAME, "version"])
    with pytest.raises(SystemExit) as left:
        main.main()
    return left.value.code


def test_words(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = [(outcome.Result.SUCCEEDED, None), *((outcome.Result.FAILED, each) for each in errors.Reason)]
    ends.append((outcome.Result.CANCELLED, errors.Reason.CANCELLED))
    raised = {
        "wrong usage": click.UsageError("-"),
        "wrong setting": errors.SettingsError("-"),
        "error of the agent": errors.AgentError("-"),
        "error of the system": OSError("-"),
        "interrupted": click.Abort(),
    }
    words = {
        "stages": values(errors.Stage),
        "reasons, and whose fault": {each.value: metrics.fault(each) for each in errors.Reason},
        "rejections": values(errors.Rejection),
        "results": values(outcome.Result),
        "when files are collected": values(actions.When),
        "sources of the log": values(events.Source),
        "readiness": values(session_state.Readiness),
        "markers in the log": values(observations.MarkerKind),
        "verdicts of the doctor": values(check_result.Verdict),
        "exit codes of the process": {name: exit_code(error, monkeypatch) for name, error in raised.items()}
        | {"refused by the scheduler": serve.REFUSED},
        "exit codes of run and submit": values(run_report.ExitCode),
        "exit codes for a classic scheduler": {
            f"{result.value} {reason.value if reason else ''}".strip(): call.exit_code(
                outcome.Outcome(result, errors.Stage.SETUP, reason)
            )
            for result, reason in ends
        },
    }
    check("words.yaml", as_yaml(words))


# ---- the proto files, the contract with schedulers


def test_contracts() -> None:
    assert len(CONTRACTS) == len(list((ROOT / "proto").rglob("*.proto")))
    found = []
    for contract in CONTRACTS:
        described = FileDescriptorProto.FromString(contract.DESCRIPTOR.serialized_pb)
        # The names of proto files depend on the folders of the generated modules, so they are not compared.
        described.ClearField("name")
        described.dependency[:] = [each for each in described.dependency if each.startswith("google/")]
        found.append(text_format.MessageToString(described))
    check("contracts.txt", "---\n".join(found))
