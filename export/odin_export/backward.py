"""The backward pass as a graph: a reverse walk over the nodes between input and output.

Each node's rule (`rules.RULES`) turns the gradient of its outputs into that of its inputs. The walk
alone accumulates gradients, sums them over broadcast axes and gives them their shapes.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from odin_engines.errors import OdinError
from odin_export import clean
from odin_export.emit import Emitter, dims
from odin_export.obstacles import full_name, remedy
from odin_export.precision import FLOATS
from odin_export.prepare import prepared
from odin_export.rules import BROADCASTING, NO_GRADIENT, RULES, SEVERAL_OUTPUTS, Rule
from odin_export.rules.common import refused, summed_to


def input_gradient(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model` extended by the gradient of its output with respect to its input.

    Args:
        model: one floating-point input x and one floating-point output y; static rank; the batch
            and any other size may be dynamic. It is not changed.

    Returns:
        The same model with one more input, `seed` (shape and type of y), and one more output,
        `input_gradient` (shape and type of x): the vector-Jacobian product
        input_gradient = sum_j seed_j dy_j / dx. Images of a batch do not mix unless the network
        mixes them.

    Raises:
        OdinError: the model has several inputs or outputs, an op on the path from input to output
            has no gradient rule, or there is no differentiable path at all.
    """
    extended = prepared(model)
    graph = extended.graph
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        names = [value.name for value in (*graph.inputs, *graph.outputs)]
        raise OdinError(
            f"the model has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs "
            f"({', '.join(map(str, names))}); a gradient needs exactly one of each"
        )
    image, output = graph.inputs[0], graph.outputs[0]
    for value in (image, output):
        if value.name in ("seed", "input_gradient"):
            raise OdinError(f"the model already uses the name {value.name!r}; rename that value")
        if value.dtype not in FLOATS:
            raise OdinError(f"{value.name!r} is not of a floating-point type; it has no gradient")
    clean.make_room(graph, "seed")
    seed = ir.Value(name="seed", shape=output.shape, type=output.type)
    graph.inputs.append(seed)
    assert image.dtype is not None
    gradient = append_backward(Emitter(graph, image.dtype), image, output, seed)
    graph.outputs.append(clean.named_output(graph, gradient, "input_gradient"))
    return clean.to_proto(extended)


def append_backward(
    emitter: Emitter, image: ir.Value, output: ir.Value, seed: ir.Value
) -> ir.Value:
    """Append the backward pass to the emitter's graph and return the gradient of `image`.

    Args:
        emitter: of the graph that holds `image`, `output` and `seed`.
        image: with respect to what the gradient is taken.
        output: the value whose gradient is `seed`.
        seed: the gradient to start from, in the shape and type of `output`.

    Raises:
        OdinError: as `input_gradient`.
    """
    path = nodes_between(emitter.graph, image, output)
    rules = [_rule_of(node) for node in path]
    emitter.wanted = frozenset(
        [image, *(value for node in path for value in node.outputs if _may_be_float(value))]
    )
    gradients: dict[ir.Value, ir.Value] = {output: seed}
    dtype_of_image = emitter.dtype
    for node, rule in zip(reversed(path), reversed(rules), strict=True):
        dys = [gradients.get(value) for value in node.outputs]
        if all(dy is None for dy in dys):
            continue
        emitter.dtype = node.outputs[0].dtype or dtype_of_image
        dxs = _apply_rule(rule, emitter, node, dys)
        for index, (x, dx) in enumerate(zip(node.inputs, dxs, strict=True)):
            if x is None or dx is None or not emitter.wants(x):
                continue
            if index in BROADCASTING.get(node.op_type, ()):
                dx = summed_to(emitter, dx, dims(node.outputs[0]), x)
            _accumulate(emitter, gradients, x, dx)
    emitter.dtype = dtype_of_image
    if image not in gradients:
        raise _no_path(emitter.graph, image, output)
    return gradients[image]


def _no_path(graph: ir.Graph, image: ir.Value, output: ir.Value) -> OdinError:
    """The error for an output that no gradient connects with the input; names who cut the path."""
    reached = {image}
    cutting = []
    for node in graph:
        if any(value in reached for value in node.inputs):
            carries = any(_may_be_float(value) for value in node.outputs)
            if node.op_type in NO_GRADIENT or not carries:
                cutting.append(f"{node.name!r} ({node.op_type})")
            reached.update(node.outputs)
    why = f": {', '.join(cutting[:3])} carries no gradient" if cutting else ""
    return OdinError(
        f"output {output.name!r} does not depend on input {image.name!r} in a differentiable "
        f"way{why}; choose another input or output"
    )


def nodes_between(graph: ir.Graph, image: ir.Value, output: ir.Value) -> list[ir.Node]:
    """The nodes on differentiable paths from `image` to `output`, in topological order."""
    reached = {image}
    forward = []
    for node in graph:
        if node.op_type in NO_GRADIENT and node.domain == "":
            continue
        if any(value in reached for value in node.inputs) or _captures(node, reached):
            forward.append(node)
            reached.update(value for value in node.outputs if _may_be_float(value))
    needed = {output}
    path = []
    for node in reversed(forward):
        if any(value in needed and value in reached for value in node.outputs):
            path.append(node)
            needed.update(value for value in node.inputs if value is not None)
    return path[::-1]


def _may_be_float(value: ir.Value) -> bool:
    """Whether a value may carry a gradient; one whose type inference did not find may well."""
    return value.dtype is None or value.dtype in FLOATS


def _captures(node: ir.Node, reached: set[ir.Value]) -> bool:
    """Whether a subgraph of the node (If, Loop, Scan) uses one of these values."""
    subgraphs = [
        attribute.as_graph()
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.GRAPH
    ]
    return any(
        value in reached
        for graph in subgraphs
        for inner in graph.all_nodes()
        for value in inner.inputs
    )


def _rule_of(node: ir.Node) -> Rule:
    rule = RULES.get(node.op_type) if node.domain == "" else None
    if rule is None:
        raise OdinError(
            f"node {node.name!r} has no gradient rule for its op, {full_name(node)}: {remedy(node)}"
        )
    return rule


def _apply_rule(
    rule: Rule, emitter: Emitter, node: ir.Node, dys: list[ir.Value | None]
) -> list[ir.Value | None]:
    several = node.op_type in SEVERAL_OUTPUTS
    if not several and any(dy is not None for dy in dys[1:]):
        raise OdinError(
            f"node {node.name!r} ({node.op_type}): the logits depend on its second output, which "
            "has no gradient; export the network in evaluation mode"
        )
    dxs = rule(emitter, node, dys if several else dys[0])
    assert len(dxs) == len(node.inputs), f"rule of {node.op_type}: one gradient for each input"
    for index, (x, dx) in enumerate(zip(node.inputs, dxs, strict=True)):
        if dx is None and emitter.wants(x):
            why = f"its input {index} depends on the image, which its rule does not allow"
            raise refused(node, why, "make that input a constant")
    return dxs


def _accumulate(
    emitter: Emitter, gradients: dict[ir.Value, ir.Value], x: ir.Value, dx: ir.Value
) -> None:
    """Add dx to what x has so far; the sum over all uses of x is its gradient."""
    if x in gradients:
        dx = emitter.op("Add", gradients[x], dx, name=f"gradient_of_{x.name}")
    if dx.shape is None:  # made by the rule, rather than handed through
        dx.shape, dx.type = x.shape, x.type
    gradients[x] = dx
