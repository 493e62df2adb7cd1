"""Rewrites of finished graphs: fewer nodes, the same results."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from odin_engines.spec import Spec
from odin_engines.torch_reference import TorchReference
from odin_export.forward import forward_graph
from odin_export.odin_graph import gradient_graph
from odin_export.rewrites import average_first, fold_scales, masks_in_one_op

RESULT = "float[N,3,4,4] y"
# d -> W' d -> mask -> s: what the rules make of BatchNormalization, Relu, Conv.
CHAIN = """
    w = Transpose <perm = [1, 0, 2, 3]> (stored)
    c = Conv (d, w)
    positive = Greater (x, zero)
    mask = Cast <to = 1> (positive)
    m = Mul (c, mask)
    t = Mul (m, s)
    y = Neg (t)
"""
# The weight is that of this batch alone.
COMPUTED = CHAIN.replace("(stored)", "(v)").replace(
    " w =", " q = ReduceSum <keepdims = 0> (d)\n v = Mul (stored, q)\n w =", 1
)


def model(nodes: str, scale: tuple[int, ...] = (3, 1, 1), outputs: str = RESULT) -> onnx.ModelProto:
    text = f"""
        <ir_version: 10, opset_import: ["" : 20]>
        graph (float[N,2,4,4] d, float[N,3,4,4] x) => ({outputs}) {{ {nodes} }}"""
    made = onnx.parser.parse_model(text)
    numbers = np.random.default_rng(0)
    for name, values in (
        ("stored", numbers.standard_normal((2, 3, 1, 1))),
        ("bias", numbers.standard_normal(3)),
        ("s", numbers.standard_normal(scale)),
        ("zero", np.zeros(())),
        ("cube", np.zeros((1, 1, 1))),
        ("scales", np.float32([1, 1, 2, 2])),
        ("half", np.full((), 0.5)),
    ):
        if re.search(rf"\b{name}\b", nodes):
            tensor = onnx.numpy_helper.from_array(values.astype(np.float32), name)
            made.graph.initializer.append(tensor)
    if "axes" in nodes:
        axes = onnx.numpy_helper.from_array(np.int64([1, 2]), "axes")
        made.graph.initializer.append(axes)
    return onnx.shape_inference.infer_shapes(made)


def results(made: onnx.ModelProto) -> list[np.ndarray]:
    numbers = np.random.default_rng(1)
    feeds = {
        "d": numbers.standard_normal((2, 2, 4, 4)).astype(np.float32),
        "x": numbers.standard_normal((2, 3, 4, 4)).astype(np.float32),
    }
    return ReferenceEvaluator(made).run(None, feeds)


def folded(
    made: onnx.ModelProto, rewrite: Callable[[ir.Graph], int] = fold_scales
) -> tuple[int, onnx.ModelProto]:
    converted = ir.from_proto(made)
    count = rewrite(converted.graph)
    changed = ir.to_proto(converted)
    onnx.checker.check_model(changed, full_check=True)
    return count, changed


@pytest.mark.parametrize("turned", [CHAIN, CHAIN.replace("(c, mask)", "(mask, c)")])
def test_a_scale_behind_a_mask_goes_into_the_weight(turned: str) -> None:
    made = model(turned)
    count, changed = folded(made)
    assert count == 1
    users = [node for node in changed.graph.node if "s" in node.input]
    assert not users
    by_image = [node.op_type for node in changed.graph.node]
    assert by_image.count("Mul") == 2  # of the weight, and of the mask
    for found, expected in zip(results(changed), results(made), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("why", "made"),
    [
        ("the result is used elsewhere", model(CHAIN, outputs=f"{RESULT}, float[N,3,4,4] c")),
        ("the scaled result is an output", model(CHAIN, outputs=f"{RESULT}, float[N,3,4,4] t")),
        ("the masked result is", model(CHAIN, outputs=f"{RESULT}, float[N,3,4,4] m")),
        ("a bias would have to be scaled", model(CHAIN.replace("(d, w)", "(d, w, bias)"))),
        ("it is not by channel", model(CHAIN, scale=(1, 4, 4))),
        ("it is one number for all", model(CHAIN, scale=())),
        ("the weight depends on an input", model(COMPUTED)),
    ],
)
def test_what_is_left_alone(why: str, made: onnx.ModelProto) -> None:
    count, changed = folded(made)
    assert count == 0, why
    for found, expected in zip(results(changed), results(made), strict=True):
        np.testing.assert_array_equal(found, expected)


MASK = """
    positive = Greater (x, zero)
    mask = Cast <to = 1> (positive)
    y = Mul (x, mask)
