"""A network that computes in float16 or bfloat16, as its graph says, from float32 to float32.

TensorRT 10 and later take the precision from the graph alone: every value has its type, and casts
stand where it changes. Images and logits stay float32. What lies between depends on the op:

    PRODUCTS     in half precision: convolutions and matrix products, where the time goes
    PLACES       in half precision: what chooses and places numbers
    ELEMENTWISE, MOVES, POOLS
                 in half precision; in float32 if all that use the result are, and ELEMENTWISE also
                 if an operand is ("the widest type wins", as in PyTorch's autocast)
    WIDE         in float32, and so is the result: sums, powers, exponentials, logarithms, which
                 leave the range of float16 (65,504) or cancel
    all others   in float32 inside, rounded once to half precision: normalisations, softmax, smooth
                 activations. So is what the ONNX version at hand does not define in the type, and
                 ConvTranspose in bfloat16, which TensorRT lacks.

In bfloat16, with its 8 bits, the first product too takes the image in float32, as two perturbed
pixels are often the same number in bfloat16, and the last one gives the logits in float32. In
float16 neither is needed, and a float32 matrix product would rule out GPUs of the Turing family,
for which TensorRT for RTX has none.

The gradient rules compute in the type of a node's output, and the gradient of a cast is a cast: a
backward pass derived from such a graph is in float32 wherever the forward pass is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from odin_engines.errors import OdinError
from odin_engines.spec import Precision
from odin_export import clean
from odin_export.emit import Emitter, constant_value

TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
# The first in which Conv, pools and Resize are defined for bfloat16.
BFLOAT16_OPSET = 22

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"})
ELEMENTWISE = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Neg", "Abs", "Sign", "Sum", "Mean", "Max", "Min", "Where"),
        *("Clip", "Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Shrink"),
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
    }
)
# One tensor in, the same numbers or averages of them out.
MOVES = frozenset(
    {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Dropout"}
)
POOLS = frozenset({"AveragePool"})
# They choose or place numbers, and change none; Resize averages them.
PLACES = frozenset(
    {
        *("Concat", "Split", "Slice", "Gather", "GatherElements", "GatherND", "ScatterElements"),
        *("ScatterND", "Expand", "Tile", "Pad", "DepthToSpace", "SpaceToDepth", "Trilu", "TopK"),
        *("ReverseSequence", "Compress", "MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin"),
        "Resize",
    }
)
WIDE = frozenset(
    {
        *("Exp", "Log", "Pow", "Sqrt", "Reciprocal", "CumSum", "GlobalAveragePool"),
        *("ReduceSum", "ReduceMean", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare"),
        *("ReduceLogSum", "ReduceLogSumExp"),
    }
)
_HALF = PRODUCTS | ELEMENTWISE | MOVES | POOLS | PLACES
_FOLLOWING = ELEMENTWISE | MOVES | POOLS
# Inputs that are float32 whatever the op computes in: region and scales.
_KEPT = {"Resize": (1, 2)}
_NUMBERLESS = frozenset({"Shape", "Size"})
_WORST_SCALAR = 2.0**-8


@dataclass(frozen=True)
class Mixed:
    """A forward graph in half precision.

    Attributes:
        forward: `images` -> `logits`, both float32.
        notes: what had to stay in float32 against the rule, one line each.
    """

    forward: onnx.ModelProto
    notes: list[str]


def in_mixed_precision(forward: onnx.ModelProto, precision: Precision) -> Mixed:
    """Write a precision into a forward graph.

    Args:
        forward: one float32 input and one float32 output. It is not changed.
        precision: "fp32" changes nothing.

    Raises:
        OdinError: the graph branches at run time, or cannot be brought to the ONNX version that
            bfloat16 needs.
    """
    if precision == "fp32":
        return Mixed(forward, [])
    half = TYPES[precision]
    model = clean.from_proto(_with_bfloat16(forward) if precision == "bf16" else forward)
    seeing = _depending(model.graph)
    notes: list[str] = []
    in_float32 = _in_float32(model.graph, seeing, half, notes)
    _retype(model.graph, seeing, in_float32, half)
    return Mixed(clean.to_proto(model), notes)


def _with_bfloat16(forward: onnx.ModelProto) -> onnx.ModelProto:
    """The model in an ONNX version that knows bfloat16."""
    opset = next(each.version for each in forward.opset_import if each.domain in ("", "ai.onnx"))
    if opset >= BFLOAT16_OPSET:
        return forward
    try:
        return onnx.version_converter.convert_version(forward, BFLOAT16_OPSET)
    except Exception as error:  # the library raises many kinds
        raise OdinError(
            f"--precision bf16 needs ONNX opset {BFLOAT16_OPSET}, to which this model of opset "
            f"{opset} cannot be converted ({error}); export it with opset {BFLOAT16_OPSET}, or use "
            "--precision fp16"
        ) from error


def _depending(graph: ir.Graph) -> list[ir.Node]:
    """The nodes that compute with the image's numbers, in order."""
    reached = {graph.inputs[0]}
    found = []
    for node in graph:
        captured = _captured(node)
        if any(value in reached for value in captured):
            raise OdinError(
                f"node {node.name!r} ({node.op_type}): what it runs is decided while the network "
                "runs, which has no half precision here; use --precision fp32"
            )
        if node.op_type in _NUMBERLESS or not any(value in reached for value in node.inputs):
            continue
        if captured:
            raise OdinError(
                f"node {node.name!r} ({node.op_type}): branches and loops have no half precision "
                "here; use --precision fp32"
            )
        found.append(node)
        reached.update(node.outputs)
    return found


