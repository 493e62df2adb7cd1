"""What the tests of the scorer share: comparing scores, and watching what an engine is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytest

from odin_engines.bundle import Bundle
from odin_engines.engine import Arrays, Session
from odin_runtime import OdinError, Scorer, Scores

CPU_ENGINES = ("openvino", "ort")
BundleMaker = Callable[..., Bundle]
Images = Callable[..., np.ndarray]


class Recorder(Session):
    """A session that keeps the shapes of what it was given."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.shapes: list[tuple[int, ...]] = []
        self.at_once = 1

    def run(self, feeds: Arrays) -> dict[str, np.ndarray]:
        self.shapes.append(feeds["images"].shape)
        return self.session.run(feeds)

    def run_all(self, batches: Iterable[Arrays]) -> Iterator[dict[str, np.ndarray]]:
        self.at_once = self.streams
        return super().run_all(batches)


def recorded(scorer: Scorer) -> tuple[Scorer, Recorder]:
    recorder = Recorder(scorer.session)
    return dataclasses.replace(scorer, session=recorder), recorder


def normalise(raw: np.ndarray, bundle: Bundle) -> np.ndarray:
    """Written anew: float32 (N, 3, H, W)."""
    planes = (raw / 255 - bundle.spec.mean) / bundle.spec.std
    return np.ascontiguousarray(planes.transpose(0, 3, 1, 2), np.float32)


def close(found: Scores, expected: Scores, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(found.score, expected.score, rtol=0, atol=tolerance)
    np.testing.assert_allclose(found.baseline, expected.baseline, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(found.label, expected.label)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(OdinError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message
