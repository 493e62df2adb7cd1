"""Floating-point, comparison, move and conversion instructions, worked out by hand."""

from __future__ import annotations

from math import inf, nan
from typing import Any

from ptx.cases_integers import case, two
from ptx.harness import Case

ULP = 2.0**-23  # of 1 in float32
TINY = 2.0**-149  # the smallest float32
ONE_UP, ONE_DOWN = 1 + ULP, 1 - ULP / 2
HUGE = float.fromhex("0x1.fffffep127")


def one(instruction: str, of: str, rows: list[tuple[Any, Any]]) -> Case:
    a, d = (list(column) for column in zip(*rows, strict=True))
    return case(instruction, of, d, a=(of, a))


def three(instruction: str, of: str, rows: list[tuple[Any, Any, Any, Any]]) -> Case:
    a, b, c, d = (list(column) for column in zip(*rows, strict=True))
    return case(instruction, of, d, a=(of, a), b=(of, b), c=(of, c))


def compare(instruction: str, of: str, rows: list[tuple[Any, Any, Any]]) -> Case:
    a, b, d = (list(column) for column in zip(*rows, strict=True))
    return case(instruction, "pred", d, a=(of, a), b=(of, b))


def convert(name: str, rows: list[tuple[Any, Any]]) -> Case:
    """cvt.<...>.<target>.<source>; rows are (source value, target value)."""
    target, of = name.split(".")[-2:]
    a, d = (list(column) for column in zip(*rows, strict=True))
    return case(f"cvt.{name} d, a;", target, d, a=(of, a))


