"""Thresholds and their intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from odin_bench.calibrate import calibration_of, check_count, held_out, threshold_and_interval
from odin_bench.datasets import Dataset
from odin_engines.bundle import Bundle
from odin_engines.errors import OdinError
from odin_runtime import Scorer


@pytest.mark.parametrize(("count", "tpr"), [(20, 0.95), (1000, 0.95), (9000, 0.99), (333, 0.5)])
def test_the_threshold_accepts_the_share_and_no_more(count: int, tpr: float) -> None:
    scores = np.random.default_rng(count).normal(size=count).astype(np.float32)
    low, threshold, high = threshold_and_interval(scores, tpr)
    accepted = np.count_nonzero(scores >= np.float32(threshold))
    assert accepted == math.ceil(round(tpr * count, 9))
    assert low <= threshold <= high
    assert {np.float32(low), np.float32(threshold), np.float32(high)} <= set(scores)


def test_the_interval_is_the_bootstraps() -> None:
    """Of 20,000 resamples, which come close to infinitely many."""
    generator = np.random.default_rng(5)
    scores = generator.normal(size=400).astype(np.float32)
    rank = math.ceil(0.9 * 400)
    resamples = np.sort(generator.choice(scores, (20_000, 400)), axis=1)[:, ::-1]
    drawn = np.quantile(resamples[:, rank - 1], [0.025, 0.975])
    low, _, high = threshold_and_interval(scores, 0.9)
    falling = np.sort(scores)[::-1]
    for found, expected in zip((low, high), drawn, strict=True):
        apart = np.searchsorted(-falling, -np.float32(found)) - np.searchsorted(
            -falling, -np.float32(expected)
        )
        assert abs(apart) <= 1


def test_the_interval_holds_the_truth() -> None:
    """In about 95 of 100 samples: the quantile of the distribution they come from."""
    truth = -1.6448536269514722  # of the normal distribution, at 5 %
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        low, _, high = threshold_and_interval(generator.normal(size=1000), 0.95)
        held += low <= truth <= high
    assert 0.92 <= held / 400 <= 0.98


@pytest.mark.parametrize(("count", "tpr", "least"), [(19, 0.95, 20), (99, 0.99, 100), (1, 0.5, 2)])
def test_too_few_images(count: int, tpr: float, least: int) -> None:
    with pytest.raises(OdinError, match=f"give {least} or more, or a smaller --tpr"):
        check_count(count, tpr)
    check_count(least, tpr)
    scores = np.arange(least, dtype=np.float32)
    assert threshold_and_interval(scores, tpr)[1] > scores.min()


@pytest.mark.parametrize(
    ("count", "limit", "start", "stop"),
    [(10_000, 9000, 1000, 10_000), (3000, 500, 1000, 1500), (1999, 9000, 0, 1999), (50, 9, 0, 9)],
)
def test_images_for_tuning_are_left_out(count: int, limit: int, start: int, stop: int) -> None:
    images = np.arange(count, dtype=np.uint16).view(np.uint8).reshape(count, 1, 2, 1)
    found = held_out(Dataset("in", images, None, "memory"), limit)
    np.testing.assert_array_equal(found.images, images[start:stop])


@pytest.mark.parametrize(
    ("side", "crop", "scaled", "wanted"),
    [
        (32, None, None, ((32, 32), None, False, "as they are")),
        (32, 32, None, ((32, 32), 32, False, "larger images cropped to the inner 32x32")),
        (28, 32, None, ((28, 28), None, False, "larger images cropped to the inner 32x32")),
        (28, None, (32, 32), ((32, 32), None, True, "scaled to 32x32, bilinearly")),
        (32, None, (32, 32), ((32, 32), None, False, "scaled to 32x32, bilinearly")),
    ],
)
def test_what_is_done_to_the_images_is_told(
    side: int,
    crop: int | None,
    scaled: tuple[int, int] | None,
    wanted: tuple[tuple[int, int], int | None, bool, str],
    tiny_bundle: Bundle,
) -> None:
    images = Dataset("in", np.zeros((20, side, side, 3), np.uint8), None, "memory")
    scores = np.linspace(0.1, 0.2, 20, dtype=np.float32)
    found = calibration_of(Scorer.open(tiny_bundle, "ort"), scores, images, 0.9, crop, scaled)
    assert (found.size, found.crop, found.scaled, found.pixels) == wanted
