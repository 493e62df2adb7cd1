"""From the operands of an instruction to functions that read and write the lanes' registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ptx.formats import RAW, TYPES, Type
from ptx.memory import POISON
from ptx.parser import (
    Immediate,
    Instruction,
    Operand,
    PtxError,
    Register,
    Symbol,
    size_of,
)

if TYPE_CHECKING:
    from ptx.machine import Active

Array = NDArray[np.generic]
Read = Callable[["Active"], Array]
Write = Callable[["Active", Array], None]
Step = Callable[["Active"], None]


class Registers(dict[str, Array]):
    """Register name -> bits of all lanes; reading one that was never written is an error."""

    def __missing__(self, name: str) -> Array:
        raise PtxError("uninitialised", 0, f"reads register {name}, which nothing wrote")


@dataclass(frozen=True)
class Scope:
    """What the names in a kernel stand for."""

    registers: dict[str, str]  # name -> type
    addresses: dict[str, int]  # of variables and parameters, in their own state space
    special: Callable[[str], Read | None]
    approximation: int  # ulps added to the results of .approx instructions


@dataclass
class Form:
    """One instruction being compiled: its modifiers are taken one by one, none may be left."""

    instruction: Instruction
    scope: Scope
    modifiers: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.modifiers = list(self.instruction.modifiers)

    @property
    def line(self) -> int:
        return self.instruction.line

    def refuse(self, why: str) -> PtxError:
        return PtxError("unsupported", self.line, f"{why} in `{self.instruction.text}`")

    def type(self) -> Type:
        """Take the last modifier, the type."""
        if not self.modifiers or self.modifiers[-1] not in TYPES:
            raise self.refuse("no known type")
        return TYPES[self.modifiers.pop()]

    def flag(self, name: str) -> bool:
        """Take a modifier that may be there."""
        found = name in self.modifiers
        if found:
            self.modifiers.remove(name)
        return found

    def choice(self, *names: str, default: str | None = None) -> str:
        """Take one of several modifiers; without a default one must be there."""
        found = [name for name in self.modifiers if name in names]
        if len(found) > 1 or (not found and default is None):
            raise self.refuse(f"not exactly one of {', '.join(names)}")
        if not found:
            return str(default)
        self.modifiers.remove(found[0])
        return found[0]

    def done(self, operands: int | None = None) -> None:
        """Refuse modifiers that nobody took and a wrong number of operands."""
        if self.modifiers:
            raise self.refuse(f"modifier .{self.modifiers[0]}")
        if operands is not None and operands != len(self.instruction.operands):
            raise self.refuse(f"{len(self.instruction.operands)} operands instead of {operands}")

    def operand(self, number: int) -> Operand:
        if number >= len(self.instruction.operands):
            raise self.refuse("too few operands")
        return self.instruction.operands[number]

    def read(self, number: int, of: Type) -> Read:
        """A function that returns operand `number` of the active lanes as numpy's `of`."""
        return self.reader(self.operand(number), of)

    def write(self, number: int, of: Type) -> Write:
        return self.writer(self.operand(number), of)

    def reader(self, operand: Operand, of: Type) -> Read:
        if isinstance(operand, Register):
            return self._register_reader(operand, of)
        if isinstance(operand, Immediate):
            bits = self._immediate(operand, of)
        elif isinstance(operand, Symbol) and operand.name in self.scope.addresses:
            bits = np.array(self.scope.addresses[operand.name]).astype(of.raw)
        else:
            raise self.refuse(f"operand {operand}")
        value = (
            bits.reshape(1).view(of.half.dtype)[None] if of.kind == "x2" else bits.view(of.dtype)
        )
        return lambda active: value

    def _immediate(self, operand: Immediate, of: Type) -> Array:
        if operand.float_bits and of.kind == "f" and of.bits != operand.float_bits:
            raise self.refuse("a floating-point constant of another width")
        if of.kind == "p":
            return np.array(operand.value != 0)
        return np.array(operand.value & ((1 << of.bits) - 1), of.raw)

    def _register_reader(self, operand: Register, of: Type) -> Read:
        name, negated = operand.name, operand.negated
        if name not in self.scope.registers:
            special = self.scope.special(name)
            if special is None:
                raise self.refuse(f"register {name}")
            return lambda active: special(active).astype(of.raw).view(of.dtype)
        declared = self.scope.registers[name]
        if (declared == "pred") != (of.kind == "p"):
            raise self.refuse(f"register {name} of type {declared} read as {of.name}")
        if of.kind == "p":
            if negated:
                return lambda active: ~active.registers[name][active.lanes]
            return lambda active: active.registers[name][active.lanes]
        bits = 8 * size_of(declared)
        if bits < of.bits:
            raise self.refuse(f"register {name} of {bits} bits read as {of.name}")
        if of.kind == "x2":
            half = of.half.dtype
            return lambda active: active.registers[name][active.lanes].view(half).reshape(-1, 2)
        raw, dtype = of.raw, of.dtype
        if bits == of.bits:
            return lambda active: active.registers[name][active.lanes].view(dtype)
        return lambda active: active.registers[name][active.lanes].astype(raw).view(dtype)

    def writer(self, operand: Operand, of: Type) -> Write:
        """A function that writes values of type `of`; a wider register is extended by its sign."""
        if not isinstance(operand, Register) or operand.negated:
            raise self.refuse("a destination that is not a register")
        name = operand.name
        if name == "_":
            return lambda active, value: None
        declared = self.scope.registers.get(name)
        if declared is None or (declared == "pred") != (of.kind == "p"):
            raise self.refuse(f"destination {name} of type {declared} for {of.name}")
        register = Type(declared, "b", 1 if declared == "pred" else 8 * size_of(declared))
        if register.bits < of.bits:
            raise self.refuse(f"destination {name} of {register.bits} bits for {of.name}")
        prepare = _preparation(of, register)

        def write(active: Active, value: Array) -> None:
            bits = active.registers.get(name)
            if bits is None:
                poison = POISON & ((1 << register.bits) - 1)
                bits = np.full(active.all_lanes, poison, register.raw)
                active.registers[name] = bits
            bits[active.lanes] = prepare(value)

        return write


def _preparation(of: Type, register: Type) -> Callable[[Array], Array]:
    """From values of a type to the bits of a register at least as wide."""
    if of.kind == "p":
        return np.asarray
    if of.kind == "x2":
        return lambda value: np.ascontiguousarray(value).view(np.uint32)[..., 0]
    if of.bits == register.bits:
        return lambda value: np.asarray(value).view(register.raw)
    if of.kind == "s":
        signed = np.dtype(f"int{register.bits}")
        return lambda value: np.asarray(value).astype(signed).view(register.raw)
    return lambda value: np.asarray(value).view(RAW[of.bits]).astype(register.raw)


def elementwise(
    form: Form, out: Type, sources: list[Type], compute: Callable[..., Array], first: int = 1
) -> Step:
    """d = compute(a, b, ...): operand 0 is written, the sources are read from `first` on."""
    write = form.write(0, out)
    reads = [form.read(first + i, source) for i, source in enumerate(sources)]
    form.done(first + len(sources))
    if len(reads) == 1:
        (one,) = reads
        return lambda active: write(active, compute(one(active)))
    if len(reads) == 2:
        one, two = reads
        return lambda active: write(active, compute(one(active), two(active)))
    return lambda active: write(active, compute(*[read(active) for read in reads]))
