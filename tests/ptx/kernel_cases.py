"""Chosen inputs of each kernel: sizes at the edges of its ways, and the values that matter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptx.checks import Case, FirstOrder, Normalize, Perturb, Score

Array = NDArray[Any]
NAN, INF = np.nan, np.inf


def _rng(*key: int) -> np.random.Generator:
    return np.random.default_rng([20260000, *key])


def positive(count: int, seed: int = 0) -> Array:
    """float32 factors between 0.5 and 4, none like another."""
    return _rng(count, seed).uniform(0.5, 4.0, count).astype(np.float32)


def normalize(count: int, plane: int, channels: int, **rest: Any) -> Normalize:
    pixels = _rng(count, plane, channels).integers(0, 256, (count, plane, channels), np.uint8)
    scale = positive(channels, 1) / np.float32(255)
    return Normalize(pixels, scale, positive(channels, 2), **rest)


NORMALIZE: dict[str, Case] = {
    "groups of 3 channels": normalize(3, 48, 3),
    "groups of 1 channel": normalize(2, 64, 1),
    "groups of 4 channels": normalize(2, 40, 4, grid=1),
    "odd planes": normalize(3, 37, 3),
    "images off 16 bytes": normalize(2, 48, 3, shifts=(3, 1)),
    "pixels off 4 bytes": normalize(2, 48, 3, shifts=(8, 1)),
    "one pixel": normalize(1, 1, 3),
    "many blocks": normalize(1, 40, 3, grid=50),
    "nothing": normalize(0, 12, 3),
}


def perturb(count: int, channels: int, plane: int, magnitudes: int, **rest: Any) -> Perturb:
    """Gradients with both zeros, NaN and infinities; NaN in the images too."""
    rng = _rng(count, channels, plane, magnitudes)
    images = rng.standard_normal((count, channels, plane))
    gradient = rng.standard_normal(images.shape) * 1e-3
    for start, step, value in (
        (0, 5, 0.0),
        (1, 7, -0.0),
        (3, 17, NAN),
        (2, 11, -INF),
        (4, 13, INF),
    ):
        gradient.reshape(-1)[start::step] = value
    images.reshape(-1)[5::19] = NAN
    steps = rng.uniform(0.01, 0.5, magnitudes).astype(np.float32)
    return Perturb(images, gradient, steps, positive(channels, 3), **rest)


def clamp(channels: int) -> dict[str, Any]:
    return {"low": -positive(channels, 4) / 2, "high": positive(channels, 5) / 2}


PERTURB: dict[str, Case] = {
    "whole groups": perturb(2, 3, 64, 1),
    "a tail": perturb(1, 3, 67, 1),
    "a head and a tail": perturb(2, 3, 67, 1, shifts=(3,)),
    "a gradient elsewhere": perturb(1, 3, 64, 2, shifts=(0, 1, 0)),
    "a result elsewhere": perturb(1, 3, 64, 1, shifts=(2, 2, 1)),
    "magnitudes of half a group": perturb(1, 3, 12, 3),
    "magnitudes in groups": perturb(2, 3, 32, 4, **clamp(3)),
    "magnitudes one by one": perturb(1, 3, 35, 3, **clamp(3)),
    "only a lower bound": perturb(1, 2, 32, 1, low=positive(2, 6)),
    "planes within a group": perturb(3, 5, 3, 1, **clamp(5)),
    "many blocks": perturb(1, 3, 16, 2, grid=40),
    "one element": perturb(1, 1, 1, 1),
    "nothing": perturb(0, 3, 16, 2),
}


def logits(rows: int, classes: int, spread: float = 4.0) -> Array:
    return _rng(rows, classes).standard_normal((rows, classes)) * spread


def with_values(values: Array, *places: tuple[int, int, float]) -> Array:
    for row, column, value in places:
        values[row, column] = value
    return values


def ties(rows: int, classes: int) -> Array:
    """The largest logit twice: in row r at r and somewhere behind it."""
    values = np.minimum(logits(rows, classes), 8.0)
    for row in range(rows):
        values[row, row * classes // rows] = 9.0
        values[row, (row * classes // rows + 1 + 37 * row) % classes] = 9.0
    return values


def special(classes: int) -> Array:
    """Rows with NaN (once, twice), +inf, -inf, nothing but -inf, and all alike."""
    values = with_values(
        logits(8, classes),
        (0, classes - 1, NAN),
        (1, classes // 2, NAN),
        (1, classes // 3, NAN),
        (2, classes // 2, INF),
        (3, 0, INF),
        (3, classes - 1, INF),
        (4, 0, NAN),
        (4, classes - 1, INF),
    )
    values[5, ::2] = -INF
    values[6] = -INF
    values[7] = 1.5
    return values


SCORE: dict[str, Case] = {
    "ten classes": Score(logits(9, 10)),
    "one class": Score(with_values(logits(5, 1), (1, 0, NAN), (2, 0, -INF), (3, 0, INF))),
    "two classes": Score(logits(33, 2), temperature=1.0, seed_scale=1.0),
    "a hundred classes, off 16 bytes": Score(logits(14, 100), shifts=(1,), grid=2),
    "the last class leads": Score(with_values(logits(3, 77), (0, 76, 30.0), (1, 75, 30.0))),
    "ties": Score(ties(13, 130), temperature=10.0),
    "special values": Score(special(70), temperature=2.0),
    "1024 classes": Score(logits(3, 1024), temperature=20.0, grid=1),
    "1025 classes": Score(logits(4, 1025), temperature=20.0, grid=1),
    "ties, long rows": Score(ties(5, 3000), temperature=3.0, grid=2),
    "special values, long rows": Score(special(2100), temperature=2.0, grid=3),
    "far apart": Score(with_values(logits(3, 40, 60.0), (0, 7, 6e4), (1, 5, -6e4))),
    "some outputs": Score(logits(3, 20), outputs="label energy"),
    "only the seed": Score(logits(3, 1500), outputs="seed", temperature=5.0),
    "many blocks": Score(logits(2, 12), grid=9),
    "nothing": Score(logits(0, 10)),
}


def first_order(count: int, channels: int, plane: int, magnitudes: int, **rest: Any) -> FirstOrder:
    rng = _rng(count, channels, plane)
    gradient = rng.standard_normal((count, channels, plane))
    probability = rng.uniform(0.1, 1.0, count).astype(np.float32)
    steps = (rng.uniform(-1.0, 1.0, magnitudes) / max(1, channels * plane)).astype(np.float32)
    return FirstOrder(gradient, positive(channels, 7), probability, steps, **rest)


def _with_special_gradients() -> FirstOrder:
    case = first_order(6, 3, 30, 5)
    case.gradient[0, 0, 0], case.gradient[1, 2, 29] = NAN, -INF
    case.gradient[2], case.gradient[3] = 0.0, -0.0
    case.steps[0] = 0.0
    return case


FIRST_ORDER: dict[str, Case] = {
    "32 x 32": first_order(3, 3, 1024, 3),
    "odd sizes": first_order(5, 3, 37, 2),
    "off 16 bytes": first_order(4, 3, 301, 2, shifts=(1, 2), grid=1),
    "planes within a group": first_order(4, 7, 3, 2),
    "more magnitudes than threads": first_order(2, 1, 50, 300),
    "special values": _with_special_gradients(),
    "only the totals": first_order(4, 3, 64, 2, outputs="total"),
    "only the scores": first_order(4, 3, 64, 2, outputs="score"),
    "one element": first_order(1, 1, 1, 1),
    "many blocks": first_order(2, 3, 40, 1, grid=9),
    "nothing": first_order(0, 3, 8, 2),
}
# For the kernel alone: the C library and its host twin refuse it.
SCORES_WITHOUT_PROBABILITY = replace(first_order(4, 3, 64, 2), probability=None)
CASES: dict[str, dict[str, Case]] = {
    "normalize": NORMALIZE,
    "perturb": PERTURB,
    "score": SCORE,
    "first_order": FIRST_ORDER,
}
