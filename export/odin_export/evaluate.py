"""Running a graph as the ONNX specification says, in the precision it is written in.

ONNX's own reference evaluator, with PyTorch's kernels for convolutions, pools and a few functions
that it computes element by element in Python, or wrongly. It takes float64, which no engine does,
and is what the claims of the gradient rules are checked with. Of these, the rule of Resize alone
uses ONNX's evaluator too.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from odin_export.evaluate_indexing import INDEXING
from odin_export.evaluate_normalizations import NORMALIZATIONS
from odin_export.evaluate_windows import WINDOWS, tensor


def evaluator(model: onnx.ModelProto) -> ReferenceEvaluator:
    """Return what runs `model`: `evaluator(model).run(names or None, {name: array})`."""
    return ReferenceEvaluator(model, new_ops=_OPS)


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
        return (torch.erf(tensor(x)).numpy(),)


class Gelu(OpRun):
    op_domain = ""

    def _run(self, x: Any, approximate: str | None = None) -> Any:
        return (F.gelu(tensor(x), approximate=approximate or "none").numpy(),)


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


class BatchNormalization(OpRun):
    """ONNX's own mixes the batch's statistics in until opset 13; this one is for inference only."""

    op_domain = ""

    def _run(self, x: Any, *parameters: Any, **attributes: Any) -> Any:
        if attributes.get("training_mode") or len(self.onnx_node.output) > 1:
            raise NotImplementedError("BatchNormalization in training mode")
        columns = (-1, *[1] * (x.ndim - 2))
        scale, bias, mean, variance = (each.reshape(columns) for each in parameters)
        epsilon = attributes.get("epsilon")
        deviation = np.sqrt(variance + (1e-5 if epsilon is None else epsilon))
        return ((scale * (x - mean) / deviation + bias).astype(x.dtype),)


class Mean(OpRun):
    """ONNX's own does not broadcast its first input."""

    op_domain = ""

    def _run(self, *inputs: Any) -> Any:
        count = np.asarray(len(inputs), inputs[0].dtype)
        return (np.asarray(sum(inputs[1:], inputs[0]) / count, inputs[0].dtype),)


class LogSoftmax(OpRun):
    """ONNX's own takes the logarithm of a probability that may have become 0."""

    op_domain = ""

    def _run(self, x: Any, axis: int = -1) -> Any:
        return (torch.log_softmax(tensor(x), axis).numpy(),)


_OPS = [
    *NORMALIZATIONS,
    *INDEXING,
    *WINDOWS,
    GlobalAveragePool,
    Flatten,
    Pad,
    Erf,
    Gelu,
    Mean,
    LogSoftmax,
    BatchNormalization,
]