"""


FLAT = """
    flat = ReduceSum <keepdims = 0> (x, axes)
    positive = Greater (flat, cube)
    mask = Cast <to = 1> (positive)
    y = Neg (mask)
"""


@pytest.mark.parametrize("kept", [False, True], ids=["alone", "the comparison is an output"])
def test_masks_in_one_op(kept: bool) -> None:
    outputs = f"{RESULT}, bool[N,3,4,4] positive" if kept else RESULT
    made = model(MASK, outputs=outputs)
    count, changed = folded(made, masks_in_one_op)
    assert count == 1
    ops = [node.op_type for node in changed.graph.node]
    assert sorted(ops) == sorted(["HardSigmoid", "Mul", *(["Greater"] if kept else [])])
    for found, expected in zip(results(changed), results(made), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("why", "made"),
    [
        ("the mask is an output", model(MASK, outputs=f"{RESULT}, float[N,3,4,4] mask")),
        ("it is compared with other than 0", model(MASK.replace("zero", "half"))),
        ("0 is greater", model(MASK.replace("(x, zero)", "(zero, x)"))),
        ("0 brings an axis", model(FLAT, outputs="float[1,2,4] y")),
        ("it is another comparison", model(MASK.replace("Greater", "GreaterOrEqual"))),
    ],
)
def test_masks_that_are_left_alone(why: str, made: onnx.ModelProto) -> None:
    count, changed = folded(made, masks_in_one_op)
    assert count == 0, why
    for found, expected in zip(results(changed), results(made), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_mask_by_onnx_runtime_is_exact() -> None:
    """It is the engine's HardSigmoid that counts; infinities and the least numbers too."""
    made = model(MASK.replace("y = Mul (x, mask)", "y = Neg (mask)"))
    _, changed = folded(made, masks_in_one_op)
    tiny, largest = np.finfo(np.float32).tiny, np.finfo(np.float32).max
    special = [0.0, -0.0, tiny, -tiny, 1e-30, -1e-30, 1.0, -1.0, largest, -largest, np.inf, -np.inf]
    x = np.resize(np.float32(special), (2, 3, 4, 4))
    session = onnxruntime.InferenceSession(
        changed.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"d": np.zeros((2, 2, 4, 4), np.float32), "x": x})
    np.testing.assert_array_equal(found, -(x > 0).astype(np.float32))


POOLED = """
    w = Transpose <perm = [1, 0, 2, 3]> (stored)
    c = Conv (d, w, bias)
    p = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (c)
    y = Neg (p)
"""
SMALL = "float[N,3,2,2] y"
OVERLAPPING = POOLED.replace("kernel_shape = [2, 2]", "kernel_shape = [3, 3]")


