"""Results on the device: whose memory they are, and handing them on through DLPack."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from drivers.double_library import Double
from drivers.fixtures import Seen, skip_without
from odin_engines.errors import OdinError
from odin_runtime.gpu_results import MOST_UNUSED, DeviceArray, ResultPool
from runtime.foreign_arrays import Foreign, WithInterface
from runtime.plan_double import Opened, example_images
from runtime.test_gpu_arrays import results_of, session
from runtime.test_gpu_order import Skipped
from runtime.test_gpu_pipeline import agree, reference

Scenario = Callable[..., Seen]


class Heap:
    """Hands out numbers for memory; `numbers` are those of streams, by handle."""

    def __init__(self, device: int = 0) -> None:
        self.device = device
        self.memories: list[Heap.Block] = []
        self.numbers: dict[int, int] = {}

    class Block:
        def __init__(self, pointer: int, size: int) -> None:
            self.pointer, self.size, self.freed = pointer, size, 0

        def free(self) -> None:
            self.freed += 1

    def allocate(self, size: int) -> Block:
        self.memories.append(Heap.Block(4096 * (1 + len(self.memories)), size))
        return self.memories[-1]

    def stream_number(self, stream: int) -> int:
        return self.numbers.get(stream, 100 + stream)

    @property
    def freed(self) -> list[int]:
        return [one.freed for one in self.memories]


def pool_of(heap: Any) -> tuple[ResultPool, list[int]]:
    """A pool, and the readers that it is told of."""
    readers: list[int] = []
    return ResultPool(heap, readers.append, lambda: None), readers


def test_memory_of_a_dropped_result_serves_its_stream_alone() -> None:
    heap = Heap()
    pool, _ = pool_of(heap)
    first = pool.take(5000, stream=1)
    address = first.pointer
    assert pool.take(5000, stream=1).pointer != address  # the first is still held
    del first
    assert pool.take(5000, stream=2).pointer not in (4096, 2 * 4096)
    assert pool.take(9000, stream=1).pointer == 4 * 4096  # too small
    again = {pool.take(5000, stream=1).pointer, pool.take(8192, stream=1).pointer}
    assert again <= {address, 2 * 4096}
    assert [one.size for one in heap.memories] == [8192, 8192, 8192, 16384]
    pool.free()
    assert heap.freed == [1] * 4


def test_a_new_stream_with_an_old_handle_gets_other_memory() -> None:
    heap = Heap()
    pool, _ = pool_of(heap)
    pool.take(100, stream=7)
    assert pool.take(100, stream=7).pointer == 4096
    heap.numbers[7] = 8  # 7 was destroyed, and its work may go on
    assert pool.take(100, stream=7).pointer == 2 * 4096


def test_memory_of_streams_that_come_once_is_freed() -> None:
    heap = Heap()
    pool, _ = pool_of(heap)
    held = pool.take(100, stream=3)
    for stream in range(10, 10 + 5 * MOST_UNUSED):
        pool.take(100, stream)
        assert len(heap.freed) - sum(heap.freed) <= MOST_UNUSED + 1
    assert heap.freed[0] == 0  # which is held
    del held
    pool.free()
    assert heap.freed == [1] * (1 + 5 * MOST_UNUSED)


def test_results_outlive_their_pool() -> None:
    heap = Heap()
    pool, _ = pool_of(heap)
    array = DeviceArray(pool.take(100, stream=7), 0, (4,), np.float32)
    taken = Taken(array.__dlpack__(stream=7), versioned=False)
    other = pool.take(100, stream=7)
    pool.free()
    assert heap.freed == [0, 0]
    del other
    assert heap.freed == [0, 1]
    del array
    assert heap.freed == [0, 1]
    taken.give_back()
    assert heap.freed == [1, 1]


@pytest.mark.parametrize("reader", [9, 1, None, 2, -1])
def test_memory_that_another_stream_reads_is_not_used_again(reader: int | None) -> None:
    """Its reader may drop it while its work is still queued."""
    pool, _ = pool_of(Heap())
    array = DeviceArray(pool.take(100, stream=2 if reader == 2 else 7), 0, (4,), np.float32)
    taken = Taken(array.__dlpack__(stream=reader), versioned=False)
    del array
    taken.give_back()
    for stream in (2, 7, 9, 1):
        assert pool.take(100, stream).pointer != 4096


def test_a_garbage_collection_may_come_at_any_time() -> None:
    """Results may be dropped by a collection that starts while the pool's own lock is held."""
    pool, _ = pool_of(Heap())
    held = [pool.take(100, stream=1)]

    def collected() -> None:
        with pool._lock:
            held.clear()

    thread = threading.Thread(target=collected, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert pool.take(100, stream=1).pointer == 4096


# DLPack, read as dlpack.h has it. The structures are not those of the package.

_GET = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_RENAME = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_SetName", ctypes.pythonapi)
)
_USED = {b"dltensor": b"used_dltensor", b"dltensor_versioned": b"used_dltensor_versioned"}
_SIZE_OF_TENSOR = 48


