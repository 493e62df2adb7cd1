"""Whatever fails, what is told is ours, and nothing is kept."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from drivers.double_library import Double, Launch
from drivers.fixtures import Seen
from drivers.kernel_backends import declare_kernels
from drivers.test_lifetimes import GIVING_BACK
from drivers.test_memory import error_of
from odin_engines.errors import OdinError
from odin_runtime.gpu_scorer import GpuSession
from runtime.foreign_arrays import Foreign, WithInterface
from runtime.plan_double import Opened, as_lists, example_images

Scenario = Callable[..., Seen]
pytestmark = pytest.mark.usefixtures("pipelines")
UNKNOWN = 999
# The plans' double asks when it is dropped, where an error cannot be told.
BY_THE_DOUBLE = {"cuCtxGetCurrent": ""}
# Of each function the first calls, the last ones and some in between are made to fail.
MOST_EACH = 9


def everything(double: Double, name: str, foreign: int) -> None:
    """Open, score from the host with more and more, score on the device, close."""
    images = example_images()["normalised"]
    opened = Opened(double, name, "exact", "split", graphs=name == "cuda-core")
    with opened:
        gpu = GpuSession(opened.driver, opened.pipeline, "split")
        for _ in range(2):
            gpu.score(images[:9], None, None)
        gpu.score(images[:2], None, [0.01, 0.02])
        stream = opened.driver.foreign_stream(foreign)
        array = WithInterface(Foreign(opened.driver, images[:5], stream))
        gpu.score(gpu.placed(array), None, None)


def failing_everywhere(double: Double, name: str) -> list[Any]:
    foreign = double.foreign_stream()
    double.clear_log()
    everything(double, name, foreign)
    lines = [line.split() for line in double.log()]
    counts = collections.Counter(line[1] for line in lines if line[0] == "call")
    outcomes = []
    for function in [one for one in counts if one not in GIVING_BACK | BY_THE_DOUBLE]:
        every = np.linspace(1, counts[function], min(counts[function], MOST_EACH)).astype(int)
        for number in every.tolist():
            double.fail(function, UNKNOWN, number)
            text = error_of(lambda: everything(double, name, foreign))
            double.forget_failures()
            outcomes.append([function, number, text, double.leaks(), double.errors()])
    return outcomes


def test_any_call_may_fail_and_nothing_leaks(scenario: Scenario) -> None:
    outcomes = scenario(failing_everywhere).result
    assert len(outcomes) > 60
    assert [outcome[:2] for outcome in outcomes if outcome[2] == "no error"] == []
    told = [o for o in outcomes if "CUDA_ERROR_UNKNOWN" not in o[2] and "error 999" not in o[2]]
    assert told == []
    assert [outcome for outcome in outcomes if outcome[3] or outcome[4]] == []


def goes_on(double: Double, name: str) -> list[Any]:
    """A call that fails does not spoil the next."""
    images = example_images()["normalised"]
    found = []
    with Opened(double, name, "exact", "split", graphs=False) as pipeline:
        found.append(as_lists(pipeline.score(images)))
        for function, number in (
            ("cuMemcpyHtoDAsync", 2),
            ("cuLaunchKernel", 3),
            ("cuStreamWaitEvent", 3),
            ("cuEventRecord", 5),
            ("cuMemcpyDtoHAsync", 1),
            ("cuEventSynchronize", 1),
        ):
            double.fail(function, UNKNOWN, number)
            text = error_of(lambda: pipeline.score(images, magnitudes=[0.03]))
            double.forget_failures()
            assert text != "no error", function
            found.append(as_lists(pipeline.score(images)))
    return found


def test_after_an_error_the_next_call_is_right(scenario: Scenario) -> None:
    seen = scenario(goes_on, seed=0)
    assert len(seen.result) == 7
    assert all(found == seen.result[0] for found in seen.result)
    assert seen.errors == seen.leaks == []


QUEUEING = ("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuMemcpyDtoDAsync", "cuLaunchKernel")


def left_behind(double: Double, name: str) -> list[Any]:
    """What calls that fail half-way have queued, and what of it is done when they return."""
    images, found = example_images()["normalised"], []
    with Opened(double, name, "exact", "split", graphs=False) as pipeline:
        gpu = GpuSession(pipeline.driver, pipeline, "split")
        stream = pipeline.driver.foreign_stream(double.foreign_stream())
        array = WithInterface(Foreign(pipeline.driver, images, stream))
        stream.synchronize()
        calls: list[Callable[[], object]] = [
            lambda: gpu.score(images, None, [0.03]),
            lambda: gpu.score_on_device(gpu.placed(array), None, None, [0.03]),
        ]
        for call in calls:
            double.clear_log()
            double.fail("cuLaunchKernel", UNKNOWN, 5)
            text = error_of(call)
            log = [line.split() for line in double.log()]
            queued = [line for line in log if line[0] == "call" and line[1] in QUEUEING]
            done = [line for line in log if line[0] == "run" and line[1] in ("copy", "kernel")]
            found.append([text, len(queued), len(done)])
            double.forget_failures()
    return found


def test_after_an_error_nothing_is_left_in_the_queues(scenario: Scenario) -> None:
    """The caller may free its images then, and the pipeline its memory."""
    seen = scenario(left_behind, seed=0)  # with which nothing is done before somebody waits
    for text, queued, done in seen.result:
        assert "CUDA_ERROR_UNKNOWN" in text
        assert queued >= 5
        assert done == queued - 1  # all but the one that failed
    assert seen.errors == seen.leaks == []


def closed_in_every_way(double: Double, name: str) -> list[Any]:
    """Twice, and by dropping the session."""
    images, found = example_images()["normalised"], []
    opened = Opened(double, name, "exact", "split")
    with opened as pipeline:
        pipeline.close()
        pipeline.close()
        found.append(error_of(lambda: pipeline.score(images)))
    opened = Opened(double, name, "exact", "split")
    assert opened.pipeline is not None and opened.machine is not None
    gpu = GpuSession(opened.driver, opened.pipeline, "split")
    kept = gpu.pipeline
    opened.machine.close()
    del gpu, opened.pipeline
    found.append(error_of(lambda: kept.score(images)))
    return found


def test_closing(scenario: Scenario) -> None:
    seen = scenario(closed_in_every_way)
    closed = "the scorer has been closed; open the bundle again"
    assert seen.result == [closed, closed]
    assert seen.errors == seen.leaks == []


def no_memory(double: Double, name: str) -> list[Any]:
    images = example_images()["normalised"][:2]
    with Opened(double, name, "exact", "split") as pipeline:
        for number in (double.case, double.case + 1):  # pycuda tries again
            double.fail("cuMemAlloc", 2, number)
        text = error_of(lambda: pipeline.score(images, magnitudes=[0.01] * 40))
        double.forget_failures()
        return [text, np.isfinite(pipeline.score(images)["score"]).all().item()]


@pytest.mark.parametrize(("number", "of_the_plans"), [(1, False), (3, True)])
def test_no_room_for_more_magnitudes(scenario: Scenario, number: int, of_the_plans: bool) -> None:
    """Memory for the results of the slots, and then what the plans work in."""
    seen = scenario(no_memory, case=number)
    text, finite = seen.result
    assert "CUDA_ERROR_OUT_OF_MEMORY" in text and finite
    remedy = (
        "whatever batch_size is: to need fewer, build the plans again with a smaller --maxShapes"
    )
    assert text.endswith(remedy) == of_the_plans
    assert seen.errors == seen.leaks == []


def fault(double: Double, name: str) -> list[str]:
    images = example_images()["normalised"][:2]

    def broken(_: Launch) -> None:
        raise ValueError("of the device")

    def kernels(taken: Any) -> None:
        declare_kernels(taken)
        taken.on_launch(broken)

    texts = []
    try:
        with Opened(double, name, "exact", "split", kernels=kernels) as one:
            texts.append(error_of(lambda: one.score(images)))
            texts.append(error_of(lambda: one.score(images)))
    except OdinError as error:
        texts.append(str(error))
    return texts


def test_a_device_that_has_failed(scenario: Scenario) -> None:
    seen = scenario(fault)
    assert len(seen.result) == 3  # closing says it too
    assert all("CUDA_ERROR_LAUNCH_FAILED" in text for text in seen.result)
    assert seen.errors == []
    # Nothing can be given back any more; all of it goes with the context, which is let go of.
    assert seen.calls("cuDevicePrimaryCtxRelease")


def refused(double: Double, name: str) -> list[str]:
    images = example_images()["normalised"]
    texts = []
    with Opened(double, name, "exact", "fused") as pipeline:
        texts.append(error_of(lambda: pipeline.score(images, magnitudes=[0.01, 0.02])))
        texts.append(error_of(lambda: pipeline.score(images, magnitudes=[0.02])))
    with Opened(double, name, "raw", "fused") as pipeline:
        texts.append(error_of(lambda: pipeline.score(images)))
    with Opened(double, name, "tunable", "split") as pipeline:
        texts.append(error_of(lambda: pipeline.score(images, magnitudes=[])))
        texts.append(error_of(lambda: pipeline.score(images, temperature=0.0)))
        texts.append(error_of(lambda: pipeline.score(images, magnitudes=[float("nan")])))
    return texts


def test_what_the_plans_cannot_do_is_said(scenario: Scenario) -> None:
    seen = scenario(refused)
    starts = [
        "2 magnitudes at once: a fused plan takes one; open the bundle with form='split'",
        "the plans have magnitude 0.01 built in, not 0.02; export the bundle with --magnitude 0.02",
        "the plan takes raw uint8 images and normalises them itself; give it (N, H, W, C) uint8",
        "0 magnitudes: give 1 to 512",
        "temperature is 0.0; it has to be a number from 1e-06 to",
        "magnitude is nan; it has to be a number from 0 to",
    ]
    for text, start in zip(seen.result, starts, strict=True):
        assert text.startswith(start)
    assert seen.errors == seen.leaks == []
