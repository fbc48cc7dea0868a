"""Test settings, configurations, manifests and command lines of deploy.dev.cluster. No cluster runs."""

from __future__ import annotations

import json
import subprocess
import tarfile
import tomllib
from pathlib import Path

import pytest
import yaml

from deploy.dev.cluster import kube_api
from deploy.dev.cluster import settings as configuration
from deploy.dev.cluster.builds import debian, docker_archive, go_build
from deploy.dev.cluster.console import CommandFailed
from deploy.dev.cluster.engines import machine, node_image, offline, podman
from deploy.dev.cluster.node import cgroups, namespaces
from deploy.dev.cluster.providers import kind
from deploy.dev.cluster.settings import Settings

MANIFEST = """apiVersion: v1
kind: Pod
spec:
  containers:
  - command:
    - kube-scheduler
    - --bind-address=127.0.0.1
    - --leader-elect=true
    image: kube-scheduler:v1
    env:
    - name: X
      value: --y
"""
# The cache of the settings in these tests. The folder does not exist, so a test that reads or writes the disk fails.
NO_CACHE = Path("/nowhere")


def settings(provider: str = "kind-offline", number: int = 3, version: str = "1.37.2") -> Settings:
    return Settings(provider, NO_CACHE, version, number, "50Mi")


# ---- settings


