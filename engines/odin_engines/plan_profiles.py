"""Which shapes of images a plan takes: the user's, and otherwise defaults that suit the network.

A plan is built for shapes between a smallest and a largest, and tuned for one of them (TensorRT's
optimization profile). Its memory is that of the largest.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import combinations

from odin_engines.errors import OdinError
from odin_engines.plan_records import Limits, Shape, shape_text
from odin_engines.spec import Spec

INPUT = "images"
# A plan's largest batch by default: a power of two up to this one, ...
_MOST_IMAGES = 256
# ... whose activations would take so many bytes if none of them shared memory, which most do.
_MEMORY = 16 << 30
# Of pictures of things, where a network takes nearly any size.
_USUAL_SIZE = 224
_TENSOR = re.compile(r"(?P<name>[^:,]+):(?P<sizes>\d+(?:x\d+)*)")


@dataclass(frozen=True)
class AskedShapes:
    """--minShapes, --optShapes and --maxShapes: shapes by name of an input; empty: the defaults."""

    minimum: dict[str, Shape] = field(default_factory=dict)
    optimum: dict[str, Shape] = field(default_factory=dict)
    maximum: dict[str, Shape] = field(default_factory=dict)


def parse_shapes(text: str) -> dict[str, Shape]:
    """Read shapes as trtexec spells them: "images:1x3x32x32".

    Raises:
        OdinError: it is spelt in another way.
    """
    shapes: dict[str, Shape] = {}
    for part in text.split(","):
        match = _TENSOR.fullmatch(part.strip())
        if match is None:
            raise OdinError(f"{part!r}: give the name and sizes of an input, as images:1x3x32x32")
        if match["name"] in shapes:
            raise OdinError(f"{text!r} gives {match['name']} twice")
        shapes[match["name"]] = tuple(int(size) for size in match["sizes"].split("x"))
    return shapes


def image_limits(spec: Spec, asked: AskedShapes) -> Limits:
    """Return the shapes of normalised images, (N, C, H, W), that a plan is to take.

    Where no shape is given, batches are 1 to the largest power of two up to 256 whose activations
    fit 16 GiB, tuned for a quarter of it; images have the size that the network is mostly given.
    A shape that is given tells the sizes for those that are not.

    Args:
        spec: tells the sizes that the network takes.
        asked: shapes as (N, C, H, W) or (N, H, W, C).

    Raises:
        OdinError: naming the flag, what it gives, and what is allowed.
    """
    flags = {
        "--minShapes": _given(spec, "--minShapes", asked.minimum),
        "--optShapes": _given(spec, "--optShapes", asked.optimum),
        "--maxShapes": _given(spec, "--maxShapes", asked.maximum),
    }
    low, usual, high = flags.values()
    default = (_largest_batch(spec), spec.channels, *map(_usual_size, (spec.height, spec.width)))
    least = low[0] if low else 1
    most = high[0] if high else max(default[0], *(shape[0] for shape in (low, usual) if shape), 1)
    middle = usual[0] if usual else min(max(most // 4, least), most)
    limits = Limits(
        (least, *(low or usual or high or default)[1:]),
        (middle, *(usual or high or low or default)[1:]),
        (most, *(high or usual or low or default)[1:]),
    )
    _check_order(limits, [flag for flag, shape in flags.items() if shape])
    return limits


def raw(limits: Limits) -> Limits:
    """The same limits for raw images, (N, H, W, C)."""
    shapes = (limits.minimum, limits.optimum, limits.maximum)
    return Limits(*((n, height, width, channels) for n, channels, height, width in shapes))


def _largest_batch(spec: Spec) -> int:
    batch = _MOST_IMAGES
    pixels = _usual_size(spec.height) * _usual_size(spec.width)
    smallest = spec.height[0] * spec.width[0]
    while batch > 1 and batch * spec.activation_bytes * pixels > _MEMORY * smallest:
        batch //= 2
    return batch


def _usual_size(sizes: tuple[int, int]) -> int:
    """Of images, where the network takes any of `sizes`."""
    least, most = sizes
    # Poolings of a network for one size let through what is up to twice as large.
    if most < 2 * least:
        return least
    return min(max(least, _USUAL_SIZE), most)


def _given(spec: Spec, flag: str, shapes: dict[str, Shape]) -> Shape | None:
    """The images' shape that a flag gives, as (N, C, H, W)."""
    for name in shapes:
        if name != INPUT:
            raise OdinError(
                f"{flag}={name}:{shape_text(shapes[name])}: {INPUT} is the only input whose shape "
                "varies"
            )
    shape = shapes.get(INPUT)
    if shape is None:
        return None
    text = f"{flag}={INPUT}:{shape_text(shape)}"
    wanted = f"{INPUT}:Nx{spec.channels}xHxW or {INPUT}:NxHxWx{spec.channels}"
    if len(shape) != 4 or spec.channels not in (shape[1], shape[3]):
        raise OdinError(f"{text}: {spec.model} takes {spec.channels} channels; give {wanted}")
    as_raw = shape[1] != spec.channels or (spec.input_type == "uint8" and shape[3] == spec.channels)
    n, channels, height, width = (shape[0], shape[3], *shape[1:3]) if as_raw else shape
    if n < 1:
        raise OdinError(f"{text}: a batch has 1 image or more")
    for name, size, (least, most) in (
        ("high", height, spec.height),
        ("wide", width, spec.width),
    ):
        if not least <= size <= most:
            allowed = f"{least}" if least == most else f"{least} to {most}"
            raise OdinError(f"{text}: {size} pixels {name}, where {spec.model} takes {allowed}")
    return n, channels, height, width


def _check_order(limits: Limits, given: Collection[str]) -> None:
    shapes = {
        "--minShapes": limits.minimum,
        "--optShapes": limits.optimum,
        "--maxShapes": limits.maximum,
    }
    # Flags that were given first: the shapes between may have come from them.
    pairs = sorted(combinations(shapes, 2), key=lambda pair: not set(pair) <= set(given))
    for low_flag, high_flag in pairs:
        low, high = shapes[low_flag], shapes[high_flag]
        if any(a > b for a, b in zip(low, high, strict=True)):
            raise OdinError(
                f"{low_flag}={INPUT}:{shape_text(low)} is larger than "
                f"{high_flag}={INPUT}:{shape_text(high)}, in batch, height or width; every size "
                "has to grow from smallest over usual to largest"
            )
