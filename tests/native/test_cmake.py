"""The CMake project: what it builds with which compilers, what it installs, who can use that."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from native.toolchain import CUDA_REMEDY, ROOT, attempt, cmake, cuda_tool, cxx, generator, run

CONSUMER_CMAKE = """
cmake_minimum_required(VERSION 3.20)
project(consumer LANGUAGES C)
set(CMAKE_C_STANDARD 99)
set(CMAKE_C_EXTENSIONS OFF)
find_package(odin 0.1 REQUIRED)
message(STATUS "has cuda: ${odin_HAS_CUDA}; fatbin: '${odin_FATBIN}'")
add_executable(consumer main.c)
target_compile_options(consumer PRIVATE -Wall -Wextra -pedantic -Werror)
target_link_libraries(consumer PRIVATE odin::kernels)
"""
CONSUMER_C = """
#include <odin/kernels.h>
#include <stdio.h>

int main(void) {
  const float logits[4] = {0, 0, 0, 0};
  float score = 0;
  int64_t label = -1;
  odin_status status = odin_score_host(ODIN_F32, logits, &score, NULL, &label, NULL, NULL, 1000,
                                       1, 1, 4);
  printf("%d %g %d %s\\n", odin_version(), score, (int)label, odin_status_text(status));
  return status;
}
"""


def try_configure(
    folder: Path, *options: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [cmake(), "-S", ROOT, "-B", folder, *generator(), *options]
    return attempt(command, **environment)


def without_compilers(folder: Path) -> str:
    """A PATH that holds CMake and Ninja, and neither nvcc nor a C++ compiler."""
    folder.mkdir()
    for name in ("cmake", "ninja", "make"):
        found = shutil.which(name)
        if found:
            (folder / name).symlink_to(found)
    return str(folder)


def build_consumer(folder: Path, prefix: Path) -> tuple[str, str]:
    """Configure, build and run a program that uses an installed tree; what these printed."""
    if not (shutil.which("cc") or os.environ.get("CC")):
        pytest.skip("no C compiler is found; install gcc or set CC")
    source = folder / "consumer"
    source.mkdir()
    (source / "CMakeLists.txt").write_text(CONSUMER_CMAKE, "utf-8")
    (source / "main.c").write_text(CONSUMER_C, "utf-8")
    build = source / "build"
    configured = run(
        [cmake(), "-S", source, "-B", build, *generator(), f"-DCMAKE_PREFIX_PATH={prefix}"]
    )
    run([cmake(), "--build", build])
    return configured, run([build / "consumer"])


def test_an_installed_tree_serves_a_c_program(host_build: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "prefix"
    run([cmake(), "--install", host_build, "--prefix", prefix])
    assert not list(prefix.rglob("*.fatbin"))
    moved = prefix.rename(tmp_path / "elsewhere")  # nothing in it names its first place
    configured, printed = build_consumer(tmp_path, moved)
    assert "has cuda: OFF; fatbin: ''" in configured
    assert printed == "100 0.25 0 success\n"


def test_an_installed_tree_with_kernels(cuda_build: Path, tmp_path: Path) -> None:
    """The program needs no CUDA library to start and to call the host twins."""
    prefix = tmp_path / "prefix"
    run([cmake(), "--install", cuda_build, "--prefix", prefix])
    (fatbin,) = prefix.rglob("odin_kernels.fatbin")
    configured, printed = build_consumer(tmp_path, prefix)
    assert f"has cuda: ON; fatbin: '{fatbin}'" in configured
    assert printed == "100 0.25 0 success\n"


@pytest.mark.parametrize("version", ["0.2", "1.0"])
def test_another_version_is_refused(host_build: Path, tmp_path: Path, version: str) -> None:
    run([cmake(), "--install", host_build, "--prefix", tmp_path / "prefix"])
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(consumer LANGUAGES NONE)\n"
        f"find_package(odin {version} REQUIRED)\n",
        "utf-8",
    )
    path = f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}"
    done = attempt([cmake(), "-S", tmp_path, "-B", tmp_path / "b", *generator(), path])
    assert done.returncode != 0
    assert "version: 0.1.0" in done.stdout


def test_without_nvcc_the_host_twins_are_built(tmp_path: Path) -> None:
    """An nvcc that was asked for and is not there is not replaced by another."""
    cxx_flag = f"-DCMAKE_CXX_COMPILER={cxx()}"
    reason = "host twins alone: /missing/nvcc cannot compile: no such file or directory"
    done = try_configure(tmp_path / "option", cxx_flag, "-DODIN_NVCC=/missing/nvcc")
    assert done.returncode == 0
    assert reason in done.stdout
    done = try_configure(tmp_path / "variable", cxx_flag, CUDACXX="/missing/nvcc")
    assert done.returncode == 0
    assert reason in done.stdout


def test_the_kernels_are_asked_for_in_three_words(tmp_path: Path) -> None:
    cxx_flag = f"-DCMAKE_CXX_COMPILER={cxx()}"
    done = try_configure(tmp_path / "off", cxx_flag, "-DODIN_CUDA=off")
    assert "host twins alone: ODIN_CUDA is OFF" in done.stdout
    done = try_configure(tmp_path / "no", cxx_flag, "-DODIN_CUDA=NO")
    assert done.returncode != 0
    assert "ODIN_CUDA is NO; it must be AUTO, ON or OFF" in done.stdout


def test_the_compiler_of_the_python_packages_is_found(tmp_path: Path) -> None:
    packages = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin"
    if not (packages / "nvcc").exists():
        pytest.skip(f"no nvcc among the Python packages; {CUDA_REMEDY}")
    if Path("/usr/bin/nvcc").exists():
        pytest.skip("nvcc lies in /usr/bin, beside the C++ compiler, and comes first")
    done = try_configure(
        tmp_path / "build",
        f"-DCMAKE_CXX_COMPILER={cxx()}",
        f"-DPython_EXECUTABLE={sys.executable}",
        "-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF",
        PATH=f"{without_compilers(tmp_path / 'bin')}:/usr/bin:/bin",
        CUDACXX="",
        CUDA_PATH="",
    )
    assert done.returncode == 0, done.stdout
    assert f"nvcc: {packages / 'nvcc'}; machine code for 75;80;86;89;90;100;120" in done.stdout


def test_an_nvcc_that_does_not_work_is_told(tmp_path: Path) -> None:
    """As with one whose headers are not installed: its own first line is the reason."""
    broken = tmp_path / "nvcc"
    broken.write_text("#!/bin/sh\necho 'fatal error: cuda_fp16.h: no such file' >&2\nexit 1\n")
    broken.chmod(0o755)
    cxx_flag = f"-DCMAKE_CXX_COMPILER={cxx()}"
    done = try_configure(tmp_path / "auto", cxx_flag, CUDACXX=str(broken))
    assert done.returncode == 0
    reason = f"{broken} cannot compile: fatal error: cuda_fp16.h: no such file"
    assert f"host twins alone: {reason}" in done.stdout
    demanded = try_configure(tmp_path / "on", cxx_flag, "-DODIN_CUDA=ON", CUDACXX=str(broken))
    assert demanded.returncode != 0
    assert "ODIN_CUDA is ON, but" in demanded.stdout


def test_without_a_cxx_compiler_it_still_configures_and_builds(tmp_path: Path) -> None:
    path = without_compilers(tmp_path / "bin")
    done = try_configure(tmp_path / "build", PATH=path, CXX="/missing/c++")
    assert done.returncode == 0, done.stdout
    assert "no C++ compiler; nothing is built" in done.stdout
    assert run([cmake(), "--build", tmp_path / "build"], PATH=path)
    demanded = try_configure(tmp_path / "on", "-DODIN_CUDA=ON", PATH=path, CXX="/missing/c++")
    assert demanded.returncode != 0
    assert "needs a C++ compiler" in demanded.stdout


def test_unknown_architectures_are_left_out(tmp_path: Path) -> None:
    """An older nvcc builds what it can and says what it cannot."""
    nvcc = cuda_tool("nvcc")
    flags = (f"-DCMAKE_CXX_COMPILER={cxx()}", f"-DODIN_NVCC={nvcc}")
    done = try_configure(tmp_path / "some", *flags, "-DODIN_CUDA_ARCHITECTURES=90;999")
    assert done.returncode == 0
    said = " ".join(done.stdout.split())  # CMake wraps its warnings
    assert "does not know sm_999" in said
    assert "machine code for 90, PTX for 75" in said
    none = try_configure(tmp_path / "none", *flags, "-DODIN_CUDA_ARCHITECTURES=999")
    assert none.returncode == 0
    assert "compiles for none of 999" in none.stdout
    no_ptx = try_configure(tmp_path / "ptx", *flags, "-DODIN_PTX_ARCHITECTURE=30")
    assert no_ptx.returncode == 0
    assert "makes no PTX for 30" in no_ptx.stdout


def test_a_wheel_holds_the_fat_binary_alone(tmp_path: Path) -> None:
    """As scikit-build-core calls it: SKBUILD is set, and what is installed goes into the wheel."""
    nvcc, build, wheel = cuda_tool("nvcc"), tmp_path / "build", tmp_path / "wheel"
    flags = (
        f"-DCMAKE_CXX_COMPILER={cxx()}",
        f"-DODIN_NVCC={nvcc}",
        "-DSKBUILD=2",
        "-DODIN_CUDA_ARCHITECTURES=75",  # the PTX's: compiled once for both
    )
    assert try_configure(build, *flags).returncode == 0
    run([cmake(), "--build", build])
    run([cmake(), "--install", build, "--prefix", wheel])
    files = [str(path.relative_to(wheel)) for path in wheel.rglob("*") if path.is_file()]
    assert files == ["odin_runtime/odin_kernels.fatbin"]


def test_a_wheel_without_nvcc_is_empty_and_says_so(tmp_path: Path) -> None:
    flags = (f"-DCMAKE_CXX_COMPILER={cxx()}", "-DODIN_CUDA=OFF", "-DSKBUILD=2")
    done = try_configure(tmp_path / "build", *flags)
    assert done.returncode == 0
    assert "the wheel holds no CUDA kernels: ODIN_CUDA is OFF" in done.stdout
    run([cmake(), "--build", tmp_path / "build"])
    run([cmake(), "--install", tmp_path / "build", "--prefix", tmp_path / "wheel"])
    assert not (tmp_path / "wheel" / "odin_runtime").exists()


FATBIN = "odin_runtime/odin_kernels.fatbin"


def built_wheel(folder: Path, *defines: str, **environment: str) -> zipfile.ZipFile:
    """The wheel that pip makes of the repository, with CMake's definitions."""
    isolation = (
        [] if not importlib.util.find_spec("scikit_build_core") else ["--no-build-isolation"]
    )
    settings = [f"--config-settings=cmake.define.{define}" for define in defines]
    command = [sys.executable, "-m", "pip", "wheel", ROOT, "--no-deps", "--wheel-dir", folder]
    run([*command, *isolation, *settings], timeout=600, **environment)
    (wheel,) = folder.iterdir()
    assert wheel.name == "odin_ood-0.1.0-py3-none-any.whl"
    return zipfile.ZipFile(wheel)


