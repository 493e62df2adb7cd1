"""Host twins against numpy in float64: normalisation, perturbation, the first-order score.

Products and differences are rounded once to float32 and once to the element type, so these two
kernels are compared bit for bit with the float64 result rounded the same way.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from native.twins import ELEMENTS, Twins

ELEMENT = st.sampled_from(sorted(ELEMENTS))
OFFSET = st.integers(0, 8)
# Planes around multiples of the groups of 4 and 8 elements, and of none.
PLANE = st.one_of(st.integers(0, 40), st.sampled_from([64, 1023, 1024, 33 * 33]))
SEED = st.integers(0, 2**32 - 1)
SPECIAL = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 6e-8, -6e-8], np.float32)


def round_twice(exact: np.ndarray, element: str) -> np.ndarray:
    """float64 -> float32 -> the element type, each to nearest even."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return exact.astype(np.float32).astype(ELEMENTS[element])


def assert_same(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal to the bit, but for the bits of NaNs."""
    assert actual.dtype == expected.dtype
    actual32, expected32 = actual.astype(np.float32), expected.astype(np.float32)
    np.testing.assert_array_equal(actual32, expected32)
    numbers = ~np.isnan(expected32)
    np.testing.assert_array_equal(np.signbit(actual32)[numbers], np.signbit(expected32)[numbers])


def with_specials(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Some of the values replaced by zeros, NaN, infinities and tiny numbers."""
    chosen = generator.random(values.shape) < 0.1
    return np.where(chosen, generator.choice(SPECIAL, values.shape), values).astype(values.dtype)


@given(ELEMENT, st.integers(0, 3), PLANE, st.integers(0, 5), OFFSET, SEED)
@example("f32", 2, 1024, 3, 0, 0)
@example("f16", 2, 1024, 3, 4, 0)
@example("bf16", 2, 1024, 3, 1, 0)
@example("f16", 3, 16, 1, 0, 0)
@settings(deadline=None, max_examples=200)
def test_normalize(
    twins: Twins, element: str, count: int, plane: int, channels: int, at: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (count, plane, channels), np.uint8)
    std = generator.uniform(0.1, 0.5, channels)
    scale = (1 / (255 * std)).astype(np.float32)
    offset = (generator.uniform(0, 1, channels) / std).astype(np.float32)
    exact = pixels.astype(np.float64) * scale - offset.astype(np.float64)
    expected = round_twice(exact.transpose(0, 2, 1), element)
    assert_same(twins.normalize(pixels, scale, offset, element, at), expected)


def narrowed(twins: Twins, values: np.ndarray, element: str) -> np.ndarray:
    """float32 values as the library rounds them: a picture of one pixel, one channel a value."""
    pixels = np.ones((1, 1, len(values)), np.uint8)
    return twins.normalize(pixels, values, np.zeros_like(values), element)[0, :, 0]


@pytest.mark.parametrize("element", ["f16", "bf16"])
def test_narrowing_rounds_to_nearest_even(twins: Twins, element: str) -> None:
    """Every half and bfloat16, the middle to the next one, and the floats around the middle."""
    codes = np.arange(2**16, dtype=np.uint16).view(ELEMENTS[element]).astype(np.float32)
    codes = np.sort(codes[np.isfinite(codes)])
    middles = codes[:-1] / 2 + codes[1:] / 2
    top = codes[-1] + (codes[-1] - codes[-2]) / 2  # from here on infinity
    around = np.concatenate([middles, [top, -top]]).astype(np.float32)
    values = np.concatenate(
        [codes, around, np.nextafter(around, np.inf), np.nextafter(around, -np.inf), SPECIAL]
    ).astype(np.float32)
    with np.errstate(over="ignore"):
        expected = values.astype(ELEMENTS[element])
    assert_same(narrowed(twins, values, element), expected)


@given(st.sampled_from(["f16", "bf16"]), st.lists(st.floats(width=32), min_size=1))
@settings(deadline=None, max_examples=200)
def test_narrowing_any_float(twins: Twins, element: str, values: list[float]) -> None:
    array = np.array(values, np.float32)
    with np.errstate(over="ignore"):
        expected = array.astype(ELEMENTS[element])
    assert_same(narrowed(twins, array, element), expected)


@pytest.mark.parametrize("element", ["f16", "bf16"])
@pytest.mark.parametrize("at", [0, 1])
def test_widening_every_value(twins: Twins, element: str, at: int) -> None:
    """A step of zero gives back every value, both with 16-byte groups and one by one."""
    codes = np.arange(2**16, dtype=np.uint16).view(ELEMENTS[element])
    images = codes.reshape(1, 1, -1)
    ones = np.ones(1, np.float32)
    back = twins.perturb(images, np.ones_like(images), 0 * ones, ones, at=(at, at, at))
    assert_same(back[0], images)
    totals, _ = twins.first_order(codes.reshape(-1, 1, 1), ones, np.ones(2**16, np.float32), ones)
    assert_same(totals, np.abs(codes.astype(np.float32)))


def perturbed_in_float64(
    images: np.ndarray,
    gradient: np.ndarray,
    steps: np.ndarray,
    channel_scale: np.ndarray,
    limits: tuple[np.ndarray, np.ndarray] | None,
) -> np.ndarray:
    sign = np.where(gradient.astype(np.float64) < 0, -1.0, 1.0)
    sign[np.isnan(gradient.astype(np.float64))] = np.nan
    moves = np.multiply.outer(steps.astype(np.float64), sign * channel_scale[:, None])
    moved = images.astype(np.float64) - moves
    if limits is None:
        return moved
    low, high = (limit[:, None].astype(np.float32) for limit in limits)
    # In float32, as the comparison with the limits is; numpy's clip keeps NaN.
    return np.clip(moved.astype(np.float32), low, high).astype(np.float64)


@given(
    ELEMENT,
    st.tuples(st.integers(0, 3), st.integers(0, 4), PLANE),
    st.integers(0, 4),
    st.one_of(OFFSET.map(lambda at: (at, at, at)), st.tuples(OFFSET, OFFSET, OFFSET)),
    st.booleans(),
    SEED,
)
@example("f32", (1, 3, 33 * 33), 1, (3, 3, 3), True, 0)
@example("f16", (2, 3, 1024), 3, (5, 5, 5), True, 0)
@example("bf16", (2, 3, 1023), 2, (1, 2, 3), True, 1)
@settings(deadline=None, max_examples=300)
def test_perturb(
    twins: Twins,
    element: str,
    shape: tuple[int, int, int],
    magnitudes: int,
    at: tuple[int, int, int],
    clamp: bool,
    seed: int,
) -> None:
    generator = np.random.default_rng(seed)
    dtype, channels = ELEMENTS[element], shape[1]
    images = with_specials(generator.normal(0, 1, shape), generator).astype(dtype)
    gradient = with_specials(generator.normal(0, 1e-3, shape), generator).astype(dtype)
    steps = np.array([0.0014, 0.2, 0.0, 0.01], np.float32)[:magnitudes]
    channel_scale = generator.uniform(2, 10, channels).astype(np.float32)
    low = generator.uniform(-2, -1, channels).astype(np.float32)
    limits = (low, low + np.float32(2.5)) if clamp else None
    exact = perturbed_in_float64(images, gradient, steps, channel_scale, limits)
    actual = twins.perturb(images, gradient, steps, channel_scale, limits, at)
    assert_same(actual, round_twice(exact, element))


def test_zero_gradients_move_pixels_down(twins: Twins) -> None:
    gradient = np.array([[[0.0, -0.0, 1e-40, -1e-40, np.inf, -np.inf]]], np.float32)
    ones = np.ones(1, np.float32)
    moved = twins.perturb(np.zeros_like(gradient), gradient, ones, ones)
    np.testing.assert_array_equal(moved[0, 0, 0], [-1, -1, -1, 1, -1, 1])


def test_clamping_keeps_nan(twins: Twins) -> None:
    images = np.array([[[np.nan, 5.0, -5.0, np.inf, -np.inf, 0.5]]], np.float32)
    ones = np.ones(1, np.float32)
    moved = twins.perturb(images, np.ones_like(images), 0 * ones, ones, (0 * ones, ones))
    np.testing.assert_array_equal(moved[0, 0, 0], [np.nan, 1, 0, 1, 0, 0.5])


@given(
    ELEMENT,
    st.tuples(st.integers(0, 3), st.integers(0, 4), PLANE),
    st.integers(0, 3),
    OFFSET,
    st.sampled_from(["", "nan", "inf"]),
    SEED,
)
@example("f32", (2, 3, 224 * 224), 2, 0, "", 0)
@example("f16", (2, 3, 33 * 33), 2, 3, "nan", 0)
@settings(deadline=None, max_examples=150)
def test_first_order(
    twins: Twins,
    element: str,
    shape: tuple[int, int, int],
    magnitudes: int,
    at: int,
    special: str,
    seed: int,
) -> None:
    generator = np.random.default_rng(seed)
    gradient = generator.normal(0, 1e-2, shape).astype(ELEMENTS[element])
    if special and gradient.size:
        gradient.flat[generator.integers(gradient.size)] = float(special)
    channel_scale = generator.uniform(2, 10, shape[1]).astype(np.float32)
    probability = generator.uniform(0.1, 1, shape[0]).astype(np.float32)
    steps = np.array([1e-4, 0.0, 1e-5], np.float32)[:magnitudes]
    total, score = twins.first_order(gradient, channel_scale, probability, steps, at)

    with np.errstate(invalid="ignore"):  # 0 * inf
        exact = np.abs(gradient.astype(np.float64)) * channel_scale[:, None]
        exact_total = exact.sum(axis=(1, 2))
        exact_score = probability * np.exp(np.multiply.outer(steps, exact_total))
    np.testing.assert_allclose(total, exact_total, rtol=2e-6)
    np.testing.assert_allclose(score, exact_score, rtol=1e-5)


@pytest.mark.parametrize("element", ELEMENTS)
def test_totals_do_not_depend_on_the_address(twins: Twins, element: str) -> None:
    """The order of the sum depends on the size alone."""
    gradient = np.random.default_rng(3).normal(0, 1, (2, 3, 1001)).astype(ELEMENTS[element])
    others: dict[str, Any] = {
        "channel_scale": np.array([1.0, 2.1, 0.3], np.float32),
        "probability": np.ones(2, np.float32),
        "steps": np.ones(1, np.float32),
    }
    totals = [twins.first_order(gradient, at=at, **others)[0] for at in range(9)]
    np.testing.assert_array_equal(totals, [totals[0]] * 9)


def test_the_reference_rounding_is_independent() -> None:
    """float16 by numpy, bfloat16 by ml_dtypes: neither comes from the library under test."""
    assert ELEMENTS["bf16"] == np.dtype(ml_dtypes.bfloat16)
    assert np.float32(1 + 2**-8).astype(ml_dtypes.bfloat16) == 1  # the tie goes to even
    assert np.float32(1 + 3 * 2**-8).astype(ml_dtypes.bfloat16) == 1 + 2**-6
