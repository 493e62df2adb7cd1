"""Runs the PTX that nvcc emits on numpy: one array element a CUDA thread.

code = Interpreter(ptx_text)
memory = Memory()
pointer = memory.add(array)              # or memory.map(address, size): real process memory
code.launch("kernel", 4, 256, [pointer, np.int64(array.size)], memory)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptx import parser
from ptx.floats import FLOATS
from ptx.formats import TYPES
from ptx.integers import INTEGERS
from ptx.machine import Active, Block, Machine, Run
from ptx.memory import BlockMemory, Memory, Races, Region
from ptx.moves import MOVES
from ptx.operands import Form, Read, Scope, Step
from ptx.parser import Instruction, Kernel, PtxError, Symbol, Variable
from ptx.transfers import TRANSFERS
from ptx.warps import MEETINGS, WARPS

MODULE_ADDRESS = 0x0F_0000_0000  # of .global and .const variables
LANES_AT_ONCE = 1 << 15
MOST_STEPS = 200_000
__all__ = ["Interpreter", "Memory", "PtxError"]

Size = int | tuple[int, ...]
Argument = np.generic | int | bytes | None


@dataclass(frozen=True)
class Code:
    """A compiled kernel: what it needs and its basic blocks."""

    kernel: Kernel
    parameters: tuple[Variable, ...]
    blocks: list[Block]
    parameter_bytes: int
    shared_bytes: int
    local_bytes: int


class Interpreter:
    """The kernels of a PTX module, ready to be launched.

    `approximation`: ulps to add to the results of `.approx` instructions; `lockstep`: take the
    lanes of a warp as ordered without bar.warp.sync; `races`: look in global memory for places that
    two threads write, or one reads after another wrote them.
    `kernels` holds them by name, each with its `parameters`. PtxError names the line of what is
    not PTX; an instruction that is not known is refused when its kernel is first launched.
    """

    def __init__(
        self, text: str, *, approximation: int = 0, lockstep: bool = False, races: bool = True
    ) -> None:
        self.approximation, self.lockstep, self.races = approximation, lockstep, races
        module = parser.parse(text)
        self.variables, self.globals = module.variables, self._place_globals(module.variables)
        self.kernels = module.kernels
        self._compiled: dict[str, Code] = {}

    def launch(
        self,
        name: str,
        grid: Size,
        block: Size,
        arguments: Sequence[Argument],
        memory: Memory,
        *,
        shared_bytes: int = 0,
        most_steps: int = MOST_STEPS,
        first: int = 0,
    ) -> None:
        """Run a kernel to its end; PtxError says which rule it broke, and at which PTX line.

        An argument is a numpy scalar of the parameter's size, an int or None (a null pointer).
        Every group of blocks that runs beside each other may take `most_steps` basic blocks.
        Blocks before `first` are left out.
        """
        code = self.code(name)
        grid3, block3 = _three(grid), _three(block)
        self._check_shape(code, grid3, block3)
        parameters = encode(code, arguments)
        memory.begin(check_races=self.races)
        regions = memory.regions
        memory.set_regions([*regions, *self.globals])
        blocks, size = int(np.prod(grid3)), int(np.prod(block3))
        at_once = max(1, LANES_AT_ONCE // size)
        try:
            with np.errstate(all="ignore"):
                for begin in range(first, blocks, at_once):
                    run = Run(
                        grid=grid3,
                        block=block3,
                        first=begin,
                        blocks=min(at_once, blocks - begin),
                        memory=memory,
                        parameters=parameters,
                    )
                    self._give_memory(run, code, shared_bytes)
                    Machine(code.blocks, run, most_steps).go()
        finally:
            memory.set_regions(regions)

    def code(self, name: str) -> Code:
        """Compile a kernel, once; PtxError for whatever in it is not known."""
        if name not in self.kernels:
            known = ", ".join(self.kernels)
            raise PtxError("arguments", 0, f"there is no kernel {name}, only {known}")
        if name not in self._compiled:
            self._compiled[name] = self._compile(self.kernels[name])
        return self._compiled[name]

    def _give_memory(self, run: Run, code: Code, extra: int) -> None:
        size = code.shared_bytes + extra
        padded = run.blocks * ((size + 15) // 16 * 16)
        races = Races(padded, lockstep=self.lockstep, reads=True) if size else None
        run.shared = BlockMemory("shared", run.blocks, size, races)
        run.local = BlockMemory("local", run.lanes, code.local_bytes, None)

    def _check_shape(self, code: Code, grid: tuple[int, ...], block: tuple[int, ...]) -> None:
        most = int(np.prod(code.kernel.tuning.get("maxntid", (1024,))))
        if min(grid) < 1 or min(block) < 1 or np.prod(block) > most:
            message = f"grid {grid}, block {block}: sizes from 1 on, at most {most} threads a block"
            raise PtxError("arguments", 0, message)

    def _place_globals(self, variables: dict[str, Variable]) -> list[Region]:
        regions, place = [], MODULE_ADDRESS
        for variable in variables.values():
            if variable.space not in ("global", "const"):
                continue
            place = -(-place // 256) * 256
            data = np.frombuffer(variable.initial or bytes(variable.size), np.uint8).copy()
            regions.append(Region(place, data, variable.name, variable.space == "global"))
            place += variable.size + 256
        return regions

    def _compile(self, kernel: Kernel) -> Code:
        addresses = {region.name: region.base for region in self.globals}
        sizes = {}
        module = [v for v in self.variables.values() if v.space == "shared"]
        for space, variables in (
            ("param", kernel.parameters),
            ("shared", sorted_by_size([*module, *_of(kernel, "shared").values()])),
            ("local", _of(kernel, "local").values()),
        ):
            place = 0
            for variable in variables:
                place = -(-place // variable.align) * variable.align
                addresses[variable.name] = place
                place += variable.size
            sizes[space] = place
        for unique, variable in kernel.variables.items():
            addresses[unique] = addresses[variable.name]
        scope = Scope(kernel.registers, addresses, _special, self.approximation)
        blocks = basic_blocks(kernel, scope)
        parameters = tuple(kernel.parameters)
        return Code(kernel, parameters, blocks, sizes["param"], sizes["shared"], sizes["local"])


def _of(kernel: Kernel, space: str) -> dict[str, Variable]:
    return {name: v for name, v in kernel.variables.items() if v.space == space}


def sorted_by_size(variables: list[Variable]) -> list[Variable]:
    """Dynamic shared memory (size 0) comes last."""
    return sorted(variables, key=lambda variable: variable.size == 0)


def _special(name: str) -> Read | None:
    if name == "WARP_SZ":
        return lambda active: np.full(active.count, 32, np.uint32)
    probe = Run(grid=(1, 1, 1), block=(1, 1, 1), first=0, blocks=1, memory=Memory(), parameters=b"")
    if probe.special(name) is None:
        return None

    def read(active: Active) -> NDArray[np.generic]:
        values = active.run.special(name)
        assert values is not None
        return values[active.lanes]

    return read


def _three(size: Size) -> tuple[int, int, int]:
    sizes = (size,) if isinstance(size, int) else tuple(size)
    padded = (*sizes, 1, 1, 1)[:3]
    return padded[0], padded[1], padded[2]


def encode(code: Code, arguments: Sequence[Argument]) -> bytes:
    """Lay the arguments out as the parameters want them; PtxError for a wrong size or kind."""
    if len(arguments) != len(code.parameters):
        message = f"{len(arguments)} arguments for {len(code.parameters)} parameters"
        raise PtxError("arguments", 0, f"{code.kernel.name}: {message}")
    data = bytearray()
    for number, (parameter, value) in enumerate(zip(code.parameters, arguments, strict=True)):
        data += bytes(-len(data) % parameter.align)
        data += encoded(f"{code.kernel.name}: argument {number}", parameter, value)
    return bytes(data)


def encoded(what: str, parameter: Variable, value: Argument) -> bytes:
    is_float = parameter.type.startswith("f")
    if isinstance(value, bytes):
        raw = value
    elif isinstance(value, np.generic):
        if np.issubdtype(value.dtype, np.floating) != is_float:
            raise PtxError("arguments", 0, f"{what}: {value.dtype} for .{parameter.type}")
        raw = value.tobytes()
    elif is_float:
        raise PtxError("arguments", 0, f"{what}: a numpy float for .{parameter.type}, please")
    else:
        raw = (int(value or 0) % (1 << 8 * parameter.size)).to_bytes(parameter.size, "little")
    if len(raw) != parameter.size:
        raise PtxError("arguments", 0, f"{what}: {len(raw)} bytes for {parameter.size}")
    return raw


# Compilation


def basic_blocks(kernel: Kernel, scope: Scope) -> list[Block]:
    """Cut a kernel at labels, branches and meetings, and compile its instructions."""
    starts = set(kernel.labels.values())
    blocks, number_of, block = [], {}, Block(0)  # number_of: instruction -> basic block

    def finish() -> None:
        nonlocal block
        blocks.append(block)
        block = Block(0)

    branches: list[tuple[Block, Instruction]] = []
    for index, instruction in enumerate(kernel.instructions):
        meets = instruction.opcode in MEETINGS
        if (index in starts or meets) and block.lines:
            finish()
        if not block.lines:
            number_of[index] = len(blocks)
            block.line = instruction.line
        block.lines.append(instruction.line)
        if add_instruction(block, instruction, scope):
            if instruction.opcode == "bra":
                branches.append((block, instruction))
            finish()
    blocks.append(Block(0, leaves=True) if not block.lines else block)
    if block.lines:
        blocks.append(Block(0, leaves=True))
    number_of[len(kernel.instructions)] = len(blocks) - 1
    for source, instruction in branches:
        label = instruction.operands[0]
        if not isinstance(label, Symbol) or label.name not in kernel.labels:
            raise PtxError("parse", instruction.line, f"no such label in `{instruction.text}`")
        source.target = number_of[kernel.labels[label.name]]
    return blocks


def add_instruction(block: Block, instruction: Instruction, scope: Scope) -> bool:
    """Add one instruction to a basic block; True if that block ends with it."""
    form = Form(instruction, scope)
    guard = form.reader(instruction.guard, TYPES["pred"]) if instruction.guard else None
    opcode = instruction.opcode
    if opcode in ("bra", "ret", "exit"):
        form.flag("uni")
        form.done(1 if opcode == "bra" else 0)
        block.guard, block.leaves = guard, opcode != "bra"
        return True
    if opcode in MEETINGS:
        block.meeting, block.guard = MEETINGS[opcode](form), guard
        return True
    step = build(form)
    block.steps.append(step if guard is None else _guarded(step, guard))
    return False


def build(form: Form) -> Step:
    """Find the rule of an opcode; its type tells integers from floats."""
    opcode, modifiers = form.instruction.opcode, form.modifiers
    last = TYPES.get(modifiers[-1]) if modifiers else None
    if opcode == "trap":
        return _trap(form.line)
    if opcode in ("membar", "fence"):
        return lambda active: None  # nothing is reordered here
    tables = [MOVES, TRANSFERS, WARPS]
    tables.append(FLOATS if last is not None and last.kind in ("f", "x2") else INTEGERS)
    for table in tables:
        if opcode in table:
            return table[opcode](form)
    raise form.refuse(f"opcode {opcode}")


def _trap(line: int) -> Step:
    def step(active: Active) -> None:
        raise PtxError("trap", line, "the kernel trapped")

    return step


def _guarded(step: Step, guard: Read) -> Step:
    def guarded(active: Active) -> None:
        chosen = np.broadcast_to(guard(active), active.count)
        if chosen.all():
            step(active)
        elif chosen.any():
            step(active.part(chosen))

    return guarded
