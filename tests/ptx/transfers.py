"""Loads and stores (PTX ISA manual, 9.7.9: ld, st). Cache hints change nothing that is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ptx.formats import TYPES, Type
from ptx.memory import LOCAL_WINDOW, SHARED_WINDOW, WINDOW_SIZE, BlockMemory
from ptx.operands import Form, Read, Step, Write
from ptx.parser import Address, Immediate, Operand, Register, Symbol, Vector, size_of

if TYPE_CHECKING:
    from ptx.machine import Active

Array = NDArray[np.generic]
HINTS = (
    *("nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "volatile", "weak"),
    *("L1::no_allocate", "L1::evict_last", "L1::evict_first", "L1::evict_normal"),
    *("L2::64B", "L2::128B", "L2::256B"),
)
SPACES = ("global", "shared", "shared::cta", "local", "const", "param")


def _access(form: Form) -> tuple[Type, int, str]:
    """Take what ld and st share: type, number of elements, state space ("" is generic)."""
    of = form.type()
    of = TYPES[f"b{of.bits}"] if of.kind in "fx2" else of
    count = int(form.choice("v2", "v4", "v8", default="v1")[1:])
    space = form.choice(*SPACES, default="").removesuffix("::cta")
    for hint in HINTS:
        form.flag(hint)
    return of, count, space


def _address(form: Form, number: int) -> Read:
    """The address of every active lane, as uint64."""
    operand = form.operand(number)
    if not isinstance(operand, Address):
        raise form.refuse("no address")
    base, offset = operand.base, np.uint64(operand.offset % (1 << 64))
    if isinstance(base, Register):
        declared = form.scope.registers.get(base.name, "u64")
        width = TYPES[f"u{8 * size_of(declared)}"]
        read = form.reader(base, width)
        return lambda active: read(active).astype(np.uint64) + offset
    if isinstance(base, Immediate):
        fixed = np.uint64(base.value) + offset
    elif isinstance(base, Symbol) and base.name in form.scope.addresses:
        fixed = np.uint64(form.scope.addresses[base.name]) + offset
    else:
        raise form.refuse(f"the address {base}")
    return lambda active: np.full(active.count, fixed)


def _parts(form: Form, number: int, count: int) -> tuple[Operand, ...]:
    operand = form.operand(number)
    parts = operand.parts if isinstance(operand, Vector) else (operand,)
    if len(parts) != count:
        raise form.refuse(f"{len(parts)} registers for {count} elements")
    return parts


def _ld(form: Form) -> Step:
    of, count, space = _access(form)
    writes = [form.writer(part, of) for part in _parts(form, 0, count)]
    form.done(2)
    if space == "param":
        return _load_parameter(form, of, writes)
    address, line, width = _address(form, 1), form.line, of.bits // 8

    def step(active: Active) -> None:
        values = np.empty((active.count, count), of.raw)
        for memory, lanes, where in _spaces(active, address(active), space):
            values[lanes] = memory.load(where, width, count, _who(active, memory, lanes), line)
        for column, write in enumerate(writes):
            write(active, np.ascontiguousarray(values[:, column]).view(of.dtype))

    return step


def _load_parameter(form: Form, of: Type, writes: list[Write]) -> Step:
    operand = form.operand(1)
    if not isinstance(operand, Address) or not isinstance(operand.base, Symbol):
        raise form.refuse("a parameter at a computed address")
    if operand.base.name not in form.scope.addresses:
        raise form.refuse(f"parameter {operand.base.name}")
    start = form.scope.addresses[operand.base.name] + operand.offset
    width = of.bits // 8

    def step(active: Active) -> None:
        for number, write in enumerate(writes):
            place = start + number * width
            raw = active.run.parameters[place : place + width]
            write(active, np.frombuffer(raw, of.dtype, 1)[0])

    return step


def _st(form: Form) -> Step:
    of, count, space = _access(form)
    if space in ("param", "const"):
        raise form.refuse("a store to constant memory")
    reads = [form.reader(part, of) for part in _parts(form, 1, count)]
    form.done(2)
    address, line = _address(form, 0), form.line

    def step(active: Active) -> None:
        values = np.empty((active.count, count), of.raw)
        for column, read in enumerate(reads):
            values[:, column] = read(active).view(of.raw)
        for memory, lanes, where in _spaces(active, address(active), space):
            memory.store(where, values[lanes], _who(active, memory, lanes), line)

    return step


def _spaces(active: Active, address: Array, space: str) -> list[tuple]:
    """(memory, lanes, addresses inside it): one entry, but for generic addresses that differ."""
    run = active.run
    if space in ("global", "const"):
        return [(run.memory, slice(None), address)]
    if space:
        return [(run.shared if space == "shared" else run.local, slice(None), address)]
    parts = []
    rest = np.ones(address.size, bool)
    for base, memory in ((SHARED_WINDOW, run.shared), (LOCAL_WINDOW, run.local)):
        inside = (address >= np.uint64(base)) & (address < np.uint64(base + WINDOW_SIZE))
        if inside.any():
            parts.append((memory, inside, address[inside] - np.uint64(base)))
            rest &= ~inside
    if rest.all():
        return [(run.memory, slice(None), address)]
    return parts + ([(run.memory, rest, address[rest])] if rest.any() else [])


def _who(active: Active, memory: object, lanes: Array | slice) -> object:
    local = isinstance(memory, BlockMemory) and memory.space == "local"
    who = active.who_local if local else active.who
    return who if isinstance(lanes, slice) else who.part(lanes)


TRANSFERS: dict[str, Callable[[Form], Step]] = {"ld": _ld, "st": _st}
