"""Gradient rules: for each ONNX op, how the gradient of its output becomes that of its inputs.

A rule is `rule(e, node, dy) -> [dx, ...]`: `e` appends nodes, `dy` is the gradient of the node's
output, and one entry is returned for each input of the node, `None` for an input that carries no
gradient or whose gradient nobody asked for (`e.wants(x)` tells). The walker in `backward`
accumulates, sums over broadcast dimensions and assigns shapes; rules do none of this.

Kinks follow PyTorch and are told in each rule. What is emitted stays within what TensorRT's parser
accepts.
"""

from __future__ import annotations

from collections.abc import Sequence

from odin_export.rules import elementwise, moves, products, reductions, windows
from odin_export.rules.common import Rule

__all__ = ["BROADCASTING", "NO_GRADIENT", "RULES", "SEVERAL_OUTPUTS", "Rule"]

RULES: dict[str, Rule] = {
    "Identity": elementwise.identity,
    "Dropout": elementwise.dropout,
    "Neg": elementwise.neg,
    "Cast": elementwise.cast,
    "Relu": elementwise.relu,
    "Add": elementwise.add,
    "Sub": elementwise.sub,
    "Mul": elementwise.mul,
    "Div": elementwise.div,
    "BatchNormalization": elementwise.batch_normalization,
    "Gemm": products.gemm,
    "MatMul": products.matmul,
    "Conv": windows.conv,
    "AveragePool": windows.average_pool,
    "GlobalAveragePool": reductions.global_average_pool,
    "ReduceMean": reductions.reduce_mean,
    "ReduceSum": reductions.reduce_sum,
    "Reshape": moves.reshape,
    "Flatten": moves.reshape,
    "Squeeze": moves.reshape,
    "Unsqueeze": moves.reshape,
    "Transpose": moves.transpose,
    "Concat": moves.concat,
}

# Ops with several outputs that carry a gradient: `dy` is a list, with None for an output that
# nothing differentiable uses.
SEVERAL_OUTPUTS: frozenset[str] = frozenset()

ALL_INPUTS: Sequence[int] = range(2**31)

# The inputs that broadcast: their gradients come out in the shape of the node's output, and the
# walker sums them over the axes along which the input was repeated.
BROADCASTING: dict[str, Sequence[int]] = {
    "Add": (0, 1),
    "Sub": (0, 1),
    "Mul": (0, 1),
    "Div": (0, 1),
    "MatMul": (0, 1),
    "Gemm": (2,),
}

# Their outputs are integers, truth values or piecewise constant: they carry no gradient.
NO_GRADIENT = frozenset(
    {
        *("Shape", "Size", "ConstantOfShape", "ArgMax", "ArgMin", "NonZero"),
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "Xor"),
        *("IsNaN", "IsInf", "Sign", "Floor", "Ceil", "Round"),
    }
)
