"""Whose memory images and results are: addresses of strangers, results after the end, captures."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from drivers.double_library import IMAGE, Double
from drivers.fixtures import Seen, skip_without
from drivers.test_memory import error_of
from odin_engines.bundle import Bundle
from odin_engines.errors import OdinError
from odin_runtime import gpu_scorer
from odin_runtime.driver import open_driver
from odin_runtime.driver_memory import ResultHeap
from odin_runtime.gpu_arrays import DeviceImages
from odin_runtime.gpu_options import GpuOptions
from odin_runtime.gpu_results import MOST_UNUSED
from runtime.foreign_arrays import Foreign, WithDlpack, WithInterface
from runtime.plan_double import (
    MOST,
    FakePlan,
    Machine,
    Opened,
    as_lists,
    bundle_of,
    example_images,
)
from runtime.test_gpu_arrays import session
from runtime.test_gpu_pipeline import agree, reference
from runtime.test_gpu_results import Taken

Scenario = Callable[..., Seen]
pytestmark = pytest.mark.usefixtures("pipelines")


class OtherContext:
    """Memory in a context of its own, as pycuda.autoinit makes one."""

    def __init__(self, size: int) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")
        self.context, address = ctypes.c_void_p(), ctypes.c_size_t()
        self.call("cuCtxCreate_v4", ctypes.byref(self.context), None, 0, 0)
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        self.pointer = address.value
        self.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def call(self, function: str, *arguments: Any) -> None:
        assert getattr(self._library, function)(*arguments) == 0, function

    def free(self) -> None:
        self.call("cuCtxPushCurrent_v2", self.context)
        self.call("cuMemFree_v2", ctypes.c_size_t(self.pointer))
        self.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        self.call("cuCtxDestroy_v2", self.context)


def strangers(double: Double, name: str) -> list[Any]:
    """Addresses that the device cannot read, and page-locked memory, which it can."""
    images = example_images()["normalised"]
    opened = Opened(double, name, "exact", "split")
    with opened, open_driver(name, 1) as second:
        driver, gpu = opened.driver, session(opened, "split")
        stream = driver.foreign_stream(1)
        array = Foreign(driver, images, stream)
        far, other = Foreign(second, images, second.foreign_stream(1)), OtherContext(images.nbytes)
        freed = driver.allocate(images.nbytes)
        gone = freed.pointer
        freed.free()

        def refusal(pointer: int) -> str:
            given = WithInterface(array, data=(pointer, False))
            return error_of(lambda: gpu.score(gpu.placed(given), None, None))

        addresses = (images.ctypes.data, gone, far.pointer, other.pointer)
        texts = [refusal(address) for address in addresses]
        empty = WithInterface(array, data=(0, False), shape=(0, 3, 32, 32))
        assert len(gpu.score(gpu.placed(empty), None, None)["label"]) == 0
        placed = gpu.placed(WithInterface(array, data=(array._source.pointer, False)))
        other.free()
        second.close()
        return [texts, placed.pointer == array._source.pointer]


def test_addresses_that_cannot_be_read_are_refused(scenario: Scenario) -> None:
    seen = scenario(strangers, devices=2)
    texts, pinned = seen.result
    unknown = "images name an address that is no memory of CUDA's: it was freed, or is the host's"
    assert all(text.startswith(unknown) for text in texts[:2])
    assert texts[2].startswith("images lie on device 1 and the scorer is on device 0; move them")
    assert texts[3].startswith("images lie in another CUDA context than device 0's primary one")
    assert texts[3].endswith("with pycuda import pycuda.autoprimaryctx, not pycuda.autoinit")
    assert pinned
    assert seen.errors == seen.leaks == seen.faults == []


def arrays_of_pycuda(double: Double, name: str) -> list[Any]:
    """pycuda's own arrays, in the primary context and in another."""
    import pycuda.driver as cuda

    images = example_images()["normalised"]
    opened = Opened(double, name, "exact", "split")
    with opened:
        gpu = session(opened, "split")
        with opened.driver.current():  # as pycuda.autoprimaryctx
            found = in_the_current_context(gpu, images, None)
        context = cuda.Device(0).make_context()  # as pycuda.autoinit
        found += in_the_current_context(gpu, images, cuda.Stream())
        context.pop()
        context.detach()
        return found


