"""What images have to be, and how raw ones become the network's."""

from __future__ import annotations

from typing import Any

import numpy as np

from odin_engines.errors import OdinError
from odin_engines.spec import Spec


def normalised(images: np.ndarray, spec: Spec) -> np.ndarray:
    """Raw images, uint8 (N, H, W, C) -> (pixel / 255 - mean) / std, float32 (N, C, H, W)."""
    planes = images.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    planes /= np.float32(255)
    planes -= np.asarray(spec.mean, np.float32).reshape(1, -1, 1, 1)
    planes /= np.asarray(spec.std, np.float32).reshape(1, -1, 1, 1)
    return planes


def check_images(images: np.ndarray, spec: Spec) -> None:
    """Check type, layout and size.

    Raises:
        OdinError: naming what was given and what is wanted.
    """
    if not isinstance(images, np.ndarray):
        raise OdinError(
            f"images are a {type(images).__name__}; give a numpy array, {_wanted(spec)}"
        )
    check_layout(images.shape, images.dtype, spec)


def check_layout(shape: tuple[int, ...], dtype: np.dtype[Any], spec: Spec) -> None:
    """As `check_images`, of an array that may lie anywhere."""
    wanted, given = _wanted(spec), f"images are {shape} {dtype}"
    if len(shape) == 3 and spec.channels == 1 and dtype == np.uint8:
        raise OdinError(f"{given}, without an axis for the only channel; give images[..., None]")
    if len(shape) == 3:
        raise OdinError(f"{given}: one image without a batch axis; give images[None], {wanted}")
    if len(shape) != 4 or dtype not in (np.uint8, np.float32):
        hint = "; convert with .astype(numpy.float32)" if dtype.kind == "f" else ""
        raise OdinError(f"{given}; give {wanted}{hint}")
    raw = dtype == np.uint8
    if shape[3 if raw else 1] != spec.channels:
        other = shape[1 if raw else 3] == spec.channels
        remedy = "move the channels with .transpose" if other else "check the number of channels"
        raise OdinError(f"{given}; give {wanted}: {remedy}")
    height, width = shape[1:3] if raw else shape[2:4]
    for name, size, (least, most) in (
        ("high", height, spec.height),
        ("wide", width, spec.width),
    ):
        if not least <= size <= most:
            allowed = f"{least}" if least == most else f"{least} to {most}"
            remedy = "scale the images up" if size < least else "resize or crop the images"
            raise OdinError(
                f"{given}: {size} pixels {name}, where {spec.model} takes {allowed}; {remedy}"
            )


def _wanted(spec: Spec) -> str:
    return (
        f"(N, H, W, {spec.channels}) uint8, raw, or (N, {spec.channels}, H, W) float32, normalised"
    )
