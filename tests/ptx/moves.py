"""Comparison, selection, conversion and moves (PTX ISA manual, 9.7.6, 9.7.9)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ptx import formats
from ptx.floats import positive_part
from ptx.formats import ROUNDINGS, TYPES, Type, flush_subnormals, round_to, saturate
from ptx.memory import LOCAL_WINDOW, SHARED_WINDOW
from ptx.operands import Form, Step, elementwise
from ptx.parser import Pair, Vector

if TYPE_CHECKING:
    from ptx.machine import Active

Array = NDArray[np.generic]
PRED = TYPES["pred"]
COMPARE: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
JOIN: dict[str, Callable[[Array, Array], Array]] = {
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
}


def comparison(name: str, of: Type) -> Callable[[Array, Array], Array] | None:
    """The comparison of that name, None if the type has none. A NaN makes plain ones false and
    those ending in u true."""
    if of.kind != "f":
        return COMPARE.get(UNSIGNED.get(name, name) if of.kind == "u" else name)
    if name == "num":
        return lambda a, b: ~(np.isnan(a) | np.isnan(b))
    if name == "nan":
        return lambda a, b: np.isnan(a) | np.isnan(b)
    if name.endswith("u") and name[:-1] in COMPARE:
        ordered = COMPARE[name[:-1]]
        return lambda a, b: ordered(a, b) | np.isnan(a) | np.isnan(b)
    if name == "ne":
        return lambda a, b: (a < b) | (a > b)
    return COMPARE.get(name)


def _setp(form: Form) -> Step:
    """p[|q] = join(a op b, c); q = join(not (a op b), c)."""
    of, flush = form.type(), form.flag("ftz")
    compare = comparison(form.modifiers.pop(0), of)
    if compare is None or of.kind == "x2":
        raise form.refuse("a comparison that the type does not have")
    join = JOIN[form.choice(*JOIN)] if form.modifiers else None
    form.done(3 if join is None else 4)
    target = form.operand(0)
    first, second = (target.first, target.second) if isinstance(target, Pair) else (target, None)
    write = form.writer(first, PRED)
    write_not = form.writer(second, PRED) if second else None
    a, b = form.read(1, of), form.read(2, of)
    c = form.read(3, PRED) if join else None

    def step(active: Active) -> None:
        x, y = a(active), b(active)
        if flush:
            x, y = flush_subnormals(x, of), flush_subnormals(y, of)
        truth = compare(x, y)
        third = c(active) if c else None
        write(active, join(truth, third) if join else truth)
        if write_not:
            write_not(active, join(~truth, third) if join else ~truth)

    return step


def _selp(form: Form) -> Step:
    of = form.type()
    of = TYPES[f"b{of.bits}"]  # bits are selected
    return elementwise(form, of, [of, of, PRED], lambda a, b, p: np.where(p, a, b))


def _mov(form: Form) -> Step:
    """Copy, pack {a, b} into a wider register (a is the low part) or unpack one."""
    of = form.type()
    target, source = form.instruction.operands[:2]
    if of.kind != "p":
        of = TYPES[f"b{of.bits}"]
    if isinstance(source, Vector):
        part = TYPES[f"b{of.bits // len(source.parts)}"]
        reads = [form.reader(each, part) for each in source.parts]
        write = form.write(0, of)
        form.done(2)
        return lambda active: write(active, _packed([r(active) for r in reads], active, of))
    if isinstance(target, Vector):
        part = TYPES[f"b{of.bits // len(target.parts)}"]
        writes = [form.writer(each, part) for each in target.parts]
        read = form.read(1, of)
        form.done(2)

        def unpack(active: Active) -> None:
            value = np.broadcast_to(read(active), active.count)
            parts = np.ascontiguousarray(value)[:, None].view(part.raw)
            for column, write_part in enumerate(writes):
                write_part(active, parts[:, column])

        return unpack
    return elementwise(form, of, [of], lambda a: a)


def _packed(parts: list[Array], active: Active, of: Type) -> Array:
    columns = [np.broadcast_to(part, active.count) for part in parts]
    return np.stack(columns, axis=1).view(of.raw)[:, 0]


def _cvta(form: Form) -> Step:
    """Global and const addresses are generic already; shared and local lie in their windows."""
    of, to = form.type(), form.flag("to")
    space = form.choice("global", "const", "shared", "local", "param")
    if space == "param" or of.bits != 64:
        raise form.refuse("parameters or 32-bit addresses")
    window = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW}.get(space, 0)
    move = np.uint64((-window if to else window) % (1 << 64))
    return elementwise(form, of, [of], lambda a: a + move)


def _cvt(form: Form) -> Step:
    source = form.type()
    target = form.type()
    if target.kind == "x2":
        return _cvt_pair(form, target, source)
    convert = _conversion(form, source, target)
    return elementwise(form, target, [source], convert)


def _conversion(form: Form, source: Type, target: Type) -> Callable[[Array], Array]:
    clamp, relu, flush = form.flag("sat"), form.flag("relu"), form.flag("ftz")
    integral = form.choice("rni", "rzi", "rmi", "rpi", default="")
    rounding = form.choice(*ROUNDINGS, default="rn")
    if "f" not in (source.kind, target.kind):
        return lambda a: _integer_to_integer(a, target, clamp)
    if target.kind != "f":
        if not integral:
            raise form.refuse("no rounding to an integer")
        return lambda a: float_to_integer(_flushed(a, source, flush), target, source, integral)
    if source.kind != "f" and target.name == "f64":
        if rounding != "rn":
            raise form.refuse("a double rounded otherwise than to nearest")
        return lambda a: a.astype(np.float64)
    if source.kind != "f":
        return lambda a: round_to(formats.integer_odd(a), target, rounding)

    def convert(a: Array) -> Array:
        exact = _flushed(a, source, flush).astype(np.float64)
        result = round_to(INTEGRAL[integral](exact), target, rounding)
        result = _flushed(result, target, flush)
        result = saturate(result) if clamp else result
        return positive_part(result) if relu else result

    return convert


def _flushed(a: Array, of: Type, flush: bool) -> Array:
    return flush_subnormals(a, of) if flush and of.name == "f32" else a


def _integer_to_integer(a: Array, target: Type, clamp: bool) -> Array:
    if clamp:
        limits = np.iinfo(target.dtype)
        low = max(int(limits.min), int(np.iinfo(a.dtype).min))
        high = min(int(limits.max), int(np.iinfo(a.dtype).max))
        a = np.clip(a, a.dtype.type(low), a.dtype.type(high))
    return a.astype(target.dtype)


INTEGRAL: dict[str, Callable[[Array], Array]] = {
    "rni": np.rint,
    "rzi": np.trunc,
    "rmi": np.floor,
    "rpi": np.ceil,
    "": np.asarray,
}


def float_to_integer(a: Array, target: Type, source: Type, integral: str) -> Array:
    """Clamp to the target's range; NaN gives 0, or the top bit alone for f64 and 64-bit targets."""
    value = INTEGRAL[integral](a.astype(np.float64))
    limits = np.iinfo(target.dtype)
    high_float = np.nextafter(float(limits.max) + 1.0, 0.0) if target.bits == 64 else limits.max
    inside = np.clip(np.nan_to_num(value, nan=0.0), float(limits.min), float(high_float))
    result = inside.astype(target.dtype)
    result = np.where(value >= float(limits.max) + (target.bits < 64), limits.max, result)
    if target.bits == 64 or source.name == "f64":
        top = np.array(1 << (target.bits - 1), target.raw).view(target.dtype)
        result = np.where(np.isnan(value), top, result)
    return result.astype(target.dtype)


def _cvt_pair(form: Form, target: Type, source: Type) -> Step:
    """cvt.rn.f16x2.f32 d, a, b: a becomes the upper half, b the lower."""
    if source.name != "f32":
        raise form.refuse("a pair from another type than f32")
    convert = _conversion(form, source, target.half)

    def compute(a: Array, b: Array) -> Array:
        return np.stack(np.broadcast_arrays(convert(b), convert(a)), axis=-1).reshape(-1, 2)

    return elementwise(form, target, [source, source], compute)


MOVES: dict[str, Callable[[Form], Step]] = {
    "setp": _setp,
    "selp": _selp,
    "mov": _mov,
    "cvt": _cvt,
    "cvta": _cvta,
}
