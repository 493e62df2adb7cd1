"""Bundles in float16 and bfloat16: the range of float16, engines, and whole networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from export import half, rtx, zoo
from odin_engines.bundle import Bundle
from odin_engines.engine import unavailable
from odin_engines.errors import OdinError
from odin_engines.spec import Precision, Spec
from odin_export import exporter
from odin_export.exporter import Options, Source, from_file
from odin_export.half_range import LARGEST, check_activations, seed_scale
from odin_export.mixed import in_mixed_precision
from odin_export.odin_graph import gradient_graph, gradient_sizes_graph, odin_graph
from odin_export.verify import directions
from odin_runtime import Scorer
from odin_runtime.images import normalised

SpecMaker = Callable[..., Spec]
each_half = pytest.mark.parametrize("precision", ["fp16", "bf16"])


@pytest.fixture(scope="module")
def images(tiny_spec: SpecMaker, raw_images: Callable[..., np.ndarray]) -> np.ndarray:
    return normalised(raw_images(16), tiny_spec())


# The seed


def scaled(model: onnx.ModelProto, weight: str, factor: float) -> onnx.ModelProto:
    """The network with one of its weights multiplied."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensor = next(each for each in copy.graph.initializer if each.name == weight)
    array = onnx.numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, weight))
    return copy


@pytest.mark.parametrize(("first", "last"), [(0.005, 0.005), (1.0, 1.0), (1.0, 300.0)])
def test_the_scale_brings_gradients_into_range(
    first: float,
    last: float,
    tiny_forward: onnx.ModelProto,
    tiny_spec: SpecMaker,
    images: np.ndarray,
) -> None:
    """Small gradients keep their signs and sizes, which they lose without the scale."""
    forward = scaled(scaled(tiny_forward, "conv1.weight", first), "fc.weight", last)
    spec = tiny_spec(temperature=1000.0)
    written = in_mixed_precision(forward, "fp16").forward
    scale = seed_scale(written, half.in_half(spec, "fp16"))
    assert np.log2(scale) == round(np.log2(scale))
    sizes = half.run(
        gradient_sizes_graph(forward, dataclasses.replace(spec, seed_scale=scale)), images
    )
    assert LARGEST / 8 < sizes["largest"].max() < 8 * LARGEST
    assert sizes["last"] in sizes["largest"]
    expected = half.run(gradient_graph(forward, spec), images)["input_gradient"]

    def agreement(seed_scale: float) -> tuple[float, float]:
        """Shares of signs, and of sizes to a hundredth of the largest, that are as in float32."""
        graph = gradient_graph(written, half.in_half(spec, "fp16", seed_scale))
        found = half.run(half.rounding(graph), images)["input_gradient"]
        near = np.abs(found - expected) <= 0.01 * np.abs(expected).max()
        return float(np.mean((found >= 0) == (expected >= 0))), float(np.mean(near))

    signs, sizes_kept = agreement(scale)
    assert signs > 0.995
    assert sizes_kept > 0.99
    if first < 1:
        assert agreement(1.0)[0] < 0.9


