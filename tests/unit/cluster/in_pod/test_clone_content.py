"""What a clone contains, compared with what the real `git clone` makes of the same repository."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fakes.lfs_server import pointer
from tests.unit.cluster.in_pod.repositories import git, make_origin, run

if TYPE_CHECKING:
    from pathlib import Path

ATTRIBUTES = "*.bin filter=lfs diff=lfs merge=lfs -text\n"


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a repository with branches, with a ref of a pull request, and with a tag that no branch contains."""
    folder = make_origin(tmp_path_factory.mktemp("origin"))
    git(folder, "update-ref", "refs/pull/1/head", "feature/x")
    git(folder, "checkout", "-q", "--detach", "feature/x")
    git(folder, "commit", "-q", "--allow-empty", "-m", "released")
    git(folder, "tag", "-a", "it's-out", "-m", "a tag beside all branches")
    git(folder, "checkout", "-q", "main")
    git(folder, "commit", "-q", "--allow-empty", "-m", "third")
    return folder


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    return folder


def refs(folder: Path) -> list[str]:
    """Return all refs of a clone but its local branches, each with its object and its target if it is symbolic."""
    lines = git(folder, "for-each-ref", "--format=%(refname) %(objectname) %(symref)").splitlines()
    return [line for line in lines if not line.startswith("refs/heads/")]


@pytest.mark.parametrize("ref", ["", "main", "feature/x", "light", "refs/tags/it's-out", "refs/pull/1/head", "SHA"])
def test_a_whole_clone_has_the_refs_of_git_clone(origin: Path, workspace: Path, tmp_path: Path, ref: str) -> None:
    ref = git(origin, "rev-parse", "main~1") if ref == "SHA" else ref
    code, output, _ = run(f"file://{origin}", workspace, ref)
    assert code == 0, output
    git(tmp_path, "clone", "-q", f"file://{origin}", "usual")
    assert refs(workspace) == refs(tmp_path / "usual")
    assert git(workspace, "rev-parse", "HEAD") == git(origin, "rev-parse", f"{ref or 'HEAD'}^{{commit}}")


def test_versions_and_merge_bases_are_found_in_a_whole_clone(origin: Path, workspace: Path) -> None:
    assert run(f"file://{origin}", workspace, "feature/x")[0] == 0
    assert git(workspace, "describe").startswith("annotated-1-g")
    assert git(workspace, "merge-base", "origin/main", "HEAD") == git(origin, "rev-parse", "light")
    assert git(workspace, "rev-parse", "--abbrev-ref", "origin/HEAD") == "origin/main"


@pytest.mark.parametrize("ref", ["light", "annotated", "tags/annotated", "refs/tags/it's-out"])
def test_a_tag_that_was_asked_for_has_its_ref_in_a_clone_of_one_commit(origin: Path, workspace: Path, ref: str) -> None:
    assert run(f"file://{origin}", workspace, ref, depth=1)[0] == 0
    name = ref.rpartition("/")[2]
    assert refs(workspace) == [f"refs/tags/{name} {git(origin, 'rev-parse', f'refs/tags/{name}')}"]
    assert git(workspace, "describe", "--tags", "--exact-match") == name
    assert git(workspace, "rev-list", "--count", "HEAD") == "1"


def test_a_branch_that_was_asked_for_has_its_ref_in_a_clone_of_one_commit(origin: Path, workspace: Path) -> None:
    assert run(f"file://{origin}", workspace, "feature/x", depth=1)[0] == 0
    assert refs(workspace) == [f"refs/remotes/origin/feature/x {git(origin, 'rev-parse', 'feature/x')}"]


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("protocol", [0, 2])
def test_a_full_sha_that_no_ref_names(
    origin: Path, workspace: Path, tmp_path: Path, depth: int, protocol: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With version 0 of git's protocol, a git server refuses to serve a commit that no ref names.
    (tmp_path / "gitconfig").write_text(f"[protocol]\nversion = {protocol}\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    first = git(origin, "rev-parse", "main~1")
    code, output, _ = run(f"file://{origin}", workspace, first, depth=depth)
    assert code == 0, output
    assert git(workspace, "rev-parse", "HEAD") == first
    assert ("unadvertised object" in output) == (depth == 1 and protocol == 0)


def test_a_commit_beside_all_branches_and_tags_is_fetched_by_its_sha(origin: Path, workspace: Path) -> None:
    hidden = git(origin, "commit-tree", "-p", "main", "-m", "hidden", "main^{tree}")
    assert run(f"file://{origin}", workspace, hidden)[0] == 0
    assert git(workspace, "rev-parse", "HEAD") == hidden
    assert git(workspace, "describe", "--tags", "origin/main").startswith("annotated-2-g")


def test_a_repository_whose_head_names_no_branch_can_be_cloned(origin: Path, workspace: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--bare", f"file://{origin}", "bare")
    git(tmp_path / "bare", "symbolic-ref", "HEAD", "refs/heads/none")
    assert run(f"file://{tmp_path}/bare", workspace, "main")[0] == 0
    assert "refs/remotes/origin/HEAD" not in " ".join(refs(workspace))


@pytest.mark.parametrize(
    ("attributes", "content", "notice"),
    [
        (ATTRIBUTES, pointer(b"large"), True),
        (ATTRIBUTES, "a file that was never given to Git LFS", False),
        ("", pointer(b"large"), False),
    ],
)
def test_pointers_of_git_lfs_are_reported(
    workspace: Path, tmp_path: Path, attributes: str, content: str, notice: bool
) -> None:
    folder = tmp_path / "lfs"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "sub").mkdir()
    (folder / "sub" / "big.bin").write_text(content)
    git(folder, "add", "--all")
    (folder / ".gitattributes").write_text(attributes)
    git(folder, "add", ".gitattributes")
    git(folder, "commit", "-qm", "first")
    code, output, message = run(f"file://{folder}", workspace)
    assert code == 0, output
    assert ("has pointers in their place, such as 'sub/big.bin'. Set `lfs: true`" in message) == notice
    assert message in output
