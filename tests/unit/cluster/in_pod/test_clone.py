"""The clone program with real repositories: refs, depths, transports, and credentials that are never shown."""

from __future__ import annotations

import base64
import http.server
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent.cluster.in_pod import clone as clones
from agent.cluster.in_pod.clone import CloneFailed, check, without_credentials
from agent.domain.json import Object
from tests.unit.cluster.in_pod.repositories import git, make_origin, run

if TYPE_CHECKING:
    from collections.abc import Iterator

PASSWORD = "hunter2-hunter2"
ZERO = "0" * 40


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_origin(tmp_path_factory.mktemp("origin"))


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("ref", "content"),
    [("", "two\n"), ("main", "two\n"), ("feature/x", "feature\n"), ("light", "one\n"), ("annotated", "one\n")],
)
@pytest.mark.parametrize("depth", [0, 1])
def test_branches_and_tags(origin: Path, workspace: Path, ref: str, content: str, depth: int) -> None:
    code, output, message = run(f"file://{origin}", workspace, ref, depth=depth)
    assert (code, message) == (0, ""), output
    assert (workspace / "file").read_text() == content
    assert "Checked out " in output
    commits = git(workspace, "rev-list", "--count", "HEAD")
    assert commits == ("1" if depth or content == "one\n" else "2")


@pytest.mark.parametrize("ref", ["no-such-branch", ZERO, "refs/heads/none"])
def test_a_missing_ref_is_a_sentence_for_people(origin: Path, workspace: Path, ref: str) -> None:
    code, output, message = run(f"file://{origin}", workspace, ref)
    assert code == 1
    assert message
    assert message.startswith(f"file://{origin}: ")
    assert message in output


def test_a_missing_repository_is_a_sentence_for_people(tmp_path: Path, workspace: Path) -> None:
    code, _, message = run(f"file://{tmp_path}/none", workspace)
    assert code == 1
    assert "does not appear to be a git repository" in message


@pytest.mark.parametrize("submodules", [False, True])
def test_submodules_only_when_asked_for(origin: Path, workspace: Path, submodules: bool) -> None:
    code, output, _ = run(f"file://{origin}", workspace, submodules=submodules)
    assert code == 0, output
    assert (workspace / "inner" / "file").exists() == submodules


@pytest.mark.parametrize(
    ("order", "modes"),
    [
        ({"umask": 0o022}, {"file": 0o644, ".git": 0o755, "HEAD": 0o644}),
        # The input from an agent of an older release has no umask. Then every user of the image must be able to write.
        ({}, {"file": 0o666, ".git": 0o777, "HEAD": 0o666}),
    ],
)
def test_files_have_the_modes_of_the_umask(origin: Path, workspace: Path, order: Object, modes: dict[str, int]) -> None:
    assert run(f"file://{origin}", workspace, **order)[0] == 0
    paths = (workspace / "file", workspace / ".git", workspace / ".git" / "HEAD")
    assert {path.name: path.stat().st_mode & 0o777 for path in paths} == modes


def test_a_clone_has_a_time_limit(origin: Path, workspace: Path) -> None:
    code, _, message = run(f"file://{origin}", workspace, timeout=0.0001)
    assert (code, message) == (1, f"file://{origin}: not done within 0.0001 s")


def test_the_installer_s_git_configuration_names_a_mirror(origin: Path, workspace: Path) -> None:
    mirror = f'[url "file://{origin}"]\n\tinsteadOf = https://git.example.org/r\n'
    code, output, _ = run("https://git.example.org/r", workspace, git_config=mirror, schemes=["https", "file"])
    assert code == 0, output
    assert (workspace / "file").exists()


