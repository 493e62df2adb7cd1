"""Running a graph as the ONNX specification says, in the precision it is written in.

ONNX's own reference evaluator, with PyTorch's kernels for convolutions, pools and a few functions
that it computes element by element in Python, or wrongly. It takes float64, which no engine does,
and shares nothing with the gradient rules: it is what their claims are checked with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import Tensor

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def evaluator(model: onnx.ModelProto) -> ReferenceEvaluator:
    """Return what runs `model`: `evaluator(model).run(names or None, {name: array})`."""
    return ReferenceEvaluator(model, new_ops=_OPS)


def _sizes_of_pads(
    auto_pad: str | None,
    pads: Sequence[int] | None,
    spatial: Sequence[int],
    reach: Sequence[int],
    strides: Sequence[int],
) -> list[int]:
    """Pads as ONNX orders them; `reach` is how far a window reaches beyond its first cell."""
    rank = len(spatial)
    if auto_pad in (None, "", "NOTSET"):
        return list(pads or [0] * (2 * rank))
    if auto_pad == "VALID":
        return [0] * (2 * rank)
    total = [
        max((-(-size // stride) - 1) * stride + far + 1 - size, 0)
        for size, far, stride in zip(spatial, reach, strides, strict=True)
    ]
    less, more = [t // 2 for t in total], [t - t // 2 for t in total]
    return less + more if auto_pad == "SAME_UPPER" else more + less


def _padded(x: Tensor, pads: Sequence[int], value: float) -> Tensor:
    """Pad the spatial axes; a negative pad crops."""
    if not any(pads):
        return x
    rank = len(pads) // 2
    pairs = [(pads[axis], pads[axis + rank]) for axis in reversed(range(rank))]
    return F.pad(x, [each for pair in pairs for each in pair], value=value)


def _reach(kernel: Sequence[int], dilations: Sequence[int]) -> list[int]:
    return [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]


class Conv(OpRun):
    op_domain = ""

    def _run(self, x: Any, w: Any, b: Any = None, **attributes: Any) -> Any:
        rank = x.ndim - 2
        strides = attributes.get("strides") or [1] * rank
        dilations = attributes.get("dilations") or [1] * rank
        group = attributes.get("group") or 1
        reach = _reach(w.shape[2:], dilations)
        pads = _sizes_of_pads(
            attributes.get("auto_pad"), attributes.get("pads"), x.shape[2:], reach, strides
        )
        y = _CONV[rank](
            _padded(_tensor(x), pads, 0),
            _tensor(w),
            None if b is None else _tensor(b),
            stride=strides,
            dilation=dilations,
            groups=group,
        )
        return (y.numpy(),)


class ConvTranspose(OpRun):
    """ONNX's own is wrong for several channels a group."""

    op_domain = ""

    def _run(self, x: Any, w: Any, b: Any = None, **attributes: Any) -> Any:
        rank = x.ndim - 2
        strides = attributes.get("strides") or [1] * rank
        dilations = attributes.get("dilations") or [1] * rank
        extra = list(attributes.get("output_padding") or [0] * rank)
        full = _CONV_TRANSPOSE[rank](
            _tensor(x),
            _tensor(w),
            None if b is None else _tensor(b),
            stride=strides,
            dilation=dilations,
            groups=attributes.get("group") or 1,
        )
        pads = self._pads(full.shape[2:], x.shape[2:], strides, extra, attributes)
        # Output padding may exceed the stride in ONNX; there, only the bias reaches it.
        fill = 0.0 if b is None else _tensor(b).reshape(1, -1, *[1] * rank)
        extended = _padded(full - fill, [0] * rank + extra, 0) + fill
        return (_padded(extended, [-pad for pad in pads], 0).numpy(),)

    @staticmethod
    def _pads(
        full: Sequence[int],
        spatial: Sequence[int],
        strides: Sequence[int],
        extra: Sequence[int],
        attributes: dict[str, Any],
    ) -> list[int]:
        rank = len(full)
        auto_pad = attributes.get("auto_pad") or "NOTSET"
        wanted = attributes.get("output_shape")
        if wanted is None and auto_pad.startswith("SAME"):
            wanted = [size * stride for size, stride in zip(spatial, strides, strict=True)]
        if wanted is None:
            return list(attributes.get("pads") or [0] * (2 * rank))
        total = [
            f + more - size for f, more, size in zip(full, extra, list(wanted)[-rank:], strict=True)
        ]
        less, more_ = [t // 2 for t in total], [t - t // 2 for t in total]
        return less + more_ if auto_pad == "SAME_UPPER" else more_ + less


class MaxPool(OpRun):
    op_domain = ""

    def _run(self, x: Any, **attributes: Any) -> Any:
        kernel = list(attributes["kernel_shape"])
        rank = len(kernel)
        strides = list(attributes.get("strides") or [1] * rank)
        dilations = list(attributes.get("dilations") or [1] * rank)
        reach = _reach(kernel, dilations)
        spatial = x.shape[2:]
        pads = _sizes_of_pads(
            attributes.get("auto_pad"), attributes.get("pads"), spatial, reach, strides
        )
        if attributes.get("ceil_mode"):
            pads = _with_ceil(pads, spatial, reach, strides)
        padded = _padded(_tensor(x), pads, -np.inf)
        y, index = _MAX_POOL[rank](padded, kernel, strides, dilation=dilations, return_indices=True)
        if len(self.onnx_node.output) < 2:
            return (y.numpy(),)
        place = np.unravel_index(index.numpy(), padded.shape[2:])
        own = [where - before for where, before in zip(place, pads, strict=False)]
        if attributes.get("storage_order"):
            flat = np.ravel_multi_index(own[::-1], spatial[::-1])
        else:
            flat = np.ravel_multi_index(own, spatial)
        first = np.arange(x.shape[0] * x.shape[1]).reshape(x.shape[:2] + (1,) * rank)
        return y.numpy(), flat + first * int(np.prod(spatial))


def _with_ceil(
    pads: list[int], spatial: Sequence[int], reach: Sequence[int], strides: Sequence[int]
) -> list[int]:
    """Pads with as much at the end as ceil_mode needs; a window starts within image and pads."""
    rank = len(spatial)
    ends = []
    for size, before, after, far, stride in zip(
        spatial, pads[:rank], pads[rank:], reach, strides, strict=True
    ):
        count = -(-(size + before + after - far - 1) // stride) + 1
        if (count - 1) * stride >= size + before:
            count -= 1
        ends.append(max((count - 1) * stride + far + 1 - size - before, after))
    return pads[:rank] + ends


class AveragePool(OpRun):
    op_domain = ""

    def _run(self, x: Any, **attributes: Any) -> Any:
        kernel = list(attributes["kernel_shape"])
        rank = len(kernel)
        strides = list(attributes.get("strides") or [1] * rank)
        dilations = list(attributes.get("dilations") or [1] * rank)
        reach = _reach(kernel, dilations)
        spatial = x.shape[2:]
        pads = _sizes_of_pads(
            attributes.get("auto_pad"), attributes.get("pads"), spatial, reach, strides
        )
        reached = _with_ceil(pads, spatial, reach, strides) if attributes.get("ceil_mode") else pads
        ones = torch.ones(1, 1, *spatial, dtype=_tensor(x).dtype)
        if attributes.get("count_include_pad"):  # cells beyond the pads never count
            ones = _padded(ones, pads, 1)
            beyond = [0] * rank + [a - b for a, b in zip(reached[rank:], pads[rank:], strict=True)]
            ones = _padded(ones, beyond, 0)
        else:
            ones = _padded(ones, reached, 0)
        flat = _padded(_tensor(x), reached, 0).reshape(-1, 1, *ones.shape[2:])
        weight = torch.ones(1, 1, *kernel, dtype=flat.dtype)
        total, count = (
            _CONV[rank](each, weight, stride=strides, dilation=dilations) for each in (flat, ones)
        )
        y = total / count
        return (y.reshape(*x.shape[:2], *y.shape[2:]).numpy(),)


class Pad(OpRun):
    """ONNX's own refuses negative pads."""

    op_domain = ""

    def _run(
        self, x: Any, pads: Any, value: Any = None, axes: Any = None, mode: str | None = None
    ) -> Any:
        rank = x.ndim
        chosen = list(range(rank)) if axes is None else [int(axis) % rank for axis in axes]
        before, after = np.zeros(rank, int), np.zeros(rank, int)
        before[chosen], after[chosen] = np.split(np.asarray(pads, int), 2)
        kept = tuple(
            slice(max(-b, 0), size + min(a, 0))
            for b, a, size in zip(before, after, x.shape, strict=True)
        )
        widths = [(max(b, 0), max(a, 0)) for b, a in zip(before, after, strict=True)]
        if mode in (None, "", "constant"):
            fill = 0 if value is None else np.asarray(value).item()
            return (np.pad(x[kept], widths, constant_values=fill),)
        how: Any = mode  # "reflect", "edge" and "wrap" are numpy's names too
        return (np.pad(x[kept], widths, mode=how),)


class Erf(OpRun):
    op_domain = ""

    def _run(self, x: Any) -> Any:
        return (torch.erf(_tensor(x)).numpy(),)


class Gelu(OpRun):
    op_domain = ""

    def _run(self, x: Any, approximate: str | None = None) -> Any:
        return (F.gelu(_tensor(x), approximate=approximate or "none").numpy(),)


class GlobalAveragePool(OpRun):
    """ONNX's own refuses an empty batch."""

    op_domain = ""

    def _run(self, x: Any) -> Any:
        return (np.asarray(x).mean(axis=tuple(range(2, x.ndim)), keepdims=True),)


class Flatten(OpRun):
    """ONNX's own refuses an empty batch."""

    op_domain = ""

    def _run(self, x: Any, axis: int = 1) -> Any:
        cut = axis + x.ndim if axis < 0 else axis
        return (np.reshape(x, (math.prod(x.shape[:cut]), math.prod(x.shape[cut:]))),)


def _tensor(array: Any) -> Tensor:
    array = np.require(array, requirements=("C", "W"))  # constants are read-only, which warns
    return torch.from_numpy(array)


_OPS = [Conv, ConvTranspose, MaxPool, AveragePool, GlobalAveragePool, Flatten, Pad, Erf, Gelu]
