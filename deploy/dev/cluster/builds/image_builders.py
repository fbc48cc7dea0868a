"""Build images from Dockerfiles, by the engine of this machine (Docker or podman) or else by buildah.

Both builders use the same Dockerfiles. Only the base images differ, which a build gets as build arguments. An engine
uses the public images. buildah uses a Debian from debootstrap, because buildah runs where no registry can be reached.
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

# Seconds until a build of one image fails.
BUILD_SECONDS = 900
BASE = f"localhost/sealci-base:{debian.ROOT_VERSION}"
BUSYBOX = "localhost/sealci-busybox:1"
CERTIFICATES = "/etc/ssl/certs"
# Environment variables by which pip finds this machine's package index. Those that are set are passed to each build.
PIP_VARIABLES = ("PIP_CERT", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST")


class Builder(Protocol):
    """A program that builds images and writes them as docker archives."""

    def arguments(self, settings: Settings) -> dict[str, str]:
        """Return the build arguments that the builder passes to each Dockerfile and on which the image depends."""

    def prepare(self, settings: Settings) -> None:
        """Install and build what the builder needs before it can build an image."""

    def build(self, settings: Settings, name: str, dockerfile: Path, context: Path, target: str) -> None:
        """Build the image `name`. `target` is a stage of the Dockerfile, or "" for the last stage."""

    def save(self, settings: Settings, name: str, archive: Path) -> None:
        """Write an image as a docker archive. Raise CommandFailed if the builder has no image of this name."""


class Engine:
    """The builder that uses Docker or podman of this machine."""

    def __init__(self, program: str) -> None:
        self.program = program

    def arguments(self, settings: Settings) -> dict[str, str]:  # noqa: ARG002 - the builder's interface
        # No build argument is needed, because the default base images in the Dockerfiles are the public images.
        return {}

    def prepare(self, settings: Settings) -> None:
        """Do nothing. Docker and podman need no preparation."""

    def build(self, settings: Settings, name: str, dockerfile: Path, context: Path, target: str) -> None:  # noqa: ARG002 - the builder's interface
        stage = ["--target", target] if target else []
        run([self.program, "build", "--file", dockerfile, "--tag", name, *stage, context], seconds=BUILD_SECONDS)

    def save(self, settings: Settings, name: str, archive: Path) -> None:  # noqa: ARG002 - the builder's interface
        run([self.program, "save", "--output", archive, name], seconds=BUILD_SECONDS)


class Buildah:
    """The builder that uses buildah with a storage of its own in the cache."""

    def arguments(self, settings: Settings) -> dict[str, str]:  # noqa: ARG002 - the builder's interface
        return {"BASE": BASE, "BUSYBOX": BUSYBOX}

    def prepare(self, settings: Settings) -> None:
        """Install buildah, and build the base images for the Dockerfiles if they do not exist."""
        if os.geteuid() != 0:
            raise CommandFailed("building images with buildah needs root. Run the command with sudo.")
        debian.install(debian.IMAGE_PACKAGES)
        root = debian.root_archive(settings)
        with locks.lock(settings.cache / "images.lock", "another build of images"):
            if not self.has(settings, BASE):
                with step(f"base image {BASE}"):
                    self.build_base_image(settings, BASE, "root.tar", root, "ADD root.tar /")
            if not self.has(settings, BUSYBOX):
                busybox = Path(shutil.which("busybox") or "/bin/busybox")
                lines = 'COPY busybox /bin/busybox\nRUN ["/bin/busybox", "--install", "-s", "/bin"]'
                self.build_base_image(settings, BUSYBOX, "busybox", busybox, lines)

    def build(self, settings: Settings, name: str, dockerfile: Path, context: Path, target: str) -> None:
        arguments = self.arguments(settings) | {n: os.environ[n] for n in PIP_VARIABLES if n in os.environ}
        words = [word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")]
        # pip's package index can have a certificate that only this machine trusts. So the build mounts this machine's
        # certificates.
        if Path(CERTIFICATES).is_dir():
            words += ["--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"]
        if target:
            words += ["--target", target]
        self.run_build(settings, name, dockerfile, context, words)

    def save(self, settings: Settings, name: str, archive: Path) -> None:
        if shutil.which("buildah") is None or not self.has(settings, name):
            raise CommandFailed(f"{name} is neither an archive nor an image that this machine built")
        run([*self.command(settings), "push", name, f"docker-archive:{archive}:{name}"], seconds=BUILD_SECONDS)

    def command(self, settings: Settings) -> list[str]:
        """Return the start of a command line that makes buildah use the storage in the cache."""
        storage = settings.cache / "buildah"
        return ["buildah", "--root", f"{storage}/root", "--runroot", f"{storage}/run", "--storage-driver", "overlay"]

    def has(self, settings: Settings, name: str) -> bool:
        command = [*self.command(settings), "inspect", "--type", "image", name]
        return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0

    def build_base_image(self, settings: Settings, name: str, file: str, content: Path, lines: str) -> None:
        """Build an image `FROM scratch`. The build context contains the file or folder `content` under the name `file`.

        `lines` are all lines of the Dockerfile after `FROM`. They copy `file` into the image.
        """
        with tempfile.TemporaryDirectory(dir=settings.cache, prefix="base.") as folder:
            context = Path(folder)
            shutil.copy(content, context / file)
            (context / "Dockerfile").write_text(f"FROM scratch\n{lines}\n", "utf-8")
            self.run_build(settings, name, context / "Dockerfile", context, [])

    def run_build(self, settings: Settings, name: str, dockerfile: Path, context: Path, words: list[str]) -> None:
        # buildah's `chroot` isolation also works if this machine is a container. With the network of this machine, a
        # build can reach pip's package index.
        run(
            [*self.command(settings), "build", "--isolation", "chroot", "--network", "host", "--layers",
             "--format", "docker", "--file", dockerfile, "--tag", name, *words, context],
            seconds=BUILD_SECONDS,
        )  # fmt: skip


def choose(settings: Settings) -> Builder:
    """Return the builder that fits the cluster's provider.

    The providers `local` and `kind-offline` use buildah even if Docker answers, because they must work without a
    registry.
    """
    if settings.provider in ("local", "kind-offline") or (settings.provider == "existing" and not find_engine()):
        return Buildah()
    return Engine(find_engine() or "docker")


def find_engine() -> str:
    """Return `docker` or `podman`, the first one that answers on this machine, or an empty string."""
    return next((program for program in ("docker", "podman") if answers(program)), "")


def answers(program: str) -> bool:
    """Return whether the engine behind `program` answers. Docker's client can be installed without its engine."""
    if shutil.which(program) is None:
        return False
    try:
        done = subprocess.run([program, "version"], capture_output=True, check=False, timeout=10)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def architecture() -> str:
    """Return this machine's architecture as names of images contain it, like amd64."""
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