def test_git_trusts_the_installer_s_certificates_and_those_of_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = tmp_path / "known.crt"
    monkeypatch.setattr(clones, "SYSTEM_CERTIFICATES", known)
    monkeypatch.delenv("GIT_SSL_CAINFO", raising=False)
    order = {"schemes": ["https"], "credentials": "", "url": "https://git.example.org/r"}
    assert "GIT_SSL_CAINFO" not in clones.environment(order, tmp_path)
    bundle = Path(clones.environment(order | {"git_ca": "own"}, tmp_path)["GIT_SSL_CAINFO"])
    assert bundle.read_text().split() == ["own"]
    known.write_text("known")
    clones.environment(order | {"git_ca": "own"}, tmp_path)
    assert bundle.read_text().split() == ["known", "own"]


# ---- input that the clone program refuses before it runs git


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc",
        "/etc",
        "../r",
        "",
        "ext::sh -c date",
        "ext::sh -c date://x",
        "https::file:///etc",
        "HTTP://example.org/r",
        "ftp://example.org/r",
        "git@example.org::x",
        "-oProxyCommand=date@example.org:r",
        "--upload-pack=date",
        "https://example.org/r\n--upload-pack=date",
    ],
)
def test_a_hostile_url_is_refused(url: str) -> None:
    with pytest.raises(CloneFailed):
        check(url, "", ["https", "ssh"])


@pytest.mark.parametrize("ref", ["--upload-pack=date", "-x", "a\nb", "a\0b"])
def test_a_hostile_ref_is_refused(ref: str) -> None:
    with pytest.raises(CloneFailed, match="must not start with a dash"):
        check("https://example.org/r", ref, ["https", "ssh"])


@pytest.mark.parametrize("ref", ["main:evil", "+main", "+refs/*:refs/*", "HEAD~1", "a b", "a^{}"])
def test_a_refspec_or_an_expression_is_refused(ref: str) -> None:
    with pytest.raises(CloneFailed, match="is not the name of a branch, a tag or a commit"):
        check("https://example.org/r", ref, ["https", "ssh"])


@pytest.mark.parametrize(
    "url", ["https://example.org/r", "HTTPS://example.org/r", "ssh://git@example.org:22/r", "git@example.org:g/r.git"]
)
def test_common_urls_are_allowed(url: str) -> None:
    check(url, "main", ["https", "ssh"])


def test_git_refuses_a_scheme_that_the_order_does_not_allow(origin: Path, workspace: Path) -> None:
    """git has to check the URL of a submodule or of a redirection, because the clone program does not."""
    order = {"schemes": ["https"], "credentials": "", "url": ""}
    env = clones.environment(order, workspace.parent)
    with pytest.raises(CloneFailed, match="not allowed"):
        clones.run(["git", "-C", str(workspace), "ls-remote", f"file://{origin}"], env, 30.0, "x")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("fatal: https://user:pw@example.org/r: no", "fatal: https://example.org/r: no"),
        ("https://token@example.org/r", "https://example.org/r"),
        ("https://u:p@ss@example.org/r", "https://example.org/r"),
        ("https://example.org/r@v1", "https://example.org/r@v1"),
        ("git@example.org:r", "git@example.org:r"),
    ],
)
def test_credentials_are_removed_from_messages(text: str, clean: str) -> None:
    assert without_credentials(text) == clean


# ---- credentials over http


class Server(http.server.ThreadingHTTPServer):
    """An HTTP server of a repository. It asks for a password, or redirects every client. Lives for one test."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.redirect = ""
        self.given: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Answers one HTTP request. The HTTP server creates a Handler for each connection."""

    server: Server

    def __init__(self, request: Any, address: Any, server: Server) -> None:
        super().__init__(request, address, server, directory=str(server.root))

    def do_GET(self) -> None:
        """Ask for the password, then serve a file or redirect the client."""
        given = self.headers.get("Authorization", "")
        if self.server.redirect:
            self.send_response(302)
            self.send_header("Location", self.server.redirect + self.path)
            self.end_headers()
        elif not given:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="r"')
            self.end_headers()
        else:
            self.server.given.append(base64.b64decode(given.split()[1]).decode())
            if self.server.given[-1].endswith(f":{PASSWORD}"):
                super().do_GET()
            else:
                self.send_error(403)

    def log_message(self, *arguments: Any) -> None:
        """Log nothing."""


