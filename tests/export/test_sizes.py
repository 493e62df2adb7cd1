"""Sizes: those inside a graph that inference leaves open, and those of images that it takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from export.user_models import (
    BODY,
    OfText,
    assert_is_odin,
    exported,
    raises,
    refusal,
    run_onnx,
    save,
    text_model,
)
from odin_engines.bundle import ODIN, read_bundle
from odin_engines.errors import OdinError
from odin_export.classifier import find_classifier
from odin_export.emit import dims
from odin_export.ends import Choice
from odin_export.imported import LARGEST_SIZE, read_classifier
from odin_export.prepare import prepared
from odin_runtime import Scorer

ANY = "float[N,3,H,W] x"
# Batch, height and width, which no trial of `resolve_sizes` uses.
TRIED = ((1, 8, 8), (3, 9, 14), (4, 32, 32), (2, 96, 40))


# Sizes inside

COMPUTED_SHAPE = """
    c = Conv (x, w, b)  r = Relu (c)
    s = Shape <start = 0, end = 2> (r)  rest = Constant <value_ints = [-1]> ()
    t = Concat <axis = 0> (s, rest)  q = Reshape (r, t)
    y = ReduceMean <axes = [2], keepdims = 0> (q)
"""
HALVES = """
    c = Conv (x, w, b)  r = Relu (c)
    s = Shape (r)  two = Constant <value_ints = [2]> ()  three = Constant <value_ints = [3]> ()
    h = Gather (s, two)  half = Div (h, two)  zero = Constant <value_ints = [0]> ()
    top = Slice (r, zero, half, two)  bottom = Slice (r, half, h, two)
    q = Concat <axis = 2> (bottom, top)
    p = GlobalAveragePool (q)  y = Flatten (p)
"""
GATES = """
    c = Conv (x, w, b)  r = Relu (c)
    m = ReduceMean <axes = [2]> (r)  n = ReduceMean <axes = [3]> (r)  a = Add (m, n)
    s = Shape (r)  z = Expand (a, s)  g = Mul (z, r)
    p = GlobalAveragePool (g)  y = Flatten (p)
"""
UPSAMPLED = """
    c = Conv (x, w, b)  r = Relu (c)
    small = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (r)
    s = Shape (r)
    large = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric",
                    nearest_mode = "floor"> (small, , , s)
    sum = Add (large, r)  p = GlobalAveragePool (sum)  y = Flatten (p)
"""
NETWORKS = {
    "plain": BODY,
    "computed shape": COMPUTED_SHAPE,
    "halves": HALVES,
    "gates": GATES,
    "upsampled": UPSAMPLED,
}


def maps(network: OfText, x: Tensor) -> Tensor:
    return F.relu(F.conv2d(x, network.w, network.b))


class Gates(OfText):
    def forward(self, x: Tensor) -> Tensor:
        r = maps(self, x)
        return ((r.mean(dim=2, keepdim=True) + r.mean(dim=3, keepdim=True)) * r).mean(dim=(2, 3))


TORCH = {"gates": Gates}


def shapes_of(model: onnx.ModelProto, images: np.ndarray) -> dict[str, tuple[int, ...]]:
    """The shape of every value of a model, as ONNX Runtime computes it."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    for node in watched.graph.node:
        watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.output)
    names = [value.name for value in watched.graph.output]
    arrays = run_onnx(watched, {"x": images})
    return {name: array.shape for name, array in zip(names, arrays, strict=True)}


@pytest.mark.parametrize("what", NETWORKS)
def test_what_is_said_of_a_size_is_so(what: str) -> None:
    """Numbers are right, and names stand for one size each, at sizes that were not tried."""
    ready = prepared(text_model(NETWORKS[what], ANY))
    known = {value.name: dims(value) for node in ready.graph for value in node.outputs}
    assert {"c", "r", "y"} <= set(known)
    forward = ir.to_proto(ready)
    for batch, height, width in TRIED:
        images = np.zeros((batch, 3, height, width), np.float32)
        meant = {"N": batch, "H": height, "W": width}
        for name, shape in shapes_of(forward, images).items():
            assert len(known[name]) == len(shape), name
            for said, size in zip(known[name], shape, strict=True):
                if isinstance(said, str):
                    said = meant.setdefault(said, size)
                assert said is None or said == size, (name, known[name], shape)


