"""Podman without an installation: unpacked from Debian's packages, configured by files and environment variables alone.

Nothing of the machine's own podman, its storage or its settings is read or written. Images come from a store that is
read-only and shared by all clusters (see node_image.py); a cluster's own storage lies in its folder and goes with it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from deploy.dev.cluster.builds import debian, go_build
from deploy.dev.cluster.settings import Settings

NETWORK = "kind"


def prefix(settings: Settings) -> Path:
    """Where podman is unpacked, downloaded when it is not there."""
    return debian.unpacked(settings, *debian.PODMAN_PACKAGES)


def environment(settings: Settings, folder: Path) -> dict[str, str]:
    """What podman, and kind on top of it, are run with; `configure` must have written the folder."""
    unpacked = prefix(settings)
    libraries = sorted({str(path.parent) for path in (unpacked / "usr" / "lib").glob("*/lib*.so*")})
    return {
        "PATH": f"{unpacked}/usr/bin:{debian.SYSTEM_PATH}",
        "LD_LIBRARY_PATH": ":".join([*libraries, *(str(path) for path in unpacked.glob("lib/*-linux-gnu"))]),
        "HOME": str(folder),
        "CONTAINERS_CONF": f"{folder}/containers.conf",
        "CONTAINERS_STORAGE_CONF": f"{folder}/storage.conf",
        "KIND_EXPERIMENTAL_PROVIDER": "podman",
    }


def configure(settings: Settings, folder: Path, storage: Path, *stores: Path) -> None:
    """Writes podman's settings into a folder: images and containers in `storage`, read-only images from `stores`."""
    trust = folder / ".config" / "containers"
    trust.mkdir(parents=True, exist_ok=True)
    (trust / "policy.json").write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}), "utf-8")
    (folder / "storage.conf").write_text(storage_toml(storage, *stores), "utf-8")
    runc = go_build.binary(settings, "runc")
    (folder / "containers.conf").write_text(containers_toml(prefix(settings), runc, folder), "utf-8")


def storage_toml(storage: Path, *stores: Path) -> str:
    """containers/storage's settings; what lives only while containers run is below /run."""
    return f"""[storage]
driver = "overlay"
graphroot = "{storage}"
runroot = "/run/containers/storage"

[storage.options]
additionalimagestores = {json.dumps([str(store) for store in stores])}
"""


def containers_toml(unpacked: Path, runc: Path, folder: Path) -> str:
    """Podman's settings: programs by their paths, plain cgroups, no journal, networks in the folder."""
    return f"""[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
conmon_path = ["{unpacked}/usr/bin/conmon"]
helper_binaries_dir = ["{unpacked}/usr/lib/podman"]
runtime = "runc"

[engine.runtimes]
runc = ["{runc}"]

[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
"""


def with_environment(variables: dict[str, str]) -> list[str]:
    """The beginning of a command that has these variables beside its own."""
    return ["env", *(f"{name}={value}" for name, value in variables.items())]


def variables(settings: Settings, folder: Path) -> dict[str, str]:
    """This process' environment, with podman's over it."""
    return os.environ | environment(settings, folder)
