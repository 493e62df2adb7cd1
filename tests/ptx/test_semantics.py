"""Every instruction that the interpreter knows, on cases worked out by hand from the manual."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ptx import formats
from ptx.cases_floats import FLOAT_CASES
from ptx.cases_integers import INTEGER_CASES
from ptx.compiled import interpreter
from ptx.floats import FLOATS, ODD
from ptx.formats import ROUNDINGS, TYPES, Type
from ptx.harness import Case, evaluate
from ptx.integers import INTEGERS
from ptx.moves import MOVES

CASES = [*INTEGER_CASES, *FLOAT_CASES]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.instruction.split(" d")[0])
def test_instruction(case: Case) -> None:
    got, expected = evaluate(case)
    rows = [f"{int(g):#x}, not {int(e):#x}" for g, e in zip(got, expected, strict=True) if g != e]
    assert not rows, f"{case.instruction} of {case.inputs} gives {rows}"


@pytest.mark.parametrize(("family", "table"), [("b", INTEGERS), ("f", FLOATS), ("", MOVES)])
def test_every_opcode_has_a_case(family: str, table: dict[str, Any]) -> None:
    covered = set()
    for form in covered_forms():
        opcode, *modifiers = form.split(".")
        kind = TYPES[modifiers[-1]].kind if modifiers[-1] in TYPES else ""
        is_float = kind in ("f", "x2")
        if family == "" or (family == "f") == is_float:
            covered.add(opcode)
    assert set(table) <= covered, set(table) - covered


@pytest.mark.parametrize("target", [75, 90])
def test_every_form_in_the_kernels_has_a_case(target: int) -> None:
    """Opcode, modifiers and types together: div.s64 is not div.u64."""
    forms = {
        ".".join((each.opcode, *each.modifiers))
        for kernel in interpreter(target).kernels.values()
        for each in kernel.instructions
        if each.opcode in {*INTEGERS, *FLOATS, *MOVES}
    }
    assert len(forms) > 50
    assert forms <= covered_forms(), sorted(forms - covered_forms())


def covered_forms() -> set[str]:
    return {
        form for case in CASES for form in re.findall(r"\b[a-z]\w*(?:\.\w+)+", case.instruction)
    }


def rounded(exact: Fraction, of: Type, rounding: str) -> int:
    """The bits of an exact number in a type: search all bit patterns by bisection."""
    infinity = {"f32": 0x7F800000, "f16": 0x7C00, "bf16": 0x7F80}[of.name]

    def value(bits: int) -> Fraction:
        return Fraction(float(np.array(bits, of.raw).view(of.dtype)))

    size, negative = abs(exact), exact < 0
    low, high = 0, infinity - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if value(middle) <= size else (low, middle - 1)
    below = value(low)
    last_step = value(infinity - 1) - value(infinity - 2)
    above = value(low + 1) if low + 1 < infinity else below + last_step
    away = {"rz": False, "rm": negative, "rp": not negative}.get(rounding)
    if away is None:
        middle = (below + above) / 2
        away = size > middle or (size == middle and low % 2 == 1)
    return (low + (away and size != below)) | (negative << (of.bits - 1))


ODD_PATTERNS = st.integers(0, 2**32 - 1)
EXACT = {
    "add": lambda a, b, c: a + b,
    "mul": lambda a, b, c: a * b,
    "fma": lambda a, b, c: a * b + c,
    "div": lambda a, b, c: a / b if b else None,
}


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(EXACT)),
    of=st.sampled_from(["f32", "f16", "bf16"]),
    rounding=st.sampled_from(ROUNDINGS),
    patterns=st.tuples(ODD_PATTERNS, ODD_PATTERNS, ODD_PATTERNS),
    cancels=st.booleans(),
)
def test_rounding_is_exact(
    name: str, of: str, rounding: str, patterns: tuple[int, ...], cancels: bool
) -> None:
    """add, mul, fma and div against fractions, on any bits; cancels: c is near -a b."""
    target = TYPES[of]
    bits = np.array([p & ((1 << target.bits) - 1) for p in patterns], target.raw)
    a, b, c = (np.array([v], np.float64) for v in bits.view(target.dtype).astype(np.float64))
    with np.errstate(all="ignore"):
        if cancels:
            c = formats.round_to(-a * b, target).astype(np.float64)
        if not np.isfinite([a, b, c]).all():
            return
        exact = EXACT[name](*(Fraction(float(v[0])) for v in (a, b, c)))
        if exact is None or exact == 0:  # a zero's sign is numpy's
            return
        operands = (a, b, c)[: 3 if name == "fma" else 2]
        got = formats.round_to(ODD[name](*operands), target, rounding)
    assert int(got.view(target.raw)[0]) == rounded(exact, target, rounding)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 2**31 - 2**23 - 1), st.sampled_from(ROUNDINGS))
def test_roots_are_rounded_once(pattern: int, rounding: str) -> None:
    value = np.array([pattern], np.uint32).view(np.float32).astype(np.float64)
    got = formats.round_to(formats.sqrt_odd(value), TYPES["f32"], rounding)
    below, above = (np.nextafter(got, np.float32(s)) for s in (-np.inf, np.inf))
    exact = Fraction(float(value[0]))

    def square(x: NDArray[Any]) -> Fraction:
        return Fraction(float(x[0])) ** 2

    middle_down = (Fraction(float(below[0])) + Fraction(float(got[0]))) ** 2 / 4
    middle_up = (Fraction(float(above[0])) + Fraction(float(got[0]))) ** 2 / 4
    if rounding == "rn":
        assert middle_down <= exact <= middle_up
    elif rounding == "rp":
        assert square(below) < exact <= square(got)
    else:
        assert square(got) <= exact < square(above)


@pytest.mark.parametrize("ulps", [-2, 2])
def test_approximations_can_be_made_worse(ulps: int) -> None:
    """The option that shows whether a kernel relies on exact results of .approx instructions."""
    case = Case("ex2.approx.f32 d, a;", "f32", [0.0, 8.0, 1.0], {"a": ("f32", [-1e9, 3.0, 0.0])})
    got, expected = evaluate(case, approximation=ulps)
    expected[1] = int(expected[1]) + ulps
    np.testing.assert_array_equal(got, expected)
