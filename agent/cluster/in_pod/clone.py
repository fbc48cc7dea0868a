"""Clone one repository into the workspace: the program of the init container `repository`.

The program runs as `python3 -m agent.cluster.clone ORDER` in the agent's image and uses the standard library only. Its
output is the set-up log. The termination message is the reason if the clone fails, else a notice for the action's log.
Container `helper` gives the files to the user of the commands later. Credentials come from files, not from the URL, and
are never shown.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any
from urllib.parse import SplitResult, urlsplit

TERMINATION_LOG = pathlib.Path("/dev/termination-log")
SYSTEM_CERTIFICATES = pathlib.Path("/etc/ssl/certs/ca-certificates.crt")
# Git runs this program with a question that contains the URL. The program answers with the password only if scheme and
# host of the URL match. A file of the repository names the server of Git LFS, and may name the same host with http.
ASKPASS = """#!/bin/sh
folder=${0%/*}
read -r host <"$folder/host"
read -r scheme <"$folder/scheme"
case "$1" in
  *"'$scheme://$host': " | *"'$scheme://"*"@$host': ") ;;
  *) exit 1 ;;
esac
case "$1" in
  Username*) cat "$folder/credentials/username" 2>/dev/null || echo git ;;
  *) cat "$folder/credentials/password" ;;
esac
"""
SHA = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# A plus or a colon would make git read the ref as a refspec. The other characters make git read the ref as an
# expression.
NO_REF = re.compile(r"^\+|[ ~^:?*\[\\]")
# What `git clone` fetches. The pattern `HEAD*` matches only HEAD. Unlike the name HEAD, the pattern is no error if the
# server's HEAD names a branch that does not exist.
EVERYTHING = ("+refs/heads/*:refs/remotes/origin/*", "+HEAD*:refs/sealci/HEAD*")
LFS_SETTINGS = {
    "filter.lfs.clean": "git-lfs clean -- %f",
    "filter.lfs.smudge": "git-lfs smudge -- %f",
    "filter.lfs.process": "git-lfs filter-process",
    "filter.lfs.required": "true",
}
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# Maximum number of files that are opened in the search for a pointer of Git LFS.
LFS_SEARCHED = 1000


class CloneFailed(Exception):
    """The repository cannot be cloned. The message is a sentence for people."""


def main() -> int:
    """Clone the repository that the first argument, an order in JSON, describes. Return the exit code."""
    order = json.loads(sys.argv[1])
    # An agent of an older release gives no umask and does not change the owner of the files. Then every user of the
    # action's image must be able to write them.
    os.umask(order.get("umask", 0))
    # The kernel gives PID 1 no default action for TERM. Without this handler a cancelled clone would last the whole
    # grace period.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    try:
        with tempfile.TemporaryDirectory() as folder:
            clone(order, environment(order, pathlib.Path(folder)))
    except CloneFailed as failed:
        print(f"repository: {failed}", flush=True)  # noqa: T201 - this is the set-up log
        TERMINATION_LOG.write_text(str(failed)[:4000])
        return 1
    return 0


def clone(order: dict[str, Any], env: dict[str, str]) -> None:
    """Fetch the repository that `order` describes, and check out the ref of `order` or else the default branch."""
    url, ref, workspace = order["url"], order["ref"], order["workspace"]
    check(url, ref, order["schemes"])
    print(f"Cloning {without_credentials(url)}{f' at {ref}' if ref else ''}", flush=True)  # noqa: T201 - this is the set-up log

    def git(*arguments: str) -> str:
        return run(["git", "-C", workspace, *arguments], env, order["timeout"], url)

    git("init", "--quiet", ".")
    git("remote", "add", "origin", url)
    git("checkout", "--quiet", "--detach", fetch(git, order))
    if order["submodules"]:
        depth = [f"--depth={order['depth']}"] if order["depth"] else []
        git("submodule", "update", "--quiet", "--init", "--recursive", *depth)
    if order.get("lfs"):
        fetch_lfs_files(git, order)
    elif pointer := find_pointer(git, pathlib.Path(workspace)):
        notice = (
            "The repository keeps files in Git LFS, and the clone has pointers in their place, such as"
            f" {pointer[:200]!r}. Set `lfs: true` for the repository to fetch the files."
        )
        print(notice, flush=True)  # noqa: T201 - this is the set-up log
        # The agent writes the termination message into the log of the action.
        TERMINATION_LOG.write_text(notice)
    print(f"Checked out {git('log', '-1', '--format=%H %s').strip()}", flush=True)  # noqa: T201 - set-up log


def fetch(git: Callable[..., str], order: dict[str, Any]) -> str:
    """Fetch the ref that `order` names, and with depth 0 all branches and tags. Return the revision to check out."""
    ref: str = order["ref"]
    depth: int = order["depth"]
    if SHA.fullmatch(ref):
        fetch_commit(git, ref, depth)
        return ref
    if depth:
        git("fetch", "--quiet", f"--depth={depth}", "origin", "--", ref or "HEAD")
    else:
        # The first line of FETCH_HEAD, which `git checkout FETCH_HEAD` reads, is about the first refspec.
        git("fetch", "--quiet", "--tags", "origin", "--", ref or "HEAD", *EVERYTHING)
        name_default_branch(git)
    revision, _, source = pathlib.Path(order["workspace"], ".git", "FETCH_HEAD").read_text().partition("\t")
    tag = ref.removeprefix("refs/").removeprefix("tags/")
    if source.startswith(f"\ttag '{tag}' of "):
        git("update-ref", f"refs/tags/{tag}", revision)
    return revision


def fetch_commit(git: Callable[..., str], commit: str, depth: int) -> None:
    """Fetch a commit by its full hash, and with depth 0 all branches and tags."""
    if depth:
        try:
            git("fetch", "--quiet", f"--depth={depth}", "origin", "--", commit)
            return
        except CloneFailed:
            # A server may refuse to serve a commit that no ref names. One of the branches or tags may contain the
            # commit.
            git("fetch", "--quiet", "--tags", "origin", "--", *EVERYTHING)
    else:
        git("fetch", "--quiet", "--tags", "origin", "--", *EVERYTHING)
    name_default_branch(git)
    if not has_commit(git, commit):
        git("fetch", "--quiet", "origin", "--", commit)


def has_commit(git: Callable[..., str], commit: str) -> bool:
    # This command prints nothing and does not fail if the object does not exist.
    return bool(git("rev-list", "--ignore-missing", "--no-walk", commit))


def name_default_branch(git: Callable[..., str]) -> None:
    """Make the symbolic ref origin/HEAD point to the server's default branch, as `git clone` does.

    The fetch wrote the commit of the server's HEAD to refs/sealci/HEAD. If several branches are at this commit, this
    function prefers main, then master.
    """
    names = ("--format=%(objectname) %(refname)", "refs/remotes/origin", "refs/sealci/HEAD")
    lines = (line.partition(" ") for line in git("for-each-ref", *names).splitlines())
    commits = {name: commit for commit, _, name in lines}
    head = commits.pop("refs/sealci/HEAD", "")
    if not head:
        return
    git("update-ref", "-d", "refs/sealci/HEAD")
    branches = [name for name, commit in commits.items() if commit == head]
    usual = [f"refs/remotes/origin/{name}" for name in ("main", "master")]
    if branches:
        default = next((name for name in usual if name in branches), branches[0])
        git("symbolic-ref", "refs/remotes/origin/HEAD", default)


def fetch_lfs_files(git: Callable[..., str], order: dict[str, Any]) -> None:
    """Fetch the files of Git LFS, also those of submodules.

    The image of the action may have no git-lfs. Its git would then compare a large file with the pointer in the index,
    and report a change. So git must have no reason to compare the content: it compares neither owner nor ctime, and the
    index is newer than all files.
    """
    git("config", "core.checkStat", "minimal")
    git("lfs", "pull")
    if order["submodules"]:
        git("submodule", "foreach", "--quiet", "--recursive", "git lfs pull")
    index = pathlib.Path(order["workspace"], ".git", "index")
    newer = index.stat().st_mtime + 1
    os.utime(index, (newer, newer))


def find_pointer(git: Callable[..., str], workspace: pathlib.Path) -> str:
    """Return the path of a file that is a pointer of Git LFS, "" if there is none."""
    for name in git("ls-files", "-z", "--", ":(attr:filter=lfs)").split("\0")[:LFS_SEARCHED]:
        path = workspace / name
        if name and path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(len(LFS_POINTER)) == LFS_POINTER:
                    return name
    return ""


def check(url: str, ref: str, schemes: list[str]) -> None:
    """Check that git cannot read the URL or the ref as an option, another transport or a refspec.

    Raises:
        CloneFailed: the URL or the ref is refused.
    """
    scheme = scheme_of(url)
    if scheme not in schemes:
        raise CloneFailed(f"the scheme of {without_credentials(url)} is not allowed; allowed: {', '.join(schemes)}")
    if url.startswith("-") or ref.startswith("-") or any(ord(letter) < 32 for letter in url + ref):
        raise CloneFailed("url and ref must not start with a dash nor hold control characters")
    if NO_REF.search(ref):
        raise CloneFailed(f"{ref!r} is not the name of a branch, a tag or a commit")


def scheme_of(url: str) -> str:
    """Return the scheme of a URL in lower case, "ssh" for the form user@host:path, "" if there is none."""
    if "://" not in url:
        return "ssh" if re.fullmatch(r"[A-Za-z0-9_.-]+@[A-Za-z0-9.-]+:[^:].*", url) else ""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", url)
    return match[1].lower() if match else ""


def without_credentials(text: str) -> str:
    """Return a text with the credentials removed from all URLs."""
    return re.sub(r"(\w+://)[^/\s]*@", r"\1", text)


def environment(order: dict[str, Any], folder: pathlib.Path) -> dict[str, str]:
    """Return the environment variables for git: no prompts, only the allowed transports, credentials from files.

    Raises:
        CloneFailed: the Secret with the credentials is missing or empty.
    """
    settings = {"safe.directory": "*", "init.defaultBranch": "main", "advice.detachedHead": "false"}
    env = dict(os.environ)
    if order.get("lfs"):
        # git-lfs installs hooks, which would fail in an image without git-lfs. So they go to the temporary folder.
        settings |= LFS_SETTINGS | {"core.hooksPath": str(folder / "hooks")}
        # `git lfs pull` fetches many files at once. The checkout would fetch one file after the other.
        env["GIT_LFS_SKIP_SMUDGE"] = "1"
    for number, (name, value) in enumerate(settings.items()):
        env |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    env |= {
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": ":".join(order["schemes"]),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_COUNT": str(len(settings)),
        "HOME": str(folder),
        "LC_ALL": "C.UTF-8",
        **installer_files(order, folder),
    }
    ssh = "ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new"
    if order["credentials"]:
        given = pathlib.Path(order["credentials"])
        if not any((given / name).exists() for name in ("ssh-privatekey", "password")):
            raise CloneFailed(f"the Secret {order['secret']} is missing, or has neither password nor ssh-privatekey")
        key = given / "ssh-privatekey"
        if key.exists():
            # ssh refuses a key file that others can read, and the mounted file is readable by the group.
            private = folder / "key"
            private.touch(mode=0o600)
            private.write_bytes(key.read_bytes())
            ssh += f" -i {private} -o IdentitiesOnly=yes"
        if (given / "known_hosts").exists():
            ssh = ssh.replace("accept-new", f"yes -o UserKnownHostsFile={given / 'known_hosts'}")
        if (given / "password").exists():
            env["GIT_ASKPASS"] = str(write_askpass(given, folder, urlsplit(order["url"])))
    env["GIT_SSH_COMMAND"] = ssh
    return env


def installer_files(order: dict[str, Any], folder: pathlib.Path) -> dict[str, str]:
    """Write the installer's git configuration and certificates. Return the variables by which git finds them."""
    found = {}
    # An agent of an older release gives neither text.
    if settings := order.get("git_config"):
        (folder / "gitconfig").write_text(settings, "utf-8")
        found["GIT_CONFIG_GLOBAL"] = str(folder / "gitconfig")
    if certificates := order.get("git_ca"):
        # git trusts only the certificates of this one file, so the file also has those of the image.
        known = SYSTEM_CERTIFICATES.read_text("utf-8") if SYSTEM_CERTIFICATES.exists() else ""
        (folder / "ca.pem").write_text(f"{known}\n{certificates}", "utf-8")
        found["GIT_SSL_CAINFO"] = str(folder / "ca.pem")
    return found


def write_askpass(given: pathlib.Path, folder: pathlib.Path, url: SplitResult) -> pathlib.Path:
    """Write the program that answers git's credential prompts for one host, from the mounted Secret. Return its path.

    A redirection, a submodule or the address of LFS files may lead git to another host, which must not receive the
    credentials.
    """
    program = folder / "askpass"
    program.write_text(ASKPASS)
    program.chmod(0o700)
    (folder / "host").write_text(f"{url.netloc}\n")
    (folder / "scheme").write_text(f"{url.scheme}\n")
    (folder / "credentials").symlink_to(given)
    return program


def failure_reason(output: str) -> str:
    """Return the lines of git's output that give the reason, without the advice that follows them."""
    lines = output.splitlines()
    reasons = [line for line in lines if line.startswith(("fatal: ", "error: ", "remote: "))]
    return " ".join((reasons or lines)[:4])


def run(command: list[str], env: dict[str, str], timeout: float, url: str) -> str:
    """Run git, copy its messages to the set-up log, and return its standard output. `timeout` is in seconds.

    Raises:
        CloneFailed: git failed or took too long. The message has git's own reason, without credentials.
    """
    try:
        done = subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise CloneFailed(f"{without_credentials(url)}: not done within {timeout:g} s") from error
    messages = without_credentials(done.stderr.decode("utf-8", "replace")).strip()
    if messages:
        print(messages, flush=True)  # noqa: T201 - this is the set-up log
    if done.returncode:
        raise CloneFailed(
            f"{without_credentials(url)}: {failure_reason(messages) or f'git ended with {done.returncode}'}"
        )
    return done.stdout.decode("utf-8", "replace")


if __name__ == "__main__":
    sys.exit(main())
