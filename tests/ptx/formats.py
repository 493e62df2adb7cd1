"""PTX's types as numpy views, and correctly rounded arithmetic on them.

Registers hold bits (unsigned arrays; `pred` registers hold bool). Floating-point results are formed
in float64 "rounded to odd": if the float64 result is inexact, its last bit is set. With at least
two more digits than the target has, rounding that once more gives the correctly rounded result in
every rounding mode (Boldo and Melquiond, Emulation of FMA and correctly rounded sums, 2008).
Arithmetic on f64 itself is numpy's own, but for fma, which is refused.
"""

from __future__ import annotations

from typing import NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
RAW = {1: np.bool_, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
FLOATS = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32, "f64": np.float64}
NAN_BITS = {"f16": 0x7FFF, "bf16": 0x7FFF, "f32": 0x7FFFFFFF, "f64": 0x7FF8000000000000}
SMALLEST_NORMAL = {"f16": 2.0**-14, "bf16": 2.0**-126, "f32": 2.0**-126}
ROUNDINGS = ("rn", "rz", "rm", "rp")


class Type(NamedTuple):
    name: str
    kind: str  # u, s, b: integers and bits; f: a float; x2: two floats; p: predicate
    bits: int

    @property
    def raw(self) -> type[np.generic]:
        """The unsigned type of the same width."""
        return RAW[self.bits]

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """What numpy computes on; packed pairs and bits stay unsigned."""
        if self.kind == "f":
            return np.dtype(FLOATS[self.name])
        if self.kind == "s":
            return np.dtype(f"int{self.bits}")
        return np.dtype(self.raw)

    @property
    def half(self) -> Type:
        """The element type of a packed pair."""
        return TYPES[self.name[:-2]]


TYPES = {f"{k}{bits}": Type(f"{k}{bits}", k, bits) for k in "usb" for bits in (8, 16, 32, 64)}
TYPES |= {name: Type(name, "f", int(name.strip("bf"))) for name in FLOATS}
TYPES |= {f"{name}x2": Type(f"{name}x2", "x2", 32) for name in ("f16", "bf16")}
TYPES["pred"] = Type("pred", "p", 1)


def to_odd(total: Array, error: Array) -> Array:
    """Round total + error, |error| < an ulp of the float64 total, to odd."""
    bits = total.view(np.int64)
    inexact = (error != 0) & np.isfinite(error)  # an infinite sum has no error worth a digit
    truncated = bits - (inexact & ((error < 0) != (total < 0)))
    odd = np.where(inexact, truncated | 1, bits)
    return odd.view(np.float64)


def add_odd(a: Array, b: Array) -> Array:
    """Return a + b of float64 values, rounded to odd; the error is Knuth's two-sum."""
    total = np.asarray(a + b)
    virtual = total - a
    error = (a - (total - virtual)) + (b - virtual)
    return to_odd(total, error)


def fma_odd(a: Array, b: Array, c: Array) -> Array:
    """Return a * b + c of values with at most 26 digits, rounded to odd: the product is exact."""
    return add_odd(a * b, c)


def divide_odd(a: Array, b: Array) -> Array:
    """Return a / b of values with at most 24 digits, rounded to odd.

    Only a quotient of at most 29 digits can be exact or lie half-way between two values of a
    narrower type; times b it is exact, and comparing that with a tells which side is the truth.
    """
    quotient = np.asarray(a / b)
    short = (quotient.view(np.uint64) & np.uint64((1 << 24) - 1)) == 0
    residual = np.where(short & np.isfinite(quotient), a - quotient * b, 0.0)
    return to_odd(quotient, residual * np.sign(b))


def sqrt_odd(a: Array) -> Array:
    """Return the root of a value with at most 24 digits, rounded to odd (see divide_odd)."""
    root = np.asarray(np.sqrt(a))
    short = (root.view(np.uint64) & np.uint64((1 << 27) - 1)) == 0
    residual = np.where(short & np.isfinite(root), a - root * root, 0.0)
    return to_odd(root, residual)


def integer_odd(values: Array) -> Array:
    """Return any integers as float64, rounded to odd."""
    if values.dtype.itemsize < 8:
        return values.astype(np.float64)
    low = (values & values.dtype.type(0xFFFFFFFF)).astype(np.float64)
    return add_odd((values >> values.dtype.type(32)).astype(np.float64) * 2.0**32, low)


def round_to(value: Array, target: Type, rounding: str = "rn", *, flush: bool = False) -> Array:
    """Round float64 (to odd) to the target; a NaN becomes PTX's canonical one; flush is .ftz."""
    dtype = target.dtype
    if target.name == "bf16":  # through float32, to odd: its own conversion rounds twice
        rounded = _odd_float32(value).astype(dtype)
    else:
        rounded = np.asarray(value).astype(dtype)
    if rounding != "rn":
        rounded = _direct(rounded, value, target, rounding)
    if flush:
        rounded = flush_subnormals(rounded, target)
    return canonical(rounded, target)


def _odd_float32(value: Array) -> Array:
    """float64 -> float32, rounded to odd; beyond the largest float32 it is an infinity."""
    nearest = np.asarray(value.astype(np.float32))
    back = nearest.astype(np.float64)
    too_far = np.isfinite(nearest) & (np.abs(back) > np.abs(value))
    bits = nearest.view(np.uint32)
    bits = np.where(too_far, bits - np.uint32(1), bits)
    inexact = np.isfinite(nearest) & (back != value)
    return np.where(inexact, bits | np.uint32(1), bits).view(np.float32)


def _direct(nearest: Array, value: Array, target: Type, rounding: str) -> Array:
    """Move a nearest value to the neighbour on the side that rz, rm or rp ask for."""
    back = nearest.astype(np.float64)
    down = (rounding == "rm") | ((rounding == "rz") & (value > 0))
    wrong = np.where(down, back > value, back < value) & np.isfinite(value)
    bits = nearest.view(target.raw)
    one = target.raw(1)
    zero_bits = np.where(down, target.raw((1 << (target.bits - 1)) + 1), one)
    shrink = (back > 0) == down
    moved = np.where(back == 0, zero_bits, np.where(shrink, bits - one, bits + one))
    return np.where(wrong, moved, bits).astype(target.raw).view(target.dtype)


def canonical(value: Array, target: Type) -> Array:
    """Replace every NaN by the one that PTX arithmetic returns."""
    nan = np.isnan(value)
    if not nan.any():
        return value
    bits = np.where(nan, target.raw(NAN_BITS[target.name]), value.view(target.raw))
    return bits.view(target.dtype)


def flush_subnormals(value: Array, target: Type) -> Array:
    """.ftz: subnormal numbers become zeros of their sign."""
    small = np.abs(value.astype(np.float64)) < SMALLEST_NORMAL[target.name]
    return np.where(small, np.copysign(value.dtype.type(0), value), value).astype(value.dtype)


def saturate(value: Array) -> Array:
    """.sat: clamp to [0, 1]; NaN and -0 become +0."""
    return np.where(value > 0, np.minimum(value, value.dtype.type(1)), value.dtype.type(0)).astype(
        value.dtype
    )
