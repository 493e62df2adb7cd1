"""A bundle of no real graphs."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.bundle_graphs import GRAPHS, SpecMaker
from odin_engines.bundle import write_bundle


@pytest.fixture
def folder(tmp_path: Path, tiny_spec: SpecMaker) -> Path:
    """A bundle alone in its parent folder."""
    return write_bundle(tmp_path / "here" / "tiny", tiny_spec(), GRAPHS).path
