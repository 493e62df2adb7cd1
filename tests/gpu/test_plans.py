"""Plans on a GPU, against ONNX Runtime on the CPU: built here, opened, and run in both forms.

Skipped without a driver (conftest.py); each engine is skipped with its reason where it is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu.support import MOST
from odin_engines import engine as engines
from odin_engines import tensorrt_engine
from odin_engines.bundle import FORWARD, GRADIENT, ODIN, Bundle, read_bundle, write_bundle
from odin_engines.errors import OdinError
from odin_engines.plan import Plan, Tensor
from odin_engines.plan_profiles import AskedShapes
from odin_engines.plan_sets import PlanOptions, make_plans
from odin_engines.spec import Spec
from odin_runtime.driver import Driver, Memory, Stream, open_driver
from odin_runtime.images import normalised

pytestmark = pytest.mark.gpu

# Largest differences from float32 on a CPU: of scores, and of logits relative to the largest.
# The perturbation moves the tiny network's scores by up to 4e-3.
SCORES = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 3e-3}
LOGITS = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}
# How many signs of the gradient have to agree.
SIGNS = {"fp32": 0.999, "fp16": 0.995, "bf16": 0.99}


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    with open_driver() as opened:
        yield opened


@pytest.fixture(scope="module", params=["trt", "rtx"])
def engine(request: pytest.FixtureRequest) -> str:
    reason = engines.unavailable(request.param, "fp32")
    if reason is not None:
        pytest.skip(reason)
    return request.param


@pytest.fixture(scope="module", params=["fp32", "fp16", "bf16"])
def bundle(
    request: pytest.FixtureRequest,
    engine: str,
    tiny_forward: Any,
    tiny_spec: Callable[..., Spec],
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundle:
    """The tiny network's bundle in a precision, with plans in both forms."""
    from odin_export.mixed import in_mixed_precision
    from odin_export.odin_graph import gradient_graph, odin_graph

    precision = request.param
    spec = tiny_spec(precision=precision, graph_precision=precision)
    forward = in_mixed_precision(tiny_forward, precision).forward
    made = {
        ODIN: odin_graph(forward, spec),
        GRADIENT: gradient_graph(forward, spec),
        FORWARD: forward,
    }
    graphs = {name: graph.SerializeToString() for name, graph in made.items()}
    shapes = AskedShapes(maximum={"images": (MOST, 3, 32, 32)})
    plans = make_plans(graphs, spec, PlanOptions(engine, shapes=shapes))
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    write_bundle(path, spec, graphs | plans.contents, plans.records)
    return read_bundle(path)


@pytest.fixture(scope="module")
def reference(tiny_bundle: Bundle) -> Callable[..., dict[str, np.ndarray]]:
    """A function: graph, images -> its outputs in float32 on the CPU."""
    sessions = {
        name: engines.open_graph("ort", tiny_bundle.file(name))
        for name in (ODIN, GRADIENT, FORWARD)
    }
    return lambda graph, images: sessions[graph].run({"images": images})


@pytest.fixture
def images(raw_images: Callable[..., np.ndarray], tiny_spec: Callable[..., Spec]) -> Any:
    """A function: count -> normalised images, float32 (count, 3, 32, 32)."""
    return lambda count: normalised(raw_images(count, seed=5), tiny_spec())


class Plans:
    """Plans of a test: they are freed after it, where TensorRT can free their memory."""

    def __init__(self, driver: Driver, bundle: Bundle, engine: str) -> None:
        self._driver, self._bundle, self._engine = driver, bundle, engine
        self._kept: list[Plan] = []

    def open(self, graph: str) -> Plan:
        with self._driver.current():
            plan = tensorrt_engine.open_plan(self._bundle, self._engine, graph)
            self._kept.append(plan)
        return self._kept[-1]

    def another(self, plan: Plan) -> Plan:
        """The same in a context as CUDA graphs have: whose kernels stay after the first run."""
        with self._driver.current():
            self._kept.append(plan.another())
        return self._kept[-1]

    def free(self) -> None:
        """Every run must have been waited for."""
        with self._driver.current():
            self._kept.clear()


@pytest.fixture
def plans(driver: Driver, bundle: Bundle, engine: str) -> Iterator[Plans]:
    """The bundle's plans."""
    opened = Plans(driver, bundle, engine)
    yield opened
    opened.free()


class Run:
    """One run of a plan on a stream; `outputs` waits for it."""

    def __init__(
        self,
        driver: Driver,
        plan: Plan,
        images: np.ndarray,
        stream: Stream,
        work: Memory | None = None,
    ) -> None:
        self._driver, self._stream = driver, stream
        shapes = {"images": images.shape}
        with driver.current():
            sizes = {"images": images.shape, **plan.output_shapes(shapes)}
        tensors = {**plan.inputs, **plan.outputs}
        self._sizes = {name: (sizes[name], dtype_of(tensors[name])) for name in sizes}
        lengths = {name: math.prod(size) * t.itemsize for name, (size, t) in self._sizes.items()}
        self._device = {name: driver.allocate(length) for name, length in lengths.items()}
        self._work = driver.allocate(0 if work else plan.work_bytes)
        self._host = {name: driver.pinned(length) for name, length in lengths.items()}
        self._outputs = list(plan.outputs)
        self._host["images"].array[:] = np.ascontiguousarray(images).view(np.uint8).ravel()
        self._copy("images", driver.copy_to_device)
        with driver.current():
            addresses = {name: memory.pointer for name, memory in self._device.items()}
            plan.enqueue(addresses, shapes, (work or self._work).pointer, stream.handle)
        for name in self._outputs:
            self._copy(name, driver.copy_to_host)

    def _copy(self, name: str, copy: Callable[..., None]) -> None:
        device, host = self._device[name], self._host[name]
        first, second = (device, host) if name == "images" else (host, device)
        copy(first.pointer, second.pointer, device.size, self._stream)

    def outputs(self) -> dict[str, np.ndarray]:
        self._stream.synchronize()
        values = {}
        for name in self._outputs:
            shape, dtype = self._sizes[name]
            values[name] = self._host[name].array.copy().view(dtype).reshape(shape)
        for memory in (self._work, *self._device.values(), *self._host.values()):
            memory.free()
        return values


