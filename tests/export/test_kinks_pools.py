"""Ties and kinks of pools, against PyTorch's autograd."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper

from export.rule_cases import Case, build, random_for
from odin_export.backward import input_gradient
from odin_export.evaluate import evaluator

MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
GLOBAL_MAX_POOL = {
    1: F.adaptive_max_pool1d,
    2: F.adaptive_max_pool2d,
    3: F.adaptive_max_pool3d,
}


def gradient(text: str, x: np.ndarray, seed: np.ndarray, dynamic: bool = False) -> np.ndarray:
    """The gradient of a model of one node, on ONNX's reference evaluator."""
    sizes = [f"D{axis}" if dynamic and axis > 1 else size for axis, size in enumerate(x.shape)]
    model = input_gradient(build(Case("", "", ("N", *sizes[1:]), text, opset=22)))
    (found,) = evaluator(model).run(["input_gradient"], {"x": x, "seed": seed})
    return found


def few_values(label: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of which most windows hold several that are the largest."""
    return random_for(label).integers(-1, 2, shape).astype(np.float64)


# Kernel, stride, pads, dilation, ceil_mode.
GEOMETRIES = [
    ([3, 3], [2, 2], [1, 1], [1, 1], False),
    ([2, 2], [2, 2], [0, 0], [1, 1], False),
    ([2, 2], [2, 2], [0, 0], [1, 1], True),
    ([3, 3], [1, 1], [1, 1], [1, 1], False),
    ([3, 2], [2, 3], [1, 1], [1, 1], True),
    ([2, 3], [1, 1], [0, 1], [2, 2], False),
    ([3, 2], [2, 2], [1, 1], [2, 3], False),
    ([5, 5], [1, 1], [2, 2], [1, 1], False),
    ([4, 5], [2, 3], [2, 1], [1, 1], True),
    ([4, 4], [3, 2], [1, 2], [2, 1], False),
    ([3], [2], [1], [1], False),
    ([2, 2, 2], [2, 1, 2], [0, 1, 1], [1, 1, 1], False),
    ([3, 3, 3], [2, 2, 2], [1, 1, 1], [1, 1, 1], False),
]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_first_maximum_of_equal_ones(geometry: tuple, dynamic: bool) -> None:
    kernel, stride, pads, dilation, ceil_mode = geometry
    x = few_values(str(geometry), (2, 3, 9, 8, 7)[: 2 + len(kernel)])
    image = torch.tensor(x, requires_grad=True)
    y = MAX_POOL[len(kernel)](image, kernel, stride, pads, dilation, ceil_mode)
    seed = random_for("seed").integers(1, 100, y.shape).astype(np.float64)  # sums are exact
    y.backward(torch.tensor(seed))
    text = (
        f"y = MaxPool <kernel_shape = {kernel}, strides = {stride}, pads = {pads * 2}, "
        f"dilations = {dilation}, ceil_mode = {int(ceil_mode)}> (x)"
    )
    np.testing.assert_array_equal(gradient(text, x, seed, dynamic), image.grad)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("fill", [-np.inf, 0.0, -1e300, np.inf])
def test_windows_of_one_value(kernel: int, fill: float) -> None:
    """Not even -inf is matched by the padding."""
    x = np.full((1, 1, 6, 6), fill)
    x[..., 4, 4] = 2.0
    image = torch.tensor(x, requires_grad=True)
    pad = kernel // 2
    y = F.max_pool2d(image, kernel, 2, pad)
    seed = np.arange(1.0, 1 + y.numel()).reshape(y.shape)
    y.backward(torch.tensor(seed))
    text = (
        f"y = MaxPool <kernel_shape = [{kernel}, {kernel}], strides = [2, 2], "
        f"pads = [{pad}, {pad}, {pad}, {pad}]> (x)"
    )
    np.testing.assert_array_equal(gradient(text, x, seed), image.grad)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_first_maximum_of_the_image(rank: int, dynamic: bool) -> None:
    x = few_values("global", (2, 3, 4, 3, 2)[: 2 + rank])
    image = torch.tensor(x, requires_grad=True)
    y, _ = GLOBAL_MAX_POOL[rank](image, 1, return_indices=True)
    seed = random_for("seed").standard_normal(y.shape)
    y.backward(torch.tensor(seed))
    np.testing.assert_array_equal(gradient("y = GlobalMaxPool (x)", x, seed, dynamic), image.grad)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_norm_of_zeros_has_no_gradient(p: int) -> None:
    x = np.zeros((1, 2, 4, 4))
    x[0, 1, 0, 0] = -3.0
    windows = f"y = LpPool <kernel_shape = [2, 2], strides = [2, 2], p = {p}> (x)"
    for text, shape in ((windows, (1, 2, 2, 2)), (f"y = GlobalLpPool <p = {p}> (x)", (1, 2, 1, 1))):
        expected = np.zeros_like(x)
        expected[0, 1, 0, 0] = -7.0
        found = gradient(text, x, np.full(shape, 7.0))
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_mean_leaves_out_what_pytorch_leaves_out(
    stride: int, ceil_mode: bool, include: bool
) -> None:
    x = random_for("mean").standard_normal((2, 3, 8, 7))
    image = torch.tensor(x, requires_grad=True)
    y = F.avg_pool2d(image, 3, stride, 1, ceil_mode, include)
    seed = random_for("seed").standard_normal(y.shape)
    y.backward(torch.tensor(seed))
    text = (
        f"y = AveragePool <kernel_shape = [3, 3], strides = [{stride}, {stride}], "
        f"pads = [1, 1, 1, 1], ceil_mode = {int(ceil_mode)}, count_include_pad = {int(include)}> "
        "(x)"
    )
    for dynamic in (False, True):
        found = gradient(text, x, seed, dynamic)
        np.testing.assert_allclose(found, image.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kernel", "pad"), [(2, 0), (3, 1), (5, 2)])
def test_first_maximum_in_an_engine(kernel: int, pad: int) -> None:
    """NaN as padding equals nothing in ONNX Runtime either."""
    rng = random_for("engine")
    x = np.maximum(rng.integers(-3, 3, (2, 4, 11, 10)), 0).astype(np.float32)
    image = torch.tensor(x, requires_grad=True)
    y = F.max_pool2d(image, kernel, 2, pad)
    seed = rng.integers(1, 100, y.shape).astype(np.float32)
    y.backward(torch.tensor(seed))
    node = helper.make_node(
        "MaxPool", ["x"], ["y"], kernel_shape=[kernel] * 2, strides=[2, 2], pads=[pad] * 4
    )
    graph = helper.make_graph(
        [node],
        "pool",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 11, 10])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, *y.shape[2:]])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    extended = input_gradient(model).SerializeToString()
    session = onnxruntime.InferenceSession(extended, providers=["CPUExecutionProvider"])
    (found,) = session.run(["input_gradient"], {"x": x, "seed": seed})
    np.testing.assert_array_equal(found, image.grad)
