"""odin.onnx, run by three ONNX runtimes with no code of ours, against PyTorch autograd."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from torch import nn

from odin_engines.spec import Spec
from odin_engines.torch_reference import TorchReference
from odin_export.forward import forward_graph
from odin_export.odin_graph import gradient_graph, odin_graph

SpecMaker = Callable[..., Spec]
Images = Callable[..., np.ndarray]
Outputs = dict[str, np.ndarray]
Runner = Callable[[onnx.ModelProto, Outputs], Outputs]

METHODS = ("exact", "first-order")
INPUT_TYPES = ("float32", "uint8")
# Scores are float32 values up to 1: eight roundings. The perturbation moves them by 1e-3.
SCORE_TOLERANCE = 1e-6


def by_onnxruntime(model: onnx.ModelProto, feeds: Outputs) -> Outputs:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def by_openvino(model: onnx.ModelProto, feeds: Outputs) -> Outputs:
    core = openvino.Core()
    # Without the hint, OpenVINO computes in bfloat16 where the CPU has it.
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", settings)
    values = compiled(feeds)
    return {output.get_any_name(): values[output] for output in compiled.outputs}


def by_reference(model: onnx.ModelProto, feeds: Outputs) -> Outputs:
    names = [output.name for output in model.graph.output]
    return dict(zip(names, ReferenceEvaluator(model).run(None, feeds), strict=True))


RUNNERS = {"onnxruntime": by_onnxruntime, "openvino": by_openvino, "reference": by_reference}
FAST_RUNNERS = {name: RUNNERS[name] for name in ("onnxruntime", "openvino")}


def normalised(raw: np.ndarray, spec: Spec) -> np.ndarray:
    """Written anew, in float64: (pixel / 255 - mean) / std, (N, 3, H, W)."""
    return ((raw / 255 - spec.mean) / spec.std).transpose(0, 3, 1, 2)


def images_for(spec: Spec, raw: np.ndarray) -> np.ndarray:
    """What odin.onnx takes."""
    return raw if spec.input_type == "uint8" else normalised(raw, spec).astype(np.float32)


def feeds_for(spec: Spec, raw: np.ndarray) -> Outputs:
    feeds = {"images": images_for(spec, raw)}
    if spec.tunable:
        feeds["temperature"] = np.array(spec.temperature, np.float32)
        feeds["magnitude"] = np.array(spec.magnitude, np.float32)
    return feeds


def expected_outputs(network: nn.Module, spec: Spec, raw: np.ndarray) -> Outputs:
    return TorchReference(network, spec).run({"images": normalised(raw, spec)})


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(np.float64(logits) - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def check_outputs(found: Outputs, expected: Outputs) -> None:
    """Check all four outputs.

    Where a gradient is almost zero, rounding may turn its sign; the score, by its very derivative,
    hardly changes then, so that signs are compared elsewhere.
    """
    assert set(found) == {"score", "baseline", "label", "logits"}
    np.testing.assert_array_equal(found["label"], expected["label"])
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-5, atol=1e-5)
    for name in ("baseline", "score"):
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=SCORE_TOLERANCE)


# Every form of the graph, in every runtime


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("tunable", [False, True], ids=["fixed", "tunable"])
@pytest.mark.parametrize("input_type", INPUT_TYPES)
@pytest.mark.parametrize("method", METHODS)
def test_scores_are_those_of_pytorch(
    runner: str,
    method: str,
    input_type: str,
    tunable: bool,
    tiny_forward: onnx.ModelProto,
    tiny_network: nn.Module,
    tiny_spec: SpecMaker,
    raw_images: Images,
) -> None:
    spec = tiny_spec(method=method, input_type=input_type, tunable=tunable)
    graph = odin_graph(tiny_forward, spec)
    onnx.checker.check_model(graph, full_check=True)
    raw = raw_images(2 if runner == "reference" else 5)
    expected = expected_outputs(tiny_network, spec, raw)
    unperturbed = softmax(expected["logits"] / spec.temperature).max(axis=1)
    assert np.abs(expected["score"] - unperturbed).min() > 500 * SCORE_TOLERANCE
    check_outputs(RUNNERS[runner](graph, feeds_for(spec, raw)), expected)


@pytest.mark.parametrize("runner", FAST_RUNNERS)
@pytest.mark.parametrize("method", METHODS)
def test_at_temperature_1000(
    runner: str,
    method: str,
    tiny_forward: onnx.ModelProto,
    tiny_network: nn.Module,
    tiny_spec: SpecMaker,
    raw_images: Images,
) -> None:
    """All scores are close to 1/10 then; they have to be right to the last bits of float32."""
    spec = tiny_spec(method=method, temperature=1000.0, magnitude=0.0014)
    raw = raw_images(64)
    found = RUNNERS[runner](odin_graph(tiny_forward, spec), feeds_for(spec, raw))
    expected = expected_outputs(tiny_network, spec, raw)
    unperturbed = softmax(expected["logits"] / spec.temperature).max(axis=1)
    assert np.abs(expected["score"] - unperturbed).min() > 1e-6
    np.testing.assert_allclose(found["score"], expected["score"], rtol=0, atol=4e-8)
    assert len(np.unique(found["score"])) > 60


def test_methods_differ_but_little(
    tiny_forward: onnx.ModelProto, tiny_spec: SpecMaker, raw_images: Images
) -> None:
    scores = {}
    for method in METHODS:
        spec = tiny_spec(method=method, magnitude=0.001)
        graph = odin_graph(tiny_forward, spec)
        outputs = by_onnxruntime(graph, feeds_for(spec, raw_images(5)))
        scores[method] = outputs["score"]
        effect = outputs["score"] - softmax(outputs["logits"] / spec.temperature).max(axis=1)
        assert effect.min() > 1e-4  # the perturbation raises the score
    difference = np.abs(scores["exact"] - scores["first-order"])
    assert 0 < difference.max() < 0.1 * effect.min()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("input_type", INPUT_TYPES)
def test_perturbation_left_out(
    method: str,
    input_type: str,
    tiny_forward: onnx.ModelProto,
    tiny_spec: SpecMaker,
    raw_images: Images,
) -> None:
    raw = raw_images(5)
    for tunable in (False, True):
        changes = {"method": method, "input_type": input_type, "tunable": tunable}
        spec = tiny_spec(magnitude=0.0, **changes)
        found = by_onnxruntime(odin_graph(tiny_forward, spec), feeds_for(spec, raw))
        tempered = softmax(found["logits"] / spec.temperature).max(axis=1)
        np.testing.assert_allclose(found["score"], tempered, rtol=1e-6)
        np.testing.assert_allclose(found["baseline"], softmax(found["logits"]).max(axis=1), 1e-6)
        assert np.abs(found["score"] - found["baseline"]).min() > 0.01
        spec = tiny_spec(magnitude=0.0, temperature=1.0, **changes)
        found = by_onnxruntime(odin_graph(tiny_forward, spec), feeds_for(spec, raw))
        np.testing.assert_array_equal(found["score"], found["baseline"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("default", [0.01, 0.0])
@pytest.mark.parametrize(("temperature", "magnitude"), [(1.0, 0.02), (25.0, 0.0), (1000.0, 0.05)])
def test_tuning_scores_as_values_built_in(
    method: str,
    default: float,
    temperature: float,
    magnitude: float,
    tiny_forward: onnx.ModelProto,
    tiny_spec: SpecMaker,
    raw_images: Images,
) -> None:
    raw = raw_images(4)
    built_in = tiny_spec(method=method, temperature=temperature, magnitude=magnitude)
    tunable = tiny_spec(method=method, tunable=True, magnitude=default)
    feeds = {
        **feeds_for(tunable, raw),
        "temperature": np.array(temperature, np.float32),
        "magnitude": np.array(magnitude, np.float32),
    }
    expected = by_onnxruntime(odin_graph(tiny_forward, built_in), feeds_for(built_in, raw))
    graph = odin_graph(tiny_forward, tunable)
    found = by_onnxruntime(graph, feeds)["score"]
    np.testing.assert_allclose(found, expected["score"], rtol=0, atol=2e-7)
    assert np.abs(by_onnxruntime(graph, feeds_for(tunable, raw))["score"] - found).min() > 1e-4


# What the graph is made of


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


# Batches and sizes


@pytest.mark.parametrize("runner", FAST_RUNNERS)
@pytest.mark.parametrize("input_type", INPUT_TYPES)
def test_one_graph_takes_any_batch(
    runner: str,
    input_type: str,
    tiny_forward: onnx.ModelProto,
    tiny_network: nn.Module,
    tiny_spec: SpecMaker,
    raw_images: Images,
) -> None:
    spec = tiny_spec(input_type=input_type)
    graph = odin_graph(tiny_forward, spec)
    raw = raw_images(64)
    expected = expected_outputs(tiny_network, spec, raw)
    for count in (1, 3, 64):
        found = RUNNERS[runner](graph, feeds_for(spec, raw[:count]))
        check_outputs(found, {name: values[:count] for name, values in expected.items()})


@pytest.mark.parametrize("runner", FAST_RUNNERS)
@pytest.mark.parametrize("input_type", INPUT_TYPES)
@pytest.mark.parametrize("method", METHODS)
def test_one_graph_takes_any_size(
    runner: str,
    method: str,
    input_type: str,
    tiny_forward: onnx.ModelProto,
    tiny_network: nn.Module,
    tiny_spec: SpecMaker,
    raw_images: Images,
) -> None:
    spec = tiny_spec(method=method, input_type=input_type)
    graph = odin_graph(tiny_forward, spec)
    for height, width in ((32, 32), (36, 36), (40, 33), (63, 63)):
        raw = raw_images(2, height, width)
        found = RUNNERS[runner](graph, feeds_for(spec, raw))
        check_outputs(found, expected_outputs(tiny_network, spec, raw))


@pytest.mark.parametrize("runner", FAST_RUNNERS)
def test_an_image_that_is_too_large_fails(
    runner: str, tiny_forward: onnx.ModelProto, tiny_spec: SpecMaker, raw_images: Images
) -> None:
    """Instead of giving several rows of scores an image."""
    graph = odin_graph(tiny_forward, tiny_spec())
    with pytest.raises(Exception, match=r"(?i)shape|dim|reshape"):
        RUNNERS[runner](graph, feeds_for(tiny_spec(), raw_images(2, 64, 64)))


@pytest.mark.parametrize("runner", FAST_RUNNERS)
@pytest.mark.parametrize("method", METHODS)
def test_not_a_number_stays_in_its_image(
    runner: str,
    method: str,
    tiny_forward: onnx.ModelProto,
    tiny_spec: SpecMaker,
    raw_images: Images,
) -> None:
    spec = tiny_spec(method=method)
    graph = odin_graph(tiny_forward, spec)
    feeds = feeds_for(spec, raw_images(4))
    clean = RUNNERS[runner](graph, feeds)
    feeds["images"][2, 1, 5, 7] = np.nan
    found = RUNNERS[runner](graph, feeds)
    others = [0, 1, 3]
    for name, values in clean.items():
        np.testing.assert_array_equal(found[name][others], values[others], err_msg=name)


# Gradients and their signs


@pytest.mark.parametrize("runner", RUNNERS)
def test_gradient_is_that_of_pytorch(
    runner: str,
    tiny_forward: onnx.ModelProto,
    tiny_network: nn.Module,
    tiny_spec: SpecMaker,
    raw_images: Images,
) -> None:
    spec = tiny_spec()
    raw = raw_images(2 if runner == "reference" else 16)
    graph = gradient_graph(tiny_forward, spec)
    onnx.checker.check_model(graph, full_check=True)
    images = normalised(raw, spec).astype(np.float32)
    found = RUNNERS[runner](graph, {"images": images})
    expected = expected_outputs(tiny_network, spec, raw)
    largest = np.abs(expected["input_gradient"]).max()
    np.testing.assert_allclose(
        found["input_gradient"], expected["input_gradient"], rtol=0, atol=1e-5 * largest
    )
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-5, atol=1e-5)
    agree = (found["input_gradient"] >= 0) == (expected["input_gradient"] >= 0)
    assert agree.mean() > 0.9998


def test_gradient_of_a_tunable_graph_follows_the_temperature(
    tiny_forward: onnx.ModelProto,
    tiny_network: nn.Module,
    tiny_spec: SpecMaker,
    raw_images: Images,
) -> None:
    raw = raw_images(3)
    graph = gradient_graph(tiny_forward, tiny_spec(tunable=True))
    images = normalised(raw, tiny_spec()).astype(np.float32)
    for temperature in (1.0, 1000.0):
        feeds = {"images": images, "temperature": np.array(temperature, np.float32)}
        found = by_onnxruntime(graph, feeds)["input_gradient"]
        spec = tiny_spec(temperature=temperature)
        expected = expected_outputs(tiny_network, spec, raw)["input_gradient"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_in_float64_against_float64(
    build_tiny: Callable[..., nn.Module], tiny_spec: SpecMaker, raw_images: Images
) -> None:
    """The network's own rounding gone, what remains is one rounding to float32 of each output."""
    network = build_tiny().double()
    forward = forward_graph(network, 63)
    raw = raw_images(2)
    for method in METHODS:
        spec = tiny_spec(method=method)
        feeds = {"images": normalised(raw, spec)}
        found = by_reference(odin_graph(forward, spec), feeds)
        expected = expected_outputs(network, spec, raw)
        assert expected["logits"].dtype == np.float64
        np.testing.assert_array_equal(found["logits"], expected["logits"].astype(np.float32))
        np.testing.assert_allclose(found["score"], expected["score"], rtol=2e-7)
        np.testing.assert_allclose(found["baseline"], expected["baseline"], rtol=5e-7)
    gradient = by_reference(gradient_graph(forward, tiny_spec()), feeds)["input_gradient"]
    wanted = expected["input_gradient"]
    largest = np.abs(wanted).max()
    np.testing.assert_allclose(gradient, wanted, rtol=0, atol=3e-7 * largest)
    clear = np.abs(wanted) > 1e-6 * largest
    assert clear.mean() > 0.999
    np.testing.assert_array_equal(gradient[clear] >= 0, wanted[clear] >= 0)


