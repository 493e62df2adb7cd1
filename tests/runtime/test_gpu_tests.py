"""What the tests that wait for a GPU stand on is tried on the driver's test double."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivers.double_library import IMAGE, Double
from drivers.fixtures import Seen, extra_path, in_double
from drivers.pycuda_build import is_installed
from odin_runtime.driver import open_driver

Scenario = Callable[..., Seen]
FOLDER = Path(__file__).parents[1]


@pytest.mark.usefixtures("pipelines")
def test_they_pass_on_the_double(double_folder: Path) -> None:
    """In one process, whose driver library is the double: see gpu_on_double.py."""
    try:
        extra = extra_path("pycuda")
    except pytest.skip.Exception:  # it cannot be built here
        extra = ""
    everything = {**in_double(double_folder, extra), "OMP_NUM_THREADS": "1"}
    # Not what this run of pytest was told.
    environment = {name: value for name, value in everything.items() if "PYTEST" not in name}
    options = ["-q", "-p", "no:cacheprovider", "-p", "runtime.gpu_on_double"]
    files = [
        str(FOLDER / "gpu" / f"test_{name}.py")
        for name in ("kernels", "pipeline", "plans", "stress")
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        capture_output=True,
        text=True,
        env=environment,
        cwd=FOLDER.parent,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    summary = done.stdout.splitlines()[-1]
    found = re.search(r"(\d+) passed", summary)
    assert found and int(found[1]) > 50, summary
    if extra or is_installed():  # else pycuda's part is skipped
        assert "skipped" not in summary
    assert "measured on the GPU" in done.stdout


def kernel_that_is_wrong(double: Double, name: str) -> list[str]:
    """One that writes a byte too many, one that writes to its input, one that does nothing."""
    import ctypes

    from drivers.kernel_backends import declare_kernels, decode
    from gpu.device_code import DeviceCode
    from ptx.checks import check
    from ptx.kernel_cases import CASES

    declare_kernels(double)
    case, texts = CASES["normalize"]["one pixel"], []
    with open_driver(name) as driver:
        code: Any = DeviceCode(driver, IMAGE)
        for argument, offset in ((1, 12), (0, 0), (None, 0)):

            def wrong(launch: Any, argument: Any = argument, offset: int = offset) -> None:
                if argument is not None:
                    address = int(decode(launch)[argument]) + offset
                    before = ctypes.c_uint8.from_address(address)
                    before.value ^= 1

            double.on_launch(wrong)
            try:
                check(code, "f32", case)
                texts.append("nothing is seen")
            except AssertionError as error:
                texts.append(str(error))
        code.close()
    return texts


def test_wrong_kernels_are_seen(scenario: Scenario) -> None:
    over, into, nothing = scenario(kernel_that_is_wrong).result
    assert over.startswith("odin_normalize_f32 wrote 1 bytes that it must not")
    assert into.startswith("odin_normalize_f32 wrote 1 bytes that it must not")
    assert nothing.startswith("images[0, 0, 0]: ")


def test_the_table(pytester_output: list[str]) -> None:
    assert pytester_output == ["measured on the GPU", f"a kernel  {1234.5:12,.1f} GB/s"]


@pytest.fixture
def pytester_output(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the table's hook writes."""
    from gpu import conftest

    lines: list[str] = []

    class Reporter:
        section = staticmethod(lines.append)
        write_line = staticmethod(lines.append)

    monkeypatch.setattr(conftest, "_MEASURED", [])
    conftest.pytest_terminal_summary(Reporter())
    assert lines == []
    monkeypatch.setattr(conftest, "_MEASURED", [("a kernel", np.float64(1234.5), "GB/s")])
    conftest.pytest_terminal_summary(Reporter())
    return lines
