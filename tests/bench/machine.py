"""CPU and memory of the machine and of processes, from /proc."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def busy() -> float:
    """Return the CPU seconds that all processes of the machine have used."""
    fields = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _wait, interrupt, soft, steal = fields
    return (user + nice + system + interrupt + soft + steal) / TICKS


def cpu_of(pid: int) -> float:
    """Return the CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory_of(pid: int) -> int:
    """Return the resident memory of a process in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_of(pid: int) -> int:
    """Return the largest resident memory that a process has had, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise AssertionError(f"process {pid} has ended")


def sockets_of(pid: int) -> int:
    """Return the number of open sockets of a process."""
    count = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        # The process can close a descriptor after the list of descriptors was read.
        with suppress(FileNotFoundError):
            count += os.readlink(link).startswith("socket:")
    return count


def name() -> str:
    """Return the number and model of the CPUs, for the heading of the results."""
    models = [
        line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{os.cpu_count()} x {models[0] if models else os.uname().machine}"