def test_pixels_that_the_pooling_does_not_see_have_no_gradient(
    tiny_forward: onnx.ModelProto, tiny_spec: SpecMaker, raw_images: Images
) -> None:
    """On 40x40 pixels the last map is 10x10, and 8x8 cells of it are pooled."""
    images = normalised(raw_images(2, 40, 40), tiny_spec()).astype(np.float32)
    found = by_onnxruntime(gradient_graph(tiny_forward, tiny_spec()), {"images": images})
    gradient = found["input_gradient"]
    assert (gradient[:, :, 36:, :] == 0).all()
    assert (gradient[:, :, :, 36:] == 0).all()
    assert (gradient[:, :, :32, :32] != 0).mean() > 0.99


KINK = """
<ir_version: 10, opset_import: ["" : 20]>
kink (float[N, 3, 2, 2] images) => (float[N, 4] logits)
<float[12, 4] weight, float[4] bias>
{
    negative = Neg(images)
    positive = Relu(negative)
    flat = Flatten(positive)
    logits = Gemm(flat, weight, bias)
}
"""


@pytest.mark.parametrize("runner", RUNNERS)
def test_sign_of_zero_is_plus_one(runner: str, tiny_spec: SpecMaker) -> None:
    """max(-x, 0) at x = 0: the gradient is zero, and only a step down changes the score."""
    generator = np.random.default_rng(5)
    weight, bias = generator.standard_normal((12, 4)), generator.standard_normal(4)
    forward = onnx.parser.parse_model(KINK)
    for name, values in (("weight", weight), ("bias", bias)):
        tensor = onnx.numpy_helper.from_array(values.astype(np.float32), name)
        forward.graph.initializer.append(tensor)
    spec = tiny_spec(classes=4, height=(2, 2), width=(2, 2))
    images = np.zeros((1, 3, 2, 2), np.float32)
    gradient = RUNNERS[runner](gradient_graph(forward, spec), {"images": images})
    assert (gradient["input_gradient"] == 0).all()
    found = RUNNERS[runner](odin_graph(forward, spec), {"images": images})
    step = np.repeat(spec.magnitude / np.array(spec.std), 4)
    expected = softmax((step @ weight + bias)[None] / spec.temperature).max()
    np.testing.assert_allclose(found["score"], [expected], rtol=0, atol=1e-7)
    assert abs(expected - softmax(bias[None] / spec.temperature).max()) > 1e-4


# Through files


def test_a_file_of_its_own(
    tmp_path: Path,
    tiny_forward: onnx.ModelProto,
    tiny_network: nn.Module,
    tiny_spec: SpecMaker,
    raw_images: Images,
) -> None:
    """Written and opened as any ONNX file: nothing lies beside it."""
    spec = tiny_spec(input_type="uint8")
    onnx.save(odin_graph(tiny_forward, spec), tmp_path / "odin.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["odin.onnx"]
    found = by_onnxruntime(onnx.load(tmp_path / "odin.onnx"), {"images": raw_images(3)})
    check_outputs(found, expected_outputs(tiny_network, spec, raw_images(3)))


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
