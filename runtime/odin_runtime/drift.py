"""Whether a stream of images still scores as the images of the calibration did.

The test is that of Kolmogorov and Smirnov for two samples: the largest distance between the two
shares of scores at or below a value, and how probable so large a distance is if both samples are of
one distribution (Hodges, "The significance probability of the Smirnov two-sample test", 1958).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from odin_engines.calibration import Calibration
from odin_engines.errors import OdinError

DEFAULT_LEVEL = 0.01
LEAST = 50  # scores below which no drift but the largest would be seen


@dataclass(frozen=True)
class Drift:
    """What the test says.

    Attributes:
        distance: the largest between the shares, from 0 to 1.
        p_value: of a distance as large, if nothing has drifted.
        images: of the stream.
        flagged: share of them below the threshold.
        expected: share of the calibration's images below it.
        median: of the stream's percentiles; 0.5 where nothing has drifted.
    """

    distance: float
    p_value: float
    images: int
    flagged: float
    expected: float
    median: float

    def has_drifted(self, level: float = DEFAULT_LEVEL) -> bool:
        """Whether chance alone makes such a distance in fewer than `level` of all cases."""
        return self.p_value < level


def compare(scores: np.ndarray, calibration: Calibration) -> Drift:
    """Compare a stream's scores with those of the calibration.

    Args:
        scores: (N,), made as the calibration's; NaN counts as lower than any.
        calibration: of the bundle.

    Raises:
        OdinError: there are too few.
    """
    if len(scores) < LEAST:
        raise OdinError(f"{len(scores)} scores tell no drift; give {LEAST} images or more")
    values = np.sort(np.where(np.isnan(scores), -np.inf, scores).astype(np.float64))
    known = np.asarray(calibration.quantiles)
    points = np.concatenate([values, known])
    ours = np.searchsorted(values, points, side="right") / len(values)
    theirs = calibration.share_below(points)
    distance = float(np.abs(ours - theirs).max())
    effective = len(values) * calibration.images / (len(values) + calibration.images)
    return Drift(
        distance=distance,
        p_value=_kolmogorov(math.sqrt(effective) * distance),
        images=len(values),
        flagged=float(calibration.is_ood(scores).mean()),
        expected=1 - calibration.tpr,
        median=float(np.median(calibration.percentile(values))),
    )


def _kolmogorov(distance: float) -> float:
    """Probability that Kolmogorov's statistic is larger: 2 sum (-1)^(k-1) exp(-2 k^2 x^2)."""
    if distance < 0.2:  # where the sum would take ever more terms; it is 1 to 12 digits
        return 1.0
    terms = [(-1) ** (k - 1) * math.exp(-2 * (k * distance) ** 2) for k in range(1, 101)]
    return min(max(2 * math.fsum(terms), 0.0), 1.0)
