"""Global memory as numpy byte buffers or real process memory; shared and local memory; races.

Addresses: global regions keep the address they are mapped at; shared and local variables lie at
offsets inside a window, which `cvta` turns into generic addresses by adding the window's base.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ptx.formats import RAW
from ptx.parser import PtxError

Array = NDArray[np.generic]
SHARED_WINDOW = 0x7A00_0000_0000_0000
LOCAL_WINDOW = 0x7B00_0000_0000_0000
WINDOW_SIZE = 1 << 32
FIRST_ADDRESS = 0x10_0000_0000
GUARD = 4096  # bytes between two regions, so that what runs over one never hits the next
POISON = 0xDEAD_7FFF_BEEF_7FFF


@dataclass(frozen=True)
class Threads:
    """Who accesses, one entry an active lane; numbers run over the whole grid."""

    lane: Array
    warp: Array
    block: Array
    row: Array  # of a BlockMemory: the block or the lane within what is being run
    clock: Array  # bar.sync passed
    warp_clock: Array  # bar.warp.sync passed
    block_size: int

    def part(self, lanes: Array | slice) -> Threads:
        names = ("lane", "warp", "block", "row", "clock", "warp_clock")
        return replace(self, **{name: getattr(self, name)[lanes] for name in names})

    def warp_of(self, lane: Array) -> Array:
        warps = (self.block_size + 31) // 32
        return lane // self.block_size * warps + lane % self.block_size // 32


class Races:
    """The last writer and reader of every byte, and the barriers they had passed.

    Two accesses of one byte, one of them a write, by two threads are ordered if a bar.sync lies
    between them, or within a warp a bar.warp.sync (`lockstep` takes a warp as always ordered).
    Accesses of different blocks are never ordered. Every other pair is a race, whatever order the
    interpreter happens to run the warps in.

    Without `reads`, as for global memory, a write after another thread's read is not seen. A
    bar.warp.sync of some lanes counts as one of the warp.
    """

    def __init__(self, size: int, *, lockstep: bool, reads: bool) -> None:
        self.lockstep, self.reads = lockstep, reads
        self.writer = np.full(size, -1, np.int64)
        self.write_block = np.zeros(size, np.int32)
        self.write_clock = np.zeros((2, size), np.int32)
        if reads:
            self.reader = np.full(size, -1, np.int64)  # -2: several threads
            self.read_warp = np.full(size, -1, np.int64)  # -2: several warps
            self.read_clock = np.zeros((2, size), np.int32)

    def read(self, index: Array, who: Threads) -> str | None:
        if self._unordered_write(index, who).any():
            return "reads what another thread wrote, with no barrier between"
        if self.reads:
            self._note_read(index, who)
        return None

    def write(self, index: Array, who: Threads) -> str | None:
        if self._unordered_write(index, who).any():
            return "writes where another thread wrote, with no barrier between"
        if self.reads and self._unordered_read(index, who).any():
            return "writes where another thread read, with no barrier between"
        lane = np.broadcast_to(who.lane[:, None], index.shape)
        self.writer[index] = lane
        self.write_block[index] = who.block[:, None]
        self.write_clock[0][index] = who.clock[:, None]
        self.write_clock[1][index] = who.warp_clock[:, None]
        if (self.writer[index] != lane).any():
            return "two threads write the same byte at once"
        return None

    def _unordered_write(self, index: Array, who: Threads) -> Array:
        writer = self.writer[index]
        suspect = (writer >= 0) & (writer != who.lane[:, None])
        if not suspect.any():
            return suspect
        same_block = self.write_block[index] == who.block[:, None]
        suspect &= ~same_block | (self.write_clock[0][index] == who.clock[:, None])
        same_warp = same_block & (who.warp_of(writer) == who.warp[:, None])
        ordered = self.write_clock[1][index] < who.warp_clock[:, None]
        return suspect & ~(same_warp & (ordered | self.lockstep))

    def _unordered_read(self, index: Array, who: Threads) -> Array:
        reader = self.reader[index]
        suspect = (reader != -1) & (reader != who.lane[:, None])
        suspect &= self.read_clock[0][index] == who.clock[:, None]
        same_warp = self.read_warp[index] == who.warp[:, None]
        ordered = self.read_clock[1][index] < who.warp_clock[:, None]
        return suspect & ~(same_warp & (ordered | self.lockstep))

    def _note_read(self, index: Array, who: Threads) -> None:
        stale = self.read_clock[0][index] != who.clock[:, None]
        for table, me in ((self.reader, who.lane[:, None]), (self.read_warp, who.warp[:, None])):
            old = table[index]
            mine = np.where(stale | (old == -1) | (old == me), me, -2)
            table[index] = mine
            table[index[(table[index] != mine) | (mine == -2)]] = -2
        self.read_clock[0][index] = who.clock[:, None]
        self.read_clock[1][index] = who.warp_clock[:, None]


class Region:
    """Bytes at an address."""

    def __init__(self, base: int, data: NDArray[np.uint8], name: str, writable: bool) -> None:
        self.base, self.data, self.name, self.writable = base, data, name, writable
        self.views: dict[int, Array] = {}
        self.races: Races | None = None

    def view(self, width: int) -> Array:
        """Elements of `width` bytes; element i lies at the i-th multiple of width from base on."""
        if width not in self.views:
            start = -self.base % width
            count = max(0, (self.data.size - start) // width)
            part = self.data[start : start + count * width]
            self.views[width] = part.view(RAW[8 * width])
        return self.views[width]


class Memory:
    """Global memory: regions that do not overlap, every access inside one of them."""

    def __init__(self) -> None:
        self.regions: list[Region] = []
        self.bases = np.zeros(0, np.uint64)
        self.next = FIRST_ADDRESS
        self.check_races = True

    def add(self, array: Array, *, name: str = "", shift: int = 0, writable: bool = True) -> int:
        """Register an array's bytes (C order, shared, not copied); return the address given to it.

        The address is a multiple of 256, plus `shift`: 4 gives float32s that no 16-byte load fits.
        """
        data = np.ascontiguousarray(array) if array.size == 0 else array
        base = self.next + shift
        flat = data.reshape(-1).view(np.uint8)
        if array.size and not np.shares_memory(flat, array):
            raise ValueError("memory must be contiguous")
        self._insert(Region(base, flat, name or f"region {len(self.regions)}", writable))
        self.next = (base + flat.size + GUARD + 255) // 256 * 256
        return base

    def map(self, address: int, size: int, *, name: str = "", writable: bool = True) -> None:
        """Register `size` bytes of this process's own memory at their real address."""
        buffer = (ctypes.c_ubyte * size).from_address(address)
        data = np.frombuffer(buffer, np.uint8)
        self._insert(Region(address, data, name or f"process memory {address:#x}", writable))

    def unmap(self, address: int) -> None:
        """Forget the region that begins at the address; KeyError if there is none."""
        kept = [region for region in self.regions if region.base != address]
        if len(kept) == len(self.regions):
            raise KeyError(address)
        self.set_regions(kept)

    def _insert(self, new: Region) -> None:
        for old in self.regions:
            if new.base < old.base + old.data.size and old.base < new.base + new.data.size:
                raise ValueError(f"{new.name} overlaps {old.name}")
        self.set_regions([*self.regions, new])

    def set_regions(self, regions: list[Region]) -> None:
        """Make these the memory, in the order of their addresses."""
        self.regions = sorted(regions, key=lambda region: region.base)
        self.bases = np.array([region.base for region in self.regions], np.uint64)

    def begin(self, *, check_races: bool) -> None:
        """Forget the accesses of earlier launches."""
        for region in self.regions:
            region.races = None
        self.check_races = check_races

    def load(self, address: Array, width: int, count: int, who: Threads, line: int) -> Array:
        """Return (lanes, count) elements of `width` bytes."""
        out = np.empty((address.size, count), RAW[8 * width])

        def one(region: Region, index: Array, lanes: Array | slice) -> None:
            if region.races is not None:  # nobody has written it otherwise
                self._race(region, region.races.read, index, width, who.part(lanes), line)
            out[lanes] = region.view(width)[index]

        self._each(address, width, count, line, one)
        return out

    def store(self, address: Array, values: Array, who: Threads, line: int) -> None:
        """Store (lanes, count) elements at an address a lane."""
        width = values.dtype.itemsize

        def one(region: Region, index: Array, lanes: Array | slice) -> None:
            if not region.writable:
                raise PtxError("bounds", line, f"writes to {region.name}, which is read-only")
            if self.check_races:
                if region.races is None:
                    region.races = Races(region.data.size, lockstep=False, reads=False)
                self._race(region, region.races.write, index, width, who.part(lanes), line)
            region.view(width)[index] = values[lanes]

        self._each(address, width, values.shape[1], line, one)

    def _race(
        self,
        region: Region,
        note: Callable[[Array, Threads], str | None],
        index: Array,
        width: int,
        who: Threads,
        line: int,
    ) -> None:
        start = -region.base % width
        found = note(_bytes(index * width + start, width), who)
        if found:
            raise PtxError("race", line, f"in global memory, {region.name}: {found}")

    def _each(
        self,
        address: Array,
        width: int,
        count: int,
        line: int,
        use: Callable[[Region, Array, Array | slice], None],
    ) -> None:
        """Call use(region, element numbers (lanes, count), lanes) for each region touched."""
        check_alignment(address, width * count, line, "global")
        number = np.searchsorted(self.bases, address, side="right") - 1
        first = int(number[0])
        groups = [first] if (number == first).all() else np.unique(number).tolist()
        for each in groups:
            lanes = slice(None) if len(groups) == 1 else np.flatnonzero(number == each)
            here = address[lanes]
            if each < 0:
                raise _out_of_bounds(line, here[0], width * count, None)
            region = self.regions[each]
            offset = here - np.uint64(region.base)
            outside = _is_outside(offset, width * count, region.data.size)
            if outside.any():
                raise _out_of_bounds(line, here[outside][0], width * count, region)
            element = (offset.astype(np.int64) - (-region.base % width)) // width
            use(region, element[:, None] + np.arange(count), lanes)


