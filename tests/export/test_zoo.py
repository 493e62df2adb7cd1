"""Architectures of torchvision and timm: the exported gradient against PyTorch's autograd."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from export import zoo

pytestmark = pytest.mark.skipif(
    find_spec("timm") is None, reason="install timm and torchvision: pip install '.[cpu,test]'"
)


# What the builder refuses, by network; all else has to build.
KNOWN_TO_RTX: dict[str, tuple[str, ...]] = {}


# The longest of those whose parts other networks of the list have too.
SLOW = (
    *("mobilevit_xxs", "botnet26t_256", "gcresnet33ts", "poolformer_s12", "levit_128s"),
    *("resnext50_32x4d", "legacy_xception", "res2net50_14w_8s", "dla34", "resnet26d"),
)
CASES = [
    pytest.param(each, id=str(each), marks=pytest.mark.slow if each.name in SLOW else ())
    for each in zoo.ARCHITECTURES
]


@pytest.mark.parametrize("architecture", CASES)
def test_gradient_agrees_with_autograd(architecture: zoo.Architecture) -> None:
    result = zoo.compare(architecture)
    assert result.error_64 <= zoo.LARGEST_ERROR_64
    assert result.error_32 <= zoo.LARGEST_ERROR_32
    assert result.rtx in (zoo.BUILDS, "not installed", *KNOWN_TO_RTX.get(architecture.name, ()))


def test_enough_architectures_are_tried() -> None:
    names = {str(architecture) for architecture in zoo.ARCHITECTURES}
    assert len(names) == len(zoo.ARCHITECTURES)
    assert len(names) - len(SLOW) >= 40
