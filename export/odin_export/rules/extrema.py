"""Rules of ops that choose among their inputs or add them up, element by element."""

from __future__ import annotations

import onnx_ir as ir

from odin_export.emit import Emitter, constant_value
from odin_export.rules.common import Gradients, operand, optional_operand


def clip(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = min(max(x, low), high); dx = dy where low <= x <= high, else 0.

    At either bound dx = dy, as in torch.clamp; PyTorch's hardtanh and ReLU6, which are the same op
    in ONNX, have 0 there. A bound that depends on the image gets dy where it is what y is and
    differs from x; where low > high, y = high.
    """
    x, zero = operand(node, 0), e.floats(0, "zero")
    low, high = (optional_operand(node, index) for index in (1, 2))
    below = None if low is None else e.op("Less", x, low)
    above = None if high is None else e.op("Greater", x, high)
    if above is not None and not _ordered(low, high):
        above = e.op("Or", above, e.op("Greater", low, high))
    outside = above if below is None else below
    if below is not None and above is not None:
        outside = e.op("Or", below, above)
    grads: Gradients = [dy if outside is None else e.op("Where", outside, zero, dy), None, None]
    if below is not None and e.wants(low):
        grads[1] = e.op("Where", below, dy, zero)
        if above is not None:
            grads[1] = e.op("Where", above, zero, grads[1])
    if above is not None and e.wants(high):
        grads[2] = e.op("Where", above, dy, zero)
    return grads[: len(node.inputs)]


def _ordered(low: ir.Value | None, high: ir.Value | None) -> bool:
    """Whether the lower bound is known not to exceed the upper one."""
    if low is None or high is None:
        return True
    least, most = constant_value(low), constant_value(high)
    return least is not None and most is not None and bool((least <= most).all())


def extremum(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = the largest (Max) or smallest (Min) of the inputs; each dx = dy where x = y, else 0.

    Inputs that are tied share dy equally, as in torch.maximum and, for more than two inputs, in
    torch.amax over their stack.
    """
    inputs = [x for x in node.inputs if x is not None]
    if len(inputs) == 1:
        return [dy]
    if len(inputs) == 2:
        return _larger_of_two(e, node, dy)
    y = node.outputs[0]
    chosen = [e.op("Cast", e.op("Equal", x, y), to=int(e.dtype)) for x in inputs]
    # At least one: an engine that rounds y may leave no input equal to it.
    share = e.op("Div", dy, e.op("Max", e.op("Sum", *chosen), e.floats(1, "one")))
    return [
        e.op("Mul", share, mask) if e.wants(x) else None
        for x, mask in zip(inputs, chosen, strict=True)
    ]


def _larger_of_two(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """Compares the inputs with each other, which engines that round y differently cannot upset."""
    a, b = operand(node, 0), operand(node, 1)
    wins, loses = ("Greater", "Less") if node.op_type == "Max" else ("Less", "Greater")
    zero, half, one = (e.floats(share) for share in (0, 0.5, 1))
    share = e.op("Where", e.op(loses, a, b), zero, half)
    share = e.op("Where", e.op(wins, a, b), one, share)
    da = e.op("Mul", dy, share)
    db = e.op("Sub", dy, da) if e.wants(b) else None
    return [da if e.wants(a) else None, db]


def total(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = the sum of the inputs; each dx = dy."""
    return [dy] * len(node.inputs)


def mean(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = the mean of n inputs; each dx = dy / n."""
    count = len(node.inputs)
    return [dy if count == 1 else e.op("Mul", dy, e.floats(1 / count))] * count


def where(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = a where a condition holds, else b; da = dy where it holds, else 0, db the other way."""
    condition, zero = operand(node, 0), e.floats(0, "zero")
    return [
        None,
        e.op("Where", condition, dy, zero) if e.wants(node.inputs[1]) else None,
        e.op("Where", condition, zero, dy) if e.wants(node.inputs[2]) else None,
    ]
