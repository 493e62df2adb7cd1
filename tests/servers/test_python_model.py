"""The model of Triton's Python backend, without a server: what it answers, counts and refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from engines.test_calibration import calibration
from odin_engines.bundle import Bundle, write_calibration
from odin_engines.errors import OdinError
from odin_export import triton
from odin_runtime.scorer import Scorer
from odin_runtime.triton_model import TritonPythonModel
from runtime.small_bundles import bundle_of, grey_images


@dataclass
class Tensor:
    name: str
    array: np.ndarray

    def as_numpy(self) -> np.ndarray:
        return self.array


class Error(str):
    """What a model says is wrong, and whose fault it was."""

    INVALID_ARG, INTERNAL = "client", "server"
    code: str

    def __new__(cls, text: str, code: str = INTERNAL) -> Error:
        made = super().__new__(cls, text)
        made.code = code
        return made


@dataclass
class Response:
    tensors: Sequence[Tensor] = ()
    error: str = ""

    def arrays(self) -> dict[str, np.ndarray]:
        assert not self.error
        return {tensor.name: tensor.array for tensor in self.tensors}


@dataclass
class Family:
    """Triton's counters; like the server, it refuses what would make one smaller."""

    COUNTER: ClassVar[int] = 0
    values: ClassVar[dict[str, float]] = {}

    name: str
    description: str
    kind: int
    labels: dict[str, str] = field(default_factory=dict)

    def Metric(self, labels: dict[str, str]) -> Any:
        place = " ".join([self.name, *(v for k, v in labels.items() if k == "le")])
        assert labels["model"] == "odin_python"
        assert place not in self.values
        self.values[place] = 0

        def increment(by: float) -> None:
            assert by >= 0
            self.values[place] += by

        return SimpleNamespace(increment=increment)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Any:
    Family.values.clear()
    fake = SimpleNamespace(
        get_input_tensor_by_name=lambda request, name: request[name],
        Tensor=Tensor,
        InferenceResponse=lambda tensors=(), error="": Response(tensors, error),
        TritonError=Error,
        MetricFamily=Family,
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake)
    return fake


@pytest.fixture(scope="module")
def bundle(
    make_tiny_bundle: Callable[..., Bundle], raw_images: Callable[..., np.ndarray]
) -> Bundle:
    made = make_tiny_bundle(scores=("energy",))
    scores = np.sort(Scorer.open(made, "ort").score(raw_images(40)).score.astype(float))
    known = calibration(
        threshold=float(np.median(scores)), images=40, quantiles=tuple(scores.tolist())
    )
    return write_calibration(made, known)


Opened = Callable[..., TritonPythonModel]


@pytest.fixture
def opened(bundle: Bundle, backend: Any, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """A function: parameters to change -> the model, as the server loads it."""

    def make(bundle: Bundle = bundle, **parameters: str) -> TritonPythonModel:
        folder = tmp_path_factory.mktemp("python") / "models"
        triton.write(folder, triton.repository(bundle, "python"))
        given = {"engine": "ort", "precision": "", "threads": "0"} | parameters
        outputs = ("score", "baseline", "label", "energy", "is_ood", "percentile")
        config = {
            "output": [{"name": name} for name in outputs],
            "parameters": {key: {"string_value": value} for key, value in given.items()},
        }
        model = TritonPythonModel()
        model.initialize(
            {
                "model_config": json.dumps(config),
                "model_repository": str(folder / "odin_python"),
                "model_name": "odin_python",
                "model_version": "1",
            }
        )
        return model

    return make


def execute(model: TritonPythonModel, *batches: np.ndarray) -> list[Response]:
    return model.execute([{"images": Tensor("images", each)} for each in batches])


def test_requests_of_several_sizes_get_their_own_scores(
    opened: Opened, bundle: Bundle, raw_images: Callable[..., np.ndarray]
) -> None:
    batches = [raw_images(3), raw_images(2, 40, 33), raw_images(4, seed=2), raw_images(1, 40, 33)]
    local = Scorer.open(bundle, "ort")
    for response, images in zip(execute(opened(), *batches), batches, strict=True):
        found, known = response.arrays(), local.score(images).arrays()
        assert set(found) == set(known)
        for name, values in known.items():
            assert found[name].shape == (len(images), 1)
            assert found[name].dtype == values.dtype
            atol = 0.03 if name == "percentile" else 1e-6
            np.testing.assert_allclose(found[name][:, 0], values, rtol=0, atol=atol)


def test_wrong_requests_get_errors_and_the_others_scores(
    opened: Opened, raw_images: Callable[..., np.ndarray]
) -> None:
    good, small, one = raw_images(3), raw_images(2, 8, 32), raw_images(1)[0]
    answers = execute(opened(), small, good, one, good, small)
    assert "8 pixels high, where tiny takes 32 to 63" in answers[0].error == answers[4].error
    assert answers[0].error.code == Error.INVALID_ARG
    assert "one image without a batch axis" in answers[2].error
    for place in (1, 3):
        assert len(answers[place].arrays()["score"]) == 3
    assert Family.values["odin_requests_total"] == 2
    assert Family.values["odin_failed_requests_total"] == 3
    assert Family.values["odin_images_total"] == 6


def test_a_network_of_grey_images(opened: Opened, tmp_path: Path) -> None:
    bundle = bundle_of(1, tmp_path / "grey")
    batches = [grey_images(3), grey_images(2, 12, 9), np.repeat(grey_images(2), 3, axis=3)]
    *good, wrong = execute(opened(bundle), *batches)
    local = Scorer.open(bundle, "ort")
    for response, images in zip(good, batches, strict=False):
        expected = local.score(images).score
        np.testing.assert_allclose(response.arrays()["score"][:, 0], expected, rtol=0, atol=1e-6)
    assert "(2, 8, 8, 3) uint8; give (N, H, W, 1) uint8" in wrong.error


def test_counts(opened: Opened, raw_images: Callable[..., np.ndarray]) -> None:
    images = raw_images(30, seed=4)
    (answer,) = execute(opened(), images)
    found, values = answer.arrays(), Family.values
    assert 0 < values["odin_flagged_images_total"] == found["is_ood"].sum() < 30
    assert values["odin_score_count"] == values["odin_score_bucket +Inf"] == 30
    assert values["odin_score_sum"] == pytest.approx(found["score"].astype(float).sum())
    ends = [name for name in values if name.startswith("odin_score_bucket") and "Inf" not in name]
    assert len(ends) > 5
    for name in ends:
        assert values[name] == (found["score"] <= float(name.split()[1])).sum()
    assert values["odin_request_seconds_count"] == values["odin_request_seconds_bucket +Inf"] == 1
    assert 0 < values["odin_request_seconds_sum"] < 60


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"threads": "two"}, "parameter threads is 'two': give a number"),
        ({"threads": "-1"}, "parameter threads is '-1': give a number"),
        ({"engine": "nothing"}, "nothing"),
    ],
)
def test_wrong_parameters(opened: Opened, parameters: dict[str, str], message: str) -> None:
    with pytest.raises(OdinError, match=message):
        opened(**parameters)
