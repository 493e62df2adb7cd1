"""Choosing magnitude and temperature from the scores of a sweep.

Two rules. That of the ODIN release (Liang, Li, Srikant, ICLR 2018, section 4): the pair with the
least FPR at TPR 95 % on validation images, in- and out-of-distribution ones. And that of Hsu, Shen,
Jin, Kira, "Generalized ODIN", CVPR 2020, its section on input preprocessing, which sees
in-distribution images alone: the magnitude that maximises the sum of their scores after the
perturbation. (Of that paper it is this rule alone; scores and perturbation are ODIN's.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from odin_bench.datasets import (
    MINIMUM_LEFT,
    TUNING_IMAGES,
    Dataset,
    Split,
    protocol_split,
)
from odin_bench.metrics import Metrics, evaluate
from odin_bench.sweep import Swept
from odin_engines.errors import OdinError


@dataclass(frozen=True, order=True)
class Pair:
    """A point of the grid."""

    temperature: float
    magnitude: float


@dataclass(frozen=True)
class ByGain:
    """The magnitude that in-distribution images choose at one temperature.

    Attributes:
        pair: what is chosen.
        gain: by how much it raises the mean score over that of the images as they are.
        at_end: it is the largest magnitude of the grid, and a larger one might be chosen of more.
    """

    pair: Pair
    gain: float
    at_end: bool


@dataclass(frozen=True)
class ChoiceSplit:
    """Images to choose by, and others to judge the choice by.

    Attributes:
        in_images, out_images: validation images, the first of each set.
        test: what the choices are judged by; it shares no image with the validation images.
    """

    in_images: Dataset
    out_images: Dataset
    test: Split


def choice_split(in_set: Dataset, out_set: Dataset, limit: int) -> ChoiceSplit:
    """Split both sets: validation images are the first 1,000, or `limit`, as in the release.

    Test images are those of `protocol_split`. It leaves none for validation in a set of fewer than
    2,000 images; of such a set the first half is for validation here, and the rest is tested on.

    Raises:
        OdinError: as `protocol_split`; or a set has one image only.
    """
    test = protocol_split(in_set, out_set, limit=limit)
    ins, outs = validation_images(in_set, limit), validation_images(out_set, limit)
    short = [side for side in (in_set, out_set) if _is_short(side)]
    if short:
        in_test, out_test = test.in_set, test.out_set
        if _is_short(in_set):
            in_test = in_set.part(len(ins), len(ins) + limit)
        if _is_short(out_set):
            out_test = out_set.part(len(outs), len(outs) + limit)
        notes = [
            f"{name}: {len(validation):,} images to choose by, the following {len(tested):,} scored"
            if _is_short(side)
            else f"{name}: images {TUNING_IMAGES:,} to {TUNING_IMAGES + len(tested) - 1:,} scored"
            for name, side, validation, tested in (
                (in_set.name, in_set, ins, in_test),
                (out_set.name, out_set, outs, out_test),
            )
        ]
        start = len(ins) if _is_short(in_set) else test.in_start
        test = Split(in_test, out_test, start, "; ".join(notes))
    return ChoiceSplit(ins, outs, test)


def validation_images(side: Dataset, limit: int) -> Dataset:
    """The first images of a set, as `choice_split` has them.

    Raises:
        OdinError: the set has one image only.
    """
    if len(side) < 2:
        raise OdinError(f"{side.name} has one image; a choice needs others to be judged by")
    return side.part(0, min(TUNING_IMAGES, limit, len(side) // 2))


def judge_grid(ins: Swept, outs: Swept) -> list[list[Metrics | None]]:
    """Metrics at each pair: a list for each temperature, of each magnitude.

    None where a score is not finite: the exponential of the first-order score can overflow.
    """
    return [
        [
            evaluate(ours, theirs)
            if np.isfinite(ours).all() and np.isfinite(theirs).all()
            else None
            for ours, theirs in zip(in_rows, out_rows, strict=True)
        ]
        for in_rows, out_rows in zip(ins.score, outs.score, strict=True)
    ]


def choose_by_release(
    metrics: Sequence[Sequence[Metrics | None]],
    magnitudes: Sequence[float],
    temperatures: Sequence[float],
) -> Pair:
    """The pair with the least FPR at TPR 95 %.

    Of several, which the release does not order, that with the largest AUROC; then the smallest
    magnitude, then the smallest temperature.

    Args:
        metrics: as `judge_grid` returns.
        magnitudes, temperatures: of the grid.

    Raises:
        OdinError: no pair has metrics.
    """
    found = [
        (found.fpr95, -found.auroc, magnitude, temperature)
        for temperature, row in zip(temperatures, metrics, strict=True)
        for magnitude, found in zip(magnitudes, row, strict=True)
        if found is not None
    ]
    if not found:
        raise OdinError(
            "no pair of the grid has finite scores; sweep smaller magnitudes, and look at the "
            "network's weights"
        )
    *_, magnitude, temperature = min(found)
    return Pair(temperature, magnitude)


def choose_by_gain(
    ins: Swept, magnitudes: Sequence[float], temperatures: Sequence[float]
) -> list[ByGain]:
    """At each temperature, the magnitude with the largest mean score of in-distribution images.

    Their mean score as they are does not depend on the magnitude, so that is the largest mean gain
    too. Of several, the smallest. Scores of exact ODIN alone: the first-order score only grows.

    Scores at two temperatures do not compare, so this chooses no temperature. A magnitude at which
    some image's score is not finite is not chosen, and at a temperature without others none is.
    """
    gains = ins.score.mean(axis=2, dtype=np.float64)
    gains -= ins.unmoved.mean(axis=1, dtype=np.float64)[:, None]
    chosen = []
    for temperature, row in zip(temperatures, gains, strict=True):
        finite = np.isfinite(row)
        if not finite.any():
            continue
        best = int(np.argmax(np.where(finite, row, -np.inf)))
        pair = Pair(temperature, magnitudes[best])
        chosen.append(ByGain(pair, float(row[best]), best == len(magnitudes) - 1 > 0))
    return chosen


def own_temperature(temperatures: Sequence[float], own: float) -> float:
    """The temperature that goes with `choose_by_gain`: the bundle's own, else the largest.

    ODIN's detection improves with the temperature and levels off (section 4 of its paper), so of a
    grid without the bundle's the largest is taken. No image has a say in it.
    """
    same = [value for value in temperatures if np.float32(value) == np.float32(own)]
    return same[0] if same else max(temperatures)


def _is_short(side: Dataset) -> bool:
    """As `protocol_split` has it: nothing of it would be left for tuning."""
    return len(side) - TUNING_IMAGES < MINIMUM_LEFT
