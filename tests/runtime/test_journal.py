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


@pytest.mark.parametrize("content", [b"half a download", b"text\n", b"[1]\n", b"\0" * 100_000])
def test_a_file_of_others_is_left_alone(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    for resume in (False, True):
        with pytest.raises(OdinError, match="does not hold rows of odin-score; move it away"):
            begun(path, resume=resume)
    assert path.read_bytes() == content


def test_what_is_no_file_is_not_written(path: Path) -> None:
    path.symlink_to("/dev/full")
    with pytest.raises(OdinError, match="which is no file; remove it"):
        begun(path)


def test_a_full_disk_keeps_the_chunks_before(path: Path) -> None:
    resource = pytest.importorskip("resource")
    journal = begun(path)
    journal.append(rows(0, 3))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 50, before[1]))
    try:
        with pytest.raises(OdinError, match=r"cannot write .*partial: File too large"):
            journal.append(rows(3, 6))
        assert journal.count == 3
        journal.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    again = begun(path, resume=True)
    assert again.done == 3
    again.append(rows(3, 6))
    assert list(again.rows()) == rows(0, 6)
    again.close()


def test_a_file_that_its_writer_removed_meanwhile(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened by the second run just before the first one is done, and locked just after."""
    fcntl = pytest.importorskip("fcntl")
    first = begun(path)
    lock = fcntl.flock

    def late(*arguments: Any) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        first.remove()
        lock(*arguments)

    monkeypatch.setattr(fcntl, "flock", late)
    second = begun(path, resume=True)
    second.append(rows(0, 3))
    assert list(second.rows()) == rows(0, 3)
    second.remove()
    assert not path.exists()
