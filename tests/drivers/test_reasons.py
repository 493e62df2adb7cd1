"""Why a CUDA driver cannot be opened: without any driver, with a broken one, without packages."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest

from drivers.double_library import Double
from drivers.fixtures import Seen, skip_without
from drivers.test_memory import error_of
from odin_engines.cuda_probe import _NAMES, REMEDIES
from odin_engines.errors import OdinError
from odin_runtime import driver_reasons
from odin_runtime.driver import DRIVERS, open_driver
from odin_runtime.driver_reasons import missing_package

REMEDY = (
    "on a machine with an NVIDIA GPU install NVIDIA's driver 580 or newer, or stay on the CPU with "
    "--engine openvino or --engine ort"
)


@pytest.fixture
def no_driver() -> None:
    """Skip the test on a machine that has a driver."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    pytest.skip("libcuda.so.1 is here")


def test_without_a_driver_two_lines_say_why_and_what_helps(no_driver: None) -> None:
    with pytest.raises(OdinError) as raised:
        open_driver("auto")
    why, remedy = str(raised.value).splitlines()
    assert why == (
        "no CUDA driver can be opened: cuda-core and pycuda: no NVIDIA driver (libcuda.so.1) is "
        "found"
    )
    assert remedy == REMEDY


@pytest.mark.parametrize("name", DRIVERS)
def test_without_a_driver_by_name(no_driver: None, name: str) -> None:
    with pytest.raises(OdinError) as raised:
        open_driver(name)
    assert str(raised.value).startswith(f"no CUDA driver can be opened: {name}: no NVIDIA driver")


def test_wrong_names_and_numbers() -> None:
    with pytest.raises(OdinError, match="no CUDA driver is called 'cupy'; use auto, cuda-core or"):
        open_driver("cupy")
    with pytest.raises(OdinError, match="device is -1; it has to be 0 or more"):
        open_driver("auto", -1)


@pytest.mark.parametrize(
    ("name", "hidden", "cause"),
    [
        ("cuda-core", ["cuda", "cuda.core"], "package cuda-core is not installed"),
        ("cuda-core", ["cuda.bindings"], "package cuda-core is installed without cuda-bindings"),
        ("pycuda", ["pycuda"], "package pycuda is not installed"),
    ],
)
def test_missing_packages(
    monkeypatch: pytest.MonkeyPatch, name: str, hidden: list[str], cause: str
) -> None:
    def find_spec(module: str) -> Any:
        if module.partition(".")[0] in hidden:
            raise ModuleNotFoundError(module)
        return None if module in hidden else object()

    monkeypatch.setattr(driver_reasons, "find_spec", find_spec)
    reason = missing_package(name)
    assert reason is not None
    assert reason.cause == cause
    assert reason.remedy.startswith("pip install ")


def test_a_package_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(module: str) -> Any:
        raise ImportError(f"{module}: undefined symbol: cuNothing\nand more")

    monkeypatch.setattr(driver_reasons, "find_spec", lambda module: object())
    monkeypatch.setattr(driver_reasons, "import_module", import_module)
    reason = missing_package("pycuda")
    assert reason is not None
    assert reason.cause == (
        "package pycuda cannot be imported (pycuda.driver: undefined symbol: cuNothing)"
    )
    assert reason.remedy == "reinstall pycuda"


@pytest.mark.parametrize(
    ("version", "cause"),
    [
        ("0.3.2", "package cuda-core 0.3.2 is installed, and 1.2 or newer is needed"),
        ("1.1.9", "package cuda-core 1.1.9 is installed, and 1.2 or newer is needed"),
        ("1.2.0rc1", None),
        ("1.10", None),
    ],
)
def test_old_packages(monkeypatch: pytest.MonkeyPatch, version: str, cause: str | None) -> None:
    monkeypatch.setattr(driver_reasons, "find_spec", lambda module: object())
    monkeypatch.setattr(driver_reasons.metadata, "version", lambda name: version)
    reason = missing_package("cuda-core", try_import=False)
    if cause is None:
        assert reason is None
    else:
        assert reason is not None and reason.cause == cause
        assert reason.remedy == 'pip install --upgrade "cuda-core>=1.2"'


