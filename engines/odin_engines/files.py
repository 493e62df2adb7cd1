"""Files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from odin_engines.errors import OdinError


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to; it takes `path`'s place on success only.

    On any error, Ctrl-C included, the temporary file is removed and `path` is as it was.

    Raises:
        OdinError: the folder does not exist or is not writable, or the disk is full.
    """
    temporary = unused_name(path)
    try:
        temporary.touch(exist_ok=False)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OdinError(f"cannot write {path}: {error.strerror or error}") from error


def unused_name(path: Path) -> Path:
    """Return a hidden name beside `path` that nothing has."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def user_cache() -> Path | None:
    """Return the user's cache folder of this project, which need not exist.

    `$XDG_CACHE_HOME/odin-ood`, or `~/.cache/odin-ood` where that variable is not set; None for a
    user without a home folder.
    """
    # The XDG specification has relative paths ignored.
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            return None
    return base / "odin-ood"


def keep_within(folder: Path, pattern: str, limit: int) -> None:
    """Remove the files of a cache that were unused longest, until they have at most `limit` bytes.

    Args:
        folder: need not exist; its subfolders are searched too.
        pattern: of the names of the cache's files; others are left alone.
        limit: bytes.
    """
    kept = 0
    for _, size, file in sorted(_ages(folder, pattern), reverse=True):
        kept += size
        if kept > limit:
            with suppress(OSError):  # it may stay, if it is not to be removed
                file.unlink()


def _ages(folder: Path, pattern: str) -> Iterator[tuple[float, int, Path]]:
    """When each file was last used, its size in bytes, and the file."""
    for file in folder.rglob(pattern):
        with suppress(OSError):  # another process cleaned up
            found = file.stat()
            yield max(found.st_atime, found.st_mtime), found.st_size, file
