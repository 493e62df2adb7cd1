"""The server's environment, a bundle, its repositories, and servers that run them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from engines.test_calibration import calibration
from odin_engines.bundle import Bundle, read_bundle, write_calibration
from odin_engines.files import user_cache
from odin_export import cli, triton
from odin_runtime.scorer import Scorer
from servers import environment
from servers.environment import Environment, Server

SHARE_OUT = 0.25


@pytest.fixture(scope="session")
def triton_environment() -> Environment:
    """The environment with the server, made in minutes and kept in the user's cache folder.

    Where the server does not run its tests are skipped; if pip fails, so do they.
    """
    problem = environment.unfit()
    if problem:
        pytest.skip(problem)
    cache = user_cache()
    assert cache is not None, "there is no folder for caches: set XDG_CACHE_HOME"
    return environment.made(cache / "tests")


@pytest.fixture(scope="session")
def images(raw_images: Callable[..., np.ndarray]) -> np.ndarray:
    """CIFAR-10's where the image sets are at hand, else made ones: uint8 (64, 32, 32, 3)."""
    file = Path(os.environ.get("ODIN_DATA", ""), "cifar10_test.npz")
    if not file.is_file():
        return raw_images(64, seed=3)
    with np.load(file) as loaded:
        array = next(loaded[name] for name in loaded.files if loaded[name].ndim == 4)
    return np.ascontiguousarray(array[:64])


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, images: np.ndarray) -> Bundle:
    """DenseNet-BC-100-12 for CIFAR-10, calibrated with the images."""
    folder = tmp_path_factory.mktemp("served") / "densenet10"
    assert cli.main(["densenet10", "--output", str(folder)]) == 0
    made = read_bundle(folder)
    scores = Scorer.open(made, "openvino").score(images).score.astype(float)
    known = calibration(
        threshold=float(np.quantile(scores, SHARE_OUT)),
        images=len(scores),
        quantiles=tuple(np.sort(scores).tolist()),
        temperature=made.spec.temperature,
        magnitude=made.spec.magnitude,
    )
    known = dataclasses.replace(known, size=(32, 32))
    return write_calibration(made, dataclasses.replace(known, tpr=1 - SHARE_OUT))


@pytest.fixture(scope="session")
def local(bundle: Bundle) -> Scorer:
    """The engine that the server's Scorer takes too."""
    return Scorer.open(bundle, "openvino")


@pytest.fixture(scope="session")
def repository(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models whose ensemble scores with the Python backend, the only one of this server."""
    folder = tmp_path_factory.mktemp("models") / "models"
    triton.write(folder, triton.repository(bundle, "python"))
    return folder


@pytest.fixture(scope="session")
def server(
    triton_environment: Environment, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One that serves odin and odin_python to all the tests."""
    folder = tmp_path_factory.mktemp("server")
    with environment.serving(triton_environment, repository, folder) as running:
        yield running


@pytest.fixture(scope="session")
def server_of_one_size(
    triton_environment: Environment, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One whose models take images of 32 x 32 alone."""
    folder = tmp_path_factory.mktemp("one_size")
    triton.write(folder / "models", triton.repository(bundle, "python", size=(32, 32)))
    with environment.serving(triton_environment, folder / "models", folder) as running:
        yield running
