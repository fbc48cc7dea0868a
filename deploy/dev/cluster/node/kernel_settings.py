"""Restore the kernel settings that a kubelet changes for the whole machine.

The first cluster on a machine saves the values, and `down` of the last cluster restores them.
"""

from __future__ import annotations

import json
from pathlib import Path

from deploy.dev.cluster.settings import Settings

# The kernel settings that a kubelet changes at its start, as paths below /proc/sys.
KERNEL_SETTINGS = (
    "vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
)  # fmt: skip


def record_path(settings: Settings) -> Path:
    return settings.cache / "run" / "kernel-settings.json"


def save(settings: Settings) -> None:
    """Save the machine's kernel settings. Do nothing if another cluster on this machine has saved them.

    In that case the kubelet of the other cluster has changed the settings already.
    """
    record = record_path(settings)
    if record.exists():
        return
    values = {n: path.read_text("utf-8") for n in KERNEL_SETTINGS if (path := Path("/proc/sys") / n).exists()}
    partial = record.with_suffix(".partial")
    partial.write_text(json.dumps(values), "utf-8")
    partial.replace(record)


def restore(settings: Settings) -> None:
    """Write the saved kernel settings back. Do nothing if no settings are saved."""
    record = record_path(settings)
    if not record.exists():
        return
    for name, value in json.loads(record.read_text("utf-8")).items():
        (Path("/proc/sys") / name).write_text(value, "utf-8")
    record.unlink()
