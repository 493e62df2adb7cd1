"""Integer, bit and logic instructions (PTX ISA manual, 9.7.1, 9.7.8 logic and shifts).

Every rule takes the form of one instruction and returns the step that executes it. Integers wrap.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ptx.formats import TYPES, Type
from ptx.operands import Form, Step, elementwise
from ptx.parser import Immediate, PtxError

Array = NDArray[np.generic]
U32 = TYPES["u32"]


def _arithmetic(compute: Callable[..., Array]) -> Callable[[Form], Step]:
    """d = compute(a, b) on the type; add and sub saturate with .sat (s32 only)."""

    def rule(form: Form) -> Step:
        of = form.type()
        if of.name == "s32" and form.instruction.opcode in ("add", "sub") and form.flag("sat"):
            low, high = np.iinfo(np.int32).min, np.iinfo(np.int32).max

            def saturating(a: Array, b: Array) -> Array:
                exact = compute(a.astype(np.int64), b.astype(np.int64))
                return np.clip(exact, low, high).astype(np.int32)

            return elementwise(form, of, [of, of], saturating)
        return elementwise(form, of, [of, of], compute)

    return rule


def _unary(compute: Callable[[Array], Array]) -> Callable[[Form], Step]:
    def rule(form: Form) -> Step:
        of = form.type()
        return elementwise(form, of, [of], compute)

    return rule


def product(a: Array, b: Array, of: Type, part: str) -> Array:
    """The low half, the high half or all (`wide`) of a product."""
    if part == "lo":
        return a * b
    if of.bits == 64:
        if part == "wide":
            raise ValueError("mul.wide of 64 bits")
        return _high_64(a, b)
    wider = np.dtype(f"{'int' if of.kind == 's' else 'uint'}{2 * of.bits}")
    full = a.astype(wider) * b.astype(wider)
    return full if part == "wide" else (full >> wider.type(of.bits)).astype(of.dtype)


def _high_64(a: Array, b: Array) -> Array:
    """The upper 64 bits of a 64 x 64 bit product, by schoolbook on 32-bit digits."""
    ua, ub = a.view(np.uint64), b.view(np.uint64)
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    a0, a1, b0, b1 = ua & low, ua >> shift, ub & low, ub >> shift
    middle = a1 * b0 + ((a0 * b0) >> shift)
    carry = (middle & low) + a0 * b1
    high = a1 * b1 + (middle >> shift) + (carry >> shift)
    if a.dtype == np.int64:  # unsigned -> signed: subtract the other factor where one is negative
        high = high - np.where(a < 0, ub, np.uint64(0)) - np.where(b < 0, ua, np.uint64(0))
    return high.view(a.dtype)


def _mul(form: Form) -> Step:
    of, part = form.type(), form.choice("lo", "hi", "wide")
    out = TYPES[f"{of.kind}{2 * of.bits}"] if part == "wide" else of
    return elementwise(form, out, [of, of], lambda a, b: product(a, b, of, part))


def _mad(form: Form) -> Step:
    of, part = form.type(), form.choice("lo", "hi", "wide")
    out = TYPES[f"{of.kind}{2 * of.bits}"] if part == "wide" else of
    return elementwise(form, out, [of, of, out], lambda a, b, c: product(a, b, of, part) + c)


def _division(form: Form) -> Step:
    """div and rem: truncation towards zero; the remainder has the dividend's sign."""
    of, line = form.type(), form.line
    remainder = form.instruction.opcode == "rem"

    def divide(a: Array, b: Array) -> Array:
        if (b == 0).any():
            raise PtxError("division", line, "integer division by zero")
        if of.kind == "u":
            return a % b if remainder else a // b
        size_a, size_b = (np.abs(v).view(of.raw) for v in (a, b))  # |-2^31| is right as unsigned
        if remainder:
            value, negative = size_a % size_b, a < 0
        else:
            value, negative = size_a // size_b, (a < 0) != (b < 0)
        return np.where(negative, -value, value).astype(of.raw).view(of.dtype)

    return elementwise(form, of, [of, of], divide)


def shift(a: Array, amount: Array, of: Type, left: bool) -> Array:
    """Shift; amounts beyond the width count as the width."""
    clamped = np.minimum(amount, np.uint32(of.bits)).astype(of.raw)
    inside = np.minimum(clamped, of.raw(of.bits - 1))
    if left:
        return np.where(clamped == of.bits, a.dtype.type(0), a << inside.astype(a.dtype))
    beyond = a >> a.dtype.type(of.bits - 1) if of.kind == "s" else a.dtype.type(0)
    return np.where(clamped == of.bits, beyond, a >> inside.astype(a.dtype))


def _shift(form: Form) -> Step:
    of, left = form.type(), form.instruction.opcode == "shl"
    return elementwise(form, of, [of, U32], lambda a, n: shift(a, n, of, left))


def _funnel(form: Form) -> Step:
    """shf: shift the 64 bits b:a; l keeps the upper, r the lower word."""
    of, left = form.type(), form.choice("l", "r") == "l"
    wrap = form.choice("clamp", "wrap") == "wrap"
    if of.bits != 32:
        raise form.refuse("a type that is not 32 bits")

    def funnel(a: Array, b: Array, c: Array) -> Array:
        n = (c & np.uint32(31)) if wrap else np.minimum(c, np.uint32(32))
        both = (b.astype(np.uint64) << np.uint64(32)) | a
        moved = both << n.astype(np.uint64) if left else both >> n.astype(np.uint64)
        return (moved >> np.uint64(32) if left else moved).astype(np.uint32)

    return elementwise(form, of, [of, of, U32], funnel)


