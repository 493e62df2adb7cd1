"""What stands for the kernels when the test double's turn comes to launch one.

`run_twins`: the host twins of the C library. `run_ptx`: the compiler's own PTX, on the interpreter,
with the double's device memory alone in its reach. Both decode the parameters byte by byte, as a
device does.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from drivers.double_library import Double, Launch
from native.twins import CODES, F32, I32, I64, PARAMETERS, POINTER, Twins
from ptx.interpreter import Interpreter
from ptx.memory import Memory

# struct's code and numpy's type of a parameter, by its ctypes type.
DECODED = {POINTER: ("Q", np.uint64), I64: ("q", np.int64), I32: ("i", np.int32)}
DECODED[F32] = ("f", np.float32)
KERNELS = {
    f"odin_{name}_{element}": parameters
    for name, parameters in PARAMETERS.items()
    for element in CODES
}


def declare_kernels(double: Double) -> None:
    """Tell the double of our kernels and their parameters, as kernels.h has them."""
    sizes = {name: [ctypes.sizeof(one) for one in types] for name, types in KERNELS.items()}
    double.declare(sizes)


def decode(launch: Launch) -> list[np.generic]:
    """The arguments of a launch of one of our kernels."""
    types: Sequence[type] = KERNELS[launch.name]
    codes = "".join(DECODED[one][0] for one in types)
    values = struct.unpack("@" + codes, launch.parameters)
    return [DECODED[one][1](value) for one, value in zip(types, values, strict=True)]


def run_twins(double: Double, library: Path) -> None:
    """Let the host twins stand for the kernels; other kernels are faults of the device."""
    declare_kernels(double)
    functions = Twins(library).functions

    def run(launch: Launch) -> None:
        name, _, element = launch.name.removeprefix("odin_").rpartition("_")
        twin = getattr(functions, f"odin_{name}_host")
        status = twin(CODES[element], *map(plain, decode(launch)))
        if status:
            raise ValueError(f"{launch.name}: {functions.odin_last_error().decode()}")

    double.on_launch(run)


def plain(value: np.generic) -> int | float | None:
    """As ctypes takes it: a null pointer is None."""
    return None if isinstance(value, np.uint64) and not value else value.item()


def run_ptx(double: Double, text: str) -> Callable[[], int]:
    """Let the PTX interpreter stand for the kernels; return how many launches it has run."""
    declare_kernels(double)
    interpreter = Interpreter(text)
    count = 0

    def run(launch: Launch) -> None:
        nonlocal count
        memory = Memory()
        for address, size in double.live():
            memory.map(address, size)
        interpreter.launch(launch.name, launch.grid, launch.block, decode(launch), memory)
        count += 1

    double.on_launch(run)
    return lambda: count
