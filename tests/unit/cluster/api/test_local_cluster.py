"""The agent uses the local cluster of `make cluster-up` if and only if no other cluster is configured."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.cluster.api.local_cluster import find_local_cluster
from agent.settings import ClusterSettings
from deploy.dev.cluster import settings as cluster_verbs

CONTEXT = "contexts: [{name: c, context: {cluster: k, user: u}}]\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a home folder with the kubeconfigs of local clusters 2 and 3, in an environment that names no cluster."""
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "SEALCI_CACHE", "CLUSTER_NUMBER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for number in "23":
        file = tmp_path / ".cache" / "sealci-agent" / "run" / number / "kubeconfig"
        file.parent.mkdir(parents=True)
        file.touch()
    return tmp_path


def test_the_local_cluster_with_the_lowest_number_is_found(home: Path) -> None:
    found = find_local_cluster(ClusterSettings())
    assert found == home / ".cache" / "sealci-agent" / "run" / "2" / "kubeconfig"


def test_the_variables_of_the_cluster_verbs_select_the_cluster(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER_NUMBER", "3")
    monkeypatch.setenv("CLUSTER", "local")
    assert find_local_cluster(ClusterSettings()) == cluster_verbs.read(str).kubeconfig
    monkeypatch.setenv("SEALCI_CACHE", str(home / "elsewhere"))
    assert find_local_cluster(ClusterSettings()) is None


@pytest.mark.parametrize(
    ("settings", "variables", "default"),
    [
        (ClusterSettings(kubeconfig=Path("given")), {}, None),
        (ClusterSettings(context="given"), {}, None),
        (ClusterSettings(), {"KUBECONFIG": "given"}, None),
        (ClusterSettings(), {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
        (ClusterSettings(), {}, CONTEXT),
        (ClusterSettings(), {}, "{broken"),
    ],
    ids=["kubeconfig", "context", "variable", "pod", "default", "unreadable"],
)
def test_another_cluster_wins(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: ClusterSettings,
    variables: dict[str, str],
    default: str | None,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if default is not None:
        (home / ".kube").mkdir()
        (home / ".kube" / "config").write_text(default)
    assert find_local_cluster(settings) is None


@pytest.mark.parametrize("default", ["", "apiVersion: v1\nkind: Config\n", "contexts: null\n"])
def test_a_default_kubeconfig_without_contexts_names_no_cluster(home: Path, default: str) -> None:
    (home / ".kube").mkdir()
    (home / ".kube" / "config").write_text(default)
    assert find_local_cluster(ClusterSettings()) is not None