@pytest.mark.parametrize(
    ("cluster", "engine", "provider"),
    [
        (None, "docker", "kind"),
        (None, "podman", "local"),
        (None, "", "local"),
        ("kind", "podman", "kind"),
        ("kind-offline", "", "kind-offline"),
    ],
)
def test_cluster_or_the_engine_selects_the_provider(
    cluster: str | None, engine: str, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CLUSTER", raising=False)
    if cluster:
        monkeypatch.setenv("CLUSTER", cluster)
    assert configuration.read(lambda: engine).provider == provider


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        ("kind", "neither answers on this machine\\. Set CLUSTER=local or CLUSTER=kind-offline"),
        ("k3d", "is not one of"),
    ],
)
def test_an_impossible_provider_is_refused(cluster: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER", cluster)
    with pytest.raises(CommandFailed, match=words):
        configuration.read(lambda: "")


def test_a_running_cluster_refuses_another_provider(tmp_path: Path) -> None:
    made = Settings("local", tmp_path, "1.37.2", 0, "50Mi")
    made.folder.mkdir(parents=True)
    (made.folder / "settings.json").write_text(json.dumps(made.creation_settings))
    namespaces.refuse_other_settings(made)
    with pytest.raises(CommandFailed, match="was created with CLUSTER=local"):
        namespaces.refuse_other_settings(Settings("kind-offline", tmp_path, "1.37.2", 0, "50Mi"))


# ---- configuration and environment of kind


def test_the_offline_config_has_the_addresses_of_the_cluster() -> None:
    config = yaml.safe_load(offline.offline_config(kind.CONFIG.read_text(), settings(number=3)))
    assert config["networking"] == {
        "ipFamily": "ipv4",
        "apiServerAddress": "10.200.3.2",
        "apiServerPort": 6443,
        "podSubnet": "10.247.0.0/16",
        "serviceSubnet": "10.99.0.0/16",
        "disableDefaultCNI": True,
        "kubeProxyMode": "nftables",
    }
    (node,) = config["nodes"]
    assert node["role"] == "control-plane"
    assert node["extraMounts"] == [
        {"hostPath": "/nowhere/run/3/cni", "containerPath": "/etc/cni/net.d", "readOnly": True}
    ]
    kubelet = yaml.safe_load(config["kubeadmConfigPatches"][0])
    assert kubelet["cgroupDriver"] == "cgroupfs"
    assert kubelet["containerLogMaxSize"] == "50Mi"
    assert kind.LOG_MAX_SIZE in kind.CONFIG.read_text()


def test_docker_uses_the_config_of_the_repository_unchanged() -> None:
    assert machine.Machine(settings("kind")).config("text") == "text"


def test_environment_variables_name_the_cluster() -> None:
    command = machine.Machine(settings("kind", 4)).command(["kind", "delete", "cluster"])
    assert command[0] == "env"
    assert "KIND_CLUSTER_NAME=sealci-4" in command
    assert command[-3:] == ["kind", "delete", "cluster"]


# ---- components of a node


def test_flags_are_added_after_the_flags_of_the_manifest() -> None:
    changed = kind.with_flags(MANIFEST, "kube-scheduler", ["--leader-elect=false", "--v=4"])
    (container,) = yaml.safe_load(changed)["spec"]["containers"]
    own = yaml.safe_load(MANIFEST)["spec"]["containers"][0]
    assert container["command"] == [*own["command"], "--leader-elect=false", "--v=4"]
    assert container["env"] == own["env"]


def test_a_manifest_without_new_flags_is_unchanged() -> None:
    assert kind.with_flags(MANIFEST, "kube-scheduler", ()) == MANIFEST


def test_only_static_pods_have_a_manifest_to_stop() -> None:
    assert kind.static_pod("controller-manager") == "kube-controller-manager"
    with pytest.raises(
        CommandFailed, match=r"cannot stop kube-proxy on a node of kind\. Possible are kubelet, containerd, etcd"
    ):
        kind.static_pod("kube-proxy")


def test_a_running_component_is_found_by_the_first_word_of_its_command_line(tmp_path: Path) -> None:
    """The test runs the shell script that finds the processes of running components.

    A fake `pgrep` searches the command lines in `lines`.
    """
    lines = [
        "/usr/bin/kubelet --config=x",
        "kube-apiserver --a",
        "/usr/local/bin/containerd-shim-runc-v2 -id containerd",
    ]
    lines += ["sh -c etcd", "kube-scheduler"]
    (tmp_path / "lines").write_text("\n".join(lines) + "\n")
    program = tmp_path / "pgrep"
    program.write_text(f'#!/bin/sh\nexec grep -E "$2" {tmp_path}/lines\n')
    program.chmod(0o755)
    command = ["sh", "-c", kind.RUNNING, "sh", *kind.PROGRAMS.values()]
    done = subprocess.run(
        command, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=True, timeout=10
    )
    assert done.stdout.split() == ["kubelet", "kube-apiserver", "kube-scheduler"]


def test_the_kubelet_s_uid_of_a_static_pod_is_in_the_annotation_of_its_mirror() -> None:
    mirror = {"metadata": {"uid": "of-the-mirror", "annotations": {"kubernetes.io/config.mirror": "of-the-file"}}}
    plain = {"metadata": {"uid": "plain"}}
    assert kube_api.kubelet_uids({"items": [mirror, plain]}) == {"of-the-file", "plain"}
    assert kube_api.kubelet_uids({"items": None}) == set()


# ---- node image and podman


def test_the_name_of_the_node_image_s_store_depends_on_its_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = node_image.store(settings(version="1.34.4")), node_image.store(settings())
    assert old.name.startswith("node-1.34.4-")
    assert old.name.rsplit("-", 1)[1] != new.name.rsplit("-", 1)[1]
    assert node_image.store(settings(number=1)) == new
    monkeypatch.setattr(debian, "ROOT_VERSION", "other")
    assert node_image.store(settings()) != new


def test_every_program_of_the_node_image_is_built() -> None:
    built = {name for product in go_build.KIND_NODE for name in go_build.products("1.37.2")[product].binaries}
    wanted = {*node_image.KUBERNETES, *node_image.CONTAINERD, *node_image.CONTROL_PLANE, "kube-proxy", "runc", "kind"}
    assert wanted <= built


@pytest.mark.parametrize(
    ("image", "program"),
    [
        ("host/kube-proxy:v1.37.2", "kube-proxy"),
        ("host:5000/coredns/coredns:v1", "coredns"),
        ("host/pause:3.10", "pause"),
    ],
)
def test_the_program_is_the_last_part_of_a_control_plane_image_s_name(image: str, program: str) -> None:
    assert node_image.program_of(image) == program


def test_a_docker_archive_contains_files_and_links(tmp_path: Path) -> None:
    (tmp_path / "nft").write_bytes(b"program")
    archive = tmp_path / "image.tar"
    docker_archive.write_archive(
        archive, "localhost/x:1", {"usr/sbin/nft": tmp_path / "nft", "bin/n": "../nft"}, ["/n"]
    )
    with tarfile.open(archive) as outer:
        (manifest,) = json.load(outer.extractfile("manifest.json"))  # type: ignore[arg-type]
        config = json.load(outer.extractfile(manifest["Config"]))  # type: ignore[arg-type]
        with tarfile.open(fileobj=outer.extractfile(manifest["Layers"][0])) as layer:
            assert {each.name: (each.linkname, each.size, each.mode) for each in layer} == {
                "usr/sbin/nft": ("", 7, 0o755),
                "bin/n": ("../nft", 0, 0o755),
            }
    assert manifest["RepoTags"] == ["localhost/x:1"]
    assert config["config"]["Entrypoint"] == ["/n"]
    assert [each.name for each in tmp_path.iterdir() if each.suffix == ".partial"] == []


def test_podman_is_configured_with_own_storage_runtime_and_networks() -> None:
    storage = tomllib.loads(podman.storage_toml(Path("/a"), Path("/b")))["storage"]
    assert (storage["graphroot"], storage["options"]["additionalimagestores"]) == ("/a", ["/b"])
    text = podman.containers_toml(Path("/unpacked"), Path("/runc"), Path("/f"))
    config = tomllib.loads(text)
    assert config["engine"]["cgroup_manager"] == "cgroupfs"
    assert config["engine"]["runtimes"] == {"runc": ["/runc"]}
    assert config["network"]["network_config_dir"] == "/f/networks"


def test_the_shell_joins_the_cgroups_before_the_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [tmp_path / "cpu", tmp_path / "memory"]
    for group in groups:
        group.mkdir()
    monkeypatch.setattr(cgroups, "of_cluster", lambda _: groups)
    command = namespaces.in_cgroups(settings(), ["sh", "-c", 'echo $$ "$@"', "sh", "a b", "--"])
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    pid, _, words = done.stdout.strip().partition(" ")
    assert words == "a b --"
    assert [(group / "cgroup.procs").read_text().strip() for group in groups] == [pid, pid]
