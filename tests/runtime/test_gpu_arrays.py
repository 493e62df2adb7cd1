"""Images that lie on the device: scored where they are, on the caller's stream."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from drivers.double_library import Double
from drivers.fixtures import Seen
from drivers.test_memory import error_of
from odin_engines.cuda_probe import ask_driver
from odin_engines.spec import Spec
from odin_runtime import OdinError, Scorer, gpu_arrays
from odin_runtime.gpu_arrays import device_images, on_device, stream_handle
from odin_runtime.gpu_scorer import GpuSession
from runtime.foreign_arrays import Foreign, WithDlpack, WithInterface, read
from runtime.plan_double import Opened, as_lists, bundle_of, example_images
from runtime.test_gpu_order import Skipped
from runtime.test_gpu_pipeline import agree, reference

Scenario = Callable[..., Seen]
pytestmark = pytest.mark.usefixtures("pipelines")


def session(opened: Opened, form: str) -> GpuSession:
    assert opened.pipeline is not None
    return GpuSession(opened.driver, opened.pipeline, form)


def results_of(opened: Opened, results: dict[str, Any], stream: Any) -> dict[str, Any]:
    return as_lists({name: read(opened.driver, one, stream) for name, one in results.items()})


CASES = [
    ("exact", "split", "normalised"),
    ("exact", "fused", "raw"),
    ("first", "split", "raw"),
    ("raw", "fused", "raw"),
    ("scores", "fused", "normalised"),
]


def on_the_callers_stream(double: Double, name: str) -> list[Any]:
    """Two calls; the calls of the second, which has settings and memory from the first."""
    kind, form, which = CASES[double.case]
    images = example_images()[which]
    opened = Opened(double, name, kind, form)
    with opened:
        gpu = session(opened, form)
        stream = opened.driver.foreign_stream(double.foreign_stream())
        array = WithInterface(Foreign(opened.driver, images, stream))
        copies = [line for line in double.log() if line.startswith("call cuMemcpyHtoDAsync")]
        caller = copies[-1].partition("stream=")[2].split()[0]
        gpu.score_on_device(gpu.placed(array), None, None, None)
        double.clear_log()
        results = gpu.score_on_device(gpu.placed(array), None, None, None)
        log = double.log()
        handles = {one.__cuda_array_interface__["stream"] for one in results.values()}
        found = results_of(opened, results, stream)
        return [found, log, handles == {stream.handle}, caller]


@pytest.mark.parametrize("case", range(len(CASES)), ids=["-".join(case) for case in CASES])
def test_nothing_is_copied_to_the_host(
    scenario: Scenario, gpu_bundle: Any, gpu_images: dict[str, np.ndarray], case: int
) -> None:
    kind, _, which = CASES[case]
    seen = scenario(on_the_callers_stream, case=case, seed=case)
    found, log, same_stream, caller = seen.result
    agree(found, reference(gpu_bundle(kind), gpu_images[which]))
    assert same_stream
    assert not [line for line in log if "cuMemcpyHtoD" in line or "cuMemcpyDtoH" in line]
    waits = ("cuEventSynchronize", "cuStreamSynchronize", "cuCtxSynchronize")
    assert not [line for line in log if line.split()[1] in waits]
    # Each row of the three batches' results goes to its place; the images stay where they are.
    copies = [line for line in log if line.startswith("call cuMemcpyDtoDAsync")]
    assert len(copies) == 3 * len(found)
    assert max(int(line.partition("bytes=")[2].split()[0]) for line in copies) <= 8 * 4
    launches = [line for line in log if line.startswith("call cuLaunchKernel")]
    streams = {line.partition("stream=")[2].split()[0] for line in launches}
    assert len(streams) == 1 and not streams & {"legacy", caller}  # one of ours
    assert seen.errors == seen.leaks == seen.faults == []


def placed_elsewhere(double: Double, name: str) -> list[Any]:
    """Off the alignment, fewer than the plan's smallest batch, through DLPack, of other streams."""
    images = example_images()["normalised"]
    opened = Opened(double, name, "exact", "split", batches=(3, 4))
    found = []
    with opened:
        driver, gpu = opened.driver, session(opened, "split")
        theirs, other = (driver.foreign_stream(double.foreign_stream()) for _ in range(2))
        for count, shift in ((11, 4), (2, 0), (7, 8)):
            array = WithInterface(Foreign(driver, images[:count], theirs, shift))
            results = gpu.score_on_device(gpu.placed(array), None, None, None)
            found.append(results_of(opened, results, theirs))
        array = WithInterface(Foreign(driver, images, theirs))
        results = gpu.score_on_device(gpu.placed(array, other), other, None, None)
        found.append(results_of(opened, results, other))
        dlpack = WithDlpack(driver, Foreign(driver, images, theirs), offset=0)
        results = gpu.score_on_device(gpu.placed(dlpack, other), other, None, None)
        found.append(results_of(opened, results, other))
        dlpack = WithDlpack(driver, Foreign(driver, images, theirs, 256), offset=256)
        found.append(as_lists(gpu.score(gpu.placed(dlpack), None, None)))
        found.append(as_lists(gpu.score(gpu.placed(images), None, None)))
        old = WithInterface(Foreign(driver, images, driver.foreign_stream(0)), version=2)
        del old.__cuda_array_interface__["stream"]
        found.append(as_lists(gpu.score(gpu.placed(old), None, None)))
        done = WithInterface(Foreign(driver, images, theirs), stream=None)
        theirs.synchronize()
        found.append(as_lists(gpu.score(gpu.placed(done), None, None)))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_arrays_wherever_they_lie(
    scenario: Scenario, gpu_bundle: Any, gpu_images: dict[str, np.ndarray], seed: int
) -> None:
    seen = scenario(placed_elsewhere, seed=seed)
    expected = reference(gpu_bundle("exact"), gpu_images["normalised"])
    counts = (11, 2, 7, *(11,) * 6)
    for count, found in zip(counts, seen.result, strict=True):
        agree(found, {k: v[..., :count] for k, v in expected.items()})
    assert seen.errors == seen.leaks == seen.faults == []


