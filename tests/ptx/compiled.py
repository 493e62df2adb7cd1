"""The kernels as nvcc's PTX, compiled once a test process; without nvcc the tests are skipped."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path

from native.toolchain import KERNELS, compile_ptx, cuda_tool, cxx, run
from ptx.interpreter import Interpreter

SOURCE = "odin_kernels.cu"


@functools.cache
def ptx_text(target: int = 75) -> str:
    """PTX of all kernels for a virtual architecture."""
    with tempfile.TemporaryDirectory() as folder:
        return compile_ptx(Path(folder) / "kernels.ptx", target).read_text("utf-8")


@functools.cache
def interpreter(target: int = 75, approximation: int = 0) -> Interpreter:
    """The kernels, ready to run; `approximation` as in Interpreter."""
    return Interpreter(ptx_text(target), approximation=approximation)


def sources() -> dict[str, str]:
    """The kernels' files by name."""
    return {file.name: file.read_text("utf-8") for file in sorted(KERNELS.iterdir())}


def compile_sources(texts: Mapping[str, str], suffix: str) -> Interpreter:
    """Compile changed sources, the kernels of one type alone."""
    lines = texts[SOURCE].splitlines()
    types = [line for line in lines if line.startswith("ODIN_KERNELS(")]
    other = [line for line in types if f"({suffix}," not in line]
    assert len(other) == 2, "the types are listed otherwise than these tests expect"
    with tempfile.TemporaryDirectory() as folder:
        for name, text in texts.items():
            Path(folder, name).write_text(text, "utf-8")
        Path(folder, SOURCE).write_text("\n".join(line for line in lines if line not in other))
        target = Path(folder, "kernels.ptx")
        flags = ["-std=c++17", "-ptx", "-arch=compute_75", "-ccbin", cxx()]
        run([cuda_tool("nvcc"), *flags, Path(folder, SOURCE), "-o", target])
        return Interpreter(target.read_text("utf-8"))
