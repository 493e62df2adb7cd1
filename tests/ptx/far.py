"""Runs a case at the far end of tensors of up to 2^45 bytes, of which only what is touched exists.

Indices, offsets and thread numbers are beyond 32 bits there. A case's images (or rows) are halved:
the last blocks of the largest grid take the first half in their first turn and the second half in
their second. Everything else of the grid and of the tensors is left out, and reaching it is out of
bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ptx.checks import Case, Score
from ptx.interpreter import Interpreter, Memory
from ptx.kernel_cases import first_order, logits, normalize, perturb
from ptx.memory import Region

GRID = 2**31 - 2  # the largest that is a multiple of 3
SPACING = 1 << 48  # between two tensors


class Layout(NamedTuple):
    """Which arguments of a kernel are tensors of images or rows, and which are their sizes.

    The tensors in `stacked` hold all images once for each magnitude.
    """

    tensors: tuple[int, ...]
    stacked: tuple[int, ...]
    count: int
    magnitudes: int


LAYOUTS = {
    "normalize": Layout((0, 1), (), 4, -1),
    "perturb": Layout((0, 1), (2,), 7, 10),
    "score": Layout((0, 1, 2, 3, 4, 5), (), 8, -1),
    "first_order": Layout((0, 2, 4), (5,), 6, 9),
}


class FarCode:
    """Stands in `ptx.checks` where an Interpreter does; runs the last `blocks` blocks."""

    def __init__(self, code: Interpreter, blocks: int) -> None:
        self._code, self._blocks = code, blocks

    def launch(
        self, name: str, grid: int, block: int, arguments: Sequence[Any], memory: Memory, **_: Any
    ) -> None:
        """Run on the memory's arrays, moved far apart."""
        layout = LAYOUTS[name.removeprefix("odin_").rpartition("_")[0]]
        moved, far = list(arguments), Memory()
        count = int(arguments[layout.count])
        turn = count // 2 * GRID // self._blocks  # images in a turn of the whole grid
        moved[layout.count] = np.int64(2 * turn)
        for number in (*layout.tensors, *layout.stacked):
            if not arguments[number]:
                continue
            copies = int(arguments[layout.magnitudes]) if number in layout.stacked else 1
            base = (number + 1) * SPACING + int(arguments[number]) % 256
            moved[number] = base
            region = region_at(memory, int(arguments[number]))
            place(far, base, region, copies * 2, turn, turn - count // 2)
        for region in memory.regions:
            if region.base in moved:
                far.next = region.base
                far.add(region.data, name=region.name, writable=region.writable)
        self._code.launch(name, GRID, block, moved, far, first=GRID - self._blocks)


def region_at(memory: Memory, address: int) -> Region:
    return next(region for region in memory.regions if region.base == address)


def place(far: Memory, base: int, region: Region, pieces: int, every: int, start: int) -> None:
    """Cut a tensor into pieces and lay them at its images `start`, `start + every` ..."""
    for number, piece in enumerate(np.split(region.data, pieces)):
        image_bytes = piece.size // (every - start)
        far.next = base + (start + number * every) * image_bytes
        far.add(piece, name=region.name, writable=region.writable)


class Far(NamedTuple):
    """A case and how many blocks it takes for one turn; `group` is the elements in 16 bytes."""

    blocks: int
    case: Case


def far_cases(suffix: str) -> dict[str, list[Far]]:
    """Cases whose every element some thread of the last blocks touches."""
    group = 4 if suffix == "f32" else 8
    return {
        "normalize": [
            Far(1, normalize(2 * 256, group, 3)),
            Far(1, normalize(2 * 256, 1, 3)),
        ],
        # 3 blocks of 256 groups are 256 * group images of 3 elements.
        "perturb": [
            Far(3, perturb(2 * 256 * group, 3, 1, 2)),
            Far(3, perturb(2 * 256, 3, 1, 2, shifts=(1, 2))),
        ],
        "score": [Far(1, Score(logits(8, 20))), Far(1, Score(logits(2, 1030)))],
        "first_order": [Far(1, first_order(2, 3, 37, 2))],
    }