@pytest.mark.parametrize(
    ("nodes", "result"),
    [
        (POOLED, SMALL),
        (POOLED.replace("(d, w, bias)", "(d, w)"), SMALL),
        (POOLED.replace("strides =", 'auto_pad = "VALID", strides ='), SMALL),
        (OVERLAPPING, "float[N,3,1,1] y"),
    ],
    ids=["bias", "no bias", "auto_pad", "windows that overlap"],
)
def test_average_first(nodes: str, result: str) -> None:
    made = model(nodes, outputs=result)
    count, changed = folded(made, average_first)
    assert count == 1
    ops = [node.op_type for node in changed.graph.node]
    assert ops.index("AveragePool") < ops.index("Conv")
    for found, expected in zip(results(changed), results(made), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


PADDED = POOLED.replace("strides =", "pads = [1, 1, 1, 1], count_include_pad = 1, strides =")


@pytest.mark.parametrize(
    ("why", "nodes", "result"),
    [
        ("what is averaged is used elsewhere", POOLED, f"{SMALL}, float[N,3,4,4] c"),
        ("the mean is an output", POOLED, f"{SMALL}, float[N,3,2,2] p"),
        ("zeros around the image have no bias", PADDED, "float[N,3,3,3] y"),
        ("so do windows beyond the image", OVERLAPPING.replace("str", "ceil_mode = 1, str"), SMALL),
        ("as many pixels are left", POOLED.replace("[2, 2]>", "[1, 1]>"), "float[N,3,3,3] y"),
        ("what it makes are the features", POOLED.replace("Neg", "Flatten"), "float[N,12] y"),
        (
            "so behind ops that hand them on",
            POOLED.replace("y = Neg (p)", "i = Identity (p)\no = Dropout (i)\ny = Flatten (o)"),
            "float[N,12] y",
        ),
        ("it is not a mean", POOLED.replace("AveragePool", "MaxPool"), SMALL),
        (
            "the convolution has a stride",
            POOLED.replace("Conv", "Conv <strides = [2, 2]>"),
            "float[N,3,1,1] y",
        ),
        (
            "the convolution goes beyond the image",
            POOLED.replace("Conv", "Conv <pads = [1, 1, 1, 1]>"),
            "float[N,3,3,3] y",
        ),
    ],
)
def test_pools_that_stay_behind(why: str, nodes: str, result: str) -> None:
    made = model(nodes, outputs=result)
    count, changed = folded(made, average_first)
    assert count == 0, why
    for found, expected in zip(results(changed), results(made), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_pool_stays_behind_a_convolution_of_several_pixels() -> None:
    wide = """
        w = Resize <mode = "nearest"> (stored, , scales)
        c = Conv (x, w)
        p = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (c)
        y = Neg (p)
    """
    made = model(wide, outputs="float[N,2,1,1] y")
    assert folded(made, average_first)[0] == 0


class PreActivation(nn.Module):
    """Batch norm, ReLU, convolution: of kernel 1, of kernel 3, in groups, and with stride 2."""

    def __init__(self) -> None:
        super().__init__()
        made = [
            nn.Conv2d(3, 4, 3, padding=1),
            nn.Conv2d(4, 6, 1),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.Conv2d(6, 8, 3, padding=1, groups=2),
            nn.Conv2d(8, 8, 3, stride=2, padding=1),
        ]
        layers: list[nn.Module] = [made[0]]
        for before, after in itertools.pairwise(made):
            # Without Tanh between, batch norm would be folded into the convolution before it.
            layers += [nn.Tanh(), nn.BatchNorm2d(before.out_channels), nn.ReLU(), after]
        self.layers = nn.Sequential(*layers)
        self.classify = nn.Linear(8, 5)
        for layer in layers:
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.weight, 0.5, 2)
                nn.init.uniform_(layer.running_var, 0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(self.layers(x).mean((2, 3)))


def test_networks_that_normalise_first_are_folded(tiny_spec: Callable[..., Spec]) -> None:
    """Behind the first three; a convolution of stride 2 is differentiated by ConvTranspose."""
    torch.manual_seed(0)
    network = PreActivation().eval()
    spec = tiny_spec(classes=5, height=(32, 40), width=(32, 40))
    gradient = gradient_graph(forward_graph(network, 40), spec)
    scaled = [n for n in gradient.graph.node if any("_scale" in name for name in n.input)]
    assert len(scaled) == 3
    images = torch.randn(3, 3, 36, 36)
    expected = TorchReference(network, spec).run({"images": images.numpy()})["input_gradient"]
    found = ReferenceEvaluator(gradient).run(["input_gradient"], {"images": images.numpy()})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6 * np.abs(expected).max())
