"""A bundle as a model of Triton's Python backend: raw images in, scores and decisions out.

Images are scored as they come: clients scale and crop them as was done before the calibration.

The server's repository holds a model.py of one line, which takes `TritonPythonModel` from here;
`odin-export BUNDLE --triton-repository DIR` writes it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from odin_engines.calibration import Calibration
from odin_engines.errors import OdinError
from odin_runtime.images import check_images
from odin_runtime.metrics import SECONDS, score_buckets
from odin_runtime.scorer import Scorer
from odin_runtime.scores import Scores

BUNDLE = "bundle"  # the folder beside model.py
IMAGES = "images"


class TritonPythonModel:
    """What the backend calls; requests that come together are scored together."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle.

        Args:
            args: of the backend: "model_config" (JSON), "model_repository", "model_name",
                "model_version". The model's parameters "engine", "precision" and "threads" are
                those of `Scorer.open`; "" and "0" leave them to it.

        Raises:
            OdinError: as `Scorer.open`; the server then says why the model is not ready.
        """
        import triton_python_backend_utils as triton

        config = json.loads(args["model_config"])
        given = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        self._outputs = {output["name"] for output in config["output"]}
        self._scorer = Scorer.open(
            Path(args["model_repository"], args["model_version"], BUNDLE),
            given.get("engine", "auto"),
            precision=given.get("precision") or None,
            threads=_threads(given.get("threads", "0")),
        )
        labels = {"model": args["model_name"], "version": args["model_version"]}
        decides = isinstance(self._scorer.calibration(), Calibration)
        self._metrics = _Metrics(
            triton.MetricFamily, labels, score_buckets(self._scorer), decides=decides
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests, each with its own images; a wrong one is told and harms no other."""
        import triton_python_backend_utils as triton

        began = time.perf_counter()
        images = [triton.get_input_tensor_by_name(each, IMAGES).as_numpy() for each in requests]
        answers: list[Any] = [None] * len(images)
        for places in _alike(images):
            joined = np.concatenate([images[place] for place in places])
            try:
                found = self._scorer.score(joined)
            except OdinError as error:
                code = self._code(joined, triton.TritonError)
                for place in places:
                    # One each: server 2.51 dies of two responses that share an error.
                    refused = triton.TritonError(str(error), code)
                    answers[place] = triton.InferenceResponse(error=refused)
                self._metrics.failed(len(places))
                continue
            arrays = {k: v for k, v in found.arrays().items() if k in self._outputs}
            start = 0
            for place in places:
                part = slice(start, start + len(images[place]))
                start = part.stop
                answers[place] = triton.InferenceResponse(
                    [triton.Tensor(name, values[part, None]) for name, values in arrays.items()]
                )
            self._metrics.answered(len(places), found, time.perf_counter() - began)
        return answers

    def _code(self, images: np.ndarray, codes: Any) -> Any:
        """Whose fault it was: the client's (HTTP 400) or ours (500)."""
        try:
            check_images(images, self._scorer.spec)
        except OdinError:
            return codes.INVALID_ARG
        return codes.INTERNAL

    def finalize(self) -> None:
        """Let go of what the engine holds."""
        self._scorer.close()


class _Metrics:
    """What the server's page of metrics says of the model beyond Triton's own counts.

    Counters alone, named as a histogram's parts are: a batch adds to each bucket once, where
    Triton's histograms take one score at a time; and older servers have none.

    Only the thread that executes uses them, and never with a negative number: server 2.51 was seen
    to abort where a second thread called, and a call was refused.
    """

    def __init__(
        self,
        family: Any,
        labels: Mapping[str, str],
        score_ends: Sequence[float],
        *,
        decides: bool,
    ) -> None:
        self._family, self._labels = family, dict(labels)
        self._families: list[Any] = []  # a metric lasts as long as its family
        self._requests = self._counter("requests_total", "Requests answered with scores.")
        self._failures = self._counter("failed_requests_total", "Requests refused.")
        self._images = self._counter("images_total", "Images scored.")
        # None where nothing decides: 0 would read as if no image were out-of-distribution.
        self._flagged = None
        if decides:
            self._flagged = self._counter("flagged_images_total", "Images out-of-distribution.")
        self._seconds = self._histogram("request_seconds", "From batch to answer.", SECONDS)
        self._scores = self._histogram("score", "ODIN scores of images.", score_ends)

    def answered(self, requests: int, scores: Scores, seconds: float) -> None:
        """Requests that were scored together."""
        self._requests.increment(requests)
        self._images.increment(len(scores))
        if self._flagged is not None:
            self._flagged.increment(int(scores.is_ood.sum()))
        self._seconds.observe(np.full(requests, seconds))
        self._scores.observe(scores.score)

    def failed(self, requests: int) -> None:
        """Requests that got an error."""
        self._failures.increment(requests)

    def _counter(self, name: str, text: str, **labels: str) -> Any:
        return self._of(name, text).Metric(labels=self._labels | labels)

    def _of(self, name: str, text: str) -> Any:
        family = self._family(name=f"odin_{name}", description=text, kind=self._family.COUNTER)
        self._families.append(family)
        return family

    def _histogram(self, name: str, text: str, ends: Sequence[float]) -> _Histogram:
        family = self._of(f"{name}_bucket", text)
        buckets = [
            (end, family.Metric(labels=self._labels | {"le": _text(end)}))
            for end in (*ends, float("inf"))
        ]
        return _Histogram(
            buckets, self._counter(f"{name}_sum", text), self._counter(f"{name}_count", text)
        )


class _Histogram:
    """Counters of the values at or below each end, of their sum and of their number."""

    def __init__(self, buckets: Sequence[tuple[float, Any]], total: Any, count: Any) -> None:
        self._buckets, self._total, self._count = buckets, total, count

    def observe(self, values: np.ndarray) -> None:
        """Add values from 0; those that are no numbers are left out."""
        known = values[np.isfinite(values)].astype(np.float64)
        for end, counter in self._buckets:
            if within := int((known <= end).sum()):
                counter.increment(within)
        self._total.increment(float(known.sum()))
        self._count.increment(len(known))


def _text(end: float) -> str:
    return "+Inf" if end == float("inf") else repr(float(end))


def _threads(text: str) -> int | None:
    if not text.isdecimal():
        raise OdinError(f"the model's parameter threads is {text!r}: give a number, 0 for all")
    return int(text) or None


def _alike(images: Sequence[np.ndarray]) -> list[list[int]]:
    """Places of the arrays that can be joined."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, array in enumerate(images):
        groups.setdefault((array.dtype.str, array.shape[1:]), []).append(place)
    return list(groups.values())
