"""Rules of ops that change the resolution of an image."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper
from onnx.reference import ReferenceEvaluator

from odin_export.emit import Emitter, constant_value, dims
from odin_export.rules.common import Gradients, operand, optional_operand, refused

REMEDY = "export the network for images of a fixed size, or upsample by integer factors, nearest"


def resize(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x interpolated along some axes, each by a matrix: y = R x; dx = R^T dy, axis by axis.

    Nearest upsampling by integers repeats each element; there dx = the sum of its copies' dy.
    """
    x = operand(node, 0)
    if node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        raise refused(node, "it crops by a region of interest", "crop with Slice")
    repeats = [1] * len(dims(x))
    for axis in _resized_axes(node):
        factor = _repeats(node, axis)
        if factor is not None and axis >= 2 and len(repeats) <= 5:
            repeats[axis] = factor
        else:
            dy = _along(e, dy, _matrix(node, axis), axis, len(repeats))
    if max(repeats) > 1:
        mean = e.op("AveragePool", dy, kernel_shape=repeats[2:], strides=repeats[2:])
        dy = e.op("Mul", mean, e.floats(math.prod(repeats), "copies"))
    if any(_assumed(node, axis) for axis in range(len(repeats))):
        dy = e.op("Reshape", dy, e.op("Shape", x))
    return [dy, None, None, None][: len(node.inputs)]


