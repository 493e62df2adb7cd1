"""What this machine computes with on its CPU, read off the operating system."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# What makes a difference to a network's speed, as /proc/cpuinfo spells it: x86, then ARM.
_VECTORS = {
    "avx2": "AVX2",
    "fma": "FMA",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 bf16",
    "avx512_fp16": "AVX-512 fp16",
    "amx_tile": "AMX",
    "amx_int8": "AMX int8",
    "amx_bf16": "AMX bf16",
    "amx_fp16": "AMX fp16",
    "asimd": "NEON",
    "asimdhp": "NEON fp16",
    "sve": "SVE",
    "sve2": "SVE2",
    "i8mm": "int8 matrices",
    "bf16": "bf16",
}


@dataclass(frozen=True)
class Machine:
    """What runs a network on the CPU.

    Attributes:
        system: the operating system and the processor's architecture.
        python: Python's version.
        cpu: the processor's name.
        cores: of all processors; 0 where the system does not tell.
        threads: that the system counts.
        usable_threads: that this process may run on.
        vectors: names of vector extensions.
        memory, free_memory: in bytes; 0 where the system does not tell.
    """

    system: str
    python: str
    cpu: str
    cores: int
    threads: int
    usable_threads: int
    vectors: tuple[str, ...]
    memory: int
    free_memory: int


def describe(proc: Path = Path("/proc")) -> Machine:
    """Describe this machine.

    Args:
        proc: the folder in which Linux tells of itself.
    """
    processors = [_fields(part.splitlines()) for part in _text(proc / "cpuinfo").split("\n\n")]
    first = processors[0]
    known = set((first.get("flags") or first.get("Features") or "").split())
    memory = _fields(_text(proc / "meminfo").splitlines())
    threads = os.cpu_count() or 1
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        cpu=first.get("model name") or platform.processor() or platform.machine(),
        cores=len({(p["physical id"], p["core id"]) for p in processors if "core id" in p}),
        threads=threads,
        usable_threads=len(affinity(0)) if affinity else threads,
        vectors=tuple(name for flag, name in _VECTORS.items() if flag in known),
        memory=_bytes(memory.get("MemTotal")),
        free_memory=_bytes(memory.get("MemAvailable")),
    )


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _fields(lines: Iterable[str]) -> dict[str, str]:
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, separator, value in pairs if separator}


def _bytes(kilobytes: str | None) -> int:
    """ "24576 kB" -> bytes."""
    return int(kilobytes.split()[0]) * 1024 if kilobytes else 0
