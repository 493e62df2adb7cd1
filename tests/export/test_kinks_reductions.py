"""Ties, kinks and extremes of reductions, normalizations and products, against PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from export.rule_cases import Case, build, random_for
from odin_engines.errors import OdinError
from odin_export.backward import input_gradient
from odin_export.evaluate import evaluator

Function = Callable[[Tensor], Tensor]


def gradient(model: onnx.ModelProto, x: np.ndarray, seed: np.ndarray) -> np.ndarray:
    (found,) = evaluator(input_gradient(model)).run(["input_gradient"], {"x": x, "seed": seed})
    found = np.asarray(found)
    assert found.dtype == x.dtype
    return found


def torch_gradient(function: Function, x: np.ndarray, seed: np.ndarray) -> np.ndarray:
    image = torch.tensor(x, requires_grad=True)
    function(image).backward(torch.tensor(seed))
    assert image.grad is not None
    return image.grad.numpy()


def reduction(op: str, shape: tuple[int | str, ...] = ("N", 4)) -> Case:
    return Case(op, "over the last axis", shape, f"y = {op} <keepdims = 0> (x, a)", {"a": [-1]})


TIED = np.array(
    [
        [1.0, 3.0, 3.0, -2.0],
        [2.0, 2.0, 2.0, 2.0],
        [0.0, -0.0, 0.0, 5.0],
        [-1.0, 4.0, 0.5, -1.0],
        [0.0, 0.0, 0.0, 0.0],
    ]
)
SEED = np.array([2.0, -3.0, 0.5, 1.0, 7.0])

REDUCTIONS: dict[str, Function] = {
    "ReduceMax": lambda x: x.amax(-1),
    "ReduceMin": lambda x: x.amin(-1),
    "ReduceL1": lambda x: x.abs().sum(-1),
    "ReduceL2": lambda x: torch.linalg.vector_norm(x, dim=-1),
    "ReduceProd": lambda x: x.prod(-1),
    "ReduceLogSumExp": lambda x: x.logsumexp(-1),
}


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize("precision", [np.float64, np.float32])
def test_ties_and_zeros(op: str, precision: type[np.floating]) -> None:
    model = build(reduction(op), "double" if precision == np.float64 else "float")
    x, seed = TIED.astype(precision), SEED.astype(precision)
    expected = torch_gradient(REDUCTIONS[op], x, seed)
    np.testing.assert_allclose(gradient(model, x, seed), expected, rtol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_products_with_zeros(count: int) -> None:
    x = np.array([[0.0] * count + [2.0, -3.0, 0.5, 4.0][count:]])
    expected = torch_gradient(REDUCTIONS["ReduceProd"], x, SEED[:1])
    np.testing.assert_array_equal(gradient(build(reduction("ReduceProd")), x, SEED[:1]), expected)


def test_ties_are_counted_beyond_what_float16_counts() -> None:
    case = Case(
        "ReduceMax", "of many", ("N", 4099), "y = ReduceMax <keepdims = 0> (x, a)", {"a": [1]}
    )
    x = np.zeros((1, 4099), np.float16)
    found = gradient(build(case, "float16"), x, np.array([4099.0], np.float16))
    np.testing.assert_allclose(found, np.ones_like(x), rtol=1e-3)


def test_means_over_more_cells_than_float16_holds() -> None:
    case = Case(
        "ReduceMean",
        "of many",
        ("N", "H", "W"),
        "y = ReduceMean <keepdims = 0> (x, a)",
        {"a": [1, 2]},
    )
    x = np.zeros((1, 256, 320), np.float16)
    found = gradient(build(case, "float16"), x, np.array([256.0], np.float16))
    np.testing.assert_allclose(found, np.full_like(x, 256 / (256 * 320)), rtol=1e-3)


@pytest.mark.parametrize("offset", [-1000.0, -100.0, 100.0, 1000.0])
def test_logsumexp_of_large_values(offset: float) -> None:
    rng = random_for("large")
    x = (offset + rng.uniform(-3, 3, (5, 4))).astype(np.float32)
    seed = SEED.astype(np.float32)
    expected = torch_gradient(REDUCTIONS["ReduceLogSumExp"], x.astype(np.float64), SEED)
    found = gradient(build(reduction("ReduceLogSumExp"), "float"), x, seed)
    np.testing.assert_allclose(found, expected, rtol=2e-6)


# --- normalizations -----------------------------------------------------------------------------

ROWS = ("N", 4)
NORMALIZATIONS: dict[str, tuple[Case, Function]] = {
    "LayerNormalization": (
        Case("", "layer", ROWS, "y = LayerNormalization (x, s)", {"s": np.ones(4)}),
        lambda x: F.layer_norm(x, (4,)),
    ),
    "RMSNormalization": (
        Case("", "rms", ROWS, "y = RMSNormalization (x, s)", {"s": np.ones(4)}, opset=23),
        lambda x: F.rms_norm(x, (4,), eps=1e-5),
    ),
    "InstanceNormalization": (
        Case(
            "",
            "instance",
            ("N", 1, 4),
            "y = InstanceNormalization (x, s, z)",
            {"s": np.ones(1), "z": np.zeros(1)},
        ),
        F.instance_norm,
    ),
    "GroupNormalization": (
        Case(
            "",
            "group",
            ROWS,
            "y = GroupNormalization <num_groups = 1> (x, s, z)",
            {"s": np.ones(4), "z": np.zeros(4)},
            opset=21,
            y=ROWS,
        ),
        lambda x: F.group_norm(x, 1),
    ),
    "LRN": (
        Case("", "lrn", ROWS, "y = LRN <size = 3, alpha = 0.5> (x)"),
        lambda x: F.local_response_norm(x[..., None], 3, alpha=0.5)[..., 0],
    ),
    "LpNormalization, p = 1": (
        Case("", "l1", ROWS, "y = LpNormalization <p = 1> (x)"),
        lambda x: F.normalize(x, p=1.0),
    ),
    "LpNormalization, p = 2": (
        Case("", "l2", ROWS, "y = LpNormalization (x)"),
        lambda x: F.normalize(x),
    ),
}
EXTREMES = {
    "large": 1000 * TIED[:4] + np.arange(4),
    "far from zero": 1000 + TIED[:4] + np.arange(4),
    "small": 1e-3 * TIED[:4],
    "equal": np.full((2, 4), 3.0),
    "zeros": np.zeros((2, 4)),
}


@pytest.mark.parametrize("at", EXTREMES)
@pytest.mark.parametrize("what", NORMALIZATIONS)
def test_normalizations_at_extremes(what: str, at: str) -> None:
    if at == "zeros" and what.startswith("Lp"):
        pytest.skip("PyTorch divides by 1e-12 there, and ONNX leaves zeros as they are")
    case, function = NORMALIZATIONS[what]
    model, x = build(case), EXTREMES[at]
    x = x[:, None] if len(case.shape) == 3 else x
    seed = random_for(at).standard_normal(x.shape)
    expected = torch_gradient(function, x, seed)
    scale = max(np.abs(expected).max(), 1e-12)
    np.testing.assert_allclose(gradient(model, x, seed) / scale, expected / scale, atol=1e-6)
    rough = gradient(build(case, "float"), x.astype(np.float32), seed.astype(np.float32))
    np.testing.assert_allclose(rough / scale, expected / scale, atol=1e-3)


@pytest.mark.parametrize("p", [1, 2])
def test_zero_vectors_have_no_direction(p: int) -> None:
    x = np.array([[0.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    model = build(Case("", "zero vector", ("N", 3), f"y = LpNormalization <p = {p}> (x)"))
    found = gradient(model, x, np.ones_like(x))
    np.testing.assert_array_equal(found[0], np.zeros(3))
    np.testing.assert_allclose(found[1], [0.5, 0.0, 0.5])


def test_mean_variance_normalization_of_a_constant_channel() -> None:
    """PyTorch has no such op, and NaN if it is put together; what is left is (dy - mean) / eps."""
    case = Case(
        "",
        "constant channel",
        ("N", 2, 4),
        "a = Cast <to = 1> (x)\n"
        "b = MeanVarianceNormalization <axes = [2]> (a)\n y = Cast <to = 11> (b)",
    )
    rng = random_for("channel")
    x, seed = rng.standard_normal((1, 2, 4)), rng.standard_normal((1, 2, 4))
    x[0, 1] = 3.0
    found = gradient(build(case), x, seed)

    def normalized(image: Tensor) -> Tensor:
        centred = image - image.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True).sqrt() + 1e-9)

    expected = torch_gradient(normalized, x[:, :1], seed[:, :1])
    np.testing.assert_allclose(found[:, :1], expected, rtol=1e-4, atol=1e-5)
    constant = (seed[0, 1] - seed[0, 1].mean()) / 1e-9
    np.testing.assert_allclose(found[0, 1], constant, rtol=1e-4, atol=1e3)


@pytest.mark.parametrize("what", NORMALIZATIONS)
def test_float16_whose_squares_overflow(what: str) -> None:
    case, _ = NORMALIZATIONS[what]
    x = np.array([[300.0, -2000.0, 900.0, 10.0]])
    x = x[:, None] if len(case.shape) == 3 else x
    seed = np.ones_like(x) * [1, -1, 2, 1]
    expected = gradient(build(case), x, seed)
    found = gradient(build(case, "float16"), x.astype(np.float16), seed.astype(np.float16))
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.01 * np.abs(expected).max())


# --- products -----------------------------------------------------------------------------------


def test_a_size_that_turns_out_to_be_repeated_fails() -> None:
    """Whether T is 1 is not known before; the gradient for T = 3 is right, and T = 1 refused."""
    case = Case(
        "Einsum",
        "a size to be seen",
        ("N", "T"),
        'y = Einsum <equation = "nt,tk->nk"> (x, w)',
        {"w": (3, 2)},
    )
    model = build(case)
    seed = np.ones((2, 2))
    assert gradient(model, np.ones((2, 3)), seed).shape == (2, 3)
    with pytest.raises(ValueError, match="reshape"):
        gradient(model, np.ones((2, 1)), seed)


def test_group_normalization_of_any_number_of_channels_is_refused() -> None:
    case = Case(
        "",
        "any channels",
        ("N", "C", 3),
        "y = GroupNormalization <num_groups = 2> (x, s, s)",
        {"s": (4,)},
        opset=21,
        y=("N", "C", 3),
    )
    with pytest.raises(OdinError, match=r"GroupNormalization.*fixed channels"):
        input_gradient(build(case))
