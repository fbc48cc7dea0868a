"""Real git repositories, and the clone program that clones them, for the tests of the clone program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def git(folder: Path, *arguments: str) -> str:
    """Run git in `folder` with a test author and without this machine's git settings. Return the output."""
    me = ["-c", "user.name=me", "-c", "user.email=me@example.org", "-c", "init.defaultBranch=main"]
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1", "GIT_ALLOW_PROTOCOL": "file"}
    done = subprocess.run(["git", "-C", str(folder), *me, *arguments], capture_output=True, check=True, env=env)
    return done.stdout.decode().strip()


def make_origin(root: Path) -> Path:
    """Make a repository with two commits on main, a branch, tags, and a submodule. Return its folder."""
    inner, outer = root / "inner", root / "outer"
    for folder in (inner, outer):
        folder.mkdir()
        git(folder, "init", "-q")
        (folder / "file").write_text("one\n")
        git(folder, "add", "file")
        git(folder, "commit", "-qm", "first")
    git(outer, "tag", "light")
    git(outer, "tag", "-a", "annotated", "-m", "a tag")
    git(outer, "checkout", "-qb", "feature/x")
    (outer / "file").write_text("feature\n")
    git(outer, "commit", "-qam", "on a branch")
    git(outer, "checkout", "-q", "main")
    git(outer, "submodule", "add", "-q", str(inner), "inner")
    (outer / "file").write_text("two\n")
    git(outer, "commit", "-qam", "second")
    git(outer, "update-server-info")
    return outer


def run(url: str, workspace: Path, ref: str = "", **order: Any) -> tuple[int, str, str]:
    """Run the clone program as container `repository` does.

    `order` replaces fields of the JSON object that the program gets. Returns the program's exit code, output and
    termination message.
    """
    whole = {
        "url": url,
        "ref": ref,
        "depth": 0,
        "submodules": False,
        "schemes": ["file"],
        "workspace": str(workspace),
        "credentials": "",
        "timeout": 30.0,
    }
    message = workspace.parent / "message"
    program = (
        "import pathlib, sys; from agent.cluster.in_pod import clone; "
        "clone.TERMINATION_LOG = pathlib.Path(sys.argv.pop()); sys.exit(clone.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(whole | order), str(message)],
        capture_output=True,
        timeout=50,
        check=False,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(sys.path),
            "GIT_CONFIG_GLOBAL": os.environ.get("GIT_CONFIG_GLOBAL", os.devnull),
            "no_proxy": "*",
        },
    )
    output = done.stdout.decode() + done.stderr.decode()
    assert "Traceback" not in output, output
    return done.returncode, output, message.read_text() if message.exists() else ""
