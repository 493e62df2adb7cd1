"""Rule of Einsum: sums of products over named indices."""

from __future__ import annotations

import string
from collections.abc import Sequence

import onnx_ir as ir

from odin_export.emit import Emitter, dims
from odin_export.rules.common import Gradients, operand, own_copy, refused, sizes_of

ELLIPSIS = "..."


def einsum(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = sum of products of the operands over the indices that y lacks; the gradient of an operand
    is the same of dy and the other operands, over the indices that this operand lacks.

    Along an index that occurs in this operand alone it is the same everywhere. An index along which
    an operand has size 1 and is repeated does not count as an index of that operand.
    """
    operands, output = indices(node)
    for index, letters in enumerate(operands):
        if len(set(letters)) < len(letters):
            raise refused(
                node,
                f"an index occurs twice in its operand {index}",
                "multiply by an identity matrix and sum instead of taking the diagonal",
            )
    repeated = _repeated(node, operands)
    factors = [
        (_without(e, node, index, letters, repeated[index]), _left(letters, repeated[index]))
        for index, letters in enumerate(operands)
    ]
    grads: Gradients = [None] * len(operands)
    for index, letters in enumerate(operands):
        if not e.wants(operand(node, index)):
            continue
        others = [(dy, output), *(factors[:index] + factors[index + 1 :])]
        kept = _left(letters, repeated[index])
        kept = "".join(letter for letter in kept if any(letter in has for _, has in others))
        dx = _restored(e, node, index, letters, kept, _product(e, others, kept))
        sure = _is_sure(node, operands, index)
        grads[index] = dx if sure else e.op("Reshape", dx, e.op("Shape", node.inputs[index]))
    return grads


def indices(node: ir.Node) -> tuple[list[str], str]:
    """The indices of each operand and of the output, one letter each, with ellipses spelled out."""
    equation = "".join(node.attributes.get_string("equation", "").split())
    left, arrow, output = equation.partition("->")
    operands = left.split(",")
    spare = [letter for letter in string.ascii_letters if letter not in equation]
    covered = [
        len(dims(operand(node, index))) - len(letters.replace(ELLIPSIS, ""))
        for index, letters in enumerate(operands)
    ]
    ellipsis = "".join(spare[: max(covered)])
    if not arrow:
        once = sorted(letter for letter in set(left) - set(".,") if left.count(letter) == 1)
        output = ellipsis + "".join(once)
    spelled = [letters.replace(ELLIPSIS, ellipsis) for letters in operands]
    return spelled, output.replace(ELLIPSIS, ellipsis)


def _sizes(node: ir.Node, operands: Sequence[str], letter: str) -> list[int | str | None]:
    """The sizes of the operands along an index, of those that have it."""
    return [
        dims(operand(node, index))[letters.index(letter)]
        for index, letters in enumerate(operands)
        if letter in letters
    ]


def _repeated(node: ir.Node, operands: Sequence[str]) -> list[str]:
    """For each operand, the indices along which it has size 1 and another has not."""
    return [
        "".join(
            letter
            for letter, size in zip(letters, dims(operand(node, index)), strict=True)
            if size == 1 and set(_sizes(node, operands, letter)) != {1}
        )
        for index, letters in enumerate(operands)
    ]


def _is_sure(node: ir.Node, operands: Sequence[str], index: int) -> bool:
    """Whether shape inference knows how each index of an operand compares with its other uses."""
    for letter in operands[index]:
        sizes = _sizes(node, operands, letter)
        if len(sizes) > 1 and (None in sizes or len(set(sizes) - {1}) > 1):
            return False
    return True


def _left(letters: str, dropped: str) -> str:
    return "".join(letter for letter in letters if letter not in dropped)


def _without(e: Emitter, node: ir.Node, index: int, letters: str, dropped: str) -> ir.Value:
    """An operand without some axes of size 1."""
    value = own_copy(e, operand(node, index))
    if not dropped:
        return value
    return e.op("Squeeze", value, e.integers([letters.index(each) for each in dropped], "axes"))


def _product(e: Emitter, factors: Sequence[tuple[ir.Value, str]], kept: str) -> ir.Value:
    """The sum of products over the indices that are not kept."""
    if len(factors) == 1 and factors[0][1] == kept:
        return factors[0][0]
    used = dict.fromkeys("".join(letters for _, letters in factors))
    short = dict(zip(used, string.ascii_lowercase, strict=False))  # TensorRT takes no others
    left = ",".join("".join(short[each] for each in letters) for _, letters in factors)
    equation = f"{left}->{''.join(short[each] for each in kept)}"
    return e.op("Einsum", *(value for value, _ in factors), equation=equation)


def _restored(
    e: Emitter, node: ir.Node, index: int, letters: str, kept: str, dx: ir.Value
) -> ir.Value:
    """The gradient of an operand from that over some of its indices: repeated along the others."""
    missing = [axis for axis, letter in enumerate(letters) if letter not in kept]
    if not missing:
        return dx
    x = operand(node, index)
    dx = e.op("Unsqueeze", dx, e.integers(missing, "axes"))
    if all(dims(x)[axis] == 1 for axis in missing):
        return dx
    return e.op("Expand", dx, sizes_of(e, x))
