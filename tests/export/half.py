"""Graphs in half precision: what in them is of which type, and running them on a CPU.

ONNX Runtime has hardly any float16 kernel for a CPU, and none in bfloat16. What such a graph means
is run all the same: every op in float32, and each result that the graph has in half precision
rounded to it, by a Cast there and back. Weights are rounded already.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from odin_engines.spec import Precision, Spec

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
DTYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
# They hand numbers on as they are, and those are rounded.
_EXACT = {
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Concat", "Split"),
    *("Slice", "Gather", "GatherElements", "Expand", "Tile", "Pad", "MaxPool", "Relu", "Neg"),
    *("Abs", "Max", "Min", "Where", "Trilu", "Sign", "DepthToSpace", "SpaceToDepth"),
    *("ReduceMax", "ReduceMin"),
}


def rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float32 graph that computes what `model`, in half precision, says."""
    converted = ir.from_proto(model)
    graph = converted.graph
    for value in graph.initializers.values():
        if value.dtype in HALVES:
            assert value.const_value is not None
            array = value.const_value.numpy().astype(np.float32)
            value.const_value = ir.tensor(array, name=value.name)
            value.dtype = ir.DataType.FLOAT
    for node in list(graph):
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR:
                assert attribute.as_tensor().dtype not in HALVES, f"{node.name}: {name}"
        for value in node.outputs:
            assert value.dtype is not None, f"{value.name} has no type"
            if value.dtype in HALVES:
                _round(graph, node, value)
    return ir.to_proto(converted)


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    half = value.dtype
    assert half is not None
    value.dtype = ir.DataType.FLOAT
    if node.op_type == "Cast":
        node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
    elif node.op_type in _EXACT:
        return
    uses = list(value.uses())
    last = value
    casts = []
    for dtype in (half, ir.DataType.FLOAT):
        cast = ir.Node("", "Cast", [last], [ir.AttrInt64("to", int(dtype))], num_outputs=1)
        last = cast.outputs[0]
        last.name = cast.name = f"{value.name}_through_{half.name}_to_{dtype.name}"
        last.shape, last.type = value.shape, ir.TensorType(dtype)
        casts.append(cast)
    graph.insert_after(node, casts)
    for user, index in uses:
        user.replace_input_with(index, last)


def session(model: onnx.ModelProto, threads: int = 1) -> onnxruntime.InferenceSession:
    """Open a graph in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(model: onnx.ModelProto, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return the outputs of a graph, in ONNX Runtime, by name."""
    opened = session(model)
    names = [output.name for output in opened.get_outputs()]
    return dict(zip(names, opened.run(names, {"images": images}), strict=True))


def ops_in(model: onnx.ModelProto, dtype: ir.DataType) -> Counter[str]:
    """How many nodes of each op give a result of this type."""
    return Counter(
        node.op_type
        for node in ir.from_proto(model).graph
        if any(value.dtype == dtype for value in node.outputs)
    )


# Small networks

OPSET = 22
START = "a = Conv <pads = [1, 1, 1, 1]> (x, w)"
END = """z = Conv <pads = [1, 1, 1, 1]> (b, v)
    f = Flatten (z)
    logits = MatMul (f, k)"""


def parsed(body: str, weights: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
    """A graph from x, float32 (N, 4, 8, 8), to logits (N, 3), written as ONNX text."""
    text = f"""<ir_version: 10, opset_import: ["" : {OPSET}]>
    g (float[N, 4, 8, 8] x) => (float[N, 3] logits) {{ {body} }}"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    arrays = {
        "w": rng.normal(0, 0.2, (4, 4, 3, 3)),
        "v": rng.normal(0, 0.2, (4, 4, 3, 3)),
        "k": rng.normal(0, 0.2, (4 * 8 * 8, 3)),
        "c": rng.uniform(0.5, 1.5, 4),
        **(weights or {}),
    }
    used = {name for node in model.graph.node for name in node.input}
    for name, array in arrays.items():
        if name in used:
            kind = np.int64 if np.asarray(array).dtype.kind == "i" else np.float32
            tensor = onnx.numpy_helper.from_array(np.asarray(array, kind), name)
            model.graph.initializer.append(tensor)
    onnx.checker.check_model(model, full_check=True)
    return model


def spec_of(model: onnx.ModelProto, **changes: object) -> Spec:
    fields = {
        "model": "m.onnx",
        "architecture": "m",
        "checkpoint": "m.onnx",
        "checkpoint_sha256": "0" * 64,
        "classes": 3,
        "channels": 4,
        "mean": (0.5,) * 4,
        "std": (0.25,) * 4,
        "height": (8, 8),
        "width": (8, 8),
    }
    return Spec(**{**fields, **changes})  # type: ignore[arg-type]


def in_half(spec: Spec, precision: Precision, scale: float = 1.0) -> Spec:
    return dataclasses.replace(
        spec, precision=precision, graph_precision=precision, seed_scale=scale
    )
