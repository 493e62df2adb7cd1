"""What is known of images once they are scored."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from odin_engines.calibration import Calibration
from odin_engines.errors import OdinError


@dataclass(frozen=True)
class Scores:
    """What is known of each image; higher scores mean in-distribution.

    Attributes:
        score: ODIN score, float32 (N,); (magnitudes, N) where several were asked for.
        baseline: largest softmax probability (Hendrycks and Gimpel, ICLR 2017), float32 (N,).
        label: the predicted class, int64 (N,).
        extra: the further scores that the bundle was exported with (--scores), float32 (N,) each,
            by name.
        calibration: which tells what the scores mean, or why there is none, in words.
    """

    score: np.ndarray
    baseline: np.ndarray
    label: np.ndarray
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    calibration: Calibration | str = "the scores are of no bundle"

    @property
    def is_ood(self) -> np.ndarray:
        """Whether each image is out-of-distribution, by the bundle's threshold: bool (N,).

        Raises:
            OdinError: the bundle is not calibrated, or for other scores than these.
        """
        return self._calibrated().is_ood(self.score)

    @property
    def percentile(self) -> np.ndarray:
        """Of images like those of the calibration, about this share scores lower: float64 (N,).

        A p-value (`Calibration.percentile`): small where the image is unlike them.

        Raises:
            OdinError: as `is_ood`.
        """
        return self._calibrated().percentile(self.score)

    def arrays(self) -> dict[str, np.ndarray]:
        """All that is known of each image, by name, (N,) each, for tables and servers.

        "score", "baseline", "label", further scores, and of a calibrated bundle "is_ood" (bool)
        and "percentile" (float32).
        """
        known = {
            "score": self.score,
            "baseline": self.baseline,
            "label": self.label,
            **self.extra,
        }
        if not isinstance(self.calibration, str):
            known["is_ood"] = self.is_ood
            known["percentile"] = self.percentile.astype(np.float32)
        return known

    def _calibrated(self) -> Calibration:
        if isinstance(self.calibration, str):
            raise OdinError(self.calibration)
        return self.calibration

    def __len__(self) -> int:
        return len(self.label)

    def first(self, count: int) -> Scores:
        """Those of the first `count` images."""
        extra = {name: values[:count] for name, values in self.extra.items()}
        return Scores(
            self.score[..., :count],
            self.baseline[:count],
            self.label[:count],
            extra,
            self.calibration,
        )
