"""Image files and .npz files as uint8 arrays; every fault of a file is told by name."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from odin_engines.errors import OdinError
from odin_engines.packages import install_command

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
# What Pillow turns every picture into, by the number of channels.
_MODES = {1: "L", 3: "RGB"}
_EXIF_ORIENTATION = 0x0112
# What numpy and zipfile raise on damaged or foreign files.
_NPZ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    OverflowError,
    SyntaxError,
    tokenize.TokenError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
# What Pillow's decoders raise on damaged or foreign files.
_IMAGE_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    SyntaxError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)


def image_files(folder: Path) -> Iterator[Path]:
    """Find the image files of a set, in no particular order."""
    # The release's archives hold NAME/test/*.png; `test` alone counts where it is there.
    root = folder / "test" if (folder / "test").is_dir() else folder
    for path in root.rglob("*"):
        # macOS leaves "._name.png" files behind that are no images.
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            yield path


def read_images(files: Sequence[Path], channels: int = 3) -> np.ndarray:
    """Decode images of one size: uint8 (N, H, W, channels).

    Raises:
        OdinError: a file is no image, or of another size than the first.
    """
    first = decode(files[0], str(files[0]), channels)
    images = np.empty((len(files), *first.shape), np.uint8)
    images[0] = first
    for i, file in enumerate(files[1:], start=1):
        image = decode(file, str(file), channels)
        if image.shape != first.shape:
            raise OdinError(
                f"{file} is {_size(image)} and {files[0]} is {_size(first)}; "
                "scale all images of a set to one size"
            )
        images[i] = image
    return images


def decode_rgb(file: Path | BinaryIO, name: str) -> np.ndarray:
    """`decode` to RGB."""
    return decode(file, name, 3)


def decode(
    file: Path | BinaryIO,
    name: str,
    channels: int,
    *,
    formats: Sequence[str] | None = None,
    most_pixels: int | None = None,
) -> np.ndarray:
    """Decode one 8-bit image, upright, to uint8 (H, W, channels).

    It is turned as its EXIF orientation says, as viewers show it. Palettes and CMYK become RGB, an
    alpha channel is dropped, and colours become grey by ITU-R 601-2, each as Pillow converts. PNG
    and TIFF files of 16 bits in each of three channels are read in 8.

    Args:
        file: of the image.
        name: for messages.
        channels: 1 (grey) or 3 (RGB).
        formats: by Pillow's names, those that are read; None: all that Pillow reads.
        most_pixels: of a picture that is decoded; None: what Pillow allows. It holds for formats
            that tell their size at the beginning, not for containers of others such as ICO.

    Raises:
        OdinError: other channels; the file is damaged, is no image, has grey pixels of more than
            8 bits, or more pixels than are allowed; or Pillow is not installed.
    """
    if channels not in _MODES:
        raise OdinError(
            f"{name}: image files give 1 or 3 channels, and the network takes {channels}; give the "
            f"images as arrays: {_wanted(channels)}"
        )
    pillow = _pillow()
    try:
        with pillow.open(file, formats=formats) as image:
            if most_pixels is not None and image.width * image.height > most_pixels:
                raise OdinError(
                    f"{name}: {image.height}x{image.width} pixels, more than {most_pixels:,}: "
                    "scale the image down"
                )
            # Pillow would clip 16-bit and float pixels at 255 instead of scaling them.
            if image.mode.startswith(("I", "F")):
                raise OdinError(
                    f"{name}: pixels of mode {image.mode}; want 8 bits a channel: scale them, "
                    "since the file does not tell their range"
                )
            pixels = np.array(image.convert(_MODES[channels]))
            upright = _turned(pixels, _orientation(image))
    except (*_IMAGE_ERRORS, pillow.DecompressionBombError) as error:
        wanted = f"; want one of {', '.join(formats)}" if formats else ""
        raise OdinError(f"{name} cannot be read as an image: {error}{wanted}") from error
    return np.ascontiguousarray(upright if channels == 3 else upright[..., None])


def read_npz(path: Path, channels: int = 3) -> tuple[np.ndarray, np.ndarray | None]:
    """Read `x`, uint8 (N, H, W, channels), and `y`, int64 (N,) or None where the file has none.

    Of one channel, `x` may be (N, H, W) in the file.

    Raises:
        OdinError: the file is damaged, or its arrays are of another kind.
    """
    wanted = _wanted(channels)
    images, labels = _arrays(path, wanted)
    if images is None:
        raise OdinError(f"{path} has no array x; want {wanted}")
    if images.ndim == 3 and channels == 1:
        images = images[..., None]
    _check_images(path, images, channels)
    if labels is not None:
        labels = _checked_labels(path, labels, len(images))
    return np.ascontiguousarray(images), labels


def _arrays(path: Path, wanted: str) -> tuple[np.ndarray | None, np.ndarray | None]:
    try:
        # Opened here, for np.load leaves its own file open when the archive is damaged.
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise OdinError(f"{path} is a single bare array; want {wanted}")
            x, y = (archive[key] if key in archive.files else None for key in ("x", "y"))
    except _NPZ_ERRORS as error:
        raise OdinError(f"{path} cannot be read: {error}; want {wanted}") from error
    # A zip member that is no array at all comes as bytes.
    if isinstance(x, bytes) or isinstance(y, bytes):
        raise OdinError(f"{path}: x or y is no numpy array; want {wanted}")
    return x, y


def _check_images(path: Path, images: np.ndarray, channels: int) -> None:
    found = f"{path}: x is {images.dtype} {images.shape}"
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != channels:
        raise OdinError(f"{found}; want {_layout(channels)}")
    if images.size == 0:
        raise OdinError(f"{found}, an empty set; want at least one image")


def _checked_labels(path: Path, labels: np.ndarray, count: int) -> np.ndarray:
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise OdinError(f"{path}: y is {labels.dtype} {labels.shape}; want integers ({count},)")
    return labels.astype(np.int64)


def _orientation(image: Any) -> int:
    """As EXIF numbers it, from 1, which is upright."""
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except _IMAGE_ERRORS:
        return 1  # of a picture that is whole, EXIF that is damaged tells nothing


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (H, W, ...) turned upright: EXIF 2.32, section 4.6.4, Orientation."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


def _layout(channels: int) -> str:
    kind = {1: ", grey", 3: ", RGB"}.get(channels, "")
    return f"uint8 (N, H, W, {channels}){kind}"


def _wanted(channels: int) -> str:
    return f"an .npz file with x: {_layout(channels)}, and optionally y: integer labels (N,)"


def _size(image: np.ndarray) -> str:
    return f"{image.shape[0]}x{image.shape[1]}"


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise OdinError(f"reading images needs Pillow; {install_command()}") from error
    return Image
