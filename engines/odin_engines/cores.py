"""How many cores there are to compute on."""

from __future__ import annotations

import os
from pathlib import Path

from odin_engines.engine import Tuning

_TOPOLOGY = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def physical_cores(topology: Path = _TOPOLOGY, quota: Path = _QUOTA) -> int:
    """The cores that this process may use; two threads of one core compute no faster than one.

    Args:
        topology: the folder in which Linux tells which threads share a core; elsewhere every thread
            is taken for a core.
        quota: the file in which Linux tells a container's share of the processors' time.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    threads = affinity(0) if affinity else range(os.cpu_count() or 1)
    cores = len({_siblings(topology, thread) for thread in threads})
    return min(cores, quota_cores(quota) or cores)


def quota_cores(quota: Path = _QUOTA) -> int | None:
    """Whole processors' worth of time that this container may use, at least one; None: no bound.

    Engines count cores by themselves and know nothing of it: with a thread on each core, all stand
    still together whenever it is used up.
    """
    try:
        time, period = quota.read_text().split()
        return max(int(time) // int(period), 1)
    except (OSError, ValueError):  # no such file, or "max"
        return None


def threads_of(tuning: Tuning) -> int | None:
    """How many threads an engine is to be told to use; None leaves it to the engine."""
    if tuning.threads is None and quota_cores() is not None:
        return physical_cores()
    return tuning.threads


def streams_of(tuning: Tuning) -> int:
    """How many batches are computed at once: one for each thread or core, if not said otherwise."""
    threads = tuning.threads or physical_cores()
    return min(tuning.streams or threads, threads)


def _siblings(topology: Path, thread: int) -> str:
    file = topology / f"cpu{thread}" / "topology" / "thread_siblings_list"
    return file.read_text().strip() if file.is_file() else str(thread)
