"""From a cloned repository, the agent copies only files that the commands created or changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from deploy.demo.source import git, serve_git
from tests.e2e import kube
from tests.e2e.lab import DEBIAN, Lab

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


def make_repository(folder: Path) -> None:
    """Create a repository with a few files and two commits, the first one tagged."""
    work = folder / "work"
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
    git(folder, "clone", "--quiet", "--bare", str(work), str(folder / "thing.git"))


@pytest.fixture(scope="module")
def lab_settings() -> dict[str, Any]:
    return {"policy": {"repository_schemes": ["https", "ssh", "git"]}}


@pytest.fixture(scope="module")
def reports(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Report]]:
    """Serve a repository over git and run all actions on clones of the repository."""
    folder = tmp_path_factory.mktemp("repositories")
    make_repository(folder)
    with serve_git(folder, kube.provider("address").splitlines()[-1]) as url:
        yield lab.run(actions(f"{url}/thing.git"))


def actions(url: str) -> dict[str, dict[str, Any]]:
    repo = {"url": url, "ref": "v1", "depth": 1}
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
