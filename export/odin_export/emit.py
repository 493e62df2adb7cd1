"""Appending nodes to an ONNX graph.

Everything that adds to a graph (the gradient rules, the ODIN graph) goes through an `Emitter`: it
names values, shares equal constants and keeps the graph in topological order, because nodes are
only ever appended.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from odin_engines.errors import OdinError

Attribute = int | float | str | Sequence[int] | Sequence[float]


class Emitter:
    """Appends nodes and constants to one graph.

    Attributes:
        dtype: the floating type that the graph computes in.
        wanted: during a backward pass, the values whose gradient is needed.
    """

    def __init__(self, graph: ir.Graph, dtype: ir.DataType) -> None:
        self.graph = graph
        self.dtype = dtype
        self.wanted: frozenset[ir.Value] = frozenset()
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._names = {value.name for value in (*graph.inputs, *graph.initializers.values())}
        for node in graph:
            self._names.add(node.name)  # engines refuse two nodes of one name
            self._names.update(output.name for output in node.outputs)

    def wants(self, value: ir.Value | None) -> bool:
        """Whether a rule has to compute the gradient of this value."""
        return value in self.wanted

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        name: str | None = None,
        **attributes: Attribute,
    ) -> ir.Value:
        """Append a node and return its only output; `None` stands for a left-out input."""
        return self.first_of(op_type, 1, *inputs, name=name, **attributes)

    def first_of(
        self,
        op_type: str,
        outputs: int,
        *inputs: ir.Value | None,
        name: str | None = None,
        **attributes: Attribute,
    ) -> ir.Value:
        """Append a node of several outputs and return the first."""
        attrs = ir.convenience.convert_attributes(dict(attributes))
        node = ir.Node("", op_type, inputs, attrs, num_outputs=outputs)
        node.name = self.unique(name or op_type.lower())
        for index, output in enumerate(node.outputs):
            output.name = node.name if index == 0 else self.unique(f"{node.name}_output_{index}")
        self.graph.append(node)
        return node.outputs[0]

    def reduced(
        self, op_type: str, value: ir.Value, axes: Sequence[int], keepdims: bool = True
    ) -> ir.Value:
        """Append a reduction; its axes are an input since opset 18, ReduceSum's since 13."""
        if op_type == "ReduceSum" or self.graph.opset_imports.get("", 0) >= 18:
            return self.op(op_type, value, self.integers(axes, "axes"), keepdims=int(keepdims))
        return self.op(op_type, value, axes=list(axes), keepdims=int(keepdims))

    def constant(self, array: npt.ArrayLike, name: str = "constant") -> ir.Value:
        """Return an initializer with this array's value and type; equal ones are shared."""
        data = np.ascontiguousarray(np.asarray(array)).reshape(np.shape(array))
        key = (str(data.dtype), data.shape, data.tobytes())
        if key not in self._constants:
            tensor = ir.tensor(data, name=self.unique(name))
            value = ir.Value(
                name=tensor.name,
                shape=ir.Shape(data.shape),
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
            self.graph.register_initializer(value)
            self._constants[key] = value
        return self._constants[key]

    def floats(self, array: npt.ArrayLike, name: str = "constant") -> ir.Value:
        """Return a constant in the graph's floating type."""
        return self.constant(np.asarray(array).astype(self.dtype.numpy()), name)

    def integers(self, values: Sequence[int], name: str = "constant") -> ir.Value:
        """Return a constant int64 vector: axes, shapes, pads."""
        return self.constant(np.asarray(values, np.int64).reshape(-1), name)

    def unique(self, name: str) -> str:
        """Return `name`, or `name_2`, `name_3` ... if it is taken; the result is then taken."""
        candidate, count = name, 1
        while candidate in self._names:
            count += 1
            candidate = f"{name}_{count}"
        self._names.add(candidate)
        return candidate


def dims(value: ir.Value) -> list[int | str | None]:
    """Return a value's dimensions: a number, a symbol's name, or None where nothing is known.

    Raises:
        OdinError: the value's rank is not known, even after shape inference.
    """
    if value.shape is None:
        raise OdinError(
            f"the rank of {value.name!r} is not known; export the network with inputs of fixed rank"
        )
    return [dim if isinstance(dim, int) else dim.value for dim in value.shape]


def constant_value(value: ir.Value | None) -> np.ndarray | None:
    """Return the array behind an initializer or a Constant node, or None if there is none."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()
