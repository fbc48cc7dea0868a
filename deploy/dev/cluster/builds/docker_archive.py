"""Write an image as a docker archive without a builder, for images that consist of a few programs.

The images of a cluster's own components need no Dockerfile. This module can write them on machines that have neither
Docker nor podman.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

from deploy.dev.cluster.builds.image_builders import architecture


def write_archive(archive: Path, name: str, files: Mapping[str, Path | str], entrypoint: list[str]) -> None:
    """Write an image with one layer as a docker archive. A rename moves the finished archive to the path `archive`.

    `files` maps a path in the image to a file of this machine, or to a text, which is the target of a symbolic link.
    """
    layer = layer_tar(files)
    digest = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    machine = {"architecture": architecture(), "os": "linux"}
    config = json.dumps(
        machine | {"config": {"Entrypoint": entrypoint}, "rootfs": {"type": "layers", "diff_ids": [digest]}}
    ).encode()
    manifest = json.dumps([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
    partial = archive.with_suffix(".partial")
    with tarfile.open(partial, "w") as tar:
        for path, data in (("config.json", config), ("layer.tar", layer), ("manifest.json", manifest)):
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    partial.replace(archive)


def layer_tar(files: Mapping[str, Path | str]) -> bytes:
    """Return the tar of an image's layer. `files` maps a path in the image to a file, or to a symbolic link's target.

    Every file is executable and has no modification time, so that equal files make equal layers.
    """
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for path, source in files.items():
            entry = tarfile.TarInfo(path)
            entry.mode = 0o755
            if isinstance(source, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, source
                tar.addfile(entry)
                continue
            entry.size = source.stat().st_size
            with source.open("rb") as content:
                tar.addfile(entry, content)
    return layer.getvalue()
