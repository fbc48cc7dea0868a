"""Run podman from unpacked Debian packages, configured by files and environment variables alone.

This podman neither reads nor writes the files of a podman that is installed on this machine. Images come from a
read-only store, which all clusters share (see node_image.py). A cluster's own storage lies in the cluster's folder.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from deploy.dev.cluster.builds import debian, go_build
from deploy.dev.cluster.settings import Settings

NETWORK = "kind"


def unpack(settings: Settings) -> Path:
    """Return the folder that contains podman's unpacked Debian packages.

    Download the packages if the folder does not exist.
    """
    return debian.unpack(settings, *debian.PODMAN_PACKAGES)


def environment(settings: Settings, folder: Path) -> dict[str, str]:
    """Return the environment variables for podman, and for kind with podman.

    `folder` contains podman's configuration, which `configure` has written.
    """
    root = unpack(settings)
    libraries = sorted({str(path.parent) for path in (root / "usr" / "lib").glob("*/lib*.so*")})
    return {
        "PATH": f"{root}/usr/bin:{debian.SYSTEM_PATH}",
        "LD_LIBRARY_PATH": ":".join([*libraries, *(str(path) for path in root.glob("lib/*-linux-gnu"))]),
        "HOME": str(folder),
        "CONTAINERS_CONF": f"{folder}/containers.conf",
        "CONTAINERS_STORAGE_CONF": f"{folder}/storage.conf",
        "KIND_EXPERIMENTAL_PROVIDER": "podman",
    }


def configure(settings: Settings, folder: Path, storage: Path, *stores: Path) -> None:
    """Write podman's configuration into `folder`.

    Podman writes images to `storage`, and also reads images from `stores`.
    """
    trust = folder / ".config" / "containers"
    trust.mkdir(parents=True, exist_ok=True)
    # Without this file podman refuses every image.
    (trust / "policy.json").write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}), "utf-8")
    (folder / "storage.conf").write_text(storage_toml(storage, *stores), "utf-8")
    runc = go_build.binary(settings, "runc")
    (folder / "containers.conf").write_text(containers_toml(unpack(settings), runc, folder), "utf-8")


def storage_toml(storage: Path, *stores: Path) -> str:
    """Return the text of podman's storage.conf. The state of running containers is below /run.

    Podman writes images to `storage`, and also reads images from `stores`.
    """
    return f"""[storage]
driver = "overlay"
graphroot = "{storage}"
runroot = "/run/containers/storage"

[storage.options]
additionalimagestores = {json.dumps([str(store) for store in stores])}
"""


def containers_toml(root: Path, runc: Path, folder: Path) -> str:
    """Return the text of podman's containers.conf for unpacked programs on a machine without systemd.

    `root` has the unpacked packages, `runc` is the runtime, and `folder` gets the configurations of networks.
    """
    return f"""[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
conmon_path = ["{root}/usr/bin/conmon"]
helper_binaries_dir = ["{root}/usr/lib/podman"]
runtime = "runc"

[engine.runtimes]
runc = ["{runc}"]

[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
"""


def with_environment(variables: dict[str, str]) -> list[str]:
    """Return the first words of a command line that runs a program with these additional environment variables."""
    return ["env", *(f"{name}={value}" for name, value in variables.items())]


def merged_environment(settings: Settings, folder: Path) -> dict[str, str]:
    """Return this process' environment variables. Variables that podman needs replace those of the same name."""
    return os.environ | environment(settings, folder)
