"""What each kernel has to compute, in float64 numpy, and how far its results may be from it.

A check lays inputs (read-only) and outputs (filled with a pattern) into the interpreter's memory,
at addresses a chosen number of elements past a multiple of 256, launches, and compares. It raises
AssertionError for a wrong result and PtxError for a broken rule.

Tolerances follow from the arithmetic: EPS = 2^-24 is half a unit in the last place of float32, a
chain of n additions adds at most n EPS of the sum of magnitudes, expf is good to 2 EPS beside the
rounding of its argument, and the result is rounded once to the tensors' type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ptx.interpreter import Interpreter, Memory

Array = NDArray[Any]
TYPES: dict[str, Any] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}
BLOCK = {"normalize": 256, "perturb": 256, "score": 128, "first_order": 256}
EPS = 2.0**-24
PATTERN = 0xA5
MOST_STEPS = 60_000  # basic blocks: a few times what the largest case takes


class Bench:
    """One launch: inputs and outputs at chosen misalignments."""

    def __init__(self, code: Interpreter, shifts: tuple[int, ...] = (0,)) -> None:
        self.code, self.memory, self.shifts = code, Memory(), shifts
        self.count = 0

    def _shift(self, dtype: np.dtype[Any]) -> int:
        self.count += 1
        return self.shifts[(self.count - 1) % len(self.shifts)] * dtype.itemsize

    def input(self, values: Array | None) -> int:
        if values is None:
            return 0
        shift = self._shift(values.dtype)
        return self.memory.add(np.ascontiguousarray(values), shift=shift, writable=False)

    def output(self, shape: tuple[int, ...], dtype: Any) -> tuple[int, Array]:
        dtype = np.dtype(dtype)
        raw = np.full(int(np.prod(shape)) * dtype.itemsize, PATTERN, np.uint8)
        address = self.memory.add(raw, shift=self._shift(dtype))
        return address, raw.view(dtype).reshape(shape)

    def launch(self, name: str, suffix: str, grid: int, arguments: list[Any]) -> None:
        kernel = f"odin_{name}_{suffix}"
        self.code.launch(kernel, grid, BLOCK[name], arguments, self.memory, most_steps=MOST_STEPS)


def half_ulp(exact: Array, dtype: np.dtype[Any]) -> Array:
    """Half a unit in the last place of `dtype` at exact values, subnormal numbers included."""
    info = ml_dtypes.finfo(dtype)
    size = np.maximum(np.abs(np.where(np.isfinite(exact), exact, 0.0)), float(info.tiny))
    return 2.0 ** (np.frexp(size)[1] - 1) * float(info.eps) / 2


def first_rounding(exact: Array, dtype: np.dtype[Any]) -> Array | float:
    """The error of a result that was rounded to float32 before it was to a narrower type."""
    return half_ulp(exact, TYPES["f32"]) if dtype.itemsize < 4 else 0.0


def compare(what: str, got: Array, exact: Array, error: Array | float = 0.0) -> None:
    """Assert |got - exact| <= half an ulp of got's type + error; NaN and infinities in place."""
    assert got.shape == exact.shape, (what, got.shape, exact.shape)
    values = got.astype(np.float64)
    bound = half_ulp(exact, got.dtype) * (1 + 1e-6) + error
    with np.errstate(invalid="ignore", over="ignore"):
        right = np.abs(values - exact) <= bound
        right |= (np.isnan(values) & np.isnan(exact)) | (values == exact)
        overflows = np.abs(exact) + bound > float(ml_dtypes.finfo(got.dtype).max)
        right |= overflows & np.isinf(values) & (np.sign(values) == np.sign(exact))
    if not right.all():
        where = tuple(int(i) for i in np.argwhere(~right)[0])
        total = int((~right).sum())
        raise AssertionError(
            f"{what}{list(where)}: {values[where]!r}, float64 gives {exact[where]!r} "
            f"+- {float(np.broadcast_to(bound, exact.shape)[where]):.3g} ({total} differ)"
        )


# The kernels


