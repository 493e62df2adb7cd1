"""How images are scaled and cropped, and whether that is as the calibration's were."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from engines.test_calibration import calibration
from odin_engines.bundle import Bundle
from odin_engines.errors import OdinError
from odin_engines.spec import Spec
from odin_runtime.preparation import MOST_PIXELS, Preparation, scaled, usual

SpecMaker = Callable[..., Spec]


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_each_channel_is_scaled_by_itself(channels: int) -> None:
    image = np.random.default_rng(1).integers(0, 256, (9, 14, channels), np.uint8)
    found = scaled(image, (6, 21))
    assert found.shape == (6, 21, channels)
    for channel in range(channels):
        alone = scaled(image[..., channel : channel + 1], (6, 21))
        np.testing.assert_array_equal(found[..., channel : channel + 1], alone)


def test_a_long_narrow_image_does_not_fill_the_memory(tiny_spec: SpecMaker) -> None:
    image = np.zeros((1, 4000, 3), np.uint8)
    assert MOST_PIXELS < 256 * 4000 * 256
    with pytest.raises(OdinError, match=r"1x4000 pixels would become one of 256x1024000, more"):
        Preparation(shorter=256)(image, tiny_spec())


@pytest.mark.parametrize(
    ("prepare", "size"),
    [
        (Preparation(size=(40, 36)), (40, 36)),
        (Preparation(crop=36), (36, 36)),
        (Preparation(shorter=64, crop=36, size=(40, 40)), (40, 40)),
        (Preparation(), None),
        (Preparation(shorter=64), None),
    ],
)
def test_the_size_of_all_images(
    prepare: Preparation, size: tuple[int, int] | None, tiny_spec: SpecMaker
) -> None:
    assert prepare.final(tiny_spec()) == size
    prepare.check(tiny_spec())
    assert Preparation().final(tiny_spec(height=(32, 32), width=(40, 40))) == (32, 40)


def test_a_size_that_the_network_does_not_take(tiny_spec: SpecMaker) -> None:
    for prepare in (Preparation(size=(64, 32)), Preparation(crop=64)):
        with pytest.raises(OdinError, match="64 pixels high, where tiny takes 32 to 63"):
            prepare.check(tiny_spec())


def test_what_is_usual_is_the_calibrations(tiny_bundle: Bundle) -> None:
    def of(**changes: Any) -> Preparation:
        return usual(dataclasses.replace(tiny_bundle, calibration=calibration(**changes)))

    assert usual(tiny_bundle) == of() == Preparation(size=(32, 32))
    assert of(size=(48, 40)) == Preparation(size=(48, 40))
    assert of(size=(48, 48), crop=48) == Preparation(crop=48, size=(48, 48))


AS_THEY_WERE = {"size": (36, 36)}
CROPPED = {"size": (36, 36), "crop": 36}
SCALED = {"size": (36, 36), "scaled": True}


@pytest.mark.parametrize(
    ("changes", "prepare", "alike"),
    [
        ({}, Preparation(size=(63, 63)), True),  # nothing is known
        (AS_THEY_WERE, Preparation(size=(36, 36)), True),
        (AS_THEY_WERE, Preparation(shorter=40, crop=36), True),
        (AS_THEY_WERE, Preparation(crop=36, size=(40, 40)), False),
        (AS_THEY_WERE, Preparation(), False),
        (CROPPED, Preparation(crop=36), True),
        (CROPPED, Preparation(crop=36, size=(36, 36)), True),
        (CROPPED, Preparation(size=(36, 36)), False),
        (CROPPED, Preparation(shorter=40, crop=36), False),
        (SCALED, Preparation(size=(36, 36)), True),
        (SCALED, Preparation(shorter=40, crop=36), False),
        (SCALED, Preparation(crop=40, size=(36, 36)), False),
    ],
)
def test_other_preparations_are_told(
    changes: dict[str, Any], prepare: Preparation, alike: bool, tiny_spec: SpecMaker
) -> None:
    problem = prepare.unlike(calibration(**changes), tiny_spec())
    assert (problem is None) == alike
    if problem is not None:
        assert prepare.in_words() in problem
        assert "36x36 pixels" in problem