def in_the_current_context(gpu: Any, images: np.ndarray, stream: Any) -> list[Any]:
    """Scores of an array of pycuda's, or why there are none; and why none on a stream."""
    from pycuda import gpuarray

    array = gpuarray.to_gpu(images)
    if stream is None:
        return [as_lists(gpu.score(gpu.placed(array), None, None))]
    with_memory = error_of(lambda: gpu.placed(array))
    none = DeviceImages(0, (0, 3, 32, 32), np.dtype(np.float32), None, None)
    return [with_memory, error_of(lambda: gpu.score_on_device(none, stream, None, None))]


@pytest.mark.usefixtures("pipelines")
def test_arrays_of_pycuda(
    run_in_double: Callable[..., Seen], gpu_bundle: Any, gpu_images: dict[str, np.ndarray]
) -> None:
    skip_without("pycuda")
    seen = run_in_double(arrays_of_pycuda, "pycuda")
    found, memory, stream = seen.result
    agree(found, reference(gpu_bundle("exact"), gpu_images["normalised"]))
    for text in (memory, stream):
        assert "import pycuda.autoprimaryctx, not pycuda.autoinit" in text
    assert "CUDA_ERROR_INVALID_HANDLE" in stream
    assert seen.errors == ["use of a stream in another context than its own"]
    assert seen.leaks == seen.faults == []


