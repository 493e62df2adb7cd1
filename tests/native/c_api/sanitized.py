"""libodin and its programs, compiled with a sanitizer: with OpenVINO, and with test doubles of CUDA
and TensorRT.

OpenVINO and its TBB are not instrumented, so the thread sanitizer does not see how their threads
wait for each other. It does see their memcpy and memset, which are the C library's, and would take
each for a race: accesses that the C library makes are left out, those that compiled code of ours
makes are not.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from native.c_api.programs import HERE, Programs, build
from native.toolchain import INCLUDE, KERNELS, SOURCES, attempt, cxx, run

DOUBLE = HERE / "double"
# TBB loads one of its libraries in a way (RTLD_DEEPBIND) that sanitizers refuse, if not told.
_TBB = ("TBB_ENABLE_SANITIZERS", "1")


@dataclass(frozen=True)
class Sanitizer:
    """Flags of the compiler, and variables of the programs."""

    flags: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]


SANITIZERS = {
    "address": Sanitizer(
        # Compiled in half the time that any optimising takes with these two.
        ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
        (
            _TBB,
            ("UBSAN_OPTIONS", "print_stacktrace=1"),
            ("LSAN_OPTIONS", f"suppressions={HERE / 'leaks.supp'}:print_suppressions=0"),
        ),
    ),
    "thread": Sanitizer(
        ("-O1", "-fsanitize=thread"),
        (_TBB, ("TSAN_OPTIONS", "ignore_interceptors_accesses=1 halt_on_error=1")),
    ),
}


def sanitized_programs(folder: Path, name: str) -> Programs:
    """The programs that `build_sanitized` has left in a folder."""
    found = ("LD_LIBRARY_PATH", str(folder / "tensorrt"))
    environment = (*SANITIZERS[name].environment, found)
    return Programs(folder / "program_c", folder / "program_cpp", environment)


def build_sanitized(folder: Path, name: str) -> None:
    """Compile libraries and programs, or skip the test where that cannot be."""
    flags = ["-g1", *SANITIZERS[name].flags]
    _check_compiler(folder, flags)
    common = [str(cxx()), "-std=c++17", "-fPIC", "-Wall", "-Wextra", f"-I{DOUBLE}", *flags]
    linked = [f"-L{folder}", "-lodin_double", f"-Wl,-rpath,{folder}"]

    def library(file: str, *arguments: str | Path) -> None:
        made = [*common, "-shared", *map(str, arguments), "-o", str(folder / file)]
        run(made, timeout=600)

    library("libodin_double.so", DOUBLE / "cudart.cpp")
    (folder / "tensorrt").mkdir(exist_ok=True)  # where libodin's own path does not lead
    library("tensorrt/libnvinfer.so.99", DOUBLE / "nvinfer.cpp", *linked)
    library("libodin.so", *_libodin(folder), *linked)
    program = [f"-I{INCLUDE}", f"-I{DOUBLE}", f"-L{folder}", "-lodin", *linked]
    build(folder, [*flags, *program], names=("program.c", "program.cpp", "gpu.cpp"))


def _libodin(folder: Path) -> list[str | Path]:
    """The compiler's arguments for libodin, as CMake gives them; but all in one file, which takes
    less time than many."""
    found = importlib.util.find_spec("openvino")
    assert found is not None and found.submodule_search_locations
    openvino = Path(found.submodule_search_locations[0])
    (runtime,) = (openvino / "libs").glob("libopenvino.so.*")
    sources = sorted((SOURCES / "scorer").glob("*.cpp"))
    unity = folder / "libodin.cpp"
    unity.write_text(
        "".join(f'#include "{file}"\n' for file in sources if not file.name.startswith("no_")),
        "utf-8",
    )
    return [
        *("-ffp-contract=off", "-fvisibility=hidden", "-DODIN_BUILDING"),
        '-DODIN_TENSORRT_LIBRARY=""',
        *(f"-I{each}" for each in (SOURCES / "scorer", SOURCES, KERNELS, INCLUDE)),
        *("-isystem", openvino / "include"),
        *(unity, SOURCES / "api.cpp", SOURCES / "status.cpp", DOUBLE / "kernels.cpp"),
        *(runtime, f"-Wl,-rpath,{runtime.parent}"),
        *(f"-Wl,--version-script={SOURCES / 'scorer' / 'odin.map'}", "-Wl,-z,nodelete"),
    ]


def _check_compiler(folder: Path, flags: Sequence[str]) -> None:
    """Skip the test where the compiler has no such sanitizer, or its programs do not run here."""
    empty = folder / "empty.cpp"
    empty.write_text("int main() { return 0; }\n", "utf-8")
    program = folder / "empty"
    for command in ([str(cxx()), *flags, str(empty), "-o", str(program)], [str(program)]):
        done = attempt(command)
        if done.returncode != 0:
            shutil.rmtree(folder)
            pytest.skip(f"no sanitizer here, {' '.join(flags)}: {done.stdout.strip()[:200]}")
