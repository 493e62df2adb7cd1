"""Scaling and cropping raw images to what a network takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from odin_engines.bundle import Bundle
from odin_engines.calibration import Calibration
from odin_engines.errors import OdinError
from odin_engines.spec import Spec
from odin_runtime.images import check_images, check_layout

Size = tuple[int, int]
MOST_PIXELS = 1 << 27  # of a scaled image: a long narrow one would fill the memory


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

    def final(self, spec: Spec) -> Size | None:
        """Height and width of every image that the network then takes; None: as it comes."""
        if self.size or self.crop:
            return self.size or (self.crop or 0, self.crop or 0)
        (low, high), (narrow, wide) = spec.height, spec.width
        return (low, narrow) if low == high and narrow == wide else None

    def check(self, spec: Spec) -> None:
        """Check, before there are images, that what becomes of them fits.

        Raises:
            OdinError: the network does not take the size that all images get.
        """
        size = self.final(spec)
        if size is not None:
            check_layout((1, *size, spec.channels), np.dtype(np.uint8), spec)

    def in_words(self) -> str:
        """What is done, for people."""
        steps = []
        if self.shorter is not None:
            steps.append(f"shorter side scaled to {self.shorter}")
        if self.crop is not None:
            steps.append(f"cropped to the inner {self.crop}x{self.crop}")
        if self.size is not None and self.size != (self.crop, self.crop):
            steps.append(f"scaled to {_text(self.size)}")
        return ", then ".join(steps) or "left as they are"

    def unlike(self, known: Calibration, spec: Spec) -> str | None:
        """Why a calibration says little of images prepared so, in words; None if it does.

        Of a calibration whose images were scored as they were, it is not known what had been done
        to them: whatever comes to their size is alike.
        """
        if known.size is None:  # of an earlier version, which did not tell
            return None
        own_steps = known.crop is not None or known.scaled
        same_steps = self.shorter is None and self.crop == known.crop
        if self.final(spec) == known.size and (same_steps or not own_steps):
            return None
        return (
            f"what is done to images ({self.in_words()}) differs from the calibration "
            f"({known.pixels}; {_text(known.size)} pixels): its threshold and percentiles are "
            "meant for images prepared in the same way"
        )


def usual(bundle: Bundle) -> Preparation:
    """What is done where nobody asks for more: as to the calibration's images, else scaling."""
    known = bundle.calibration
    if known is None or known.size is None:
        return Preparation(size=usual_size(bundle.spec))
    return Preparation(crop=known.crop, size=known.size)


def usual_size(spec: Spec) -> Size:
    """The size that images of any size are scaled to: the network's only one, or its smallest."""
    return spec.height[0], spec.width[0]


def scaled(image: np.ndarray, size: Size) -> np.ndarray:
    """Scale one image, uint8 (H, W, C), to (height, width), bilinearly.

    Raises:
        OdinError: to more pixels than `MOST_PIXELS`.
    """
    if image.shape[:2] == size:
        return image
    if size[0] * size[1] > MOST_PIXELS:
        raise OdinError(
            f"an image of {_text(image.shape)} pixels would become one of {_text(size)}, more than "
            f"{MOST_PIXELS:,} pixels; leave it out, or scale to less"
        )
    from PIL import Image

    def resized(pixels: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))

    if image.shape[2] == 3:
        return resized(image)
    # Each by itself: Pillow would take two or four channels for colours with transparency.
    return np.stack([resized(image[..., channel]) for channel in range(image.shape[2])], axis=-1)


def _text(size: tuple[int, ...]) -> str:
    return f"{size[0]}x{size[1]}"


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
