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

from odin_export.rules import (
    activations,
    convolutions,
    einsum,
    elementwise,
    extrema,
    indexing,
    moves,
    normalizations,
    pools,
    products,
    reductions,
    resize,
    slicing,
    softmax,
)
from odin_export.rules.common import Rule

__all__ = ["BROADCASTING", "NO_GRADIENT", "RULES", "SEVERAL_OUTPUTS", "Rule"]

RULES: dict[str, Rule] = {
    "Identity": elementwise.identity,
    "Dropout": elementwise.dropout,
    "Neg": elementwise.neg,
    "Cast": elementwise.cast,
    "CastLike": elementwise.cast_like,
    "Add": elementwise.add,
    "Sub": elementwise.sub,
    "Mul": elementwise.mul,
    "Div": elementwise.div,
    "BatchNormalization": elementwise.batch_normalization,
    "Relu": activations.relu,
    "LeakyRelu": activations.leaky_relu,
    "PRelu": activations.prelu,
    "Elu": activations.elu,
    "Selu": activations.selu,
    "Celu": activations.celu,
    "ThresholdedRelu": activations.thresholded_relu,
    "HardSigmoid": activations.hard_sigmoid,
    "HardSwish": activations.hard_swish,
    "Shrink": activations.shrink,
    "Abs": activations.absolute,
    "Softplus": activations.softplus,
    "Softsign": activations.softsign,
    "Sigmoid": activations.sigmoid,
    "Tanh": activations.tanh,
    "Swish": activations.swish,
    "Mish": activations.mish,
    "Gelu": activations.gelu,
    "Erf": activations.erf,
    "Exp": activations.exp,
    "Log": activations.log,
    "Sqrt": activations.sqrt,
    "Reciprocal": activations.reciprocal,
    "Pow": activations.power,
    "Sin": activations.sin,
    "Cos": activations.cos,
    "Tan": activations.tan,
    "Sinh": activations.sinh,
    "Cosh": activations.cosh,
    "Asin": activations.asin,
    "Acos": activations.acos,
    "Atan": activations.atan,
    "Asinh": activations.asinh,
    "Acosh": activations.acosh,
    "Atanh": activations.atanh,
    "Clip": extrema.clip,
    "Max": extrema.extremum,
    "Min": extrema.extremum,
    "Sum": extrema.total,
    "Mean": extrema.mean,
    "Where": extrema.where,
    "Softmax": softmax.softmax,
    "LogSoftmax": softmax.log_softmax,
    "Gemm": products.gemm,
    "MatMul": products.matmul,
    "Einsum": einsum.einsum,
    "Trilu": products.trilu,
    "LayerNormalization": normalizations.layer_normalization,
    "RMSNormalization": normalizations.rms_normalization,
    "InstanceNormalization": normalizations.instance_normalization,
    "GroupNormalization": normalizations.group_normalization,
    "MeanVarianceNormalization": normalizations.mean_variance_normalization,
    "LpNormalization": normalizations.lp_normalization,
    "LRN": normalizations.lrn,
    "Conv": convolutions.conv,
    "ConvTranspose": convolutions.conv_transpose,
    "AveragePool": pools.average_pool,
    "LpPool": pools.lp_pool,
    "GlobalLpPool": pools.global_lp_pool,
    "MaxPool": pools.max_pool,
    "GlobalMaxPool": pools.global_max_pool,
    "Resize": resize.resize,
    "DepthToSpace": resize.depth_to_space,
    "SpaceToDepth": resize.space_to_depth,
    "GlobalAveragePool": reductions.global_average_pool,
    "ReduceMean": reductions.reduce_mean,
    "ReduceSum": reductions.reduce_sum,
    "ReduceMax": reductions.reduce_extremum,
    "ReduceMin": reductions.reduce_extremum,
    "ReduceL1": reductions.reduce_l1,
    "ReduceL2": reductions.reduce_l2,
    "ReduceSumSquare": reductions.reduce_sum_square,
    "ReduceLogSum": reductions.reduce_log_sum,
    "ReduceLogSumExp": reductions.reduce_log_sum_exp,
    "ReduceProd": reductions.reduce_prod,
    "CumSum": reductions.cum_sum,
    "Reshape": moves.reshape,
    "Flatten": moves.reshape,
    "Squeeze": moves.reshape,
    "Unsqueeze": moves.reshape,
    "Transpose": moves.transpose,
    "Concat": moves.concat,
    "Expand": moves.expand,
    "Tile": moves.tile,
    "ReverseSequence": moves.reverse_sequence,
    "Slice": slicing.slice_,
    "Split": slicing.split,
    "Pad": slicing.pad,
    "Gather": indexing.gather,
    "GatherElements": indexing.gather_elements,
    "GatherND": indexing.gather_nd,
    "ScatterElements": indexing.scatter_elements,
    "ScatterND": indexing.scatter_nd,
    "TopK": indexing.top_k,
    "Compress": indexing.compress,
}

# Ops with several outputs that carry a gradient: `dy` is a list, with None for an output that
# nothing differentiable uses.
SEVERAL_OUTPUTS = frozenset({"LayerNormalization", "Split"})

ALL_INPUTS: Sequence[int] = range(2**31)

# The inputs that broadcast: their gradients come out in the shape of the node's output, and the
# walker sums them over the axes along which the input was repeated.
BROADCASTING: dict[str, Sequence[int]] = {
    "Expand": (0,),
    "Add": (0, 1),
    "Sub": (0, 1),
    "Mul": (0, 1),
    "Div": (0, 1),
    "Pow": (0, 1),
    "PRelu": (1,),
    "Clip": (1, 2),
    "Max": ALL_INPUTS,
    "Min": ALL_INPUTS,
    "Sum": ALL_INPUTS,
    "Mean": ALL_INPUTS,
    "Where": (1, 2),
    "Gemm": (2,),
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
}

# Their outputs are integers, truth values or piecewise constant: they carry no gradient.
NO_GRADIENT = frozenset(
    {
        *("Shape", "Size", "ConstantOfShape", "ArgMax", "ArgMin", "NonZero"),
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "Xor"),
        *("IsNaN", "IsInf", "Sign", "Floor", "Ceil", "Round", "Hardmax", "EyeLike"),
    }
)
