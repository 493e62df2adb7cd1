"""Rules of matrix products."""

from __future__ import annotations

import onnx_ir as ir

from odin_export.emit import Emitter, dims
from odin_export.rules.common import Gradients, operand, own_copy, refused


def gemm(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = alpha A' B' + beta C; dA' = alpha dy B'^T, dB' = alpha A'^T dy, dC = beta dy.

    A' is A or A^T. Where it is A^T, dA = dA'^T = alpha B' dy^T; likewise B.
    """
    a, b = operand(node, 0), operand(node, 1)
    trans_a = int(node.attributes.get_int("transA", 0))
    trans_b = int(node.attributes.get_int("transB", 0))
    alpha = node.attributes.get_float("alpha", 1.0)
    beta = node.attributes.get_float("beta", 1.0)
    grads: Gradients = [None] * len(node.inputs)
    if e.wants(a) and trans_a:
        grads[0] = e.op("Gemm", own_copy(e, b), dy, alpha=alpha, transA=trans_b, transB=1)
    elif e.wants(a):
        grads[0] = e.op("Gemm", dy, own_copy(e, b), alpha=alpha, transB=1 - trans_b)
    if e.wants(b) and trans_b:
        grads[1] = e.op("Gemm", dy, own_copy(e, a), alpha=alpha, transA=1, transB=trans_a)
    elif e.wants(b):
        grads[1] = e.op("Gemm", own_copy(e, a), dy, alpha=alpha, transA=1 - trans_a)
    if len(node.inputs) > 2 and e.wants(node.inputs[2]):
        grads[2] = dy if beta == 1.0 else e.op("Mul", dy, e.floats(beta))
    return grads


def matmul(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = A B over the last two axes; dA = dy B^T, dB = A^T dy; leading axes broadcast."""
    a, b = operand(node, 0), operand(node, 1)
    for value in (a, b):
        if len(dims(value)) < 2:
            raise refused(node, "an operand is a vector", "give both operands two axes or more")
    return [
        e.op("MatMul", dy, _swap_last(e, b)) if e.wants(a) else None,
        e.op("MatMul", _swap_last(e, a), dy) if e.wants(b) else None,
    ]


def _swap_last(e: Emitter, value: ir.Value) -> ir.Value:
    axes = list(range(len(dims(value))))
    return e.op("Transpose", own_copy(e, value), perm=[*axes[:-2], axes[-1], axes[-2]])
