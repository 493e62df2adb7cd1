"""Graphs: captured and replayed with cuda-core, refused by pycuda; against the test double."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from drivers.double_library import IMAGE, Double
from drivers.fixtures import Seen, skip_without
from drivers.test_memory import error_of
from drivers.test_streams import SIZE
from odin_runtime.driver import Driver, Kernel, Pointer, open_driver

SEEDS = (0, 1, 2, 3)


@pytest.fixture
def graphs(run_in_double: Callable[..., Seen]) -> Callable[..., Seen]:
    """A function: scenario, options of the double -> Seen; with cuda-core."""
    skip_without("cuda-core")
    return lambda function, **options: run_in_double(function, "cuda-core", **options)


def adder(double: Double, driver: Driver) -> Kernel:
    """A kernel that adds to SIZE bytes: (address, amount)."""

    def add(launch: Any) -> None:
        address, amount = np.frombuffer(launch.parameters[:8], np.uint64), launch.parameters[8]
        space = (ctypes.c_uint8 * SIZE).from_address(int(address[0]))
        values = np.ctypeslib.as_array(space)
        values += np.uint8(amount)

    double.declare({"add": [8, 4]})
    double.on_launch(add)
    return driver.load(IMAGE).kernel("add")


def replay(double: Double, name: str) -> list[Any]:
    with open_driver(name) as driver:
        kernel, stream = adder(double, driver), driver.stream()
        memory, source = driver.allocate(SIZE), driver.pinned(SIZE)
        target = driver.pinned(SIZE)
        with driver.capture(stream) as capture:
            early = error_of(capture.graph)
            driver.copy_to_device(memory.pointer, source.pointer, SIZE, stream)
            arguments = [Pointer(memory.pointer), np.int32(3)]
            driver.launch(kernel, 1, 32, arguments, stream)
            driver.copy_to_host(target.pointer, memory.pointer, SIZE, stream)
        during = [line for line in double.log() if line.startswith("run ")]
        graph, results = capture.graph(), []
        for value in (1, 2):
            source.array[:] = value
            graph.launch(stream)
            stream.synchronize()
            results.append(target.array.tolist())
        graph.close()
        graph.close()
        return [early, during, results, error_of(lambda: graph.launch(stream))]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_graph_replays_what_was_captured(graphs: Callable[..., Seen], seed: int) -> None:
    seen = graphs(replay, seed=seed)
    early, during, results, closed = seen.result
    assert early == "the capture has not ended: call graph() after the with block"
    assert during == []
    assert results == [[4] * SIZE, [5] * SIZE]
    assert closed == "a graph is used after it was closed; close it later"
    assert seen.errors == seen.leaks == []
    kinds = [line.split()[0] for line in seen.runs()]
    assert kinds == ["graph", "copy", "kernel", "copy"] * 2
    assert len(seen.calls("cuGraphInstantiate")) == len(seen.calls("cuGraphDestroy")) == 1
    (begin,) = seen.calls("cuStreamBeginCapture")
    assert begin.endswith(" mode=1")  # of this thread alone: other threads may wait and allocate


def forked(double: Double, name: str) -> list[int]:
    with open_driver(name) as driver:
        kernel, first, second = adder(double, driver), driver.stream(), driver.stream()
        fork, join = driver.event(), driver.event()
        memory, source = driver.allocate(2 * SIZE), driver.pinned(2 * SIZE)
        source.array[:] = 10
        with driver.capture(first) as capture:
            driver.copy_to_device(memory.pointer, source.pointer, 2 * SIZE, first)
            fork.record(first)
            second.wait(fork)
            for amount, stream in ((1, first), (2, second)):
                start = Pointer(memory.pointer + SIZE * (amount - 1))
                driver.launch(kernel, 1, 32, [start, np.int32(amount)], stream)
            join.record(second)
            first.wait(join)
            driver.copy_to_host(source.pointer, memory.pointer, 2 * SIZE, first)
        capture.graph().launch(first)
        first.synchronize()
        return sorted(set(source.array.tolist()))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_capture_of_two_streams(graphs: Callable[..., Seen], seed: int) -> None:
    seen = graphs(forked, seed=seed)
    assert seen.result == [11, 12]
    assert seen.errors == seen.leaks == []


def freed_meanwhile(double: Double, name: str) -> list[int]:
    with open_driver(name) as driver:
        stream, memory, source = driver.stream(), driver.allocate(SIZE), driver.pinned(SIZE)
        source.array[:] = 7
        other = driver.allocate(SIZE)
        with driver.capture(stream) as capture:
            driver.copy_to_device(memory.pointer, source.pointer, SIZE, stream)
            worker = threading.Thread(target=other.free)
            worker.start()
            worker.join()
            driver.copy_to_host(source.pointer, memory.pointer, SIZE, stream)
        capture.graph().launch(stream)
        stream.synchronize()
        return sorted(set(source.array.tolist()))


def test_another_thread_may_free_during_a_capture(graphs: Callable[..., Seen]) -> None:
    seen = graphs(freed_meanwhile)
    assert seen.result == [7]
    assert len(seen.calls("cuMemFree")) == 2
    assert seen.errors == seen.leaks == []


def broken(double: Double, name: str) -> list[str]:
    """Everything that ends a capture badly; after each the stream still works."""
    with open_driver(name) as driver:
        kernel, stream, other = adder(double, driver), driver.stream(), driver.stream()
        memory, outside = driver.allocate(SIZE), driver.event()
        outside.record(other)
        arguments = [Pointer(memory.pointer), np.int32(1)]

        def capture(do: Callable[[], object]) -> str:
            def all_of_it() -> None:
                with driver.capture(stream) as captured:
                    driver.launch(kernel, 1, 32, arguments, stream)
                    do()
                captured.graph()

            text = error_of(all_of_it)
            driver.launch(kernel, 1, 32, arguments, stream)
            stream.synchronize()
            return text

        def fork() -> None:
            event = driver.event()
            event.record(stream)
            other.wait(event)
            driver.launch(kernel, 1, 32, arguments, other)

        def hidden() -> None:
            error_of(stream.synchronize)

        texts = [
            capture(stream.synchronize),
            capture(lambda: driver.allocate(4)),
            capture(lambda: stream.wait(outside)),
            capture(hidden),
            capture(fork),
        ]
        double.fail("cuGraphInstantiate", 2)
        return [*texts, capture(lambda: None)]


def test_a_capture_that_fails(graphs: Callable[..., Seen]) -> None:
    seen = graphs(broken)
    starts = [
        "waiting for a stream's work failed: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED (",
        "allocating 4 bytes on odin test double, not a GPU failed: "
        "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED (",
        "waiting for an event failed: CUDA_ERROR_STREAM_CAPTURE_ISOLATION (",
        "ending the capture failed: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED (",
        "ending the capture failed: CUDA_ERROR_STREAM_CAPTURE_UNJOINED (",
        "making the graph failed: CUDA_ERROR_OUT_OF_MEMORY (",
    ]
    for text, start in zip(seen.result, starts, strict=True):
        assert text.startswith(start)
    assert "neither wait nor allocate nor free while a graph is captured" in seen.result[0]
    assert len(seen.errors) == 4  # the first four; the double saw what the driver refused
    assert seen.leaks == []


def interrupted(double: Double, name: str) -> str:
    with open_driver(name) as driver:
        kernel, stream, memory = adder(double, driver), driver.stream(), driver.allocate(SIZE)
        try:
            with driver.capture(stream):
                driver.launch(kernel, 1, 32, [Pointer(memory.pointer), np.int32(1)], stream)
                raise KeyError("the caller's")
        except KeyError as error:
            stream.synchronize()
            return str(error)


def test_an_exception_in_a_capture_ends_it(graphs: Callable[..., Seen]) -> None:
    seen = graphs(interrupted)
    assert seen.result == repr("the caller's")
    assert seen.errors == seen.leaks == []
    assert not any(line.startswith("kernel") for line in seen.runs())


def without_graphs(double: Double, name: str) -> list[Any]:
    with open_driver(name) as driver:
        stream = driver.stream()
        return [driver.has_graphs, error_of(lambda: driver.capture(stream))]


def test_pycuda_says_that_it_has_no_graphs(run_in_double: Callable[..., Seen]) -> None:
    skip_without("pycuda")
    has_graphs, text = run_in_double(without_graphs, "pycuda").result
    assert not has_graphs
    assert text == (
        'pycuda has no CUDA graphs; install cuda-core, which has: pip install "cuda-core[cu13]", '
        "or run without graphs"
    )
