"""What turns a Dockerfile into an archive: Docker or podman where one answers, else buildah with a Debian of our own.

Both worlds use the same Dockerfiles; only their base images differ, which travel as build arguments.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Protocol

from deploy.dev.cluster import locks
from deploy.dev.cluster.builds import debian
from deploy.dev.cluster.console import CommandFailed, run, step
from deploy.dev.cluster.settings import Settings

BUILD_SECONDS = 900
BASE = f"localhost/sealci-base:{debian.ROOT_VERSION}"
BUSYBOX = "localhost/sealci-busybox:1"
CERTIFICATES = "/etc/ssl/certs"
# How this machine reaches its package index, if it says so.
PIP_VARIABLES = ("PIP_CERT", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST")


class Builder(Protocol):
    """Builds images and writes them as docker archives."""

    def arguments(self, settings: Settings) -> dict[str, str]:
        """The build arguments on which the result depends."""

    def prepare(self, settings: Settings) -> None:
        """Makes ready what every build needs."""

    def build(self, settings: Settings, name: str, dockerfile: Path, context: Path, target: str) -> None:
        """Builds one image (or one target of a Dockerfile) under a name."""

    def save(self, settings: Settings, name: str, archive: Path) -> None:
        """Writes a built image as a docker archive. Refuses a name that was never built."""


class Engine:
    """Builds with the machine's own engine, from public base images."""

    def __init__(self, program: str) -> None:
        self.program = program

    def arguments(self, settings: Settings) -> dict[str, str]:
        """None: the Dockerfiles' defaults are the public images."""
        return {}

    def prepare(self, settings: Settings) -> None:
        """Nothing to prepare."""

    def build(self, settings: Settings, name: str, dockerfile: Path, context: Path, target: str) -> None:
        """Runs `docker build`, or podman's."""
        stage = ["--target", target] if target else []
        run([self.program, "build", "--file", dockerfile, "--tag", name, *stage, context], seconds=BUILD_SECONDS)

    def save(self, settings: Settings, name: str, archive: Path) -> None:
        """Runs `docker save`, or podman's."""
        run([self.program, "save", "--output", archive, name], seconds=BUILD_SECONDS)


class Buildah:
    """Builds with buildah in its own storage below the cache, from a Debian that debootstrap made."""

    def arguments(self, settings: Settings) -> dict[str, str]:
        """The local base images."""
        return {"BASE": BASE, "BUSYBOX": BUSYBOX}

    def prepare(self, settings: Settings) -> None:
        """Installs buildah, and makes the base images once."""
        if os.geteuid() != 0:
            raise CommandFailed("building images with buildah needs root: run the command with sudo")
        debian.install(debian.IMAGE_PACKAGES)
        root = debian.root_archive(settings)
        with locks.lock(settings.cache / "images.lock", "another build of images"):
            if not self.has(settings, BASE):
                with step(f"base image {BASE}"):
                    self.from_scratch(settings, BASE, "root.tar", root, "ADD root.tar /")
            if not self.has(settings, BUSYBOX):
                busybox = Path(shutil.which("busybox") or "/bin/busybox")
                lines = 'COPY busybox /bin/busybox\nRUN ["/bin/busybox", "--install", "-s", "/bin"]'
                self.from_scratch(settings, BUSYBOX, "busybox", busybox, lines)

    def build(self, settings: Settings, name: str, dockerfile: Path, context: Path, target: str) -> None:
        """Runs `buildah build` with the machine's certificates and its way to a package index."""
        arguments = self.arguments(settings) | {n: os.environ[n] for n in PIP_VARIABLES if n in os.environ}
        words = [word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")]
        if Path(CERTIFICATES).is_dir():
            words += ["--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"]
        if target:
            words += ["--target", target]
        self.bud(settings, name, dockerfile, context, words)

    def save(self, settings: Settings, name: str, archive: Path) -> None:
        """Runs `buildah push` to an archive."""
        if shutil.which("buildah") is None or not self.has(settings, name):
            raise CommandFailed(f"{name} is neither an archive nor an image that was built here")
        run([*self.command(settings), "push", name, f"docker-archive:{archive}:{name}"], seconds=BUILD_SECONDS)

    def command(self, settings: Settings) -> list[str]:
        """Buildah with storage of our own."""
        storage = settings.cache / "buildah"
        return ["buildah", "--root", f"{storage}/root", "--runroot", f"{storage}/run", "--storage-driver", "overlay"]

    def has(self, settings: Settings, name: str) -> bool:
        """Whether an image of this name was built here."""
        command = [*self.command(settings), "inspect", "--type", "image", name]
        return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0

    def from_scratch(self, settings: Settings, name: str, file: str, content: Path, lines: str) -> None:
        """A base image out of one file."""
        with tempfile.TemporaryDirectory(dir=settings.cache, prefix="base.") as folder:
            context = Path(folder)
            shutil.copy(content, context / file)
            (context / "Dockerfile").write_text(f"FROM scratch\n{lines}\n", "utf-8")
            self.bud(settings, name, context / "Dockerfile", context, [])

    def bud(self, settings: Settings, name: str, dockerfile: Path, context: Path, words: list[str]) -> None:
        """One run of `buildah build`, with its cache of layers."""
        run(
            [*self.command(settings), "build", "--isolation", "chroot", "--network", "host", "--layers",
             "--format", "docker", "--file", dockerfile, "--tag", name, *words, context],
            seconds=BUILD_SECONDS,
        )  # fmt: skip


def choose(settings: Settings) -> Builder:
    """The engine for kind, whose users have it; buildah where only packages are; for others what answers."""
    if settings.provider in ("local", "kind-offline") or (settings.provider == "existing" and not engine()):
        return Buildah()
    return Engine(engine() or "docker")


def engine() -> str:
    """`docker` or `podman`, whichever engine answers here; empty when none does."""
    return next((program for program in ("docker", "podman") if answers(program)), "")


def answers(program: str) -> bool:
    """Whether an engine answers behind this program."""
    if shutil.which(program) is None:
        return False
    try:
        done = subprocess.run([program, "version"], capture_output=True, check=False, timeout=10)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def architecture() -> str:
    """This machine's architecture, as images name it."""
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
