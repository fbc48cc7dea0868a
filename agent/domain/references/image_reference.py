"""Read image references and compare them with the patterns of the policy, part by part.

A pattern that is compared as plain text lets `debian:*` match `debian:5000/evil`, an image of another registry. In this
module, a `*` matches only text within one part of the reference. Pure functions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

from agent.domain.references.part_patterns import ANY_PARTS, host_matches, parts_match

# Characters that an image reference or a pattern may contain, for the brackets of a regular expression: letters,
# digits, the signs of tags and paths (. _ -), and the signs of patterns (* ? [ ] !).
SIGNS = r"A-Za-z0-9._*?\[\]!-"
REFERENCE = re.compile(rf"(?P<name>[^@\s]+?)(?::(?P<tag>[{SIGNS}]+))?(?:@(?P<digest>[{SIGNS}:+]+))?")
# No component of an image's path begins with a dot, so none is "..".
COMPONENT = re.compile(rf"[A-Za-z0-9*?\[][{SIGNS}]*")
HOST = re.compile(r"[A-Za-z0-9.*?-]+(:[0-9*]+)?")
DEFAULT_HOST = "docker.io"
# The parts of one image's reference, as container runtimes accept them.
REFERENCE_OF_ONE_IMAGE = re.compile(r"(?P<name>[^@\s]+?)(?::(?P<tag>[^:/@\s]*))?(?:@(?P<digest>\S*))?")
LOWER_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*")
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


@dataclass(frozen=True, slots=True)
class ImageReference:
    """The parts of an image reference or of a pattern. A part that the text does not name is "".

    `named_host`: the text names its host. Otherwise `host` is the default of container runtimes.
    """

    host: str
    path: tuple[str, ...]
    tag: str
    digest: str
    named_host: bool


def checked_image(text: str) -> str:
    """Return the reference of one image unchanged.

    Raises:
        ValueError: no container runtime accepts the text. The message names the part that is wrong.
    """
    match = REFERENCE_OF_ONE_IMAGE.fullmatch(text)
    if match is None:
        raise ValueError("it is not HOST/PATH:TAG or HOST/PATH@DIGEST")
    first, slash, rest = match["name"].partition("/")
    path = rest if slash and is_host(first) else match["name"]
    if path != path.lower():
        raise ValueError(f"{path[:100]!r} must be in lower case")
    if not all(LOWER_COMPONENT.fullmatch(each) for each in path.split("/")):
        raise ValueError(f"{path[:100]!r} may hold a-z, 0-9 and single '.', '_', '-' between them")
    if match["tag"] is not None and not TAG.fullmatch(match["tag"]):
        raise ValueError(f"the tag {match['tag'][:100]!r} may hold letters, digits, '.', '_', '-', at most 128")
    if match["digest"] is not None and not DIGEST.fullmatch(match["digest"]):
        raise ValueError(f"the digest {match['digest'][:100]!r} is not sha256: and 64 hexadecimal digits")
    return text


def image_reference(text: str) -> ImageReference:
    """Read an image reference or a pattern. A short name such as `debian` becomes `docker.io/library/debian`.

    Raises:
        ValueError: the text is neither an image reference nor a pattern.
    """
    match = REFERENCE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:100]!r} is not an image reference such as HOST/PATH:TAG")
    first, slash, rest = match["name"].partition("/")
    named = bool(slash) and is_host(first)
    host, path = (first.lower(), rest) if named else (DEFAULT_HOST, match["name"])
    components = path.split("/")
    if not HOST.fullmatch(host) or not all(COMPONENT.fullmatch(each) for each in components):
        raise ValueError(f"{text[:100]!r} is not an image reference such as HOST/PATH:TAG")
    if host == "index.docker.io":
        host = DEFAULT_HOST
    if host == DEFAULT_HOST and len(components) == 1 and components[0] != ANY_PARTS:
        components = ["library", *components]
    return ImageReference(host, tuple(components), match["tag"] or "", match["digest"] or "", named)


def is_host(component: str) -> bool:
    """Whether container runtimes read the first component of a name as a host."""
    return "." in component or ":" in component or component == "localhost" or component != component.lower()


def image_matches(text: str, pattern: str) -> bool:
    """Whether a pattern of the policy admits an image reference. `*` and `**` alone admit every text.

    A pattern without a tag and a digest admits every image of its repository. A reference with both a tag and a digest
    matches a pattern with a tag only if this tag is `*`, because container runtimes ignore the tag of the reference.
    """
    if pattern in ("*", ANY_PARTS):
        return True
    try:
        image, allowed = image_reference(text), image_reference(pattern)
    except ValueError:
        return False
    return (
        host_matches(image.host, allowed.host)
        and parts_match(image.path, allowed.path)
        and version_matches(image, allowed)
    )


def version_matches(image: ImageReference, allowed: ImageReference) -> bool:
    if allowed.tag and not fnmatchcase(image.tag or ("" if image.digest else "latest"), allowed.tag):
        return False
    if allowed.tag and not image.tag and image.digest:
        return False
    if allowed.digest:
        return fnmatchcase(image.digest, allowed.digest)
    return not image.digest or allowed.tag in ("", "*")
