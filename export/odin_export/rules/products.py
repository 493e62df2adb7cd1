"""Rules of matrix products, and of triangles of matrices."""

from __future__ import annotations

import onnx_ir as ir

from odin_export.emit import Emitter, dims
from odin_export.rules.common import Gradients, operand, own_copy, summed_to


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
    """y = A B over the last two axes; dA = dy B^T, dB = A^T dy; leading axes broadcast.

    A vector counts as a matrix of one row on the left and of one column on the right.
    """
    a, b = operand(node, 0), operand(node, 1)
    row, column = len(dims(a)) == 1, len(dims(b)) == 1
    if column:
        dy = e.op("Unsqueeze", dy, e.integers([-1], "axes"))
    if row:
        dy = e.op("Unsqueeze", dy, e.integers([-2], "axes"))
    batch = dims(node.outputs[0])[: len(dims(node.outputs[0])) - 2 + row + column]
    grads: Gradients = [None, None]
    if e.wants(a):
        transposed = e.op("Unsqueeze", b, e.integers([0], "axes")) if column else _swap_last(e, b)
        da = e.op("MatMul", dy, transposed)
        grads[0] = summed_to(e, da, [*batch, *([1] if row else []), *dims(a)[-2:]], a)
    if e.wants(b):
        transposed = e.op("Unsqueeze", a, e.integers([1], "axes")) if row else _swap_last(e, a)
        db = e.op("MatMul", transposed, dy)
        if column:
            db = e.op("Squeeze", db, e.integers([-1], "axes"))
        grads[1] = summed_to(e, db, [*batch, *dims(b)[-2:]], b)
    return grads


def trilu(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = the upper (lower) triangle of each matrix, from diagonal k on; dx = that of dy."""
    upper = node.attributes.get_int("upper", 1)
    return [e.op("Trilu", dy, *node.inputs[1:], upper=upper), None][: len(node.inputs)]


def _swap_last(e: Emitter, value: ir.Value) -> ir.Value:
    axes = list(range(len(dims(value))))
    return e.op("Transpose", own_copy(e, value), perm=[*axes[:-2], axes[-1], axes[-2]])
