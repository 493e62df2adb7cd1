"""Normalizations as the ONNX specification says, for `evaluate`.

In the type of the input or in `stash_type`, whichever is wider.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper
from onnx.reference.op_run import OpRun


def _wide(x: Any, stash_type: int | None) -> Any:
    stash = helper.tensor_dtype_to_np_dtype(stash_type or 1)
    return x.astype(np.promote_types(x.dtype, stash) if x.dtype != stash else stash)


def _standardized(x: Any, axes: tuple[int, ...], epsilon: float | None) -> Any:
    centred = x - x.mean(axis=axes, keepdims=True)
    variance = np.square(centred).mean(axis=axes, keepdims=True)
    return centred / np.sqrt(variance + (1e-5 if epsilon is None else epsilon))


def _axes_from(x: Any, axis: int | None) -> tuple[int, ...]:
    return tuple(range((-1 if axis is None else axis) % x.ndim, x.ndim))


class LayerNormalization(OpRun):
    """ONNX's own takes no other stash_type than float32."""

    op_domain = ""

    def _run(
        self,
        x: Any,
        scale: Any,
        bias: Any = None,
        axis: int | None = None,
        epsilon: float | None = None,
        stash_type: int | None = None,
    ) -> Any:
        wide, axes = _wide(x, stash_type), _axes_from(x, axis)
        y = _standardized(wide, axes, epsilon).astype(x.dtype) * scale
        y = (y if bias is None else y + bias).astype(x.dtype)
        if len(self.onnx_node.output) == 1:
            return (y,)
        mean = wide.mean(axis=axes, keepdims=True)
        variance = np.square(wide - mean).mean(axis=axes, keepdims=True)
        return y, mean, 1 / np.sqrt(variance + (1e-5 if epsilon is None else epsilon))


class RMSNormalization(OpRun):
    """ONNX's own takes no other stash_type than float32."""

    op_domain = ""

    def _run(
        self,
        x: Any,
        scale: Any,
        axis: int | None = None,
        epsilon: float | None = None,
        stash_type: int | None = None,
    ) -> Any:
        wide = _wide(x, stash_type)
        square = np.square(wide).mean(axis=_axes_from(x, axis), keepdims=True)
        normalized = wide / np.sqrt(square + (1e-5 if epsilon is None else epsilon))
        return ((normalized.astype(x.dtype) * scale).astype(scale.dtype),)


class GroupNormalization(OpRun):
    """ONNX expands it, with float32 inside whatever the input."""

    op_domain = ""

    def _run(
        self,
        x: Any,
        scale: Any,
        bias: Any,
        num_groups: int = 1,
        epsilon: float | None = None,
        stash_type: int | None = None,
    ) -> Any:
        apart = (x.shape[0], num_groups, x.shape[1] // num_groups, *x.shape[2:])
        grouped = _wide(x, stash_type).reshape(apart)
        normalized = _standardized(grouped, tuple(range(2, grouped.ndim)), epsilon)
        factor, shift = (value.reshape(-1, *[1] * (x.ndim - 2)) for value in (scale, bias))
        return ((normalized.reshape(x.shape).astype(x.dtype) * factor + shift).astype(x.dtype),)


class MeanVarianceNormalization(OpRun):
    """ONNX expands it with constants in float32, and takes a difference of squares."""

    op_domain = ""

    def _run(self, x: Any, axes: Any = None) -> Any:
        reduced = (0, 2, 3) if axes is None else tuple(axes)
        centred = x - x.mean(axis=reduced, keepdims=True)
        deviation = np.sqrt(np.square(centred).mean(axis=reduced, keepdims=True))
        return ((centred / (deviation + 1e-9)).astype(x.dtype),)


class LpNormalization(OpRun):
    """ONNX's own lets elements of either sign cancel for p = 1."""

    op_domain = ""

    def _run(self, x: Any, axis: int | None = None, p: int | None = None) -> Any:
        along = -1 if axis is None else axis
        size = np.abs(x) if p == 1 else np.square(x)
        norm = size.sum(axis=along, keepdims=True)
        norm = norm if p == 1 else np.sqrt(norm)
        return ((x / np.where(norm == 0, 1, norm)).astype(x.dtype),)


class LRN(OpRun):
    """ONNX's own normalizes as many channels as there are images."""

    op_domain = ""

    def _run(
        self,
        x: Any,
        alpha: float | None = None,
        beta: float | None = None,
        bias: float | None = None,
        size: int = 1,
    ) -> Any:
        alpha, beta, bias = (
            default if value is None else value
            for value, default in ((alpha, 1e-4), (beta, 0.75), (bias, 1.0))
        )
        before, after = (size - 1) // 2, size // 2
        total = np.stack(
            [
                np.square(x[:, max(channel - before, 0) : channel + after + 1]).sum(axis=1)
                for channel in range(x.shape[1])
            ],
            axis=1,
        )
        return ((x / (bias + alpha / size * total) ** beta).astype(x.dtype),)


NORMALIZATIONS = [
    LayerNormalization,
    RMSNormalization,
    GroupNormalization,
    MeanVarianceNormalization,
    LpNormalization,
    LRN,
]
