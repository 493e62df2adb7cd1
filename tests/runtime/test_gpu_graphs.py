"""How many graphs there are, what memory they take, and what happens where there can be none."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from drivers.double_library import Double
from drivers.fixtures import Seen, skip_without
from drivers.test_memory import error_of
from odin_engines.errors import OdinError
from odin_runtime import gpu_graphs
from runtime.plan_double import WORK_BYTES, FakePlan, Opened, as_lists, example_images
from runtime.test_gpu_pipeline import agree, reference

Scenario = Callable[..., Seen]
pytestmark = pytest.mark.usefixtures("pipelines")
UNKNOWN = 999


@pytest.fixture
def graphs(run_in_double: Callable[..., Seen]) -> Scenario:
    """A function: scenario, options of the double -> Seen; with cuda-core."""
    skip_without("cuda-core")
    return lambda function, **options: run_in_double(function, "cuda-core", **options)


def calls(double: Double, *functions: str) -> list[int]:
    """How often functions were called since the log was cleared."""
    names = [line.split()[1] for line in double.log() if line.startswith("call ")]
    return [names.count(function) for function in functions]


@contextmanager
def told() -> Iterator[list[str]]:
    """The warnings of a block."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    texts += [str(warning.message) for warning in caught]


def counted(most: int | None = None) -> list[FakePlan]:
    """Every plan that is asked for another context; beyond so many there is no memory for it."""
    asked: list[FakePlan] = []
    original = FakePlan.another

    def another(plan: FakePlan) -> FakePlan:
        asked.append(plan)
        if most is not None and len(asked) > most:
            raise OdinError("no memory on the GPU to run it")
        return original(plan)

    FakePlan.another = another  # type: ignore[method-assign]
    return asked


def memory_of_many(double: Double, name: str) -> list[Any]:
    images = example_images()["normalised"]
    opened = Opened(double, name, "exact", "split", batches=(1, 8))
    with opened as pipeline:
        before = double.live()
        for count in (1, 2, 4, 8) * 2:
            pipeline.score(images[:count])
        assert opened.machine is not None
        (work,) = opened.machine.worked_in
        room = [begin + size - work for begin, size in before if begin <= work < begin + size]
        same = double.live() == before
        return [calls(double, "cuGraphInstantiate"), same, room, as_lists(pipeline.score(images))]


def test_all_contexts_work_in_the_same_memory(
    graphs: Scenario, gpu_bundle: Any, gpu_images: dict[str, np.ndarray]
) -> None:
    seen = graphs(memory_of_many)
    (made,), same, (room,), found = seen.result
    assert made == 4 and same
    assert room >= max(WORK_BYTES["gradient.onnx"], WORK_BYTES["forward.onnx"])
    agree(found, reference(gpu_bundle("exact"), gpu_images["normalised"]))
    assert seen.errors == seen.leaks == seen.faults == []


def many_temperatures(double: Double, name: str) -> list[Any]:
    """Three more than there are graphs for, while the first keeps coming."""
    images, asked = example_images()["normalised"][:1], counted()
    many, found = gpu_graphs.MOST_KINDS + 3, []
    functions = ("cuGraphInstantiate", "cuGraphLaunch", "cuGraphExecDestroy")
    with Opened(double, name, "tunable", "split") as pipeline:
        double.clear_log()
        for number in range(many):
            for _ in range(3):
                pipeline.score(images, temperature=1.0 + number)
            pipeline.score(images, temperature=1.0)
        found.append(calls(double, *functions))
        for number in (many - 1, 0, 1):
            double.clear_log()
            results = pipeline.score(images, temperature=1.0 + number)
            found.append(calls(double, *functions))
        return [found, as_lists(results), len(asked)]


