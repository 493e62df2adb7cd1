"""Floating-point instructions (PTX ISA manual, 9.7.3 to 9.7.5: f32, f64, half and bfloat16).

`.approx` instructions are modelled as correctly rounded; on hardware the manual bounds their error:
ex2 and sqrt, rsqrt, rcp: 1 to 2 ulp; lg2: 2^-22 absolute near 1, 3 ulp elsewhere; div.approx and
div.full: 2 ulp; sin, cos: 2^-20 absolute; tanh: 2^-11 relative. The interpreter's `approximation`
moves each such result by that many ulps, to show that a kernel does not rely on the exact one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ptx import formats
from ptx.formats import ROUNDINGS, Type, canonical, flush_subnormals, round_to, saturate
from ptx.operands import Form, Step, elementwise

Array = NDArray[np.generic]
Compute = Callable[..., Array]


def _double(a: Array) -> Array:
    return np.asarray(a, np.float64)


# How to form a result in float64, rounded to odd.
ODD: dict[str, Compute] = {
    "add": lambda a, b: formats.add_odd(_double(a), _double(b)),
    "sub": lambda a, b: formats.add_odd(_double(a), -_double(b)),
    "mul": lambda a, b: _double(a) * _double(b),
    "fma": lambda a, b, c: formats.fma_odd(_double(a), _double(b), _double(c)),
    "div": lambda a, b: formats.divide_odd(_double(a), _double(b)),
    "rcp": lambda a: formats.divide_odd(np.ones_like(_double(a)), _double(a)),
    "sqrt": lambda a: formats.sqrt_odd(_double(a)),
}
# What IEEE hardware rounds to nearest by itself.
NATIVE: dict[str, Compute] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "rcp": lambda a: np.reciprocal(a),
    "sqrt": lambda a: np.sqrt(a),
}
APPROXIMATE: dict[str, Compute] = {
    "ex2": np.exp2,
    "lg2": np.log2,
    "rcp": np.reciprocal,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: 1.0 / np.sqrt(a),
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}


def _element(of: Type) -> Type:
    return of.half if of.kind == "x2" else of


def _finish(form: Form, of: Type, compute: Compute) -> Compute:
    """Take .ftz, .sat and .relu, and apply them around a computation."""
    flush, clamp, relu = form.flag("ftz"), form.flag("sat"), form.flag("relu")
    element = _element(of)
    if flush and element.name in ("f64", "bf16"):
        raise form.refuse(f".ftz on {element.name}")
    if not (flush or clamp or relu):
        return compute

    def finished(*values: Array) -> Array:
        if flush:
            values = tuple(flush_subnormals(value, element) for value in values)
        result = compute(*values)
        if flush:
            result = flush_subnormals(result, element)
        if clamp:
            result = saturate(result)
        return positive_part(result) if relu else result

    return finished


def positive_part(value: Array) -> Array:
    """.relu: negative values become +0; NaN stays."""
    return np.where(value > 0, value, np.where(np.isnan(value), value, value.dtype.type(0)))


def _rounded(arity: int) -> Callable[[Form], Step]:
    """add, sub, mul, fma, div, rcp, sqrt: computed exactly, rounded once."""

    def rule(form: Form) -> Step:
        of, name = form.type(), form.instruction.opcode
        rounding = form.choice(*ROUNDINGS, default="rn")
        element, key = _element(of), "fma" if name == "mad" else name
        if element.name in ("f32", "f64") and rounding == "rn" and key in NATIVE:
            native = NATIVE[key]

            def compute(*values: Array) -> Array:
                return canonical(np.asarray(native(*values)), element)

        elif element.name == "f64":
            raise form.refuse("double precision beyond + - * / sqrt")
        else:
            odd = ODD[key]

            def compute(*values: Array) -> Array:
                return round_to(odd(*values), element, rounding)

        return elementwise(form, of, [of] * arity, _finish(form, of, compute))

    return rule


def _approximate(form: Form) -> Step:
    of = form.type()
    if not form.flag("approx"):
        if form.instruction.opcode in ODD:
            form.modifiers.append(of.name)
            return _rounded(1)(form)
        raise form.refuse("no .approx")
    function, ulps, element = APPROXIMATE[form.instruction.opcode], form.scope.approximation, of
    element = _element(of)

    def compute(a: Array) -> Array:
        return inexact(round_to(np.asarray(function(_double(a))), element), a, element, ulps)

    return elementwise(form, of, [of], _finish(form, of, compute))


def inexact(result: Array, source: Array, of: Type, ulps: int) -> Array:
    """Move results by some ulps away from zero, but for the exact special cases of the manual."""
    if ulps == 0:
        return result
    moved = (result.view(of.raw) + of.raw(ulps % (1 << of.bits))).astype(of.raw).view(of.dtype)
    ordinary = np.isfinite(result) & (np.abs(result) > 0) & (source != 0) & np.isfinite(moved)
    return np.where(ordinary & (np.abs(result) != 1), moved, result)


def _div(form: Form) -> Step:
    """div.approx gives 0 for 2^126 < |b| < 2^128 (NaN if a is infinite); div.full does not."""
    of = form.type()
    kinds = [kind for kind in ("approx", "full") if form.flag(kind)]
    if not kinds:
        form.modifiers.append(of.name)
        return _rounded(2)(form)
    ulps, huge = form.scope.approximation, 2.0**126

    def compute(a: Array, b: Array) -> Array:
        result = inexact(canonical(np.asarray(a / b), of), a, of, ulps)
        if kinds == ["approx"]:
            special = (np.abs(b) > huge) & np.isfinite(b)
            zero = np.copysign(np.float32(0), a) * np.sign(b)
            value = np.where(np.isfinite(a), zero, np.float32(np.nan))
            result = canonical(np.where(special, value, result), of)
        return result

    return elementwise(form, of, [of, of], _finish(form, of, compute))


def minimum(a: Array, b: Array, of: Type, *, keep_nan: bool, largest: bool) -> Array:
    """min or max: -0 < +0; one NaN gives the other operand, or with keep_nan a NaN."""
    both = a.view(of.raw) & b.view(of.raw) if largest else a.view(of.raw) | b.view(of.raw)
    chosen = np.where(a > b if largest else a < b, a, b)
    chosen = np.where((a == 0) & (b == 0), both.view(of.dtype), chosen)
    nan = np.isnan(a) | np.isnan(b)
    other = np.where(np.isnan(a), b, a)
    chosen = np.where(nan, a + b if keep_nan else other, chosen)
    return canonical(chosen.astype(of.dtype), of)


def _extremum(form: Form) -> Step:
    of, largest, keep_nan = form.type(), form.instruction.opcode == "max", form.flag("NaN")
    element = _element(of)

    def compute(a: Array, b: Array) -> Array:
        return minimum(a, b, element, keep_nan=keep_nan, largest=largest)

    return elementwise(form, of, [of, of], _finish(form, of, compute))


def _sign_bit(compute: Compute) -> Callable[[Form], Step]:
    """neg and abs change a bit, also of a NaN."""

    def rule(form: Form) -> Step:
        of = form.type()
        element = _element(of)
        sign = element.raw(1 << (element.bits - 1))

        def on_bits(a: Array) -> Array:
            return compute(a.view(element.raw), sign).astype(element.raw).view(element.dtype)

        return elementwise(form, of, [of], _finish(form, of, on_bits))

    return rule


def _copysign(form: Form) -> Step:
    """The sign of a, the magnitude of b."""
    of = form.type()
    sign = of.raw(1 << (of.bits - 1))

    def compute(a: Array, b: Array) -> Array:
        return ((a.view(of.raw) & sign) | (b.view(of.raw) & ~sign)).view(of.dtype)

    return elementwise(form, of, [of, of], compute)


TESTS: dict[str, Compute] = {
    "finite": np.isfinite,
    "infinite": np.isinf,
    "number": lambda a: ~np.isnan(a),
    "notanumber": np.isnan,
    "normal": lambda a: np.isfinite(a) & (np.abs(a) >= np.finfo(a.dtype).tiny),
    "subnormal": lambda a: (a != 0) & (np.abs(a) < np.finfo(a.dtype).tiny),
}


def _testp(form: Form) -> Step:
    of, test = form.type(), TESTS[form.choice(*TESTS)]
    return elementwise(form, formats.TYPES["pred"], [of], test)


FLOATS: dict[str, Callable[[Form], Step]] = {
    "add": _rounded(2),
    "sub": _rounded(2),
    "mul": _rounded(2),
    "fma": _rounded(3),
    "mad": _rounded(3),
    "div": _div,
    "min": _extremum,
    "max": _extremum,
    "abs": _sign_bit(lambda bits, sign: bits & ~sign),
    "neg": _sign_bit(lambda bits, sign: bits ^ sign),
    "copysign": _copysign,
    "testp": _testp,
    **dict.fromkeys(APPROXIMATE, _approximate),
}