@pytest.mark.parametrize("what", ["gates", "upsampled"])
def test_sizes_that_are_equal_are_known_to_be(what: str) -> None:
    ready = prepared(text_model(NETWORKS[what], ANY))
    shapes = {value.name: dims(value) for node in ready.graph for value in node.outputs}
    other = "large" if what == "upsampled" else "g"
    assert shapes[other] == shapes["r"]
    assert shapes["r"][:2] == ["N", 5]


def test_known_sizes_are_left_as_they_are() -> None:
    ready = prepared(text_model())
    shapes = {value.name: dims(value) for node in ready.graph for value in node.outputs}
    assert shapes == {"c": ["N", 5, 6, 6], "r": ["N", 5, 6, 6], "p": ["N", 5, 1, 1], "y": ["N", 5]}


@pytest.mark.parametrize("what", ["plain", "computed shape", "halves", "gates"])
@pytest.mark.parametrize("inputs", [ANY, "float[None,3,None,None] x", "float[N,3,8,W] x"])
def test_scores_at_several_sizes(tmp_path: Path, what: str, inputs: str) -> None:
    """Also where a file gives all its dynamic sizes one name, as some exporters do."""
    model = text_model(NETWORKS[what], inputs)
    bundle, _ = exported(tmp_path, model, "--verify", 1)
    network = TORCH.get(what, OfText)(model)
    for size in ((8, 8), (8, 14)) if "8" in inputs else ((8, 8), (9, 14), (16, 10)):
        assert_is_odin(bundle, network, size)


# Sizes of images

FLAT = "c = Conv (x, w, b)  f = Flatten (c)  y = MatMul (f, k)"


def flat_model(height: int, width: int, inputs: str) -> onnx.ModelProto:
    """A network that takes one size of images, whatever its input says."""
    cells = 5 * (height - 2) * (width - 2)
    weight = np.random.default_rng(0).standard_normal((cells, 4)).astype(np.float32)
    return text_model(FLAT, inputs, "float[N,4] y", k=weight)


def test_fixed_sizes(tmp_path: Path) -> None:
    imported = read_classifier(save(tmp_path, flat_model(8, 12, "float[N,3,8,12] x")), Choice())
    assert (imported.height, imported.width) == ((8, 8), (12, 12))
    assert (imported.height[0], imported.width[0]) == (8, 12)


def test_the_smallest_size_is_found(tmp_path: Path) -> None:
    imported = read_classifier(save(tmp_path, text_model(inputs=ANY)), Choice())
    assert imported.height == imported.width == (4, LARGEST_SIZE)
    imported = read_classifier(save(tmp_path, text_model(inputs="float[N,3,8,W] x")), Choice())
    assert (imported.height, imported.width) == ((8, 8), (4, LARGEST_SIZE))


@pytest.mark.parametrize("size", [28, 32, 224, 299])
def test_a_network_of_one_size_that_says_it_takes_any(tmp_path: Path, size: int) -> None:
    """The sizes of MNIST, CIFAR, ImageNet and Inception."""
    file = save(tmp_path, flat_model(size, size, ANY))
    imported = read_classifier(file, Choice())
    assert imported.height == imported.width == (size, size)


def test_a_network_that_takes_no_usual_size(tmp_path: Path) -> None:
    outcome = refusal(tmp_path, flat_model(37, 37, ANY))
    assert "takes none of the image sizes" in outcome.err
    assert "height and width" in outcome.err


