"""Rows of a long run on disk, from which an interrupted run goes on.

A line of JSON tells what the run is; each further line is a row. Rows come in chunks of a fixed
number, and a run that goes on keeps whole chunks only: images that are scored together are scored
together again, and rounding comes out the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from odin_engines.errors import OdinError

Row = dict[str, Any]
_MOST_HEADER = 1 << 16

try:
    import fcntl
except ImportError:  # not Unix: two runs at once are not noticed
    fcntl = None  # type: ignore[assignment]


class Journal:
    """The rows of a run so far.

    Args:
        path: of the file; made if there is none. Another program's is left alone.
        about: what the run is, in values that JSON has.
        chunk: rows that are scored together.
        resume: whether to go on with what is there.

    Attributes:
        done: rows that are kept of an earlier run.
        count: rows that it holds now.

    Raises:
        OdinError: there is an earlier run's, and it is not to be resumed, or is another run's; the
            file is no run's; another process is writing it; or it cannot be written.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], chunk: int, *, resume: bool) -> None:
        self.path = path
        self._about = json.dumps(about, sort_keys=True)
        try:
            self._file = self._locked()
        except OSError as error:
            raise OdinError(f"cannot write {path}: {error.strerror or error}") from error
        try:
            self.done = self.count = self._taken_up(chunk, resume)
        except OSError as error:
            self.close()
            raise OdinError(f"cannot write {path}: {error.strerror or error}") from error
        except BaseException:
            self.close()
            raise

    def append(self, rows: Sequence[Row]) -> None:
        """Add a chunk; once this returns, it outlives the process.

        Raises:
            OdinError: the disk is full; what was added before stays.
        """
        lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        try:
            self._file.write(lines.encode())
            self._file.flush()
        except OSError as error:
            raise OdinError(f"cannot write {self.path}: {error.strerror or error}") from error
        self.count += len(rows)

    def rows(self) -> Iterator[Row]:
        """All rows from the first."""
        with self.path.open("rb") as file:
            next(file)
            for line in file:
                yield json.loads(line)

    def close(self) -> None:
        """Let go of the file, which stays."""
        with suppress(OSError):  # a chunk did not fit on the disk, as was told; it is cut off later
            self._file.close()

    def remove(self) -> None:
        """Close and remove the file."""
        self.path.unlink(missing_ok=True)
        self.close()

    def _locked(self) -> BinaryIO:
        """The file, for this process alone."""
        while True:
            if self.path.exists() and not self.path.is_file():
                raise OdinError(f"cannot write {self.path}, which is no file; remove it")
            file = self.path.open("a+b")
            try:
                if fcntl is None:
                    return file
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(self.path, file):
                    return file
                file.close()  # whoever wrote it is done, and has removed it meanwhile
            except BlockingIOError:
                file.close()
                raise OdinError(f"another process is writing {self.path}; wait for it") from None

    def _taken_up(self, chunk: int, resume: bool) -> int:
        """Cut off what is not a whole chunk; return how many rows are left."""
        self._file.seek(0)
        header = self._about.encode() + b"\n"
        first = self._file.readline(_MOST_HEADER)
        if first != header and header.startswith(first):  # none, or killed while it was begun
            self._file.truncate(0)
            self._file.write(header)
            self._file.flush()
            return 0
        if not _is_row(first):
            raise OdinError(
                f"{self.path} is in the way: it does not hold rows of odin-score; move it away"
            )
        if not resume:
            raise OdinError(
                f"{self.path} is left of a run that was interrupted: go on with --resume, or "
                "remove it to start anew"
            )
        self._check_same(first)
        end = position = self._file.tell()
        done = rows = 0
        for line in self._file:
            if not line.endswith(b"\n") or not _is_row(line):
                break
            rows, position = rows + 1, position + len(line)
            if rows % chunk == 0:
                done, end = rows, position
        self._file.truncate(end)
        return done

    def _check_same(self, first: bytes) -> None:
        earlier, about = json.loads(first), json.loads(self._about)
        for name in sorted({*earlier, *about}):
            if earlier.get(name) != about.get(name):
                raise OdinError(
                    f"{self.path} is of a run with {name} {earlier.get(name)}, not "
                    f"{about.get(name)}: go on as that run was begun, or remove it to start anew"
                )


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _is_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
