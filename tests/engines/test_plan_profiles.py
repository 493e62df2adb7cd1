"""Which shapes plans take: the defaults, the flags, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from odin_engines.errors import OdinError
from odin_engines.plan_profiles import AskedShapes, image_limits, parse_shapes, raw
from odin_engines.plan_records import Limits, shape_text
from odin_engines.spec import Spec

SpecMaker = Callable[..., Spec]


def asked(**shapes: str) -> AskedShapes:
    """minimum, optimum, maximum: as on the command line."""
    return AskedShapes(**{name: parse_shapes(text) for name, text in shapes.items()})


def limits_text(limits: Limits) -> tuple[str, str, str]:
    return (
        shape_text(limits.minimum),
        shape_text(limits.optimum),
        shape_text(limits.maximum),
    )


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("images:1x3x32x32", {"images": (1, 3, 32, 32)}),
        ("a.b/c_0:7", {"a.b/c_0": (7,)}),
        ("x:1x2, y:3x4x5", {"x": (1, 2), "y": (3, 4, 5)}),
    ],
)
def test_shapes_as_trtexec_spells_them(text: str, shapes: Any) -> None:
    assert parse_shapes(text) == shapes


@pytest.mark.parametrize(
    "text",
    [
        *("", "images", "images:", "1x3x32x32", "images:1x3x", "images:1,3,32,32", "images:axb"),
        *("images:-1x3x32x32", "images:1x3x32x32.5", "images=1x3x32x32", "x:1x1,,y:1", ":1x1"),
    ],
)
def test_shapes_spelt_otherwise(text: str) -> None:
    with pytest.raises(OdinError, match="as images:1x3x32x32"):
        parse_shapes(text)


def test_an_input_given_twice() -> None:
    with pytest.raises(OdinError, match="gives x twice"):
        parse_shapes("x:1,x:2")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # All that fits: batches up to 256, tuned for a quarter.
        ({}, ("1x3x32x32", "64x3x32x32", "256x3x32x32")),
        # 100 MB an image: 128 of them take 12.8 GB, 256 would not fit 16 GiB.
        (
            {"activation_bytes": 100_000_000},
            ("1x3x32x32", "32x3x32x32", "128x3x32x32"),
        ),
        ({"activation_bytes": 10**12}, ("1x3x32x32", "1x3x32x32", "1x3x32x32")),
        # A network for nearly any size gets pictures of things, one for a range its smallest.
        (
            {"height": (1, 4096), "width": (1, 4096)},
            ("1x3x224x224", "64x3x224x224", "256x3x224x224"),
        ),
        ({"height": (20, 128), "width": (24, 47)}, ("1x3x128x24", "64x3x128x24", "256x3x128x24")),
        (
            {"channels": 1, "mean": (0.5,), "std": (0.5,)},
            ("1x1x32x32", "64x1x32x32", "256x1x32x32"),
        ),
        # Memory is that of the images' usual size, not of the smallest: 49 times as many pixels.
        (
            {"height": (32, 999), "width": (32, 999), "activation_bytes": 10_000_000},
            ("1x3x224x224", "8x3x224x224", "32x3x224x224"),
        ),
    ],
)
def test_defaults(tiny_spec: SpecMaker, fields: Any, expected: Any) -> None:
    assert limits_text(image_limits(tiny_spec(**fields), AskedShapes())) == expected


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({"maximum": "images:16x3x32x32"}, ("1x3x32x32", "4x3x32x32", "16x3x32x32")),
        ({"maximum": "images:1x3x32x32"}, ("1x3x32x32", "1x3x32x32", "1x3x32x32")),
        ({"maximum": "images:16x3x40x48"}, ("1x3x40x48", "4x3x40x48", "16x3x40x48")),
        ({"optimum": "images:8x3x40x40"}, ("1x3x40x40", "8x3x40x40", "256x3x40x40")),
        ({"optimum": "images:512x3x32x32"}, ("1x3x32x32", "512x3x32x32", "512x3x32x32")),
        ({"minimum": "images:100x3x32x32"}, ("100x3x32x32", "100x3x32x32", "256x3x32x32")),
        (
            {"minimum": "images:2x3x32x32", "maximum": "images:8x3x48x63"},
            ("2x3x32x32", "2x3x48x63", "8x3x48x63"),
        ),
        (
            {
                "minimum": "images:1x3x32x33",
                "optimum": "images:2x3x34x35",
                "maximum": "images:3x3x36x37",
            },
            ("1x3x32x33", "2x3x34x35", "3x3x36x37"),
        ),
        # Raw images, (N, H, W, C), are the same.
        ({"maximum": "images:16x40x48x3"}, ("1x3x40x48", "4x3x40x48", "16x3x40x48")),
    ],
)
def test_given_shapes(tiny_spec: SpecMaker, shapes: Any, expected: Any) -> None:
    assert limits_text(image_limits(tiny_spec(), asked(**shapes))) == expected


def test_a_shape_that_could_be_either_is_that_of_the_graph(tiny_spec: SpecMaker) -> None:
    narrow = {"height": (3, 9), "width": (3, 9)}
    shape = asked(maximum="images:4x3x8x3")
    plain = image_limits(tiny_spec(**narrow), shape)
    assert plain.maximum == (4, 3, 8, 3)
    assert image_limits(tiny_spec(**narrow, input_type="uint8"), shape).maximum == (4, 3, 3, 8)
    assert raw(plain).maximum == (4, 8, 3, 3)


@pytest.mark.parametrize(
    ("shapes", "parts"),
    [
        ({"maximum": "logits:1x10"}, ("--maxShapes=logits:1x10", "images is the only input")),
        ({"minimum": "temperature:1"}, ("--minShapes=temperature:1", "images is the only input")),
        ({"optimum": "images:1x1x32x32"}, ("--optShapes=images:1x1x32x32", "3 channels")),
        ({"optimum": "images:1x32x32"}, ("--optShapes", "3 channels", "images:Nx3xHxW")),
        ({"minimum": "images:0x3x32x32"}, ("--minShapes", "1 image or more")),
        ({"maximum": "images:9x3x64x32"}, ("--maxShapes", "64 pixels high", "32 to 63")),
        ({"maximum": "images:9x3x32x31"}, ("--maxShapes", "31 pixels wide", "32 to 63")),
        ({"maximum": "images:9x31x32x3"}, ("--maxShapes", "31 pixels high", "32 to 63")),
        (
            {"minimum": "images:9x3x32x32", "maximum": "images:8x3x32x32"},
            ("--minShapes=images:9x3x32x32 is larger than --maxShapes=images:8x3x32x32",),
        ),
        (
            {"minimum": "images:4x3x32x32", "optimum": "images:2x3x32x32"},
            ("--minShapes=images:4x3x32x32 is larger than --optShapes=images:2x3x32x32",),
        ),
        (
            {"optimum": "images:4x3x40x32", "maximum": "images:8x3x39x32"},
            ("--optShapes=images:4x3x40x32 is larger than --maxShapes=images:8x3x39x32",),
        ),
    ],
)
def test_refused_shapes(tiny_spec: SpecMaker, shapes: Any, parts: Any) -> None:
    with pytest.raises(OdinError) as caught:
        image_limits(tiny_spec(), asked(**shapes))
    for part in parts:
        assert part in str(caught.value)


def test_one_size_only(tiny_spec: SpecMaker) -> None:
    with pytest.raises(OdinError, match=r"33 pixels high, where tiny takes 32$"):
        image_limits(tiny_spec(height=(32, 32)), asked(maximum="images:1x3x33x32"))


def test_limits() -> None:
    limits = Limits((1, 3, 32, 32), (4, 3, 32, 32), (8, 3, 40, 32))
    for shape in ((1, 3, 32, 32), (8, 3, 40, 32), (5, 3, 36, 32)):
        assert limits.hold(shape)
    for shape in ((0, 3, 32, 32), (9, 3, 32, 32), (8, 3, 41, 32), (8, 4, 32, 32), (8, 3, 32)):
        assert not limits.hold(shape)
