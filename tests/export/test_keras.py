"""The Keras road: Keras' own ONNX export, channels last, becomes a bundle like any other."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from odin_engines.bundle import GRADIENT, read_bundle
from odin_engines.engine import open_graph
from odin_export import cli
from odin_runtime import Scorer
from odin_runtime.images import normalised

SCRIPT = Path(__file__).with_name("keras_model.py")
TEMPERATURE, MAGNITUDE = 10.0, 0.01


@pytest.fixture(scope="module")
def keras_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.onnx and keras.npz, made by Keras on PyTorch in a process of its own."""
    if find_spec("keras") is None:
        pytest.skip("install keras: pip install '.[cpu,test]'")
    folder = tmp_path_factory.mktemp("keras")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), str(folder)],
        env={**os.environ, "KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def bundle(keras_folder: Path) -> Path:
    arguments = [
        *(str(keras_folder / "model.onnx"), "--output", str(keras_folder / "bundle")),
        *("--preset", "raw", "--temperature", str(TEMPERATURE), "--magnitude", str(MAGNITUDE)),
        *("--scores", "msp,energy,gradnorm,cam-max,cam-std", "--verify", "2"),
    ]
    assert cli.main(arguments) == 0
    return keras_folder / "bundle"


@pytest.fixture(scope="module")
def by_keras(keras_folder: Path) -> dict[str, np.ndarray]:
    with np.load(keras_folder / "keras.npz") as file:
        return dict(file)


def test_it_is_a_bundle_like_any_other(bundle: Path) -> None:
    spec = read_bundle(bundle).spec
    assert (spec.channels, spec.classes) == (3, 10)
    assert (spec.height, spec.width) == ((32, 32), (32, 32))


def test_the_gradient_is_keras_own(bundle: Path, by_keras: dict[str, np.ndarray]) -> None:
    spec = read_bundle(bundle).spec
    session = open_graph("ort", bundle / GRADIENT)
    found = session.run({"images": normalised(by_keras["raw"], spec)})["input_gradient"]
    expected = by_keras["gradient"].transpose(0, 3, 1, 2)
    difference = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert difference < 1e-4


@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_scores(bundle: Path, by_keras: dict[str, np.ndarray], engine: str) -> None:
    scores = Scorer.open(bundle, engine).score(by_keras["raw"])
    probabilities = by_keras["probabilities"]
    np.testing.assert_array_equal(scores.label, probabilities.argmax(axis=1))
    np.testing.assert_allclose(scores.baseline, probabilities.max(axis=1), rtol=1e-4)
    np.testing.assert_allclose(scores.extra["msp"], probabilities.max(axis=1), rtol=1e-4)
    plain = probabilities ** (1 / TEMPERATURE)
    unperturbed = (plain / plain.sum(axis=1, keepdims=True)).max(axis=1)
    # The step raises the softmax of the predicted class, to first order by the gradient's L1 norm.
    gain = MAGNITUDE * 255 * np.abs(by_keras["gradient"]).sum(axis=(1, 2, 3))
    assert (gain > 1e-3).all()
    np.testing.assert_allclose(np.log(scores.score / unperturbed), gain, rtol=0.5)
