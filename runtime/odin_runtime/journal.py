"""Rows of a long run on disk, from which an interrupted run goes on.

A line of JSON tells what the run is; each further line is a row. Rows come in chunks of a fixed
number, and a run that goes on keeps whole chunks only: images that are scored together are scored
together again, and rounding comes out the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from odin_engines.errors import OdinError

Row = dict[str, Any]

try:
    import fcntl
except ImportError:  # not Unix: two runs at once are not noticed
    fcntl = None  # type: ignore[assignment]


class Journal:
    """The rows of a run so far.

    Args:
        path: of the file; made if there is none.
        about: what the run is, in values that JSON has.
        chunk: rows that are scored together.
        resume: whether to go on with what is there.

    Attributes:
        done: rows that are kept of an earlier run.
        count: rows that it holds now.

    Raises:
        OdinError: there is an earlier run's, and it is not to be resumed, or is another run's; or
            another process is writing it.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], chunk: int, *, resume: bool) -> None:
        self.path = path
        self._about = json.dumps(about, sort_keys=True)
        try:
            self._file = path.open("a+b")
        except OSError as error:
            raise OdinError(f"cannot write {path}: {error.strerror}") from error
        try:
            self._lock()
            self.done = self.count = self._taken_up(chunk, resume)
        except BaseException:
            self._file.close()
            raise

    def append(self, rows: Sequence[Row]) -> None:
        """Add a chunk; once this returns, it outlives the process."""
        lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        self._file.write(lines.encode())
        self._file.flush()
        self.count += len(rows)

    def rows(self) -> Iterator[Row]:
        """All rows from the first."""
        with self.path.open("rb") as file:
            next(file)
            for line in file:
                yield json.loads(line)

    def close(self) -> None:
        """Let go of the file, which stays."""
        self._file.close()

    def remove(self) -> None:
        """Close and remove the file."""
        self.path.unlink(missing_ok=True)
        self.close()

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OdinError(f"another process is writing {self.path}; wait for it") from None

    def _taken_up(self, chunk: int, resume: bool) -> int:
        """Cut off what is not a whole chunk; return how many rows are left."""
        self._file.seek(0)
        first = self._file.readline()
        if not first.endswith(b"\n"):  # none, or killed while it was begun
            self._file.truncate(0)
            self._file.write(self._about.encode() + b"\n")
            self._file.flush()
            return 0
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
        earlier = json.loads(first)
        about = json.loads(self._about)
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