def test_of_many_kinds_the_oldest_gives_way(
    graphs: Scenario, gpu_bundle: Any, gpu_images: dict[str, np.ndarray]
) -> None:
    seen = graphs(many_temperatures)
    found, results, contexts = seen.result
    many = gpu_graphs.MOST_KINDS + 3
    assert found == [[many, 3 * many, 3], [0, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert contexts == 2  # of the two plans; a temperature is no shape
    agree(results, reference(gpu_bundle("tunable"), gpu_images["normalised"][:1], temperature=2.0))
    assert seen.errors == seen.leaks == seen.faults == []


def gives_way_at_once(double: Double, name: str) -> list[Any]:
    """Both kinds come in one call: the first is still running when it gives way."""
    gpu_graphs.MOST_KINDS = 1
    images = example_images()["normalised"][:9]
    with Opened(double, name, "exact", "split", batches=(1, 8)) as pipeline:
        return [as_lists(pipeline.score(images)) for _ in range(2)]


def test_what_gives_way_is_waited_for(
    graphs: Scenario, gpu_bundle: Any, gpu_images: dict[str, np.ndarray]
) -> None:
    seen = graphs(gives_way_at_once, seed=0)  # with which nothing is done before somebody waits
    for found in seen.result:
        agree(found, reference(gpu_bundle("exact"), gpu_images["normalised"][:9]))
    assert seen.errors == seen.leaks == seen.faults == []


def no_room_for_contexts(double: Double, name: str) -> list[Any]:
    """There is memory for one kind's contexts, of its two plans, and no more."""
    images, asked = example_images()["normalised"], counted(2)
    with Opened(double, name, "exact", "split") as pipeline, told() as texts:
        results = [as_lists(pipeline.score(images[:n])) for _ in range(3) for n in (4, 2, 1)]
    counts = [*calls(double, "cuGraphInstantiate", "cuGraphLaunch"), len(asked)]
    with Opened(double, name, "exact", "split", graphs=True) as pipeline:
        text = error_of(lambda: pipeline.score(images[:4]))
    return [results, counts, texts, text]


def test_without_memory_for_more_contexts(
    graphs: Scenario, gpu_bundle: Any, gpu_images: dict[str, np.ndarray]
) -> None:
    seen = graphs(no_room_for_contexts)
    results, counts, texts, text = seen.result
    assert counts == [1, 2, 4]  # and the GPU is asked once for each of the others
    why = "cannot be captured as a CUDA graph: no memory on the GPU to run it"
    assert texts == [f"a batch of 2 {why}; it runs without"]
    assert text == f"a batch of 4 {why}; open the bundle with graphs=False"
    expected = reference(gpu_bundle("exact"), gpu_images["normalised"])
    for found, count in zip(results, (4, 2, 1) * 3, strict=True):
        agree(found, {key: values[..., :count] for key, values in expected.items()})
    assert seen.errors == seen.leaks == seen.faults == []


def refused_capture(double: Double, name: str) -> list[Any]:
    images, found = example_images()["normalised"][:4], []
    for graphs in (None, True):
        with Opened(double, name, "exact", "split", graphs=graphs) as pipeline, told() as texts:
            first = as_lists(pipeline.score(images))
            double.fail("cuGraphInstantiate", 801)
            double.clear_log()
            text = error_of(lambda: pipeline.score(images))
            same = [as_lists(pipeline.score(images)) == first for _ in range(2)]
            found.append([text, all(same), calls(double, "cuGraphLaunch")])
        found[-1].append(texts)
    return found


def test_a_refused_capture(graphs: Scenario) -> None:
    """Is an error only where graphs are asked for; elsewhere it is told once."""
    seen = graphs(refused_capture)
    (text, same, launches, texts), required = seen.result
    assert (text, same, launches) == ("no error", True, [0])
    (told_once,) = texts
    start = "a batch of 4 cannot be captured as a CUDA graph: making the graph failed"
    assert told_once.startswith(start) and told_once.endswith("it runs without")
    text, same, launches, texts = required
    assert text.startswith(start) and text.endswith("open the bundle with graphs=False")
    assert (same, launches, texts) == (True, [2], [])
    assert seen.errors == seen.leaks == seen.faults == []


def not_capturable(double: Double, name: str) -> list[Any]:
    FakePlan.capturable = lambda plan, stream: False  # type: ignore[method-assign]
    images, found = example_images()["normalised"][:4], []
    for graphs in (None, True):
        with Opened(double, name, "exact", "split", graphs=graphs) as pipeline, told() as texts:
            pipeline.score(images)
            found.append(error_of(lambda: pipeline.score(images)))
        found += texts
    return [*found, *calls(double, "cuStreamBeginCapture")]


def test_what_tensorrt_says_cannot_be_captured(graphs: Scenario) -> None:
    seen = graphs(not_capturable)
    first, warning, error, captures = seen.result
    why = "cannot be captured as a CUDA graph: TensorRT for RTX rules it out"
    assert first == "no error" and captures == 0
    assert warning == f"a batch of 4 {why}; it runs without"
    assert error == f"a batch of 4 {why}; open the bundle with graphs=False"
    assert seen.errors == seen.leaks == seen.faults == []


def fails_in_new_contexts(double: Double, name: str) -> list[Any]:
    """The error is kept beyond everything, as a debugger may."""
    images, kept = example_images()["normalised"][:4], []
    with Opened(double, name, "exact", "split", graphs=True) as pipeline:
        double.fail("cuLaunchKernel", UNKNOWN, 4)
        try:
            pipeline.score(images)
        except OdinError as error:
            kept.append(error)
        return [str(kept[0]), [as_lists(pipeline.score(images)) for _ in range(2)]]


def test_contexts_that_fail_are_freed_in_their_cuda_context(
    graphs: Scenario, gpu_bundle: Any, gpu_images: dict[str, np.ndarray]
) -> None:
    """By the double: and not before the work is done that was queued in them."""
    seen = graphs(fails_in_new_contexts, seed=0)
    text, results = seen.result
    assert text == f"cuLaunchKernel of the plan's double: CUDA error {UNKNOWN}"
    for found in results:
        agree(found, reference(gpu_bundle("exact"), gpu_images["normalised"][:4]))
    assert seen.errors == seen.leaks == seen.faults == []


def failing_end(double: Double, name: str) -> str:
    images = example_images()["normalised"][:4]
    with Opened(double, name, "exact", "split", graphs=True) as pipeline:
        for _ in range(2):
            pipeline.score(images)
        double.fail("cuGraphExecDestroy", UNKNOWN)
        return error_of(pipeline.close)


def test_contexts_are_freed_though_a_graph_is_not(graphs: Scenario) -> None:
    seen = graphs(failing_end)
    assert "CUDA_ERROR_UNKNOWN" in seen.result
    assert seen.faults == []
