"""Modules, kernels and their arguments with both drivers, against the test double."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from drivers.double_library import IMAGE, Double, Launch
from drivers.fixtures import Seen, skip_without
from drivers.test_memory import error_of
from odin_runtime.driver import Pointer, open_driver

# Parameters of all sizes, in an order that needs padding.
SIZES = [8, 4, 8, 4, 4, 8]


def arguments(double: Double, name: str) -> Any:
    launches: list[Launch] = []
    double.declare({"odin_test": SIZES})
    double.on_launch(launches.append)
    with open_driver(name) as driver, driver.allocate(64) as memory:
        stream, module = driver.stream(), driver.load(IMAGE)
        values = [
            Pointer(memory.pointer),
            np.int32(-7),
            np.int64(2**40 + 3),
            np.float32(0.1),
            np.int32(2**31 - 1),
            Pointer(0),
        ]
        driver.launch(module.kernel("odin_test"), 70_000, 128, values, stream)
        values[1] = np.int32(8)  # those of the first launch are its own
        stream.synchronize()
        expected = struct.pack("<qi4xqfiq", memory.pointer, -7, 2**40 + 3, 0.1, 2**31 - 1, 0)
        (launch,) = launches
        return [launch.name, launch.grid, launch.block, launch.parameters == expected]


@pytest.mark.parametrize("seed", (0, 1))
def test_arguments_arrive_byte_for_byte(scenario: Callable[..., Seen], seed: int) -> None:
    seen = scenario(arguments, seed=seed)
    assert seen.result == ["odin_test", [70_000, 1, 1], [128, 1, 1], True]
    assert seen.errors == seen.leaks == []
    (call,) = seen.calls("cuLaunchKernel")
    assert " grid=70000,1,1 block=128,1,1 shared=0 stream=s" in call


def refused(double: Double, name: str) -> list[str]:
    double.declare({"k": [4]})
    with open_driver(name) as driver:
        stream, kernel = driver.stream(), driver.load(IMAGE).kernel("k")

        def launch(grid: int, block: int, argument: Any) -> str:
            return error_of(lambda: driver.launch(kernel, grid, block, [argument], stream))

        return [
            launch(1, 32, 5),
            launch(1, 32, np.float64(5)),
            launch(0, 32, np.int32(5)),
            launch(1, 1025, np.int32(5)),
            launch(2**31, 32, np.int32(5)),
        ]


def test_wrong_arguments_are_refused_before_the_launch(scenario: Callable[..., Seen]) -> None:
    seen = scenario(refused)
    assert seen.result == [
        "argument 0 of kernel k is a int; give numpy.int32, numpy.int64, numpy.float32 or "
        "Pointer, as the kernel declares it",
        "argument 0 of kernel k is a float64; give numpy.int32, numpy.int64, numpy.float32 or "
        "Pointer, as the kernel declares it",
        "kernel k: grid is 0; it has to be 1 to 2147483647",
        "kernel k: block is 1025; it has to be 1 to 1024",
        "kernel k: grid is 2147483648; it has to be 1 to 2147483647",
    ]
    assert not seen.calls("cuLaunchKernel")
    assert seen.errors == seen.leaks == []


def other_parameters(double: Double, name: str) -> list[str]:
    double.declare({"k": [8, 4]})
    with open_driver(name) as driver:
        stream, kernel = driver.stream(), driver.load(IMAGE).kernel("k")

        def launch(*given: Any) -> str:
            return error_of(lambda: driver.launch(kernel, 1, 32, given, stream))

        first = Pointer(0)
        return [
            launch(first),
            launch(first, np.int64(1)),
            launch(first, np.int32(1), first, np.int32(1)),
        ]


def test_a_binary_with_other_parameters_is_refused(
    scenario: Callable[..., Seen], driver_name: str
) -> None:
    seen = scenario(other_parameters)
    if driver_name == "pycuda":  # gives CUDA one block of bytes, which looks at its size
        assert all("CUDA_ERROR_INVALID_VALUE" in text for text in seen.result)
        assert len(seen.errors) == 3
    else:
        for text, given in zip(seen.result, ([8], [8, 8], [8, 4, 8, 4]), strict=True):
            assert text == (
                f"kernel k takes parameters of [8, 4] bytes and was given {given}; the binary is "
                "of another version than this package: rebuild it"
            )
        assert not seen.calls("cuLaunchKernel")


def modules(double: Double, name: str) -> list[str]:
    double.declare({"k": [4]})
    with open_driver(name) as driver:
        module = driver.load(IMAGE)
        kernel, stream = module.kernel("k"), driver.stream()
        texts = [error_of(lambda: driver.load(b"not a module" * 4))]
        texts.append(error_of(lambda: module.kernel("absent")))
        loader = "cuLibraryLoadData" if name == "cuda-core" else "cuModuleLoadDataEx"
        for error in (209, 222):  # CUDA_ERROR_NO_BINARY_FOR_GPU, CUDA_ERROR_UNSUPPORTED_PTX_VERSION
            double.fail(loader, error)
            texts.append(error_of(lambda: driver.load(IMAGE)))
        module.close()
        module.close()
        texts.append(error_of(lambda: module.kernel("k")))
        texts.append(error_of(lambda: driver.launch(kernel, 1, 1, [np.int32(1)], stream)))
        return texts


def test_modules_that_do_not_load(scenario: Callable[..., Seen]) -> None:
    seen = scenario(modules)
    loading = "loading the kernels for odin test double, not a GPU failed: "
    starts = [
        loading + "CUDA_ERROR_INVALID_IMAGE (device kernel image is invalid); give a fat binary",
        "looking for kernel absent failed: CUDA_ERROR_NOT_FOUND (named symbol not found); check",
        loading + "CUDA_ERROR_NO_BINARY_FOR_GPU (no kernel image is available for execution on "
        "the device); the binary has no code for this device: rebuild",
        loading + "CUDA_ERROR_UNSUPPORTED_PTX_VERSION (the provided PTX was compiled with an "
        "unsupported toolchain.); the driver is older than the CUDA that compiled the kernels",
        "a module is used after it was closed",
        "a module is used after it was closed",
    ]
    for text, start in zip(seen.result, starts, strict=True):
        assert text.startswith(start)
    assert seen.errors == seen.leaks == []


def no_code(double: Double, name: str) -> str:
    double.declare({"k": [4]})
    with open_driver(name) as driver:
        module = driver.load(IMAGE)
        double.fail("cuKernelGetFunction", 209)
        return error_of(lambda: module.kernel("k"))


def test_a_kernel_is_loaded_before_its_first_launch(run_in_double: Callable[..., Seen]) -> None:
    skip_without("cuda-core")  # pycuda loads it when it looks it up
    seen = run_in_double(no_code, "cuda-core")
    assert seen.result.startswith("loading kernel k failed: CUDA_ERROR_NO_BINARY_FOR_GPU (")
    assert seen.errors == seen.leaks == []


def failing_launch(double: Double, name: str) -> str:
    double.declare({"k": [4]})
    with open_driver(name) as driver:
        kernel, stream = driver.load(IMAGE).kernel("k"), driver.stream()
        double.fail("cuLaunchKernel", 701)  # CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES
        return error_of(lambda: driver.launch(kernel, 3, 1024, [np.int32(1)], stream))


def test_a_launch_that_cuda_refuses(scenario: Callable[..., Seen]) -> None:
    seen = scenario(failing_launch)
    assert seen.result.startswith(
        "launching k on 3 blocks of 1024 threads failed: CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES ("
    )
    assert seen.errors == seen.leaks == []


def fault(double: Double, name: str) -> list[str]:
    double.declare({"k": [4]})

    def broken(_: Launch) -> None:
        raise ValueError("of the device")

    double.on_launch(broken)
    texts = []
    try:
        with open_driver(name) as driver:
            kernel, stream = driver.load(IMAGE).kernel("k"), driver.stream()
            driver.launch(kernel, 1, 32, [np.int32(1)], stream)
            texts.append(error_of(stream.synchronize))
            texts.append(error_of(lambda: driver.allocate(4)))
            raise KeyError("of the caller")
    except KeyError as error:
        texts += [str(error), *error.__notes__]
    return texts


def test_a_fault_of_a_kernel_shows_at_the_wait_and_then_everywhere(
    scenario: Callable[..., Seen],
) -> None:
    seen = scenario(fault)
    waiting, allocating, callers, note = seen.result
    assert waiting.startswith("waiting for a stream's work failed: CUDA_ERROR_LAUNCH_FAILED (")
    assert "restart it, and run it under compute-sanitizer" in waiting
    assert "CUDA_ERROR_LAUNCH_FAILED" in allocating
    assert callers == "'of the caller'"  # the error of closing does not take its place
    assert note.startswith("closing the CUDA driver failed too: ")
    assert "ValueError: of the device" in seen.faults[0]
