"""Fixtures: the kernels' library, built once, for the host alone and with the fat binary."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest

from native.toolchain import cmake, configure, cuda_tool, cxx, run
from native.twins import Twins


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder of the session that the first test process to ask fills, by make(folder)."""
    base = factory.getbasetemp()
    # pytest-xdist: each process has its own folder in the session's.
    shared = base.parent if base.name.startswith("popen-") else base
    folder = shared / name
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            (folder / "done").touch()
    return folder


@pytest.fixture(scope="session")
def build_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function: name, options of CMake -> the build folder, shared by parallel test processes."""

    def build(name: str, *options: str) -> Path:
        def make(folder: Path) -> None:
            configure(folder, f"-DCMAKE_CXX_COMPILER={cxx()}", *options)
            run([cmake(), "--build", folder], timeout=600)

        return made_once(tmp_path_factory, f"odin-{name}", make)

    return build


@pytest.fixture(scope="session")
def host_build(build_once: Callable[..., Path]) -> Path:
    """The build folder of a library without kernels."""
    return build_once("host", "-DODIN_CUDA=OFF")


@pytest.fixture(scope="session")
def cuda_build(build_once: Callable[..., Path]) -> Path:
    """The build folder of a library with kernels for all targets, and of the fat binary."""
    return build_once("cuda", "-DODIN_CUDA=ON", f"-DODIN_NVCC={cuda_tool('nvcc')}")


@pytest.fixture(scope="session")
def twins(host_build: Path) -> Twins:
    """The host twins, called through the C library."""
    return Twins(host_build / "runtime" / "libodin_kernels.so")