def test_what_errors_ask_for() -> None:
    ptx = REMEDIES["CUDA_ERROR_UNSUPPORTED_PTX_VERSION"]
    assert "580" not in ptx  # which may be installed
    assert "build the kernels with an nvcc no newer than the CUDA that nvidia-smi shows" in ptx
    for name in ("CUDA_ERROR_INVALID_CONTEXT", "CUDA_ERROR_INVALID_HANDLE"):
        assert "pycuda.autoprimaryctx, not pycuda.autoinit" in REMEDIES[name]


def test_remedies_are_of_cudas_errors() -> None:
    skip_without("cuda-core")
    known = import_module("cuda.bindings.driver").CUresult.__members__
    assert REMEDIES.keys() <= known.keys()
    assert {name: int(known[name]) for name in _NAMES.values()} == {
        name: code for code, name in _NAMES.items()
    }
    assert set(_NAMES.values()) <= REMEDIES.keys()


def refusal(double: Double, name: str) -> str:
    return error_of(lambda: open_driver(name))


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"init_error": 100}, "the NVIDIA driver shows no GPU (look at nvidia-smi and CUDA_VI"),
        ({"devices": 0}, "the NVIDIA driver shows no GPU (look at nvidia-smi and CUDA_VISIBLE_"),
        ({"init_error": 803}, "the NVIDIA driver does not start (CUDA_ERROR_SYSTEM_DRIVER_MISMA"),
        ({"init_error": 804}, "the NVIDIA driver does not start (CUDA_ERROR_COMPAT_NOT_SUPPORTED"),
        ({"driver_version": 12080}, "NVIDIA's driver takes CUDA 12.8, and the kernels need 13.0"),
    ],
)
def test_a_driver_that_does_not_do(
    run_in_double: Callable[..., Seen], options: dict[str, int], cause: str
) -> None:
    skip_without("cuda-core")
    seen = run_in_double(refusal, "auto", **options)
    why, remedy = seen.result.splitlines()
    assert why.startswith(f"no CUDA driver can be opened: cuda-core and pycuda: {cause}")
    assert remedy == REMEDY
    assert seen.errors == seen.leaks == []


def third_device(double: Double, name: str) -> list[str]:
    return [error_of(lambda: open_driver(name, 2)), error_of(lambda: open_driver(name, 1))]


def test_a_device_that_is_not_there(scenario: Callable[..., Seen], driver_name: str) -> None:
    seen = scenario(third_device, devices=2)
    third, second = seen.result
    assert third.splitlines() == [
        f"no CUDA driver can be opened: {driver_name}: there is no device 2",
        "the driver lists devices 0 to 1; give one of these",
    ]
    assert second == "no error"


def first_choice(double: Double, name: str) -> str:
    with open_driver("auto") as driver:
        return driver.name


def second_choice(double: Double, name: str) -> str:
    driver_reasons.PACKAGES["cuda-core"] = (("odin_absent", "left out by this test", "-"),)
    return first_choice(double, name)


def test_auto_takes_cuda_core_and_then_pycuda(run_in_double: Callable[..., Seen]) -> None:
    skip_without("cuda-core")
    assert run_in_double(first_choice, "auto").result == "cuda-core"
    skip_without("pycuda")
    assert run_in_double(second_choice, "pycuda").result == "pycuda"


def neither(double: Double, name: str) -> str:
    for driver, text in (("cuda-core", "first"), ("pycuda", "second")):
        driver_reasons.PACKAGES[driver] = (("odin_absent", f"{text} is missing", f"get {text}"),)
    return error_of(lambda: open_driver("auto"))


def test_each_drivers_own_reason_is_told(run_in_double: Callable[..., Seen]) -> None:
    seen = run_in_double(neither, "auto")
    assert seen.result.splitlines() == [
        "no CUDA driver can be opened: cuda-core: first is missing; pycuda: second is missing",
        "get first",
    ]
    assert len(seen.calls("cuDriverGetVersion")) == 1  # asked once for both
