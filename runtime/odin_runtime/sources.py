"""Images by path: files, folders, globs, .npz files, tar archives, lists of paths."""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from odin_engines.errors import OdinError
from odin_runtime.image_files import SUFFIXES, decode, read_npz

LIST = "-"
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_TAR_ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error)


@dataclass(frozen=True)
class Item:
    """One image that can be read, or cannot.

    Attributes:
        name: its path; of an image in a file of several, the file's and its place in it.
        read: decodes it to uint8 (H, W, C); raises OdinError.
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
        if not path:
            raise OdinError(
                "a PATH is empty, perhaps of a variable that is not set; name . if the "
                "folder here is meant"
            )
        if path == LIST or Path(path).exists():
            continue
        if not _is_glob(path):
            raise OdinError(
                f"{path} does not exist; give image files, folders, globs, .npz files, tar "
                f"archives, or {LIST} for a list of paths on standard input"
            )
        if not _matches(path):
            raise OdinError(f"{path} matches nothing; quote a glob so that ** works, and check it")


def paths_of_list(content: bytes) -> list[str]:
    """The paths of a list: one a line, or ended by NUL each as by find -print0."""
    end = b"\0" if b"\0" in content else b"\n"
    lines = content.split(end)
    if end == b"\n":
        lines = [line.removesuffix(b"\r") for line in lines]
    return [os.fsdecode(line) for line in lines if line]


def items(paths: Iterable[str], listed: Sequence[str], channels: int) -> Iterator[Item]:
    """All images at these paths, always in the same order; files are opened when it is their turn.

    A path that holds no image, or cannot be read, is an item that raises OdinError when it is read.

    Args:
        paths: in the order of the command line; what a folder or a glob holds comes sorted.
        listed: the paths that stand for `LIST`.
        channels: of the images.
    """
    for path in paths:
        if path == LIST:
            yield from items((each for each in listed if each != LIST), (), channels)
            continue
        found = [Path(path)]
        try:
            if _is_glob(path) and not found[0].exists():
                found = _matches(path)
        except (OdinError, OSError, ValueError) as error:  # of a list, which nobody checked before
            yield _unreadable(path, f"{path} cannot be read: {error}")
            continue
        if not found:
            yield _unreadable(path, f"{path} does not exist, and as a glob matches nothing")
        for each in found:
            yield from _at(each, channels)


def _is_glob(path: str) -> bool:
    return any(mark in path for mark in "*?[")


def _matches(pattern: str) -> list[Path]:
    """The files that match; what lies in a folder matches by itself, or is not meant.

    Raises:
        OdinError: it is no pattern.
    """
    anchor = Path(Path(pattern).anchor)
    try:
        found = list(anchor.glob(str(Path(pattern).relative_to(anchor))))
    except (ValueError, NotImplementedError) as error:
        raise OdinError(f"{pattern} is no glob that can be followed: {error}") from error
    return sorted(path for path in found if path.is_file())


def _at(path: Path, channels: int) -> Iterator[Item]:
    name = path.name.lower()
    try:
        is_folder = path.is_dir()
    except OSError as error:
        yield _unreadable(str(path), f"{path} cannot be read: {error.strerror}")
        return
    if is_folder:
        yield from _in_folder(path, channels)
    elif name.endswith(".npz"):
        yield from _in_npz(path, channels)
    elif name.endswith(TAR_SUFFIXES):
        yield from _in_tar(path, channels)
    else:
        read = partial(decode, path, str(path), channels)
        yield Item(str(path), read, path.read_bytes)


def _in_folder(folder: Path, channels: int) -> Iterator[Item]:
    """Image files below it, and archives of images."""
    suffixes = (*SUFFIXES, ".npz", *TAR_SUFFIXES)
    closed: list[OSError] = []
    found: list[Path] = []
    for place, _, names in os.walk(folder, onerror=closed.append):
        for name in names:
            # macOS leaves "._name.png" files behind that are no images.
            if name.lower().endswith(suffixes) and not name.startswith("."):
                found.append(Path(place, name))
    for error in sorted(closed, key=lambda error: str(error.filename)):
        yield _unreadable(str(error.filename), f"{error.filename} cannot be read: {error.strerror}")
    if not found and not closed:
        yield _unreadable(str(folder), f"{folder} holds no images ({', '.join(sorted(suffixes))})")
    for file in sorted(found, key=lambda file: file.relative_to(folder).parts):
        # A link to nothing is told in its row; what never ends, as a pipe, is not opened.
        if file.is_file() or not file.exists():
            yield from _at(file, channels)


def _in_npz(path: Path, channels: int) -> Iterator[Item]:
    try:
        images, _ = read_npz(path, channels)
    except OdinError as error:
        yield _unreadable(str(path), str(error))
        return
    for index in range(len(images)):
        yield Item(f"{path}[{index}]", partial(images.__getitem__, index))


def _in_tar(path: Path, channels: int) -> Iterator[Item]:
    """Members in the order of the archive, which need not be seekable."""
    empty = True
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
                empty = False
                yield Item(
                    name, partial(_decoded, content, name, channels), partial(bytes, content)
                )
    except _TAR_ERRORS as error:
        yield _unreadable(str(path), f"{path} cannot be read to its end: {error}")
        return
    if empty:
        yield _unreadable(str(path), f"{path} holds no images ({', '.join(sorted(SUFFIXES))})")


def _decoded(content: bytes, name: str, channels: int) -> np.ndarray:
    return decode(io.BytesIO(content), name, channels)


def _unreadable(name: str, problem: str) -> Item:
    def read() -> np.ndarray:
        raise OdinError(problem)

    return Item(name, read)
