"""Why a CUDA driver cannot be opened here, and what the driver's errors mean."""

from __future__ import annotations

import ctypes
import functools
import re
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

from odin_engines.cuda_probe import (
    LIBRARY,
    OLDEST_DRIVERS,
    REMEDIES,
    ask_driver,
    version_text,
)
from odin_engines.errors import OdinError

# The kernels are compiled with CUDA 13; a driver runs what its own major version compiled.
LEAST_VERSION = 13000
INSTALL = f"on a machine with an NVIDIA GPU install NVIDIA's driver {OLDEST_DRIVERS[13]} or newer"
ON_A_CPU = "or stay on the CPU with --engine openvino or --engine ort"

PACKAGES = {
    "cuda-core": (
        ("cuda.core", "package cuda-core is not installed", 'pip install "cuda-core[cu13]"'),
        (
            "cuda.bindings",
            "package cuda-core is installed without cuda-bindings",
            'pip install "cuda-core[cu13]"',
        ),
    ),
    "pycuda": (
        (
            "pycuda",
            "package pycuda is not installed",
            "pip install pycuda (built from source: needs a C++ compiler and CUDA's headers)",
        ),
    ),
}

# The least versions, as pyproject.toml has them.
LEAST_PACKAGES = {"cuda-core": (1, 2), "pycuda": (2026, 1)}

MOST_CODES = 1000  # CUresult goes up to 999, "unknown"
OTHERWISE = "look the error up in the CUDA driver API's documentation"


class OutOfMemory(OdinError):
    """CUDA has no room for an allocation."""


@dataclass(frozen=True)
class Reason:
    """Why something is not available.

    Attributes:
        cause: what is missing, without a full stop.
        remedy: what would help.
    """

    cause: str
    remedy: str


def missing_package(name: str, try_import: bool = True) -> Reason | None:
    """Return which Python package driver `name` lacks, or why it does not do.

    Args:
        name: "cuda-core" or "pycuda".
        try_import: import it too, which tells a broken one; pycuda needs libcuda.so.1 for it.
    """
    for module, cause, remedy in PACKAGES[name]:
        if not _is_installed(module):
            return Reason(cause, remedy)
    return _too_old(name) or (_not_importable(name) if try_import else None)


def _too_old(name: str) -> Reason | None:
    try:
        version, least = metadata.version(name), LEAST_PACKAGES[name]
    except metadata.PackageNotFoundError:  # copied by hand, and so without a version
        return None
    if tuple(map(int, re.findall(r"\d+", version)[:2])) >= least:
        return None
    wanted = ".".join(map(str, least))
    cause = f"package {name} {version} is installed, and {wanted} or newer is needed"
    return Reason(cause, f'pip install --upgrade "{name}>={wanted}"')


def _not_importable(name: str) -> Reason | None:
    try:
        import_module("pycuda.driver" if name == "pycuda" else "cuda.core")
    except (ImportError, RuntimeError) as error:
        first = str(error).partition("\n")[0]
        return Reason(f"package {name} cannot be imported ({first})", f"reinstall {name}")
    return None


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # nor is its parent
        return False


def missing_driver(device: int = 0) -> Reason | None:
    """Return what is wrong with NVIDIA's driver or with the device.

    Asks the driver library itself: no package is needed. It initialises CUDA in this process.
    """
    found = ask_driver()
    if found.problem is not None:
        return Reason(found.problem, f"{INSTALL}, {ON_A_CPU}")
    if found.version < LEAST_VERSION:
        cause = (
            f"NVIDIA's driver takes CUDA {found.version_text}, and the kernels need "
            f"{version_text(LEAST_VERSION)}"
        )
        return Reason(cause, f"{INSTALL}, {ON_A_CPU}")
    if device >= len(found.devices):
        last = len(found.devices) - 1
        have = "only device 0" if last == 0 else f"devices 0 to {last}"
        return Reason(f"there is no device {device}", f"the driver lists {have}; give one of these")
    return None


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(LIBRARY)


def error_name(code: int) -> str:
    """Return the name of a CUresult, as CUDA_ERROR_OUT_OF_MEMORY."""
    return _described("cuGetErrorName", code) or f"CUDA error {code}"


def error_text(code: int) -> str:
    """Return what a CUresult means, in the driver's words."""
    return _described("cuGetErrorString", code) or "not known to the driver"


def _described(function: str, code: int) -> str:
    text = ctypes.c_char_p()
    getattr(_library(), function)(code, ctypes.byref(text))
    return (text.value or b"").decode(errors="replace")


def call(doing: str, function: str, *arguments: Any) -> None:
    """Call a function of the driver library itself, where pycuda has none.

    Raises:
        OdinError: it fails.
    """
    check(doing, status(function, *arguments))


def status(function: str, *arguments: Any) -> int:
    """Call a function of the driver library itself and return the CUresult."""
    return int(getattr(_library(), function)(*arguments))


def check(doing: str, code: int) -> None:
    """Check a CUresult.

    Raises:
        OdinError: it is an error.
    """
    if code:
        raise failure(doing, error_name(code), error_text(code))


def is_capturing(stream: int) -> bool:
    """Whether a stream is being captured into a graph, by whomever; its context is current."""
    found = ctypes.c_int()
    handle = ctypes.c_void_p(stream)
    call("asking for a capture", "cuStreamIsCapturing", handle, ctypes.byref(found))
    return found.value != 0


def refuse_capturing(stream: int) -> None:
    """Check that a caller's stream is not being captured; its context is current.

    Raises:
        OdinError: it is, or CUDA does not know it.
    """
    if is_capturing(stream):
        raise OdinError(
            "the stream is being captured into a CUDA graph, which scoring cannot be part of; "
            "score outside of the capture (torch.cuda.graph, or whatever began it)"
        )


@functools.cache
def names_by_text() -> dict[str, str]:
    """The names of all errors by the driver's description, which is all that pycuda tells."""
    known = [code for code in range(1, MOST_CODES) if _described("cuGetErrorName", code)]
    return {error_text(code): error_name(code) for code in known}


def failure(doing: str, name: str, text: str) -> OdinError:
    """Return the error for a failed call: what was being done, CUDA's name for it, the remedy."""
    kind = OutOfMemory if name == "CUDA_ERROR_OUT_OF_MEMORY" else OdinError
    return kind(f"{doing} failed: {name} ({text}); {REMEDIES.get(name, OTHERWISE)}")
