"""Patterns for images: which images each pattern admits, and image names that attackers try."""

from __future__ import annotations

import pytest

from agent.domain.references.image_reference import image_matches, image_reference

DIGEST = f"sha256:{'0a' * 32}"


@pytest.mark.parametrize(
    ("pattern", "image"),
    [
        ("*", "debian"),
        ("*", "evil.example/x@" + DIGEST),
        ("*", "UPPER CASE is for the kubelet"),
        ("**", "a.b/c"),
        ("debian:*", "debian:12"),
        ("debian:*", "debian"),
        ("debian:*", "docker.io/library/debian:12"),
        ("debian:*", "index.docker.io/debian:12"),
        ("debian:*", f"debian:12@{DIGEST}"),
        ("debian", "debian:12"),
        ("debian", f"debian@{DIGEST}"),
        ("docker.io/library/debian:12", "debian:12"),
        ("debian:latest", "debian"),
        ("ghcr.io/acme/*", "ghcr.io/acme/tool:1"),
        ("ghcr.io/acme/*", "GHCR.io/acme/tool"),
        ("ghcr.io/acme/**", "ghcr.io/acme/group/tool:1"),
        ("ghcr.io/**/tool", "ghcr.io/a/b/tool:1"),
        ("ghcr.io/**", "ghcr.io/acme/tool"),
        ("*.corp.example/**", "registry.corp.example/a/b"),
        ("*:5000/*", "registry:5000/tool:1"),
        ("**.corp.example/**", "a.b.corp.example/x"),
        ("*:5000/*", "registry.example.org:5000/tool:1"),
        ("localhost:*/tool", "localhost:5001/tool"),
        ("localhost/**", "localhost/UPPER:1"),
        (f"debian@{DIGEST}", f"debian@{DIGEST}"),
        ("debian:12@*", f"debian:12@{DIGEST}"),
        ("acme/tool-?:v[12]", "acme/tool-a:v2"),
    ],
)
def test_an_image_is_admitted(pattern: str, image: str) -> None:
    assert image_matches(image, pattern)


@pytest.mark.parametrize(
    ("pattern", "image"),
    [
        # Attacks: an image of another registry or folder, whose name looks like an allowed name.
        ("debian:*", "debian:5000/evil"),
        ("debian:*", f"debian:5000/evil@{DIGEST}"),
        ("debian*", "debian.evil.example/x"),
        ("debian*", "debian-evil/x"),
        ("registry.corp*", "registry.corp.evil.example/x"),
        ("registry.corp*/**", "registry.corp:5000/x"),
        ("registry.corp*/**", "registry.corp.evil.example/x"),
        ("*.corp.example/**", "evil.example/a.corp.example/x"),
        ("*.corp.example/**", "corp.example/x"),
        ("*.corp.example/**", "a.b.corp.example/x"),
        ("registry.corp/*", "registry.corp.evil.example/x"),
        ("ghcr.io/acme/*", "ghcr.io/acme/.."),
        ("registry.corp/*", "registry.corp:5000/x"),
        ("registry.corp/*", "evil.example/registry.corp/x"),
        ("*/tool", "evil.example/tool"),
        ("*/library/debian", "evil.example/library/debian"),
        ("library/debian", "evil.example/library/debian"),
        ("debian", "localhost/debian"),
        ("docker.io/library/debian", "docker.io.evil.example/library/debian"),
        ("ghcr.io/acme/*", "ghcr.io/acme/group/tool:1"),
        ("ghcr.io/acme/*", "ghcr.io/acme"),
        ("ghcr.io/acme/**", "ghcr.io/acme-evil/tool"),
        ("ghcr.io/acme/**", "ghcr.io/acme/../evil/tool@x@y"),
        # Attacks: a tag or a digest that the pattern does not allow.
        ("debian:12", f"debian:12@{DIGEST}"),
        ("debian:12", f"debian@{DIGEST}"),
        ("debian:*", f"debian@{DIGEST}"),
        ("debian:12", "debian"),
        ("debian:12", "debian:12.1"),
        (f"debian@{DIGEST}", "debian"),
        (f"debian@{DIGEST}", f"debian@{DIGEST[:-1]}b"),
        # Texts that are not image references.
        ("debian:*", "debian:"),
        ("debian:*", "debian:12\n"),
        ("debian", "debian "),
        ("debian", ""),
        ("ghcr.io/**", "ghcr.io/"),
        ("ghcr.io/**", "ghcr.io//x"),
        ("ghcr.io/**", "user@ghcr.io/x"),
    ],
)
def test_an_image_is_not_admitted(pattern: str, image: str) -> None:
    assert not image_matches(image, pattern)


@pytest.mark.parametrize(
    ("text", "named"), [("debian:*", False), ("acme/x", False), ("ghcr.io/x", True), ("localhost/x", True)]
)
def test_a_reference_tells_whether_it_names_its_host(text: str, named: bool) -> None:
    assert image_reference(text).named_host is named


@pytest.mark.parametrize("text", ["", ":1", "@x", "a//b", "a b", "ghcr.io/", "a@b@c", "/a"])
def test_a_text_that_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an image reference"):
        image_reference(text)


def test_many_wildcards_cost_little() -> None:
    image = "ghcr.io/" + "/".join("a" * 200)
    assert not image_matches(image[:511], "ghcr.io/**/b")