def depth_to_space(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x with blocks of channels moved into blocks of cells; dx = dy moved back.

    SpaceToDepth undoes mode DCR; mode CRD has its channels in another order.
    """
    size = node.attributes.get_int("blocksize", 1)
    dx = e.op("SpaceToDepth", dy, blocksize=size)
    if node.attributes.get_string("mode", "DCR") == "DCR":
        return [dx]
    channels = dims(operand(node, 0))[1]
    if not isinstance(channels, int):
        raise refused(node, "its number of channels is not fixed", "export with fixed channels")
    order = np.arange(channels).reshape(size * size, -1).T.reshape(-1)
    return [e.op("Gather", dx, e.integers([int(place) for place in order], "order"), axis=1)]


def space_to_depth(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x with blocks of cells moved into blocks of channels; dx = dy moved back."""
    size = node.attributes.get_int("blocksize", 1)
    return [e.op("DepthToSpace", dy, blocksize=size, mode="DCR")]


def _axes(node: ir.Node) -> list[int]:
    """The axes that the scales or sizes of the node are those of."""
    rank = len(dims(operand(node, 0)))
    axes = node.attributes.get_ints("axes", []) or range(rank)
    return [axis % rank for axis in axes]


def _constant(node: ir.Node, index: int) -> np.ndarray | None:
    """A constant input, None where it is left out (or empty) or computed at run time."""
    array = constant_value(optional_operand(node, index))
    return array if array is not None and array.size else None


def _scale(node: ir.Node, axis: int) -> float | None:
    """The constant scale given for an axis."""
    scales = _constant(node, 2)
    return None if scales is None else float(scales[_axes(node).index(axis)])


def _same(node: ir.Node, axis: int) -> bool:
    """Whether an axis is left as it is. A scale such as 1.2 may keep its size and yet move it."""
    scale = _scale(node, axis)
    if scale is not None:
        return scale == 1
    before, after = (dims(value)[axis] for value in (operand(node, 0), node.outputs[0]))
    same = before is not None and before == after
    return same and (axis not in _axes(node) or _limit(node) is None)


def _assumed(node: ir.Node, axis: int) -> bool:
    """Whether inference did not find the size of a batch or channel axis after the resizing.

    Nobody resizes those; that they are as before is checked at run time.
    """
    return (
        axis < 2
        and axis in _axes(node)
        and dims(node.outputs[0])[axis] is None
        and (not _same(node, axis))
    )


def _resized_axes(node: ir.Node) -> list[int]:
    return [axis for axis in _axes(node) if not _same(node, axis) and not _assumed(node, axis)]


def _repeats(node: ir.Node, axis: int) -> int | None:
    """How often the axis, of any size, repeats each element; None where it does something else."""
    before, after = (dims(value)[axis] for value in (operand(node, 0), node.outputs[0]))
    scale = _scale(node, axis)
    if scale is None and _limit(node) is not None:
        return None  # the policy's scale is not the ratio of the sizes
    if scale is None and isinstance(before, int) and isinstance(after, int):
        scale = after / before
    if node.attributes.get_string("mode", "nearest") != "nearest" or scale is None:
        return None
    if scale != int(scale) or scale < 1:
        return None
    if not isinstance(before, int):
        if node.attributes.get_string("coordinate_transformation_mode", "") == "align_corners":
            return None
        before = 7  # any: the cell that an output cell reads does not depend on the size
    scales = np.array([1, scale], np.float32)
    matrix = _interpolated(node, np.eye(before), scales=scales)
    repeated = np.repeat(np.eye(before), int(scale), axis=1)
    return int(scale) if np.array_equal(matrix, repeated) else None


def _matrix(node: ir.Node, axis: int) -> np.ndarray:
    """The matrix (size before, size after) that interpolates one axis: an identity, resized."""
    before, after = (dims(value)[axis] for value in (operand(node, 0), node.outputs[0]))
    if not isinstance(before, int) or not isinstance(after, int):
        raise refused(node, f"the size of its axis {axis} is not fixed", REMEDY)
    identity = np.eye(before)
    if (scale := _scale(node, axis)) is not None:
        _refuse_parts_of_cells(node, before * scale)
        matrix = _interpolated(node, identity, scales=np.array([1, scale], np.float32))
    elif (limit := _limit(node)) is not None:
        wide = np.repeat(identity[..., None], limit.denominator, axis=2)
        sizes = _constant(node, 3)
        assert sizes is not None
        own = int(sizes[_axes(node).index(axis)])
        wanted = np.array([own, limit.numerator])
        policy = node.attributes.get_string("keep_aspect_ratio_policy", "stretch")
        matrix = _interpolated(
            node, wide, sizes=wanted, axes=[1, 2], keep_aspect_ratio_policy=policy
        )[..., 0]
    else:
        matrix = _interpolated(node, identity, sizes=np.array([before, after]))
    if matrix.shape != (before, after):
        why = f"its axis {axis} has {after} cells rather than {matrix.shape[1]}"
        raise refused(node, why, "run shape inference on the model")
    return matrix


def _refuse_parts_of_cells(node: ir.Node, size: float) -> None:
    """ONNX aligns corners by the size before rounding, engines by the one after it."""
    mode = node.attributes.get_string("coordinate_transformation_mode", "")
    if mode == "align_corners" and abs(size - round(size)) > 1e-4:
        why = f"align_corners with scales that lead to {size:.2f} cells means several things"
        raise refused(node, why, "give sizes in place of scales")


def _limit(node: ir.Node) -> Fraction | None:
    """The scale that keep_aspect_ratio_policy takes for all axes; None with policy stretch."""
    policy = node.attributes.get_string("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return None
    sizes, before = _constant(node, 3), [dims(operand(node, 0))[axis] for axis in _axes(node)]
    if sizes is None or not all(isinstance(size, int) for size in before):
        raise refused(node, "its sizes are not fixed, which its policy needs", REMEDY)
    ratios = [Fraction(int(size), int(own or 1)) for size, own in zip(sizes, before, strict=True)]
    return min(ratios) if policy == "not_larger" else max(ratios)


def _interpolated(
    node: ir.Node,
    x: np.ndarray,
    scales: np.ndarray | None = None,
    sizes: np.ndarray | None = None,
    **attributes: Any,
) -> np.ndarray:
    """Resize as this node does, as ONNX defines it, in float64."""
    kept = ("mode", "nearest_mode", "coordinate_transformation_mode", "cubic_coeff_a")
    for name in (*kept, "exclude_outside", "antialias"):
        if name in node.attributes:
            value = node.attributes[name].value
            attributes[name] = value.decode() if isinstance(value, bytes) else value
    given = {"x": x} | {
        name: array for name, array in (("scales", scales), ("sizes", sizes)) if array is not None
    }
    inputs = ["x", "", *(name if name in given else "" for name in ("scales", "sizes"))]
    while not inputs[-1]:
        inputs.pop()
    graph = helper.make_graph(
        [helper.make_node("Resize", inputs, ["y"], **attributes)],
        "resize",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in given.items()
        ],
        [helper.make_tensor_value_info("y", onnx.TensorProto.DOUBLE, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (y,) = ReferenceEvaluator(model).run(None, given)
    return np.asarray(y)


def _along(e: Emitter, dy: ir.Value, matrix: np.ndarray, axis: int, rank: int) -> ir.Value:
    """Multiply one axis of dy by a matrix (size before, size after) from the left."""
    if rank >= 2 and axis == rank - 2:
        return e.op("MatMul", e.floats(matrix, "interpolation"), dy)
    weight = e.floats(matrix.T, "interpolation")
    if axis == rank - 1:
        return e.op("MatMul", dy, weight)
    swap = list(range(rank))
    swap[axis], swap[-1] = swap[-1], swap[axis]
    product = e.op("MatMul", e.op("Transpose", dy, perm=swap), weight)
    return e.op("Transpose", product, perm=swap)