def raw_at_any_address(double: Double, name: str) -> list[Any]:
    """Only what TensorRT reads itself has to be aligned, and is copied."""
    images, found = example_images()["raw"], []
    for kind, form in (("exact", "split"), ("raw", "fused")):
        opened = Opened(double, name, kind, form)
        with opened:
            gpu, stream = session(opened, form), opened.driver.foreign_stream(1)
            array = WithInterface(Foreign(opened.driver, images, stream, shift=1))
            double.clear_log()
            results = gpu.score_on_device(gpu.placed(array), None, None, None)
            copies = [line for line in double.log() if line.startswith("call cuMemcpyDtoDAsync")]
            sizes = [int(line.partition("bytes=")[2].split()[0]) for line in copies]
            found.append([sizes.count(4 * images[0].size), results_of(opened, results, stream)])
    return found


def test_our_kernel_reads_raw_images_at_any_address(
    scenario: Scenario, gpu_bundle: Any, gpu_images: dict[str, np.ndarray]
) -> None:
    seen = scenario(raw_at_any_address)
    for kind, copied, (copies, found) in zip(("exact", "raw"), (0, 2), seen.result, strict=True):
        assert copies == copied  # batches of four; the third has three images
        agree(found, reference(gpu_bundle(kind), gpu_images["raw"]))
    assert seen.errors == seen.leaks == seen.faults == []


def at_once(opened: Opened, upload: Any) -> None:
    """Let uploads be done as early as their stream allows."""
    original = opened.driver.copy_to_device

    def copy(device: int, host: int, size: int, stream: Any) -> None:
        original(device, host, size, stream)
        if stream is upload:
            upload.synchronize()

    opened.driver.copy_to_device = copy  # type: ignore[method-assign]


