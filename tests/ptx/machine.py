"""The scheduler: all lanes of some blocks, those with the smallest program counter first.

Lanes that stand at the same basic block run together; those that went ahead wait until the others
catch up, which brings branches together where their paths join. Blocks of a grid run beside each
other in one numpy array each register.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ptx.memory import BlockMemory, Memory, Threads
from ptx.operands import Read, Registers, Step
from ptx.parser import PtxError
from ptx.warps import Meeting

Array = NDArray[np.generic]
NOWHERE = np.iinfo(np.int32).max


@dataclass
class Block:
    """A basic block: steps, then either a meeting alone, or a way out."""

    line: int
    steps: list[Step] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    meeting: Meeting | None = None
    leaves: bool = False  # ret or exit
    target: int | None = None  # of a branch
    guard: Read | None = None


class Run:
    """What the lanes of some blocks share."""

    def __init__(
        self,
        *,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        first: int,
        blocks: int,
        memory: Memory,
        parameters: bytes,
    ) -> None:
        self.grid, self.block, self.memory, self.parameters = grid, block, memory, parameters
        self.block_size = block[0] * block[1] * block[2]
        self.blocks, self.lanes = blocks, blocks * self.block_size
        self.registers = Registers()
        lane = np.arange(self.lanes, dtype=np.int64)
        self.thread, self.row = lane % self.block_size, lane // self.block_size
        self.block_number = self.row + first
        self.lane = lane + first * self.block_size
        self.lane_in_warp = self.thread % 32
        self.warp_start = lane - self.lane_in_warp
        warps = (self.block_size + 31) // 32
        self.warp_row = self.row * warps + self.thread // 32
        self.warp = self.warp_row + first * warps
        self.warps = warps * blocks
        self.clock = np.zeros(self.lanes, np.int32)
        self.warp_clock = np.zeros(self.lanes, np.int32)
        self.shared: BlockMemory
        self.local: BlockMemory

    def special(self, name: str) -> Array | None:
        """A special register of all lanes, e.g. %tid.x; None if it is not known."""
        stem, _, axis = name.partition(".")
        if axis in ("x", "y", "z"):
            number = "xyz".index(axis)
            sizes = {"%ntid": self.block, "%nctaid": self.grid}
            if stem in sizes:
                return np.full(self.lanes, sizes[stem][number], np.uint32)
            which = {"%tid": (self.thread, self.block), "%ctaid": (self.block_number, self.grid)}
            if stem in which:
                flat, shape = which[stem]
                below = int(np.prod(shape[:number]))
                return (flat // below % shape[number]).astype(np.uint32)
        lane = self.lane_in_warp.astype(np.uint32)
        bit = np.uint32(1) << lane
        values = {
            "%laneid": lane,
            "%warpid": (self.thread // 32).astype(np.uint32),
            "%lanemask_eq": bit,
            "%lanemask_lt": bit - np.uint32(1),
            "%lanemask_le": (bit - np.uint32(1)) | bit,
            "%lanemask_gt": ~((bit - np.uint32(1)) | bit),
            "%lanemask_ge": ~(bit - np.uint32(1)),
        }
        return values.get(name)


class Active:
    """The lanes that execute an instruction together."""

    def __init__(self, run: Run, ids: Array | None) -> None:
        self.run, self.registers, self.all_lanes = run, run.registers, run.lanes
        everyone = ids is None or len(ids) == run.lanes
        self.lanes: Array | slice = slice(None) if everyone else ids
        self.count = run.lanes if everyone else len(ids)
        self._who: Threads | None = None

    def part(self, chosen: Array) -> Active:
        """Those of these lanes for which `chosen` is true."""
        return Active(self.run, self.ids[chosen])

    @property
    def ids(self) -> Array:
        return np.arange(self.all_lanes)[self.lanes]

    @property
    def lane_in_warp(self) -> Array:
        return self.run.lane_in_warp[self.lanes]

    @property
    def warp_start(self) -> Array:
        return self.run.warp_start[self.lanes]

    @property
    def who(self) -> Threads:
        if self._who is None:
            run, lanes = self.run, self.lanes
            self._who = Threads(
                lane=run.lane[lanes],
                warp=run.warp[lanes],
                block=run.block_number[lanes],
                row=run.row[lanes],
                clock=run.clock[lanes].copy(),
                warp_clock=run.warp_clock[lanes].copy(),
                block_size=run.block_size,
            )
        return self._who

    @property
    def who_local(self) -> Threads:
        who = self.who
        return Threads(**{**who.__dict__, "row": self.ids})

    def ballot(self, truth: Array) -> Array:
        """For each lane, the bits of its warp's active lanes for which `truth` holds."""
        warp = self.run.warp_row[self.lanes]
        weights = np.where(truth, 2.0**self.lane_in_warp, 0.0)
        return np.bincount(warp, weights, self.run.warps).astype(np.uint32)[warp]