@pytest.mark.parametrize("written", [-1, 0])
def test_sizes_written_as_numbers_that_no_image_has(written: int) -> None:
    """Paddle and older exporters write a dynamic size as -1 or 0."""
    model = text_model(inputs=ANY)
    for axis in (0, 2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = written
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = written
    found = find_classifier(model)
    assert (found.height, found.width) == (None, None)
    images = np.random.default_rng(0).standard_normal((3, 3, 9, 14)).astype(np.float32)
    (logits,) = run_onnx(found.forward, {"images": images})
    expected = OfText(model)(torch.from_numpy(images).double()).detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


# A pooling of fixed size, then Reshape to (-1, 5): several rows an image where it is larger.
ROWS = """
    c = Conv (x, w, b)  r = Relu (c)
    p = AveragePool <kernel_shape = [6, 6], strides = [6, 6]> (r)
    minus = Constant <value_ints = [-1, 5]> ()  y = Reshape (p, minus)
"""


def test_an_image_never_has_several_scores(tmp_path: Path) -> None:
    bundle, _ = exported(tmp_path, text_model(ROWS, ANY, "float[M,5] y"))
    spec = read_bundle(bundle).spec
    assert spec.height == spec.width
    assert spec.height[0] <= 8
    assert spec.height[1] == 13
    scorer = Scorer.open(bundle, "ort")
    for size in (8, 13, 14, 20):
        images = np.zeros((2, 3, size, size), np.float32)
        if size <= 13:
            assert len(scorer.score(images)) == 2
        else:
            with pytest.raises(OdinError, match=f"{size}"):
                scorer.score(images)


def test_a_scorer_refuses_a_graph_that_gives_several_scores(tmp_path: Path) -> None:
    """Whatever the description says."""
    bundle, _ = exported(tmp_path, text_model(ROWS, ANY, "float[M,5] y"))
    opened = Scorer.open(bundle, "ort")
    spec = opened.spec
    object.__setattr__(spec, "height", (1, 1000))
    object.__setattr__(spec, "width", (1, 1000))
    with pytest.raises(OdinError, match="2 images"):
        opened.score(np.zeros((2, 3, 14, 14), np.float32))


@pytest.mark.parametrize("size", [(8, 12), (12, 8), (8, 8)])
def test_the_memory_of_an_image_is_counted(tmp_path: Path, size: tuple[int, int]) -> None:
    """At least the map of the only layer, forward and backward, in float32."""
    height, width = size
    model = flat_model(height, width, f"float[N,3,{height},{width}] x")
    bundle, _ = exported(tmp_path, model)
    spec = read_bundle(bundle).spec
    cells = 5 * (height - 2) * (width - 2)
    assert 2 * 4 * cells <= spec.activation_bytes <= 2 * 4 * 10 * cells


def test_memory_grows_with_the_image(tmp_path: Path) -> None:
    bundle, _ = exported(tmp_path, text_model(inputs=ANY))
    opened = Scorer.open(bundle, "ort", memory=10_000)
    spec = opened.spec
    assert spec.activation_bytes > 0
    counts: list[int] = []
    opened.score(np.zeros((9, 3, 4, 4), np.float32), progress=counts.append)
    small = max(counts)
    counts.clear()
    opened.score(np.zeros((9, 3, 40, 40), np.float32), progress=counts.append)
    assert max(counts) == 1 < small


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    bundle, _ = exported(tmp_path, text_model())
    with raises("(2, 3, 9, 8)", "9 pixels high", "takes 8"):
        Scorer.open(bundle, "ort").score(np.zeros((2, 3, 9, 8), np.float32))


def test_every_output_starts_with_the_batch(tmp_path: Path) -> None:
    bundle, _ = exported(tmp_path, text_model(inputs=ANY))
    for count in (0, 1, 5):
        images = np.zeros((count, 3, 9, 14), np.float32)
        assert [len(each) for each in run_onnx(bundle / ODIN, {"images": images})] == [count] * 4
