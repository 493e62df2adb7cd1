"""What is bound to PyTriton's server; `servers/test_docs.py` has the real server."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines.test_calibration import calibration
from odin_engines.bundle import Bundle, write_calibration
from odin_engines.errors import OdinError
from odin_runtime.pytriton import bind

MakeBundle = Callable[..., Bundle]


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """A function: arguments of `bind` after the server -> what the server is given."""
    made = SimpleNamespace
    model = made(DynamicBatcher=dict, ModelConfig=dict, Tensor=made)
    monkeypatch.setitem(sys.modules, "pytriton", made())
    monkeypatch.setitem(sys.modules, "pytriton.decorators", made(batch=lambda work: work))
    monkeypatch.setitem(sys.modules, "pytriton.model_config", model)

    def call(*arguments: Any, **options: Any) -> dict[str, Any]:
        given: dict[str, Any] = {}
        server = made(bind=lambda **fields: given.update(fields))
        with bind(server, *arguments, engine="ort", threads=1, **options) as scorer:
            given["scorer"] = scorer
        return given

    return call


@pytest.fixture
def calibrated(make_tiny_bundle: MakeBundle) -> Bundle:
    return write_calibration(make_tiny_bundle(), dataclasses.replace(calibration(), size=(40, 33)))


def test_answers_are_the_scorers(
    bound: Callable[..., dict[str, Any]],
    calibrated: Bundle,
    raw_images: Callable[..., np.ndarray],
) -> None:
    given = bound(calibrated.path, "tiny", batch_size=16, wait=0.5)
    images = raw_images(5, 40, 33)
    found, known = given["infer_func"](images), given["scorer"].score(images).arrays()
    assert given["model_name"] == "tiny"
    assert list(found) == [tensor.name for tensor in given["outputs"]] == list(known)
    for tensor in given["outputs"]:
        assert tensor.shape == (1,)
        assert found[tensor.name].shape == (5, 1)
        assert found[tensor.name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[tensor.name][:, 0], known[tensor.name])
    assert given["config"]["max_batch_size"] == 16
    assert given["config"]["batcher"]["max_queue_delay_microseconds"] == 500_000


@pytest.mark.parametrize(
    ("size", "sides"), [(None, (40, 33)), ((32, 63), (32, 63)), ("any", (-1, -1))]
)
def test_sizes(
    bound: Callable[..., dict[str, Any]], calibrated: Bundle, size: Any, sides: tuple[int, int]
) -> None:
    (images,) = bound(calibrated.path, size=size)["inputs"]
    assert images.shape == (*sides, 3)
    assert images.dtype is np.uint8


def test_an_uncalibrated_bundle_takes_any_size(
    bound: Callable[..., dict[str, Any]], tiny_bundle: Bundle
) -> None:
    given = bound(tiny_bundle.path)
    assert given["inputs"][0].shape == (-1, -1, 3)
    assert [tensor.name for tensor in given["outputs"]] == ["score", "baseline", "label"]


def test_a_size_that_the_network_does_not_take(
    bound: Callable[..., dict[str, Any]], tiny_bundle: Bundle
) -> None:
    with pytest.raises(OdinError, match="64 pixels high"):
        bound(tiny_bundle.path, size=(64, 32))
