"""Gradients of convolutions and pools of any geometry are exact."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from export.rule_cases import Case, away_from_zero, build, random_for
from odin_export.backward import input_gradient
from odin_export.evaluate import evaluator


@dataclass(frozen=True)
class Axis:
    """The geometry along one axis."""

    kernel: int
    stride: int
    dilation: int
    before: int
    after: int
    extra: int
    size: int


@st.composite
def geometries(draw: st.DrawFn, op: str) -> Case:
    """One convolution or pool, of fixed or dynamic sizes."""
    rank = draw(st.sampled_from([1, 2, 2, 3]))
    same = ["SAME_UPPER", "SAME_LOWER"]
    auto_pad = draw(st.sampled_from(["NOTSET", "NOTSET", "VALID", *same]))
    axes = [draw(one_axis(op, auto_pad, 8 if rank < 3 else 4)) for _ in range(rank)]
    kernel, strides, dilations, before, after, extra, sizes = (
        [getattr(axis, each.name) for axis in axes] for each in fields(Axis)
    )
    if op == "AveragePool" and draw(st.booleans()):  # windows that tile the image
        strides, before, after, dilations = kernel, [0] * rank, [0] * rank, [1] * rank
        sizes = [max(size, k) for size, k in zip(sizes, kernel, strict=True)]
    group, inputs, outputs = (draw(st.integers(1, 3)) for _ in range(3))
    names = [draw(st.sampled_from([size, f"D{axis}"])) for axis, size in enumerate(sizes)]
    at = {"N": draw(st.integers(1, 2))}
    at |= {f"D{axis}": size for axis, size in enumerate(sizes)}
    pads = f"pads = {before + after}" if auto_pad == "NOTSET" else f'auto_pad = "{auto_pad}"'
    attributes = f"strides = {strides}, dilations = {dilations}, {pads}"
    shape = ("N", group * inputs, *names)
    if op.endswith("Pool"):
        attributes += f", kernel_shape = {kernel}"
        if auto_pad == "NOTSET":
            attributes += f", ceil_mode = {draw(st.integers(0, 1))}"
        if op == "AveragePool":
            attributes += f", count_include_pad = {draw(st.integers(0, 1))}"
        return Case(op, "", shape, f"y = {op} <{attributes}> (x)", at=(at,), opset=22)
    if op == "ConvTranspose":
        attributes += f", output_padding = {extra}"
        constants = {"w": (group * inputs, outputs, *kernel), "b": (group * outputs,)}
    else:
        constants = {"w": (group * outputs, inputs, *kernel), "b": (group * outputs,)}
    text = f"y = {op} <group = {group}, {attributes}> (x, w, b)"
    return Case(op, "", shape, text, constants, (at,))


@st.composite
def one_axis(draw: st.DrawFn, op: str, auto_pad: str, largest: int) -> Axis:
    """Kernel, stride, dilation and pads, and a size with room for one window (or one output)."""
    kernel, stride, dilation = (draw(st.integers(1, most)) for most in (4, 4, 3))
    reach = dilation * (kernel - 1)
    pads = st.integers(0, kernel - 1 if op.endswith("Pool") else 5)
    before, after = (draw(pads), draw(pads)) if auto_pad == "NOTSET" else (0, 0)
    extra = 0 if auto_pad.startswith("SAME") else draw(st.integers(0, stride - 1))
    if op == "ConvTranspose":
        if auto_pad.startswith("SAME"):  # no larger than what the windows reach
            stride = min(stride, reach + 1)
        least = 1 + max(0, -(-(before + after - reach - extra) // stride))
    else:
        least = 1 if auto_pad.startswith("SAME") else max(1, reach + 1 - before - after)
    size = draw(st.integers(least, max(least, largest)))
    return Axis(kernel, stride, dilation, before, after, extra, size)


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "AveragePool", "MaxPool"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_gradient_of_a_convolution_or_pool_is_exact(op: str, data: st.DataObject) -> None:
    """y is affine in x, so <seed, y(x + v) - y(x)> = <input_gradient, v>, whatever v.

    A maximum is affine only between the places where another cell becomes the largest.
    """
    case = data.draw(geometries(op))
    model = build(case)
    extended = input_gradient(model)
    onnx.checker.check_model(extended, full_check=True)
    rng = random_for(case.text)
    shape = tuple(size if isinstance(size, int) else case.at[0][size] for size in case.shape)
    x, v = away_from_zero(rng, shape), away_from_zero(rng, shape)
    if op == "MaxPool":
        v *= 1e-7
    before, after = (evaluator(model).run(["y"], {"x": at})[0] for at in (x, x + v))
    assume(np.isfinite(before).all())  # no window holds nothing but padding
    seed = rng.standard_normal(before.shape)
    (found,) = evaluator(extended).run(["input_gradient"], {"x": x, "seed": seed})
    assert found.shape == x.shape
    change = seed * (after - before)
    scale = 1e-6 if op == "MaxPool" else 1e-9
    least = 1e-3 * np.abs(v).max()
    assert abs(change.sum() - np.sum(found * v)) <= scale * max(np.abs(change).sum(), least)


def test_one_graph_serves_every_size() -> None:
    """Sizes that leave each remainder, through the same graph."""
    case = Case(
        "Conv",
        "every size",
        ("N", 1, "H", "W"),
        "a = Conv <strides = [3, 2], pads = [1, 0, 0, 2]> (x, w)\n"
        "y = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (a)",
        {"w": (2, 1, 3, 2)},
    )
    model = build(case)
    backward, forward = evaluator(input_gradient(model)), evaluator(model)
    rng = random_for(case.what)
    for height in range(6, 12):
        for width in range(4, 9):
            x, v = (away_from_zero(rng, (2, 1, height, width)) for _ in range(2))
            before, after = (forward.run(["y"], {"x": at})[0] for at in (x, x + v))
            seed = rng.standard_normal(before.shape)
            (found,) = backward.run(["input_gradient"], {"x": x, "seed": seed})
            assert found.shape == x.shape
            assert np.sum(found * v) == pytest.approx(np.sum(seed * (after - before)), rel=1e-9)
