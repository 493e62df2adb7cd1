"""What overlaps, what waits for what, and that a wait that is missing is seen; and graphs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from drivers.double_library import Double
from drivers.fixtures import Seen, skip_without
from drivers.test_memory import error_of
from odin_runtime.gpu_graphs import bucket, is_bucket
from odin_runtime.gpu_pipeline import Pipeline
from runtime.plan_double import Opened, as_lists, example_images
from runtime.test_gpu_pipeline import agree, reference

Scenario = Callable[..., Seen]
pytestmark = pytest.mark.usefixtures("pipelines")
SYNCHRONISING = ("cuEventSynchronize", "cuStreamSynchronize", "cuCtxSynchronize", "cuStreamQuery")


def overlapping(double: Double, name: str) -> list[str]:
    """The calls of one score of three batches, the second of two."""
    images = example_images()["normalised"]
    with Opened(double, name, "exact", "split", graphs=False) as pipeline:
        pipeline.score(images)
        double.clear_log()
        pipeline.score(images)
        return [line for line in double.log() if line.startswith("call ")]


def test_copies_overlap_computing(scenario: Scenario) -> None:
    calls = scenario(overlapping).result
    names = [line.split()[1] for line in calls]
    steps = [
        {"cuMemcpyHtoDAsync": "up", "cuMemcpyDtoHAsync": "down"}.get(name, "wait")
        for name in names
        if name in ("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", *SYNCHRONISING)
    ]
    # Two batches are on their way before the first is waited for, and one wait serves each.
    assert steps == ["up", "down", "up", "down", "wait", "up", "down", "wait", "wait"]
    assert [name for name in names if name in SYNCHRONISING] == ["cuEventSynchronize"] * 3
    assert not any("pageable" in line for line in calls)
    assert not any(name.startswith(("cuMemAlloc", "cuMemHostAlloc", "cuMemFree")) for name in names)

    def streams(function: str) -> set[str]:
        found = [re.search(r"stream=(s\d+)", line) for line in calls if f" {function} " in line]
        return {match[1] for match in found if match}

    used = [streams(f) for f in ("cuMemcpyHtoDAsync", "cuLaunchKernel", "cuMemcpyDtoHAsync")]
    assert [len(one) for one in used] == [1, 1, 1]
    assert len(set.union(*used)) == 3


class Skipped:
    """Lets streams, or one alone, ignore some events, as if the wait had been forgotten."""

    def __init__(self, pipeline: Pipeline, which: str, handle: int | None = None) -> None:
        holders = [pipeline] if hasattr(pipeline, which) else pipeline._slots
        self.events = {id(getattr(holder, which)) for holder in holders}
        kind = type(pipeline._compute)
        original = kind.wait

        def wait(stream: Any, event: Any) -> None:
            if id(event) not in self.events or handle not in (None, stream.handle):
                original(stream, event)

        for cls in (kind, *kind.__subclasses__()):
            cls.wait = wait  # type: ignore[method-assign]


FORGOTTEN = ("uploaded", "computed", "downloaded", "nothing")


def forgotten(double: Double, name: str) -> dict[str, Any]:
    images, which = example_images()["normalised"], FORGOTTEN[double.case]
    with Opened(double, name, "exact", "split", graphs=False) as pipeline:
        if which == "downloaded":
            kind = type(pipeline._slots[0].downloaded)
            kind.synchronize = lambda event: None  # type: ignore[method-assign]
        else:
            Skipped(pipeline, which) if which != "nothing" else None
        return as_lists(pipeline.score(images))


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


# Graphs


@pytest.fixture
def graphs(run_in_double: Callable[..., Seen]) -> Scenario:
    """A function: scenario, options of the double -> Seen; with cuda-core."""
    skip_without("cuda-core")
    return lambda function, **options: run_in_double(function, "cuda-core", **options)


def replayed(double: Double, name: str) -> list[Any]:
    images = example_images()["normalised"]
    kind, form = (("exact", "fused"), ("exact", "split"), ("first", "split"))[double.case]
    with Opened(double, name, kind, form, graphs=False) as pipeline:
        direct = [as_lists(pipeline.score(images[i:])) for i in (0, 3, 7)]
    with Opened(double, name, kind, form, graphs=True) as pipeline:
        for _ in range(3):
            pipeline.score(images)
        double.clear_log()
        again = [as_lists(pipeline.score(images[i:])) for i in (0, 3, 7)]
        log = double.log()
    return [direct, again, log]


@pytest.mark.parametrize("case", range(3))
def test_graphs_replay_what_runs_directly(graphs: Scenario, case: int) -> None:
    seen = graphs(replayed, case=case, seed=case)
    direct, again, log = seen.result
    assert direct == again  # to the bit
    names = [line.split()[1] for line in log if line.startswith("call ")]
    assert names.count("cuGraphLaunch") == 3 + 2 + 1
    assert "cuLaunchKernel" not in names and "cuGraphInstantiate" not in names
    assert seen.errors == seen.leaks == seen.faults == []


def captured(double: Double, name: str) -> list[Any]:
    """Captures and launches after each call with one number of images."""
    images, counts = example_images()["normalised"], []
    with Opened(double, name, "exact", "split", batches=(1, 16)) as pipeline:
        for count in (4, 4, 4, 11, 11, 3, 3, 9):
            double.clear_log()
            pipeline.score(images[:count])
            names = [line.split()[1] for line in double.log() if line.startswith("call ")]
            counts.append([names.count("cuGraphInstantiate"), names.count("cuGraphLaunch")])
        pipeline.score(images[:4], magnitudes=[0.01, 0.02])  # other addresses: all over again
        double.clear_log()
        texts = [as_lists(pipeline.score(images[:4])) for _ in range(3)]
        names = [line.split()[1] for line in double.log() if line.startswith("call ")]
        counts.append([names.count("cuGraphInstantiate"), names.count("cuGraphLaunch")])
    return [counts, texts]


def test_a_graph_is_made_when_a_bucket_comes_again(
    graphs: Scenario, gpu_bundle: Any, gpu_images: dict[str, np.ndarray]
) -> None:
    seen = graphs(captured, seed=3)
    counts, results = seen.result
    # 11 fills no three quarters of 16, so it runs directly; 3 is padded to 4; 9 is like 11.
    assert counts == [[0, 0], [1, 1], [0, 1], [0, 0], [0, 0], [0, 1], [0, 1], [0, 0], [1, 2]]
    expected = reference(gpu_bundle("exact"), gpu_images["normalised"][:4])
    for found in results:
        agree(found, expected)
    assert seen.errors == seen.leaks == []


def batch_sizes(double: Double, name: str) -> list[Any]:
    images, found = example_images()["normalised"], []
    for batches, size in (((1, 16), None), ((1, 16), 5), ((3, 16), 2)):
        before = sum(size for _, size in double.live())
        with Opened(double, name, "exact", "split", batches=batches, batch_size=size) as pipeline:
            memory = sum(size for _, size in double.live()) - before
            double.clear_log()
            results = [as_lists(pipeline.score(images[:10])) for _ in range(2)]
            names = [line.split()[1] for line in double.log() if line.startswith("call ")]
            found.append([pipeline.batch_size, memory, names.count("cuGraphLaunch"), results])
    return found


def test_smaller_batches_than_the_plans_take(
    graphs: Scenario, gpu_bundle: Any, gpu_images: dict[str, np.ndarray]
) -> None:
    seen = graphs(batch_sizes)
    sizes, memory, launches, results = zip(*seen.result, strict=True)
    assert sizes == (16, 5, 3)  # the last plan takes no less
    assert memory[1] < memory[0] / 2
    # 10 is no bucket of 16; all batches of 5 are one; of 3, 3, 3 and 1 the last is padded.
    assert launches == (0, 3, 7)
    expected = reference(gpu_bundle("exact"), gpu_images["normalised"][:10])
    for found in (one for both in results for one in both):
        agree(found, expected)
    assert seen.errors == seen.leaks == []


def asked_of_pycuda(double: Double, name: str) -> str:
    return error_of(lambda: Opened(double, name, "exact", "fused", graphs=True))


def test_graphs_with_pycuda(run_in_double: Callable[..., Seen]) -> None:
    skip_without("pycuda")
    seen = run_in_double(asked_of_pycuda, "pycuda")
    assert seen.result.startswith("CUDA graphs are asked for, and pycuda has none; install cuda-")
    assert seen.errors == seen.leaks == []


def test_buckets() -> None:
    sizes = {count: bucket(count, 1, 100) for count in (1, 3, 5, 8, 9, 12, 24, 33, 50, 97, 100)}
    assert sizes == {
        1: 1,
        3: 4,
        5: 8,
        8: 8,
        9: 9,
        12: 16,
        24: 32,
        33: 33,
        50: 64,
        97: 100,
        100: 100,
    }
    assert bucket(2, 3, 100) == 3
    assert [n for n in range(1, 101) if is_bucket(n, 3, 100)] == [1, 2, 3, 4, 8, 16, 32, 64, 100]
