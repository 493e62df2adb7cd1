"""What odin.onnx and gradient.onnx are made of: names, types, ops and weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from torch import nn

from export.graph_runners import INPUT_TYPES, METHODS, SpecMaker
from odin_engines.spec import Spec
from odin_export.forward import forward_graph
from odin_export.odin_graph import gradient_graph, odin_graph


def tensor_types(values: Any) -> dict[str, tuple[int, list[int | str]]]:
    found = {}
    for value in values:
        tensor = value.type.tensor_type
        found[value.name] = (
            tensor.elem_type,
            [dim.dim_param or dim.dim_value for dim in tensor.shape.dim],
        )
    return found


@pytest.mark.parametrize("tunable", [False, True])
@pytest.mark.parametrize("input_type", INPUT_TYPES)
@pytest.mark.parametrize("method", METHODS)
def test_names_types_and_sizes(
    method: str, input_type: str, tunable: bool, tiny_forward: onnx.ModelProto, tiny_spec: SpecMaker
) -> None:
    spec = tiny_spec(method=method, input_type=input_type, tunable=tunable)
    graph = odin_graph(tiny_forward, spec).graph
    inputs = tensor_types(graph.input)
    if input_type == "uint8":
        assert inputs.pop("images") == (TensorProto.UINT8, ["N", "H", "W", 3])
    else:
        assert inputs.pop("images") == (TensorProto.FLOAT, ["N", 3, "H", "W"])
    scalar = (TensorProto.FLOAT, [])
    assert inputs == ({"temperature": scalar, "magnitude": scalar} if tunable else {})
    outputs = tensor_types(graph.output)
    assert list(outputs) == ["score", "baseline", "label", "logits"]
    assert outputs["score"] == outputs["baseline"] == (TensorProto.FLOAT, ["N"])
    assert outputs["label"] == (TensorProto.INT64, ["N"])
    assert outputs["logits"] == (TensorProto.FLOAT, ["N", 10])


@pytest.mark.parametrize("tunable", [False, True])
def test_names_types_and_sizes_of_the_gradient(
    tunable: bool, tiny_forward: onnx.ModelProto, tiny_spec: SpecMaker
) -> None:
    # Its images are normalised, whatever odin.onnx takes.
    graph = gradient_graph(tiny_forward, tiny_spec(tunable=tunable, input_type="uint8")).graph
    inputs = tensor_types(graph.input)
    image = (TensorProto.FLOAT, ["N", 3, "H", "W"])
    assert inputs.pop("images") == image
    assert inputs == ({"temperature": (TensorProto.FLOAT, [])} if tunable else {})
    outputs = tensor_types(graph.output)
    assert outputs == {"logits": (TensorProto.FLOAT, ["N", 10]), "input_gradient": image}


@pytest.mark.parametrize("input_type", INPUT_TYPES)
@pytest.mark.parametrize("method", METHODS)
def test_ops_are_those_of_onnx_alone(
    method: str, input_type: str, tiny_forward: onnx.ModelProto, tiny_spec: SpecMaker
) -> None:
    model = odin_graph(tiny_forward, tiny_spec(method=method, input_type=input_type))
    assert {node.domain for node in model.graph.node} == {""}
    assert {entry.domain for entry in model.opset_import} == {""}
    assert not model.functions
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert {node.op_type for node in model.graph.node} <= known


def test_the_forward_graph_given_is_not_changed(
    tiny_forward: onnx.ModelProto, tiny_spec: SpecMaker
) -> None:
    before = tiny_forward.SerializeToString(deterministic=True)
    odin_graph(tiny_forward, tiny_spec(input_type="uint8", tunable=True))
    gradient_graph(tiny_forward, tiny_spec())
    assert tiny_forward.SerializeToString(deterministic=True) == before


def test_the_same_graph_twice(tiny_forward: onnx.ModelProto, tiny_spec: SpecMaker) -> None:
    first, second = (odin_graph(tiny_forward, tiny_spec()) for _ in range(2))
    assert first.SerializeToString() == second.SerializeToString()


def test_weights_are_held_once(build_tiny: Callable[..., nn.Module], tiny_spec: SpecMaker) -> None:
    forward = forward_graph(build_tiny(width=64), 63)
    assert forward.ByteSize() > 700_000
    graphs = [odin_graph(forward, tiny_spec(method=method)) for method in METHODS]
    for graph in (*graphs, gradient_graph(forward, tiny_spec())):
        assert forward.ByteSize() < graph.ByteSize() < 1.15 * forward.ByteSize()


@pytest.mark.parametrize("make", ["double", "half"])
def test_every_softmax_is_float32_whatever_the_network(
    make: str, build_tiny: Callable[..., nn.Module], tiny_spec: SpecMaker
) -> None:
    forward = forward_graph(getattr(build_tiny(), make)(), 63)
    assert forward.graph.input[0].type.tensor_type.elem_type != TensorProto.FLOAT
    for method in METHODS:
        graph = odin_graph(forward, tiny_spec(method=method))
        onnx.checker.check_model(graph, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True).graph
        types = {name: kind for name, (kind, _) in tensor_types(inferred.value_info).items()}
        softmaxes = [node.output[0] for node in inferred.node if node.op_type == "Softmax"]
        assert len(softmaxes) == (3 if method == "exact" else 2)
        assert {types[name] for name in softmaxes} == {TensorProto.FLOAT}
        outputs = {name: kind for name, (kind, _) in tensor_types(graph.graph.output).items()}
        assert outputs["score"] == outputs["baseline"] == outputs["logits"] == TensorProto.FLOAT


def test_nodes_named_as_those_of_the_gradient(tiny_spec: Callable[..., Spec]) -> None:
    """ONNX Runtime refuses two nodes of one name."""
    forward = onnx.shape_inference.infer_shapes(
        onnx.parser.parse_model("""
            <ir_version: 10, opset_import: ["" : 20]>
            network (float[N,3,4,4] images) => (float[N,3] logits) {
                [relu] a = Relu (images)
                [mul] b = Mul (a, images)
                [where] c = GlobalAveragePool (b)
                [softmax_perturbed] d = Flatten (c)
                [log] logits = Neg (d)
            }
        """)
    )
    graph = odin_graph(forward, tiny_spec(classes=3, scores=("energy",)))
    names = [node.name for node in graph.graph.node]
    assert len(names) == len(set(names))
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    images = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    assert np.isfinite(session.run(["score"], {"images": images})[0]).all()
