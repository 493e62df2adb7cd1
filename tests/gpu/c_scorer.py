"""libodin through ctypes: the structs of odin.h, and a scorer that reads and writes arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HOST, DEVICE = 0, 1
TENSORRT = 2
RESULTS = {"score": np.float32, "baseline": np.float32, "label": np.int64, "logits": np.float32}


class Options(ctypes.Structure):
    """odin_scorer_options."""

    _fields_ = [
        ("size", ctypes.c_uint64),
        *((name, ctypes.c_int32) for name in ("engine", "precision", "threads", "streams")),
        *((name, ctypes.c_int32) for name in ("batch_size", "device")),
        *((name, ctypes.c_void_p) for name in ("cache", "log", "log_context")),
        *((name, ctypes.c_void_p) for name in ("context", "allocate", "deallocate")),
    ]


class Images(ctypes.Structure):
    """odin_images."""

    _fields_ = [
        ("size", ctypes.c_uint64),
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("count", "height", "width", "channels")),
        *((name, ctypes.c_int32) for name in ("type", "memory")),
    ]


class Targets(ctypes.Structure):
    """odin_scores."""

    _fields_ = [
        ("size", ctypes.c_uint64),
        *((name, ctypes.c_void_p) for name in ("score", "baseline", "label")),
        *((name, ctypes.c_void_p) for name in ("is_ood", "logits", "percentile")),
        *((name, ctypes.c_int32) for name in ("memory", "reserved")),
    ]


class CScorer:
    """A bundle opened by libodin. Leaving it closes it."""

    def __init__(self, library: Path, bundle: Path, engine: int = TENSORRT, **options: int) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.odin_scorer_last_error.restype = ctypes.c_char_p
        self._handle = ctypes.c_void_p()
        given = Options(size=ctypes.sizeof(Options), engine=engine, **options)
        handle = ctypes.byref(self._handle)
        self._check(
            self._library.odin_scorer_open(str(bundle).encode(), ctypes.byref(given), handle)
        )

    def __enter__(self) -> CScorer:
        return self

    def __exit__(self, *_: object) -> None:
        self._library.odin_scorer_close(self._handle)

    def _check(self, status: int) -> None:
        assert status == 0, f"{status}: {self._library.odin_scorer_last_error().decode()}"

    def score(self, images: np.ndarray, classes: int) -> dict[str, np.ndarray]:
        """Score images of the host: `score`, `baseline`, `label`, `logits`."""
        results = empty_results(len(images), classes)
        addresses = {name: array.ctypes.data for name, array in results.items()}
        batch = described(images.shape, images.dtype == np.uint8, images.ctypes.data, HOST)
        targets = Targets(size=ctypes.sizeof(Targets), **addresses)
        self._check(
            self._library.odin_scorer_score(
                self._handle, ctypes.byref(batch), ctypes.byref(targets)
            )
        )
        return results

    def enqueue(self, batch: Images, addresses: dict[str, int], stream: int) -> None:
        """Queue scoring images of the device, results at addresses of the device by name."""
        targets = Targets(size=ctypes.sizeof(Targets), memory=DEVICE, **addresses)
        self._check(
            self._library.odin_scorer_enqueue(
                self._handle,
                ctypes.byref(batch),
                ctypes.byref(targets),
                ctypes.c_void_p(stream),
            )
        )


def empty_results(count: int, classes: int) -> dict[str, np.ndarray]:
    """Room for results of so many images."""
    sizes: dict[str, Any] = dict.fromkeys(RESULTS, (count,)) | {"logits": (count, classes)}
    return {name: np.empty(sizes[name], dtype) for name, dtype in RESULTS.items()}


def described(shape: Sequence[int], raw: bool, address: int, memory: int) -> Images:
    """Images of a shape, (N, H, W, C) if `raw`, else (N, C, H, W)."""
    count, channels, height, width = (shape[0], shape[3], *shape[1:3]) if raw else shape
    return Images(
        ctypes.sizeof(Images), address, count, height, width, channels, 0 if raw else 1, memory
    )
