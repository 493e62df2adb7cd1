"""Loop and Scan with a known number of rounds, written out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from odin_export.emit import constant_value, dims

# Loops of classifiers have a few rounds; many more would make a graph that no engine likes.
MOST_ROUNDS = 64


def unroll(graph: ir.Graph) -> None:
    """Replace, in place, every Loop and Scan whose number of rounds is known by its rounds."""
    for node in list(graph):
        if node.domain != "" or node.op_type not in ("Loop", "Scan"):
            continue
        rounds = _rounds_of_loop(node) if node.op_type == "Loop" else _rounds_of_scan(node)
        if rounds is not None and rounds <= MOST_ROUNDS:
            _Writer(graph, node, rounds).write()


def _rounds_of_loop(node: ir.Node) -> int | None:
    """How often a Loop runs: its trip count, where no condition ends it before."""
    count, condition = (constant_value(value) for value in node.inputs[:2])
    body = _body(node)
    if count is None or (node.inputs[1] is not None and condition is None):
        return None
    if condition is not None and not bool(condition):
        return None
    goes_on = _beyond_identity(body.outputs[0])
    if goes_on is not body.inputs[1] and not bool(constant_value(goes_on)):
        return None
    rounds = int(count)
    return rounds if rounds > 0 else None


def _rounds_of_scan(node: ir.Node) -> int | None:
    """How often a Scan runs: the length of what it scans, forwards and along the first axis."""
    names = ("scan_input_axes", "scan_input_directions", "scan_output_axes")
    for name in (*names, "scan_output_directions"):
        if any(node.attributes.get_ints(name, [])):
            return None
    scanned = node.inputs[len(node.inputs) - node.attributes.get_int("num_scan_inputs") :]
    if not scanned or scanned[0] is None or scanned[0].shape is None:
        return None
    length = dims(scanned[0])[0]
    return length if isinstance(length, int) and length > 0 else None


def _body(node: ir.Node) -> ir.Graph:
    return node.attributes["body"].as_graph()


def _beyond_identity(value: ir.Value) -> ir.Value:
    node = value.producer()
    while node is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


class _Writer:
    """Writes the rounds of one node into the graph, before the node, and takes the node out."""

    def __init__(self, graph: ir.Graph, node: ir.Node, rounds: int) -> None:
        self.graph, self.node, self.rounds = graph, node, rounds
        self.body = _body(node)
        for name, value in list(self.body.initializers.items()):
            self.body.initializers.pop(name)
            value.name = f"{node.name}_{name}"
            graph.register_initializer(value)

    def write(self) -> None:
        """Write all rounds."""
        is_loop = self.node.op_type == "Loop"
        scanned = 0 if is_loop else self.node.attributes.get_int("num_scan_inputs")
        inputs = list(self.node.inputs[2:] if is_loop else self.node.inputs)
        states, sequences = inputs[: len(inputs) - scanned], inputs[len(inputs) - scanned :]
        collected: list[list[ir.Value]] = [[] for _ in self.node.outputs[len(states) :]]
        for index in range(self.rounds):
            number = self._constant(np.array(index, np.int64), f"round_{index}")
            given: list[ir.Value | None] = [*states]
            if is_loop:
                given = [number, self._constant(np.array(True), f"true_{index}"), *states]
            given += [self._op("Gather", [x, number], axis=0) for x in sequences]
            results = self._round(given)[1 if is_loop else 0 :]
            states = list(results[: len(states)])
            for part, value in zip(collected, results[len(states) :], strict=True):
                part.append(value)
        stacked = [self._stacked(values) for values in collected]
        for old, new in zip(self.node.outputs, [*states, *stacked], strict=True):
            assert new is not None
            self._replace(old, new)
        self.graph.remove(self.node, safe=True)

    def _round(self, given: Sequence[ir.Value | None]) -> list[ir.Value]:
        """Copy the body's nodes with these values for its inputs; return its outputs."""
        known: dict[ir.Value | None, ir.Value | None] = dict(
            zip(self.body.inputs, given, strict=True)
        )
        for node in self.body:
            copy = ir.Node(
                node.domain,
                node.op_type,
                [known.get(value, value) for value in node.inputs],
                list(node.attributes.values()),
                num_outputs=len(node.outputs),
            )
            for old, new in zip(node.outputs, copy.outputs, strict=True):
                if old.type is not None:
                    new.shape, new.type = old.shape, old.type
                known[old] = new
            self.graph.insert_before(self.node, copy)
        results = [known.get(value, value) for value in self.body.outputs]
        return [value for value in results if value is not None]

    def _stacked(self, values: list[ir.Value]) -> ir.Value:
        """One value after the other along a new first axis."""
        axis = self._constant(np.array([0], np.int64), "axis")
        return self._op("Concat", [self._op("Unsqueeze", [each, axis]) for each in values], axis=0)

    def _op(self, op_type: str, inputs: Sequence[ir.Value | None], **attributes: int) -> ir.Value:
        attrs = ir.convenience.convert_attributes(dict(attributes))
        node = ir.Node("", op_type, inputs, attrs, num_outputs=1)
        self.graph.insert_before(self.node, node)
        return node.outputs[0]

    def _constant(self, array: np.ndarray, name: str) -> ir.Value:
        tensor = ir.tensor(array, name=f"{self.node.name}_{name}")
        if tensor.name not in self.graph.initializers:
            value = ir.Value(
                name=tensor.name,
                shape=ir.Shape(array.shape),
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
            self.graph.register_initializer(value)
        return self.graph.initializers[str(tensor.name)]

    def _replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let an Identity give what the node gave, under its name."""
        node = ir.Node("", "Identity", [new], num_outputs=1)
        self.graph.insert_before(self.node, node)
        result = node.outputs[0]
        result.shape, result.type, result.name = old.shape, old.type, old.name
        old.name = f"{old.name}_before"
        old.replace_all_uses_with(result, replace_graph_outputs=True)
