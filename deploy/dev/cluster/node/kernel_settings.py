"""Restore the kernel settings that a cluster changes for the whole machine.

The first cluster on a machine saves the values, and `down` of the last cluster restores them.
"""

from __future__ import annotations

import json
from pathlib import Path

from deploy.dev.cluster.settings import Settings

# Settings below /proc/sys: those that a kubelet sets at its start, and the forwarding that lets pods leave the machine.
KERNEL_SETTINGS = (
    "vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes", "net/ipv4/ip_forward",
)  # fmt: skip


def record_path(settings: Settings) -> Path:
    return settings.cache / "run" / "kernel-settings.json"


def save(settings: Settings) -> None:
    """Save those of the machine's kernel settings that no other cluster has saved.

    If another cluster has saved a setting, that cluster has perhaps changed the setting already.
    """
    record = record_path(settings)
    saved = json.loads(record.read_text("utf-8")) if record.exists() else {}
    now = {n: path.read_text("utf-8") for n in KERNEL_SETTINGS if (path := Path("/proc/sys") / n).exists()}
    values = now | saved
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
