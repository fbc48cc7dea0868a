"""The namespace in which `sealci-agent run` creates pods: from an option, else a setting, else the kube context."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.shell_completion import ShellComplete

from agent.cli.main import cli
from agent.cli.run import Choices, run_settings
from agent.cluster.api.configuration import load_configuration
from agent.domain.errors import NoCluster, SettingsError
from agent.settings import ClusterSettings

if TYPE_CHECKING:
    from pathlib import Path

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: with
clusters: [{name: k, cluster: {server: "http://127.0.0.1:9"}}]
contexts:
- {name: with, context: {cluster: k, user: u, namespace: team}}
- {name: without, context: {cluster: k, user: u}}
users: [{name: u, user: {}}]
"""


@pytest.mark.parametrize(
    ("context", "option", "assignment", "namespace"),
    [
        ("", "", "", "team"),
        ("with", "", "", "team"),
        ("without", "", "", "default"),
        ("missing", "", "", "default"),
        ("", "given", "", "given"),
        ("", "", "cluster.namespace=set", "set"),
    ],
)
def test_run_uses_the_namespace_of_the_context(
    tmp_path: Path, context: str, option: str, assignment: str, namespace: str
) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(KUBECONFIG)
    assignments = (f"cluster.kubeconfig={file}", *([assignment] if assignment else []))
    choices = Choices(
        file=file,
        artifacts=None,
        output="plain",
        timestamps=False,
        quiet=False,
        only=(),
        listing=False,
        keep=False,
        shell=False,
        watch=False,
        env=(),
        secret=(),
        secrets_file=None,
        repo=None,
        reports=(),
        timeout="",
        context=context,
        namespace=option,
        verbose=False,
        config=None,
        assignments=assignments,
    )
    assert run_settings(choices).cluster.namespace == namespace


async def test_a_context_that_does_not_exist_is_refused_with_the_names_of_all(tmp_path: Path) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(KUBECONFIG)
    with pytest.raises(SettingsError, match="there is no context 'nope'; there are: with, without"):
        await load_configuration(ClusterSettings(kubeconfig=file, context="nope"))
    with pytest.raises(NoCluster):
        await load_configuration(ClusterSettings(kubeconfig=tmp_path / "missing", context="nope"))


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("--context wi", ["with", "without"]),
        ("--namespace ", ["default", "team"]),
        ("--set agent.sl", ["agent.slots="]),
        ("--set scheduler.tls.ca", ["scheduler.tls.ca_file="]),
    ],
)
def test_the_shell_completes_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, wanted: list[str]
) -> None:
    (tmp_path / "kubeconfig").write_text(KUBECONFIG)
    monkeypatch.setenv("SEALCI_CLUSTER__KUBECONFIG", str(tmp_path / "kubeconfig"))
    *args, incomplete = f"run p.yaml {words}".split(" ")
    found = ShellComplete(cli, {}, "sealci-agent", "_COMPLETE").get_completions(args, incomplete)
    assert [each.value for each in found] == wanted