@pytest.mark.slow
def test_wheels_with_and_without_nvcc(tmp_path: Path) -> None:
    """They differ by the fat binary alone, which holds every kernel; the build needs no nvcc."""
    nvcc = str(cuda_tool("nvcc"))
    full = built_wheel(tmp_path / "full", "ODIN_CUDA_ARCHITECTURES=75", CUDACXX=nvcc)
    files = set(full.namelist())
    off = built_wheel(tmp_path / "off", "ODIN_CUDA=OFF", CUDACXX=nvcc)
    missing = built_wheel(tmp_path / "missing", CUDACXX="/missing/nvcc")
    assert set(off.namelist()) == set(missing.namelist()) == files - {FATBIN}
    assert FATBIN in files
    for package in ("odin_export", "odin_engines", "odin_runtime", "odin_bench"):
        assert {f"{package}/__init__.py", f"{package}/py.typed"} <= files
    assert "odin_export/weights/densenet10.safetensors" in files
    assert not [name for name in files if name.startswith(("tests", "runtime/", "."))]
    path = full.extract(FATBIN, tmp_path)
    used = run([cuda_tool("cuobjdump"), "-res-usage", path])
    for kernel in ("normalize", "perturb", "score", "first_order"):
        for suffix in ("f32", "f16", "bf16"):
            assert f"Function odin_{kernel}_{suffix}:" in used
