"""What the tests that wait for a GPU stand on is tried on the driver's test double."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivers.conftest import Seen
from drivers.double_library import IMAGE, Double
from drivers.kernel_backends import run_twins
from odin_runtime.driver import open_driver

Scenario = Callable[..., Seen]
# The C library refuses one bound alone, which the kernel ignores.
NOT_THE_TWINS = ("only a lower bound",)


def kernel_cases(double: Double, name: str) -> list[str]:
    from gpu.device_code import DeviceCode
    from ptx.checks import check
    from ptx.kernel_cases import CASES

    run_twins(double, double.files["library"])
    ran = []
    with open_driver(name) as driver:
        code: Any = DeviceCode(driver, IMAGE)
        for kernel, cases in CASES.items():
            for case, made in cases.items():
                if case not in NOT_THE_TWINS:
                    check(code, "f32", made)
                    ran.append(f"{kernel} {case}")
        code.close()
    return ran


def test_the_kernels_cases(scenario: Scenario, host_build: Path) -> None:
    library = host_build / "runtime" / "libodin_kernels.so"
    seen = scenario(kernel_cases, files={"library": library})
    assert len(seen.result) > 40
    assert seen.errors == seen.leaks == seen.faults == []


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
