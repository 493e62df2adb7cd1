"""Scaling and cropping raw images to what a network takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from odin_engines.errors import OdinError
from odin_engines.spec import Spec
from odin_runtime.images import check_images

Size = tuple[int, int]


@dataclass(frozen=True)
class Preparation:
    """What is done to each image, in this order.

    Attributes:
        shorter: scale the shorter side to so many pixels; None leaves it.
        crop: keep the inner so many pixels of each side; None keeps all.
        size: scale to this height and width; None leaves images as they are.
    """

    shorter: int | None = None
    crop: int | None = None
    size: Size | None = None

    def __call__(self, image: np.ndarray, spec: Spec) -> np.ndarray:
        """Prepare one image, uint8 (H, W, C).

        Raises:
            OdinError: it is smaller than the crop, or the network does not take its size.
        """
        if self.shorter is not None:
            image = scaled(image, _with_shorter(image.shape[:2], self.shorter))
        if self.crop is not None:
            image = _cropped(image, self.crop)
        if self.size is not None:
            image = scaled(image, self.size)
        check_images(image[None], spec)
        return image


def usual_size(spec: Spec) -> Size:
    """The size that images of any size are scaled to: the network's only one, or its smallest."""
    return spec.height[0], spec.width[0]


def scaled(image: np.ndarray, size: Size) -> np.ndarray:
    """Scale one image, uint8 (H, W, 3) or (H, W, 1), to (height, width), bilinearly."""
    if image.shape[:2] == size:
        return image
    from PIL import Image

    grey = image.shape[2] == 1
    picture = Image.fromarray(image[..., 0] if grey else image)
    picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    found = np.asarray(picture)
    return found[..., None] if grey else found


def _with_shorter(shape: tuple[int, ...], shorter: int) -> Size:
    height, width = shape
    factor = shorter / min(height, width)
    return max(round(height * factor), 1), max(round(width * factor), 1)


def _cropped(image: np.ndarray, crop: int) -> np.ndarray:
    height, width = image.shape[:2]
    if min(height, width) < crop:
        raise OdinError(f"an image of {height}x{width} pixels has no inner {crop}x{crop}")
    top, left = (height - crop) // 2, (width - crop) // 2
    return image[top : top + crop, left : left + crop]
