"""Copies of the images that are out-of-distribution."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from odin_engines.files import replacing
from odin_runtime.rows import Row
from odin_runtime.sources import Item


def copy_flagged(items: Iterable[Item], rows: Iterable[Row], folder: Path) -> int:
    """Copy flagged images into a folder, under their paths; return how many.

    A file is copied as it is; an image of an array becomes a PNG file.

    Args:
        items: all images, in the order of the rows.
        rows: a row for each.
        folder: made if need be.

    Raises:
        OdinError: an image cannot be read any more, or a copy cannot be written.
    """
    copied = 0
    for item, row in zip(items, rows, strict=True):
        if not row.get("is_ood"):
            continue
        target = _below(folder, item)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            if item.encoded is not None:
                temporary.write_bytes(item.encoded())
            else:
                _write_png(temporary, item)
        copied += 1
    return copied


def _below(folder: Path, item: Item) -> Path:
    """Where the copy goes: the whole path below the folder, so that no two share a name."""
    parts = [part for part in Path(item.name).parts if part not in ("/", ".")]
    parts = ["_" if part == ".." else part for part in parts]
    path = folder.joinpath(*parts)
    return path if item.encoded is not None else path.with_name(f"{path.name}.png")


def _write_png(path: Path, item: Item) -> None:
    from PIL import Image

    Image.fromarray(item.read()).save(path, format="PNG")
