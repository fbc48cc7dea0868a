"""URLs of repositories, and the patterns that bind credentials to hosts."""

from __future__ import annotations

import pytest

from agent.domain.references.repository_url import RepositoryUrl, checked_pattern, read_repository_url, url_matches


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("https://github.com/acme/x.git", RepositoryUrl("https", "", "github.com", ("acme", "x.git"))),
        ("HTTPS://GitHub.com:443//acme/x", RepositoryUrl("https", "", "github.com", ("acme", "x"))),
        ("https://git.corp:8443/x", RepositoryUrl("https", "", "git.corp:8443", ("x",))),
        ("ssh://git@git.corp:22/x", RepositoryUrl("ssh", "git", "git.corp", ("x",))),
        ("git@git.corp:acme/x.git", RepositoryUrl("ssh", "git", "git.corp", ("acme", "x.git"))),
        ("git://u:p@git.corp/x", RepositoryUrl("git", "u:p", "git.corp", ("x",))),
        ("http://[::1]:3000/x", RepositoryUrl("http", "", "[::1]:3000", ("x",))),
        ("http://127.0.0.1:1/x", RepositoryUrl("http", "", "127.0.0.1:1", ("x",))),
    ],
)
def test_a_url_is_read(url: str, parts: RepositoryUrl) -> None:
    assert read_repository_url(url) == parts


@pytest.mark.parametrize(
    "url",
    [
        "hello",
        "/etc",
        "https://",
        "https:///x",
        "https://good.example\\@evil.example/x",
        "https://good.example@evil.example@x/y",
        "https://good.example#@evil.example/x",
        "https://good.example?@evil.example/x",
        "https://good.example:80:90/x",
        "https://good.example:port/x",
        "https://good.example /x",
        "https://good.example\n/x",
        "https://gööd.example/x",
        "https://-oProxyCommand=x/y",
        "-x@good.example:y z",
    ],
)
def test_a_url_that_can_be_read_in_two_ways_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must ") as error:
        read_repository_url(url)
    assert "good" not in str(error.value)


@pytest.mark.parametrize(
    ("pattern", "url"),
    [
        ("*", "https://any.example/x"),
        ("github.com", "https://github.com/acme/x"),
        ("GitHub.com", "git@github.com:acme/x.git"),
        ("github.com/acme", "https://github.com/acme/x"),
        ("github.com/acme/", "https://github.com/acme"),
        ("github.com/acme/x", "https://github.com/acme/x.git"),
        ("github.com/acme/x.git", "ssh://git@github.com/acme/x"),
        ("github.com/*/infra", "https://github.com/acme/infra"),
        ("*.corp.example", "https://git.corp.example/x"),
        ("git.corp:8443", "https://git.corp:8443/x"),
        ("git.corp:*", "https://git.corp:8443/x"),
    ],
)
def test_a_pattern_admits_a_url(pattern: str, url: str) -> None:
    assert url_matches(read_repository_url(url), checked_pattern(pattern))


@pytest.mark.parametrize(
    ("pattern", "url"),
    [
        ("github.com", "https://github.com.evil.example/x"),
        ("github.com", "https://evil.example/github.com"),
        ("github.com", "https://github.com:444/x"),
        ("github.com", "git@evil.example:github.com/x"),
        ("git.corp:8443", "https://git.corp/x"),
        ("*.corp.example", "https://corp.example/x"),
        ("*.corp.example", "https://a.b.corp.example/x"),
        ("*.corp.example", "https://evil.example/a.corp.example"),
        ("github.com/acme", "https://github.com/acme-evil/x"),
        ("github.com/acme", "https://github.com/evil/acme"),
        ("github.com/acme", "https://github.com/acme/../evil/x"),
        ("github.com/acme", "https://github.com/acme/%2e%2e/evil/x"),
        ("github.com/acme", "https://github.com/acme?/../evil"),
        ("github.com/acme/x", "https://github.com/acme/xy"),
        ("github.com/acme", "https://github.com/"),
    ],
)
def test_a_pattern_does_not_admit_a_url(pattern: str, url: str) -> None:
    assert not url_matches(read_repository_url(url), checked_pattern(pattern))


@pytest.mark.parametrize("pattern", ["", "https://github.com", "a b", "user@github.com", "/acme", "github.com//x"])
def test_a_text_that_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="is not a pattern"):
        checked_pattern(pattern)
