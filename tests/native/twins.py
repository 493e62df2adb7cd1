"""The C library through ctypes, with numpy arrays at any distance from a 16-byte boundary.

Every output lies between guard bytes, so a write outside of it is found.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

ELEMENTS = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}
CODES = {"f32": 0, "f16": 1, "bf16": 2}
GUARD, GUARD_BYTES = 0xA5, 64

POINTER, I64, I32, F32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float
# The parameters after the type; launchers take a stream at the end.
PARAMETERS: dict[str, list[type]] = {
    "normalize": [POINTER] * 4 + [I64, I64, I32],
    "perturb": [POINTER] * 7 + [I64, I64, I32, I32],
    "score": [POINTER] * 6 + [F32, F32, I64, I64],
    "first_order": [POINTER] * 6 + [I64, I64, I32, I32],
}


def at_offset(array: np.ndarray, offset: int) -> np.ndarray:
    """A copy whose data begin `offset` elements after a 16-byte boundary."""
    space = np.empty(array.nbytes + 16 + offset * array.itemsize, np.uint8)
    start = -space.ctypes.data % 16 + offset * array.itemsize
    copy = space[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class Output:
    """An array to be written, full of guard bytes at first, between guard bytes."""

    def __init__(self, shape: Sequence[int], dtype: np.dtype, offset: int = 0) -> None:
        count = int(np.prod(shape, dtype=np.int64))
        filled = np.full(2 * GUARD_BYTES + count * dtype.itemsize, GUARD, np.uint8)
        space = at_offset(np.append(filled, np.full(16 * dtype.itemsize, GUARD, np.uint8)), 0)
        start = GUARD_BYTES + offset * dtype.itemsize
        self.array = space[start : start + count * dtype.itemsize].view(dtype).reshape(shape)
        self._before, self._after = space[:start], space[start + self.array.nbytes :]

    def checked(self) -> np.ndarray:
        """The array, once the bytes around it are seen to be untouched."""
        assert (self._before == GUARD).all(), "written before the beginning"
        assert (self._after == GUARD).all(), "written past the end"
        return self.array


def address(array: np.ndarray | Output | None) -> ctypes.c_void_p | None:
    if array is None:
        return None
    data = array.array if isinstance(array, Output) else array
    return ctypes.c_void_p(data.ctypes.data)


class Library:
    """The C library: functions with their parameters declared, status, texts."""

    def __init__(self, path: Path) -> None:
        self.functions = ctypes.CDLL(str(path))
        self.functions.odin_status_text.restype = ctypes.c_char_p
        self.functions.odin_last_error.restype = ctypes.c_char_p
        for name, parameters in PARAMETERS.items():
            getattr(self.functions, f"odin_{name}").argtypes = [I32, *parameters, POINTER]
            getattr(self.functions, f"odin_{name}_host").argtypes = [I32, *parameters]

    def last_error(self) -> str:
        return self.functions.odin_last_error().decode()

    def status_text(self, status: int) -> str:
        return self.functions.odin_status_text(status).decode()


class Twins(Library):
    """The host twins; `offset` is how many elements tensors lie past a 16-byte boundary."""

    def _call(self, name: str, element: str, *arguments: object) -> None:
        status = getattr(self.functions, f"odin_{name}_host")(CODES[element], *arguments)
        assert status == 0, self.last_error()

    def normalize(
        self, pixels: np.ndarray, scale: np.ndarray, offset: np.ndarray, element: str, at: int = 0
    ) -> np.ndarray:
        """pixels (count, plane, channels) -> images (count, channels, plane)."""
        count, plane, channels = pixels.shape
        images = Output((count, channels, plane), ELEMENTS[element], at)
        pixels = at_offset(pixels, at)
        pointers = map(address, (pixels, images, scale, offset))
        self._call("normalize", element, *pointers, count, plane, channels)
        return images.checked()

    def perturb(
        self,
        images: np.ndarray,
        gradient: np.ndarray,
        steps: np.ndarray,
        channel_scale: np.ndarray,
        limits: tuple[np.ndarray, np.ndarray] | None = None,
        at: tuple[int, int, int] = (0, 0, 0),
    ) -> np.ndarray:
        """images, gradient (count, channels, plane) -> (magnitudes, count, channels, plane)."""
        element = next(name for name, dtype in ELEMENTS.items() if dtype == images.dtype)
        low, high = limits or (None, None)
        perturbed = Output((len(steps), *images.shape), images.dtype, at[2])
        images, gradient = at_offset(images, at[0]), at_offset(gradient, at[1])
        count, channels, plane = images.shape
        arrays = (images, gradient, perturbed, steps, channel_scale, low, high)
        sizes = (count, plane, channels, len(steps))
        self._call("perturb", element, *map(address, arrays), *sizes)
        return perturbed.checked()

    def score(
        self,
        logits: np.ndarray,
        temperature: float,
        seed_scale: float = 1.0,
        at: int = 0,
        wanted: Sequence[str] = ("score", "baseline", "label", "energy", "seed"),
    ) -> dict[str, np.ndarray]:
        """logits (rows, classes) -> the wanted outputs."""
        element = next(name for name, dtype in ELEMENTS.items() if dtype == logits.dtype)
        rows, classes = logits.shape
        outputs: dict[str, Output] = {}
        for name in wanted:
            shape = (rows, classes) if name == "seed" else (rows,)
            dtype = {"seed": logits.dtype, "label": np.dtype(np.int64)}.get(name, ELEMENTS["f32"])
            outputs[name] = Output(shape, dtype, at if name == "seed" else 0)
        logits = at_offset(logits, at)
        names = ("score", "baseline", "label", "energy", "seed")
        pointers = [address(logits), *(address(outputs.get(name)) for name in names)]
        self._call("score", element, *pointers, temperature, seed_scale, rows, classes)
        return {name: output.checked() for name, output in outputs.items()}

    def first_order(
        self,
        gradient: np.ndarray,
        channel_scale: np.ndarray,
        probability: np.ndarray,
        steps: np.ndarray,
        at: int = 0,
    ) -> tuple[np.ndarray, np.ndarray]:
        """gradient (count, channels, plane) -> total (count), score (magnitudes, count)."""
        element = next(name for name, dtype in ELEMENTS.items() if dtype == gradient.dtype)
        count, channels, plane = gradient.shape
        total = Output((count,), ELEMENTS["f32"])
        score = Output((len(steps), count), ELEMENTS["f32"])
        gradient = at_offset(gradient, at)
        arrays = (gradient, channel_scale, probability, steps, total, score)
        sizes = (count, plane, channels, len(steps))
        self._call("first_order", element, *map(address, arrays), *sizes)
        return total.checked(), score.checked()