def _mask(length: Array, of: Type) -> Array:
    """`length` ones."""
    full = of.raw((1 << of.bits) - 1)
    return np.where(length >= of.bits, full, shift(of.raw(1), length, of, True) - of.raw(1))


def _bfe(form: Form) -> Step:
    """Extract c bits of a from bit b on; beyond the top they are the sign (0 if unsigned)."""
    of = form.type()

    def extract(a: Array, b: Array, c: Array) -> Array:
        position, length = b & np.uint32(255), c & np.uint32(255)
        taken = shift(a, position, of, False).view(of.raw) & _mask(length, of)
        if of.kind == "s":
            top = np.minimum(position + length - np.uint32(1), np.uint32(of.bits - 1))
            negative = (shift(a, top, of, False).view(of.raw) & of.raw(1)) != 0
            negative &= length != 0
            taken = np.where(negative, taken | ~_mask(length, of), taken)
        return taken.astype(of.raw).view(of.dtype)

    return elementwise(form, of, [of, U32, U32], extract)


def _bfi(form: Form) -> Step:
    """Insert the low d bits of a into b from bit c on."""
    of = form.type()

    def insert(a: Array, b: Array, c: Array, d: Array) -> Array:
        position, length = c & np.uint32(255), d & np.uint32(255)
        mask = shift(_mask(length, of), position, of, True)
        return (b & ~mask) | (shift(a, position, of, True) & mask)

    return elementwise(form, of, [of, of, U32, U32], insert)


def highest_bit(a: Array, of: Type) -> Array:
    """Number of the highest set bit, -1 if there is none."""
    result = np.full(np.shape(a), -1, np.int64)
    for bit in range(of.bits):
        result = np.where((a >> of.raw(bit)) & of.raw(1), bit, result)
    return result


def _bfind(form: Form) -> Step:
    """The highest bit that differs from the sign; .shiftamt: how far it is from the top."""
    of, distance = form.type(), form.flag("shiftamt")

    def find(a: Array) -> Array:
        bits = np.where(a < 0, ~a, a).view(of.raw) if of.kind == "s" else a
        found = highest_bit(bits, of)
        result = np.where((found >= 0) & distance, of.bits - 1 - found, found)
        return result.astype(np.uint32)

    return elementwise(form, U32, [of], find)


def _clz(form: Form) -> Step:
    of = form.type()

    def count(a: Array) -> Array:
        return (of.bits - 1 - highest_bit(a, of)).astype(np.uint32)

    return elementwise(form, U32, [of], count)


def _popc(form: Form) -> Step:
    of = form.type()
    return elementwise(form, U32, [of], lambda a: np.bitwise_count(a).astype(np.uint32))


def _brev(form: Form) -> Step:
    of = form.type()

    def reverse(a: Array) -> Array:
        octets = np.ascontiguousarray(a).reshape(-1, 1).view(np.uint8)
        bits = np.unpackbits(octets, axis=1, bitorder="little")
        back = np.packbits(bits[:, ::-1], axis=1, bitorder="little")
        return back.view(of.raw).reshape(np.shape(a))

    return elementwise(form, of, [of], reverse)


def _lop3(form: Form) -> Step:
    """Any function of three bits: immLut holds its value for a = 0xF0, b = 0xCC, c = 0xAA."""
    of, table = form.type(), form.operand(4)
    if not isinstance(table, Immediate):
        raise form.refuse("a table that is not a constant")

    def look_up(a: Array, b: Array, c: Array, _: Array) -> Array:
        result = np.zeros(np.broadcast_shapes(a.shape, b.shape, c.shape), of.raw)
        for row in range(8):
            if table.value >> row & 1:
                result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
        return result

    return elementwise(form, of, [of, of, of, U32], look_up)


def _prmt(form: Form) -> Step:
    """Pick four bytes of b:a; selector bit 3 of a nibble replicates the byte's sign."""
    of = form.type()

    def pick(a: Array, b: Array, selector: Array) -> Array:
        both = (b.astype(np.uint64) << np.uint64(32)) | a
        result = np.zeros(both.shape, np.uint64)
        for k in range(4):
            nibble = (selector >> np.uint32(4 * k)) & np.uint32(15)
            place = ((nibble & np.uint32(7)) * np.uint32(8)).astype(np.uint64)
            byte = (both >> place) & np.uint64(255)
            sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
            byte = np.where(nibble & np.uint32(8), sign, byte)
            result = result | (byte << np.uint64(8 * k))
        return result.astype(np.uint32)

    return elementwise(form, of, [of, of, U32], pick)


INTEGERS: dict[str, Callable[[Form], Step]] = {
    "add": _arithmetic(lambda a, b: a + b),
    "sub": _arithmetic(lambda a, b: a - b),
    "min": _arithmetic(np.minimum),
    "max": _arithmetic(np.maximum),
    "mul": _mul,
    "mad": _mad,
    "div": _division,
    "rem": _division,
    "abs": _unary(np.abs),
    "neg": _unary(lambda a: np.asarray(0 - a).astype(a.dtype)),
    "and": _arithmetic(lambda a, b: a & b),
    "or": _arithmetic(lambda a, b: a | b),
    "xor": _arithmetic(lambda a, b: a ^ b),
    "not": _unary(lambda a: ~a),
    "cnot": _unary(lambda a: (a == 0).astype(a.dtype)),
    "shl": _shift,
    "shr": _shift,
    "shf": _funnel,
    "bfe": _bfe,
    "bfi": _bfi,
    "bfind": _bfind,
    "clz": _clz,
    "popc": _popc,
    "brev": _brev,
    "lop3": _lop3,
    "prmt": _prmt,
}
