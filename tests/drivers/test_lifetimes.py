"""Contexts, exceptions and leaks with both drivers, against the test double."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from drivers.double_library import IMAGE, Double
from drivers.fixtures import Seen, skip_without
from drivers.test_memory import error_of
from odin_runtime.driver import Driver, Pointer, open_driver


def everything(driver: Driver, foreign: int) -> list[int]:
    """Use each part of the protocol once; free some things, leave others to the close."""
    stream, theirs = driver.stream(), driver.foreign_stream(foreign)
    event = driver.event()
    source, target = driver.pinned(8), driver.pinned(8)
    source.array[:] = 1
    with driver.allocate(8) as memory:
        kernel = driver.load(IMAGE).kernel("k")
        driver.copy_to_device(memory.pointer, source.pointer, 8, stream)
        event.record(stream)
        theirs.wait(event)
        driver.launch(kernel, 1, 32, [Pointer(memory.pointer), np.int32(1)], theirs)
        if driver.has_graphs:
            with driver.capture(stream) as capture:
                driver.copy_to_device(memory.pointer, source.pointer, 8, stream)
            capture.graph().launch(stream)
        driver.copy_to_host(target.pointer, memory.pointer, 8, theirs)
        theirs.synchronize()
        stream.synchronize()
        return target.array.tolist()


def once(double: Double, name: str) -> list[int]:
    double.declare({"k": [8, 4]})
    with open_driver(name) as driver:
        return everything(driver, double.foreign_stream())


def test_everything_is_given_back(scenario: Callable[..., Seen]) -> None:
    seen = scenario(once)
    assert seen.result == [1] * 8
    assert seen.errors == seen.leaks == []  # the primary context would be among the leaks
    assert not seen.calls("cuCtxCreate")


# After a failing one of these something is still held: nobody can give back what CUDA does not
# take.
GIVING_BACK = {
    "cuMemFree": "device memory ",
    "cuMemFreeHost": "pinned memory ",
    "cuStreamDestroy": "stream ",
    "cuEventDestroy": "event ",
    "cuGraphDestroy": "graph ",
    "cuGraphExecDestroy": "executable graph ",
    "cuLibraryUnload": "module ",
    "cuDevicePrimaryCtxRelease": "primary context ",
    # Of pycuda alone, or of no thing.
    "cuModuleUnload": "",
    "cuStreamEndCapture": "",
    "cuCtxPopCurrent": "",
    "cuCtxPushCurrent": "",
    "cuThreadExchangeStreamCaptureMode": "",
}


def failing_everywhere(double: Double, name: str) -> list[Any]:
    """Let each call that takes something fail, one a turn."""
    double.declare({"k": [8, 4]})
    foreign = double.foreign_stream()
    double.clear_log()
    with open_driver(name) as driver:
        everything(driver, foreign)
    lines = [line.split() for line in double.log()]
    counts = collections.Counter(line[1] for line in lines if line[0] == "call")
    outcomes = []
    for function in [function for function in counts if function not in GIVING_BACK]:
        for number in range(1, counts[function] + 1):
            double.fail(function, 999, number)
            outcome = error_of(lambda: run_once(name, foreign))
            double.forget_failures()
            outcomes.append([function, number, outcome, double.leaks(), double.errors()])
    return outcomes


def run_once(name: str, foreign: int) -> None:
    with open_driver(name) as driver:
        everything(driver, foreign)


def test_any_call_may_fail_and_nothing_leaks(scenario: Callable[..., Seen]) -> None:
    seen = scenario(failing_everywhere)
    outcomes = seen.result
    assert len(outcomes) > 20
    silent = [outcome[:2] for outcome in outcomes if outcome[2] == "no error"]
    assert silent == []
    assert [outcome for outcome in outcomes if "CUDA_ERROR_UNKNOWN" not in outcome[2]] == []
    assert [outcome for outcome in outcomes if outcome[3] or outcome[4]] == []


def failing_release(double: Double, name: str) -> list[Any]:
    double.declare({"k": [8, 4]})
    foreign = double.foreign_stream()
    function = FAILING[double.case]
    double.fail(function, 999)
    return [function, error_of(lambda: run_once(name, foreign))]


FAILING = dict(enumerate(name for name, what in GIVING_BACK.items() if what))


@pytest.mark.parametrize("number", FAILING)
def test_a_release_that_fails_is_told_and_keeps_nothing_else(
    run_in_double: Callable[..., Seen], number: int
) -> None:
    skip_without("cuda-core")
    seen = run_in_double(failing_release, "cuda-core", case=number)
    function, text = seen.result
    assert "CUDA_ERROR_UNKNOWN" in text
    (leak,) = seen.leaks
    assert leak.startswith(GIVING_BACK[function])
    assert seen.errors == []


def exception(double: Double, name: str) -> list[str]:
    try:
        with open_driver(name) as driver:
            stream, memory, host = driver.stream(), driver.allocate(64), driver.pinned(64)
            driver.event().record(stream)
            driver.copy_to_device(memory.pointer, host.pointer, 64, stream)
            raise KeyError("of the caller")
    except KeyError as error:
        return [str(error), *getattr(error, "__notes__", [])]


def test_an_exception_leaves_nothing_behind(scenario: Callable[..., Seen]) -> None:
    seen = scenario(exception)
    assert seen.result == ["'of the caller'"]
    assert seen.errors == seen.leaks == []


def after_the_close(double: Double, name: str) -> list[str]:
    driver = open_driver(name)
    memory, stream = driver.allocate(8), driver.stream()
    driver.close()
    driver.close()
    return [
        error_of(lambda: driver.allocate(8)),
        error_of(lambda: memory.pointer),
        error_of(stream.synchronize),
        error_of(lambda: driver.load(IMAGE)),
    ]


def test_a_closed_driver_says_so(scenario: Callable[..., Seen]) -> None:
    seen = scenario(after_the_close)
    closed = "the CUDA driver has been closed; open it again with open_driver"
    assert seen.result[0] == seen.result[3] == closed
    assert "used after it was freed" in seen.result[1]
    assert " closed; " in seen.result[2]
    assert seen.errors == seen.leaks == []


def failing_close(double: Double, name: str) -> str:
    driver = open_driver(name)
    driver.stream()
    driver.allocate(8)
    double.fail("cuStreamSynchronize", 999)
    return error_of(driver.close)


def test_a_close_that_fails_still_gives_everything_back(scenario: Callable[..., Seen]) -> None:
    seen = scenario(failing_close)
    assert seen.result.startswith("waiting for a stream's work failed: CUDA_ERROR_UNKNOWN (")
    assert seen.errors == seen.leaks == []


def callers_context(double: Double, name: str) -> list[Any]:
    import ctypes

    library = ctypes.CDLL("libcuda.so.1")
    with open_driver(name) as driver:
        theirs, seen = ctypes.c_void_p(), []

        def current() -> int | None:
            found = ctypes.c_void_p()
            library.cuCtxGetCurrent(ctypes.byref(found))
            return found.value

        seen.append(current())
        library.cuCtxCreate_v4(ctypes.byref(theirs), None, 0, 0)
        driver.allocate(4)
        stream = driver.stream()
        seen.append(current() == theirs.value)
        with driver.current():
            seen.append(current() not in (None, theirs.value))
            stream.synchronize()
        seen.append(current() == theirs.value)
        library.cuCtxPopCurrent_v2(ctypes.byref(theirs))
        library.cuCtxDestroy_v2(theirs)
    return seen


def test_the_callers_context_stays_current(scenario: Callable[..., Seen]) -> None:
    seen = scenario(callers_context)
    assert seen.result == [None, True, True, True]
    assert seen.errors == seen.leaks == []


def context_not_left(double: Double, name: str) -> str:
    with open_driver(name) as driver:
        stream = driver.stream()
        double.fail("cuCtxPopCurrent", 999)
        return error_of(stream.synchronize)


def test_a_context_that_cannot_be_left_is_told(scenario: Callable[..., Seen]) -> None:
    seen = scenario(context_not_left)
    assert seen.result.startswith("leaving the device's context failed: CUDA_ERROR_UNKNOWN (")
    assert seen.errors == []


def again_and_again(double: Double, name: str) -> None:
    double.declare({"k": [8, 4]})
    foreign = double.foreign_stream()
    for _ in range(5):
        run_once(name, foreign)


def test_opening_again(scenario: Callable[..., Seen]) -> None:
    seen = scenario(again_and_again)
    assert seen.errors == seen.leaks == []
