"""Take from Debian what a cluster needs: installed packages, unpacked packages, and root file systems for images.

This module does not change packages that are installed already. Downloads and root file systems stay in the cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from deploy.dev.cluster.console import CommandFailed, run, run_logged, step
from deploy.dev.cluster.locks import lock
from deploy.dev.cluster.settings import Settings

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Debian packages that the local cluster needs on this machine, for its build and at run time.
NODE_PACKAGES = (
    "iproute2", "openssl", "containernetworking-plugins", "nftables", "iptables", "conntrack", "catatonit",
    "busybox-static", "libseccomp-dev", "pkg-config", "gcc", "libc6-dev",
)  # fmt: skip
# Debian packages that this machine needs to build images without Docker or podman.
IMAGE_PACKAGES = ("buildah", "debootstrap", "busybox-static")
KIND_PACKAGES = (*NODE_PACKAGES, "debootstrap")
BROWSER_PACKAGES = ("chromium", "fonts-dejavu-core")
# Debian packages in the base image from which buildah builds the agent's image and the images of the tests.
ROOT_PACKAGES = (
    "python3", "python3-venv", "python3-pip", "ca-certificates", "git", "openssh-client", "bash", "procps",
)  # fmt: skip
# Debian packages in kind's own node image, except those for networked storage.
KIND_ROOT_PACKAGES = (
    "systemd", "conntrack", "iptables", "nftables", "iproute2", "ethtool", "util-linux", "mount", "kmod", "hostname",
    "libseccomp2", "pigz", "e2fsprogs", "bash", "ca-certificates", "curl", "jq", "procps", "openssl", "socat",
    "containernetworking-plugins",
)  # fmt: skip
# Debian packages of podman, and of libraries that podman needs and a minimal Debian lacks.
PODMAN_PACKAGES = (
    "podman", "conmon", "netavark", "aardvark-dns", "libgpgme11", "libassuan0", "libgpg-error0", "libdevmapper1.02.1",
    "libsubid4", "libsemanage2", "libglib2.0-0",
)  # fmt: skip
ROOT_RELEASE = "bookworm"
# Part of the name of every root file system. Raise the version to rebuild all root file systems with newer packages.
ROOT_VERSION = "1"
# Folders of a root file system whose content is deleted after the build, because the images do not need the content.
EMPTIED_FOLDERS = (
    "var/cache/apt", "var/lib/apt/lists", "var/cache/debconf", "var/log", "usr/share/doc", "usr/share/man",
    "usr/share/locale", "usr/share/info", "tmp",
)  # fmt: skip


def install(packages: tuple[str, ...]) -> None:
    """Install those of `packages` that are not installed. Raise CommandFailed if apt-get is missing."""
    absent = [package for package in packages if not is_installed(package)]
    if not absent:
        return
    if shutil.which("apt-get") is None:
        raise CommandFailed(f"apt-get is missing, and cannot install these Debian packages: {' '.join(absent)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with step(f"apt-get install {' '.join(absent)}"):
        run(["apt-get", "update", "-q"], seconds=300)
        run(["apt-get", "install", "-y", "-q", "--no-install-recommends", *absent], env=environment, seconds=600)


def is_installed(package: str) -> bool:
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    except FileNotFoundError:
        raise CommandFailed("this cluster needs a Debian machine, and dpkg is missing") from None
    return answer.stdout == "installed"


def unpack(settings: Settings, *packages: str) -> Path:
    """Unpack Debian packages into a folder of the cache, unless this was done before. Return the folder.

    The folder is named after the first package. The packages are not installed, so that no service starts and no other
    package changes.
    """
    name = packages[0]
    target = settings.cache / "debian" / name
    if target.exists():
        return target
    if shutil.which("apt-get") is None:
        raise CommandFailed(f"apt-get is missing, and cannot download the Debian package {name}")
    with lock(settings.cache / "debian.lock", "another download"):
        if target.exists():
            return target
        partial = target.with_name(f".{name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with step(f"apt-get download {' '.join(packages)}"):
            run(["apt-get", "update", "-q"], seconds=300)
            run(["apt-get", "download", "-q", *packages], cwd=partial, seconds=300)
            for archive in partial.glob("*.deb"):
                run(["dpkg", "-x", archive, partial], seconds=60)
                archive.unlink()
        partial.replace(target)
    return target


def prometheus(settings: Settings) -> Path:
    """Return the folder of prometheus and promtool: the installed programs, or else Debian's package, unpacked."""
    found = shutil.which("prometheus")
    if found is not None and shutil.which("promtool") is not None:
        return Path(found).parent
    return unpack(settings, "prometheus") / "usr" / "bin"


def registry(settings: Settings) -> Path:
    """Return the path of docker-registry: the installed program, or else that of Debian's package, unpacked."""
    found = shutil.which("docker-registry")
    return Path(found) if found is not None else unpack(settings, "docker-registry") / "usr" / "bin" / "docker-registry"


def browser() -> str:
    """Return the path of an installed Chromium or Chrome. Install Debian's Chromium if there is neither."""
    names = ("chromium", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        install(BROWSER_PACKAGES)
        found = shutil.which(names[0])
    if found is None:
        raise CommandFailed("Debian's chromium was installed, but chromium is not on PATH")
    return found


def root_archive(settings: Settings) -> Path:
    """Return the path of a tar: a Debian root file system with python3, git and ssh. The first call takes a minute."""
    return debootstrap(settings, f"debian-{ROOT_RELEASE}-{ROOT_VERSION}", ROOT_PACKAGES)


def kind_root_archive(settings: Settings) -> Path:
    """Return the path of a tar: a Debian root file system for a node of kind. The first call takes 90 seconds."""
    return debootstrap(settings, f"debian-{ROOT_RELEASE}-kind-{ROOT_VERSION}", KIND_ROOT_PACKAGES)


def debootstrap(settings: Settings, name: str, packages: tuple[str, ...]) -> Path:
    """Return the path of the tar of a minimal Debian with these packages. Build the tar if the cache lacks it.

    `name` is part of the name of the tar.
    """
    archive = settings.cache / "images" / f"{name}.tar"
    if archive.exists():
        return archive
    with lock(settings.cache / "images.lock", "another build of images"):
        if archive.exists():
            return archive
        archive.parent.mkdir(parents=True, exist_ok=True)
        log = settings.cache / "log" / "debootstrap.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        root = archive.with_name("debootstrap")
        shutil.rmtree(root, ignore_errors=True)
        with step(f"debootstrap of {name} (60 to 90 s, only once)"):
            # debootstrap runs in a mount namespace of its own, so that its mounts end with the process, even if the
            # process is killed.
            run_logged(
                ["unshare", "--mount", "debootstrap", "--variant=minbase", f"--include={','.join(packages)}",
                 ROOT_RELEASE, root],
                log, "debootstrap", cwd=archive.parent, env=dict(os.environ),
            )  # fmt: skip
            for folder in EMPTIED_FOLDERS:
                empty_folder(root / folder)
            partial = archive.with_suffix(".partial")
            run(["tar", "--numeric-owner", "--exclude=./dev/*", "--exclude=./proc/*", "-C", root, "-cf", partial, "."],
                seconds=300)  # fmt: skip
            partial.replace(archive)
            shutil.rmtree(root)
    return archive


def empty_folder(folder: Path) -> None:
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