FORGOTTEN = ("nothing", "_arrived", "_idle by us", "_idle by the reader")


def forgotten(double: Double, name: str) -> dict[str, Any]:
    """Images of one stream, scored on another; then other settings from the host."""
    images, which = example_images()["normalised"], FORGOTTEN[double.case]
    opened = Opened(double, name, "exact", "split", graphs=False)
    with opened:
        driver, gpu = opened.driver, session(opened, "split")
        theirs, other = (driver.foreign_stream(double.foreign_stream()) for _ in range(2))
        if which != "nothing":
            event, _, by = which.partition(" ")
            ours = gpu.pipeline._upload.handle
            Skipped(gpu.pipeline, event, {"by us": ours, "by the reader": other.handle}.get(by))
        array = WithInterface(Foreign(driver, images, theirs))
        results = gpu.score_on_device(gpu.placed(array), other, None, None)
        if which != "_idle by the reader":
            at_once(opened, gpu.pipeline._upload)
            gpu.score(images, None, [0.05])
        return results_of(opened, results, other)


@pytest.mark.parametrize("case", range(len(FORGOTTEN)), ids=FORGOTTEN)
def test_a_forgotten_wait_is_seen_as_wrong_scores(
    scenario: Scenario, gpu_bundle: Any, gpu_images: dict[str, np.ndarray], case: int
) -> None:
    found = scenario(forgotten, case=case, seed=0).result
    expected = reference(gpu_bundle("exact"), gpu_images["normalised"])
    if FORGOTTEN[case] == "nothing":
        agree(found, expected)
    else:
        with pytest.raises(AssertionError):
            agree(found, expected)


def of_a_stream_that_goes(double: Double, name: str) -> list[Any]:
    """The caller destroys its stream when it has read the scores."""
    images = example_images()["normalised"]
    opened = Opened(double, name, "exact", "split")
    with opened:
        gpu, stream = session(opened, "split"), opened.driver.stream()
        array = WithInterface(Foreign(opened.driver, images, stream))
        on_gpu = gpu.score_on_device(gpu.placed(array), None, None, None)
        found = [results_of(opened, on_gpu, stream)]
        stream.close()
        found.append(as_lists(gpu.score(images, None, None)))
        gpu.score(images[:1], None, [0.01] * 9)  # which takes other memory
        return found


def test_a_caller_may_destroy_its_stream(
    scenario: Scenario, gpu_bundle: Any, gpu_images: dict[str, np.ndarray]
) -> None:
    seen = scenario(of_a_stream_that_goes)
    for found in seen.result:
        agree(found, reference(gpu_bundle("exact"), gpu_images["normalised"]))
    assert seen.errors == seen.leaks == seen.faults == []


SETTINGS = (0.01, 0.05, 0.02, 0.08)


def settings_in_turn(double: Double, name: str) -> list[Any]:
    """Calls with other settings each, on other streams each and from the host; then all results."""
    images = example_images()["normalised"]
    opened = Opened(double, name, "exact", "split")
    with opened:
        driver, gpu = opened.driver, session(opened, "split")
        streams = [driver.foreign_stream(double.foreign_stream()) for _ in SETTINGS]
        arrays = [WithInterface(Foreign(driver, images, stream)) for stream in streams]
        queued, found = [], []
        for array, magnitude in zip(arrays, SETTINGS, strict=True):
            queued.append(gpu.score_on_device(gpu.placed(array), None, None, [magnitude]))
            if magnitude == SETTINGS[1]:
                at_once(opened, gpu.pipeline._upload)
                gpu.score(images, None, [0.5])
        for results, stream in reversed(list(zip(queued, streams, strict=True))):
            found.append(results_of(opened, results, stream))
    return found[::-1]


