"""Would the tests of the kernels notice? Faults put into the kernels all have to be caught.

A mutation of the CUDA source replaces a text that occurs exactly once; one of the PTX changes every
instruction of a kind in one kernel. Either fails if there is nothing to change. Caught means that
one of the cases that test_kernels.py runs gives a wrong result or breaks a rule. 32-bit offsets and
the like are in test_far.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import pytest

from ptx.checks import Case, check
from ptx.compiled import compile_sources, ptx_text, sources
from ptx.interpreter import Interpreter
from ptx.kernel_cases import CASES, SCORES_WITHOUT_PROBABILITY
from ptx.parser import PtxError


class Cuda(NamedTuple):
    """Replace `old` in a file; `caught` is a PtxError's kind, or "wrong" for a wrong result."""

    name: str
    file: str
    kernel: str
    old: str
    new: str
    caught: str
    suffix: str = "f32"


class Ptx(NamedTuple):
    """Replace a pattern everywhere in one kernel's PTX."""

    name: str
    kernel: str
    pattern: str
    new: str
    caught: str
    suffix: str = "f32"


CUDA = [
    Cuda(
        "missing barrier",
        "score.cuh",
        "score",
        "warps[thread / 32] = state;\n  __syncthreads();",
        "warps[thread / 32] = state;",
        "race",
    ),
    Cuda(
        "missing barrier before the next row",
        "score.cuh",
        "score",
        "  __syncthreads();  // the next row's",
        "  // the next row's",
        "race",
    ),
    Cuda(
        "missing barrier before the next image",
        "first_order.cuh",
        "first_order",
        "    __syncthreads();  // the next image's",
        "    // the next image's",
        "race",
    ),
    Cuda(
        "a warp's barrier instead of the block's",
        "first_order.cuh",
        "first_order",
        "warps[thread / 32] = sum;\n    __syncthreads();",
        "warps[thread / 32] = sum;\n    __syncwarp();",
        "race",
    ),
    Cuda(
        "wrong lane mask",
        "score.cuh",
        "score",
        "kAllLanes = 0xffffffffu",
        "kAllLanes = 0x7fffffffu",
        "mask",
    ),
    Cuda(
        "barrier that one warp misses",
        "first_order.cuh",
        "first_order",
        "    __syncthreads();  // the next image's",
        "    if (thread < 224) __syncthreads();  // the next image's",
        "barrier",
    ),
    Cuda(
        "wrong shuffle distance",
        "score.cuh",
        "score",
        "__device__ inline float sum_warp(float sum) {\n  ODIN_UNROLL for (int distance = 16;",
        "__device__ inline float sum_warp(float sum) {\n  ODIN_UNROLL for (int distance = 8;",
        "wrong",
    ),
    Cuda(
        "tie goes to the last",
        "score.cuh",
        "score",
        "a.index < b.index",
        "a.index > b.index",
        "wrong",
    ),
    Cuda(
        "dropped NaN check",
        "score.cuh",
        "score",
        "return !(x <= maximum) && !is_nan(maximum);",
        "return x > maximum;",
        "wrong",
    ),
    Cuda(
        "certainty of a row of -inf",
        "score.cuh",
        "score",
        "if (state.maximum == -kInfinity) state",
        "if (state.maximum == kInfinity) state",
        "wrong",
    ),
    Cuda(
        "wrong scale",
        "score.cuh",
        "score",
        "weights[j] = a.seed_scale * fmaf(",
        "weights[j] = fmaf(",
        "wrong",
    ),
    Cuda(
        "wrong stride over the rows",
        "score.cuh",
        "score",
        "row < a.rows; row += warps",
        "row < a.rows; row += kScoreWarps",
        "race",
    ),
    Cuda(
        "two lanes write a row",
        "score.cuh",
        "score",
        "if (lane == 0) write_row",
        "if (lane <= 1) write_row",
        "race",
    ),
    Cuda(
        "sign of zero",
        "perturb.cuh",
        "perturb",
        "gradient < 0.0f ? -1.0f",
        "gradient <= 0.0f ? -1.0f",
        "wrong",
    ),
    Cuda(
        "sign of minus zero",
        "perturb.cuh",
        "perturb",
        "return gradient < 0.0f ? -1.0f : 1.0f;",
        "return copysignf(1.0f, gradient);",
        "wrong",
    ),
    Cuda(
        "swapped minimum and maximum",
        "perturb.cuh",
        "perturb",
        "clamped(value, low[j], high[j])",
        "clamped(value, high[j], low[j])",
        "wrong",
    ),
    Cuda(
        "clamp that drops NaN",
        "perturb.cuh",
        "perturb",
        "  if (value < low) return low;\n  return value > high ? high : value;",
        "  return fminf(fmaxf(value, low), high);",
        "wrong",
    ),
    Cuda(
        "missing tail",
        "perturb.cuh",
        "perturb",
        "i < total - groups * N;",
        "i < head;",
        "wrong",
    ),
    Cuda(
        "misaligned vector load",
        "perturb.cuh",
        "perturb",
        "reinterpret_cast<uintptr_t>(a.gradient) % 16 == start &&",
        "",
        "alignment",
    ),
    Cuda(
        "misaligned vector store in half precision",
        "perturb.cuh",
        "perturb",
        "(a.magnitudes == 1 || total % N == 0)",
        "(a.magnitudes == 1 || total % 4 == 0)",
        "alignment",
        "bf16",
    ),
    Cuda(
        "off-by-one bound",
        "normalize.cuh",
        "normalize",
        "share.first; i < groups;",
        "share.first; i <= groups;",
        "bounds",
    ),
    Cuda(
        "planes too close",
        "normalize.cuh",
        "normalize",
        "store<N>(target + c * a.plane, values);",
        "store<N>(target + c * (a.plane - N), values);",
        "race",
    ),
    Cuda(
        "off-by-one in a row's tail",
        "elements.cuh",
        "score",
        "values[j] = size - first > j ?",
        "values[j] = size - first >= j ?",
        "bounds",
    ),
    Cuda(
        "missing absolute value",
        "first_order.cuh",
        "first_order",
        "fmaf(fabsf(values[j])",
        "fmaf((values[j])",
        "wrong",
    ),
    Cuda(
        "channel that never advances",
        "elements.cuh",
        "first_order",
        "return Place{0, place.channel + 1 < channels ? place.channel + 1 : 0};",
        "return Place{0, place.channel};",
        "wrong",
    ),
    Cuda(
        "scores without probability",
        "first_order.cuh",
        "first_order",
        "if (a.score != nullptr && a.probability != nullptr) {",
        "if (a.score != nullptr) {",
        "bounds",
    ),
]
PTX = [
    Ptx("no barriers", "first_order", r"bar\.sync[^;]*;", "", "race"),
    Ptx("half a butterfly", "score", r"shfl\.sync\.bfly", "shfl.sync.down", "wrong"),
    Ptx(
        "loads off by four bytes",
        "score",
        r"(ld\.global\.nc\.v4\S+\s+\{.*\}, \[\S+)\]",
        r"\1+4]",
        "alignment",
    ),
    Ptx("halves rounded down", "normalize", r"cvt\.rn\.f16", "cvt.rz.f16", "wrong", "f16"),
    Ptx("products rounded down", "normalize", r"fma\.rn\.f32", "fma.rz.f32", "wrong"),
    Ptx("moves rounded down", "perturb", r"fma\.rn\.f32", "fma.rz.f32", "wrong"),
    Ptx("wrong byte of a pixel", "normalize", r"(shr\.u32\s+.*), 8;", r"\1, 16;", "wrong"),
    Ptx("zero counts as negative", "perturb", r"setp\.lt\.f32", "setp.le.f32", "wrong"),
    Ptx("log2(e) off by 9e-5", "score", "0f3FB8AA3B", "0f3FB8A63B", "wrong"),
]


