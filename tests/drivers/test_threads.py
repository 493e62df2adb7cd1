"""Threads, forks and the end of the process with both drivers, against the test double."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from drivers.double_library import IMAGE, Double
from drivers.fixtures import Seen, extra_path, in_double
from drivers.test_lifetimes import everything
from drivers.test_memory import error_of
from drivers.test_streams import SIZE, fill, read
from odin_engines.errors import OdinError
from odin_runtime import driver_reasons
from odin_runtime.driver import open_driver
from odin_runtime.driver_resources import OpenStreams


def run_all(workers: Sequence[Callable[[], object]]) -> list[str]:
    """Run functions in threads of their own; return their errors."""
    errors: list[str] = []

    def guarded(work: Callable[[], object]) -> None:
        try:
            work()
        except (OdinError, RuntimeError) as error:
            errors.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=guarded, args=[work]) for work in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def threads(double: Double, name: str) -> list[Any]:
    double.declare({"k": [8, 4]})
    foreign = [double.foreign_stream() for _ in range(3)]
    results: list[Any] = []
    with open_driver(name) as driver:

        def work(stream: int) -> None:
            results.append(everything(driver, stream))

        errors = run_all([partial(work, stream) for stream in foreign])
    return results + errors


def test_a_driver_works_in_several_threads(scenario: Callable[..., Seen]) -> None:
    seen = scenario(threads, seed=5)
    assert seen.result == [[1] * 8] * 3
    assert seen.errors == seen.leaks == []


def other_thread(double: Double, name: str) -> str:
    driver, texts = open_driver(name), []
    worker = threading.Thread(target=lambda: texts.append(error_of(driver.close)))
    worker.start()
    worker.join()
    if texts != ["no error"]:
        driver.close()
    return texts[0]


def test_closing_in_another_thread(scenario: Callable[..., Seen], driver_name: str) -> None:
    seen = scenario(other_thread)
    if driver_name == "pycuda":
        assert seen.result.startswith("pycuda releases a context only in the thread that opened it")
    else:
        assert seen.result == "no error"
    assert seen.errors == seen.leaks == []


class Idle:
    """A stream without work."""

    def settle(self) -> None:
        """Wait for nothing."""


def test_streams_are_opened_while_another_thread_waits_for_all() -> None:
    interval = sys.getswitchinterval()
    streams, kept = OpenStreams(), [Idle() for _ in range(2000)]
    for stream in kept:
        streams.add(stream)

    def add() -> None:
        for _ in range(2000):
            kept.append(Idle())
            streams.add(kept[-1])

    def settle() -> None:
        for _ in range(20):
            streams.settle()

    try:
        sys.setswitchinterval(1e-6)
        assert run_all([settle, add]) == []
    finally:
        sys.setswitchinterval(interval)


def closed_meanwhile(double: Double, name: str) -> list[str]:
    """Freeing memory waits for a stream that another thread begins to close just then."""
    is_capturing = driver_reasons.is_capturing
    with open_driver(name) as driver:
        stream, memory = driver.stream(), driver.allocate(8)
        closer = threading.Thread(target=stream.close)

        def slowly(handle: int) -> bool:
            if threading.current_thread() is threading.main_thread() and not closer.ident:
                closer.start()
                closer.join(0.2)  # in vain if the stream is held, as it has to be
            return is_capturing(handle)

        driver_reasons.is_capturing = slowly
        text = error_of(memory.free)
        closer.join()
        return [text, error_of(stream.synchronize)]


def test_a_stream_is_not_closed_under_a_thread_that_waits_for_it(
    scenario: Callable[..., Seen],
) -> None:
    seen = scenario(closed_meanwhile)
    assert seen.result == ["no error", "a stream is used after it was closed; close it later"]
    assert seen.errors == seen.leaks == []


def shared_stream(double: Double, name: str) -> list[Any]:
    """Two threads queue on one stream of the caller's, each after work that it has put there."""
    sys.setswitchinterval(1e-5)
    rounds = 30
    with open_driver(name) as driver:
        handle = double.foreign_stream()
        stream = driver.foreign_stream(handle)
        sources = [driver.allocate(1) for _ in range(2)]
        targets = [driver.allocate(rounds) for _ in range(2)]

        def work(source: int, target: int) -> None:
            for value in range(rounds):
                double.foreign_fill(handle, source, value, 1)
                driver.copy_on_device(target + value, source, 1, stream)

        pairs = zip(sources, targets, strict=True)
        jobs = [partial(work, source.pointer, target.pointer) for source, target in pairs]
        results: list[Any] = run_all(jobs)
        for target in targets:
            host = driver.pinned(rounds)
            driver.copy_to_host(host.pointer, target.pointer, rounds, stream)
            stream.synchronize()
            results.append(host.array.tolist())
        return results


