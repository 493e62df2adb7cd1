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


@pytest.mark.parametrize("architecture", zoo.ARCHITECTURES, ids=str)
def test_gradient_agrees_with_autograd(architecture: zoo.Architecture) -> None:
    result = zoo.compare(architecture)
    assert result.error_64 <= zoo.LARGEST_ERROR_64
    assert result.error_32 <= zoo.LARGEST_ERROR_32
    assert result.rtx in (zoo.BUILDS, "not installed", *KNOWN_TO_RTX.get(architecture.name, ()))


def test_enough_architectures_are_tried() -> None:
    names = {str(architecture) for architecture in zoo.ARCHITECTURES}
    assert len(names) == len(zoo.ARCHITECTURES) >= 40
