"""What the tests of the commands share: what a run did, and flags and results of odin-bench."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

COUNT = 40  # images in each set


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    status: int
    out: str
    err: str


Command = Callable[..., Outcome]


def refused(outcome: Outcome, *parts: str) -> str:
    """Check that the command refused with a message of these parts; return it."""
    assert outcome.status in (1, 2)
    assert "Traceback" not in outcome.err
    found = re.findall(r"^odin-(?:export|bench|score): (.*)", outcome.err, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, outcome.err
    for part in parts:
        assert part in found[0]
    return found[0]


def pair(sets: Path, *out_sets: str) -> list[str]:
    """Flags that name in.npz and these sets."""
    names = [str(sets / f"{name}.npz") for name in out_sets]
    return ["--in-dataset", str(sets / "in.npz"), "--out-dataset", *names]


def results(file: str = "out.json") -> dict[str, Any]:
    return json.loads(Path(file).read_text("utf-8"))


def images_of(sets: Path, name: str) -> np.ndarray:
    return np.load(sets / f"{name}.npz")["x"]