ARITHMETIC = [
    # 1 + ulp/2 lies half-way: nearest even goes down, and so on.
    two("add.f32 d, a, b;", "f32", [(1.0, ULP / 2, 1.0), (ONE_UP, ULP / 2, 1 + 2 * ULP)]),
    two("add.rz.f32 d, a, b;", "f32", [(ONE_UP, ULP * 0.75, ONE_UP), (-1.0, -ULP * 0.75, -1.0)]),
    two("add.rm.f32 d, a, b;", "f32", [(-1.0, -TINY, -ONE_UP), (1.0, TINY, 1.0)]),
    two("add.rp.f32 d, a, b;", "f32", [(1.0, TINY, ONE_UP), (-1.0, -TINY, -1.0), (HUGE, 1.0, inf)]),
    two("add.rn.f32 d, a, b;", "f32", [(inf, -inf, nan), (nan, 1.0, nan), (-0.0, -0.0, -0.0)]),
    two("add.ftz.f32 d, a, b;", "f32", [(TINY, 0.0, 0.0), (-TINY, -0.0, -0.0), (1.0, 2.0, 3.0)]),
    two("add.sat.f32 d, a, b;", "f32", [(0.75, 0.5, 1.0), (-1.0, 0.5, 0.0), (nan, 1.0, 0.0)]),
    two("add.f64 d, a, b;", "f64", [(1.0, 2.0**-53, 1.0), (0.5, 0.25, 0.75)]),
    two(
        "add.f16 d, a, b;",
        "f16",
        [(1.0, 2.0**-11, 1.0), (65504.0, 16.0, inf), (65504.0, 8.0, 65504.0)],
    ),
    two("add.f16x2 d, a, b;", "f16x2", [(0x3C004000, 0x40003C00, 0x42004200)]),
    two("add.bf16x2 d, a, b;", "bf16x2", [(0x3F804000, 0x40003F80, 0x40404040)]),
    two("sub.f32 d, a, b;", "f32", [(1.0, 1.0, 0.0), (2.0**-126, 2.0**-127, 2.0**-127)]),
    two("sub.rm.f32 d, a, b;", "f32", [(1.0, TINY, ONE_DOWN)]),
    two("sub.bf16 d, a, b;", "bf16", [(1.0, 2.0**-10, 1.0), (3.0, 1.0, 2.0)]),
    two("mul.f32 d, a, b;", "f32", [(TINY, 0.5, 0.0), (TINY, 0.75, TINY), (0.0, inf, nan)]),
    two("mul.rp.f32 d, a, b;", "f32", [(TINY, 0.25, TINY), (-TINY, 0.25, -0.0)]),
    two("mul.ftz.f32 d, a, b;", "f32", [(2.0**-126, 0.5, 0.0), (2.0**-126, -0.5, -0.0)]),
    two("mul.f16 d, a, b;", "f16", [(2.0**-24, 0.5, 0.0), (2.0**-24, 0.75, 2.0**-24)]),
    two("mul.f64 d, a, b;", "f64", [(3.0, 0.5, 1.5)]),
    # (1 + u)^2 - (1 + 2u) is u^2: nothing is lost in a fused multiplication.
    three(
        "fma.rn.f32 d, a, b, c;",
        "f32",
        [
            (ONE_UP, ONE_UP, -(1 + 2 * ULP), ULP**2),
            # Just above half-way: rounding to float64 first would lose the 2^-60.
            (1 + 2.0**-12, 1 + 2.0**-12, 2.0**-60, 1 + 2.0**-11 + 2 * 2.0**-24),
            (2.0**-30, 2.0**-30, 1 + ULP, 1 + ULP),
            (HUGE, 2.0, -HUGE, HUGE),
            (inf, 0.0, 1.0, nan),
        ],
    ),
    three("fma.rm.f32 d, a, b, c;", "f32", [(-TINY, TINY, 1.0, ONE_DOWN), (TINY, TINY, 1.0, 1.0)]),
    three(
        "fma.rz.f32 d, a, b, c;", "f32", [(-TINY, TINY, -1.0, -1.0), (TINY, -TINY, 1.0, ONE_DOWN)]
    ),
    three("fma.rp.f32 d, a, b, c;", "f32", [(TINY, TINY, 1.0, ONE_UP), (-TINY, TINY, -0.0, -0.0)]),
    three("fma.rn.sat.f32 d, a, b, c;", "f32", [(2.0, 2.0, 0.0, 1.0), (2.0, -2.0, 0.0, 0.0)]),
    three(
        "fma.rn.f16 d, a, b, c;", "f16", [(1 + 2.0**-10, 1 + 2.0**-10, -1.0, 2.0**-9 + 2.0**-20)]
    ),
    three("fma.rn.relu.f16 d, a, b, c;", "f16", [(1.0, -1.0, 0.5, 0.0), (1.0, 1.0, 0.5, 1.5)]),
    three("fma.rn.bf16 d, a, b, c;", "bf16", [(2.0, 3.0, 1.0, 7.0), (1.0, 1.0, 2.0**-9, 1.0)]),
    three("mad.rn.f32 d, a, b, c;", "f32", [(ONE_UP, ONE_UP, -(1 + 2 * ULP), ULP**2)]),
    two(
        "div.rn.f32 d, a, b;", "f32", [(1.0, 3.0, float.fromhex("0x1.555556p-2")), (1.0, 0.0, inf)]
    ),
    two(
        "div.rz.f32 d, a, b;", "f32", [(1.0, 3.0, float.fromhex("0x1.555554p-2")), (TINY, 2.0, 0.0)]
    ),
    two("div.rp.f32 d, a, b;", "f32", [(TINY, 2.0, TINY), (0.0, 0.0, nan), (6.0, 3.0, 2.0)]),
    two("div.full.f32 d, a, b;", "f32", [(6.0, 3.0, 2.0), (2.0**127, 2.0**127, 1.0)]),
    two(
        "div.approx.f32 d, a, b;",
        "f32",
        [(6.0, 3.0, 2.0), (1.0, 2.0**127, 0.0), (-inf, 2.0**127, nan)],
    ),
    one(
        "rcp.rn.f32 d, a;",
        "f32",
        [(4.0, 0.25), (-0.0, -inf), (inf, 0.0), (3.0, float.fromhex("0x1.555556p-2"))],
    ),
    one("rcp.rm.f32 d, a;", "f32", [(3.0, float.fromhex("0x1.555554p-2"))]),
    one("rcp.approx.ftz.f32 d, a;", "f32", [(4.0, 0.25), (TINY, inf), (2.0**127, 0.0)]),
    one(
        "sqrt.rn.f32 d, a;",
        "f32",
        [(4.0, 2.0), (2.0, float.fromhex("0x1.6a09e6p0")), (-0.0, -0.0), (-1.0, nan)],
    ),
    one("sqrt.rp.f32 d, a;", "f32", [(4.0, 2.0), (2.0, float.fromhex("0x1.6a09e8p0"))]),
    one("sqrt.approx.f32 d, a;", "f32", [(9.0, 3.0), (inf, inf)]),
    one(
        "rsqrt.approx.f32 d, a;",
        "f32",
        [(4.0, 0.5), (0.0, inf), (-0.0, -inf), (inf, 0.0), (-1.0, nan)],
    ),
    one(
        "ex2.approx.f32 d, a;",
        "f32",
        [(3.0, 8.0), (-149.0, TINY), (-inf, 0.0), (-0.0, 1.0), (nan, nan)],
    ),
    one("ex2.approx.ftz.f32 d, a;", "f32", [(-127.0, 0.0), (TINY, 1.0), (128.0, inf)]),
    one("ex2.approx.f16 d, a;", "f16", [(4.0, 16.0), (-24.0, 2.0**-24)]),
    one(
        "lg2.approx.f32 d, a;",
        "f32",
        [(8.0, 3.0), (TINY, -149.0), (0.0, -inf), (-1.0, nan), (inf, inf)],
    ),
    one("lg2.approx.ftz.f32 d, a;", "f32", [(TINY, -inf), (0.5, -1.0)]),
    one("sin.approx.f32 d, a;", "f32", [(0.0, 0.0), (-0.0, -0.0), (inf, nan)]),
    one("cos.approx.f32 d, a;", "f32", [(0.0, 1.0), (inf, nan)]),
    one("tanh.approx.f32 d, a;", "f32", [(0.0, 0.0), (inf, 1.0), (-inf, -1.0)]),
    two(
        "min.f32 d, a, b;",
        "f32",
        [(nan, 1.0, 1.0), (1.0, nan, 1.0), (nan, nan, nan), (0.0, -0.0, -0.0), (-0.0, 0.0, -0.0)],
    ),
    two(
        "max.f32 d, a, b;",
        "f32",
        [(nan, 1.0, 1.0), (2.0, nan, 2.0), (0.0, -0.0, 0.0), (-0.0, 0.0, 0.0), (-inf, -1.0, -1.0)],
    ),
    two("max.NaN.f32 d, a, b;", "f32", [(nan, 1.0, nan), (1.0, nan, nan), (1.0, 2.0, 2.0)]),
    two(
        "min.f16x2 d, a, b;",
        "f16x2",
        [(0x3C00C000, 0x40004000, 0x3C00C000), (0x7E008000, 0x3C000000, 0x3C008000)],
    ),
    two("max.bf16 d, a, b;", "bf16", [(1.0, 2.0, 2.0), (nan, 2.0, 2.0)]),
    one("abs.f32 d, a;", "f32", [(-2.0, 2.0), (-0.0, 0.0), (0xFFC00000, 0x7FC00000)]),
    one("neg.f32 d, a;", "f32", [(2.0, -2.0), (0.0, -0.0), (0x7FC00000, 0xFFC00000)]),
    one("neg.ftz.f32 d, a;", "f32", [(TINY, -0.0)]),
    one("abs.f16x2 d, a;", "f16x2", [(0xBC00C000, 0x3C004000)]),
    one("neg.bf16x2 d, a;", "bf16x2", [(0x3F80C000, 0xBF804000)]),
    # The sign of a on the magnitude of b.
    two(
        "copysign.f32 d, a, b;",
        "f32",
        [(-1.0, 2.0, -2.0), (1.0, -2.0, 2.0), (-0.0, nan, 0xFFFFFFFF)],
    ),
    *(
        case(f"testp.{test}.f32 d, a;", "pred", expected, a=("f32", [1.0, -inf, nan, TINY, 0.0]))
        for test, expected in (
            ("finite", [1, 0, 0, 1, 1]),
            ("infinite", [0, 1, 0, 0, 0]),
            ("number", [1, 1, 0, 1, 1]),
            ("notanumber", [0, 0, 1, 0, 0]),
            ("normal", [1, 0, 0, 0, 0]),
            ("subnormal", [0, 0, 0, 1, 0]),
        )
    ),
]

