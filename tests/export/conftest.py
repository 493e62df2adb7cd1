"""A calibrated bundle, for the tests of a server's repository."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from engines.test_calibration import calibration
from odin_engines.bundle import Bundle, write_calibration
from odin_runtime.scorer import Scorer

MakeBundle = Callable[..., Bundle]


@pytest.fixture(scope="session")
def calibrated(make_tiny_bundle: MakeBundle, raw_images: Callable[..., np.ndarray]) -> Bundle:
    """The tiny network's bundle, with a threshold in the midst of the scores."""
    made = make_tiny_bundle()
    scores = np.sort(Scorer.open(made, "ort").score(raw_images(40)).score.astype(float))
    known = calibration(
        threshold=float(np.median(scores)), images=len(scores), quantiles=tuple(scores.tolist())
    )
    return write_calibration(made, known)
