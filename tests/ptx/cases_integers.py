"""Integer, bit and logic instructions on values worked out by hand from the PTX ISA manual."""

from __future__ import annotations

from typing import Any

from ptx.harness import Case

LOW, HIGH = -(2**31), 2**31 - 1


def case(instruction: str, out: str, expected: list[Any], **inputs: tuple[str, list[Any]]) -> Case:
    return Case(instruction, out, expected, inputs)


def two(instruction: str, of: str, rows: list[tuple[Any, Any, Any]]) -> Case:
    """An instruction d, a, b of one type; rows are (a, b, d)."""
    a, b, d = (list(column) for column in zip(*rows, strict=True))
    return case(instruction, of, d, a=(of, a), b=(of, b))


def shifts(instruction: str, of: str, rows: list[tuple[Any, Any, Any]]) -> Case:
    a, b, d = (list(column) for column in zip(*rows, strict=True))
    return case(instruction, of, d, a=(of, a), b=("u32", b))


INTEGER_CASES = [
    two("add.s32 d, a, b;", "s32", [(1, 2, 3), (HIGH, 1, LOW), (-1, 1, 0)]),
    two("add.u16 d, a, b;", "u16", [(65535, 2, 1), (7, 8, 15)]),
    two("add.sat.s32 d, a, b;", "s32", [(HIGH, 1, HIGH), (LOW, -1, LOW), (3, 4, 7)]),
    two("sub.u64 d, a, b;", "u64", [(0, 1, 2**64 - 1), (9, 4, 5)]),
    two("add.s16 d, a, b;", "s16", [(32767, 1, -32768), (-1, 1, 0)]),
    two("add.s64 d, a, b;", "s64", [(2**32 - 1, 1, 2**32), (2**63 - 1, 1, -(2**63)), (-1, 1, 0)]),
    two("sub.s32 d, a, b;", "s32", [(LOW, 1, HIGH), (3, 5, -2)]),
    two("sub.s64 d, a, b;", "s64", [(2**32, 1, 2**32 - 1), (-(2**63), 1, 2**63 - 1), (3, 5, -2)]),
    two("sub.sat.s32 d, a, b;", "s32", [(LOW, 1, LOW), (HIGH, -1, HIGH), (3, 4, -1)]),
    two("mul.lo.s32 d, a, b;", "s32", [(3, -4, -12), (65536, 65536, 0), (LOW, -1, LOW)]),
    two("mul.lo.u64 d, a, b;", "u64", [(2**33, 2**33, 0), (2**32 + 1, 3, 3 * 2**32 + 3)]),
    two("mul.lo.s64 d, a, b;", "s64", [(2**31, 6, 3 * 2**32), (-(2**40), 3, -3 * 2**40)]),
    two("mul.hi.u32 d, a, b;", "u32", [(2**31, 4, 2), (2**32 - 1, 2**32 - 1, 2**32 - 2)]),
    two("mul.hi.s32 d, a, b;", "s32", [(-1, 1, -1), (LOW, LOW, 2**30), (5, 6, 0)]),
    two("mul.hi.u64 d, a, b;", "u64", [(2**64 - 1, 2**64 - 1, 2**64 - 2), (2**63, 6, 3)]),
    two("mul.hi.s64 d, a, b;", "s64", [(-1, 1, -1), (-(2**63), -(2**63), 2**62), (2**62, -8, -2)]),
    case(
        "mul.wide.s32 d, a, b;",
        "s64",
        [-(2**31), 2**62],
        a=("s32", [LOW, LOW]),
        b=("s32", [1, LOW]),
    ),
    case("mul.wide.u32 d, a, b;", "u64", [(2**32 - 1) ** 2], a=("u32", [-1]), b=("u32", [-1])),
    case("mul.wide.u16 d, a, b;", "u32", [65535 * 3], a=("u16", [65535]), b=("u16", [3])),
    case(
        "mad.lo.s32 d, a, b, c;",
        "s32",
        [-5, LOW],
        a=("s32", [-3, HIGH]),
        b=("s32", [4, 1]),
        c=("s32", [7, 1]),
    ),
    case(
        "mad.wide.s32 d, a, b, c;",
        "s64",
        [2**40 - 12],
        a=("s32", [-3]),
        b=("s32", [4]),
        c=("s64", [2**40]),
    ),
    case(
        "mad.hi.u32 d, a, b, c;", "u32", [12], a=("u32", [2**31]), b=("u32", [4]), c=("u32", [10])
    ),
    two(
        "div.s32 d, a, b;", "s32", [(7, 2, 3), (-7, 2, -3), (7, -2, -3), (-7, -2, 3), (LOW, 1, LOW)]
    ),
    two("div.u64 d, a, b;", "u64", [(2**64 - 1, 2**32, 2**32 - 1), (6, 7, 0)]),
    two("div.u32 d, a, b;", "u32", [(2**32 - 1, 2, HIGH), (6, 7, 0)]),
    two("div.s64 d, a, b;", "s64", [(-(2**40) - 1, 2**38, -4), (2**40, -3, -(2**40 // 3))]),
    two("rem.s32 d, a, b;", "s32", [(7, 2, 1), (-7, 2, -1), (7, -2, 1), (-7, -2, -1)]),
    two("rem.s64 d, a, b;", "s64", [(-(2**40), 7, -(2**40 % 7)), (8, 3, 2)]),
    two("rem.u32 d, a, b;", "u32", [(2**32 - 1, 10, 5)]),
    two("min.s32 d, a, b;", "s32", [(-1, 1, -1), (3, 2, 2)]),
    two("min.u32 d, a, b;", "u32", [(2**32 - 1, 1, 1)]),
    two("max.s64 d, a, b;", "s64", [(-1, 1, 1), (-3, -2, -2)]),
    two("max.u16 d, a, b;", "u16", [(65535, 1, 65535)]),
    case("abs.s32 d, a;", "s32", [5, 5, LOW], a=("s32", [5, -5, LOW])),
    case("neg.s64 d, a;", "s64", [-5, 5, -(2**63)], a=("s64", [5, -5, -(2**63)])),
    two("and.b32 d, a, b;", "b32", [(0b1100, 0b1010, 0b1000)]),
    two("or.b64 d, a, b;", "b64", [(0b1100, 2**40, 0b1100 + 2**40)]),
    two("and.b16 d, a, b;", "b16", [(0b1100, 0b1010, 0b1000)]),
    two("and.b64 d, a, b;", "b64", [(2**40 + 0b1100, 2**40 + 0b1010, 2**40 + 0b1000)]),
    two("or.b32 d, a, b;", "b32", [(0b1100, 0b1010, 0b1110)]),
    two("xor.b16 d, a, b;", "b16", [(0b1100, 0b1010, 0b0110)]),
    case("not.b32 d, a;", "b32", [-1, 0xFFFF0000], a=("b32", [0, 0xFFFF])),
    case("not.b64 d, a;", "b64", [-1, (2**32 - 1) << 32], a=("b64", [0, 2**32 - 1])),
    case("cnot.b32 d, a;", "b32", [1, 0], a=("b32", [0, 9])),
    two("and.pred d, a, b;", "pred", [(1, 1, 1), (1, 0, 0), (0, 0, 0)]),
    two("or.pred d, a, b;", "pred", [(1, 1, 1), (1, 0, 1), (0, 0, 0)]),
    two("xor.pred d, a, b;", "pred", [(1, 1, 0), (1, 0, 1), (0, 0, 0)]),
    case("not.pred d, a;", "pred", [0, 1], a=("pred", [1, 0])),
    # Amounts beyond the width count as the width.
    shifts("shl.b32 d, a, b;", "b32", [(1, 31, 2**31), (1, 32, 0), (3, 2**32 - 1, 0), (5, 0, 5)]),
    shifts("shl.b64 d, a, b;", "b64", [(1, 63, 2**63), (1, 64, 0)]),
    shifts("shl.b16 d, a, b;", "b16", [(3, 15, 2**15), (1, 16, 0)]),
    shifts("shr.u32 d, a, b;", "u32", [(2**31, 31, 1), (2**31, 32, 0)]),
    shifts("shr.u64 d, a, b;", "u64", [(2**63, 62, 2), (2**63, 64, 0)]),
    shifts("shr.s32 d, a, b;", "s32", [(LOW, 31, -1), (LOW, 99, -1), (HIGH, 99, 0), (-8, 1, -4)]),
    shifts("shr.s64 d, a, b;", "s64", [(-(2**63), 62, -2), (-1, 64, -1)]),
    *(
        case(f"shf.{mode} d, a, b, c;", "b32", [d], a=("b32", [a]), b=("b32", [b]), c=("u32", [c]))
        for mode, a, b, c, d in (
            ("l.wrap.b32", 0x89ABCDEF, 0x01234567, 8, 0x23456789),
            ("l.wrap.b32", 0x89ABCDEF, 0x01234567, 32, 0x01234567),
            ("l.clamp.b32", 0x89ABCDEF, 0x01234567, 40, 0x89ABCDEF),
            ("r.wrap.b32", 0x89ABCDEF, 0x01234567, 8, 0x6789ABCD),
            ("r.clamp.b32", 0x89ABCDEF, 0x01234567, 32, 0x01234567),
        )
    ),
    *(
        case(f"bfe.{of} d, a, b, c;", of, [d], a=(of, [a]), b=("u32", [b]), c=("u32", [c]))
        for of, a, b, c, d in (
            ("u32", 0xABCD1234, 8, 8, 0x12),
            ("u32", 0xABCD1234, 28, 16, 0xA),
            ("u32", 0xABCD1234, 0, 32, 0xABCD1234),
            ("u32", 0xABCD1234, 4, 0, 0),
            ("s32", 0x00008000, 8, 8, -128),
            ("s32", LOW, 40, 8, -1),  # past the top: copies of the sign
            ("s32", 0x70, 4, 3, -1),
            ("s32", 0x70, 4, 4, 7),
            ("s32", -1, 4, 0, 0),
            ("u64", 0xFF << 40, 36, 8, 0xF0),
            ("s64", 0xFF << 40, 44, 4, -1),
        )
    ),
    *(
        case(
            f"bfi.{of} d, a, b, c, e;",
            of,
            [d],
            a=(of, [a]),
            b=(of, [b]),
            c=("u32", [c]),
            e=("u32", [e]),
        )
        for of, a, b, c, e, d in (
            ("b32", 0xFF, 0x12345678, 8, 8, 0x1234FF78),
            ("b32", 0xFF, 0x12345678, 28, 8, 0xF2345678),
            ("b32", 0xFF, 0x12345678, 0, 32, 0xFF),
            ("b32", 0xFF, 0x12345678, 0, 0, 0x12345678),
            ("b64", 0xABCD, 0x1111, 32, 32, 0xABCD_0000_1111),
        )
    ),
    case("bfind.u32 d, a;", "u32", [31, 0, 2**32 - 1], a=("u32", [2**31, 1, 0])),
    case("bfind.s32 d, a;", "u32", [2**32 - 1, 4, 1, 30], a=("s32", [-1, 16, -3, LOW])),
    case("bfind.shiftamt.u32 d, a;", "u32", [0, 31, 2**32 - 1], a=("u32", [2**31, 1, 0])),
    case("bfind.u64 d, a;", "u32", [40], a=("u64", [2**40 + 5])),
    case("clz.b32 d, a;", "u32", [32, 0, 31], a=("b32", [0, -1, 1])),
    case("clz.b64 d, a;", "u32", [64, 23], a=("b64", [0, 2**40])),
    case("popc.b32 d, a;", "u32", [0, 32, 2], a=("b32", [0, -1, 0x10010000])),
    case("popc.b64 d, a;", "u32", [64], a=("b64", [-1])),
    case("brev.b32 d, a;", "b32", [0x80000000, 0x0000000D], a=("b32", [1, 0xB0000000])),
    case("brev.b64 d, a;", "b64", [2**63, 2**23], a=("b64", [1, 2**40])),
    *(
        case(
            f"lop3.b32 d, a, b, c, {table};",
            "b32",
            [d],
            a=("b32", [0xF0]),
            b=("b32", [0xCC]),
            c=("b32", [0xAA]),
        )
        # immLut is the function's value on these very operands.
        for table, d in ((0x80, 0x80), (0xFE, 0xFE), (0x96, 0x96), (0xCA, 0xCA), (0, 0))
    ),
    *(
        case("prmt.b32 d, a, b, c;", "b32", [d], a=("b32", [a]), b=("b32", [b]), c=("b32", [c]))
        for a, b, c, d in (
            (0x33221100, 0x77665544, 0x3210, 0x33221100),
            (0x33221100, 0x77665544, 0x7531, 0x77553311),
            (0x33221180, 0x77665544, 0x8000, 0xFF808080),
            (0x33221100, 0x77665544, 0x9000, 0x00000000),
        )
    ),
]