def dtype_of(tensor: Tensor) -> np.dtype[Any]:
    return np.dtype(tensor.dtype)


def close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("count", [1, 3, MOST])
def test_fused(
    driver: Driver, bundle: Bundle, plans: Plans, reference: Any, images: Any, count: int
) -> None:
    batch = images(count)
    found = Run(driver, plans.open(ODIN), batch, driver.stream()).outputs()
    expected = reference(ODIN, batch)
    precision = bundle.spec.precision
    close(found["score"], expected["score"], SCORES[precision])
    close(found["baseline"], expected["baseline"], SCORES[precision])
    close(found["logits"], expected["logits"], LOGITS[precision])
    if precision == "fp32":
        np.testing.assert_array_equal(found["label"], expected["label"])


@pytest.mark.parametrize("count", [1, 5, MOST])
def test_split(
    driver: Driver, bundle: Bundle, plans: Plans, reference: Any, images: Any, count: int
) -> None:
    batch = images(count)
    precision = bundle.spec.precision
    found = Run(driver, plans.open(GRADIENT), batch, driver.stream()).outputs()
    expected = reference(GRADIENT, batch)
    close(found["logits"], expected["logits"], LOGITS[precision])
    same = np.sign(found["input_gradient"]) == np.sign(expected["input_gradient"])
    assert same.mean() >= SIGNS[precision]
    found = Run(driver, plans.open(FORWARD), batch, driver.stream()).outputs()
    close(found["logits"], reference(FORWARD, batch)["logits"], LOGITS[precision])


def test_contexts_run_at_the_same_time(driver: Driver, plans: Plans, images: Any) -> None:
    plan = plans.another(plans.open(ODIN))
    other = plans.another(plan)
    first, second = images(MOST), images(MOST)[::-1]
    alone = Run(driver, plan, first, driver.stream()).outputs()["score"]
    streams = driver.stream(), driver.stream()
    for _ in range(20):
        runs = Run(driver, plan, first, streams[0]), Run(driver, other, second, streams[1])
        scores = [run.outputs()["score"] for run in runs]
        np.testing.assert_array_equal(scores[0], alone)
        np.testing.assert_allclose(scores[1], alone[::-1], rtol=0, atol=1e-3)


def test_contexts_work_in_the_same_memory_by_turns(
    driver: Driver, plans: Plans, images: Any
) -> None:
    contexts = [plans.another(plans.open(ODIN))]
    contexts += [plans.another(contexts[0]) for _ in range(2)]
    batches = [images(count) for count in (MOST, 1, 3)]
    stream = driver.stream()
    cases = list(zip(contexts, batches, strict=True))
    alone = [Run(driver, plan, batch, stream).outputs()["score"] for plan, batch in cases]
    with driver.allocate(contexts[0].work_bytes) as work:
        for _ in range(5):
            runs = [Run(driver, plan, batch, stream, work) for plan, batch in cases]
            for run, expected in zip(runs, alone, strict=True):
                np.testing.assert_array_equal(run.outputs()["score"], expected)


def test_a_run_is_repeated_to_the_bit(driver: Driver, plans: Plans, images: Any) -> None:
    plan = plans.another(plans.open(ODIN))
    stream = driver.stream()
    first = Run(driver, plan, images(3), stream).outputs()
    for _ in range(5):
        again = Run(driver, plan, images(3), stream).outputs()
        for name, values in first.items():
            np.testing.assert_array_equal(again[name], values)


def test_batches_out_of_the_profile(driver: Driver, plans: Plans, images: Any) -> None:
    plan = plans.open(ODIN)
    with pytest.raises(OdinError, match=rf"--maxShapes=images:{MOST + 1}x3x32x32"):
        Run(driver, plan, images(MOST + 1), driver.stream())


def test_plans_built_here_fit_here(engine: str, bundle: Bundle) -> None:
    for graph in (ODIN, GRADIENT, FORWARD):
        assert tensorrt_engine.plan_problem(bundle, engine, graph) is None


def test_a_damaged_plan_is_refused(
    driver: Driver, engine: str, bundle: Bundle, tmp_path: Path
) -> None:
    """By TensorRT itself: its SHA-256 is that of the damaged file."""
    contents = {name: bundle.file(name).read_bytes() for name in bundle.files}
    name = f"odin.{engine}.plan"
    contents[name] = contents[name][: len(contents[name]) // 2]
    damaged = write_bundle(tmp_path / "damaged", bundle.spec, contents, bundle.plans)
    with pytest.raises(OdinError, match=rf"cannot open .*{name}"):
        Plans(driver, damaged, engine).open(ODIN)


def test_the_timing_cache_is_kept(engine: str, tiny_bundle: Bundle, tmp_path: Path) -> None:
    if engine != "trt":
        pytest.skip("TensorRT for RTX measures nothing")
    graphs = {name: tiny_bundle.file(name).read_bytes() for name in (ODIN, GRADIENT, FORWARD)}
    options = PlanOptions("trt", forms=("fused",), cache_folder=tmp_path / "cache")
    make_plans(graphs, tiny_bundle.spec, options)
    (file,) = (tmp_path / "cache").iterdir()
    size = file.stat().st_size
    assert size > 0
    make_plans(graphs, tiny_bundle.spec, options)
    assert file.stat().st_size >= size
