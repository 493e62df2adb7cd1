"""Windows that slide over an image: their geometry, and what convolutions and pools share.

Along an axis, window i covers the cells i * stride + t * dilation - before, for t in 0 ... k - 1
(the taps). With t * dilation - before = q * stride + r, tap t of window i is the cell of residue r
(modulo the stride) and number i + q: within one residue a tap is a mere shift. So cells are
handled residue by residue, as whole images of size / stride cells, and interleaved at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from odin_export.emit import Emitter, dims
from odin_export.rules.common import refused, sizes_of
from odin_export.rules.lengths import Size, joined

Sizes = Sequence[int | str | None]
LARGEST = np.iinfo(np.int64).max


class Window:
    """Kernel, strides, dilations and pads of a convolution or pool, spelled out.

    Attributes:
        pads: as ONNX orders them: before each axis, then after each axis.
        same: the auto_pad of the axes whose pads depend on sizes known at run time only, whose
            pads are then 0 here; "" if there is no such axis.
    """

    def __init__(
        self,
        kernel: Sequence[int],
        strides: Sequence[int],
        dilations: Sequence[int],
        pads: Sequence[int],
        same: str = "",
    ) -> None:
        self.kernel, self.strides, self.dilations = list(kernel), list(strides), list(dilations)
        self.pads, self.same = list(pads), same
        self.rank = len(self.kernel)
        self.before, self.after = self.pads[: self.rank], self.pads[self.rank :]
        # How far a window reaches beyond its first cell.
        self.reach = [d * (k - 1) for d, k in zip(self.dilations, self.kernel, strict=True)]
        self.strided = self.strides != [1] * self.rank
        self.dilated = any(self.reach[axis] > k - 1 for axis, k in enumerate(self.kernel))

    @classmethod
    def of(cls, node: ir.Node, kernel: Sizes, sizes: Sizes) -> Window:
        """The window of a node, on an image of these spatial sizes."""
        if not kernel or not all(isinstance(size, int) for size in kernel):
            raise refused(node, "its kernel size is not known", "run shape inference on the model")
        rank = len(kernel)
        window = cls(
            [int(size or 0) for size in kernel],
            node.attributes.get_ints("strides", [1] * rank) or [1] * rank,
            node.attributes.get_ints("dilations", [1] * rank) or [1] * rank,
            [0] * (2 * rank),
        )
        auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
        if auto_pad == "NOTSET":
            pads = node.attributes.get_ints("pads", window.pads) or window.pads
            return window._with_pads(pads)
        return window if auto_pad == "VALID" else window._with_same(auto_pad, sizes)

    def _with_pads(self, pads: Sequence[int], same: str = "") -> Window:
        return Window(self.kernel, self.strides, self.dilations, pads, same)

    def _with_same(self, auto_pad: str, sizes: Sizes) -> Window:
        """Pads that give ceil(size / stride) windows, shared equally between both sides."""
        total, same = [0] * self.rank, ""
        for axis, (size, stride) in enumerate(zip(sizes, self.strides, strict=True)):
            if stride == 1:
                total[axis] = self.reach[axis]
            elif isinstance(size, int):
                last = (-(-size // stride) - 1) * stride
                total[axis] = max(last + self.reach[axis] + 1 - size, 0)
            else:
                same = auto_pad
        if same:  # one vector computed at run time serves all axes
            return self._with_pads([0] * (2 * self.rank), same)
        less, more = [t // 2 for t in total], [t - t // 2 for t in total]
        return self._with_pads(less + more if auto_pad == "SAME_UPPER" else more + less)

    def along(self, axis: int) -> Window:
        """The window that slides along one axis only."""

        def only(values: Sequence[int], other: int) -> list[int]:
            return [v if a % self.rank == axis else other for a, v in enumerate(values)]

        return Window(
            only(self.kernel, 1),
            only(self.strides, 1),
            only(self.dilations, 1),
            only(self.pads, 0),
            self.same,
        )


def pads_before(e: Emitter, window: Window, x: ir.Value) -> ir.Value:
    """The pads before each spatial axis of x, as an int64 vector."""
    if not window.same:
        return e.integers(window.before, "before")
    size = sizes_of(e, x, spatial_axes(window))
    strides = e.integers(window.strides, "strides")
    rounded = e.op("Add", size, e.integers([s - 1 for s in window.strides]))
    covered = e.op("Mul", e.op("Div", rounded, strides), strides)
    beyond = [far + 1 - s for far, s in zip(window.reach, window.strides, strict=True)]
    missing = e.op("Sub", e.op("Add", covered, e.integers(beyond)), size)
    total = e.op("Max", missing, e.integers([0]))
    half = e.op("Div", total, e.integers([2]))
    return half if window.same == "SAME_UPPER" else e.op("Sub", total, half)


def spatial_axes(window: Window) -> list[int]:
    return list(range(2, 2 + window.rank))


def fitted(
    e: Emitter, value: ir.Value, window: Window, x: ir.Value, start: Sequence[int], lengths: Sizes
) -> ir.Value:
    """Cut or pad with zeros the spatial axes of `value` to those of x.

    Args:
        value: of these spatial lengths, as far as they are known.
        window: whose pads, where they are known at run time only, are cut off too.
        x: what has the sizes wanted.
        start: the cell of each axis that becomes the first.
        lengths: of `value`.
    """
    sizes = dims(x)[2:]
    known = [
        size + first - length
        for size, first, length in zip(sizes, start, lengths, strict=True)
        if isinstance(size, int) and isinstance(length, int)
    ]
    if len(known) == window.rank and not window.same:
        return padded(e, value, [-first for first in start], known, 0.0)
    first = pads_before(e, window, x) if window.same else e.integers(start)
    spatial = e.integers(spatial_axes(window), "axes")
    length = e.op("Gather", e.op("Shape", value), spatial, axis=0)
    end = e.op("Sub", e.op("Add", sizes_of(e, x, spatial_axes(window)), first), length)
    none = e.integers([0, 0], "no_pads")
    pads = e.op("Concat", none, e.op("Neg", first), none, end, axis=0)
    return e.op("Pad", value, pads, e.floats(0, "zero"))


def cut(e: Emitter, value: ir.Value, window: Window, x: ir.Value) -> ir.Value:
    """Cut the spatial axes of `value`, which are long enough, to those of x, at run time.

    Pads that are known at run time only are cut off as well.
    """
    axes = spatial_axes(window)
    first = pads_before(e, window, x) if window.same else e.integers([0] * window.rank, "starts")
    size = sizes_of(e, x, axes)
    end = e.op("Add", size, first) if window.same else size
    return e.op("Slice", value, first, end, e.integers(axes, "axes"))


def padded(
    e: Emitter, value: ir.Value, before: Sequence[int], after: Sequence[int], fill: float
) -> ir.Value:
    """Pad the spatial axes; a negative pad cuts off."""
    if not any(before) and not any(after):
        return value
    return e.op("Pad", value, e.integers([0, 0, *before, 0, 0, *after], "pads"), e.floats(fill))


def count_along(e: Emitter, value: ir.Value, axis: int, extra: int = 0, factor: int = 1) -> Size:
    """(size + extra) * factor, of one axis of a value of the forward graph."""
    size = dims(value)[axis]
    if isinstance(size, int):
        return (size + extra) * factor
    count = sizes_of(e, value, [axis])
    if extra:
        count = e.op("Add", count, e.integers([extra]))
    return count if factor == 1 else e.op("Mul", count, e.integers([factor]))


def known(counts: Sequence[Size]) -> list[int | None]:
    return [count if isinstance(count, int) else None for count in counts]


# --- strides: residues, apart and interleaved ---------------------------------------------------


def with_gaps(e: Emitter, dy: ir.Value, y: ir.Value, strides: Sequence[int]) -> ir.Value:
    """Put stride - 1 zeros behind each cell of dy, which has the sizes of y."""
    rank = len(strides)
    apart = e.op("Unsqueeze", dy, e.integers([3 + 2 * axis for axis in range(rank)], "axes"))
    after = [gap for stride in strides for gap in (0, stride - 1)]
    stuffed = padded(e, apart, [0] * (2 * rank), after, 0.0)
    counts = [count_along(e, y, 2 + a, factor=stride) for a, stride in enumerate(strides)]
    return e.op("Reshape", stuffed, joined(e, [0, 0, *counts]))


def separated(
    e: Emitter, value: ir.Value, strides: Sequence[int], channels: Size, counts: Sequence[Size]
) -> ir.Value:
    """(N, C, M1 s1, ...) -> (N, s1 ... sr C, M1, ...): cells of one residue side by side."""
    rank = len(strides)
    if rank == 2 and strides[0] == strides[1]:
        return e.op("SpaceToDepth", value, blocksize=strides[0])
    split = [item for pair in zip(counts, strides, strict=True) for item in pair]
    apart = e.op("Reshape", value, joined(e, [0, 0, *split]))
    cells, residues = [2 + 2 * a for a in range(rank)], [3 + 2 * a for a in range(rank)]
    ordered = e.op("Transpose", apart, perm=[0, *residues, 1, *cells])
    together = math.prod(strides)
    blocks = (
        together * channels
        if isinstance(channels, int)
        else e.op("Mul", channels, e.integers([together]))
    )
    return e.op("Reshape", ordered, joined(e, [0, blocks, *counts]))


def interleaved(
    e: Emitter,
    residues: Sequence[ir.Value],
    strides: Sequence[int],
    channels: Size,
    counts: Sequence[Size],
) -> ir.Value:
    """The inverse of `separated`, of images (N, C, M1, ...) for each residue, last axis fastest."""
    rank = len(strides)
    if len(residues) == 1:
        return residues[0]
    together = e.op("Concat", *residues, axis=1)
    if rank == 2 and strides[0] == strides[1]:
        return e.op("DepthToSpace", together, blocksize=strides[0], mode="DCR")
    apart = e.op("Reshape", together, joined(e, [0, *strides, channels, *counts]))
    pairs = [axis for a in range(rank) for axis in (2 + rank + a, 1 + a)]
    ordered = e.op("Transpose", apart, perm=[0, 1 + rank, *pairs])
    return e.op("Reshape", ordered, joined(e, [0, 0, *_merged(e, counts, strides)]))


def _merged(e: Emitter, counts: Sequence[Size], strides: Sequence[int]) -> list[Size]:
    return [
        count * stride
        if isinstance(count, int)
        else e.op("Mul", count, e.integers([stride], "stride"))
        for count, stride in zip(counts, strides, strict=True)
    ]


Taps = dict[tuple[int, ...], ir.Value]


def placed(e: Emitter, taps: Taps, window: Window, x: ir.Value, y: ir.Value) -> ir.Value:
    """Add up what each tap of each window gives to the cell of x that it stands on.

    Args:
        taps: for each tap, one number along each axis, what it gives, in the shape of y.
        window: that slides over x.
        x: the image, whose shape the result has.
        y: what the windows lead to.
    """
    for axis in reversed(range(window.rank)):
        shifts = _shifts(window, axis, y)
        lines: dict[tuple[int, ...], dict[int, ir.Value]] = {}
        for tap, value in taps.items():
            lines.setdefault((*tap[:axis], -1, *tap[axis + 1 :]), {})[tap[axis]] = value
        taps = {
            (*line[:axis], residue, *line[axis + 1 :]): total
            for line, values in lines.items()
            for residue, total in _by_residue(e, values, shifts, axis, window.rank).items()
        }
    return _whole(e, taps, window, x, y)


def spread(e: Emitter, dy: ir.Value, window: Window, x: ir.Value, y: ir.Value) -> ir.Value:
    """Add dy of each window to every cell of x that it covers."""
    parts: Taps = {(): dy}
    for axis, taps in enumerate(window.kernel):
        shifts = _shifts(window, axis, y)
        parts = {
            (*residues, residue): total
            for residues, value in parts.items()
            for residue, total in _by_residue(
                e, dict.fromkeys(range(taps), value), shifts, axis, window.rank
            ).items()
        }
    return _whole(e, parts, window, x, y)


def _lift(window: Window, axis: int, y: ir.Value) -> int:
    """How many strides the shifts along an axis are raised by, to be cut off in the end.

    A negative shift cuts off windows at the start, in one go with the padding, as long as some
    window is sure to be left.
    """
    count = dims(y)[2 + axis]
    least = -(window.before[axis] // -window.strides[axis])  # of a shift, negated
    return least if least > (count - 1 if isinstance(count, int) else 1) else 0


def _shifts(window: Window, axis: int, y: ir.Value) -> list[tuple[int, int]]:
    """For each tap, its shift q (raised by the lift) and its residue r."""
    stride, lift = window.strides[axis], _lift(window, axis, y)
    first = lift * stride - window.before[axis]
    return [
        divmod(tap * window.dilations[axis] + first, stride) for tap in range(window.kernel[axis])
    ]


def _by_residue(
    e: Emitter, taps: dict[int, ir.Value], shifts: list[tuple[int, int]], axis: int, rank: int
) -> dict[int, ir.Value]:
    """Add up the taps of one axis that stand on cells of the same residue, shifted."""
    furthest = max(q for q, _ in shifts)
    totals: dict[int, ir.Value] = {}
    for tap, value in taps.items():
        q, residue = shifts[tap]
        before, after = [0] * rank, [0] * rank
        before[axis], after[axis] = q, furthest - q
        moved = padded(e, value, before, after, 0.0)
        totals[residue] = e.op("Add", totals[residue], moved) if residue in totals else moved
    return totals


def _whole(e: Emitter, parts: Taps, window: Window, x: ir.Value, y: ir.Value) -> ir.Value:
    """Interleave the images of all residues, with zeros for those that no tap stands on."""
    counts = [
        count_along(e, y, 2 + axis, extra=max(q for q, _ in _shifts(window, axis, y)))
        for axis in range(window.rank)
    ]
    residues = list(np.ndindex(*window.strides))
    some = next(iter(parts.values()))
    if len(parts) < len(residues):
        empty = e.op("Expand", e.floats(0, "zero"), e.op("Shape", some))
        parts = {residue: parts.get(residue, empty) for residue in residues}
    values = [parts[residue] for residue in residues]
    dx = interleaved(e, values, window.strides, count_along(e, x, 1), counts)
    lengths = [
        count * stride if isinstance(count, int) else None
        for count, stride in zip(counts, window.strides, strict=True)
    ]
    start = [_lift(window, axis, y) * stride for axis, stride in enumerate(window.strides)]
    return fitted(e, dx, window, x, start, lengths)
