"""Test the recipes of Go programs and the commands that build them. No test runs go."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from deploy.dev.cluster.builds import go_build, prepare
from deploy.dev.cluster.settings import Settings

# The keys of folders in the caches of users. A changed key makes every user build the product again.
KEYS = {
    "kubernetes": "v1.37.2-d6bb04e6d712",
    "etcd": "v3.7.3-7dfa29a45bd8",
    "containerd": "v2.4.2-884e70c45c6c",
    "runc": "v1.5.2-27a4415a886a",
    "helm": "v4.3.1-24357025cb5e",
}


def settings(cache: Path) -> Settings:
    return Settings("local", cache, "1.37.2", 3, "50Mi")


def test_the_caches_of_users_stay_valid() -> None:
    table = go_build.products("1.37.2")
    assert {name: table[name].key for name in KEYS} == KEYS


def test_one_command_builds_all_binaries_of_a_product(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run_logged(command: list[str | Path], log: Path, description: str, **_: Any) -> None:
        words = [str(word) for word in command]
        commands.append(words)
        output = words[words.index("-o") + 1]
        names = [word.rpartition("/")[2] for word in words[words.index("-o") + 2 :]] if output.endswith("/") else [""]
        for name in names:
            Path(output, name).write_text(description)
        assert log.parent.is_dir()

    monkeypatch.setattr(go_build, "run_logged", run_logged)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    go_build.build(settings(tmp_path), ["containerd", "etcd"])
    assert [command[:2] for command in commands] == [["go", "build"], ["go", "build"]]
    assert not go_build.missing(settings(tmp_path), ["containerd", "etcd"])
    assert {path.name for path in (tmp_path / "bin").glob("*/*")} == {
        "containerd",
        "containerd-shim-runc-v2",
        "ctr",
        "etcd",
    }
    go_build.build(settings(tmp_path), ["containerd", "etcd"])
    assert len(commands) == 2


def test_compilers_keep_their_garbage_within_the_memory_of_the_machine() -> None:
    environment = go_build.go_environment(go_build.products("1.37.2")["etcd"])
    assert environment["GOGC"] == "off"
    assert environment["GOMEMLIMIT"].endswith("MiB")
    assert int(environment["GOMEMLIMIT"].removesuffix("MiB")) > 100


def test_cluster_dns_is_built_with_the_plugins_that_corefiles_name(tmp_path: Path) -> None:
    recipe = go_build.products("1.37.2")["coredns"]
    go_build.write_module(recipe, tmp_path)
    main = (tmp_path / "main.go").read_text()
    for plugin in ("errors", "ready", "kubernetes", "forward", "loop", "cache"):
        assert f'_ "github.com/coredns/coredns/plugin/{plugin}"\n' in main
    assert recipe.package("coredns") == "."


def test_the_demo_builds_nothing_that_only_tests_need(tmp_path: Path) -> None:
    local = settings(tmp_path)
    names = [job.name for lane in (prepare.compiler_lane(local), prepare.other_lane(local)) for job in lane]
    assert [name for name in names if "kind" in name or "kwok" in name] == []
    assert set(go_build.NODE) | {"helm"} == {name.removeprefix("go build ") for name in names if "go build" in name}
    needs = {need for job in prepare.compiler_lane(local) for need in job.needs}
    assert needs <= {job.name for job in prepare.other_lane(local)}
