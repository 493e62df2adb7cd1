"""A plug-in of pytest: runs the tests that wait for a GPU on the driver's test double.

    LD_LIBRARY_PATH=<the double's folder> pytest -p runtime.gpu_on_double tests/gpu

What they assert of numbers, order and memory is tried that way, in small. Plans are doubles too,
and kernels their host twins; what is measured is nobody's speed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import pytest

from drivers.double_library import IMAGE, Double
from gpu import support
from odin_engines import engine, plan_sets, tensorrt_engine
from odin_engines.bundle import FORWARD, Bundle
from odin_engines.spec import Spec
from odin_runtime import kernels
from odin_runtime.driver import open_driver
from runtime.plan_double import MOST, FakePlan, Machine, fake_records, shared_folder

# Each test once at least; what ONNX Runtime can do on a CPU, and no case of gigabytes.
CHOSEN = (
    r"test_case\[cuda-core-.*-f32\]$",
    r"test_kernels.py.*test_host_twins_agree\[.*-(bf16|f32)\]$",
    r"test_kernels.py.*test_speed\[.*-f16\]$",
    r"test_plans.py.*test_fused\[fp32-trt-3\]$",
    r"test_plans.py.*test_split\[fp32-trt-1\]$",
    r"test_contexts_.*\[fp32-trt\]$",
    r"test_a_run_is_repeated_to_the_bit\[fp32-trt\]$",
    r"test_scores_agree\[trt-.*-(fp32-exact-fused|fp16-first-order-split)\]$",
    r"test_raw_plans_and_further_scores\[trt\]$",
    r"test_many_magnitudes_and_any_temperature\[trt-.*-exact\]$",
    r"test_graphs_replay_what_runs_directly\[trt-fused\]$",
    r"test_images_with_nan_score_nan\[trt-split\]$",
    r"test_threads\[trt-.*-split\]$",
    r"test_two_scorers_at_once\[trt-.*-split\]$",
    r"test_arrays_on_the_device\[trt-.*\]$",
    r"test_memory_does_not_grow\[trt-.*-split\]$",
    r"test_opening_and_closing_gives_everything_back\[trt-cuda-core-fused\]$",
    r"test_stress.py.*test_speed\[trt-fp32-split\]$",
    r"test_speed_on_the_device\[trt-.*-split\]$",
    *((r"test_arrays_of_pycuda\[trt-.*split\]$",) if find_spec("pycuda") else ()),
)
# The C library refuses one bound alone, which the kernel ignores.
NOT_THE_TWINS = "only a lower bound"

MADE: dict[str, Callable[[], object]] = {
    "host_build": shared_folder,
    "tiny_forward": lambda: onnx.load(shared_folder() / "exact" / FORWARD),
}

support.MOST, support.CALLS = MOST, 20
support.PICTURES, support.PIXELS, support.ROWS, support.CLASSES = 2, 64, 8, 10


def _plans(graphs: Mapping[str, bytes], spec: Spec, options: plan_sets.PlanOptions) -> Any:
    contents, records = fake_records(graphs, options.forms)
    return plan_sets.PlanSet(contents, records, frozenset())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave what is not chosen out."""
    rest = [item for item in items if NOT_THE_TWINS not in item.nodeid]
    chosen = []
    for pattern in CHOSEN:
        found = [item for item in rest if re.search(pattern, item.nodeid)]
        assert found, f"no test is called {pattern}"
        chosen += found
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


def pytest_fixture_setup(fixturedef: Any, request: Any) -> object:
    """Take over what the process that started this one has made, and would take seconds."""
    if fixturedef.argname not in MADE:
        return None
    made = MADE[fixturedef.argname]()
    fixturedef.cached_result = (made, fixturedef.cache_key(request), None)
    return made


@pytest.fixture(scope="session", autouse=True)
def machine() -> Iterator[None]:
    """The double's device, for plans and kernels, as long as there are tests."""
    double = Double()
    double.configure(seed=5)
    with open_driver("cuda-core") as driver:  # keeps the primary context
        made = Machine(double, driver)

        def open_plan(bundle: Bundle, engine: str, graph: str, device: int = 0) -> FakePlan:
            assert device == 0
            return FakePlan(made, Path(bundle.path) / graph, (1, MOST))

        tensorrt_engine.open_plan = open_plan  # type: ignore[assignment]
        yield
        made.close()
    assert double.errors() == double.leaks() == double.faults == []


engine.unavailable = lambda *_: None
plan_sets.make_plans = _plans  # type: ignore[assignment]
kernels.fat_binary = lambda: IMAGE
