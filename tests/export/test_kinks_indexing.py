"""Picking, putting, cutting and padding: ties, duplicates and any geometry."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from export.rule_cases import Case, build, random_for
from export.rule_cases.case import Constant
from odin_export.backward import input_gradient
from odin_export.evaluate import evaluator

TWICE = np.array([[0, 0, 2], [1, 1, 1]])
ONES = np.array([[1, 1], [0, 0]])


def gradient(
    text: str, x: np.ndarray, constants: Mapping[str, Constant]
) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of <seed, y> for a random seed, and that seed."""
    model = build(Case("", "", x.shape, text, constants))
    (y,) = evaluator(model).run(["y"], {"x": x})
    seed = random_for(text).standard_normal(y.shape)
    feeds = {"x": x, "seed": seed}
    (found,) = evaluator(input_gradient(model)).run(["input_gradient"], feeds)
    return found, seed


# Text, constants, the function in PyTorch.
SAME: dict[str, tuple[str, Mapping[str, Constant], Callable[[Tensor], Tensor]]] = {
    "largest elements": (
        "y, i = TopK <axis = 1> (x, k)",
        {"k": [2]},
        lambda x: torch.topk(x, 2, dim=1).values,
    ),
    "smallest elements": (
        "y, i = TopK <axis = 0, largest = 0> (x, k)",
        {"k": [1]},
        lambda x: torch.topk(x, 1, dim=0, largest=False).values,
    ),
    "gather along an axis, duplicates": (
        "y = GatherElements <axis = 1> (x, i)",
        {"i": TWICE},
        lambda x: torch.gather(x, 1, torch.tensor(TWICE)),
    ),
    "advanced indexing, duplicates": (
        "y = GatherND (x, i)",
        {"i": np.stack([TWICE % 2, TWICE], -1)},
        lambda x: x[torch.tensor(TWICE % 2), torch.tensor(TWICE)],
    ),
    "updates of the same place": (
        "y = ScatterElements <axis = 1> (d, i, x)",
        {"d": (2, 3), "i": np.array([[1, 1, 0, 2], [0, 0, 0, 1]])},
        lambda x: (
            torch.zeros(2, 3).double().scatter(1, torch.tensor([[1, 1, 0, 2], [0, 0, 0, 1]]), x)
        ),
    ),
    "data under an update": (
        "y = ScatterElements <axis = 1> (x, i, u)",
        {"i": ONES, "u": (2, 2)},
        lambda x: x.scatter(1, torch.tensor(ONES), torch.zeros(2, 2).double()),
    ),
    "reflection": (
        'y = Pad <mode = "reflect"> (x, p)',
        {"p": [0, 3, 0, 2]},
        lambda x: F.pad(x, (3, 2), mode="reflect"),
    ),
    "replication": (
        'y = Pad <mode = "edge"> (x, p)',
        {"p": [0, 3, 0, 9]},
        lambda x: F.pad(x, (3, 9), mode="replicate"),
    ),
    "circular padding": (
        'y = Pad <mode = "wrap"> (x, p)',
        {"p": [0, 4, 0, 3]},
        lambda x: F.pad(x, (4, 3), mode="circular"),
    ),
    "tiling": ("y = Tile (x, r)", {"r": [3, 2]}, lambda x: x.repeat(3, 2)),
}


@pytest.mark.parametrize(("text", "constants", "f"), SAME.values(), ids=SAME.keys())
def test_gradient_is_that_of_pytorch(
    text: str, constants: Mapping[str, Constant], f: Callable[[Tensor], Tensor]
) -> None:
    x = random_for(text).standard_normal((2, 4))
    found, seed = gradient(text, x, constants)
    leaf = torch.tensor(x, requires_grad=True)
    (f(leaf) * torch.tensor(seed)).sum().backward()
    assert leaf.grad is not None
    np.testing.assert_allclose(found, leaf.grad.numpy(), rtol=1e-12, atol=1e-12)


