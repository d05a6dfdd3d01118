"""What this machine, or the container around this process, has left."""

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def num_usable_cores() -> int:
    """Cores that this process may keep busy: its affinity, within a container's quota."""
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _read(CGROUP / "cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        num_cores = min(num_cores or 1, max(int(quota[0]) // int(quota[1]), 1))
    return num_cores or 1


def available_memory_bytes() -> int:
    """Memory that can be taken without swapping: of the machine, within a container's limit."""
    available = _meminfo("MemAvailable:")
    limit = _read(CGROUP / "memory.max").strip()
    used = _read(CGROUP / "memory.current").strip()
    if limit.isdigit() and used.isdigit():
        available = min(available, int(limit) - int(used) + _inactive_file_bytes())
    return max(available, 0)


def _meminfo(name: str) -> int:
    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _inactive_file_bytes() -> int:
    """Page cache that the kernel gives back before it kills anyone."""
    for line in _read(CGROUP / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == "inactive_file":
            return int(value)
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""