@dataclass(frozen=True)
class Normalize:
    pixels: Array  # uint8 (count, plane, channels)
    scale: Array
    offset: Array
    grid: int = 3
    shifts: tuple[int, ...] = (0,)

    def run(self, code: Interpreter, suffix: str) -> list[Array]:
        bench = Bench(code, self.shifts)
        count, plane, channels = self.pixels.shape
        pixels = bench.input(self.pixels)
        images, out = bench.output((count, channels, plane), TYPES[suffix])
        scale, offset = bench.input(self.scale), bench.input(self.offset)
        sizes = [np.int64(count), np.int64(plane), np.int32(channels)]
        bench.launch("normalize", suffix, self.grid, [pixels, images, scale, offset, *sizes])
        return [out]

    def check(self, results: list[Array]) -> None:
        pixels = self.pixels.transpose(0, 2, 1).astype(np.float64)
        exact = pixels * self.scale[:, None].astype(float) - self.offset[:, None].astype(float)
        compare("images", results[0], exact, first_rounding(exact, results[0].dtype))


@dataclass(frozen=True)
class Perturb:
    images: Array  # float64 (count, channels, plane), rounded to the tensors' type when run
    gradient: Array
    steps: Array
    channel_scale: Array
    low: Array | None = None
    high: Array | None = None
    grid: int = 3
    shifts: tuple[int, ...] = (0,)

    def run(self, code: Interpreter, suffix: str) -> list[Array]:
        bench, dtype = Bench(code, self.shifts), TYPES[suffix]
        count, channels, plane = self.images.shape
        x, g = self.images.astype(dtype), self.gradient.astype(dtype)
        pointers = [bench.input(x), bench.input(g)]
        target, out = bench.output((self.steps.size, *self.images.shape), dtype)
        rest = (self.steps, self.channel_scale, self.low, self.high)
        pointers += [target, *(bench.input(values) for values in rest)]
        sizes = [np.int64(count), np.int64(plane), np.int32(channels), np.int32(self.steps.size)]
        bench.launch("perturb", suffix, self.grid, [*pointers, *sizes])
        return [out, x, g]

    def check(self, results: list[Array]) -> None:
        out, x, g = results[0], results[1].astype(np.float64), results[2].astype(np.float64)
        sign = np.where(np.isnan(g), np.nan, np.where(g < 0, -1.0, 1.0))
        move = self.steps[:, None, None, None].astype(float) * self.channel_scale[:, None]
        exact = x - move * sign
        if self.low is not None and self.high is not None:
            low, high = self.low[:, None].astype(float), self.high[:, None].astype(float)
            exact = np.where(exact < low, low, np.where(exact > high, high, exact))
            narrow_low = self.low.astype(out.dtype)[:, None].astype(float)
            narrow_high = self.high.astype(out.dtype)[:, None].astype(float)
            value = out.astype(float)
            assert not ((value < narrow_low) | (value > narrow_high)).any(), "clamped values"
        compare("perturbed", out, exact, first_rounding(exact, out.dtype))


@dataclass(frozen=True)
class Score:
    NAMES: ClassVar = ("score", "baseline", "label", "energy", "seed")

    logits: Array  # float64 (rows, classes), rounded to the tensors' type when run
    temperature: float = 1000.0
    seed_scale: float = 64.0
    outputs: str = "score baseline label energy seed"
    grid: int = 3
    shifts: tuple[int, ...] = (0,)

    def run(self, code: Interpreter, suffix: str) -> list[Array]:
        bench, dtype = Bench(code, self.shifts), TYPES[suffix]
        rows, classes = self.logits.shape
        logits = self.logits.astype(dtype)
        pointers, results = [bench.input(logits)], [logits]
        for name in self.NAMES:
            shape = (rows, classes) if name == "seed" else (rows,)
            kind = {"label": np.int64, "seed": dtype}.get(name, np.float32)
            pointer, out = bench.output(shape, kind) if name in self.outputs else (0, np.zeros(0))
            pointers.append(pointer)
            results.append(out)
        scalars = [np.float32(self.temperature), np.float32(self.seed_scale)]
        sizes = [np.int64(rows), np.int64(classes)]
        bench.launch("score", suffix, self.grid, [*pointers, *scalars, *sizes])
        return results

    def check(self, results: list[Array]) -> None:
        logits = results[0].astype(np.float64)
        with np.errstate(invalid="ignore"):
            top = logits.max(axis=1, keepdims=True)
            below = logits - top
        tempered, tempered_error = softmax(below / float(np.float32(self.temperature)))
        plain, plain_error = softmax(below)
        label = logits.argmax(axis=1)  # a NaN is the largest of all
        rows = np.arange(label.size)
        best, certain = tempered[rows, label], plain[rows, label]
        given = dict(zip(self.NAMES, results[1:], strict=True))
        if "score" in self.outputs:
            compare("score", given["score"], best, best * tempered_error[rows, label])
        if "baseline" in self.outputs:
            compare("baseline", given["baseline"], certain, certain * plain_error[rows, label])
        if "label" in self.outputs:
            np.testing.assert_array_equal(given["label"], label)
        if "energy" in self.outputs:
            exact = top[:, 0] - np.log(certain)
            size = np.where(np.isfinite(exact), np.abs(top[:, 0]) + np.abs(np.log(certain)), 0)
            error = plain_error[rows, label] + 3 * EPS * size
            compare("energy", given["energy"], exact, error)
        if "seed" in self.outputs:
            target = np.zeros_like(tempered)
            target[rows, label] = 1.0
            scale = float(np.float32(self.seed_scale))
            error = tempered * tempered_error + 2 * EPS * (tempered + target) + 2.0**-147
            compare("seed", given["seed"], scale * (tempered - target), scale * error)


