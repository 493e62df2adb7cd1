"""The installed distribution: its commands, its data files, its extras."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest

PACKAGES = ("odin_bench", "odin_engines", "odin_export", "odin_runtime")


@pytest.fixture(scope="module")
def distribution():
    try:
        return metadata.distribution("odin-ood")
    except metadata.PackageNotFoundError:
        pytest.skip("odin-ood is not installed in this environment; pip install '.[cpu,test]'")


def run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run away from the source tree, which must not be what is imported."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("command", ["odin-export", "odin-bench"])
def test_commands_are_installed_and_explain_themselves(distribution, command, tmp_path):
    script = Path(sysconfig.get_path("scripts")) / command
    done = run(str(script), "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout
    assert "--checkpoint" in done.stdout


def test_every_package_and_the_weights_are_installed(distribution, tmp_path):
    program = "; ".join(f"import {name}; print({name}.__file__)" for name in PACKAGES)
    program += "; from odin_export.checkpoint import default_checkpoint"
    program += "; print(default_checkpoint('densenet10').stat().st_size)"
    done = run(sys.executable, "-c", program, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 3_000_000


def test_a_production_scorer_needs_numpy_alone(distribution):
    required = [text for text in distribution.requires or [] if "extra ==" not in text]
    assert [text.split(">")[0] for text in required] == ["numpy"]