class Taken:
    """An array taken out of a capsule, as another library does."""

    def __init__(self, capsule: Any, *, versioned: bool) -> None:
        name = b"dltensor_versioned" if versioned else b"dltensor"
        address = _GET(capsule, name)
        assert _RENAME(capsule, _USED[name]) == 0
        self._address = address
        words = (ctypes.c_uint64 * 10).from_address(address)
        tensor = address + (32 if versioned else 0)
        deleter = words[2] if versioned else words[_SIZE_OF_TENSOR // 8 + 1]
        self._delete = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(deleter)
        if versioned:
            self.version = (words[0] & 0xFFFFFFFF, words[0] >> 32)
            self.flags = words[3]
        parts = (ctypes.c_uint64 * 6).from_address(tensor)
        self.data, self.offset = parts[0], parts[5]
        self.device = (parts[1] & 0xFFFFFFFF, parts[1] >> 32)
        dimensions, kind = parts[2] & 0xFFFFFFFF, parts[2] >> 32
        self.dtype = (kind & 0xFF, kind >> 8 & 0xFF, kind >> 16)  # code, bits, lanes
        sizes = ctypes.c_int64 * dimensions
        self.shape = tuple(sizes.from_address(parts[3]))
        self.strides = tuple(sizes.from_address(parts[4]))

    def give_back(self) -> None:
        self._delete(self._address)


@pytest.mark.parametrize("versioned", [False, True])
def test_what_a_capsule_holds(versioned: bool) -> None:
    pool, readers = pool_of(Heap(device=3))
    array = DeviceArray(pool.take(100, stream=7), 16, (5, 3), np.float32)
    assert array.__dlpack_device__() == (2, 3)
    asked = {"max_version": (1, 1)} if versioned else {}
    taken = Taken(array.__dlpack__(stream=9, **asked), versioned=versioned)
    assert (taken.data, taken.offset, taken.device) == (4096 + 16, 0, (2, 3))
    assert (taken.dtype, taken.shape, taken.strides) == ((2, 32, 1), (5, 3), (3, 1))
    if versioned:
        assert (taken.version, taken.flags) == ((1, 0), 0)
    taken.give_back()
    labels = DeviceArray(pool.take(100, stream=8), 0, (0,), np.int64)
    label = Taken(labels.__dlpack__(stream=8), versioned=False)
    assert (label.dtype, label.shape, label.data) == ((0, 64, 1), (0,), 0)
    label.give_back()
    assert labels.__cuda_array_interface__["data"] == (0, False)
    assert readers == [9]  # 8 finds the results as it is


def test_which_stream_a_reader_names() -> None:
    pool, readers = pool_of(Heap())
    array = DeviceArray(pool.take(100, stream=7), 0, (4,), np.float32)
    for stream in (None, 1, 2, -1, 7, 12):
        array.__dlpack__(stream=stream)
    assert readers == [1, 1, 2, 12]


def test_what_dlpack_does_not_give() -> None:
    pool, readers = pool_of(Heap(device=1))
    array = DeviceArray(pool.take(100, stream=7), 0, (4,), np.float32)
    array.__dlpack__(stream=7, dl_device=(2, 1), copy=False)
    for asked, text in (
        ({"copy": True}, "a result on CUDA device 1 is handed on where it lies, without a copy"),
        ({"dl_device": (1, 0)}, "a result on CUDA device 1 is handed on where it lies"),
        ({"stream": 0}, "stream 0 names none in DLPack; give 1 for the default stream"),
    ):
        for kind in (OdinError, BufferError):  # ours, and what the protocol asks for
            with pytest.raises(kind, match=text):
                array.__dlpack__(**asked)  # type: ignore[arg-type]
    assert readers == []


@pytest.mark.parametrize("versioned", [False, True])
def test_memory_is_kept_until_the_last_user_is_done(versioned: bool) -> None:
    pool, _ = pool_of(Heap())
    asked: Any = {"stream": 7, "max_version": (1, 0) if versioned else None}

    def capsule() -> Any:
        return DeviceArray(pool.take(100, stream=7), 0, (4,), np.float32).__dlpack__(**asked)

    def next_pointer() -> int:
        return pool.take(100, stream=7).pointer

    untaken = capsule()
    assert next_pointer() == 2 * 4096
    del untaken
    assert {pool.take(100, stream=7).pointer for _ in range(2)} <= {4096, 2 * 4096}
    held = capsule()
    taken = Taken(held, versioned=versioned)
    del held  # whoever took it is the owner now
    others = [pool.take(100, stream=7) for _ in range(3)]
    assert taken.data not in [other.pointer for other in others]
    taken.give_back()
    assert next_pointer() == taken.data


# On the driver's double


def again_and_again(double: Double, name: str) -> list[Any]:
    images = example_images()["normalised"][:3]
    opened = Opened(double, name, "exact", "split")
    with opened:
        gpu = session(opened, "split")
        stream = opened.driver.foreign_stream(double.foreign_stream())
        array = WithInterface(Foreign(opened.driver, images, stream))
        held = gpu.score_on_device(gpu.placed(array), None, None, None)
        first = results_of(opened, held, stream)
        gpu.score_on_device(gpu.placed(array), None, None, [0.03])
        live = len(double.live())
        for _ in range(30):
            results = gpu.score_on_device(gpu.placed(array), None, None, [0.03])
        del results
        gc.collect()
        grown = len(double.live()) - live
        same = results_of(opened, held, stream) == first
    return [grown, same, held["score"][0].shape]


@pytest.mark.usefixtures("pipelines")
def test_dropped_results_make_room_and_held_ones_stay(scenario: Scenario) -> None:
    seen = scenario(again_and_again)
    grown, same, shape = seen.result
    assert grown <= 1  # two results overlap while the new one replaces the old
    assert same and shape == [3]
    assert seen.errors == seen.leaks == seen.faults == []


READERS = ("waits", "forgets", "default")


def taken_by_another(double: Double, name: str) -> dict[str, Any]:
    """Scores of one stream, read on another through DLPack."""
    images, how = example_images()["normalised"], READERS[double.case]
    opened = Opened(double, name, "exact", "split")
    with opened:
        driver, gpu = opened.driver, session(opened, "split")
        theirs = driver.foreign_stream(double.foreign_stream())
        other = driver.foreign_stream(1 if how == "default" else double.foreign_stream())
        array = WithInterface(Foreign(driver, images, theirs))
        results = gpu.score_on_device(gpu.placed(array), None, None, None)
        if how == "forgets":
            Skipped(gpu.pipeline, "_idle", other.handle)
        stream = None if how == "default" else other.handle
        found = {}
        for key, result in results.items():
            taken = Taken(result.__dlpack__(stream=stream), versioned=False)
            size = result.nbytes
            with driver.pinned(size) as host:
                driver.copy_to_host(host.pointer, taken.data, size, other)
                other.synchronize()
                space: Any = host
                found[key] = space.array.view(result.dtype).reshape(taken.shape).tolist()
            taken.give_back()
        return found


@pytest.mark.usefixtures("pipelines")
@pytest.mark.parametrize("case", range(len(READERS)), ids=READERS)
def test_a_reader_on_another_stream(
    scenario: Scenario, gpu_bundle: Any, gpu_images: dict[str, np.ndarray], case: int
) -> None:
    seen = scenario(taken_by_another, case=case, seed=0)
    expected = reference(gpu_bundle("exact"), gpu_images["normalised"])
    if READERS[case] == "forgets":
        with pytest.raises(AssertionError):
            agree(seen.result, expected)
        return
    agree(seen.result, expected)
    assert seen.errors == seen.leaks == seen.faults == []


def views_of_cuda_core(double: Double, name: str) -> list[Any]:
    """NVIDIA's own reader of both protocols."""
    from cuda.core.utils import StridedMemoryView

    opened = Opened(double, name, "exact", "split")
    with opened:
        driver, gpu = opened.driver, session(opened, "split")
        stream = driver.foreign_stream(double.foreign_stream())
        array = WithInterface(Foreign(driver, example_images()["normalised"], stream))
        result = gpu.score_on_device(gpu.placed(array), None, None, [0.01, 0.02])["score"]
        found = []
        for take in (StridedMemoryView.from_dlpack, StridedMemoryView.from_cuda_array_interface):
            with driver.current():
                view = take(result, stream_ptr=stream.handle)
            told = [list(view.shape), str(view.dtype), view.device_id, view.is_device_accessible]
            found.append([*told, view.ptr == result.pointer])
            del view
        return found


@pytest.mark.usefixtures("pipelines")
def test_cuda_core_reads_results(run_in_double: Callable[..., Seen]) -> None:
    skip_without("cuda-core")
    seen = run_in_double(views_of_cuda_core, "cuda-core")
    assert seen.result == [[[2, 11], "float32", 0, True, True]] * 2
    assert seen.errors == seen.leaks == seen.faults == []
