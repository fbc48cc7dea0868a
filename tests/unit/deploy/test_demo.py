"""The commands that the demo prints at its end work in a shell: the path, the kubeconfig and the file are right."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from deploy.demo.__main__ import next_commands


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the kubeconfig of a local cluster of a user who has no other cluster."""
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "SEALCI_CACHE", "CLUSTER_NUMBER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "checkout" / ".venv" / "bin" / "python"))
    file = tmp_path / ".cache" / "sealci-agent" / "run" / "0" / "kubeconfig"
    file.parent.mkdir(parents=True)
    file.touch()
    (tmp_path / "checkout").mkdir()
    return file


def test_the_commands_are_short_when_the_cluster_is_found(kubeconfig: Path, tmp_path: Path) -> None:
    assert next_commands(str(kubeconfig), tmp_path / "checkout") == [
        ".venv/bin/sealci-agent init pipeline.yaml",
        ".venv/bin/sealci-agent run pipeline.yaml",
        ".venv/bin/sealci-agent doctor --only cluster",
    ]


def test_another_kube_context_and_another_file_are_respected(
    kubeconfig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", "another")
    (tmp_path / "checkout" / "pipeline.yaml").touch()
    command = f"KUBECONFIG={kubeconfig} .venv/bin/sealci-agent"
    assert next_commands(str(kubeconfig), tmp_path / "checkout")[:2] == [
        f"{command} init pipeline-2.yaml",
        f"{command} run pipeline-2.yaml",
    ]
