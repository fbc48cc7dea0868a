"""Read the URL of a git repository, and compare it with `HOST[/PATH]` patterns of the policy. Pure functions.

This module is stricter than git. A URL that git and the agent could read differently is refused, because the host
decides which credentials the clone may use.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from agent.domain.references.part_patterns import host_matches, parts_match

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
HOST = r"(?P<host>[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]+\])"
# The user's name must not hold ? or # or @, because git and curl would then find different hosts in the same URL.
AUTHORITY = re.compile(rf"(?:(?P<user>[^@/?#]*)@)?{HOST}(?::(?P<port>[0-9]{{1,5}}))?")
# Git reads USER@HOST:PATH as the address of an SSH server, although the text has no scheme.
SCP_FORM = re.compile(
    r"(?P<user>[A-Za-z0-9_.-]+)@(?P<host>[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?):(?P<path>[^:].*)"
)
DEFAULT_PORTS = {"https": "443", "http": "80", "ssh": "22", "git": "9418"}
PATTERN = re.compile(r"[A-Za-z0-9_.*?-]+(:[0-9*]+)?(/[^/\s]+)*/?")


@dataclass(frozen=True, slots=True)
class RepositoryUrl:
    """The parts of a repository's URL.

    `host` includes the port, unless it is the default port of the scheme. `path` has no empty part.
    """

    scheme: str
    user: str
    host: str
    path: tuple[str, ...]


def scheme_of(url: str) -> str:
    """Return the scheme in lower case, "ssh" for USER@HOST:PATH, "" for a text of another form."""
    if match := SCHEME.match(url):
        return match[1].lower()
    return "ssh" if SCP_FORM.fullmatch(url) else ""


def holds_credentials(url: str) -> bool:
    """Whether a text holds a password, or a user's name that may be a token. The text need not be a valid URL."""
    scheme = SCHEME.match(url)
    authority = re.split(r"[/?#]", url[scheme.end() :] if scheme else url, maxsplit=1)[0]
    user, at, _ = authority.rpartition("@")
    # In an SSH URL, the user's name is no secret. In an HTTP URL, the user's name is often a token.
    return bool(at) and (":" in user or (scheme is not None and scheme[1].lower() != "ssh"))


def read_repository_url(url: str) -> RepositoryUrl:
    """Read a URL.

    Raises:
        ValueError: the text is not a URL of the known forms. The message does not contain the text.
    """
    if re.search(r"[\s\\]", url) or not url.isascii() or not url.isprintable():
        raise ValueError("must hold printable ASCII characters, without spaces and backslashes")
    if "://" not in url and (match := SCP_FORM.fullmatch(url)):
        return RepositoryUrl("ssh", match["user"], match["host"].lower(), path_parts(match["path"]))
    scheme = SCHEME.match(url)
    rest = url[scheme.end() :] if scheme else ""
    authority, _, path = rest.partition("/")
    found = AUTHORITY.fullmatch(authority)
    if scheme is None or found is None:
        raise ValueError("must have the form https://HOST/PATH, ssh://USER@HOST/PATH or USER@HOST:PATH")
    name = scheme[1].lower()
    port = found["port"] or ""
    suffix = f":{port}" if port and port != DEFAULT_PORTS.get(name) else ""
    return RepositoryUrl(name, found["user"] or "", found["host"].lower() + suffix, path_parts(path))


def path_parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in path.split("/") if part)


def checked_pattern(pattern: str) -> str:
    """Return a `HOST[/PATH]` pattern unchanged.

    Raises:
        ValueError: the text is no such pattern.
    """
    if not PATTERN.fullmatch(pattern):
        raise ValueError(f"{pattern[:100]!r} is not a pattern HOST[:PORT][/PATH], such as github.com/acme")
    return pattern


def url_matches(url: RepositoryUrl, pattern: str) -> bool:
    """Whether a pattern `HOST[/PATH]` admits a URL. The pattern `*` admits every URL.

    A pattern with a path admits the repository with this path and all repositories below this path.
    """
    host, _, prefix = pattern.partition("/")
    if pattern == "*":
        return True
    if not host_matches(url.host, host):
        return False
    parts, wanted = without_suffix(url.path), without_suffix(path_parts(prefix))
    if not wanted:
        return True
    # A server may resolve or cut a path with such a part, and then read a repository that is not below the pattern's
    # path.
    if any(part in (".", "..") or "%" in part or "?" in part or "#" in part for part in parts):
        return False
    return parts_match(parts, wanted, beginning=True)


def without_suffix(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Return the parts of a path without `.git` at the end, which servers accept and ignore."""
    return (*parts[:-1], parts[-1].removesuffix(".git")) if parts else parts