@pytest.mark.parametrize("tunable", [False, True])
@pytest.mark.parametrize("method", ["exact", "first-order"])
def test_the_scale_is_divided_out_of_scores(
    method: str,
    tunable: bool,
    tiny_forward: onnx.ModelProto,
    tiny_spec: SpecMaker,
    images: np.ndarray,
) -> None:
    """In float32, where a power of two changes nothing."""
    feeds = {"images": images}
    if tunable:
        feeds |= {"temperature": np.array(7, np.float32), "magnitude": np.array(0.02, np.float32)}
    expected, found = (
        half.session(
            odin_graph(tiny_forward, tiny_spec(method=method, tunable=tunable, seed_scale=scale))
        ).run(["score"], feeds)[0]
        for scale in (1.0, 4096.0)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_scale_of_a_tunable_bundle_holds_at_any_temperature(
    tiny_forward: onnx.ModelProto, tiny_spec: SpecMaker
) -> None:
    """The seed is largest at a high temperature, whatever the bundle's own is."""
    written = in_mixed_precision(tiny_forward, "fp16").forward
    scales = {
        (tunable, temperature): seed_scale(
            written, half.in_half(tiny_spec(temperature=temperature, tunable=tunable), "fp16")
        )
        for tunable in (False, True)
        for temperature in (0.1, 1000.0)
    }
    assert scales[True, 0.1] == scales[True, 1000.0] == scales[False, 1000.0]
    assert scales[False, 0.1] > scales[False, 1000.0]


def test_gradients_of_too_many_sizes_are_refused() -> None:
    shrink = "s = Mul (a, factor) b = Relu (s)"
    model = half.parsed(
        f"{half.START} {shrink} {half.END}", {"factor": np.full((1, 4, 1, 1), 1e-4)}
    )
    model = scaled(scaled(model, "w", 1e-4), "v", 1e-3)
    forward = in_mixed_precision(model, "fp16").forward
    with pytest.raises(OdinError, match=r"at the image .* float16 cannot both hold; use .* bf16"):
        seed_scale(forward, half.in_half(half.spec_of(model), "fp16"))


# Bundles and engines


@pytest.fixture(scope="module")
def bundle_in(
    tiny_forward: onnx.ModelProto, tiny_spec: SpecMaker, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Bundle]:
    """A function: precision, fields of the spec -> the tiny network's bundle."""

    def make(precision: Precision, **changes: object) -> Bundle:
        source = Source(tiny_forward, tiny_spec(precision=precision, **changes), [])
        folder = tmp_path_factory.mktemp("half") / precision
        return exporter.write(exporter.in_own_precision(source), folder)

    return make


@each_half
@pytest.mark.parametrize("method", ["exact", "first-order"])
def test_a_bundle_says_what_its_graphs_are(
    bundle_in: Callable[..., Bundle], precision: Precision, method: str
) -> None:
    bundle = bundle_in(precision, method=method)
    spec = bundle.spec
    assert (spec.precision, spec.graph_precision) == (precision, precision)
    assert spec.seed_scale > 1 if precision == "fp16" else spec.seed_scale == 1
    for name in bundle.files:
        assert half.ops_in(onnx.load(bundle.file(name)), half.DTYPES[precision])["Conv"]


@pytest.mark.parametrize(
    ("engine", "precision"), [("ort", "fp16"), ("openvino", "fp16"), ("openvino", "bf16")]
)
@pytest.mark.parametrize("input_type", ["float32", "uint8"])
def test_engines_run_what_is_written(
    engine: str,
    precision: Precision,
    input_type: str,
    bundle_in: Callable[..., Bundle],
    raw_images: Callable[..., np.ndarray],
    tiny_bundle: Bundle,
) -> None:
    if (why := unavailable(engine, precision)) is not None:
        pytest.skip(why)
    raw = raw_images(32)
    scorer = Scorer.open(bundle_in(precision, input_type=input_type), engine)
    assert scorer.precision == precision
    found, exact = scorer.score(raw), Scorer.open(tiny_bundle, "ort").score(raw)
    same = found.label == exact.label
    assert same.mean() > 0.9
    bound = {"fp16": 1e-4, "bf16": 1e-3}[precision]
    difference = np.abs(found.score - exact.score)[same].max()
    assert 0 < difference < bound


def test_a_precision_that_is_not_written(
    bundle_in: Callable[..., Bundle], tiny_bundle: Bundle
) -> None:
    written = "graphs are written in {}, which engine {} does not change; leave --precision out"
    with pytest.raises(OdinError, match=written.format("fp16", "openvino")):
        Scorer.open(bundle_in("fp16"), "openvino", precision="fp32")
    with pytest.raises(OdinError, match=written.format("fp32", "ort")):
        Scorer.open(tiny_bundle, "ort", precision="fp16")
    with pytest.raises(OdinError, match="fp32 on a CPU, not in bf16"):
        Scorer.open(bundle_in("bf16"), "ort")


@each_half
def test_further_scores(
    tiny_forward: onnx.ModelProto, tiny_spec: SpecMaker, precision: Precision, images: np.ndarray
) -> None:
    names = ("energy", "gradnorm", "cam-max", "cam-std")
    written = in_mixed_precision(tiny_forward, precision).forward
    model = odin_graph(written, half.in_half(tiny_spec(scores=names), precision))
    onnx.checker.check_model(model, full_check=True)
    found = half.run(half.rounding(model), images)
    expected = half.run(odin_graph(tiny_forward, tiny_spec(scores=names)), images)
    for name in names:
        np.testing.assert_allclose(found[name], expected[name], rtol=0.05, atol=0.05)


def test_the_gradient_of_what_is_written_is_verified(tiny_forward: onnx.ModelProto) -> None:
    written = in_mixed_precision(tiny_forward, "fp16").forward
    assert all(each.holds for each in directions(written, (2, 3, 32, 32), 2))


# Other networks, and TensorRT for RTX

WHOLE = {
    each.name: each
    for each in zoo.ARCHITECTURES
    if each.name in ("vit_tiny_patch16_224", "resnet18", "convnext_atto")
}
# Least share of the signs of the gradient, and of labels, that are as in float32.
SIGNS = {"fp16": 0.97, "bf16": 0.9}


@pytest.fixture(scope="module", params=WHOLE)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with random weights, as an .onnx file."""
    architecture = WHOLE[request.param]
    if architecture.library == "timm":
        pytest.importorskip("timm", reason="install timm: pip install '.[cpu,test]'")
    file = tmp_path_factory.mktemp("whole") / f"{architecture.name}.onnx"
    onnx.save(zoo.exported(zoo.network(architecture), architecture.size), file)
    return file


@each_half
def test_attention_and_residual_networks(whole: Path, precision: Precision) -> None:
    """Signs as in float32, finite scores from ONNX Runtime, and TensorRT for RTX builds them."""
    options = Options(mean=(0.5,), std=(0.25,))
    plain, source = (
        from_file(whole, dataclasses.replace(options, precision=each))
        for each in ("fp32", precision)
    )
    side = plain.spec.height[0]
    images = np.random.default_rng(0).standard_normal((4, 3, side, side)).astype(np.float32)
    spec = source.spec
    check_activations(source.forward, spec)
    if precision == "fp16":
        spec = dataclasses.replace(spec, seed_scale=seed_scale(source.forward, spec))
    model, gradient = odin_graph(source.forward, spec), gradient_graph(source.forward, spec)
    for graph in (source.forward, model, gradient):
        onnx.checker.check_model(graph, full_check=True)
        assert "ConvTranspose" not in half.ops_in(graph, half.DTYPES["bf16"])
    expected = half.run(gradient_graph(plain.forward, plain.spec), images)
    found = half.run(half.rounding(gradient), images)
    signs = (found["input_gradient"] >= 0) == (expected["input_gradient"] >= 0)
    assert signs.mean() > SIGNS[precision]
    if precision == "fp16":
        assert all(np.isfinite(value).all() for value in half.run(model, images).values())
    rtx.builder()
    shape = images.shape[1:]
    rtx.build(model, {"images": ((1, *shape), (2, *shape), (4, *shape))})


@each_half
@pytest.mark.parametrize("method", ["exact", "first-order"])
def test_tensorrt_builds_a_bundle(
    bundle_in: Callable[..., Bundle], precision: Precision, method: str
) -> None:
    rtx.builder()
    bundle = bundle_in(precision, method=method)
    for name in bundle.files:
        sizes = {"images": ((1, 3, 32, 32), (8, 3, 32, 32), (16, 3, 63, 63))}
        rtx.build(onnx.load(bundle.file(name)), sizes)
