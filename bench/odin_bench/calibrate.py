"""The threshold below which an image is taken for out-of-distribution, from images that are not."""

from __future__ import annotations

import hashlib
import math
from datetime import UTC, datetime

import numpy as np

from odin_bench.datasets import MINIMUM_LEFT, TUNING_IMAGES, Dataset
from odin_engines.calibration import MOST_QUANTILES, Calibration
from odin_engines.errors import OdinError
from odin_runtime import Scorer

_OUTSIDE = 0.025  # of the bootstrap's thresholds, beyond either end of the interval


def held_out(images: Dataset, limit: int) -> Dataset:
    """The images to calibrate with: those that the release's protocol does not tune on.

    Of a set of fewer than 2,000 images, of which too few would be left, all.
    """
    start = TUNING_IMAGES if len(images) - TUNING_IMAGES >= MINIMUM_LEFT else 0
    return images.part(start, min(start + limit, len(images)))


def check_count(count: int, tpr: float) -> None:
    """Check that so many images tell a threshold.

    Raises:
        OdinError: not one of them would score below it.
    """
    least = math.ceil(round(1 / (1 - tpr), 9))
    if count < least:
        raise OdinError(
            f"{count} images tell no threshold that accepts {100 * tpr:g} % of them and not all: "
            f"give {least} or more, or a smaller --tpr"
        )


def calibration_of(
    scorer: Scorer,
    scores: np.ndarray,
    images: Dataset,
    tpr: float,
    crop: int | None = None,
    scaled: tuple[int, int] | None = None,
) -> Calibration:
    """Calibrate a bundle by the scores of in-distribution images.

    Args:
        scorer: which made the scores, at the bundle's own temperature and magnitude.
        scores: float32 (N,).
        images: the scored ones, cropped if they were.
        tpr: share of them to accept, between 0 and 1.
        crop: to which larger images were cropped, if they were.
        scaled: height and width to which the images were then scaled; None left them.

    Raises:
        OdinError: there are too few, or a score is not finite.
    """
    check_count(len(scores), tpr)
    if not np.isfinite(scores).all():
        raise OdinError(
            f"{np.count_nonzero(~np.isfinite(scores))} of {len(scores)} images of {images.name} "
            "have a score that is not finite: look at the network's weights"
        )
    spec = scorer.spec
    shares = np.linspace(0, 1, min(len(scores), MOST_QUANTILES))
    low, threshold, high = threshold_and_interval(scores, tpr)
    size = images.images.shape[1:3]
    cropped = size == (crop, crop)  # smaller images are left as they are
    return Calibration(
        threshold=threshold,
        tpr=tpr,
        interval=(low, high),
        images=len(scores),
        quantiles=tuple(np.quantile(scores.astype(np.float64), shares).tolist()),
        dataset=images.name,
        pixels=_pixels(crop, scaled),
        sha256=_sha256(images.images),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        engine=scorer.engine,
        precision=scorer.precision,
        method=spec.method,
        temperature=spec.temperature,
        magnitude=spec.magnitude,
        size=scaled or size,
        crop=crop if cropped else None,
        scaled=scaled not in (None, size),
    )


def threshold_and_interval(scores: np.ndarray, tpr: float) -> tuple[float, float, float]:
    """The largest threshold that accepts the share `tpr`, between the ends of its interval.

    It is the k-th largest of N scores, k = ceil(tpr N), as in `metrics.evaluate`. The interval is
    the bootstrap's (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3),
    of infinitely many resamples: that the k-th largest of a resample is the j-th of the sample or a
    larger one has the probability that k or more of N draws are among those j, which is binomial.

    Returns:
        The lower end, the threshold, the upper end; the ends hold 95 % between them.
    """
    from scipy.stats import binom

    count = len(scores)
    falling = np.sort(scores)[::-1]
    rank = math.ceil(round(tpr * count, 9))
    at_least = binom.sf(rank - 1, count, np.arange(1, count + 1) / count)
    high, low = (falling[np.argmax(at_least >= share)] for share in (_OUTSIDE, 1 - _OUTSIDE))
    return float(low), float(falling[rank - 1]), float(high)


def _pixels(crop: int | None, scaled: tuple[int, int] | None) -> str:
    steps = []
    if crop:
        steps.append(f"larger images cropped to the inner {crop}x{crop}")
    if scaled:
        steps.append(f"scaled to {scaled[0]}x{scaled[1]}, bilinearly")
    return "; ".join(steps) or "as they are"


def _sha256(images: np.ndarray) -> str:
    digest = hashlib.sha256(repr(images.shape).encode())
    digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()
