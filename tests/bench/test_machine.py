"""What the system's files tell of the CPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from odin_bench import machine

XEON = """\
processor\t: {thread}
model name\t: Intel(R) Xeon(R) Platinum 8480+
physical id\t: {socket}
core id\t\t: {core}
flags\t\t: fpu sse2 avx avx2 fma avx512f avx512_vnni avx512_bf16 amx_bf16 amx_tile amx_int8
"""
ARM = """\
processor\t: 0
Features\t: fp asimd asimdhp sve i8mm bf16
CPU part\t: 0xd40

processor\t: 1
Features\t: fp asimd asimdhp sve i8mm bf16
CPU part\t: 0xd40
"""
MEMORY = "MemTotal:       24683116 kB\nMemFree:  77 kB\nMemAvailable:   15728640 kB\n"


def test_two_sockets_of_two_cores_of_two_threads(tmp_path: Path) -> None:
    threads = [(index, index % 2, index // 2 % 2) for index in range(8)]
    parts = [XEON.format(thread=t, socket=s, core=c) for t, s, c in threads]
    (tmp_path / "cpuinfo").write_text("\n".join(parts))
    (tmp_path / "meminfo").write_text(MEMORY)
    found = machine.describe(tmp_path)
    assert found.cpu == "Intel(R) Xeon(R) Platinum 8480+"
    assert found.cores == 4
    assert found.vectors == (
        *("AVX2", "FMA", "AVX-512", "AVX-512 VNNI", "AVX-512 bf16"),
        *("AMX", "AMX int8", "AMX bf16"),
    )
    assert (found.memory, found.free_memory) == (24683116 * 1024, 15 * 2**30)


def test_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    (tmp_path / "cpuinfo").write_text(ARM)
    found = machine.describe(tmp_path)
    assert found.cpu == "aarch64"
    assert found.vectors == ("NEON", "NEON fp16", "SVE", "int8 matrices", "bf16")
    assert (found.cores, found.memory, found.free_memory) == (0, 0, 0)


def test_a_system_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    found = machine.describe(tmp_path)
    assert found.cpu
    assert found.threads == found.usable_threads == os.cpu_count()
    assert found.vectors == ()


def test_this_machine() -> None:
    found = machine.describe()
    assert 1 <= found.usable_threads <= found.threads
    assert found.free_memory <= found.memory
    assert found.python in os.sys.version
