"""Build the images of this project and load them into a cluster, without a registry.

There are the agent's image, the images of the tests, and the two images of a local cluster's own pods. Each image is a
docker archive in the cache. The archive's file name contains a hash of all inputs, so a missing file means that the
image must be built. For each image, the cluster's folder records which archive the cluster loaded last.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deploy.dev.cluster import locks
from deploy.dev.cluster.builds import go_build, image_builders
from deploy.dev.cluster.builds.docker_archive import write_archive
from deploy.dev.cluster.console import CommandFailed, report, step
from deploy.dev.cluster.settings import REPOSITORY, Settings

AGENT = "localhost/sealci-agent:dev"
# The name under which the chart asks for the agent's image, without its tag.
CHART_NAME = "docker.io/sealci/agent"
PAUSE = "localhost/sealci-pause:1"
COREDNS = "localhost/sealci-coredns:1"
# Number of archives of one image that stay in the cache. Clones of the repository with different contents share the
# cache.
KEEP_ARCHIVES = 8
TEST_IMAGES = (
    "debian", "bash", "busybox", "slim", "notar", "nosh", "nonroot", "wrongarch", "postgres", "redis", "buildah",
)  # fmt: skip
# Those of `TEST_IMAGES` in which the demo runs its actions.
DEMO_IMAGES = ("debian",)


class Loader(Protocol):
    """A cluster into which images can be loaded."""

    def load(self, archive: Path) -> None:
        """Load the image of a docker archive into the cluster."""


@dataclass(frozen=True)
class Recipe:
    """How to build one image. The Dockerfile copies from the folder `context`. The image depends on `inputs`."""

    name: str
    dockerfile: Path
    context: Path
    inputs: tuple[Path, ...]
    target: str = ""

    def archive(self, settings: Settings, builder: image_builders.Builder) -> Path:
        """Return the path of the image's archive, whose name contains a hash of the inputs."""
        digest = hashlib.sha256(json.dumps([self.name, self.target, builder.arguments(settings)]).encode())
        for path in files(self.inputs):
            digest.update(str(path.relative_to(REPOSITORY)).encode() + b"\0")
            digest.update(path.read_bytes())
        return settings.cache / "images" / f"{file_name(self.name)}.{digest.hexdigest()[:16]}.tar"


def files(paths: Iterable[Path]) -> list[Path]:
    """Return all files in `paths`, which may be files or folders, sorted and without Python's bytecode."""
    found = [p for path in paths for p in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return [p for p in found if p.is_file() and "__pycache__" not in p.parts]


def file_name(image: str) -> str:
    """Convert the name of an image to a part of a file name."""
    return image.removeprefix("localhost/").replace("/", "-").replace(":", "-")


def agent_recipe() -> Recipe:
    dockerfile = REPOSITORY / "deploy" / "Dockerfile"
    names = ("pyproject.toml", "requirements.lock", "requirements-dev.lock", "README.md", "LICENSE", "agent")
    needed = [REPOSITORY / name for name in names]
    absent = [path.name for path in needed if not path.exists()]
    if absent:
        raise CommandFailed(f"the agent's image needs files that do not exist: {', '.join(absent)}")
    return Recipe(AGENT, dockerfile, REPOSITORY, (dockerfile, *needed))


def chart_image() -> str:
    """Return the image that the chart's default values name: the chart's appVersion is the tag."""
    chart = (REPOSITORY / "charts" / "sealci-agent" / "Chart.yaml").read_text("utf-8")
    (version,) = re.findall(r'^appVersion: "([^"]+)"$', chart, re.MULTILINE)
    return f"{CHART_NAME}:{version}"


def test_recipes() -> list[Recipe]:
    """Return the recipes of the images in which tests run actions."""
    folder = REPOSITORY / "deploy" / "images"
    dockerfile = folder / "Dockerfile"
    return [Recipe(f"localhost/sealci-test/{n}:1", dockerfile, folder, (folder,), target=n) for n in TEST_IMAGES]


def build(settings: Settings, recipes: list[Recipe]) -> list[Path]:
    """Build the images that the cache lacks, and return the archives in the order of the recipes."""
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
    """Build one image, rename its archive into the cache, and delete the oldest archives of the same image."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    builder.build(settings, recipe.name, recipe.dockerfile, recipe.context, recipe.target)
    partial = archive.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    builder.save(settings, recipe.name, partial)
    partial.replace(archive)
    archives = sorted(archive.parent.glob(f"{file_name(recipe.name)}.*.tar"), key=lambda path: path.stat().st_mtime)
    for older in archives[:-KEEP_ARCHIVES]:
        older.unlink()
    report(f"    {recipe.name}: {archive.stat().st_size / 1e6:.0f} MB as a docker archive")


def load(settings: Settings, cluster: Loader, archives: dict[str, Path]) -> None:
    """Load the archives into the cluster. The keys are the names of the images.

    Skip an image if the cluster loaded the same archive before.
    """
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


def load_one(settings: Settings, cluster: Loader, image: str) -> None:
    """Load one image, which is the path of an archive or the name of an image that this machine built."""
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
    """Return the archives of the pause image and of CoreDNS, for a cluster that pulls no image."""
    pause = shutil.which("catatonit")
    if pause is None:
        raise CommandFailed("catatonit is not installed")
    coredns = go_build.binary(settings, "coredns")
    return [
        single_program(settings, PAUSE, Path(pause), "pause", ["/pause", "-P"]),
        single_program(settings, COREDNS, coredns, "coredns", ["/coredns"]),
    ]


def single_program(settings: Settings, name: str, program: Path, name_in_image: str, entrypoint: list[str]) -> Path:
    """Return the archive of an image that consists of one static program. Write the archive if the program has changed.

    `name` is the name of the image, and `name_in_image` is the name of the program in the image.
    """
    # The hash contains the program's size and modification time instead of its content. The program is large, and this
    # function runs at each start of a cluster.
    key = hashlib.sha256(f"{program}:{program.stat().st_size}:{program.stat().st_mtime_ns}".encode()).hexdigest()[:16]
    archive = settings.cache / "images" / f"{file_name(name)}.{key}.tar"
    if archive.exists():
        return archive
    archive.parent.mkdir(parents=True, exist_ok=True)
    outdated = list(archive.parent.glob(f"{file_name(name)}.*.tar"))
    write_archive(archive, name, {name_in_image: program}, entrypoint)
    for older in outdated:
        older.unlink()
    return archive
