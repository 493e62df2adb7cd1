"""Rows that outlive their process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from odin_engines.errors import OdinError
from odin_runtime.journal import Journal, Row

ABOUT: dict[str, Any] = {"engine": "ort", "images": {"size": [32, 32]}}


def begun(path: Path, resume: bool = False, about: dict[str, Any] = ABOUT) -> Journal:
    return Journal(path, about, 3, resume=resume)


def rows(first: int, stop: int) -> list[Row]:
    return [{"path": f"{index}.png", "score": index / 7} for index in range(first, stop)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scores.csv.partial"


def test_rows_come_back(path: Path) -> None:
    journal = begun(path)
    assert journal.done == 0
    journal.append(rows(0, 3))
    journal.append(rows(3, 5))
    assert list(journal.rows()) == rows(0, 5)
    journal.remove()
    assert not path.exists()


def test_whole_chunks_are_kept_wherever_it_is_cut(path: Path) -> None:
    journal = begun(path)
    journal.append(rows(0, 3))
    journal.append(rows(3, 6))
    journal.append(rows(6, 8))  # the last chunk of a run is short
    journal.close()
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    ends = [sum(map(len, lines[:count])) for count in range(len(lines) + 1)]
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        again = begun(path, resume=True)
        kept = sum(length >= end for end in ends[1:]) - 1  # rows, without the first line
        assert again.done == max(kept // 3 * 3, 0), length
        again.append(rows(again.done, 8))
        again.close()
        assert path.read_bytes() == whole


def test_a_line_that_is_none_ends_what_is_kept(path: Path) -> None:
    journal = begun(path)
    journal.append(rows(0, 6))
    journal.close()
    lines = path.read_bytes().splitlines(keepends=True)
    lines[5] = b"\0" * len(lines[5][:-1]) + b"\n"
    path.write_bytes(b"".join(lines))
    again = begun(path, resume=True)
    assert again.done == 3
    assert list(again.rows()) == rows(0, 3)
    again.close()


def test_what_is_left_is_not_lost_by_accident(path: Path) -> None:
    journal = begun(path)
    journal.append(rows(0, 3))
    journal.close()
    before = path.read_bytes()
    with pytest.raises(OdinError, match=r"left of a run .* --resume, or remove it"):
        begun(path)
    with pytest.raises(OdinError, match=r"run with engine ort, not openvino: go on as"):
        begun(path, resume=True, about={**ABOUT, "engine": "openvino"})
    assert path.read_bytes() == before


def test_two_at_once(path: Path) -> None:
    pytest.importorskip("fcntl")
    journal = begun(path)
    with pytest.raises(OdinError, match="another process is writing"):
        begun(path, resume=True)
    journal.close()
    begun(path, resume=True).close()


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(OdinError, match="cannot write"):
        begun(tmp_path / "none" / "scores.csv.partial")