def _captured(node: ir.Node) -> list[ir.Value | None]:
    return [
        value
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.GRAPH
        for inner in attribute.as_graph().all_nodes()
        for value in inner.inputs
    ]


def _in_float32(
    graph: ir.Graph, nodes: list[ir.Node], half: ir.DataType, notes: list[str]
) -> set[ir.Node]:
    """The nodes that compute in float32."""
    seeing = set(nodes)
    opset = graph.opset_imports.get("", clean.OPSET)
    wide = {node for node in nodes if not _has_half(node, half, opset)}
    if half == ir.DataType.BFLOAT16:
        wide |= _first_products(graph, nodes) | _last_product(graph, seeing)
    for node in nodes:
        if node not in wide and (why := _lost_constant(node, half)):
            notes.append(f"{node.name!r} ({node.op_type}) stays in float32: {why}")
            wide.add(node)
    changed = True
    while changed:
        changed = False
        for node in nodes:
            if node in wide or node.op_type not in _FOLLOWING:
                continue
            if _follows(node, graph.inputs[0], seeing, wide):
                wide.add(node)
                changed = True
    return wide


def _has_half(node: ir.Node, half: ir.DataType, opset: int) -> bool:
    """Whether a node is to compute in half precision, if nothing else speaks against it."""
    if node.op_type == "Cast":
        source = node.inputs[0]
        return source is not None and source.dtype in (ir.DataType.FLOAT, ir.DataType.BOOL)
    if node.domain != "" or node.op_type not in _HALF:
        return False
    if node.op_type == "ConvTranspose" and half == ir.DataType.BFLOAT16:
        return False
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    name = "tensor(float16)" if half == ir.DataType.FLOAT16 else "tensor(bfloat16)"
    return any(
        name in schema.inputs[min(index, len(schema.inputs) - 1)].types
        for index, value in enumerate(node.inputs)
        if value is not None and value.dtype == ir.DataType.FLOAT
    )


def _first_products(graph: ir.Graph, nodes: list[ir.Node]) -> set[ir.Node]:
    """The products that see the image first, and what moves its pixels before them."""
    reached = {graph.inputs[0]}
    found = set()
    for node in nodes:
        if not any(value in reached for value in node.inputs):
            continue
        if node.op_type in PRODUCTS:
            found.add(node)
        elif node.op_type in ELEMENTWISE | MOVES | PLACES | POOLS:
            found.add(node)
            reached.update(node.outputs)
    return found


def _last_product(graph: ir.Graph, seeing: set[ir.Node]) -> set[ir.Node]:
    """The product that gives the logits, if nothing but a bias and moves comes after it."""
    node = graph.outputs[0].producer()
    while node is not None and node in seeing:
        if node.op_type in PRODUCTS:
            return {node}
        sources = [v.producer() for v in node.inputs if v is not None and v.producer() in seeing]
        if len(sources) != 1 or node.op_type not in (ELEMENTWISE | MOVES):
            break
        node = sources[0]
    return set()