COMPARISONS = [
    compare("setp.eq.s32 d, a, b;", "s32", [(1, 1, 1), (-1, 1, 0)]),
    compare("setp.ne.b16 d, a, b;", "b16", [(1, 1, 0), (0, 1, 1)]),
    compare("setp.lt.s32 d, a, b;", "s32", [(-1, 1, 1), (1, 1, 0)]),
    compare("setp.lt.u32 d, a, b;", "u32", [(-1, 1, 0), (1, 2, 1)]),
    compare("setp.lo.u32 d, a, b;", "u32", [(-1, 1, 0), (1, 2, 1)]),
    compare("setp.hs.u64 d, a, b;", "u64", [(-1, 1, 1), (1, 2, 0), (2, 2, 1)]),
    compare("setp.ge.s64 d, a, b;", "s64", [(-1, 1, 0), (2, 2, 1)]),
    compare("setp.eq.b16 d, a, b;", "b16", [(1, 1, 1), (0, 1, 0)]),
    compare("setp.eq.s16 d, a, b;", "s16", [(-1, 0xFFFF, 1), (0, 1, 0)]),
    compare("setp.eq.s64 d, a, b;", "s64", [(2**32, 0, 0), (-1, -1, 1)]),
    compare("setp.ne.s32 d, a, b;", "s32", [(-1, -1, 0), (-1, 1, 1)]),
    compare("setp.ne.s64 d, a, b;", "s64", [(2**32, 0, 1), (-1, -1, 0)]),
    compare("setp.lt.s64 d, a, b;", "s64", [(-(2**40), 1, 1), (2**32, 1, 0), (1, 1, 0)]),
    compare("setp.lt.u64 d, a, b;", "u64", [(-1, 1, 0), (1, 2**32, 1), (1, 1, 0)]),
    compare("setp.le.s64 d, a, b;", "s64", [(-(2**40), 1, 1), (2**32, 1, 0), (1, 1, 1)]),
    compare("setp.gt.u32 d, a, b;", "u32", [(-1, 1, 1), (1, 2, 0), (1, 1, 0)]),
    compare("setp.gt.s64 d, a, b;", "s64", [(-(2**40), 1, 0), (2**32, 1, 1), (1, 1, 0)]),
    compare("setp.ge.s32 d, a, b;", "s32", [(-1, 1, 0), (2, 1, 1), (1, 1, 1)]),
    # A NaN makes ordered comparisons false, also ne, and unordered ones true.
    *(
        compare(f"setp.{name}.f32 d, a, b;", "f32", [(1.0, 2.0, x), (2.0, 2.0, y), (nan, 2.0, z)])
        for name, x, y, z in (
            ("eq", 0, 1, 0),
            ("ne", 1, 0, 0),
            ("lt", 1, 0, 0),
            ("le", 1, 1, 0),
            ("gt", 0, 0, 0),
            ("ge", 0, 1, 0),
            ("equ", 0, 1, 1),
            ("neu", 1, 0, 1),
            ("ltu", 1, 0, 1),
            ("leu", 1, 1, 1),
            ("gtu", 0, 0, 1),
            ("geu", 0, 1, 1),
            ("num", 1, 1, 0),
            ("nan", 0, 0, 1),
        )
    ),
    compare("setp.eq.f32 d, a, b;", "f32", [(0.0, -0.0, 1), (inf, inf, 1), (TINY, 0.0, 0)]),
    compare("setp.eq.ftz.f32 d, a, b;", "f32", [(TINY, -0.0, 1)]),
    compare("setp.lt.f16 d, a, b;", "f16", [(1.0, 2.0, 1), (nan, 2.0, 0)]),
    *(
        case(
            f"setp.lt.{join}.s32 d, a, b, c;",
            "pred",
            expected,
            a=("s32", [1, 1, 3, 3]),
            b=("s32", [2, 2, 2, 2]),
            c=("pred", [0, 1, 0, 1]),
        )
        for join, expected in (("and", [0, 1, 0, 0]), ("or", [1, 1, 0, 1]), ("xor", [1, 0, 0, 1]))
    ),
    case(
        "{ .reg .pred u; setp.lt.or.s32 u|d, a, b, !c; }",
        "pred",
        [1, 0, 1, 1],  # not (a < b), or not c
        a=("s32", [1, 1, 3, 3]),
        b=("s32", [2, 2, 2, 2]),
        c=("pred", [0, 1, 0, 1]),
    ),
    *(
        case(
            f"selp.{of} d, a, b, c;",
            of,
            [first, second],
            a=(of, [first, first]),
            b=(of, [second, second]),
            c=("pred", [1, 0]),
        )
        for of, first, second in (
            ("f32", 1.0, 2.0),
            ("b16", 0x8001, 7),
            ("u16", 0x8001, 7),
            ("b32", 2**31 + 1, 7),
            ("b64", 2**63 + 1, 7),
        )
    ),
]

