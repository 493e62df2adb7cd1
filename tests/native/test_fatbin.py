"""The fat binary for all targets: names, parameters, and the budget of each kernel's machine code.

Nothing is executed. What the budget is for: no spilled registers and no local memory, enough
registers left for the blocks that a multiprocessor should hold, 16-byte loads and stores, and no
atomics, so that results are the same from run to run.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from native.toolchain import ARCHITECTURES, compile_ptx, cuda_tool, run

SUFFIXES = ("f32", "f16", "bf16")
# The most registers a thread on any target, a little above what nvcc 13.0 and 13.5 take; a thread
# block's share of 65,536 limits the occupancy.
REGISTERS = {
    "odin_normalize": {"f32": 42, "f16": 48, "bf16": 42},
    "odin_perturb": {"f32": 54, "f16": 66, "bf16": 66},
    "odin_score": {"f32": 90, "f16": 84, "bf16": 84},
    "odin_first_order": {"f32": 60, "f16": 58, "bf16": 58},
}
SHARED_BYTES = {"odin_normalize": 0, "odin_perturb": 0, "odin_score": 96, "odin_first_order": 32}
WIDE_LOADS = ("odin_perturb", "odin_score", "odin_first_order")
WIDE_STORES = ("odin_normalize", "odin_perturb", "odin_score")
# Elementwise kernels store single elements where a group does not fit (two: a branch for NaN).
NARROW_STORES = {"odin_normalize": 1, "odin_perturb": 2}
POINTER, INT64, INT32, FLOAT = "u64", "u64", "u32", "f32"
PARAMETERS = {
    "odin_normalize": [POINTER] * 4 + [INT64, INT64, INT32],
    "odin_perturb": [POINTER] * 7 + [INT64, INT64, INT32, INT32],
    "odin_score": [POINTER] * 6 + [FLOAT, FLOAT, INT64, INT64],
    "odin_first_order": [POINTER] * 6 + [INT64, INT64, INT32, INT32],
}
BLOCKS = {
    "odin_normalize": 256,
    "odin_perturb": 256,
    "odin_score": 128,
    "odin_first_order": 256,
}
NAMES = sorted(f"{kernel}_{suffix}" for kernel in REGISTERS for suffix in SUFFIXES)


def kernel_of(name: str) -> str:
    return name.rpartition("_")[0]


def by_architecture(listing: str) -> dict[int, str]:
    """Split what cuobjdump prints of a fat binary's machine code by architecture."""
    parts = re.split(r"^Fatbin elf code:$", listing, flags=re.MULTILINE)[1:]
    return {int(re.findall(r"arch = sm_(\d+)", part)[0]): part for part in parts}


