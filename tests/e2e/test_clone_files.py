"""From a cloned repository, the agent copies only files that the commands created or changed."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from deploy.demo import source
from deploy.demo.source import git, serve_git
from tests.e2e import kube
from tests.e2e.lab import DEBIAN, Lab
from tests.fakes.lfs_server import pointer, serve_lfs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.submission import Report

CHANGES = """
echo more >> changed
cp -p same-size /tmp/reference && printf 'SAME' > same-size && touch -r /tmp/reference same-size
chmod +x mode
mv moved to-here
rm removed
echo new > sub/new
cp -p kept copy
cat kept sub/kept > /dev/null
"""


# Python packages that the test commits to the repository as wheels, because the action cannot reach a package index.
VERSION_TOOLS = ("setuptools-scm==8.3.1", "packaging==25.0")
VERSIONS = """
git describe --tags
git merge-base origin/main HEAD origin/HEAD v1 | sort -u | wc -l
PYTHONPATH=$(echo wheels/*.whl | tr ' ' :) python3 -m setuptools_scm 2>/dev/null
"""
MODES = "stat -c '%u %g %a %n' . .git changed sub/kept; echo; find . -perm -2 ! -type l"
LARGE = b"large" * 3000


def make_repository(folder: Path) -> None:
    """Create a git repository with a few files and two commits. The first commit has the tag `v1`."""
    work = folder / "work"
    work.mkdir()
    wheels = source.cache() / "version-tools"
    if not wheels.exists():
        source.pip("download", "--no-deps", *VERSION_TOOLS, into=wheels)
    shutil.copytree(wheels, work / "wheels")
    (work / "sub").mkdir(parents=True)
    for name in ("changed", "same-size", "mode", "moved", "removed", "kept", "sub/kept"):
        (work / name).write_text("same" if name == "same-size" else f"{name}\n")
    git(folder, "init", "--quiet", "--initial-branch=main", str(work))
    git(work, "add", "--all")
    git(work, "commit", "--quiet", "--message", "first")
    git(work, "tag", "v1")
    (work / "later").write_text("later\n")
    git(work, "add", "--all")
    git(work, "commit", "--quiet", "--message", "second")
    git(work, "branch", "side", "v1")
    git(folder, "clone", "--quiet", "--bare", str(work), str(folder / "thing.git"))


def make_lfs_repository(folder: Path) -> None:
    """Create a repository with a file of Git LFS, to be served over HTTP."""
    work, bare = folder / "lfs", folder / "lfs.git"
    work.mkdir()
    (work / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")
    (work / "big.bin").write_text(pointer(LARGE))
    git(folder, "init", "--quiet", "--initial-branch=main", str(work))
    git(work, "add", "--all")
    git(work, "commit", "--quiet", "--message", "first")
    git(work, "tag", "v1")
    git(folder, "clone", "--quiet", "--bare", str(work), str(bare))
    git(bare, "update-server-info")


@pytest.fixture(scope="module")
def lab_settings() -> dict[str, Any]:
    return {"policy": {"repository_schemes": ["https", "ssh", "git", "http"], "credentials": {"lfs-server": ["*"]}}}


@pytest.fixture(scope="module")
def reports(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Report]]:
    """Serve one repository over git:// and another with Git LFS files over HTTP. Run all actions on clones of them."""
    folder = tmp_path_factory.mktemp("repositories")
    make_repository(folder)
    make_lfs_repository(folder)
    password = "hunter2-hunter2"
    secret = ("create", "secret", "generic", "lfs-server", f"--from-literal=password={password}")
    kube.kubectl("--namespace", lab.namespace, *secret)
    address = kube.provider("address").splitlines()[-1]
    with serve_git(folder, address) as url, serve_lfs(folder, LARGE, address=address, password=password) as server:
        yield lab.run(actions(f"{url}/thing.git", f"{server.url}/lfs.git"))


def actions(url: str, lfs_url: str) -> dict[str, dict[str, Any]]:
    repo = {"url": url, "ref": "v1", "depth": 1}
    lfs = {"url": lfs_url, "credentials": "lfs-server"}
    nonroot = "localhost/sealci-test/nonroot:1"
    return {
        "changes": {"image": DEBIAN, "commands": [CHANGES], "repo": repo},
        "untouched": {"image": DEBIAN, "commands": ["git log --format=%s", "ls"], "repo": repo},
        "head": {"image": DEBIAN, "commands": ["cat later"], "repo": {"url": url}},
        "declared": {"image": DEBIAN, "commands": ["true"], "repo": repo, "artifacts": {"paths": ["sub"]}},
        "commit": {
            "image": DEBIAN,
            "commands": [
                "echo more >> changed",
                "git -c user.name=me -c user.email=me@localhost commit --quiet --all --message mine",
                "git log --format=%s -1",
            ],
            "repo": repo,
        },
        "non-root": {"image": nonroot, "commands": ["echo more >> changed; echo new > sub/new"], "repo": repo},
        "versions": {"image": DEBIAN, "artifacts": "none", "commands": [VERSIONS], "repo": {"url": url, "ref": "side"}},
        "modes": {"image": DEBIAN, "artifacts": "none", "commands": [MODES], "repo": repo},
        "modes-non-root": {"image": nonroot, "artifacts": "none", "commands": [MODES], "repo": repo},
        "git-settings": {
            "image": DEBIAN,
            "artifacts": "none",
            "commands": ["chown -R 1234 .", "git config user.name", "git log --format=%s"],
            "env": {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "user.name", "GIT_CONFIG_VALUE_0": "mine"},
            "repo": repo,
        },
        "lfs": {
            "image": DEBIAN,
            "artifacts": "none",
            "commands": ["wc -c < big.bin", "git status --short", "git describe --tags --dirty", "ls .git/hooks"],
            "repo": lfs | {"lfs": True},
        },
        "lfs-non-root": {
            "image": nonroot,
            "artifacts": "none",
            "commands": ["wc -c < big.bin"],
            "repo": lfs | {"lfs": True},
        },
        "lfs-pointers": {"image": DEBIAN, "artifacts": "none", "commands": ["wc -c < big.bin"], "repo": lfs},
    }


def test_only_changed_files_are_sent(reports: dict[str, Report]) -> None:
    report = reports["changes"]
    assert report.outcome == ("succeeded", None, 0), report
    assert {path: file.read_text() for path, file in report.files.items()} == {
        "changed": "changed\nmore\n",
        "same-size": "SAME",
        "mode": "mode\n",
        "to-here": "moved\n",
        "sub/new": "new\n",
        "copy": "kept\n",
    }
    assert report.files["mode"].stat().st_mode & 0o111


def test_nothing_of_an_untouched_clone_is_sent(reports: dict[str, Report]) -> None:
    report = reports["untouched"]
    assert report.outcome == ("succeeded", None, 0), report
    assert report.files == {}
    assert report.text.splitlines()[:1] == ["first"]
    assert "later" not in report.text


def test_without_a_ref_the_head_is_cloned(reports: dict[str, Report]) -> None:
    assert reports["head"].outcome == ("succeeded", None, 0), reports["head"]
    assert reports["head"].text.splitlines()[:1] == ["later"]


def test_declared_files_are_sent_even_if_they_are_unchanged(reports: dict[str, Report]) -> None:
    assert reports["declared"].outcome == ("succeeded", None, 0), reports["declared"]
    assert set(reports["declared"].files) == {"sub/kept"}


def test_git_works_in_the_clone(reports: dict[str, Report]) -> None:
    report = reports["commit"]
    assert report.outcome == ("succeeded", None, 0), report
    assert report.text.splitlines()[:1] == ["mine"]
    assert set(report.files) == {"changed"}


def test_a_user_without_rights_can_change_the_clone(reports: dict[str, Report]) -> None:
    report = reports["non-root"]
    assert report.outcome == ("succeeded", None, 0), report
    assert set(report.files) == {"changed", "sub/new"}


def test_versions_and_merge_bases_are_found_in_a_whole_clone(reports: dict[str, Report]) -> None:
    report = reports["versions"]
    assert report.outcome == ("succeeded", None, 0), report
    assert report.text.splitlines() == ["v1", "1", "1"]


@pytest.mark.parametrize(("name", "user"), [("modes", 0), ("modes-non-root", 1000)])
def test_the_clone_belongs_to_the_user_and_only_that_user_can_write(
    reports: dict[str, Report], name: str, user: int
) -> None:
    """Ansible and ssh refuse files that every user can write. Ansible also refuses folders of this kind."""
    report = reports[name]
    assert report.outcome == ("succeeded", None, 0), report
    owners, _, writable = report.text.partition("\n\n")
    expected = [("755", "."), ("755", ".git"), ("644", "changed"), ("644", "sub/kept")]
    assert owners.splitlines() == [f"{user} {user} {mode} {path}" for mode, path in expected]
    assert writable == ""


def test_git_settings_of_the_user_work_beside_that_of_the_agent(reports: dict[str, Report]) -> None:
    report = reports["git-settings"]
    assert report.outcome == ("succeeded", None, 0), report
    assert report.text.splitlines() == ["mine", "first"]


@pytest.mark.parametrize("name", ["lfs", "lfs-non-root"])
def test_files_of_git_lfs_are_fetched(reports: dict[str, Report], name: str) -> None:
    """The image of the action has no git-lfs. Even so, `git status` in the action shows no changed file."""
    report = reports[name]
    assert report.outcome == ("succeeded", None, 0), report
    lines = report.text.splitlines()
    assert int(lines[0]) == len(LARGE)
    assert [line for line in lines[1:] if not line.endswith(".sample")] == (["v1"] if name == "lfs" else [])


def test_a_clone_with_pointers_has_a_notice(reports: dict[str, Report]) -> None:
    report = reports["lfs-pointers"]
    assert report.outcome == ("succeeded", None, 0), report
    notice, size = report.text.splitlines()
    assert notice.startswith("The repository keeps files in Git LFS")
    assert int(size) == len(pointer(LARGE))
