"""Rows of scores as CSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import heapq
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from odin_engines.errors import OdinError
from odin_engines.files import replacing
from odin_runtime.journal import Row
from odin_runtime.scores import Scores

_TYPES = {"path": "string", "error": "string", "label": "int64", "is_ood": "bool"}  # else float64
_GROUP = 65536  # rows of Parquet that are in memory at once


def columns(extra: Sequence[str], decided: bool, calibrated: bool) -> tuple[str, ...]:
    """Names of the columns.

    Args:
        extra: the bundle's further scores.
        decided: whether there is a threshold.
        calibrated: whether it comes from a calibration.
    """
    decision = ("is_ood",) if decided else ()
    share = ("percentile",) if calibrated else ()
    return ("path", "score", "baseline", "label", *extra, *decision, *share, "error")


def rows_of(names: Sequence[str], scores: Scores, is_ood: np.ndarray | None) -> list[Row]:
    """A row for each scored image; numbers are as short as float32 allows."""
    columns: dict[str, list[Any]] = {
        "path": list(names),
        "score": _plain(scores.score),
        "baseline": _plain(scores.baseline),
        "label": scores.label.tolist(),
        **{name: _plain(values) for name, values in scores.extra.items()},
    }
    if is_ood is not None:
        columns["is_ood"] = is_ood.tolist()
    if not isinstance(scores.calibration, str):
        columns["percentile"] = _plain(scores.percentile.astype(np.float32))
    keys = (*columns, "error")
    return [
        dict(zip(keys, (*values, None), strict=True))
        for values in zip(*columns.values(), strict=True)
    ]


def row_of_error(name: str, problem: str) -> Row:
    """The row of an image that could not be scored; what it lacks is missing."""
    return {"path": name, "error": problem}


def write(path: Path, rows: Iterable[Row], names: Sequence[str]) -> None:
    """Write rows in the form that the file's ending names, whole or not at all.

    Args:
        path: to .csv, .jsonl or .parquet.
        rows: what they lack of `names` is missing there too.
        names: of the columns.

    Raises:
        OdinError: the file cannot be written.
    """
    with replacing(path) as temporary:
        WRITERS[path.suffix.lower()](temporary, rows, names)


def check_output(path: Path) -> None:
    """Check, before any work, that rows can be written there.

    Raises:
        OdinError: the ending is none of `WRITERS`, or what writes it is not installed; the folder
            does not exist.
    """
    if path.suffix.lower() not in WRITERS:
        raise OdinError(f"--output {path}: give a name that ends in {', '.join(WRITERS)}")
    if not path.absolute().parent.is_dir():
        raise OdinError(f"--output {path}: the folder {path.absolute().parent} does not exist")
    if path.is_dir():
        raise OdinError(f"--output {path} is a folder; give the name of a file")
    if path.suffix.lower() == ".parquet":
        _pyarrow()


def lowest(rows: Iterable[Row], column: str, most: int | None) -> list[Row]:
    """Rows by a column, the lowest first, equal ones as they came; those without it at the end."""

    def key(row: Row) -> tuple[bool, Any]:
        value = row.get(column)
        return (value is None, 0 if value is None else value)

    # Equal ones stay in their order either way; of a few, the others are not kept in memory.
    return sorted(rows, key=key) if most is None else heapq.nsmallest(most, rows, key=key)


def _plain(values: np.ndarray) -> list[float | None]:
    """Decimals that read as the same float32 again; None for what is not finite."""
    return [float(str(value)) if np.isfinite(value) else None for value in values]


def _write_csv(path: Path, rows: Iterable[Row], names: Sequence[str]) -> None:
    # Names of files that are no UTF-8 come out as the bytes that they are.
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        usual = csv.writer(file, lineterminator="\n")
        # Which does not quote a carriage return, that readers take for the end of a row.
        careful = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        usual.writerow(names)
        for row in rows:
            writer = careful if "\r" in f"{row['path']}{row['error']}" else usual
            writer.writerow([_cell(row.get(name)) for name in names])


def _cell(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def _write_json_lines(path: Path, rows: Iterable[Row], names: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({name: row.get(name) for name in names}) + "\n")


def _write_parquet(path: Path, rows: Iterable[Row], names: Sequence[str]) -> None:
    arrow = _pyarrow()
    from pyarrow import parquet

    schema = arrow.schema([(name, _TYPES.get(name, "float64")) for name in names])
    with parquet.ParquetWriter(path, schema) as writer:
        for group in _groups(rows):
            writer.write_table(arrow.Table.from_pylist(list(map(_in_unicode, group)), schema))


def _in_unicode(row: Row) -> Row:
    """Parquet's text is UTF-8; names of files need not be, and errors name them."""
    texts = {name: value for name, value in row.items() if isinstance(value, str)}
    return row | {
        name: text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        for name, text in texts.items()
    }


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    left = iter(rows)
    while group := list(itertools.islice(left, _GROUP)):
        yield group


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise OdinError(
            "writing .parquet needs pyarrow: pip install 'odin-ood[score]', or give --output a "
            "name that ends in .csv or .jsonl"
        ) from error
    return pyarrow


WRITERS: dict[str, Callable[[Path, Iterable[Row], Sequence[str]], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_json_lines,
    ".parquet": _write_parquet,
}
