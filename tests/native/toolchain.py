"""The compilers that tests use: nvcc and its tools, a C++ compiler, CMake."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
KERNELS = ROOT / "runtime" / "kernels"
INCLUDE = ROOT / "runtime" / "include"
SOURCES = ROOT / "runtime" / "src"
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)

CUDA_REMEDY = (
    "pip install nvidia-cuda-nvcc nvidia-cuda-crt nvidia-cuda-cccl nvidia-nvvm nvidia-cuda-runtime "
    "nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm, or set CUDACXX"
)


def find_cuda_tool(name: str) -> Path | None:
    """The path of nvcc, cuobjdump or nvdisasm: beside CUDACXX, in the running Python's packages,
    in CUDA_PATH, in PATH."""
    folders = [
        Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin",
        *([Path(os.environ["CUDA_PATH"]) / "bin"] if "CUDA_PATH" in os.environ else []),
    ]
    chosen = shutil.which(os.environ.get("CUDACXX", ""))
    if chosen:
        folders.insert(0, Path(chosen).parent)
    path = os.pathsep.join([*map(str, folders), os.environ.get("PATH", "")])
    found = shutil.which(name, path=path)
    return Path(found) if found else None


def cuda_tool(name: str) -> Path:
    """The same, or the test is skipped."""
    found = find_cuda_tool(name)
    if found is None:
        pytest.skip(f"{name} is not found; {CUDA_REMEDY}")
    return found


def find_cxx() -> Path | None:
    """The path of a C++ compiler: CXX, c++, g++ or clang++."""
    for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        found = shutil.which(name) if name else None
        if found:
            return Path(found)
    return None


def cxx() -> Path:
    """The same, or the test is skipped."""
    found = find_cxx()
    if found is None:
        pytest.skip("no C++ compiler is found; install g++ or set CXX")
    return found


def cmake() -> Path:
    """The path of CMake, the running Python's first, or the test is skipped."""
    beside = Path(sys.executable).parent / "cmake"
    found = str(beside) if beside.exists() else shutil.which("cmake")
    if not found:
        pytest.skip("cmake is not found; pip install cmake ninja")
    return Path(found)


def run(command: Sequence[str | Path], timeout: float = 300, **environment: str) -> str:
    """Run a command and return what it printed; a failing one fails the test with its output."""
    done = attempt(command, timeout, **environment)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}"
    return done.stdout


def attempt(
    command: Sequence[str | Path], timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command that may fail; stdout holds stderr too."""
    return subprocess.run(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, **environment},
    )


def configure(folder: Path, *options: str) -> str:
    """Configure the repository's CMake project in a folder; return what CMake printed."""
    return run([cmake(), "-S", ROOT, "-B", folder, *generator(), *options])


def generator() -> list[str]:
    """CMake's flags for Ninja, the running Python's first; without one its default."""
    beside = Path(sys.executable).parent / "ninja"
    found = str(beside) if beside.exists() else shutil.which("ninja")
    return ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={found}"] if found else []


def compile_ptx(target: Path, architecture: int = 75) -> Path:
    """Compile the kernels to a PTX file, or skip the test."""
    flags = ["-std=c++17", "-O3", "-ptx", f"-arch=compute_{architecture}"]
    source = KERNELS / "odin_kernels.cu"
    run([cuda_tool("nvcc"), "-ccbin", cxx(), *flags, source, "-o", target])
    return target
