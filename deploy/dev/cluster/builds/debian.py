"""What clusters take from Debian: packages on this machine, packages beside it, and root file systems for images."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from deploy.dev.cluster.console import CommandFailed, run, run_logged, step
from deploy.dev.cluster.locks import lock
from deploy.dev.cluster.settings import Settings

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NODE_PACKAGES = (
    "iproute2", "openssl", "containernetworking-plugins", "nftables", "iptables", "conntrack", "catatonit",
    "busybox-static", "libseccomp-dev", "pkg-config", "gcc", "libc6-dev",
)  # fmt: skip
IMAGE_PACKAGES = ("buildah", "debootstrap", "busybox-static")
KIND_PACKAGES = (*NODE_PACKAGES, "debootstrap")
BROWSER_PACKAGES = ("chromium", "fonts-dejavu-core")
ROOT_PACKAGES = (
    "python3", "python3-venv", "python3-pip", "ca-certificates", "git", "openssh-client", "bash", "procps",
)  # fmt: skip
# A node of kind: what kind's own image installs, as far as a node without networked storage needs it.
KIND_ROOT_PACKAGES = (
    "systemd", "conntrack", "iptables", "nftables", "iproute2", "ethtool", "util-linux", "mount", "kmod", "hostname",
    "libseccomp2", "pigz", "e2fsprogs", "bash", "ca-certificates", "curl", "jq", "procps", "openssl", "socat",
    "containernetworking-plugins",
)  # fmt: skip
# Podman with the libraries that a bare machine has not got.
PODMAN_PACKAGES = (
    "podman", "conmon", "netavark", "aardvark-dns", "libgpgme11", "libassuan0", "libgpg-error0", "libdevmapper1.02.1",
    "libsubid4", "libsemanage2", "libglib2.0-0",
)  # fmt: skip
ROOT_RELEASE = "bookworm"
ROOT_VERSION = "1"
NOT_NEEDED = ("var/cache/apt", "var/lib/apt/lists", "var/cache/debconf", "var/log", "usr/share/doc", "usr/share/man",
              "usr/share/locale", "usr/share/info", "tmp")  # fmt: skip


def install(packages: tuple[str, ...]) -> None:
    """Installs what is missing of these packages."""
    absent = [package for package in packages if not installed(package)]
    if not absent:
        return
    if shutil.which("apt-get") is None:
        raise CommandFailed(
            f"these Debian packages are missing, and there is no apt-get to install them: {' '.join(absent)}"
        )
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with step(f"apt-get install {' '.join(absent)}"):
        run(["apt-get", "update", "-q"], seconds=300)
        run(["apt-get", "install", "-y", "-q", "--no-install-recommends", *absent], env=environment, seconds=600)


def installed(package: str) -> bool:
    """Whether dpkg knows the package as installed."""
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    except FileNotFoundError:
        raise CommandFailed("the local cluster needs a Debian machine (dpkg is not there)") from None
    return answer.stdout == "installed"


def unpacked(settings: Settings, *packages: str) -> Path:
    """Debian packages, unpacked below the cache and not installed: no service starts. Made once, named by the first."""
    name = packages[0]
    target = settings.cache / "debian" / name
    if target.exists():
        return target
    if shutil.which("apt-get") is None:
        raise CommandFailed(f"the Debian package {name} is wanted, and there is no apt-get to download it")
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
    """The folder of prometheus and promtool: the machine's own, else Debian's, unpacked."""
    found = shutil.which("prometheus")
    if found is not None and shutil.which("promtool") is not None:
        return Path(found).parent
    return unpacked(settings, "prometheus") / "usr" / "bin"


def browser() -> str:
    """A Chromium: the machine's own, else Debian's, installed."""
    names = ("chromium", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        install(BROWSER_PACKAGES)
        found = shutil.which(names[0])
    if found is None:
        raise CommandFailed("chromium was installed, but is not on PATH")
    return found


def root_archive(settings: Settings) -> Path:
    """A tar of a small Debian with python3, git and ssh, made once by debootstrap (about a minute)."""
    return debootstrapped(settings, f"debian-{ROOT_RELEASE}-{ROOT_VERSION}", ROOT_PACKAGES)


def kind_root_archive(settings: Settings) -> Path:
    """A tar of a Debian that can be a node of kind, made once by debootstrap (about a minute and a half)."""
    return debootstrapped(settings, f"debian-{ROOT_RELEASE}-kind-{ROOT_VERSION}", KIND_ROOT_PACKAGES)


def debootstrapped(settings: Settings, name: str, packages: tuple[str, ...]) -> Path:
    """A tar of a minimal Debian with these packages; it appears in the cache by a rename."""
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
        with step(f"debootstrap of {name} (60 to 90 s, once)"):
            # In a mount namespace of its own: what it mounts goes with it, also when it is killed.
            run_logged(
                ["unshare", "--mount", "debootstrap", "--variant=minbase", f"--include={','.join(packages)}",
                 ROOT_RELEASE, root],
                log, "debootstrap", cwd=archive.parent, env=dict(os.environ),
            )  # fmt: skip
            for folder in NOT_NEEDED:
                empty(root / folder)
            partial = archive.with_suffix(".partial")
            run(["tar", "--numeric-owner", "--exclude=./dev/*", "--exclude=./proc/*", "-C", root, "-cf", partial, "."],
                seconds=300)  # fmt: skip
            partial.replace(archive)
            shutil.rmtree(root)
    return archive


def empty(folder: Path) -> None:
    """Removes what is in a folder, and leaves the folder."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