def _bytes(start: Array, width: int) -> Array:
    """(lanes, count) first bytes -> (lanes, count * width) bytes."""
    return (start[:, :, None] + np.arange(width)).reshape(start.shape[0], -1)


def _is_outside(offset: Array, accessed: int, size: int) -> Array:
    """Whether some of the bytes from an offset on lie past the size; the sum could wrap around."""
    return (offset > np.uint64(size)) | (np.uint64(accessed) > np.uint64(size) - offset)


def _out_of_bounds(line: int, address: np.generic, size: int, region: Region | None) -> PtxError:
    where = "before every region"
    if region is not None:
        past = int(address) - region.base
        where = f"byte {past} of {region.name}, which has {region.data.size}"
    return PtxError("bounds", line, f"{size} bytes at {int(address):#x}: {where}")


def check_alignment(address: Array, size: int, line: int, space: str) -> None:
    wrong = (address & np.uint64(size - 1)) != 0
    if wrong.any():
        first = int(address[wrong][0])
        raise PtxError("alignment", line, f"{size} bytes of {space} memory at {first:#x}")


class BlockMemory:
    """Shared memory (a row a block) or local memory (a row a lane): bounds, initialised, races."""

    def __init__(self, space: str, rows: int, size: int, races: Races | None) -> None:
        self.space, self.size, self.races = space, size, races
        self.padded = (size + 15) // 16 * 16
        self.data = np.full(rows * self.padded // 8, POISON, np.uint64).view(np.uint8)
        self.written = np.zeros(rows * self.padded, bool)

    def _index(self, address: Array, who: Threads, width: int, count: int, line: int) -> Array:
        check_alignment(address, width * count, line, self.space)
        outside = _is_outside(address, width * count, self.size)
        if outside.any():
            first = int(address[outside][0])
            message = f"byte {first} of {self.space} memory, which has {self.size}"
            raise PtxError("bounds", line, message)
        start = address.astype(np.int64) + who.row.astype(np.int64) * self.padded
        return start[:, None] + np.arange(width * count)

    def load(self, address: Array, width: int, count: int, who: Threads, line: int) -> Array:
        """Return (lanes, count) elements of `width` bytes."""
        index = self._index(address, who, width, count, line)
        if not self.written[index].all():
            raise PtxError("uninitialised", line, f"reads {self.space} memory that nobody wrote")
        self._check(self.races.read(index, who) if self.races else None, line)
        return self.data[index].view(RAW[8 * width])

    def store(self, address: Array, values: Array, who: Threads, line: int) -> None:
        """Store (lanes, count) elements at an address a lane."""
        width, count = values.dtype.itemsize, values.shape[1]
        index = self._index(address, who, width, count, line)
        self._check(self.races.write(index, who) if self.races else None, line)
        self.data[index] = np.ascontiguousarray(values).view(np.uint8)
        self.written[index] = True

    def _check(self, found: str | None, line: int) -> None:
        if found:
            raise PtxError("race", line, f"in {self.space} memory: {found}")
