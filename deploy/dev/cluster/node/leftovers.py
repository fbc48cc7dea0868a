"""What a local cluster leaves on the machine, and how it is removed: processes, link, cgroups, mounts, folder.

Every removal looks at the machine and not at a record of what was done, so it is right after a clean `down`, after
half an `up`, after a `kill -9` and after a reboot.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from deploy.dev.cluster.console import CommandFailed, run
from deploy.dev.cluster.node import processes
from deploy.dev.cluster.settings import LINK_PREFIX, Settings

CGROUP_SECONDS = 20.0
CNI_STATE = Path("/var/lib/cni")
# A kubelet sets these for the whole machine; `down` gives them back.
KERNEL_SETTINGS = (
    "vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
)  # fmt: skip


def remove(settings: Settings) -> None:
    """Removes everything of this cluster. Nothing to remove is fine."""
    folder = settings.folder
    processes.end_node(folder)
    link = Path("/sys/class/net") / settings.name
    if link.exists():
        try:
            run(["ip", "link", "delete", settings.name])
        except CommandFailed:
            # It goes with the namespace on its other end too, in the kernel's own time.
            if link.exists():
                raise
    for cgroup in cgroups(settings):
        remove_cgroup(cgroup)
    for mount in reversed(mounts_below(folder)):
        run(["umount", "--lazy", mount])
    if not other_clusters():
        restore_kernel_settings(settings)
        if CNI_STATE.is_dir() and not any(CNI_STATE.iterdir()):
            CNI_STATE.rmdir()
    if folder.exists():
        # Renamed first: whatever interrupts the removal, what is left is no cluster any more.
        rubbish = folder.with_name(f"{folder.name}.removed")
        shutil.rmtree(rubbish, ignore_errors=True)
        folder.replace(rubbish)
    shutil.rmtree(folder.with_name(f"{folder.name}.removed"), ignore_errors=True)


def other_clusters() -> bool:
    """Whether another cluster lives here: what they share on the machine is given back by the last one."""
    return any(link.name.startswith(LINK_PREFIX) for link in Path("/sys/class/net").iterdir())


def cgroups(settings: Settings) -> list[Path]:
    """The cluster's own cgroup in every hierarchy that has it."""
    roots = [Path(line.split()[1]) for line in mount_table() if line.split()[2] in ("cgroup", "cgroup2")]
    return [root / settings.name for root in roots if (root / settings.name).is_dir()]


def create_cgroups(settings: Settings) -> None:
    """Makes the cgroup under which the kubelet puts all pods; the kubelet refuses one that is not there."""
    for line in mount_table():
        _, root, kind, *_ = line.split()
        if kind not in ("cgroup", "cgroup2"):
            continue
        group = Path(root) / settings.name
        group.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):
            if kind == "cgroup" and (group / name).exists():
                (group / name).write_text((Path(root) / name).read_text("utf-8"), "utf-8")


def remove_cgroup(top: Path) -> None:
    """Removes a cgroup and all below it, deepest first, once the kernel has let their processes go."""
    deadline = time.monotonic() + CGROUP_SECONDS
    while top.exists():
        for group in sorted((p for p in [top, *top.rglob("*")] if p.is_dir()), key=lambda p: -len(p.parts)):
            try:
                group.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                break
        if top.exists() and time.monotonic() > deadline:
            raise CommandFailed(f"the cgroup {top} still has processes, which this cluster did not start")
        if top.exists():
            time.sleep(0.05)


def mount_table() -> list[str]:
    """One line per mount that this process sees: device, place, type, options."""
    return Path("/proc/self/mounts").read_text("utf-8").splitlines()


def mounts_below(folder: Path) -> list[str]:
    """Mounts inside a folder that this process sees, outermost first."""
    places = (line.split()[1].encode().decode("unicode_escape") for line in mount_table())
    return [place for place in places if Path(place).is_relative_to(folder)]


def kernel_settings(settings: Settings) -> Path:
    """Where the machine's own values are kept while clusters live."""
    return settings.cache / "run" / "kernel-settings.json"


def remember_kernel_settings(settings: Settings) -> None:
    """Writes down what a kubelet is about to change on the machine, unless another one did already."""
    record = kernel_settings(settings)
    if record.exists():
        return
    values = {n: path.read_text("utf-8") for n in KERNEL_SETTINGS if (path := Path("/proc/sys") / n).exists()}
    partial = record.with_suffix(".partial")
    partial.write_text(json.dumps(values), "utf-8")
    partial.replace(record)


def restore_kernel_settings(settings: Settings) -> None:
    """Gives the machine its own values back, if they were written down."""
    record = kernel_settings(settings)
    if not record.exists():
        return
    for name, value in json.loads(record.read_text("utf-8")).items():
        (Path("/proc/sys") / name).write_text(value, "utf-8")
    record.unlink()
