"""What the README tells a new user to type works as it stands there."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
_MODULES = {
    "odin-export": "odin_export.cli",
    "odin-bench": "odin_bench.cli",
    "odin-score": "odin_runtime.score_cli",
}


def commands(mark: str) -> list[str]:
    """The lines of the block of the README behind a mark."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"<!-- {mark} -->\n```\n(.*?)```", text, re.DOTALL)
    assert found is not None, mark
    return found[1].splitlines()


@pytest.fixture
def shell(tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """A function: a line -> what it did, in an empty folder with this tree's commands."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, module in _MODULES.items():
        program = programs / name
        program.write_text(
            f"#!{sys.executable}\nimport sys\nfrom {module} import main\nsys.exit(main())\n"
        )
        program.chmod(0o755)
    (tmp_path / "here").mkdir()
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }

    def run(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            line,
            shell=True,
            cwd=tmp_path / "here",
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


def test_from_a_network_to_a_scored_folder(
    shell: Callable[[str], subprocess.CompletedProcess[str]], tmp_path: Path, data_folder: Path
) -> None:
    """A third of the images are noise, which is nearly all flagged; of the others few are."""
    photos = tmp_path / "here" / "photos"
    photos.mkdir()
    known = np.load(data_folder / "cifar10_test.npz")["x"][:40]
    noise = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    for name, images in (("known", known), ("noise", noise)):
        for index, pixels in enumerate(images):
            Image.fromarray(pixels).save(photos / f"{name}-{index:02}.png")
    for line in commands("score"):
        # Three hundred images of the 9,000 tell the threshold well enough here.
        line += " --limit 300" if "--calibrate" in line else ""
        done = shell(line)
        assert done.returncode == 0, (line, done.stderr)
    with (tmp_path / "here" / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    flagged = {
        name: np.mean([row["is_ood"] == "true" for row in rows if f"/{name}-" in row["path"]])
        for name in ("known", "noise")
    }
    assert flagged["known"] < 0.2
    assert flagged["noise"] > flagged["known"]