def softmax(x: Array) -> tuple[Array, Array]:
    """Softmax of rows whose largest entry is 0, and the relative error of each entry allowed.

    The sum: a chain of additions a thread, then a tree. An argument's rounding, 2 EPS |x|, and
    that of 1 / temperature change an exponential by as much; in the sum it is their mean.
    """
    threads = 32 if x.shape[1] <= 1024 else 128
    with np.errstate(invalid="ignore"):
        weights = np.exp(x)
        probability = weights / weights.sum(axis=1, keepdims=True)
        size = np.where(np.isfinite(x) & (weights > 0), np.abs(x), 0.0)
        mean = np.nansum(probability * size, axis=1, keepdims=True)
    return probability, EPS * (x.shape[1] / threads + 16 + 4 * mean + 4 * size)


@dataclass(frozen=True)
class FirstOrder:
    gradient: Array  # float64 (count, channels, plane), rounded to the tensors' type when run
    channel_scale: Array
    probability: Array | None
    steps: Array
    outputs: str = "total score"
    grid: int = 3
    shifts: tuple[int, ...] = (0,)

    def run(self, code: Interpreter, suffix: str) -> list[Array]:
        bench, g = Bench(code, self.shifts), self.gradient.astype(TYPES[suffix])
        count, channels, plane = g.shape
        pointers = [bench.input(v) for v in (g, self.channel_scale, self.probability, self.steps)]
        none = (0, np.zeros(0, np.float32))
        total = bench.output((count,), np.float32) if "total" in self.outputs else none
        shape = (self.steps.size, count)
        score = bench.output(shape, np.float32) if "score" in self.outputs else none
        sizes = [np.int64(count), np.int64(plane), np.int32(channels), np.int32(self.steps.size)]
        bench.launch("first_order", suffix, self.grid, [*pointers, total[0], score[0], *sizes])
        return [g, total[1], score[1]]

    def check(self, results: list[Array]) -> None:
        g, total, score = results
        weighted = np.abs(g.astype(np.float64)) * self.channel_scale[:, None].astype(float)
        exact = weighted.sum(axis=(1, 2))
        terms = g.shape[1] * g.shape[2]
        chain = EPS * (terms / 256 + 24)  # a chain of additions a thread, then a tree
        error = exact * chain + terms * 2.0**-150  # of subnormal sums
        if "total" in self.outputs:
            compare("total", total, exact, np.nan_to_num(error, posinf=0.0))
        if "score" not in self.outputs:
            return
        if self.probability is None:
            pattern = np.full(score.size * 4, PATTERN, np.uint8).view(np.float32)
            np.testing.assert_array_equal(score.ravel(), pattern)
            return
        with np.errstate(invalid="ignore"):
            steps = self.steps[:, None].astype(float)
            exponent = steps * exact
            value = self.probability.astype(float) * np.exp(exponent)
            relative = np.abs(steps) * error + np.abs(exponent) * 4 * EPS + 6 * EPS
            margin = np.abs(value) * relative
        compare("score", score, value, np.nan_to_num(margin, posinf=0.0))


Case = Normalize | Perturb | Score | FirstOrder


def check(code: Interpreter, suffix: str, case: Case) -> None:
    """Run a case once and compare it with float64."""
    case.check(case.run(code, suffix))