def contents(pointer: int, shape: tuple[int, ...], dtype: Any) -> Any:
    """What lies on the double's device, as it is now."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(ctypes.string_at(pointer, size), dtype).reshape(shape).tolist()


def after_the_end(double: Double, name: str) -> list[Any]:
    """A scorer that is closed, or dropped, before anybody has waited."""
    images, dropped = example_images()["normalised"], double.case == 1
    with open_driver(name) as kept:
        opened = Opened(double, name, "exact", "split")
        opened.machine.driver = kept  # type: ignore[union-attr]
        gpu: Any = session(opened, "split")
        stream, reader = double.foreign_stream(), double.foreign_stream()
        array = Foreign(opened.driver, images, opened.driver.foreign_stream(stream))
        results = gpu.score_on_device(gpu.placed(WithInterface(array)), None, None, None)
        if dropped:
            opened.pipeline = gpu = None
            gc.collect()
            taken = Taken(results["score"].__dlpack__(stream=reader), versioned=False)
        else:
            taken = Taken(results["score"].__dlpack__(stream=reader), versioned=False)
            gpu.close()
        opened.machine.close()  # type: ignore[union-attr]
    baseline = results["baseline"]
    found = [contents(baseline.pointer, baseline.shape, np.float32)]
    del results, baseline
    found += [contents(taken.data, taken.shape, np.float32), double.leaks()]
    taken.give_back()
    return [*found, double.leaks()]


@pytest.mark.parametrize("case", range(2), ids=["closed", "dropped"])
def test_results_outlive_the_scorer(
    scenario: Scenario, gpu_bundle: Any, gpu_images: dict[str, np.ndarray], case: int
) -> None:
    seen = scenario(after_the_end, case=case, seed=0)
    baseline, score, held, left = seen.result
    expected = reference(gpu_bundle("exact"), gpu_images["normalised"])
    np.testing.assert_allclose(baseline, expected["baseline"], rtol=1e-5)
    np.testing.assert_allclose(score, expected["score"], rtol=1e-5)
    assert len(held) == 2 and held[0].startswith("device memory ")
    assert held[1] == "primary context of device 0, retained 1 times"
    assert left == seen.errors == seen.leaks == seen.faults == []


def a_stream_each(double: Double, name: str) -> list[Any]:
    """Streams that are destroyed with work left that reads the scores; new ones have their handle.

    The work is a copy, which shows what lay there when it was done.
    """
    images, calls = example_images()["normalised"][:2], 2 * MOST_UNUSED + 5
    opened = Opened(double, name, "exact", "split")
    with opened:
        driver, gpu = opened.driver, session(opened, "split")
        array = WithInterface(Foreign(driver, images, driver.foreign_stream(1)), stream=None)
        driver.foreign_stream(1).synchronize()
        wanted = [0.002 * number for number in range(calls)]
        size = 4 * len(images)
        found, most, handles = driver.pinned(calls * size), 0, set()
        before = len(double.live())
        for number, magnitude in enumerate(wanted):
            stream = driver.stream()
            handles.add(stream.handle)
            placed = gpu.placed(array, stream)
            score = gpu.score_on_device(placed, stream, None, [magnitude])["score"]
            driver.copy_to_host(found.pointer + number * size, score.pointer, size, stream)
            del score
            stream.settle = lambda: None  # type: ignore[attr-defined]  # as a caller's
            stream.close()
            most = max(most, len(double.live()) - before)
            del stream
        with driver.current():
            assert ctypes.CDLL("libcuda.so.1").cuCtxSynchronize() == 0
        scores = found.array.view(np.float32).reshape(calls, len(images)).tolist()
        return [scores, most, len(handles)]


def test_a_stream_a_call(
    scenario: Scenario, gpu_bundle: Any, gpu_images: dict[str, np.ndarray]
) -> None:
    seen = scenario(a_stream_each, seed=0, reuse_streams=1, free_waits=1)
    scores, most, handles = seen.result
    images, bundle = gpu_images["normalised"][:2], gpu_bundle("tunable")
    for number in (0, 1, 2, len(scores) - 1):
        expected = reference(bundle, images, magnitude=0.002 * number)["score"][0]
        np.testing.assert_allclose(scores[number], expected, rtol=1e-5)
    assert len(np.unique(scores, axis=0)) == len(scores)
    assert most <= MOST_UNUSED + 1
    assert handles < 4
    assert seen.errors == seen.leaks == seen.faults == []


def dropped_early(double: Double, name: str) -> list[Any]:
    """A reader on another stream drops the scores with its work still queued; then more calls."""
    images = example_images()["normalised"][:2]
    opened = Opened(double, name, "exact", "split")
    with opened:
        driver, gpu = opened.driver, session(opened, "split")
        theirs, reader = (driver.foreign_stream(double.foreign_stream()) for _ in range(2))
        array = WithInterface(Foreign(driver, images, theirs))
        score = gpu.score_on_device(gpu.placed(array), None, None, None)["score"]
        taken = Taken(score.__dlpack__(stream=reader.handle), versioned=False)
        del score
        found = driver.pinned(4 * len(images))
        driver.copy_to_host(found.pointer, taken.data, found.size, reader)
        taken.give_back()
        gpu.score_on_device(gpu.placed(array), None, None, [0.5])
        theirs.synchronize()
        reader.synchronize()
        return found.array.view(np.float32).tolist()


def test_a_reader_may_drop_scores_before_its_work_is_done(
    scenario: Scenario, gpu_bundle: Any, gpu_images: dict[str, np.ndarray]
) -> None:
    seen = scenario(dropped_early, seed=0)
    expected = reference(gpu_bundle("exact"), gpu_images["normalised"][:2])["score"][0]
    np.testing.assert_allclose(seen.result, expected, rtol=1e-5)
    assert seen.errors == seen.leaks == seen.faults == []


def while_capturing(double: Double, name: str) -> list[Any]:
    """Each way in which a stream that is being captured can come in; what is captured stays so."""
    images = example_images()["normalised"][:2]
    opened = Opened(double, name, "exact", "split")
    with opened:
        driver, gpu = opened.driver, session(opened, "split")
        stream, free = driver.stream(), driver.foreign_stream(double.foreign_stream())
        array, other = Foreign(driver, images, stream), Foreign(driver, images, free)
        held = gpu.score_on_device(gpu.placed(WithInterface(other)), None, None, None)["score"]
        dlpack = WithDlpack(driver, other)
        placed = gpu.placed(WithInterface(array)), gpu.placed(WithInterface(other))
        stream.synchronize()
        calls: list[Callable[[], object]] = [
            lambda: gpu.score_on_device(placed[0], free, None, None),
            lambda: gpu.score_on_device(placed[1], stream, None, None),
            lambda: gpu.score(placed[0], None, None),
            lambda: gpu.placed(dlpack, stream),
            lambda: held.__dlpack__(stream=stream.handle),
        ]
        library, graph = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
        handle = ctypes.c_void_p(stream.handle)
        with driver.current():
            assert library.cuStreamBeginCapture_v2(handle, 1) == 0
        texts = [error_of(call) for call in calls]
        with driver.current():
            assert library.cuStreamEndCapture(handle, ctypes.byref(graph)) == 0
            assert library.cuGraphDestroy(graph) == 0
        agreed = gpu.score(placed[0], None, None)["score"] == gpu.score(images, None, None)["score"]
        return [texts, dlpack.readers, bool(agreed.all())]


def test_a_stream_that_is_being_captured_is_refused(scenario: Scenario) -> None:
    seen = scenario(while_capturing, seed=0)
    texts, readers, agreed = seen.result
    assert len(texts) == 5
    assert all(text.startswith("the stream is being captured into a CUDA graph") for text in texts)
    assert readers == []  # nobody was asked to let it wait
    assert agreed
    assert seen.errors == seen.leaks == seen.faults == []


def during_a_capture(double: Double, name: str) -> list[int]:
    """A result may be dropped, and another one taken, while a thread captures a graph."""
    with open_driver(name) as driver:
        stream, graph = driver.stream(), ctypes.c_void_p()
        library, handle = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p(stream.handle)
        with driver.current():
            begun = library.cuStreamBeginCapture_v2(handle, 0)  # in the global mode, as PyTorch
        ResultHeap(0).allocate(100).free()
        with driver.current():
            ended = library.cuStreamEndCapture(handle, ctypes.byref(graph))
            return [begun, ended, library.cuGraphDestroy(graph)]


def test_memory_of_results_does_not_disturb_a_capture(scenario: Scenario) -> None:
    seen = scenario(during_a_capture)
    assert seen.result == [0, 0, 0]
    assert seen.errors == seen.leaks == []


def failed_openings(double: Double, name: str) -> str:
    """The second plan cannot be opened; the plans do not fit; CUDA refuses memory."""
    from odin_engines import tensorrt_engine

    bundle = bundle_of("exact")
    gpu_scorer.fat_binary = lambda: IMAGE  # type: ignore[attr-defined]
    with open_driver(name) as driver:
        machine = Machine(double, driver)

        def open_plan(bundle: Bundle, engine: str, graph: str, device: int) -> FakePlan:
            if double.case == 0 and graph == "forward.onnx":
                raise OdinError("of the plan")
            batches = (5, 8) if double.case == 1 and graph == "forward.onnx" else (1, MOST)
            return FakePlan(machine, bundle.path / graph, batches)

        tensorrt_engine.open_plan = open_plan  # type: ignore[assignment]
        if double.case == 2:
            double.fail("cuMemHostAlloc", 2, 9)
        options = GpuOptions("split", name, 0, None, None)
        text = error_of(lambda: gpu_scorer.open_gpu(bundle, "trt", options))
        machine.close()
    return text


@pytest.mark.parametrize(
    ("case", "text"),
    [(0, "of the plan"), (1, "take no images in common"), (2, "OUT_OF_MEMORY")],
)
def test_a_failed_opening_drops_plans_in_their_context(
    scenario: Scenario, case: int, text: str
) -> None:
    seen = scenario(failed_openings, case=case)
    assert text in seen.result
    assert seen.errors == seen.leaks == []
    assert seen.faults == []  # a plan tells where it is freed
