"""Copies of the images that are out-of-distribution."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from odin_engines.errors import OdinError
from odin_engines.files import replacing
from odin_runtime.rows import Row
from odin_runtime.sources import Item


def check_folder(folder: Path, paths: Iterable[str]) -> None:
    """Check, before any work, that copies can be put there.

    Args:
        folder: need not exist.
        paths: of the images.

    Raises:
        OdinError: it is no folder, cannot be made, or lies in a folder whose images are scored.
    """
    if folder.exists() and not folder.is_dir():
        raise OdinError(f"--copy-flagged {folder} is no folder")
    whole = folder.absolute()
    existing = next(place for place in (whole, *whole.parents) if place.exists())
    if not existing.is_dir():
        raise OdinError(f"--copy-flagged {folder}: {existing} is no folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OdinError(f"--copy-flagged {folder}: the folder {existing} is not writable")
    for path in paths:
        if Path(path).is_dir() and whole.resolve().is_relative_to(Path(path).resolve()):
            raise OdinError(
                f"--copy-flagged {folder} lies in {path}, whose images are scored, so that the "
                "copies would be scored the next time; give a folder beside it"
            )


def copy_flagged(items: Iterable[Item], rows: Iterable[Row], folder: Path) -> int:
    """Copy flagged images into a folder, under their paths; return how many.

    A file is copied as it is; an image of an array becomes a PNG file, or a .npy file where it has
    neither one channel nor three.

    Args:
        items: all images, in the order of the rows.
        rows: a row for each.
        folder: made if need be.

    Raises:
        OdinError: the images are others by now or cannot be read any more, or a copy cannot be
            written.
    """
    taken: set[Path] = set()
    for item, row in itertools.zip_longest(items, rows):
        if item is None or row is None or item.name != row["path"]:
            raise OdinError(
                f"the images have changed since they were scored: {item.name if item else 'none'} "
                f"is where {row['path'] if row else 'none'} was; {len(taken)} are copied so far"
            )
        if row.get("is_ood"):
            content, ending = _content(item)
            _write(_unused(folder / _below(item.name + ending), taken), content)
    return len(taken)


def _below(name: str) -> Path:
    """The path, so that no two of one folder share a name, without what leads out of the folder."""
    parts = [part for part in Path(name).parts if part not in ("/", ".")]
    return Path(*("_" if part == ".." else part for part in parts))


def _unused(path: Path, taken: set[Path]) -> Path:
    """The path, numbered where another image has it: a/b.png and /a/b.png, or twice in a tar."""
    numbered = (path.with_name(f"{path.stem}~{n}{path.suffix}") for n in itertools.count(2))
    free = next(each for each in itertools.chain([path], numbered) if each not in taken)
    taken.add(free)
    return free


def _content(item: Item) -> tuple[bytes, str]:
    """The bytes of the copy, and what its name ends in beyond the image's own."""
    if item.encoded is not None:
        try:
            return item.encoded(), ""
        except OSError as error:
            raise OdinError(f"{item.name} cannot be read again: {error.strerror}") from error
    pixels, file = item.read(), io.BytesIO()
    if pixels.shape[2] not in (1, 3):
        np.save(file, pixels)
        return file.getvalue(), ".npy"
    from PIL import Image

    Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0]).save(file, format="PNG")
    return file.getvalue(), ".png"


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OdinError(f"cannot make the folder {path.parent}: {error.strerror}") from error
    with replacing(path) as temporary:
        temporary.write_bytes(content)
