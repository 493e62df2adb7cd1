"""Instructions through which the threads of a warp meet (PTX ISA manual, 9.7.13).

A `.sync` instruction is executed once all lanes that its mask names have come to it; the machine
holds the others back. A value taken from a lane that is not in the mask is undefined: poison.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ptx.formats import TYPES
from ptx.memory import POISON
from ptx.operands import Form, Read, Step
from ptx.parser import Immediate, Pair, Register

if TYPE_CHECKING:
    from ptx.machine import Active

Array = NDArray[np.generic]
U32, PRED = TYPES["u32"], TYPES["pred"]


@dataclass(frozen=True)
class Meeting:
    """An instruction that waits: for the lanes of a mask, or (mask None) for the whole block."""

    mask: Read | None
    step: Step | None
    orders_memory: bool


def _shfl(form: Form) -> Meeting:
    form.type()
    mode = form.choice("up", "down", "bfly", "idx")
    mask = _mask(form, 4)
    form.done(5)
    target = form.operand(0)
    first, second = (target.first, target.second) if isinstance(target, Pair) else (target, None)
    write = form.writer(first, U32)
    write_inside = form.writer(second, PRED) if isinstance(second, Register) else None
    value, b, c = form.read(1, U32), form.read(2, U32), form.read(3, U32)

    def step(active: Active) -> None:
        source, inside = shuffle_source(mode, active.lane_in_warp, b(active), c(active))
        known = (mask(active) >> source.astype(np.uint32)) & np.uint32(1)
        everywhere = np.empty(active.all_lanes, np.uint32)
        everywhere[active.lanes] = value(active)
        index = np.minimum(active.warp_start + source, active.all_lanes - 1)
        write(active, np.where(known != 0, everywhere[index], np.uint32(POISON & 0xFFFFFFFF)))
        if write_inside:
            write_inside(active, inside)

    return Meeting(mask, step, False)


def shuffle_source(mode: str, lane: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """The lane to read from and whether it lies inside the segment (the manual's pseudo-code)."""
    b, clamp, segment = ((v.astype(np.int64) & 31) for v in (b, c, c >> np.uint32(8)))
    highest = (lane & segment) | (clamp & ~segment)
    if mode == "up":
        source = lane - b
        inside = source >= highest
    else:
        lowest = lane & segment
        moved = {"down": lane + b, "bfly": lane ^ b, "idx": lowest | (b & ~segment)}
        source = moved[mode]
        inside = source <= highest
    return np.where(inside, source, lane), inside


def _mask(form: Form, number: int) -> Read:
    if not form.flag("sync"):
        raise form.refuse("no .sync")
    return form.read(number, U32)


def _vote(form: Form) -> Meeting:
    of, mode = form.type(), form.choice("all", "any", "uni", "ballot")
    mask = _mask(form, 2)
    form.done(3)
    write, read = form.write(0, of), form.read(1, PRED)

    def step(active: Active) -> None:
        members = mask(active)
        ballot = active.ballot(read(active)) & members
        if mode == "ballot":
            write(active, ballot)
        elif mode == "any":
            write(active, ballot != 0)
        else:
            whole = ballot == members
            write(active, whole if mode == "all" else whole | (ballot == 0))

    return Meeting(mask, step, False)


REDUCE: dict[str, tuple[Callable[..., Array], int]] = {
    "add": (np.add.reduce, 0),
    "and": (np.bitwise_and.reduce, -1),
    "or": (np.bitwise_or.reduce, 0),
    "xor": (np.bitwise_xor.reduce, 0),
    "min": (np.minimum.reduce, 1),  # an identity that is taken from the lane itself
    "max": (np.maximum.reduce, 1),
}


def _redux(form: Form) -> Meeting:
    """Each lane gathers its warp's values; those outside its mask count as its own, as 0 or ~0."""
    of, mask = form.type(), _mask(form, 2)
    name = form.choice(*REDUCE)
    reduce, identity = REDUCE[name]
    form.done(3)
    write, read = form.write(0, of), form.read(1, of)

    def step(active: Active) -> None:
        mine = np.broadcast_to(read(active), active.count)
        everywhere = np.zeros(active.all_lanes, of.dtype)
        everywhere[active.lanes] = mine
        lanes = np.arange(32)
        index = np.minimum(active.warp_start[:, None] + lanes, active.all_lanes - 1)
        named = (mask(active).reshape(-1, 1) >> lanes.astype(np.uint32)) & np.uint32(1)
        other = mine[:, None] if name in ("min", "max") else np.array(identity).astype(of.dtype)
        values = np.where(named != 0, everywhere[index], other)
        write(active, reduce(values, axis=1).astype(of.dtype))

    return Meeting(mask, step, False)


def _bar(form: Form) -> Meeting:
    """bar.sync 0 (the whole block) and bar.warp.sync mask; other barriers are refused."""
    if form.flag("warp"):
        mask = _mask(form, 0)
        form.done(1)
        return Meeting(mask, None, True)
    for word in ("cta", "aligned"):
        form.flag(word)
    if not form.flag("sync"):
        raise form.refuse("a barrier other than bar.sync")
    form.done(1)
    name = form.operand(0)
    if not (isinstance(name, Immediate) and name.value == 0):
        raise form.refuse("a barrier other than number 0")
    return Meeting(None, None, True)


def _activemask(form: Form) -> Step:
    """The lanes that execute this together: on hardware any that happen to."""
    of = form.type()
    form.done(1)
    write = form.write(0, of)
    return lambda active: write(active, active.ballot(np.ones(active.count, bool)))


MEETINGS: dict[str, Callable[[Form], Meeting]] = {
    "shfl": _shfl,
    "vote": _vote,
    "redux": _redux,
    "bar": _bar,
    "barrier": _bar,
}
WARPS: dict[str, Callable[[Form], Step]] = {"activemask": _activemask}
