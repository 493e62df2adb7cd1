"""What docs/ray.md shows, run as it is written.

    pytest tests/cluster --run-slow

Each block starts a Ray of its own, which takes about 30 s; the service listens on port 8000.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from odin_engines.bundle import Bundle
from odin_runtime import Scorer
from odin_runtime.preparation import scaled

pytest.importorskip("ray", reason="Ray is not installed: pip install 'odin-ood[ray]'")

pytestmark = pytest.mark.slow
PAGE = Path(__file__).parents[2] / "docs" / "ray.md"


def block(name: str) -> str:
    """The block of code after the comment of this name."""
    found = re.search(rf"<!-- {name} -->\n```\w*\n(.*?)```\n", PAGE.read_text("utf-8"), re.DOTALL)
    assert found, f"{PAGE} has no block {name}"
    return found[1]


@pytest.fixture
def here(photos: Path, calibrated: Bundle) -> Path:
    """A folder with photos and my-bundle."""
    shutil.copytree(calibrated.path, photos.parent / "my-bundle")
    return photos.parent


def local(here: Path, name: str) -> dict[str, Any]:
    from PIL import Image

    image = np.asarray(Image.open(here / "photos" / name).convert("RGB"))
    found = Scorer.open(here / "my-bundle").score(scaled(image, (32, 32))[None]).arrays()
    return {name: values[0].item() for name, values in found.items()}


def assert_same(found: dict[str, Any], known: dict[str, Any]) -> None:
    assert found.keys() == known.keys()
    for name, value in known.items():
        # A score may move by its last bits, and a percentile then by many times as much.
        atol = 0.02 if name == "percentile" else 1e-6
        assert found[name] == pytest.approx(value, rel=0, abs=atol), name


def test_offline(here: Path, ray_environment: dict[str, str]) -> None:
    import pyarrow.parquet

    (here / "offline.py").write_text(block("offline"))
    done = subprocess.run(
        [sys.executable, "offline.py"],
        cwd=here,
        env=ray_environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    rows = pyarrow.parquet.read_table(here / "scores").to_pylist()
    found = {Path(row.pop("path")).name: row for row in rows}
    assert set(found) == {file.name for file in (here / "photos").iterdir()}
    for name, row in found.items():
        assert_same(row, local(here, name))


def test_online(here: Path, ray_environment: dict[str, str]) -> None:
    (here / "service.py").write_text(block("online"))
    with (here / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "service.py"],
            cwd=here,
            env=ray_environment,
            stdout=log,
            stderr=log,
            preexec_fn=_heed_interrupts,
        )
    try:
        answer = _answer(here, server)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)
    assert_same(answer, local(here, "0.jpg"))


def _heed_interrupts() -> None:
    """In the new process, which would ignore them where the tests run in a shell's background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _answer(here: Path, server: subprocess.Popen[bytes]) -> dict[str, Any]:
    """What the request gets, once the service is up."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and server.poll() is None:
        done = subprocess.run(
            ["bash", "-c", block("request")], cwd=here, capture_output=True, text=True
        )
        if done.returncode == 0 and done.stdout.startswith("{"):
            return json.loads(done.stdout)
        time.sleep(1)
    raise AssertionError((here / "log").read_text())