MOVES = [
    case("mov.b32 d, a;", "b32", [7], a=("b32", [7])),
    case("mov.u16 d, 0xABCD;", "u16", [0xABCD], a=("b32", [0])),
    case("mov.u32 d, %tid.x;", "u32", [0, 1], a=("b32", [0, 0])),
    case("mov.u64 d, a;", "u64", [2**63 + 1], a=("u64", [2**63 + 1])),
    case("mov.pred d, a;", "pred", [1, 0], a=("pred", [1, 0])),
    case("mov.f32 d, 0fBF800000;", "f32", [-1.0], a=("b32", [0])),
    case("mov.b32 d, {a, b};", "b32", [0x00020001], a=("b16", [1]), b=("b16", [2])),
    case("mov.b64 d, {a, b};", "b64", [0x2_00000001], a=("b32", [1]), b=("b32", [2])),
    case("mov.b32 {_, d}, a;", "b16", [0xABCD], a=("b32", [0xABCD1234])),
    case("mov.b64 {d, _}, a;", "b32", [0x89ABCDEF], a=("b64", [0x0123456789ABCDEF])),
    case("cvta.to.global.u64 d, a;", "u64", [2**40], a=("u64", [2**40])),
    case("{ cvta.shared.u64 d, a; cvta.to.shared.u64 d, d; }", "u64", [64], a=("u64", [64])),
]

