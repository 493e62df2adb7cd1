"""Which shared libraries a library needs, and which of them this machine lacks.

The dynamic loader names only the first one that it misses; a user wants all of them at once.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from odin_engines.errors import OdinError

# ELF, 64-bit, little-endian (System V ABI, chapters 4 and 5).
_MAGIC = b"\x7fELF\x02\x01"
_LOAD, _DYNAMIC = 1, 2  # kinds of segments
_END, _NEEDED, _STRINGS = 0, 1, 5  # tags of the dynamic section
_NOT_FOUND = re.compile(r"(?P<name>[^/\s]+): cannot open shared object file: No such file")


def needed(library: Path) -> list[str]:
    """Return the names of the libraries that a library says it needs, in its order.

    Raises:
        OdinError: it cannot be read, or is not a whole ELF library.
    """
    try:
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as image:
            return _needed(image)
    except OSError as error:
        raise OdinError(f"{library} cannot be read: {error.strerror or error}") from error
    except (struct.error, ValueError, StopIteration) as error:
        raise OdinError(f"{library} is not a whole library for this machine") from error


def missing(names: Iterable[str]) -> dict[str, str]:
    """Try to load libraries by name; those that load stay loaded.

    Returns:
        for each library that is not found, its own or one that it needs in turn, or that does not
        load for another reason, what the loader says.
    """
    faults = {}
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError as error:
            absent = _NOT_FOUND.match(str(error))
            faults[absent["name"] if absent else name] = str(error)
    return faults


def _needed(image: mmap.mmap) -> list[str]:
    if image[: len(_MAGIC)] != _MAGIC:
        raise ValueError("not ELF")
    segments = list(_segments(image))
    start, size = next((offset, size) for kind, offset, _, size in segments if kind == _DYNAMIC)
    entries = list(_entries(image, start, size))
    address = next(value for tag, value in entries if tag == _STRINGS)
    strings = next(
        offset + address - begin
        for kind, offset, begin, size in segments
        if kind == _LOAD and begin <= address < begin + size
    )
    return [_text(image, strings + value) for tag, value in entries if tag == _NEEDED]


def _text(image: mmap.mmap, start: int) -> str:
    end = image.find(b"\0", start)
    if end < 0:
        raise ValueError("cut off")
    return image[start:end].decode()


def _segments(image: mmap.mmap) -> Iterator[tuple[int, int, int, int]]:
    """Kind, offset in the file, address in memory and size in the file of each segment."""
    (table,) = struct.unpack_from("<Q", image, 32)
    entry_size, count = struct.unpack_from("<HH", image, 54)
    for index in range(count):
        kind, _, offset, address, _, size = struct.unpack_from(
            "<IIQQQQ", image, table + index * entry_size
        )
        yield kind, offset, address, size


def _entries(image: mmap.mmap, start: int, size: int) -> Iterator[tuple[int, int]]:
    for place in range(start, start + size, 16):
        tag, value = struct.unpack_from("<qQ", image, place)
        if tag == _END:
            return
        yield tag, value
