"""Fixtures: the libraries, built once: for the host alone, with the fat binary, and installed."""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from native.c_api.programs import Programs, build_with_cmake
from native.c_api.sanitized import build_sanitized, sanitized_programs
from native.toolchain import cmake, configure, cuda_tool, cxx, run
from native.twins import Twins
from odin_engines.bundle import Bundle, read_bundle


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
    """The build folder of a library without kernels, and of libodin with this Python's OpenVINO."""
    python = f"-DPython_EXECUTABLE={sys.executable}"
    return build_once("host", "-DODIN_CUDA=OFF", "-DCMAKE_CXX_FLAGS_RELEASE=-O1", python)


@pytest.fixture(scope="session")
def cuda_build(build_once: Callable[..., Path]) -> Path:
    """The build folder of a library with kernels for all targets, and of the fat binary."""
    nvcc = f"-DODIN_NVCC={cuda_tool('nvcc')}"
    return build_once("cuda", "-DODIN_CUDA=ON", "-DODIN_SCORER=OFF", nvcc)


@pytest.fixture(scope="session")
def twins(host_build: Path) -> Twins:
    """The host twins, called through the C library."""
    return Twins(host_build / "runtime" / "libodin_kernels.so")


@pytest.fixture(scope="session")
def scorer_prefix(host_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where libodin is installed."""
    pytest.importorskip("openvino", reason="libodin scores with it: pip install openvino")

    def make(folder: Path) -> None:
        run([cmake(), "--install", host_build, "--prefix", folder])

    return made_once(tmp_path_factory, "scorer", make)


@pytest.fixture(scope="session")
def programs(scorer_prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """A C and a C++ program that use it, built by find_package."""

    def make(folder: Path) -> None:
        build_with_cmake(folder, scorer_prefix)

    folder = made_once(tmp_path_factory, "programs", make) / "build"
    return Programs(folder / "c_program", folder / "cpp_program")


@pytest.fixture(scope="session")
def densenet10_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """DenseNet-BC-100-12 with the weights of the package and a graph for ONNX Runtime, exported
    once, which takes half a minute; tests must not change it."""
    from odin_export.exporter import export

    def make(folder: Path) -> None:
        export("densenet10", None, folder / "bundle", engine="ort")

    return read_bundle(made_once(tmp_path_factory, "densenet10", make) / "bundle")


@pytest.fixture(scope="session")
def sanitized_address(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """The library and its programs, watched for addresses and undefined behaviour."""
    return _sanitized("address", tmp_path_factory)


@pytest.fixture(scope="session")
def sanitized_thread(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """The same, watched for races."""
    return _sanitized("thread", tmp_path_factory)


def _sanitized(name: str, factory: pytest.TempPathFactory) -> Programs:
    pytest.importorskip("openvino", reason="libodin scores with it: pip install openvino")
    folder = made_once(factory, f"odin-{name}", lambda folder: build_sanitized(folder, name))
    return sanitized_programs(folder, name)