class Machine:
    """Runs the basic blocks of a kernel for all lanes of a Run."""

    def __init__(self, code: list[Block], run: Run, most_steps: int) -> None:
        self.code, self.run, self.budget = code, run, most_steps
        self.at = np.zeros(run.lanes, np.int32)  # NOWHERE: waiting or gone
        self.waits_at = np.full(run.lanes, -1, np.int32)
        self.gone = np.zeros(run.lanes, bool)

    def go(self) -> None:
        while True:
            number = int(self.at.min())
            if number == NOWHERE:
                if (self.waits_at >= 0).any():
                    raise self.stuck()
                return
            here = self.at == number
            others = self.at[~here]
            limit = int(others.min()) if others.size else NOWHERE
            self.follow(number, Active(self.run, np.flatnonzero(here)), limit)

    def follow(self, number: int, active: Active, limit: int) -> None:
        """Run lanes from a basic block on until they part, wait, leave or catch up with others."""
        while number < limit:
            block = self.code[number]
            self.budget -= 1
            if self.budget < 0:
                raise PtxError("endless", block.line, "the kernel did not come to its end")
            if block.meeting is not None:
                if not self.meet(number, block, active):
                    return
                active, number = Active(self.run, active.ids), number + 1
                continue
            self.execute(block, active)
            if block.target is None and not block.leaves:
                number += 1
                continue
            taken = block.guard(active) if block.guard else None
            if taken is not None and not taken.any():
                number += 1
                continue
            if taken is not None and not taken.all():
                self.part(number, block, active, taken)
                return
            if block.leaves:
                self.leave(active.lanes)
                return
            number = int(block.target or 0)
        self.at[active.lanes] = number

    def execute(self, block: Block, active: Active) -> None:
        done = 0
        try:
            for step in block.steps:
                step(active)
                done += 1
        except PtxError as error:
            if error.line:
                raise
            message = str(error).split(": ", 2)[2]
            raise PtxError(error.kind, block.lines[done], message) from None

    def part(self, number: int, block: Block, active: Active, taken: Array) -> None:
        ids = active.ids
        self.at[ids[~taken]] = number + 1
        if block.leaves:
            self.leave(ids[taken])
        else:
            self.at[ids[taken]] = block.target

    def leave(self, lanes: Array | slice) -> None:
        self.at[lanes] = NOWHERE
        self.gone[lanes] = True

    # Meetings

    def meet(self, number: int, block: Block, active: Active) -> bool:
        """Lanes arrive at a meeting. True: exactly these lanes went through, to number + 1."""
        meeting, ids = block.meeting, active.ids
        assert meeting is not None
        if block.guard is not None:
            comes = np.broadcast_to(block.guard(active), ids.shape)
            self.at[ids[~comes]] = number + 1
            ids = ids[comes]
        self.at[ids], self.waits_at[ids] = NOWHERE, number
        present = np.flatnonzero(self.waits_at == number)
        if not present.size:
            return False
        together = Active(self.run, present)
        ready = (
            self.block_ready(present) if meeting.mask is None else self.warp_ready(block, together)
        )
        if not ready.any():
            return False
        through = together if ready.all() else together.part(ready)
        if meeting.step is not None:
            meeting.step(through)
        self.pass_on(number, meeting, through)
        return bool(ready.all()) and present.size == active.count

    def block_ready(self, present: Array) -> Array:
        row = self.run.row[present]
        return np.bincount(row, minlength=self.run.blocks)[row] == self.run.block_size

    def warp_ready(self, block: Block, together: Active) -> Array:
        assert block.meeting is not None and block.meeting.mask is not None
        mask = np.broadcast_to(block.meeting.mask(together), together.count)
        own = np.uint32(1) << together.lane_in_warp.astype(np.uint32)
        if ((mask & own) == 0).any():
            raise PtxError("mask", block.line, "a lane that its own mask does not name")
        here = together.ballot(np.ones(together.count, bool))
        ready = (mask & ~here) == 0
        if (mask != mask[0]).any():
            self.compare_masks(block, together, mask, ready)
        return ready

    def compare_masks(self, block: Block, together: Active, mask: Array, ready: Array) -> None:
        """Lanes that meet must name the same lanes."""
        everywhere = np.zeros(together.all_lanes, np.uint32)
        everywhere[together.lanes] = mask
        for lane in range(32):
            names = ready & ((mask >> np.uint32(lane)) & np.uint32(1) != 0)
            own, other = mask[names], everywhere[(together.warp_start + lane)[names]]
            if (own != other).any():
                pair = f"{own[own != other][0]:#x} and {other[own != other][0]:#x}"
                raise PtxError("mask", block.line, f"lanes with masks {pair} meet")

    def pass_on(self, number: int, meeting: Meeting, through: Active) -> None:
        lanes = through.lanes
        self.at[lanes], self.waits_at[lanes] = number + 1, -1
        if meeting.mask is None:
            self.run.clock[lanes] += 1
        elif meeting.orders_memory:
            self.run.warp_clock[lanes] += 1

    def stuck(self) -> PtxError:
        """Every lane that is left waits: say for whom."""
        lane = int(np.flatnonzero(self.waits_at >= 0)[0])
        number = int(self.waits_at[lane])
        block, run = self.code[number], self.run
        assert block.meeting is not None
        start = int(run.warp_start[lane])
        if block.meeting.mask is None:
            peers = np.flatnonzero(run.row == run.row[lane])
            missing = peers[self.waits_at[peers] != number]
            kind, what = "barrier", "threads of the block that never come to the barrier"
        else:
            mask = int(np.ravel(block.meeting.mask(Active(run, np.array([lane]))))[0])
            named = np.array([start + i for i in range(32) if mask >> i & 1])
            there = named[(named < run.lanes) & (named - start < run.block_size)]
            there = there[run.warp_row[there] == run.warp_row[lane]]
            if there.size < named.size:
                return PtxError("mask", block.line, f"mask {mask:#x} names lanes that do not exist")
            missing = there[self.waits_at[there] != number]
            kind, what = "mask", f"lanes that mask {mask:#x} names never come"
        first = int(missing[0])
        place = "left the kernel"
        if not self.gone[first]:
            place = f"waits at PTX line {self.code[int(self.waits_at[first])].line}"
        thread = int(run.thread[first])
        return PtxError(kind, block.line, f"{what}: thread {thread} {place}")
