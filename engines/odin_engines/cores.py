"""How many cores there are to compute on."""

from __future__ import annotations

import os
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")


def physical_cores(topology: Path = _TOPOLOGY) -> int:
    """The cores that this process may run on; two threads of one core compute no faster than one.

    Args:
        topology: the folder in which Linux tells which threads share a core; elsewhere every thread
            is taken for a core.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    threads = affinity(0) if affinity else range(os.cpu_count() or 1)
    return len({_siblings(topology, thread) for thread in threads})


def _siblings(topology: Path, thread: int) -> str:
    file = topology / f"cpu{thread}" / "topology" / "thread_siblings_list"
    return file.read_text().strip() if file.is_file() else str(thread)
