"""Drivers, kernels and bundles with plans for a GPU, and the table of what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpu.support import MOST, Report
from odin_engines import engine as engines
from odin_engines.bundle import FORWARD, GRADIENT, ODIN, Bundle, read_bundle, write_bundle
from odin_engines.errors import OdinError
from odin_engines.plan_profiles import AskedShapes
from odin_engines.plan_sets import PlanOptions, make_plans
from odin_engines.spec import Spec
from odin_runtime import gpu_scorer, kernels
from odin_runtime.driver import DRIVERS, Driver, open_driver

_MEASURED: list[tuple[str, float, str]] = []


@pytest.fixture(scope="session")
def report() -> Report:
    """A function: what, value, unit -> a line of the table."""
    return lambda what, value, unit: _MEASURED.append((what, value, unit))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what was measured."""
    if not _MEASURED:
        return
    terminalreporter.section("measured on the GPU")
    width = max(len(what) for what, _, _ in _MEASURED)
    for what, value, unit in _MEASURED:
        terminalreporter.write_line(f"{what:{width}}  {value:12,.1f} {unit}")


@pytest.fixture(scope="module", params=DRIVERS)
def gpu(request: pytest.FixtureRequest) -> Iterator[Driver]:
    """Each driver in turn, opened; skipped with the reason where it cannot be."""
    try:
        opened = open_driver(request.param)
    except OdinError as error:
        pytest.skip(str(error))
    with opened:
        yield opened


@pytest.fixture(scope="session")
def fat_binary(request: pytest.FixtureRequest) -> bytes:
    """The installed kernels, or those that CMake builds here."""
    try:
        return kernels.fat_binary()
    except OdinError:
        folder: Path = request.getfixturevalue("cuda_build")
    return next(folder.rglob(kernels.FATBIN)).read_bytes()


@pytest.fixture(scope="session")
def installed_kernels(fat_binary: bytes) -> Iterator[None]:
    """Scorer.open finds the kernels, also in a source tree."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_scorer, "fat_binary", lambda: fat_binary)
        yield


@pytest.fixture(scope="session", params=["trt", "rtx"])
def plan_engine(request: pytest.FixtureRequest) -> str:
    """Each engine in turn; skipped with the reason where it cannot run."""
    reason = engines.unavailable(request.param, "fp32")
    if reason is not None:
        pytest.skip(reason)
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def planned(
    plan_engine: str,
    tiny_forward: Any,
    tiny_spec: Callable[..., Spec],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Bundle]:
    """A function: fields of the spec -> the tiny network's bundle with plans in both forms."""
    made: dict[str, Bundle] = {}

    def make(**changes: Any) -> Bundle:
        key = repr(sorted(changes.items()))
        if key not in made:
            spec = tiny_spec(**changes)
            folder = tmp_path_factory.mktemp("planned") / "tiny"
            made[key] = _planned(folder, tiny_forward, spec, plan_engine)
        return made[key]

    return make


def _planned(folder: Path, network: Any, spec: Spec, engine: str) -> Bundle:
    from odin_export.mixed import in_mixed_precision
    from odin_export.odin_graph import gradient_graph, odin_graph

    forward = in_mixed_precision(network, spec.graph_precision).forward
    built = {
        ODIN: odin_graph(forward, spec),
        GRADIENT: gradient_graph(forward, spec),
        FORWARD: forward,
    }
    graphs = {name: graph.SerializeToString() for name, graph in built.items()}
    forms = ("fused",) if spec.scores else ("fused", "split")
    shapes = AskedShapes(maximum={"images": (MOST, 3, 32, 32)})
    plans = make_plans(graphs, spec, PlanOptions(engine, forms=forms, shapes=shapes))
    write_bundle(folder, spec, graphs | plans.contents, plans.records)
    return read_bundle(folder)
