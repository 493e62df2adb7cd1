"""The test double of libcuda.so.1 (double/): building it, and talking to it from a scenario."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from native.toolchain import cxx

SOURCES = Path(__file__).parent / "double"
NAME = "libcuda.so.1"
DEVICE_NAME = "odin test double, not a GPU"
LAUNCH_FAILED = 719  # CUDA_ERROR_LAUNCH_FAILED
# The double looks no further than this: the magic number of a fat binary.
IMAGE = b"\x50\xed\x55\xba" + bytes(60)

CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint32),
    ctypes.POINTER(ctypes.c_uint32),
    ctypes.c_uint32,
    ctypes.c_void_p,
    ctypes.c_size_t,
)


def cuda_headers() -> Path:
    """The folder with cuda.h, or the test is skipped."""
    folders = [Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "include"]
    folders += [Path(os.environ["CUDA_PATH"]) / "include"] if "CUDA_PATH" in os.environ else []
    folders.append(Path("/usr/local/cuda/include"))
    for folder in folders:
        if (folder / "cuda.h").exists():
            return folder
    pytest.skip("cuda.h is not found; pip install nvidia-cuda-runtime")


def build_double(folder: Path) -> None:
    """Compile the double into a folder, two files at a time."""
    flags = ["-std=c++17", "-O0", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-I{cuda_headers()}"]
    compiler = cxx()
    sources = sorted(SOURCES.glob("*.cpp"))
    objects = [folder / f"{source.name}.o" for source in sources]

    def run(*arguments: str | Path) -> None:
        command = [str(part) for part in (compiler, *arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr

    with ThreadPoolExecutor(2) as pool:
        jobs = zip(sources, objects, strict=True)
        list(pool.map(lambda job: run(*flags, "-c", job[0], "-o", job[1]), jobs))
    link = ["-shared", f"-Wl,-soname,{NAME}", "-o", folder / NAME]
    run(*link, *objects)


@dataclass(frozen=True)
class Launch:
    """A kernel whose turn has come."""

    name: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    parameters: bytes


class Double:
    """The double that this process has loaded as the driver library."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(NAME)
        self._library.odin_double_report.restype = ctypes.c_size_t
        self._library.odin_double_foreign_stream.restype = ctypes.c_void_p
        self._library.odin_double_live.restype = ctypes.c_size_t
        self._callback: object = None
        self.case = 0  # which one of a scenario's the test asks for
        self.faults: list[str] = []
        self.files: dict[str, Path] = {}  # which the test has given the scenario

    def configure(self, **options: int) -> None:
        """Set options: devices, driver_version, major, minor, init_error, seed ..."""
        self.case = options.pop("case", self.case)
        for option, value in options.items():
            wrong = self._library.odin_double_configure(option.encode(), ctypes.c_long(value))
            assert not wrong, f"the double has no option {option}"

    def fail(self, function: str, error: int, number: int = 1) -> None:
        """Let the `number`-th call of a function from now on return an error."""
        self._library.odin_double_fail(function.encode(), ctypes.c_long(number), error)

    def forget_failures(self) -> None:
        """Take back what `fail` has asked for and has not happened."""
        self._library.odin_double_forget_failures()

    def declare(self, kernels: Mapping[str, Sequence[int]]) -> None:
        """Say which kernels modules hold, and the sizes of their parameters in bytes."""
        for name, sizes in kernels.items():
            array = (ctypes.c_size_t * len(sizes))(*sizes)
            self._library.odin_double_declare(name.encode(), array, ctypes.c_size_t(len(sizes)))

    def on_launch(self, do: Callable[[Launch], object]) -> None:
        """Let `do` stand for the kernels; an exception of it is a fault of the device."""

        def callback(name, grid, block, _shared, parameters, size):  # type: ignore[no-untyped-def]
            raw = ctypes.string_at(parameters, size) if size else b""
            try:
                do(Launch(name.decode(), tuple(grid[:3]), tuple(block[:3]), raw))
            except Exception:  # noqa: BLE001 - must not go through C; the test reads it in `faults`
                self.faults.append(traceback.format_exc())
                return LAUNCH_FAILED
            return 0

        self._callback = CALLBACK(callback)
        self._library.odin_double_on_launch(self._callback)

    def foreign_stream(self) -> int:
        """A stream of the caller's."""
        return self._library.odin_double_foreign_stream()

    def foreign_fill(self, stream: int, device: int, value: int, size: int) -> None:
        """Queue the caller's own work: set device memory to a value."""
        self._library.odin_double_foreign_fill(
            ctypes.c_void_p(stream), ctypes.c_void_p(device), value, ctypes.c_size_t(size)
        )

    def live(self) -> list[tuple[int, int]]:
        """Address and size of all device memory that is not freed."""
        room = self._library.odin_double_live(None, None, ctypes.c_size_t(0))
        begins, sizes = (ctypes.c_size_t * room)(), (ctypes.c_size_t * room)()
        self._library.odin_double_live(begins, sizes, ctypes.c_size_t(room))
        return list(zip(begins, sizes, strict=True))

    def log(self) -> list[str]:
        """What was called and done, in order: "call ...", "run ...", "error ..."."""
        return self._report("log")

    def clear_log(self) -> None:
        """Forget what was logged."""
        self._library.odin_double_clear_log()

    def errors(self) -> list[str]:
        """What was done wrong."""
        return self._report("errors")

    def leaks(self) -> list[str]:
        """What has not been given back."""
        return self._report("leaks")

    def _report(self, what: str) -> list[str]:
        size = self._library.odin_double_report(what.encode(), None, ctypes.c_size_t(0)) + 1
        buffer = ctypes.create_string_buffer(size)
        self._library.odin_double_report(what.encode(), buffer, ctypes.c_size_t(size))
        return buffer.value.decode().splitlines()