@pytest.mark.parametrize("seed", range(6))
def test_settings_of_calls_that_nobody_waited_for(
    scenario: Scenario, gpu_bundle: Any, gpu_images: dict[str, np.ndarray], seed: int
) -> None:
    seen = scenario(settings_in_turn, seed=seed)
    for found, magnitude in zip(seen.result, SETTINGS, strict=True):
        images = gpu_images["normalised"]
        agree(found, reference(gpu_bundle("tunable"), images, magnitude=magnitude))
    assert seen.errors == seen.leaks == seen.faults == []


def through_the_scorer(double: Double, name: str) -> list[Any]:
    images = example_images()["normalised"]
    opened = Opened(double, name, "exact", "split")
    bundle = bundle_of("exact")
    gpu = session(opened, "split")
    with Scorer(bundle, "trt", "fp32", gpu, "float32", 4, 0) as scorer:
        driver = opened.driver
        theirs = driver.foreign_stream(double.foreign_stream())
        array = Foreign(driver, images, theirs)
        host, progress = scorer.score(images), []
        from_device = scorer.score(WithInterface(array), progress=progress.append)
        several = scorer.score(images, magnitudes=[0.01, 0.02])
        placed, both = WithInterface(array), [0.01, 0.02]
        on_gpu = scorer.score_on_device(placed, stream=theirs, magnitudes=both)
        scores = read(driver, on_gpu.score, theirs)
        second = scorer.score(images, magnitude=0.02)
        texts = [
            error_of(lambda: scorer.score_on_device(images)),
            error_of(lambda: scorer.score(WithInterface(array, shape=(11, 3, 1024)))),
            error_of(lambda: scorer.score(WithInterface(array, typestr="<f2"))),
            error_of(lambda: scorer.score(images[:, :2])),
            error_of(lambda: scorer.score(images, temperature=7.0)),
            error_of(lambda: scorer.score(np.zeros((1, 3, 41, 40), np.float32))),
            error_of(lambda: scorer.score(images, magnitude=-1.0)),
            error_of(lambda: scorer.score(images, magnitude=0.1, magnitudes=[0.1])),
        ]
        opened.machine.close()  # type: ignore[union-attr]
        opened.machine = None
    texts.append(error_of(lambda: scorer.score(images)))
    same = [
        bool((host.score == from_device.score).all()),
        bool((several.score[0] == host.score).all()),
        bool((scores == several.score).all()),
        bool((second.score == several.score[1]).all()),
        progress,
        [len(several), several.first(2).score.shape, len(on_gpu), on_gpu.label.shape],
    ]
    return [host.score.tolist(), same, texts]


def test_through_the_scorer(
    scenario: Scenario, gpu_bundle: Any, gpu_images: dict[str, np.ndarray]
) -> None:
    seen = scenario(through_the_scorer, seed=0)
    score, same, texts = seen.result
    expected = reference(gpu_bundle("exact"), gpu_images["normalised"])["score"][0]
    np.testing.assert_allclose(score, expected, rtol=1e-5)
    assert same == [True, True, True, True, [11], [11, [2, 2], 11, [11]]]
    starts = [
        "images are a ndarray, which is not on the GPU: use score()",
        "images are (11, 3, 1024) float32: one image without a batch axis",
        "images are (11, 3, 32, 32) float16; give",
        "images are (11, 2, 32, 32) float32; give",
        "the plans have temperature 10 built in, not 7; export",
        "the plans take images of 32x32 to 40x40 pixels, not 41x40; resize",
        "magnitude is -1.0; it has to be a number from 0 to",
        "magnitude and magnitudes are both given; give one of them",
        "the scorer has been closed; open the bundle again",
    ]
    for text, start in zip(texts, starts, strict=True):
        assert text.startswith(start)
    assert seen.errors == seen.leaks == seen.faults == []


# Reading what the protocols say: no double.


