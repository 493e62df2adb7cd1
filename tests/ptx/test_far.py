"""Indices beyond 32 bits: the ends of tensors that no CPU could hold (see far.py)."""

from __future__ import annotations

import re

import pytest

from ptx.checks import check
from ptx.compiled import interpreter, ptx_text
from ptx.far import LAYOUTS, FarCode, far_cases
from ptx.interpreter import Interpreter
from ptx.parser import PtxError

# Instructions whose 64-bit results a mutation cuts to 32 bits.
PRODUCTS, WIDE_PRODUCTS, QUOTIENTS = r"mul\.lo\.s64", r"mul\.wide\.u32", r"div\.s64"
MUTATIONS = {
    "thread number in normalize": ("normalize", WIDE_PRODUCTS),
    "thread number in perturb": ("perturb", WIDE_PRODUCTS),
    "image number in normalize": ("normalize", QUOTIENTS),
    "planes in perturb": ("perturb", QUOTIENTS),
    "offsets in normalize": ("normalize", PRODUCTS),
    "offsets in perturb": ("perturb", PRODUCTS),
    "row offset in score": ("score", PRODUCTS),
    "offsets in first_order": ("first_order", PRODUCTS),
}


def run_far(code: Interpreter, kernel: str, suffix: str) -> None:
    for blocks, case in far_cases(suffix)[kernel]:
        check(FarCode(code, blocks), suffix, case)  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["f32", "f16"])
@pytest.mark.parametrize("kernel", LAYOUTS)
def test_the_ends_of_large_tensors(kernel: str, suffix: str) -> None:
    run_far(interpreter(), kernel, suffix)


@pytest.mark.parametrize("name", MUTATIONS)
def test_numbers_of_32_bits_are_caught(name: str) -> None:
    kernel, pattern = MUTATIONS[name]
    header, *kernels = re.split(r"(?=^\.visible \.entry )", ptx_text(), flags=re.MULTILINE)
    (text,) = (each for each in kernels if f"odin_{kernel}_f32(" in each.splitlines()[0])
    cut = r"\g<0> { .reg .b32 cut; cvt.u32.u64 cut, \1; cvt.s64.s32 \1, cut; }"
    text, count = re.subn(pattern + r"\s+(\S+), [^;]*;", cut, text)
    assert count > 0, f"{pattern} does not occur"
    with pytest.raises((PtxError, AssertionError)):
        run_far(Interpreter(header + text), kernel, "f32")
