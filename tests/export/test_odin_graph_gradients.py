"""Input gradients and their signs in the graphs, against PyTorch autograd."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from torch import nn

from export.graph_runners import (
    METHODS,
    RUNNERS,
    Images,
    SpecMaker,
    by_onnxruntime,
    by_reference,
    expected_outputs,
    normalised,
    softmax,
)
from odin_export.forward import forward_graph
from odin_export.odin_graph import gradient_graph, odin_graph


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
