"""Read the installed packages out of a docker archive, without running the image.

The result names what is in the image and not what a lock file asked for, so it also covers Debian's packages.
"""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath
from typing import IO

DPKG_STATUS = "var/lib/dpkg/status"
METADATA = "*.dist-info/METADATA"
# Prefix of the name of a file that deletes a file of a lower layer.
WHITEOUT = ".wh."


@dataclass(frozen=True, order=True)
class Package:
    """One installed package. `kind` is `deb` or `pypi`."""

    kind: str
    name: str
    version: str
    licence: str = ""
    architecture: str = ""


@dataclass(frozen=True)
class Content:
    """What is in an image: its packages, and every path with its mode."""

    packages: list[Package]
    modes: dict[str, int]


def read(archive: Path) -> Content:
    """Return the content of the one image in a docker archive."""
    modes: dict[str, int] = {}
    texts: dict[str, str] = {}
    with tarfile.open(archive) as image:
        (description,) = json.load(member(image, "manifest.json"))
        for layer in description["Layers"]:
            with tarfile.open(fileobj=member(image, layer)) as files:
                read_layer(files, modes, texts)
    packages = [package for path, text in texts.items() for package in packages_of(path, text)]
    return Content(sorted(set(packages)), modes)


def member(image: tarfile.TarFile, name: str) -> IO[bytes]:
    file = image.extractfile(name)
    if file is None:
        raise ValueError(f"{name} is not a file of the archive")
    return file


def read_layer(files: tarfile.TarFile, modes: dict[str, int], texts: dict[str, str]) -> None:
    """Apply the files and whiteouts of one layer to `modes` and `texts`, which describe the layers below."""
    for entry in files:
        path = PurePosixPath(entry.name.removeprefix("./"))
        if path.name.startswith(WHITEOUT):
            gone = str(path.with_name(path.name.removeprefix(WHITEOUT)))
            for each in [each for each in modes if each == gone or each.startswith(f"{gone}/")]:
                modes.pop(each)
                texts.pop(each, None)
            continue
        modes[str(path)] = entry.mode if entry.isfile() else 0
        if entry.isfile() and (str(path) == DPKG_STATUS or path.match(METADATA)) and (file := files.extractfile(entry)):
            texts[str(path)] = file.read().decode("utf-8", "replace")


def packages_of(path: str, text: str) -> list[Package]:
    """Return the packages that one file of a package manager describes."""
    if path != DPKG_STATUS:
        fields = HeaderParser().parsestr(text)
        licence = fields.get("License-Expression", "")
        return [Package("pypi", fields["Name"], fields["Version"], licence)]
    entries = [HeaderParser().parsestr(paragraph) for paragraph in text.split("\n\n") if paragraph.strip()]
    installed = [each for each in entries if each.get("Status", "").endswith(" installed")]
    return [Package("deb", each["Package"], each["Version"], architecture=each["Architecture"]) for each in installed]