CONVERSIONS = [
    convert("s64.s32", [(-1, -1), (5, 5)]),
    convert("u64.u32", [(-1, 2**32 - 1)]),
    convert("u16.u32", [(0x12345678, 0x5678)]),
    convert("u16.u8", [(0xFF, 255)]),
    convert("u32.u16", [(0xFFFF, 65535)]),
    convert("u32.u64", [(0xABCD_1234_5678_9ABC, 0x5678_9ABC)]),
    convert("s32.s8", [(0xFF, -1), (0x7F, 127)]),
    convert("sat.u8.s32", [(300, 255), (-5, 0), (17, 17)]),
    convert("sat.s16.u32", [(2**32 - 1, 32767), (7, 7)]),
    convert("rn.f32.s32", [(2**24 + 1, 2.0**24), (2**24 + 3, 2.0**24 + 4), (-7, -7.0)]),
    convert("rn.f32.u32", [(2**32 - 1, 2.0**32), (2**24 + 1, 2.0**24), (2**31, 2.0**31)]),
    convert("rz.f32.u32", [(2**24 + 3, 2.0**24 + 2)]),
    # 2^24 + 1 half-way in units of 2^40, and 1 more: rounding twice would go wrong.
    convert(
        "rn.f32.s64", [((2**24 + 1) * 2**30, 2.0**54), ((2**24 + 1) * 2**30 + 1, 2.0**54 + 2.0**31)]
    ),
    convert("rp.f32.u64", [(2**64 - 1, 2.0**64), (2**63, 2.0**63)]),
    convert("rn.f32.u16", [(65535, 65535.0)]),
    convert("rn.f64.s64", [(2**53 + 1, 2.0**53), (-3, -3.0)]),
    convert(
        "rni.s32.f32",
        [(2.5, 2), (3.5, 4), (-2.5, -2), (3e9, 2**31 - 1), (-inf, -(2**31)), (nan, 0)],
    ),
    convert("rzi.u32.f32", [(2.9, 2), (-1.0, 0), (1e10, 2**32 - 1), (4294967040.0, 4294967040)]),
    convert("rmi.s32.f32", [(-2.1, -3), (2.9, 2)]),
    convert("rpi.s32.f32", [(2.1, 3), (-2.9, -2)]),
    convert("rzi.s64.f32", [(-(2.0**40), -(2**40)), (1e30, 2**63 - 1), (nan, -(2**63))]),
    convert("rzi.s32.f64", [(1e300, 2**31 - 1), (nan, -(2**31))]),
    convert("rzi.u64.f64", [(2.0**63, 2**63), (1e300, 2**64 - 1)]),
    convert("rni.f32.f32", [(2.5, 2.0), (-0.3, -0.0), (nan, nan)]),
    convert("rmi.f32.f32", [(-2.5, -3.0), (2.5, 2.0)]),
    convert("sat.f32.f32", [(1.5, 1.0), (-0.5, 0.0), (nan, 0.0), (0.25, 0.25)]),
    convert("ftz.f32.f32", [(TINY, 0.0), (1.0, 1.0)]),
    convert("rn.f32.f64", [(1 + 2.0**-24, 1.0), (1 + 2.0**-24 + 2.0**-50, ONE_UP), (1e300, inf)]),
    convert("rz.f32.f64", [(1e300, HUGE), (ONE_DOWN, ONE_DOWN)]),
    convert("f64.f32", [(TINY, TINY), (nan, nan)]),
    convert(
        "f32.f16",
        [(0x0001, 2.0**-24), (0xFC00, -inf), (0x7C01, nan), (0x3555, float.fromhex("0x1.554p-2"))],
    ),
    convert(
        "rn.f16.f32",
        [
            (1 + 2.0**-11, 1.0),
            (1 + 3 * 2.0**-11, 1 + 2.0**-9),
            (65519.0, 65504.0),
            (65520.0, inf),
            (2.0**-25, 0.0),
            (-nan, nan),
        ],
    ),
    convert("rz.f16.f32", [(65535.0, 65504.0), (-1 - 2.0**-11, -1.0)]),
    convert(
        "rn.bf16.f32", [(1 + 2.0**-8, 1.0), (1 + 3 * 2.0**-8, 1 + 2.0**-6), (HUGE, inf), (nan, nan)]
    ),
    convert("rz.bf16.f32", [(HUGE, float.fromhex("0x1.fep127"))]),
    convert("rn.relu.bf16.f32", [(-3.0, 0.0), (3.0, 3.0), (nan, nan)]),
    convert("f32.bf16", [(0x3F80, 1.0), (0x0001, 2.0**-133), (0xFF80, -inf)]),
    case("cvt.rn.f16x2.f32 d, a, b;", "f16x2", [0x40003C00], a=("f32", [2.0]), b=("f32", [1.0])),
    case("cvt.rn.bf16x2.f32 d, a, b;", "bf16x2", [0x40003F80], a=("f32", [2.0]), b=("f32", [1.0])),
]
FLOAT_CASES = [*ARITHMETIC, *COMPARISONS, *MOVES, *CONVERSIONS]