def changed(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times"
    return text.replace(old, new)


def cases_of(kernel: str) -> list[Case]:
    alone = [SCORES_WITHOUT_PROBABILITY] if kernel == "first_order" else []
    return [*CASES[kernel].values(), *alone]


def fault(code: Interpreter, suffix: str, cases: Iterable[Case]) -> str:
    """The kind of the first fault that a case shows."""
    for case in cases:
        try:
            check(code, suffix, case)
        except PtxError as error:
            return error.kind
        except AssertionError:
            return "wrong"
    return "not noticed"


@pytest.mark.parametrize("mutation", CUDA, ids=lambda m: f"{m.kernel}: {m.name}")
def test_mutation_of_the_source_is_caught(mutation: Cuda) -> None:
    texts = sources()
    texts[mutation.file] = changed(texts[mutation.file], mutation.old, mutation.new)
    code = compile_sources(texts, mutation.suffix)
    assert fault(code, mutation.suffix, cases_of(mutation.kernel)) == mutation.caught


@pytest.mark.parametrize("mutation", PTX, ids=lambda m: f"{m.kernel}: {m.name}")
def test_mutation_of_the_ptx_is_caught(mutation: Ptx) -> None:
    header, *kernels = re.split(r"(?=^\.visible \.entry )", ptx_text(), flags=re.MULTILINE)
    name = f"odin_{mutation.kernel}_{mutation.suffix}("
    (text,) = (each for each in kernels if name in each.splitlines()[0])
    text, count = re.subn(mutation.pattern, mutation.new, text)
    assert count > 0, f"{mutation.pattern} does not occur"
    code = Interpreter(header + text)
    assert fault(code, mutation.suffix, cases_of(mutation.kernel)) == mutation.caught