class Somewhere:
    """An array of 2 x 3 x 4 x 4 float32."""

    def __init__(self, **changes: Any) -> None:
        self.__cuda_array_interface__ = {
            "shape": (2, 3, 4, 4),
            "typestr": "<f4",
            "data": (4096, True),
            "version": 3,
            "stream": 5,
            **changes,
        }


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CUDA nobody knows whose an address is."""
    monkeypatch.setattr(gpu_arrays, "check_readable", lambda *_: None)


@pytest.mark.usefixtures("anywhere")
def test_the_interface_is_read() -> None:
    images = device_images(Somewhere(strides=(192, 64, 16, 4)), 0, 1)
    assert (images.pointer, images.shape, images.dtype) == (4096, (2, 3, 4, 4), np.float32)
    assert (images.stream, len(images), images.image_bytes) == (5, 2, 192)
    one = device_images(Somewhere(shape=(1, 3, 4, 1), strides=(7, 16, 4, 99)), 0, 1)
    assert one.shape == (1, 3, 4, 1)  # strides of a single element say nothing
    assert on_device(Somewhere()) and not on_device(np.zeros(3)) and not on_device([1])


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (Somewhere(strides=(192, 4, 48, 12)), "not dense in this order; give images.contiguous()"),
        (Somewhere(strides=(384, 64, 16, 4)), "not dense in this order"),
        (Somewhere(mask=Somewhere()), "images have a mask"),
        (Somewhere(stream=0), "images name stream 0"),
    ],
)
def test_arrays_that_are_refused(array: Somewhere, text: str) -> None:
    with pytest.raises(OdinError, match=text.replace("(", r"\(").replace(")", r"\)")):
        device_images(array, 0, 1)


def test_streams_of_any_library() -> None:
    class Cuda:
        def __cuda_stream__(self) -> tuple[int, int]:
            return 0, 11

    class Torch:
        cuda_stream = 12

    class Cupy:
        ptr = 13

    class Pycuda:
        handle = 14

    class OfCtypes:
        ptr = ctypes.c_void_p(16)

    class Default:
        ptr = ctypes.c_void_p(None)

    streams = (Cuda(), Torch(), Cupy(), Pycuda(), 15, OfCtypes(), ctypes.c_void_p(17), Default(), 0)
    assert [stream_handle(one) for one in streams] == [11, 12, 13, 14, 15, 16, 17, 1, 1]

    class Wrong:
        def __init__(self, ptr: Any) -> None:
            self.ptr = ptr

    class Short:
        __cuda_stream__ = (0,)

    for wrong in ("s", Wrong("x"), Wrong([1]), Short(), object()):
        text = f"stream is a {type(wrong).__name__}; give a CUDA stream or its handle"
        with pytest.raises(OdinError, match=text):
            stream_handle(wrong)


def test_engines_of_the_cpu_refuse(tiny_bundle: Any, tiny_spec: Callable[..., Spec]) -> None:
    scorer = Scorer.open(tiny_bundle, "ort")
    images = np.zeros((1, 3, 32, 32), np.float32)
    with pytest.raises(OdinError, match="engine ort takes one magnitude at a time"):
        scorer.score(images, magnitudes=[0.1, 0.2])
    with pytest.raises(OdinError, match=r"engine ort takes images of the host: use score\(\)"):
        scorer.score_on_device(images)
    for option in ({"graphs": False}, {"form": "split"}, {"driver": "pycuda"}, {"device": 1}):
        with pytest.raises(OdinError, match="options of engines trt and rtx, not of ort; leave"):
            Scorer.open(tiny_bundle, "ort", **option)
    scorer.close()
    with scorer as same:
        assert len(same.score(images)) == 1


@pytest.mark.parametrize("engine", ["ort-cuda", "ort-trt", "trt", "rtx"])
def test_an_engine_that_is_not_here(engine: str, tiny_bundle: Any) -> None:
    if ask_driver().problem is None:
        pytest.skip("there is a GPU")
    with pytest.raises(OdinError) as caught:
        Scorer.open(tiny_bundle, engine)
    why, remedy = str(caught.value).splitlines()
    assert why.startswith(f"engine {engine} is not available: ")
    assert "GPU" in remedy
