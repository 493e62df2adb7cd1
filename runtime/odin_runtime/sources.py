"""Images by path: files, folders, globs, .npz files, tar archives, lists of paths."""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from odin_engines.errors import OdinError
from odin_runtime.image_files import SUFFIXES, decode_rgb, read_npz

LIST = "-"
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_TAR_ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error)


@dataclass(frozen=True)
class Item:
    """One image that can be read, or cannot.

    Attributes:
        name: its path; of an image in a file of several, the file's and its place in it.
        read: decodes it to uint8 (H, W, 3), RGB; raises OdinError.
        encoded: its bytes as they lie on disk, for a copy; None for an array.
    """

    name: str
    read: Callable[[], np.ndarray]
    encoded: Callable[[], bytes] | None = None


def check_paths(paths: Iterable[str]) -> None:
    """Check, before any work, that there is something at each path.

    Raises:
        OdinError: naming the first where there is nothing.
    """
    for path in paths:
        if path == LIST or Path(path).exists():
            continue
        if not _is_glob(path):
            raise OdinError(
                f"{path} does not exist; give image files, folders, globs, .npz files, tar "
                f"archives, or {LIST} for a list of paths on standard input"
            )
        if not _matches(path):
            raise OdinError(f"{path} matches nothing; quote a glob so that ** works, and check it")


def items(paths: Iterable[str], listed: Iterable[str]) -> Iterator[Item]:
    """All images at these paths, always in the same order; files are opened when it is their turn.

    A path that holds no image, or cannot be read, is an item that raises OdinError when it is read.

    Args:
        paths: in the order of the command line; what a folder or a glob holds comes sorted.
        listed: lines of the list that stands for `LIST`.
    """
    for path in paths:
        if path == LIST:
            yield from items((line for each in listed if (line := each.rstrip("\r\n"))), ())
        elif _is_glob(path) and not Path(path).exists():
            for found in _matches(path):
                yield from _at(found)
        else:
            yield from _at(Path(path))


def _is_glob(path: str) -> bool:
    return any(mark in path for mark in "*?[")


def _matches(pattern: str) -> list[Path]:
    """The files that match; what lies in a folder matches by itself, or is not meant."""
    anchor = Path(Path(pattern).anchor)
    found = anchor.glob(str(Path(pattern).relative_to(anchor)))
    return sorted(path for path in found if path.is_file())


def _at(path: Path) -> Iterator[Item]:
    name = path.name.lower()
    if path.is_dir():
        yield from _in_folder(path)
    elif name.endswith(".npz"):
        yield from _in_npz(path)
    elif name.endswith(TAR_SUFFIXES):
        yield from _in_tar(path)
    else:
        yield Item(str(path), partial(decode_rgb, path, str(path)), path.read_bytes)


def _in_folder(folder: Path) -> Iterator[Item]:
    """Image files below it, and archives of images."""
    suffixes = (*SUFFIXES, ".npz", *TAR_SUFFIXES)
    found = [
        file
        for file in folder.rglob("*")
        # macOS leaves "._name.png" files behind that are no images.
        if file.name.lower().endswith(suffixes) and not file.name.startswith(".")
    ]
    if not found:
        yield _unreadable(str(folder), f"{folder} holds no images ({', '.join(sorted(suffixes))})")
    for file in sorted(found, key=lambda file: file.relative_to(folder).parts):
        if file.is_file():
            yield from _at(file)


def _in_npz(path: Path) -> Iterator[Item]:
    try:
        images, _ = read_npz(path)
    except OdinError as error:
        yield _unreadable(str(path), str(error))
        return
    for index in range(len(images)):
        yield Item(f"{path}[{index}]", partial(images.__getitem__, index))


def _in_tar(path: Path) -> Iterator[Item]:
    """Members in the order of the archive, which need not be seekable."""
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                plain = PurePosixPath(member.name)
                if not member.isfile() or plain.suffix.lower() not in SUFFIXES:
                    continue
                if plain.name.startswith("."):
                    continue
                file = archive.extractfile(member)
                assert file is not None  # of a member that is a file
                content = file.read()
                name = f"{path}/{member.name}"
                yield Item(name, partial(_decoded, content, name), partial(bytes, content))
    except _TAR_ERRORS as error:
        yield _unreadable(str(path), f"{path} cannot be read to its end: {error}")


def _decoded(content: bytes, name: str) -> np.ndarray:
    return decode_rgb(io.BytesIO(content), name)


def _unreadable(name: str, problem: str) -> Item:
    def read() -> np.ndarray:
        raise OdinError(problem)

    return Item(name, read)
