"""The images of this project: the agent's, those of the tests, and the two that a local cluster is made of.

An image is an archive in the cache whose file name holds a hash of everything it is made from: it is built when
that file is missing, and loaded when the cluster has not got that file yet. No registry takes part.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deploy.dev.cluster import locks
from deploy.dev.cluster.builds import go_build, image_builders
from deploy.dev.cluster.console import CommandFailed, report, step
from deploy.dev.cluster.node import cluster_dns, components
from deploy.dev.cluster.settings import REPOSITORY, Settings

AGENT = "localhost/sealci-agent:dev"
KEPT = 8  # archives of one image: clones in other states share the cache, and must not take it from each other
TEST_IMAGES = ("debian", "bash", "busybox", "slim", "notar", "nosh", "nonroot", "wrongarch")


class Loader(Protocol):
    """A cluster that takes images."""

    def load(self, archive: Path) -> None:
        """Makes the image of a docker archive known to the cluster."""


@dataclass(frozen=True)
class Recipe:
    """How one image is built: a Dockerfile, what it may copy from, and all that its result depends on."""

    name: str
    dockerfile: Path
    context: Path
    inputs: tuple[Path, ...]
    target: str = ""

    def archive(self, settings: Settings, builder: image_builders.Builder) -> Path:
        """Where the image lies once built: the name tells what from."""
        digest = hashlib.sha256(json.dumps([self.name, self.target, builder.arguments(settings)]).encode())
        for path in files(self.inputs):
            digest.update(str(path.relative_to(REPOSITORY)).encode() + b"\0")
            digest.update(path.read_bytes())
        return settings.cache / "images" / f"{file_name(self.name)}.{digest.hexdigest()[:16]}.tar"


def files(paths: Iterable[Path]) -> list[Path]:
    """The files that are meant by files and folders, without what an interpreter leaves behind."""
    found = [p for path in paths for p in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return [p for p in found if p.is_file() and "__pycache__" not in p.parts]


def file_name(image: str) -> str:
    """An image's name as a file name."""
    return image.removeprefix("localhost/").replace("/", "-").replace(":", "-")


def agent() -> Recipe:
    """The agent's own image."""
    dockerfile = REPOSITORY / "deploy" / "Dockerfile"
    names = ("pyproject.toml", "requirements.lock", "README.md", "LICENSE", "agent")
    needed = [REPOSITORY / name for name in names]
    absent = [path.name for path in needed if not path.exists()]
    if absent:
        raise CommandFailed(f"the agent's image is made from files that are not there: {', '.join(absent)}")
    return Recipe(AGENT, dockerfile, REPOSITORY, (dockerfile, *needed))


def tests() -> list[Recipe]:
    """The images that tests run actions in."""
    folder = REPOSITORY / "deploy" / "images"
    dockerfile = folder / "Dockerfile"
    return [Recipe(f"localhost/sealci-test/{n}:1", dockerfile, folder, (folder,), target=n) for n in TEST_IMAGES]


def build(settings: Settings, recipes: list[Recipe]) -> list[Path]:
    """The archives of these images, in their order; what is missing is built."""
    builder = image_builders.choose(settings)
    archives = [recipe.archive(settings, builder) for recipe in recipes]
    if all(archive.exists() for archive in archives):
        return archives
    builder.prepare(settings)
    with locks.lock(settings.cache / "images.lock", "another build of images"):
        for recipe, archive in zip(recipes, archives, strict=True):
            if not archive.exists():
                with step(f"build {recipe.name}"):
                    build_one(settings, builder, recipe, archive)
    return archives


def build_one(settings: Settings, builder: image_builders.Builder, recipe: Recipe, archive: Path) -> None:
    """Builds one image; its archive appears by a rename, and the oldest of its name go."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    builder.build(settings, recipe.name, recipe.dockerfile, recipe.context, recipe.target)
    partial = archive.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    builder.save(settings, recipe.name, partial)
    partial.replace(archive)
    archives = sorted(archive.parent.glob(f"{file_name(recipe.name)}.*.tar"), key=lambda path: path.stat().st_mtime)
    for older in archives[:-KEPT]:
        older.unlink()
    report(f"    {recipe.name}: {archive.stat().st_size / 1e6:.0f} MB as a docker archive")


def load(settings: Settings, cluster: Loader, archives: dict[str, Path]) -> None:
    """Loads images by name, each only when this cluster has not got this very archive."""
    record = settings.folder / "loaded.json"
    loaded = json.loads(record.read_text("utf-8")) if record.exists() else {}
    for name, archive in archives.items():
        if loaded.get(name) == archive.name:
            continue
        with step(f"load {name}"):
            cluster.load(archive)
        loaded[name] = archive.name
        partial = record.with_suffix(".partial")
        partial.write_text(json.dumps(loaded, indent=2), "utf-8")
        partial.replace(record)


def load_by_hand(settings: Settings, cluster: Loader, image: str) -> None:
    """Loads an archive by its path, or a locally built image by its name."""
    path = Path(image)
    if path.is_file():
        with step(f"load {image}"):
            cluster.load(path)
        return
    name = image if image.startswith("localhost/") else f"localhost/{image}"
    archive = settings.cache / "images" / f"by-hand-{file_name(name)}.tar"
    archive.unlink(missing_ok=True)
    with step(f"load {name}"):
        try:
            image_builders.choose(settings).save(settings, name, archive)
            cluster.load(archive)
        finally:
            archive.unlink(missing_ok=True)


def system_images(settings: Settings) -> list[Path]:
    """The pause image and CoreDNS, each a single static program."""
    pause = shutil.which("catatonit")
    if pause is None:
        raise CommandFailed("catatonit is not installed")
    coredns = go_build.binary(settings, "coredns")
    return [
        single_program(settings, components.PAUSE, Path(pause), "pause", ["/pause", "-P"]),
        single_program(settings, cluster_dns.IMAGE, coredns, "coredns", ["/coredns"]),
    ]


def single_program(settings: Settings, name: str, program: Path, as_name: str, entrypoint: list[str]) -> Path:
    """An image of one static program, as a docker archive written by hand."""
    key = hashlib.sha256(f"{program}:{program.stat().st_size}:{program.stat().st_mtime_ns}".encode()).hexdigest()[:16]
    archive = settings.cache / "images" / f"{file_name(name)}.{key}.tar"
    if archive.exists():
        return archive
    archive.parent.mkdir(parents=True, exist_ok=True)
    before = list(archive.parent.glob(f"{file_name(name)}.*.tar"))
    write_archive(archive, name, {as_name: program}, entrypoint)
    for older in before:
        older.unlink()
    return archive


def write_archive(archive: Path, name: str, files: Mapping[str, Path | str], entrypoint: list[str]) -> None:
    """An image of programs as a docker archive written by hand; a text in `files` is the target of a link."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for place, source in files.items():
            entry = tarfile.TarInfo(place)
            entry.mode = 0o755
            if isinstance(source, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, source
                tar.addfile(entry)
                continue
            entry.size = source.stat().st_size
            with source.open("rb") as content:
                tar.addfile(entry, content)
    diff = f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"
    machine = {"architecture": image_builders.architecture(), "os": "linux"}
    config = json.dumps(
        machine | {"config": {"Entrypoint": entrypoint}, "rootfs": {"type": "layers", "diff_ids": [diff]}}
    ).encode()
    manifest = json.dumps([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
    partial = archive.with_suffix(".partial")
    with tarfile.open(partial, "w") as tar:
        for path, data in (("config.json", config), ("layer.tar", layer.getvalue()), ("manifest.json", manifest)):
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    partial.replace(archive)
