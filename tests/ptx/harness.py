"""Wraps single instructions, or the body of a kernel, into PTX and runs them on given values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptx.formats import NAN_BITS, TYPES, Type
from ptx.interpreter import Interpreter, Memory

HEADER = ".version 8.0\n.target sm_90\n.address_size 64\n"
Values = list[Any]


@dataclass(frozen=True)
class Case:
    """An instruction on registers a, b, c ... (each with its type) that sets d.

    Values of float types are floats, or integers for their bits; those of packed pairs are bits.
    """

    instruction: str
    out: str
    expected: Values
    inputs: dict[str, tuple[str, Values]]


def bits(values: Values, of: Type) -> NDArray[Any]:
    """Write values down as the bits of a type; NaN is PTX's canonical one."""
    if of.kind == "p":
        return np.array(values, np.uint8)
    raw = [_bits_of(value, of) & ((1 << of.bits) - 1) for value in values]
    return np.array(raw, np.uint64).astype(of.raw)


def _bits_of(value: Any, of: Type) -> int:
    if not isinstance(value, float):
        return int(value)
    if value != value:
        return NAN_BITS[of.name]
    return int(np.array(value).astype(of.dtype).view(of.raw))


def storage(of: Type) -> str:
    """The register class of a type."""
    return "pred" if of.kind == "p" else f"b{max(of.bits, 16)}"


def source(case: Case) -> str:
    """PTX that applies the instruction in thread i to element i of every input."""
    names = list(case.inputs)
    types = {**{n: TYPES[case.inputs[n][0]] for n in names}, "d": TYPES[case.out]}
    parameters = ",\n".join(f".param .u64 p_{name}" for name in [*names, "d"])
    lines = [f".reg .{storage(of)} {name};" for name, of in types.items()]
    lines += [".reg .b64 base, index, place;", ".reg .b32 t;", ".reg .b16 byte;"]
    lines += ["mov.u32 t, %tid.x;", "cvt.u64.u32 index, t;"]
    for name in names:
        lines += _place(name, types[name])
        if types[name].kind == "p":
            lines += ["ld.global.u8 byte, [place];", f"setp.ne.b16 {name}, byte, 0;"]
        else:
            lines.append(f"ld.global.b{types[name].bits} {name}, [place];")
    lines.append(case.instruction)
    lines += _place("d", types["d"])
    if types["d"].kind == "p":
        lines += ["selp.b16 byte, 1, 0, d;", "st.global.u8 [place], byte;"]
    else:
        lines.append(f"st.global.b{types['d'].bits} [place], d;")
    body = "\n".join(lines)
    return f"{HEADER}.visible .entry k({parameters})\n{{\n{body}\nret;\n}}\n"


def _place(name: str, of: Type) -> list[str]:
    size = max(1, of.bits // 8)
    return [
        f"ld.param.u64 base, [p_{name}];",
        f"mad.lo.u64 place, index, {size}, base;",
    ]


def evaluate(case: Case, **options: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the bits that the instruction gave and those expected."""
    code, memory = Interpreter(source(case), **options), Memory()
    pointers = [memory.add(bits(values, TYPES[of])) for of, values in case.inputs.values()]
    expected = bits(case.expected, TYPES[case.out])
    out = np.zeros_like(expected)
    code.launch("k", 1, expected.size, [*pointers, memory.add(out)], memory)
    return out, expected


def run_body(
    body: str, *, threads: int = 32, blocks: int = 1, words: int = 0, **options: Any
) -> NDArray[Any]:
    """Run a kernel body in which `out` (b64) points to a uint32 for every thread.

    Registers at hand: t (thread), place (b64, this thread's word of the output), r0 to r9, s0 to
    s9 (b32), p0 to p9 (predicates), w0 to w9 (b64).
    """
    total = max(words, threads * blocks)
    text = f"""{HEADER}.visible .entry k(.param .u64 p_out)
{{
.reg .b32 t, size, block, r<10>, s<10>;
.reg .b64 out, place, w<10>;
.reg .pred p<10>;
ld.param.u64 out, [p_out];
mov.u32 t, %tid.x;
mov.u32 size, %ntid.x;
mov.u32 block, %ctaid.x;
mad.lo.u32 size, block, size, t;
mad.wide.u32 place, size, 4, out;
{body}
}}
"""
    code, memory = Interpreter(text, **options), Memory()
    result = np.zeros(total, np.uint32)
    code.launch("k", blocks, threads, [memory.add(result)], memory, most_steps=1000)
    return result
