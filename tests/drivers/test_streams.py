"""Streams and events of both drivers, against the test double."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest

from drivers.double_library import IMAGE, Double, Launch
from drivers.fixtures import Seen
from drivers.test_memory import error_of
from odin_runtime.driver import Driver, Pointer, Stream, open_driver

SEEDS = (0, 1, 2, 3, 4)
DEFAULT_STREAMS = (0, 1, 2)  # CUDA's, CU_STREAM_LEGACY and CU_STREAM_PER_THREAD
SIZE = 16


def fill(driver: Driver, address: int, value: int, stream: Stream) -> None:
    """Queue setting SIZE bytes on the device; the pinned source lives until the driver closes."""
    source = driver.pinned(SIZE)
    source.array[:] = value
    driver.copy_to_device(address, source.pointer, SIZE, stream)


def read(driver: Driver, address: int, stream: Stream) -> list[int]:
    """The values among SIZE bytes on the device, after the work of a stream."""
    target = driver.pinned(SIZE)
    driver.copy_to_host(target.pointer, address, SIZE, stream)
    stream.synchronize()
    return sorted(set(target.array.tolist()))


def two_streams(double: Double, name: str) -> list[int]:
    with open_driver(name) as driver:
        first, second, ready = driver.stream(), driver.stream(), driver.event()
        memory = driver.allocate(SIZE)
        fill(driver, memory.pointer, 5, first)
        ready.record(first)
        second.wait(ready)
        return read(driver, memory.pointer, second)


def two_streams_without_an_event(double: Double, name: str) -> list[int]:
    with open_driver(name) as driver:
        first, second = driver.stream(), driver.stream()
        memory = driver.allocate(SIZE)
        fill(driver, memory.pointer, 5, first)
        return read(driver, memory.pointer, second)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_event_orders_two_streams(scenario: Callable[..., Seen], seed: int) -> None:
    seen = scenario(two_streams, seed=seed)
    assert seen.result == [5]
    assert seen.errors == seen.leaks == []


def test_a_missing_event_is_seen_as_wrong_data(scenario: Callable[..., Seen]) -> None:
    assert scenario(two_streams_without_an_event, seed=0).result == [255]


def event_on_the_host(double: Double, name: str) -> list[Any]:
    with open_driver(name) as driver:
        stream, event = driver.stream(), driver.event()
        event.synchronize()  # of no work: at once
        memory, target = driver.allocate(SIZE), driver.pinned(SIZE)
        fill(driver, memory.pointer, 6, stream)
        driver.copy_to_host(target.pointer, memory.pointer, SIZE, stream)
        event.record(stream)
        fill(driver, memory.pointer, 9, stream)
        event.synchronize()
        return [sorted(set(target.array.tolist())), sum("run copy" in x for x in double.log())]


def test_waiting_for_an_event_does_no_later_work(scenario: Callable[..., Seen]) -> None:
    seen = scenario(event_on_the_host, seed=0)
    assert seen.result == [[6], 2]
    assert seen.errors == seen.leaks == []


def elapsed(double: Double, name: str) -> list[Any]:
    with open_driver(name) as driver:
        stream = driver.stream()
        begin, end, plain = driver.event(timing=True), driver.event(timing=True), driver.event()
        memory = driver.allocate(SIZE)
        begin.record(stream)
        plain.record(stream)
        fill(driver, memory.pointer, 6, stream)
        end.record(stream)
        early = error_of(lambda: end.elapsed_ms(since=begin))
        end.synchronize()
        # The double counts operations, in place of milliseconds: begin, plain, fill, end.
        return [end.elapsed_ms(since=begin), error_of(lambda: end.elapsed_ms(plain)), early]


def test_elapsed_time(scenario: Callable[..., Seen]) -> None:
    seen = scenario(elapsed, seed=0)
    count, without_timing, early = seen.result
    assert count == 3.0
    assert "measuring the time between two events failed: CUDA_ERROR_INVALID_HANDLE" in (
        without_timing
    )
    assert "CUDA_ERROR_NOT_READY" in early
    assert [line.rpartition("=")[2] for line in seen.calls("cuEventCreate")] == ["0", "0", "2"]


def foreign_stream(double: Double, name: str) -> list[Any]:
    with open_driver(name) as driver:
        handle = double.foreign_stream()
        memory, kernel_ran = driver.allocate(SIZE), []
        double.declare({"check": [8]})
        double.on_launch(lambda _: kernel_ran.append(memory_value(memory.pointer)))
        stream, module = driver.foreign_stream(handle), driver.load(IMAGE)
        double.foreign_fill(handle, memory.pointer, 4, SIZE)  # the caller's work before ours
        pointer = Pointer(memory.pointer)
        driver.launch(module.kernel("check"), 1, 32, [pointer], stream)
        copied = driver.pinned(SIZE)
        driver.copy_to_host(copied.pointer, memory.pointer, SIZE, stream)
        double.foreign_fill(handle, memory.pointer, 8, SIZE)  # and after it
        stream.synchronize()
        stream.close()
        stream.close()
        seen = sorted(set(copied.array.tolist()))
        own = driver.stream()
        kept = driver.foreign_stream(handle).handle == handle  # TensorRT's enqueue is given it
        return [kept, kernel_ran, seen, read(driver, memory.pointer, own)]


def memory_value(address: int) -> int:
    """The first byte at an address; the double's device memory is this process's."""
    return int(ctypes.c_uint8.from_address(address).value)


@pytest.mark.parametrize("seed", SEEDS)
def test_work_keeps_its_place_in_a_foreign_stream(scenario: Callable[..., Seen], seed: int) -> None:
    seen = scenario(foreign_stream, seed=seed)
    assert seen.result == [True, [4], [4], [8]]
    assert seen.errors == seen.leaks == []  # an error would be: the caller's stream was destroyed


def callers_wait(double: Double, name: str) -> list[int]:
    with open_driver(name) as driver:
        handle, memory, target = double.foreign_stream(), driver.allocate(SIZE), driver.pinned(SIZE)
        stream = driver.foreign_stream(handle)
        fill(driver, memory.pointer, 4, stream)
        driver.copy_to_host(target.pointer, memory.pointer, SIZE, stream)
        with driver.current():
            ctypes.CDLL("libcuda.so.1").cuStreamSynchronize(ctypes.c_void_p(handle))
        return sorted(set(target.array.tolist()))


def test_the_callers_own_wait_includes_our_work(scenario: Callable[..., Seen]) -> None:
    seen = scenario(callers_wait, seed=0)
    assert seen.result == [4]
    assert seen.errors == seen.leaks == []


def closed_with_work(double: Double, name: str) -> list[int]:
    with open_driver(name) as driver:
        stream, memory, target = driver.stream(), driver.allocate(SIZE), driver.pinned(SIZE)
        fill(driver, memory.pointer, 4, stream)
        driver.copy_to_host(target.pointer, memory.pointer, SIZE, stream)
        stream.close()
        memory.free()
        return sorted(set(target.array.tolist()))


def test_closing_a_stream_waits_for_its_work(scenario: Callable[..., Seen]) -> None:
    seen = scenario(closed_with_work, seed=0)
    assert seen.result == [4]
    assert seen.errors == seen.leaks == []


def foreign_closed_with_work(double: Double, name: str) -> list[Any]:
    with open_driver(name) as driver:
        handle, memory = double.foreign_stream(), driver.allocate(SIZE)
        double.declare({"k": [8]})
        double.on_launch(lambda _: ctypes.memset(memory.pointer, 3, SIZE))
        kernel, stream = driver.load(IMAGE).kernel("k"), driver.foreign_stream(handle)
        driver.launch(kernel, 1, 32, [Pointer(memory.pointer)], stream)
        double.clear_log()
        stream.close()
        waits = [line for line in double.log() if "Synchronize" in line]
        again = driver.foreign_stream(handle)
        return [waits, read(driver, memory.pointer, again)]


def test_closing_a_foreign_stream_waits_for_nothing(scenario: Callable[..., Seen]) -> None:
    seen = scenario(foreign_closed_with_work, seed=0)
    assert seen.result == [[], [3]]
    assert seen.errors == seen.leaks == []


def default_stream(double: Double, name: str) -> list[int]:
    with open_driver(name) as driver:
        stream, memory = driver.foreign_stream(double.case), driver.allocate(SIZE)
        double.declare({"k": [8]})
        module = driver.load(IMAGE)
        double.on_launch(lambda _: ctypes.memset(memory.pointer, 2, SIZE))
        driver.launch(module.kernel("k"), 1, 32, [Pointer(memory.pointer)], stream)
        return [stream.handle, *read(driver, memory.pointer, stream)]


@pytest.mark.parametrize("seed", (0, 1))
@pytest.mark.parametrize("handle", DEFAULT_STREAMS)
def test_a_default_stream_as_a_foreign_stream(
    scenario: Callable[..., Seen], handle: int, seed: int
) -> None:
    seen = scenario(default_stream, case=handle, seed=seed)
    assert seen.result == [handle, 2]
    assert seen.errors == seen.leaks == []
    queue = "per-thread" if handle == 2 else "legacy"
    used = seen.calls("cuEventRecord") + seen.calls("cuLaunchKernel")
    assert any(line.endswith(f"stream={queue}") for line in used)


def closed(double: Double, name: str) -> list[str]:
    with open_driver(name) as driver:
        stream, event, other = driver.stream(), driver.event(), driver.stream()
        for one in (stream, event):
            one.close()
            one.close()
        return [
            error_of(stream.synchronize),
            error_of(event.synchronize),
            error_of(lambda: other.wait(event)),
        ]


def test_closed_streams_and_events_are_refused(scenario: Callable[..., Seen]) -> None:
    seen = scenario(closed)
    assert seen.result == [
        "a stream is used after it was closed; close it later",
        "an event is used after it was closed; close it later",
        "an event is used after it was closed; close it later",
    ]
    assert seen.errors == seen.leaks == []
    assert len(seen.calls("cuStreamDestroy")) == 2  # one of them at the close of the driver


def non_blocking(double: Double, name: str) -> None:
    with open_driver(name) as driver:
        driver.stream()


def test_own_streams_do_not_wait_for_the_default_stream(scenario: Callable[..., Seen]) -> None:
    assert scenario(non_blocking).calls("cuStreamCreate") == ["call cuStreamCreate flags=1"]


def strangers(double: Double, name: str) -> list[str]:
    class Other:
        handle = 1

    with open_driver(name) as driver:
        stream: Any = driver.stream()
        other: Any = Other()
        return [
            error_of(lambda: stream.wait(other)),
            error_of(lambda: driver.launch(other, 1, 1, [], stream)),
        ]


def test_things_of_another_driver_are_refused(scenario: Callable[..., Seen]) -> None:
    for text in scenario(strangers).result or ["nothing"]:
        assert text.startswith("a Other was given where a ")


def launched_in(double: Double, name: str) -> list[Any]:
    seen: list[Launch] = []
    double.declare({"k": []})
    double.on_launch(seen.append)
    with open_driver(name) as driver:
        stream, kernel = driver.stream(), driver.load(IMAGE).kernel("k")
        for grid in (1, 2, 3):
            driver.launch(kernel, grid, 64, [], stream)
        queued = len(seen)
        stream.synchronize()
        return [queued, [launch.grid[0] for launch in seen]]


def test_launches_are_asynchronous_and_in_order(scenario: Callable[..., Seen]) -> None:
    assert scenario(launched_in, seed=0).result == [0, [1, 2, 3]]
