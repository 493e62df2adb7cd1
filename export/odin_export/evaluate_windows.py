"""Convolutions, pools and resizing as the ONNX specification says, for `evaluate`.

With PyTorch's kernels: ONNX's own are slow, and wrong for some geometries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_resize
from torch import Tensor

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


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
            _padded(tensor(x), pads, 0),
            tensor(w),
            None if b is None else tensor(b),
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
            tensor(x),
            tensor(w),
            None if b is None else tensor(b),
            stride=strides,
            dilation=dilations,
            groups=attributes.get("group") or 1,
        )
        pads = self._pads(full.shape[2:], x.shape[2:], strides, extra, attributes)
        # Output padding may exceed the stride in ONNX; there, only the bias reaches it.
        fill = 0.0 if b is None else tensor(b).reshape(1, -1, *[1] * rank)
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


def _pool(x: Any, attributes: dict[str, Any]) -> tuple[list[int], ...]:
    """Kernel, strides, dilations, pads, and pads with what ceil_mode reaches beyond them."""
    kernel = list(attributes["kernel_shape"])
    strides = list(attributes.get("strides") or [1] * len(kernel))
    dilations = list(attributes.get("dilations") or [1] * len(kernel))
    reach, spatial = _reach(kernel, dilations), x.shape[2:]
    given = attributes.get("auto_pad"), attributes.get("pads")
    pads = _sizes_of_pads(*given, spatial, reach, strides)
    reached = _with_ceil(pads, spatial, reach, strides) if attributes.get("ceil_mode") else pads
    return kernel, strides, dilations, pads, reached


class MaxPool(OpRun):
    op_domain = ""

    def _run(self, x: Any, **attributes: Any) -> Any:
        kernel, strides, dilations, _, pads = _pool(x, attributes)
        rank, spatial = len(kernel), x.shape[2:]
        padded = _padded(tensor(x), pads, -np.inf)
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
        kernel, strides, dilations, pads, reached = _pool(x, attributes)
        rank, spatial = len(kernel), x.shape[2:]
        ones = torch.ones(1, 1, *spatial, dtype=tensor(x).dtype)
        if attributes.get("count_include_pad"):  # cells beyond the pads never count
            ones = _padded(ones, pads, 1)
            beyond = [0] * rank + [a - b for a, b in zip(reached[rank:], pads[rank:], strict=True)]
            ones = _padded(ones, beyond, 0)
        else:
            ones = _padded(ones, reached, 0)
        flat = _padded(tensor(x), reached, 0).reshape(-1, 1, *ones.shape[2:])
        weight = torch.ones(1, 1, *kernel, dtype=flat.dtype)
        total, count = (
            _CONV[rank](each, weight, stride=strides, dilation=dilations) for each in (flat, ones)
        )
        y = total / count
        return (y.reshape(*x.shape[:2], *y.shape[2:]).numpy(),)


class LpPool(OpRun):
    """ONNX's own has no ceil_mode and pads by auto_pad wrongly."""

    op_domain = ""

    def _run(self, x: Any, **attributes: Any) -> Any:
        kernel, strides, dilations, _, pads = _pool(x, attributes)
        rank, p = len(kernel), attributes.get("p") or 2
        powers = _padded(tensor(x).abs() ** p, pads, 0)
        flat = powers.reshape(-1, 1, *powers.shape[2:])
        weight = torch.ones(1, 1, *kernel, dtype=flat.dtype)
        total = _CONV[rank](flat, weight, stride=strides, dilation=dilations)
        return ((total.reshape(*x.shape[:2], *total.shape[2:]) ** (1 / p)).numpy(),)


class GlobalLpPool(OpRun):
    """ONNX has none of its own."""

    op_domain = ""

    def _run(self, x: Any, p: int | None = None) -> Any:
        total = np.sum(np.abs(x) ** (p or 2), axis=tuple(range(2, x.ndim)), keepdims=True)
        return ((total ** (1 / (p or 2))).astype(x.dtype),)


class GlobalMaxPool(OpRun):
    """ONNX's own takes two spatial axes only."""

    op_domain = ""

    def _run(self, x: Any) -> Any:
        return (np.max(x, axis=tuple(range(2, x.ndim)), keepdims=True),)


class Resize(op_resize.Resize):
    """ONNX's own refuses negative axes, and an empty batch if the op names its axes."""

    op_domain = ""

    def _run(self, X: Any, *inputs: Any, **attributes: Any) -> Any:
        axes = attributes.get("axes")
        if axes is None:
            return super()._run(X, *inputs, **attributes)
        attributes["axes"] = [axis % X.ndim for axis in axes]
        some = X if len(X) else np.zeros((1, *X.shape[1:]), X.dtype)
        (y,) = super()._run(some, *inputs, **attributes)
        return (y[: len(X)] if 0 not in attributes["axes"] else y,)


def tensor(array: Any) -> Tensor:
    """Return an array as a PyTorch tensor."""
    array = np.require(array, requirements=("C", "W"))  # constants are read-only, which warns
    return torch.from_numpy(array)


WINDOWS = [
    Conv,
    ConvTranspose,
    MaxPool,
    AveragePool,
    LpPool,
    GlobalLpPool,
    GlobalMaxPool,
    Resize,
]
