"""Small pictures for image sets, and files of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def pictures(n: int = 4, side: int = 6) -> np.ndarray:
    """Images that all differ."""
    return np.arange(n * side * side * 3, dtype=np.uint8).reshape(n, side, side, 3) * 7


def write_png(path: Path, pixels: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path)
