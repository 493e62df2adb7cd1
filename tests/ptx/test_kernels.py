"""Every kernel in every type, run from the compiler's own PTX, against float64 numpy.

Two targets: compute_75, whose code converts bfloat16 by integer arithmetic, and compute_90, which
has instructions for it. The tolerances are derived in checks.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptx.checks import TYPES, Case, FirstOrder, Normalize, Perturb, Score, check
from ptx.compiled import interpreter
from ptx.kernel_cases import (
    CASES,
    SCORES_WITHOUT_PROBABILITY,
    first_order,
    logits,
    normalize,
    perturb,
    positive,
    special,
)

SUFFIXES = sorted(TYPES)
NAMED = [(kernel, name) for kernel, cases in CASES.items() for name in cases]
DRAWN = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
SIZES = st.integers(1, 70)
SHIFTS = st.lists(st.integers(0, 15), min_size=1, max_size=3).map(tuple)
GRIDS = st.integers(1, 7)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("kernel", "name"), NAMED)
@pytest.mark.parametrize("target", [75, 90])
def test_case(target: int, kernel: str, name: str, suffix: str) -> None:
    check(interpreter(target), suffix, CASES[kernel][name])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("target", [75, 90])
def test_scores_without_probability_are_not_written(target: int, suffix: str) -> None:
    check(interpreter(target), suffix, SCORES_WITHOUT_PROBABILITY)


@DRAWN
@given(suffix=st.sampled_from(SUFFIXES), sizes=st.tuples(SIZES, SIZES), data=st.data())
def test_normalize_of_any_size(suffix: str, sizes: tuple[int, int], data: st.DataObject) -> None:
    channels = data.draw(st.sampled_from([1, 3, 3, 4, 5]))
    plane = sizes[1] * data.draw(st.sampled_from([1, 4, 8]))
    rest = {"grid": data.draw(GRIDS), "shifts": data.draw(SHIFTS)}
    check(interpreter(), suffix, normalize(sizes[0] % 5, plane, channels, **rest))


@DRAWN
@given(suffix=st.sampled_from(SUFFIXES), sizes=st.tuples(SIZES, SIZES), data=st.data())
def test_perturb_of_any_size(suffix: str, sizes: tuple[int, int], data: st.DataObject) -> None:
    channels, magnitudes = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 4))
    bounds = st.sampled_from(["", "low", "high", "low high"])
    limits = {
        name: positive(channels) * (-1) ** (name == "low") for name in data.draw(bounds).split()
    }
    rest = {"grid": data.draw(GRIDS), "shifts": data.draw(SHIFTS), **limits}
    check(interpreter(), suffix, perturb(sizes[0] % 4, channels, sizes[1], magnitudes, **rest))


ENTRIES = st.sampled_from(
    [0.0, -0.0, 1.0, -3.5, 80.0, -80.0, 1e-8, 6e4, -6e4, np.nan, np.inf, -np.inf]
)


@DRAWN
@given(suffix=st.sampled_from(SUFFIXES), data=st.data())
def test_score_of_any_size(suffix: str, data: st.DataObject) -> None:
    rows = data.draw(st.integers(0, 9))
    classes = data.draw(st.integers(1, 300) | st.integers(1000, 1300))
    values = logits(rows, classes, data.draw(st.sampled_from([0.1, 4.0, 30.0])))
    places = st.tuples(st.integers(0, max(rows - 1, 0)), st.integers(0, classes - 1), ENTRIES)
    for row, column, value in data.draw(st.lists(places, max_size=6)) if rows else []:
        values[row, column] = value
    case = Score(
        values,
        temperature=data.draw(st.sampled_from([0.5, 1.0, 10.0, 1000.0])),
        seed_scale=data.draw(st.sampled_from([1.0, 1000.0])),
        grid=data.draw(GRIDS),
        shifts=data.draw(SHIFTS),
    )
    check(interpreter(), suffix, case)


@DRAWN
@given(suffix=st.sampled_from(SUFFIXES), values=st.lists(ENTRIES, min_size=1, max_size=40))
def test_score_of_any_values(suffix: str, values: list[float]) -> None:
    check(interpreter(), suffix, Score(np.array([values]), temperature=3.0))


@DRAWN
@given(suffix=st.sampled_from(SUFFIXES), sizes=st.tuples(SIZES, SIZES), data=st.data())
def test_first_order_of_any_size(suffix: str, sizes: tuple[int, int], data: st.DataObject) -> None:
    channels, magnitudes = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 4))
    plane = sizes[1] * data.draw(st.sampled_from([1, 4, 16]))
    rest = {"grid": data.draw(GRIDS), "shifts": data.draw(SHIFTS)}
    check(interpreter(), suffix, first_order(sizes[0] % 5, channels, plane, magnitudes, **rest))


# Large inputs


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("shift", [0, 1])
def test_a_hundred_thousand_classes(suffix: str, shift: int) -> None:
    values = logits(1, 100_000)
    values[0, 77_777] = values[0, 99_999] = 25.0
    check(interpreter(), suffix, Score(values, temperature=10.0, grid=1, shifts=(shift,)))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_image_of_224_by_224(suffix: str) -> None:
    check(interpreter(), suffix, normalize(1, 224 * 224, 3, grid=8))
    check(interpreter(), suffix, perturb(1, 3, 224 * 224, 2, grid=8))
    check(interpreter(), suffix, first_order(1, 3, 224 * 224, 2, grid=1))


def test_every_pixel_value() -> None:
    pixels = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (1, 1, 3))
    for suffix in SUFFIXES:
        check(interpreter(), suffix, Normalize(pixels, positive(3) / 255, positive(3, 1)))


def test_the_largest_and_smallest_floats() -> None:
    """Logits at the ends of float32's range; gradients, steps and sums that are subnormal."""
    huge = float(np.finfo(np.float32).max)
    rows = np.array(
        [[huge, -huge, 0.0], [-huge, -huge, -huge], [huge, huge, 1.0], [1e-45, 0.0, 0.0]]
    )
    check(interpreter(), "f32", Score(rows, temperature=1000.0))
    gradient = np.full((2, 1, 9), 1e-44)
    probability = np.ones(2, np.float32)
    steps = np.array([1e30, -1e30], np.float32)
    check(interpreter(), "f32", FirstOrder(gradient, positive(1), probability, steps))
    images = np.array([[[1e-40, -1e-40, huge, -huge]]])
    tiny = Perturb(images, images, np.array([1e-41], np.float32), np.ones(1, np.float32))
    check(interpreter(), "f32", tiny)