@contextmanager
def serving(root: Path) -> Iterator[Server]:
    """Serve the folder `root` over HTTP until the end of the block."""
    with Server(root) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "username").write_text("me")
    (folder / "password").write_text(PASSWORD)
    return folder


HTTP: Object = {"schemes": ["http"]}


def test_the_password_of_the_secret_opens_the_repository(origin: Path, workspace: Path, secret: Path) -> None:
    with serving(origin / ".git") as server:
        code, output, _ = run(f"{server.url}/", workspace, credentials=str(secret), **HTTP)
    assert code == 0, output
    assert (workspace / "file").read_text() == "two\n"
    assert server.given[0] == f"me:{PASSWORD}"
    assert PASSWORD not in output
    assert PASSWORD not in (workspace / ".git" / "config").read_text()


def test_a_secret_without_a_name_logs_in_as_git(origin: Path, workspace: Path, secret: Path) -> None:
    (secret / "username").unlink()
    with serving(origin / ".git") as server:
        assert run(f"{server.url}/", workspace, credentials=str(secret), **HTTP)[0] == 0
    assert server.given[0] == f"git:{PASSWORD}"


def test_a_wrong_password_fails_and_does_not_show(origin: Path, workspace: Path, secret: Path) -> None:
    (secret / "password").write_text("wrong-" + PASSWORD[::-1])
    with serving(origin / ".git") as server:
        code, output, message = run(f"{server.url}/", workspace, credentials=str(secret), **HTTP)
    assert code == 1
    assert message
    assert PASSWORD[::-1] not in output + message


def test_without_credentials_git_does_not_prompt(origin: Path, workspace: Path) -> None:
    with serving(origin / ".git") as server:
        code, _, message = run(f"{server.url}/", workspace, **HTTP)
    assert (code, server.given) == (1, [])
    assert "terminal prompts disabled" in message


def test_another_host_does_not_get_the_password(origin: Path, workspace: Path, secret: Path) -> None:
    with serving(origin / ".git") as good, serving(origin / ".git") as evil:
        good.redirect = evil.url
        code, output, _ = run(f"{good.url}/", workspace, credentials=str(secret), **HTTP)
    assert (code, evil.given) == (1, [])
    assert PASSWORD not in output


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Username for 'https://example.org:8443': ", "me"),
        ("Password for 'https://me@example.org:8443': ", PASSWORD),
        # A file of the repository names the server of Git LFS. It can name another server, or a URL without encryption.
        ("Username for 'http://example.org:8443': ", ""),
        ("Password for 'http://me@example.org:8443': ", ""),
        ("Password for 'https://me@example.org': ", ""),
        ("Password for 'https://me@example.org:8443.evil': ", ""),
        ("Password for 'https://evil//example.org:8443': ", ""),
    ],
)
def test_only_the_server_of_the_url_gets_an_answer(tmp_path: Path, secret: Path, question: str, answer: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    order = {"schemes": ["https"], "credentials": str(secret), "url": "https://example.org:8443/r"}
    program = clones.environment(order, folder)["GIT_ASKPASS"]
    done = subprocess.run([program, question], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == (answer, 0 if answer else 1)


def test_a_key_is_used_from_a_private_copy(tmp_path: Path) -> None:
    given, folder = tmp_path / "given", tmp_path / "folder"
    given.mkdir()
    folder.mkdir()
    (given / "ssh-privatekey").write_text("KEY")
    (given / "known_hosts").write_text("HOST")
    env = clones.environment({"schemes": ["ssh"], "credentials": str(given), "url": "git@example.org:r"}, folder)
    command = env["GIT_SSH_COMMAND"]
    assert f"-i {folder / 'key'} -o IdentitiesOnly=yes" in command
    assert f"StrictHostKeyChecking=yes -o UserKnownHostsFile={given / 'known_hosts'}" in command
    assert (folder / "key").stat().st_mode & 0o777 == 0o600
    assert "BatchMode=yes" in command