def by_function(listing: str) -> dict[str, str]:
    """Split one architecture's listing by kernel."""
    parts = re.split(r"^\s*Function\s*:?\s*(\w+):?\s*$", listing, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture(scope="module")
def fatbin(cuda_build: Path) -> Path:
    return cuda_build / "odin_kernels.fatbin"


@pytest.fixture(scope="module")
def usage(fatbin: Path) -> dict[int, dict[str, dict[str, int]]]:
    """Architecture -> kernel -> what it uses: REG, STACK, SHARED, LOCAL."""
    listing = run([cuda_tool("cuobjdump"), "-res-usage", fatbin])
    return {
        architecture: {
            name: {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", text)}
            for name, text in by_function(part).items()
        }
        for architecture, part in by_architecture(listing).items()
    }


@pytest.fixture(scope="module")
def machine_code(fatbin: Path) -> dict[int, dict[str, str]]:
    """Architecture -> kernel -> its instructions. cuobjdump finds nvdisasm in PATH."""
    path = str(cuda_tool("nvdisasm").parent)
    listing = run([cuda_tool("cuobjdump"), "-sass", fatbin], PATH=f"{path}:/usr/bin:/bin")
    return {
        architecture: by_function(part) for architecture, part in by_architecture(listing).items()
    }


@pytest.fixture(scope="module")
def ptx(fatbin: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of the fat binary's one PTX module."""
    folder = tmp_path_factory.mktemp("ptx")
    tool = cuda_tool("cuobjdump")
    run(["sh", "-c", f"cd '{folder}' && '{tool}' -xptx all '{fatbin}'"])
    (file,) = folder.glob("*.ptx")
    return file.read_text("utf-8")


def test_all_targets_and_all_names(usage: dict[int, dict[str, dict[str, int]]]) -> None:
    assert sorted(usage) == sorted(ARCHITECTURES)
    for architecture, kernels in usage.items():
        assert sorted(kernels) == NAMES, architecture


def test_registers_and_spills(usage: dict[int, dict[str, dict[str, int]]]) -> None:
    for architecture, kernels in usage.items():
        for name, used in kernels.items():
            where = f"{name} on sm_{architecture}"
            assert used["REG"] <= REGISTERS[kernel_of(name)][name.rpartition("_")[2]], where
            assert used["STACK"] == used["LOCAL"] == 0, where
            # From sm_90 on the driver reserves 1 KiB of each block's shared memory.
            reserved = 1024 if architecture >= 90 else 0
            assert used["SHARED"] <= SHARED_BYTES[kernel_of(name)] + reserved, where


def test_wide_loads_and_stores(machine_code: dict[int, dict[str, str]]) -> None:
    assert sorted(machine_code) == sorted(ARCHITECTURES)
    for architecture, kernels in machine_code.items():
        assert sorted(kernels) == NAMES
        for name, text in kernels.items():
            where = f"{name} on sm_{architecture}"
            if kernel_of(name) in WIDE_LOADS:
                assert "LDG.E.128" in text, where
            if kernel_of(name) in WIDE_STORES:
                assert "STG.E.128" in text, where


def test_whole_groups_are_stored_in_128_bits(machine_code: dict[int, dict[str, str]]) -> None:
    for architecture, kernels in machine_code.items():
        for name, text in kernels.items():
            if kernel_of(name) in NARROW_STORES:
                stores = re.findall(r"\bSTG\.E[.\w]*", text)
                narrow = [store for store in stores if "128" not in store]
                where = f"{name} on sm_{architecture}: {stores}"
                assert len(narrow) <= NARROW_STORES[kernel_of(name)], where


def test_no_local_memory_and_no_atomics(machine_code: dict[int, dict[str, str]]) -> None:
    unwanted = re.compile(r"\b(LDL|STL|ATOM|ATOMG|ATOMS|RED|REDG)\b")
    for architecture, kernels in machine_code.items():
        for name, text in kernels.items():
            assert not unwanted.search(text), f"{name} on sm_{architecture}"


def test_ptx_is_for_the_oldest_target(ptx: str) -> None:
    """So the driver can compile it for every newer one that the fat binary has no code for."""
    assert f".target sm_{min(ARCHITECTURES)}" in ptx


def test_parameters_and_block_sizes(ptx: str) -> None:
    entries = re.findall(r"\.entry (\w+)\(([^)]*)\)\s*((?:\.\w+ [\d, ]+\s*)*)\{", ptx)
    assert sorted(name for name, *_ in entries) == NAMES
    for name, parameters, directives in entries:
        kernel = kernel_of(name)
        # Pointers carry ".ptr" and an alignment from some version of the compiler on.
        types = re.findall(r"\.param \.(\w+)", parameters)
        assert types == PARAMETERS[kernel], name
        assert re.findall(r"\.maxntid (\d+)", directives) == [str(BLOCKS[kernel])], name


def test_the_kernels_file_alone_compiles_to_ptx(tmp_path: Path) -> None:
    """As its header says, and for a newer target, which converts bfloat16 in one instruction."""
    text = compile_ptx(tmp_path / "kernels.ptx", 90).read_text("utf-8")
    assert sorted(re.findall(r"\.entry (\w+)", text)) == NAMES
    assert "cvt.rn.bf16.f32" in text
