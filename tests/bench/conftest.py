"""Folders of image sets for the tests that load them."""

from __future__ import annotations

from pathlib import Path

import pytest

from odin_bench import download


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test off the user's own sets and off the network."""
    monkeypatch.delenv("ODIN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def refuse(*_: object, **__: object) -> Path:
        raise AssertionError("this test must not fetch anything")

    monkeypatch.setattr(download, "fetch", refuse)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder
