"""The test of drift, against scipy's and by how often it errs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from engines.test_calibration import calibration
from odin_engines.calibration import MOST_QUANTILES
from odin_engines.errors import OdinError
from odin_runtime import drift


def of(known: np.ndarray) -> drift.Calibration:
    shares = np.linspace(0, 1, min(len(known), MOST_QUANTILES))
    return calibration(images=len(known), quantiles=tuple(np.quantile(known, shares).tolist()))


@pytest.mark.parametrize("shift", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("count", [60, 2000])
def test_against_scipy(shift: float, count: int) -> None:
    generator = np.random.default_rng(count)
    known, new = generator.normal(size=1001), generator.normal(shift, size=count)
    found = drift.compare(new.astype(np.float32), of(known))
    expected = stats.ks_2samp(new, known, method="asymp")
    assert found.distance == pytest.approx(expected.statistic, abs=0.002)
    effective = count * 1001 / (count + 1001)
    p_value = special.kolmogorov(np.sqrt(effective) * found.distance)
    assert found.p_value == pytest.approx(p_value, abs=1e-12)
    assert found.has_drifted() == (shift == 1.0 or (shift == 0.1 and p_value < 0.01))


def test_chance_is_rarely_taken_for_drift() -> None:
    generator = np.random.default_rng(0)
    alarms = 0
    for _ in range(300):
        known, new = generator.normal(size=(2, 1500))
        alarms += drift.compare(new, of(known)).has_drifted(level=0.05)
    assert alarms / 300 < 0.09


def test_scores_that_are_no_numbers_are_drift() -> None:
    known = np.random.default_rng(1).normal(size=500)
    new = np.where(np.arange(500) % 3 == 0, np.nan, known)
    found = drift.compare(new, of(known))
    assert found.has_drifted()
    assert found.distance == pytest.approx(1 / 3, abs=0.01)


def test_too_few_scores() -> None:
    with pytest.raises(OdinError, match="49 scores tell no drift; give 50"):
        drift.compare(np.zeros(49, np.float32), calibration())
