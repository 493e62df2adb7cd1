"""Rows with names that are hard on tables, as readers of each form get them back."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from odin_engines.errors import OdinError
from odin_runtime.rows import Row, lowest, write

NAMES = ("plain.png", "a,b.png", 'quo"te.png', "two\nlines.png", "re\rturn.png", "caf\udce9.png")
COLUMNS = ("path", "score", "is_ood", "error")


def rows() -> list[Row]:
    """One of each name; every second one could not be read, and says so by its name."""
    found = []
    for index, name in enumerate(NAMES):
        good = {"path": name, "score": 0.25, "is_ood": True, "error": None}
        bad = {"path": name, "error": f"{name} is no image"}
        found.append(bad if index % 2 else good)
    return found


def test_csv(tmp_path: Path) -> None:
    write(tmp_path / "s.csv", rows(), COLUMNS)
    content = (tmp_path / "s.csv").read_bytes()
    assert content.startswith(b"path,score,is_ood,error\nplain.png,0.25,true,\n")
    assert b"caf\xe9.png" in content
    with (tmp_path / "s.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        found = list(csv.DictReader(file))
    assert [row["path"] for row in found] == list(NAMES)
    assert [row["error"] for row in found] == [row["error"] or "" for row in rows()]
    assert {row["score"] for row in found} == {"0.25", ""}


def test_json_lines(tmp_path: Path) -> None:
    write(tmp_path / "s.jsonl", rows(), COLUMNS)
    lines = (tmp_path / "s.jsonl").read_bytes().split(b"\n")
    found = [json.loads(line) for line in lines[:-1]]
    assert found == [{name: row.get(name) for name in COLUMNS} for row in rows()]


def test_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install 'odin-ood[score]'")
    write(tmp_path / "s.parquet", rows(), COLUMNS)
    found = parquet.read_table(tmp_path / "s.parquet").to_pylist()
    assert [row["path"] for row in found] == [*NAMES[:-1], "caf\ufffd.png"]
    assert found[-1]["error"] == "caf\ufffd.png is no image"


@pytest.mark.parametrize("most", [None, 1, 2, 4, 9])
def test_equal_scores_stay_in_order_and_rows_without_come_last(most: int | None) -> None:
    scores = [0.3, None, 0.1, 0.3, 0.1, None]
    given = [{"path": str(place), "score": score} for place, score in enumerate(scores)]
    del given[5]["score"]
    assert [row["path"] for row in lowest(given, "score", most)] == list("240315")[:most]


def test_a_table_that_does_not_fit_leaves_the_old_one(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    file = tmp_path / "s.csv"
    file.write_text("before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OdinError, match=r"cannot write .*s\.csv: File too large"):
            write(file, rows() * 1000, COLUMNS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["s.csv"]
    assert file.read_text() == "before"
