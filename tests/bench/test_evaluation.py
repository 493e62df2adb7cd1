"""Which size images are scaled to."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from odin_bench.evaluation import size_to_scale_to
from odin_engines.spec import Spec


@pytest.mark.parametrize(
    ("height", "width", "given", "wanted"),
    [
        ((224, 224), (224, 224), (32, 32), (224, 224)),
        ((224, 224), (192, 192), (300, 200), (224, 192)),
        ((224, 224), (224, 224), (224, 224), None),
        ((48, 512), (48, 512), (32, 64), (48, 64)),
        ((48, 512), (64, 512), (50, 32), (50, 64)),
        ((48, 512), (48, 512), (48, 512), None),
        ((48, 512), (48, 512), (600, 600), None),  # for the user to say: --resize, or --crop
    ],
)
def test_size(
    tiny_spec: Callable[..., Spec],
    height: tuple[int, int],
    width: tuple[int, int],
    given: tuple[int, int],
    wanted: tuple[int, int] | None,
) -> None:
    assert size_to_scale_to(tiny_spec(height=height, width=width), given) == wanted
