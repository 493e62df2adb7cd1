"""Memory and copies of both drivers, against the test double."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from drivers.double_library import Double
from drivers.fixtures import Seen
from odin_engines.errors import OdinError
from odin_runtime.driver import Driver, open_driver

SEEDS = (0, 1, 2, 3)


def error_of(do: Callable[[], Any]) -> str:
    """The text of the OdinError that `do` raises."""
    try:
        do()
    except OdinError as error:
        return str(error)
    return "no error"


def there_and_back(driver: Driver, values: np.ndarray, *, wait: bool = True) -> np.ndarray:
    """Copy bytes to the device and back, through pinned memory."""
    size = values.size
    with driver.pinned(size) as source, driver.pinned(size) as target:
        with driver.allocate(size) as memory:
            stream = driver.stream()
            source.array[:] = values
            target.array[:] = 0
            driver.copy_to_device(memory.pointer, source.pointer, size, stream)
            driver.copy_to_host(target.pointer, memory.pointer, size, stream)
            if wait:
                stream.synchronize()
            result = target.array.copy()
        stream.close()
    return result


def copies(double: Double, name: str) -> dict[str, Any]:
    with open_driver(name) as driver:
        values = np.arange(1, 1001, dtype=np.uint16).view(np.uint8)
        back = there_and_back(driver, values)
        return {
            "same": bool((back == values).all()),
            "name": [driver.name, driver.device_name],
        }


@pytest.mark.parametrize("seed", SEEDS)
def test_copies_arrive(scenario: Callable[..., Seen], driver_name: str, seed: int) -> None:
    seen = scenario(copies, seed=seed)
    assert seen.result["same"]
    assert seen.result["name"] == [driver_name, "odin test double, not a GPU"]
    assert seen.errors == seen.leaks == []
    assert [line.split()[0] for line in seen.runs()] == ["copy", "copy"]
    transfers = [line for line in seen.log if line.startswith("call cuMemcpy")]
    assert len(transfers) == 2
    assert not any("pageable" in line for line in transfers)


def copies_without_waiting(double: Double, name: str) -> bool:
    with open_driver(name) as driver:
        values = np.full(64, 7, np.uint8)
        return bool((there_and_back(driver, values, wait=False) == values).all())


def test_a_missing_wait_is_seen_as_wrong_data(scenario: Callable[..., Seen]) -> None:
    seen = scenario(copies_without_waiting)
    assert not seen.result
    assert seen.errors == seen.leaks == []


def source_reused_too_early(double: Double, name: str) -> list[int]:
    with open_driver(name) as driver:
        source, target, memory = driver.pinned(1), driver.pinned(1), driver.allocate(1)
        stream = driver.stream()
        source.array[0] = 1
        driver.copy_to_device(memory.pointer, source.pointer, 1, stream)
        source.array[0] = 2  # the copy may not have read it yet
        driver.copy_to_host(target.pointer, memory.pointer, 1, stream)
        stream.synchronize()
        return target.array.tolist()


def test_a_staging_buffer_that_is_reused_too_early_is_seen(scenario: Callable[..., Seen]) -> None:
    assert scenario(source_reused_too_early).result == [2]


def new_memory(double: Double, name: str) -> list[int]:
    with open_driver(name) as driver, driver.pinned(4) as target, driver.allocate(4) as memory:
        target.array[:] = 0
        stream = driver.stream()
        driver.copy_to_host(target.pointer, memory.pointer, 4, stream)
        stream.synchronize()
        return target.array.tolist()


def test_new_memory_reads_as_nan(scenario: Callable[..., Seen]) -> None:
    assert scenario(new_memory).result == [255] * 4


def nothing_at_all(double: Double, name: str) -> list[Any]:
    with open_driver(name) as driver, driver.pinned(0) as host, driver.allocate(0) as memory:
        stream = driver.stream()
        double.clear_log()
        driver.copy_to_device(memory.pointer, host.pointer, 0, stream)
        driver.copy_to_host(host.pointer, memory.pointer, 0, stream)
        calls = [line for line in double.log() if "cuMemcpy" in line]
        return [memory.pointer, host.pointer, host.array.shape, calls]


def test_memory_of_no_bytes(scenario: Callable[..., Seen]) -> None:
    seen = scenario(nothing_at_all)
    assert seen.result == [0, 0, [0], []]
    assert seen.errors == seen.leaks == []
    assert not seen.calls("cuMemAlloc") and not seen.calls("cuMemHostAlloc")


def alignment(double: Double, name: str) -> list[int]:
    with open_driver(name) as driver:
        return [driver.allocate(size).pointer % 256 for size in (1, 3, 257, 4096)]


def test_device_memory_is_aligned_and_freed_at_the_close(scenario: Callable[..., Seen]) -> None:
    seen = scenario(alignment)
    assert seen.result == [0] * 4
    assert seen.errors == seen.leaks == []
    assert len(seen.calls("cuMemFree")) == 4


def freed(double: Double, name: str) -> list[str]:
    with open_driver(name) as driver:
        memory, host = driver.allocate(8), driver.pinned(8)
        for one in (memory, host):
            one.free()
            one.free()
        return [
            error_of(lambda: memory.pointer),
            error_of(lambda: host.array),
            error_of(lambda: driver.allocate(-1)),
        ]


def test_freed_memory_is_refused(scenario: Callable[..., Seen]) -> None:
    seen = scenario(freed)
    assert seen.result[0].startswith("device memory of 8 bytes is used after it was freed")
    assert seen.result[1].startswith("pinned memory of 8 bytes is used after it was freed")
    assert seen.result[2].startswith("a size of -1 bytes was asked for")
    assert seen.errors == seen.leaks == []
    assert len(seen.calls("cuMemFree")) == len(seen.calls("cuMemFreeHost")) == 1


def freed_while_in_use(double: Double, name: str) -> list[int]:
    with open_driver(name) as driver:
        host, stream = driver.pinned(8), driver.stream()
        host.array[:] = 3
        with driver.allocate(8) as memory:
            driver.copy_to_device(memory.pointer, host.pointer, 8, stream)
            driver.copy_to_host(host.pointer, memory.pointer, 8, stream)
        return host.array.tolist()


def test_freeing_waits_for_the_work_that_uses_it(scenario: Callable[..., Seen]) -> None:
    seen = scenario(freed_while_in_use)
    assert seen.result == [3] * 8
    assert seen.errors == seen.leaks == []


def beyond_the_end(double: Double, name: str) -> list[str]:
    with open_driver(name) as driver, driver.pinned(32) as host, driver.allocate(16) as memory:
        stream, inside = driver.stream(), memory.pointer + 4
        return [
            error_of(lambda: driver.copy_to_device(inside, host.pointer, 16, stream)),
            error_of(lambda: driver.copy_to_host(host.pointer, inside, 13, stream)),
            error_of(lambda: driver.copy_to_host(host.pointer + 30, memory.pointer, 4, stream)),
        ]


def test_copies_out_of_bounds_are_refused(scenario: Callable[..., Seen]) -> None:
    seen = scenario(beyond_the_end)
    assert seen.result[0].startswith(
        "copying 16 bytes to the device failed: CUDA_ERROR_INVALID_VALUE (invalid argument); "
    )
    assert seen.result[1].startswith("copying 13 bytes from the device failed")
    assert seen.result[2].startswith("copying 4 bytes from the device failed")
    wrong = [line.partition(": ")[2] for line in seen.errors]
    assert [text[: text.index(" at ") + 5] for text in wrong] == [
        "16 bytes at d",
        "13 bytes at d",
        "4 bytes at h",
    ]
    assert [text.partition("+")[2] for text in wrong] == ["4 of 16", "4 of 16", "30 of 32"]
    assert seen.leaks == []


def out_of_memory(double: Double, name: str) -> list[str]:
    with open_driver(name) as driver:
        for number in (1, 2):  # pycuda collects garbage and tries again
            double.fail("cuMemAlloc", 2, number)
            double.fail("cuMemHostAlloc", 2, number)
        return [error_of(lambda: driver.allocate(4096)), error_of(lambda: driver.pinned(512))]


def test_out_of_memory(scenario: Callable[..., Seen]) -> None:
    seen = scenario(out_of_memory)
    assert seen.result[0] == (
        "allocating 4096 bytes on odin test double, not a GPU failed: CUDA_ERROR_OUT_OF_MEMORY "
        "(out of memory); use a smaller batch size, or free memory that other processes hold "
        "(nvidia-smi lists them)"
    )
    assert seen.result[1].startswith(
        "allocating 512 bytes of page-locked memory failed: CUDA_ERROR_OUT_OF_MEMORY"
    )
    assert seen.errors == seen.leaks == []