@pytest.mark.parametrize("seed", (1, 2))
def test_two_threads_on_one_foreign_stream(scenario: Callable[..., Seen], seed: int) -> None:
    seen = scenario(shared_stream, seed=seed)
    assert seen.result == [list(range(30))] * 2
    assert seen.errors == seen.leaks == []


def default_streams_of_threads(double: Double, name: str) -> list[Any]:
    ran: list[str] = []
    double.declare({"k": []})
    double.on_launch(lambda launch: ran.append(launch.name))
    with open_driver(name) as driver:
        stream, kernel = driver.foreign_stream(2), driver.load(IMAGE).kernel("k")
        driver.launch(kernel, 1, 32, [], stream)
        errors = run_all([stream.synchronize])  # of the other thread's own default stream
        before = len(ran)
        stream.synchronize()
        return [errors, before, len(ran)]


def test_each_thread_has_a_default_stream_of_its_own(scenario: Callable[..., Seen]) -> None:
    seen = scenario(default_streams_of_threads, seed=0)
    assert seen.result == [[], 0, 1]
    assert seen.errors == seen.leaks == []


def forked(double: Double, name: str) -> list[str]:
    with open_driver(name) as driver:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            texts = [error_of(lambda: driver.allocate(4)), error_of(lambda: open_driver(name))]
            os.write(writer, "\n".join(texts).encode())
            os._exit(0)
        os.close(writer)
        os.waitpid(child, 0)
        with os.fdopen(reader) as file:
            told = file.read().splitlines()
        stream, memory = driver.stream(), driver.allocate(SIZE)  # the parent goes on
        fill(driver, memory.pointer, 5, stream)
        return [*told, str(read(driver, memory.pointer, stream))]


def test_after_a_fork_the_child_is_told(scenario: Callable[..., Seen]) -> None:
    seen = scenario(forked)
    using, opening, _, parent = seen.result
    assert using.startswith("entering the device's context failed: CUDA_ERROR_NOT_INITIALIZED (")
    assert "CUDA does not survive a fork: open the driver in the process that uses it" in using
    assert "the NVIDIA driver does not start (CUDA_ERROR_NOT_INITIALIZED" in opening
    assert parent == "[5]"
    assert seen.errors == seen.leaks == []


LEFT_OPEN = """
import sys
from drivers.double_library import IMAGE, Double
from odin_runtime.driver import Pointer, open_driver

double = Double()
double.declare({"k": [8]})
driver = open_driver(sys.argv[1])
stream, foreign = driver.stream(), driver.foreign_stream(double.foreign_stream())
memory, host, event = driver.allocate(8), driver.pinned(8), driver.event()
kernel = driver.load(IMAGE).kernel("k")
driver.launch(kernel, 1, 32, [Pointer(memory.pointer)], foreign)
event.record(stream)
print("done")
"""


def test_a_process_may_end_without_closing(double_folder: Path, driver_name: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LEFT_OPEN, driver_name],
        env=in_double(double_folder, extra_path(driver_name)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")
