"""What a service tells Prometheus of its requests, images and scores.

    metrics = ServiceMetrics(scorer)
    with metrics.request() as told:
        told(scorer.score(images))

Names begin with `odin_`; each has the label `model`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from odin_engines.calibration import Calibration
from odin_engines.errors import OdinError
from odin_runtime.scorer import Scorer
from odin_runtime.scores import Scores

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SHARES = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


def score_buckets(scorer: Scorer) -> tuple[float, ...]:
    """Upper ends of the score histogram's buckets, ascending.

    Of a calibrated bundle the scores below which 0.1, 1, 5 ... 99 % of its in-distribution images
    lie, so that a drift shows in every bucket; of another one, what a softmax of C classes at a
    high temperature can give: from 1 / C up.
    """
    known = scorer.calibration()
    if isinstance(known, Calibration):
        shares = np.linspace(0.0, 1.0, len(known.quantiles))
        ends = np.interp(_SHARES, shares, known.quantiles)
    else:
        ends = 1 / scorer.spec.classes * (1 + np.geomspace(1e-4, 1, 12))
    return tuple(np.unique(ends).tolist())


class ServiceMetrics:
    """Counters and histograms of one scorer.

    Args:
        scorer: whose scores are told.
        registry: of prometheus_client; None for its own default.

    Raises:
        OdinError: prometheus_client is not installed, or the registry has such metrics already.
    """

    def __init__(self, scorer: Scorer, registry: Any = None) -> None:
        try:
            import prometheus_client as prometheus
        except ImportError as error:
            raise OdinError(
                "metrics need prometheus_client: pip install 'odin-ood[serve]'"
            ) from error
        place = {} if registry is None else {"registry": registry}
        model = scorer.spec.model

        def made(kind: Any, name: str, text: str, **more: Any) -> Any:
            try:
                return kind(f"odin_{name}", text, ["model"], **more, **place).labels(model)
            except ValueError as error:
                raise OdinError(
                    f"odin_{name} is among the registry's metrics already: make one "
                    "ServiceMetrics a process, or give each a registry of its own"
                ) from error

        counter, histogram = prometheus.Counter, prometheus.Histogram
        self._requests = made(counter, "requests", "Requests answered with scores.")
        self._failures = made(counter, "failed_requests", "Requests answered with an error.")
        self._images = made(counter, "images", "Images scored.")
        # None where nothing decides: 0 would read as if no image were out-of-distribution.
        self._flagged = None
        if isinstance(scorer.calibration(), Calibration):
            text = "Images taken for out-of-distribution."
            self._flagged = made(counter, "flagged_images", text)
        self._seconds = made(
            histogram, "request_seconds", "From request to answer.", buckets=SECONDS
        )
        self._scores = made(
            histogram, "score", "ODIN scores of images.", buckets=score_buckets(scorer)
        )

    @contextmanager
    def request(self) -> Iterator[Callable[[Scores], None]]:
        """Time a request; what is given takes its scores. An error counts as a failed one."""
        began = time.perf_counter()
        try:
            yield self._take
        except BaseException:
            self._failures.inc()
            raise
        self._requests.inc()
        self._seconds.observe(time.perf_counter() - began)

    def _take(self, scores: Scores) -> None:
        self._images.inc(len(scores))
        for value in scores.score[np.isfinite(scores.score)].tolist():  # NaN would spoil the sum
            self._scores.observe(value)
        if self._flagged is not None:
            self._flagged.inc(int(scores.is_ood.sum()))