def _lost_constant(node: ir.Node, half: ir.DataType) -> str | None:
    """Why a constant of the node cannot be had in half precision; None if all can.

    What overflows would be infinite. A single number that vanishes, as an epsilon does, would
    change what the op does; single weights among many may.
    """
    for index, value in enumerate(node.inputs):
        array = constant_value(value)
        if array is None or array.dtype != np.float32 or index in _KEPT.get(node.op_type, ()):
            continue
        with np.errstate(over="ignore"):
            rounded = array.astype(half.numpy()).astype(np.float32)
        lost = np.isfinite(array) & ~np.isfinite(rounded)
        assert value is not None
        if lost.any():
            most = float(ml_dtypes.finfo(half.numpy()).max)
            worst = float(np.abs(array[lost]).max())
            return f"its constant {value.name!r} holds {worst:g}, more than {most:g}"
        if array.size == 1 and node.op_type in ELEMENTWISE and np.isfinite(array).all():
            error = float(np.abs(rounded - array).max())
            if error > _WORST_SCALAR * float(np.abs(array).max()):
                return f"its constant {value.name!r}, {float(array.flat[0]):g}, is too small"
    return None


def _follows(node: ir.Node, image: ir.Value, seeing: set[ir.Node], wide: set[ir.Node]) -> bool:
    """Whether what is around a node in float32 makes it compute in float32 too."""
    if _only_used_in(node, wide):
        return True
    if node.op_type not in ELEMENTWISE:
        return False
    for value in node.inputs:
        if value is None or value.dtype != ir.DataType.FLOAT:
            continue
        producer = value.producer()
        if value is image or (producer in seeing and _gives_float32(producer, wide)):
            return True
    return False


def _only_used_in(node: ir.Node, wide: set[ir.Node]) -> bool:
    """Whether all that use a node's results compute in float32; the logits are float32 too."""
    users = [
        user
        for value in node.outputs
        for user in value.consumers()
        if user.op_type not in _NUMBERLESS
    ]
    is_output = any(value.is_graph_output() for value in node.outputs)
    return (is_output or bool(users)) and all(user in wide for user in users)


def _gives_float32(node: ir.Node | None, wide: set[ir.Node]) -> bool:
    """Whether a node's result is not rounded to half precision."""
    if node is None or node not in wide:
        return False
    return node.op_type in WIDE | _FOLLOWING | {"Cast"} or _only_used_in(node, wide)


def _retype(
    graph: ir.Graph, nodes: Iterable[ir.Node], in_float32: set[ir.Node], half: ir.DataType
) -> None:
    """Give every value its type, and cast where a node takes another."""
    casts = _Casts(Emitter(graph, half), {})
    # Who rounds is decided while the uses are those of the network.
    rounds = {node for node in in_float32 if not _gives_float32(node, in_float32)}
    for node in list(nodes):
        own = ir.DataType.FLOAT if node in in_float32 else half
        _cast_inputs(node, own, half, casts)
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT:
                value.dtype = own
                if node in rounds:
                    users = [use for use in value.uses() if use.node.op_type not in _NUMBERLESS]
                    rounded = casts.of(value, half)
                    for user, index in users:
                        user.replace_input_with(index, rounded)
    output = graph.outputs[0]
    if output.dtype != ir.DataType.FLOAT:
        logits = casts.of(output, ir.DataType.FLOAT)
        graph.outputs[0] = logits
        name, output.name = output.name, casts.e.unique(f"{output.name}_in_half_precision")
        logits.name = name


def _cast_inputs(node: ir.Node, own: ir.DataType, half: ir.DataType, casts: _Casts) -> None:
    if node.op_type == "Cast":  # it takes any type; what it makes may be half
        if node.attributes.get_int("to", 0) == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", int(own))
        return
    for index, value in enumerate(node.inputs):
        if value is None or value.dtype not in (ir.DataType.FLOAT, half):
            continue
        if value.dtype != own and index not in _KEPT.get(node.op_type, ()):
            node.replace_input_with(index, casts.of(value, own))


@dataclass(frozen=True)
class _Casts:
    """Values in other types; one Cast, or one converted constant, serves all users of a value."""

    e: Emitter
    made: dict[tuple[ir.Value, ir.DataType], ir.Value]

    def of(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return a value in another type."""
        if (value, dtype) not in self.made:
            array = constant_value(value)
            name = f"{value.name}_in_{dtype.name.lower()}"
            if array is not None:
                made = self.e.constant(array.astype(dtype.numpy()), name)
            else:
                made = self._cast(value, dtype, self.e.unique(name))
            self.made[value, dtype] = made
        return self.made[value, dtype]

    def _cast(self, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(dtype))], num_outputs=1)
        node.name = name
        made = node.outputs[0]
        made.name, made.shape, made.type = name, value.shape, ir.TensorType(dtype)
        producer = value.producer()
        if producer is None:
            self.e.graph.insert_before(self.e.graph[0], node)
        else:
            self.e.graph.insert_after(producer, node)
        return made
