"""Why a node has no gradient, and what its author can do."""

from __future__ import annotations

import onnx_ir as ir

CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
QUANTISED = frozenset(
    {
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger"),
        *("MatMulInteger", "QLinearConv", "QLinearMatMul", "QLinearAdd", "QGemm"),
    }
)


def full_name(node: ir.Node) -> str:
    """The op with its domain, where it is not ONNX's own."""
    return node.op_type if node.domain == "" else f"{node.domain}::{node.op_type}"


def remedy(node: ir.Node) -> str:
    """What to do about a node between image and logits whose op has no rule."""
    if node.op_type in QUANTISED:
        return (
            "the model is quantised, and rounding has no gradient: give the floating-point model "
            "that it was made from"
        )
    if node.domain == "" and node.op_type in CONTROL_FLOW:
        return (
            "what it runs is decided by the image, or is too long to write out: export the model "
            "with its condition, or a small number of rounds, fixed"
        )
    if node.domain.startswith("com.microsoft"):
        return (
            "this is an op of ONNX Runtime's optimiser: export the model again without "
            "runtime-specific optimisation"
        )
    if node.domain:
        return "express it in ONNX's own ops"
    return "express it in other ops; 'odin-export MODEL.onnx --check' shows which have rules"
