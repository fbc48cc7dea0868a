"""The commands `sealci-agent init`, `lint` and `schema`, and the pipeline files that `run` refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from agent.cli.main import cli
from agent.domain.errors import SettingsError
from agent.pipeline.parser import load
from tests.unit.pages import ROOT

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty folder the current folder and the home folder. Return the folder.

    The environment names no cluster.
    """
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "SEALCI_CACHE", "CLUSTER_NUMBER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def init(*words: str) -> Result:
    return CliRunner().invoke(cli, ["init", *words])


def images(file: Path) -> set[str]:
    return {action.image for action in load(file).actions}


def test_the_file_is_valid_and_its_command_is_printed(folder: Path) -> None:
    result = init()
    assert (result.exit_code, result.output) == (
        0,
        "wrote pipeline.yaml, now run it: sealci-agent run pipeline.yaml\n",
    )
    assert images(folder / "pipeline.yaml") == {"debian:stable"}


def test_a_local_cluster_gets_an_image_that_it_has(folder: Path) -> None:
    local = folder / ".cache" / "sealci-agent" / "run" / "0"
    local.mkdir(parents=True)
    (local / "kubeconfig").touch()
    assert init("a.yaml").exit_code == 0
    assert images(folder / "a.yaml") == {"localhost/sealci-agent:dev"}
    assert init("b.yaml", "--image", 'x"y: z').exit_code == 2
    assert init("b.yaml", "--image", "alpine:3").exit_code == 0
    assert images(folder / "b.yaml") == {"alpine:3"}


def test_no_file_is_overwritten(folder: Path) -> None:
    (folder / "pipeline.yaml").write_text("mine")
    result = init()
    assert result.exit_code == 2
    assert "pipeline.yaml exists already" in result.output
    assert (folder / "pipeline.yaml").read_text() == "mine"
    (folder / "link").symlink_to("nowhere")
    assert init("link").exit_code == 2
    missing = init("missing/p.yaml")
    assert missing.exit_code == 2
    assert "missing/p.yaml: No such file or directory" in missing.output


VALID = "configuration: {container: i}\ncommands: [x]\n"


def test_lint_prints_the_problems_of_all_files_and_runs_nothing(folder: Path) -> None:
    (folder / "good.yaml").write_text(VALID)
    (folder / "bad.yaml").write_text(VALID + "timeout: soon\nneeds: [x]\n")
    result = CliRunner().invoke(cli, ["lint", "good.yaml", "bad.yaml", "missing.yaml"])
    assert result.exit_code == 2
    assert result.stdout == "good.yaml: valid, 1 action\n"
    assert [line.partition(": ")[0] for line in result.stderr.splitlines()[::3]] == [
        "bad.yaml:3",
        "bad.yaml:4",
        "missing.yaml",
    ]
    assert CliRunner().invoke(cli, ["lint", "good.yaml"]).exit_code == 0


def test_schema_prints_the_committed_schema() -> None:
    committed = (ROOT / "docs" / "pipeline.schema.json").read_text("utf-8")
    assert CliRunner().invoke(cli, ["schema"]).output == committed


def test_run_refuses_what_the_policy_forbids_before_anything_starts(folder: Path) -> None:
    (folder / "p.yaml").write_text("actions:\n  a: {configuration: {container: i}, commands: [x], timeout: 90d}\n")
    result = CliRunner().invoke(cli, ["run", "p.yaml"])
    assert isinstance(result.exception, SettingsError)
    assert str(result.exception) == ("p.yaml: a: timeout: 7776000 s is not allowed; more than 0, at most 86400 s")


def test_run_refuses_a_class_that_its_settings_do_not_have_with_the_list(folder: Path) -> None:
    (folder / "p.yaml").write_text("actions:\n  a: {configuration: {container: i}, commands: [x], class: gpux}\n")
    result = CliRunner().invoke(cli, ["run", "p.yaml", "--set", "environment.classes={large: {}, gpu: {}}"])
    assert isinstance(result.exception, SettingsError)
    assert str(result.exception) == "p.yaml: a: class: there is no class 'gpux'; there are: large, gpu"
