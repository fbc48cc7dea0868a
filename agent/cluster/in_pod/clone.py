"""Clone one repository into the workspace: the program of the init container `repository`.

The program runs as `python3 -m agent.cluster.clone ORDER` in the agent's image and uses the standard library only. Its
output is the set-up log. If the clone fails, the reason is the termination message. Files are created with umask 0, so
that any user of the action's image can write them. Credentials come from files, not from the URL, and are never shown.
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
from typing import Any
from urllib.parse import urlsplit

TERMINATION_LOG = pathlib.Path("/dev/termination-log")
ASKPASS = """#!/bin/sh
folder=${0%/*}
read -r host <"$folder/host"
case "$1" in *"//$host': " | *"@$host': ") ;; *) exit 1 ;; esac
case "$1" in
  Username*) cat "$folder/credentials/username" 2>/dev/null || echo git ;;
  *) cat "$folder/credentials/password" ;;
esac
"""
SHA = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# A plus or a colon would make git read the ref as a refspec. The other characters make git read the ref as an
# expression.
NO_REF = re.compile(r"^\+|[ ~^:?*\[\\]")


class CloneFailed(Exception):
    """The repository cannot be cloned. The message is a sentence for people."""


def main() -> int:
    """Clone the repository that the first argument, an order in JSON, describes. Return the exit code."""
    order = json.loads(sys.argv[1])
    os.umask(0)
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
    """Fetch the ref of the order, or the default branch, and check it out."""
    url, ref, workspace = order["url"], order["ref"], order["workspace"]
    check(url, ref, order["schemes"])
    print(f"Cloning {without_credentials(url)}{f' at {ref}' if ref else ''}", flush=True)  # noqa: T201 - this is the set-up log
    depth = [f"--depth={order['depth']}"] if order["depth"] else []

    def git(*arguments: str) -> str:
        return run(["git", "-C", workspace, *arguments], env, order["timeout"], url)

    git("init", "--quiet", ".")
    git("remote", "add", "origin", url)
    wanted = ref or "HEAD"
    try:
        git("fetch", "--quiet", *depth, "origin", "--", wanted)
    except CloneFailed:
        if not SHA.fullmatch(ref):
            raise
        # A server may refuse to serve a commit that no ref names. Fetch all branches and tags, then look for the
        # commit.
        git("fetch", "--quiet", "--tags", "origin", "+refs/heads/*:refs/remotes/origin/*")
        git("checkout", "--quiet", "--detach", ref)
    else:
        git("checkout", "--quiet", "--detach", "FETCH_HEAD")
    if order["submodules"]:
        git("submodule", "update", "--quiet", "--init", "--recursive", *depth)
    print(f"Checked out {git('log', '-1', '--format=%H %s').strip()}", flush=True)  # noqa: T201 - set-up log


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
    env = dict(os.environ)
    env |= {
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": ":".join(order["schemes"]),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_COUNT": "3",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
        "GIT_CONFIG_KEY_1": "init.defaultBranch",
        "GIT_CONFIG_VALUE_1": "main",
        "GIT_CONFIG_KEY_2": "advice.detachedHead",
        "GIT_CONFIG_VALUE_2": "false",
        "HOME": str(folder),
        "LC_ALL": "C.UTF-8",
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
            env["GIT_ASKPASS"] = str(write_askpass(given, folder, urlsplit(order["url"]).netloc))
    env["GIT_SSH_COMMAND"] = ssh
    return env


def write_askpass(given: pathlib.Path, folder: pathlib.Path, host: str) -> pathlib.Path:
    """Write the program that answers git's credential prompts for one host, from the mounted Secret. Return its path.

    A redirection or a submodule may lead git to another host, which must not receive the credentials.
    """
    program = folder / "askpass"
    program.write_text(ASKPASS)
    program.chmod(0o700)
    (folder / "host").write_text(f"{host}\n")
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
