"""Sizes of the tests on a GPU, and what several of them measure and compare by."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np

from odin_runtime.driver import Driver

MOST = 64  # images in a batch of the plans
CALLS = 10_000  # after which no memory may have grown
PICTURES, PIXELS = 256, 224 * 224  # of the kernels' timings
ROWS, CLASSES = 4096, 1000
Report = Callable[[str, float, str], None]


def free_memory(driver: Driver) -> int:
    """Bytes of the GPU that nobody uses."""
    available, total = ctypes.c_size_t(), ctypes.c_size_t()
    library = ctypes.CDLL("libcuda.so.1")
    with driver.current():
        status = library.cuMemGetInfo_v2(ctypes.byref(available), ctypes.byref(total))
    assert status == 0, f"cuMemGetInfo: CUDA error {status}"
    return available.value


def resident_bytes() -> int:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Assert that scores agree; NaN in the same places."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