def test_of_equal_elements_those_that_were_picked_get_the_gradient() -> None:
    x = np.array([[1.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    model = build(Case("", "", x.shape, "y, i = TopK <axis = 1> (x, k)", {"k": [2]}))
    seed = np.array([[3.0, 5.0], [7.0, 11.0]])
    extended = input_gradient(model)
    names = [node.output[1] for node in extended.graph.node if node.op_type == "TopK"]
    places, found = evaluator(extended).run([*names, "input_gradient"], {"x": x, "seed": seed})
    np.testing.assert_array_equal(np.take_along_axis(found, places, 1), seed)
    assert found.sum() == seed.sum()


def test_an_infinite_gradient_stays_where_it_belongs() -> None:
    """0 * inf would not be a number: elements that are not picked get 0."""
    text, constants = "y = GatherElements <axis = 1> (x, i)", {"i": TWICE}
    model = build(Case("", "", (2, 4), text, constants))
    seed = np.array([[np.inf, 1.0, 2.0], [1.0, 1.0, 1.0]])
    feeds = {"x": np.ones((2, 4)), "seed": seed}
    (found,) = evaluator(input_gradient(model)).run(["input_gradient"], feeds)
    np.testing.assert_array_equal(found, [[np.inf, 0, 2, 0], [0, 3, 0, 0]])


# --- any geometry: y is affine in x, so differences are exact -------------------------------------

BOUND = st.integers(-9, 9) | st.sampled_from([2**63 - 1, -(2**63)])


@st.composite
def slices(draw: st.DrawFn) -> tuple[str, dict[str, Constant]]:
    count = draw(st.integers(1, 2))
    axes = draw(st.permutations([1, -1]))[:count]
    steps = draw(st.lists(st.integers(-4, 4).filter(bool), min_size=count, max_size=count))
    starts, ends = (draw(st.lists(BOUND, min_size=count, max_size=count)) for _ in range(2))
    return "y = Slice (x, s, e, a, t)", {"s": starts, "e": ends, "a": list(axes), "t": steps}


@st.composite
def gathers(draw: st.DrawFn) -> tuple[str, dict[str, Constant]]:
    indices = draw(st.lists(st.integers(-4, 3), min_size=1, max_size=9))
    if draw(st.booleans()):
        indices = sorted({index % 4 for index in indices})
    shape = draw(st.sampled_from([(-1,), (1, -1), (-1, 1)]))
    axis = draw(st.sampled_from([1, -1]))
    return f"y = Gather <axis = {axis}> (x, i)", {"i": np.reshape(indices, shape)}


@st.composite
def pads(draw: st.DrawFn) -> tuple[str, dict[str, Constant]]:
    mode = draw(st.sampled_from(["constant", "reflect", "edge", "wrap"]))
    amounts = [draw(st.integers(-1, 1)) for _ in range(4)]
    return f'y = Pad <mode = "{mode}"> (x, p)', {"p": [0, *amounts[:2], 0, *amounts[2:]]}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    drawn=slices() | gathers() | pads(),
    sizes=st.tuples(st.integers(1, 2), st.integers(4, 7), st.integers(4, 7)),
    dynamic=st.booleans(),
)
def test_gradient_of_any_geometry_is_exact(
    drawn: tuple[str, dict[str, Constant]], sizes: tuple[int, ...], dynamic: bool
) -> None:
    text, constants = drawn
    shape = ("N", "H", "W") if dynamic else ("N", *sizes[1:])
    model = build(Case("", "", shape, text, constants))
    rng = random_for(f"{text}{constants}")
    x, v = rng.standard_normal(sizes), rng.standard_normal(sizes)
    before, after = (evaluator(model).run(["y"], {"x": at})[0] for at in (x, x + v))
    seed = rng.standard_normal(before.shape)
    (found,) = evaluator(input_gradient(model)).run(["input_gradient"], {"x": x, "seed": seed})
    assert found.shape == x.shape
    assert np.sum(found * v) == pytest.approx(np.sum(seed * (after - before)), abs=1e-9)
