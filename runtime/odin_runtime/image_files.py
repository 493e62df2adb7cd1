"""Image files and .npz files as uint8 arrays; every fault of a file is told by name."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

import numpy as np

from odin_engines.errors import OdinError
from odin_engines.packages import install_command

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
_WANTED = "an .npz file with x: uint8 (N, H, W, 3) RGB, and optionally y: integer labels (N,)"
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


def read_images(files: Sequence[Path]) -> np.ndarray:
    """Decode images of one size: uint8 (N, H, W, 3) RGB.

    Raises:
        OdinError: a file is no image, or of another size than the first.
    """
    first = decode_rgb(files[0], str(files[0]))
    images = np.empty((len(files), *first.shape), np.uint8)
    images[0] = first
    for i, file in enumerate(files[1:], start=1):
        image = decode_rgb(file, str(file))
        if image.shape != first.shape:
            raise OdinError(
                f"{file} is {_size(image)} and {files[0]} is {_size(first)}; "
                "scale all images of a set to one size"
            )
        images[i] = image
    return images


def decode_rgb(file: Path | BinaryIO, name: str) -> np.ndarray:
    """Decode one 8-bit image to uint8 (H, W, 3) RGB; an alpha channel is dropped.

    Raises:
        OdinError: the file is damaged, is no image, has more than 8 bits a channel, or Pillow
            is not installed.
    """
    pillow = _pillow()
    try:
        with pillow.open(file) as image:
            # Pillow would clip 16-bit and float pixels at 255 instead of scaling them.
            if image.mode.startswith(("I", "F")):
                raise OdinError(f"{name}: pixels of mode {image.mode}; want 8 bits a channel")
            return np.array(image.convert("RGB"))
    except (*_IMAGE_ERRORS, pillow.DecompressionBombError) as error:
        raise OdinError(f"{name} cannot be read as an image: {error}") from error


def read_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read `x`, uint8 (N, H, W, 3), and `y`, int64 (N,) or None where the file has none.

    Raises:
        OdinError: the file is damaged, or its arrays are of another kind.
    """
    images, labels = _arrays(path)
    if images is None:
        raise OdinError(f"{path} has no array x; want {_WANTED}")
    _check_images(path, images)
    if labels is not None:
        labels = _checked_labels(path, labels, len(images))
    return np.ascontiguousarray(images), labels


def _arrays(path: Path) -> tuple[np.ndarray | None, np.ndarray | None]:
    try:
        # Opened here, for np.load leaves its own file open when the archive is damaged.
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise OdinError(f"{path} is a single bare array; want {_WANTED}")
            x, y = (archive[key] if key in archive.files else None for key in ("x", "y"))
    except _NPZ_ERRORS as error:
        raise OdinError(f"{path} cannot be read: {error}; want {_WANTED}") from error
    # A zip member that is no array at all comes as bytes.
    if isinstance(x, bytes) or isinstance(y, bytes):
        raise OdinError(f"{path}: x or y is no numpy array; want {_WANTED}")
    return x, y


def _check_images(path: Path, images: np.ndarray) -> None:
    found = f"{path}: x is {images.dtype} {images.shape}"
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise OdinError(f"{found}; want uint8 (N, H, W, 3), RGB")
    if images.size == 0:
        raise OdinError(f"{found}, an empty set; want at least one image")


def _checked_labels(path: Path, labels: np.ndarray, count: int) -> np.ndarray:
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise OdinError(f"{path}: y is {labels.dtype} {labels.shape}; want integers ({count},)")
    return labels.astype(np.int64)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[0]}x{image.shape[1]}"


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise OdinError(f"reading images needs Pillow; {install_command()}") from error
    return Image
