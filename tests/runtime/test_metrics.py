"""What a service tells Prometheus, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from engines.test_calibration import calibration
from odin_engines.bundle import Bundle, write_calibration
from odin_engines.errors import OdinError
from odin_runtime.metrics import ServiceMetrics, score_buckets
from odin_runtime.scorer import Scorer

LABEL = {"model": "tiny"}


@pytest.fixture(scope="module")
def scorer(
    make_tiny_bundle: Callable[..., Bundle], raw_images: Callable[..., np.ndarray]
) -> Scorer:
    made = make_tiny_bundle()
    scores = np.sort(Scorer.open(made, "ort").score(raw_images(40)).score.astype(float))
    known = calibration(
        threshold=float(np.median(scores)), images=40, quantiles=tuple(scores.tolist())
    )
    return Scorer.open(write_calibration(made, known), "ort")


@pytest.fixture
def registry() -> Any:
    reason = "prometheus_client is not installed: pip install 'odin-ood[serve]'"
    return pytest.importorskip("prometheus_client", reason=reason).CollectorRegistry()


def test_requests_images_and_scores_are_counted(
    scorer: Scorer, registry: Any, raw_images: Callable[..., np.ndarray]
) -> None:
    metrics = ServiceMetrics(scorer, registry)
    images = raw_images(25, seed=1)
    for part in (images[:5], images[5:]):
        with metrics.request() as told:
            told(scorer.score(part))
    known = scorer.score(images)

    def value(name: str, **labels: str) -> float:
        return registry.get_sample_value(f"odin_{name}", LABEL | labels)

    assert value("requests_total") == 2
    assert value("failed_requests_total") == 0
    assert value("images_total") == 25
    assert 0 < value("flagged_images_total") == known.is_ood.sum() < 25
    assert value("request_seconds_count") == value("request_seconds_bucket", le="+Inf") == 2
    assert 0 < value("request_seconds_sum") < 60
    assert value("score_count") == 25
    assert value("score_sum") == pytest.approx(known.score.astype(float).sum(), abs=1e-5)
    for end in score_buckets(scorer):
        # The engine's last bits may differ between batches.
        allowed = [(known.score <= end + move).sum() for move in (-1e-6, 1e-6)]
        assert allowed[0] <= value("score_bucket", le=str(end)) <= allowed[1]


def test_a_request_that_fails_is_counted_and_raises(scorer: Scorer, registry: Any) -> None:
    metrics = ServiceMetrics(scorer, registry)
    with pytest.raises(OdinError, match="8 pixels high"), metrics.request() as told:
        told(scorer.score(np.zeros((1, 8, 32, 3), np.uint8)))
    counted = {
        name: registry.get_sample_value(f"odin_{name}", LABEL)
        for name in ("requests_total", "failed_requests_total", "request_seconds_count")
    }
    assert counted == {
        "requests_total": 0,
        "failed_requests_total": 1,
        "request_seconds_count": 0,
    }


def test_scores_that_are_no_numbers_do_not_spoil_the_sum(scorer: Scorer, registry: Any) -> None:
    metrics = ServiceMetrics(scorer, registry)
    images = np.zeros((3, 3, 32, 32), np.float32)
    images[1] = np.nan
    with metrics.request() as told:
        told(scorer.score(images))
    assert registry.get_sample_value("odin_images_total", LABEL) == 3
    assert registry.get_sample_value("odin_score_count", LABEL) == 2
    assert np.isfinite(registry.get_sample_value("odin_score_sum", LABEL))


def test_a_second_one_in_a_registry_is_refused(scorer: Scorer, registry: Any) -> None:
    ServiceMetrics(scorer, registry)
    with pytest.raises(OdinError, match="registry of its own"):
        ServiceMetrics(scorer, registry)


def test_buckets_of_scores(scorer: Scorer, tiny_bundle: Bundle) -> None:
    """Each holds a share of the calibration's images; without one, they cover a softmax's."""
    ends = score_buckets(scorer)
    quantiles = np.asarray(scorer.bundle.calibration.quantiles)  # type: ignore[union-attr]
    assert list(ends) == sorted(set(ends))
    assert np.median(quantiles) == pytest.approx(ends[5])
    assert quantiles[0] <= ends[0] < ends[-1] <= quantiles[-1]
    plain = score_buckets(Scorer.open(tiny_bundle, "ort"))
    assert 0.1 < plain[0] < 0.1001
    assert plain[-1] == pytest.approx(0.2)
