"""pycuda for the tests of its driver, where it is not installed.

It comes as source alone. Its sources are compiled as its setup does, but unoptimised, which takes a
quarter of the time; against the CUDA headers of the tests' extra, and bound to libcuda.so.1,
which in the scenarios' processes is the test double. Built once, into the user's cache.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from drivers.double_library import NAME, cuda_headers
from native.toolchain import attempt, cxx
from odin_engines.files import user_cache

VERSION = "2026.1"
BOOST = "bpl-subset/bpl_subset"
# As its setup defines them: its own subset of Boost, under another name.
DEFINES = (
    "NDEBUG",
    "BOOST_ALL_NO_LIB=1",
    "BOOST_MULTI_INDEX_DISABLE_SERIALIZATION=1",
    "BOOST_PYTHON_SOURCE=1",
    "BOOST_THREAD_BUILD_DLL=1",
    "BOOST_THREAD_DONT_USE_CHRONO=1",
    "boost=pycudaboost",
    "PYGPU_PACKAGE=pycuda",
    "PYGPU_PYCUDA=1",
)
# Compiled as one file: the headers, which all of them read, take most of the time.
BOOST_SOURCES = ("python/src/**/*.cpp", "system/src/*.cpp", "thread/src/pthread/*.cpp")
DRIVER_SOURCES = ("wrapper/wrap_cudadrv", "wrapper/mempool", "cpp/cuda", "cpp/bitlog")
STRUCT_SOURCE = "wrapper/_pvt_struct_v3"


class CommandError(Exception):
    """A command failed; says which and how."""


class NoSourceError(Exception):
    """There is no package index to have pycuda's source from."""


def is_installed() -> bool:
    """Whether this Python has pycuda of its own."""
    return find_spec("pycuda") is not None


def pycuda_path() -> Path:
    """The folder to put on the path for pycuda.

    Without a compiler or a package index the test is skipped; source that does not compile
    fails it.
    """
    cuda_headers(), cxx()  # skip without
    found = _built()
    if isinstance(found, str):
        pytest.skip(found)
    if isinstance(found, CommandError):
        raise found
    return found


@functools.cache  # also why not: it is tried once a process
def _built() -> Path | str | CommandError:
    cache = user_cache()
    if cache is None:
        return "pycuda is not installed, and there is no home folder to build it in"
    folder = cache / "tests" / f"pycuda-{VERSION}-{_key()}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent) as work:
                try:
                    build(Path(work)).rename(folder)
                except NoSourceError as error:
                    return f"pycuda is not installed, and its source cannot be had: {error}"
                except CommandError as error:
                    return error
    return folder


def _key() -> str:
    """Of all that goes into the build."""
    parts = [sysconfig.get_platform(), str(sys.implementation.cache_tag), np.__version__]
    parts += [(cuda_headers() / "cuda.h").read_text("utf-8"), Path(__file__).read_text("utf-8")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def build(work: Path) -> Path:
    """Download and build pycuda; return the folder that holds the package."""
    source, target = _download(work), work / "built"
    (source / BOOST / "pycudaboost").symlink_to("boost")
    shutil.copytree(source / "pycuda", target / "pycuda")
    shutil.copytree(source / "pycuda.egg-info", target / "pycuda.egg-info")
    # Nothing of it is called here; it makes the module name the library that it needs.
    _run([cxx(), "-shared", f"-Wl,-soname,{NAME}", "-o", work / "libcuda.so"])
    driver = [source / "src" / f"{name}.cpp" for name in DRIVER_SOURCES]
    struct = source / "src" / f"{STRUCT_SOURCE}.cpp"
    *objects, struct_object = _compile(source, [*driver, _boost(source), struct])
    needed = ["-Wl,--no-as-needed", f"-L{work}", "-lcuda"]
    _link(target / "pycuda" / "_driver", [*objects, *needed])
    _link(target / "pycuda" / "_pvt_struct", [struct_object])
    return target


def _download(work: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "1"]
    options = ["--no-deps", "--no-build-isolation", "--no-binary", "pycuda", "--dest", work]
    try:
        _run([*pip, "download", "-q", *options, f"pycuda=={VERSION}"])
    except (CommandError, subprocess.TimeoutExpired) as error:
        raise NoSourceError(error) from error
    (archive,) = work.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(work, filter="data")
    return work / f"pycuda-{VERSION}"


def _boost(source: Path) -> Path:
    """Write the file that includes Boost's."""
    files = [file for one in BOOST_SOURCES for file in (source / BOOST / "libs").glob(one)]
    whole = source / "boost.cpp"
    whole.write_text("".join(f'#include "{file}"\n' for file in sorted(files)), "utf-8")
    return whole


def _compile(source: Path, files: Sequence[Path]) -> list[Path]:
    """Compile files, two at a time; return the objects."""
    includes = [source / "src" / "cpp", source / BOOST, cuda_headers(), np.get_include()]
    includes.append(Path(sysconfig.get_path("include")))
    flags = ["-std=c++17", "-O0", "-fPIC", "-w", *(f"-D{define}" for define in DEFINES)]
    flags += [f"-I{folder}" for folder in includes]

    def one(file: Path) -> Path:
        _run([cxx(), *flags, "-c", file, "-o", file.with_suffix(".o")])
        return file.with_suffix(".o")

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, files))


def _link(module: Path, inputs: Sequence[str | Path]) -> None:
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    _run([cxx(), "-shared", "-o", f"{module}{suffix}", *inputs])


def _run(command: Sequence[str | Path]) -> None:
    done = attempt(command, timeout=300)
    if done.returncode:
        lines = done.stdout.strip().splitlines() or ["no output"]
        telling = [line for line in lines if "error" in line.lower()] or lines[-1:]
        raise CommandError(f"{Path(command[0]).name} failed: {telling[0]}")