# Determinism


def same_bits(first: list[Any], second: list[Any]) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kernel", CASES)
def test_results_are_the_same_in_every_run_grid_and_place(kernel: str, suffix: str) -> None:
    """Bit for bit: run twice, with other grids, and at addresses that no wide load fits."""
    chosen: dict[str, list[Case]] = {
        "normalize": [normalize(3, 48, 3)],
        "perturb": [perturb(2, 3, 67, 2)],
        "score": [Score(special(70)), Score(logits(5, 1500), temperature=3.0)],
        "first_order": [first_order(5, 3, 200, 2)],
    }
    for case in chosen[kernel]:
        reference = case.run(interpreter(), suffix)
        assert same_bits(reference, case.run(interpreter(), suffix))
        for grid, shift in ((1, 0), (4, 0), (11, 0), (3, 1), (3, 3)):
            other = replace(case, grid=grid, shifts=(shift,))
            assert same_bits(reference, other.run(interpreter(), suffix)), (grid, shift)


@pytest.mark.parametrize("ulps", [-2, 2])
@pytest.mark.parametrize("name", ["ten classes", "ties", "special values", "1025 classes"])
def test_hardware_may_round_exponentials_otherwise(ulps: int, name: str) -> None:
    """ex2.approx is off by up to 2 ulp on a GPU: within the tolerances all the same."""
    check(interpreter(approximation=ulps), "f32", CASES["score"][name])


# The checks themselves


@pytest.mark.parametrize("kernel", CASES)
def test_a_wrong_result_is_seen(kernel: str) -> None:
    """In any output: 2 units in the last place where the kernel rounds once, elsewhere 2e-5."""
    case = next(iter(CASES[kernel].values()))
    results = case.run(interpreter(), "f32")
    case.check(results)
    outputs = {"normalize": [0], "perturb": [0], "score": [1, 2, 4, 5], "first_order": [1, 2]}
    for number in outputs[kernel]:
        wrong = [result.copy() for result in results]
        flat = wrong[number].reshape(-1)
        flat[-1] *= np.float32(1 + (2.0**-22 if kernel in ("normalize", "perturb") else 2e-5))
        with pytest.raises(AssertionError):
            case.check(wrong)
