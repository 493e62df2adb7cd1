"""Ops that pick and put by index as the ONNX specification says, for `evaluate`."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun


def _grid(indices: Any, axis: int, size: int) -> tuple[Any, ...]:
    """Where each of the indices points to, as one index for each axis."""
    grid = list(np.indices(indices.shape, sparse=True))
    grid[axis] = np.where(indices < 0, indices + size, indices)
    return tuple(grid)


class GatherElements(OpRun):
    """ONNX's own takes neither negative axes nor fewer indices than data along the other axes."""

    op_domain = ""

    def _run(self, x: Any, indices: Any, axis: int | None = None) -> Any:
        axis = axis or 0
        return (x[_grid(indices, axis, x.shape[axis])],)


class ScatterElements(OpRun):
    """ONNX's own goes through the elements one by one."""

    op_domain = ""

    def _run(
        self,
        x: Any,
        indices: Any,
        updates: Any,
        axis: int | None = None,
        reduction: str | None = None,
    ) -> Any:
        y, axis = x.copy(), axis or 0
        grid = _grid(indices, axis, x.shape[axis])
        ufuncs = {"add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum}
        if reduction in ufuncs:
            ufuncs[reduction].at(y, grid, updates)
        else:
            y[grid] = updates
        return (y,)


class GatherND(OpRun):
    """ONNX's own refuses an empty batch."""

    op_domain = ""

    def _run(self, x: Any, indices: Any, batch_dims: int | None = None) -> Any:
        batch = batch_dims or 0
        coordinates = np.indices(indices.shape[:-1], sparse=True)[:batch]
        return (x[(*coordinates, *np.moveaxis(indices, -1, 0))],)


class Slice(OpRun):
    """ONNX's own takes nothing where a negative step starts before the first element; the
    specification moves such a start to the first."""

    op_domain = ""

    def _run(self, x: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
        cut = [slice(None)] * x.ndim
        axes = range(len(starts)) if axes is None else axes
        steps = [1] * len(starts) if steps is None else steps
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            size = x.shape[axis]
            first = int(start) + (size if start < 0 else 0)
            if step < 0 and first < 0:
                first = 0
            cut[axis] = slice(max(first, 0), int(end), int(step))
        return (x[tuple(cut)],)


INDEXING = [Slice, GatherElements, ScatterElements, GatherND]
