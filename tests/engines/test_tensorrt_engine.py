"""Why TensorRT cannot run here, and what would: for each missing piece the reason and remedy."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engines import tensorrt_double
from odin_engines import engine as engines
from odin_engines import tensorrt_engine
from odin_engines.bundle import Bundle, write_bundle
from odin_engines.cuda_probe import Device, Driver
from odin_engines.errors import OdinError
from odin_engines.files import sha256
from odin_engines.plan_records import Limits, PlanRecord
from odin_engines.tensorrt_engine import building_problem, load, open_plan, plan_problem

L4 = Device("NVIDIA L4", (8, 9))
A10 = Device("NVIDIA A10", (8, 6))
H100 = Device("NVIDIA H100", (9, 0))
T4 = Device("Tesla T4", (7, 5))
NO_DRIVER = Driver(0, (), "no NVIDIA driver (libcuda.so.1) is found")
NO_GPU = Driver(13000, (), "the NVIDIA driver shows no GPU (look at CUDA_VISIBLE_DEVICES)")
ENGINES = {"trt": "tensorrt", "rtx": "tensorrt_rtx"}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function: driver, installed modules -> this machine looks as if it had these."""

    def become(driver: Driver, *modules: str, cuda: int = 13) -> None:
        monkeypatch.setattr(tensorrt_engine, "ask_driver", lambda: driver)
        monkeypatch.setattr(
            tensorrt_engine,
            "find_spec",
            lambda name: SimpleNamespace(origin="here") if name in modules else None,
        )
        monkeypatch.setattr(tensorrt_engine, "_cuda_version", lambda engine: cuda)
        monkeypatch.setattr(
            tensorrt_engine,
            "import_module",
            lambda name: tensorrt_double.make(rtx=name == "tensorrt_rtx"),
        )

    return become


def gpu(device: Device, version: int = 13000) -> Driver:
    return Driver(version, (device,), None)


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_missing(machine: Callable[..., None], engine: str) -> None:
    machine(gpu(L4), ENGINES[engine])
    assert engines.unavailable(engine, "fp32") is None
    assert building_problem(engine) is None


@pytest.mark.parametrize(
    ("driver", "modules", "cuda", "parts"),
    [
        (
            NO_DRIVER,
            (),
            13,
            ("tensorrt is not installed", "libcuda.so.1", "odin-ood[gpu]", "driver 580 or newer"),
        ),
        (gpu(L4), (), 13, ("tensorrt is not installed: pip install 'odin-ood[gpu]';",)),
        (
            NO_DRIVER,
            ("tensorrt",),
            13,
            ("libcuda.so.1) is found: it takes a machine with a GPU and driver 580",),
        ),
        (NO_GPU, ("tensorrt",), 13, ("CUDA_VISIBLE_DEVICES): it takes a machine with a GPU",)),
        (
            gpu(L4, 12080),
            ("tensorrt",),
            13,
            ("for CUDA up to 12.8, where 13 is wanted: update the driver to 580 or newer",),
        ),
        (gpu(L4, 11080), ("tensorrt",), 12, ("for CUDA up to 11.8", "driver to 525 or newer")),
    ],
)
def test_what_tensorrt_misses(
    machine: Callable[..., None], driver: Driver, modules: Any, cuda: int, parts: Any
) -> None:
    machine(driver, *modules, cuda=cuda)
    reason = engines.unavailable("trt", "fp32")
    assert reason is not None
    for part in (*parts, "; on a CPU: openvino, ort"):
        assert part in reason
    assert "\n" not in reason
    assert len(reason) < 180  # two lines of a terminal, with what the command puts before it
    building = building_problem("trt")
    assert building is not None
    assert "rtx builds on any CPU" in building
    for part in parts:
        assert part.rstrip(";") in building


@pytest.mark.parametrize("device", [H100, Device("NVIDIA B200", (10, 0))])
def test_gpus_that_rtx_is_not_for(machine: Callable[..., None], device: Device) -> None:
    machine(gpu(device), "tensorrt_rtx", "tensorrt")
    reason = engines.unavailable("rtx", "fp32")
    assert reason is not None
    assert f"no kernels for {device.name} (compute capability" in reason
    assert "use --engine trt" in reason
    assert engines.unavailable("trt", "fp32") is None
    assert building_problem("rtx") is None  # for another machine


def test_one_gpu_of_several_is_enough(machine: Callable[..., None]) -> None:
    machine(Driver(13000, (H100, L4), None), "tensorrt_rtx")
    assert engines.unavailable("rtx", "fp32") is None
    machine(Driver(13000, (H100, H100), None), "tensorrt_rtx")
    assert engines.unavailable("rtx", "fp32") is not None


def test_rtx_needs_its_package_alone_to_build(machine: Callable[..., None]) -> None:
    machine(NO_DRIVER)
    assert building_problem("rtx") == ("tensorrt_rtx is not installed: pip install 'odin-ood[rtx]'")
    machine(NO_DRIVER, "tensorrt_rtx")
    assert building_problem("rtx") is None


def test_stubs_are_no_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Type stubs make a folder `tensorrt` without a module."""
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.pyi").touch()
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(OdinError, match="tensorrt is not installed"):
        load("trt")


def test_a_package_without_its_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt").mkdir()
    text = "raise ImportError('libnvinfer.so.11: cannot open shared object file')"
    (tmp_path / "tensorrt" / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    problem = r"does not load \(libnvinfer\.so\.11.*NVIDIA's package"
    with pytest.raises(OdinError, match=problem):
        load("trt")
    monkeypatch.setattr(tensorrt_engine, "ask_driver", lambda: gpu(L4))
    reason = engines.unavailable("trt", "fp32")
    assert reason is not None
    assert re.search(problem, reason)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_graph_is_no_plan(machine: Callable[..., None], engine: str) -> None:
    machine(gpu(L4), ENGINES[engine])
    with pytest.raises(OdinError, match=r"odin\.onnx is an ONNX graph.*odin-export BUNDLE"):
        engines.open_graph(engine, Path("odin.onnx"))


# A bundle's plans


@pytest.fixture
def make_bundle(tmp_path: Path, tiny_spec: Callable[..., Any]) -> Callable[..., Bundle]:
    """A function: fields of the plan's record to change -> a bundle with one plan, for an L4."""

    def make(**changes: Any) -> Bundle:
        graph = tmp_path / "odin.onnx"
        graph.write_bytes(b"a graph")
        limits = Limits((1, 3, 32, 32), (4, 3, 32, 32), (8, 3, 40, 40))
        record = PlanRecord(
            file="odin.trt.plan",
            form="fused",
            engine="trt",
            version=tensorrt_double.__version__,
            device=L4.name,
            compute_capabilities=("8.9",),
            precision="fp32",
            profile={"images": limits},
            tf32=False,
            optimization_level=None,
            hardware_compatibility="none",
            graph="odin.onnx",
            graph_sha256=sha256(graph),
        )
        record = dataclasses.replace(record, **changes)
        contents = {"odin.onnx": b"a graph", record.file: b"a plan"}
        return write_bundle(tmp_path / "tiny", tiny_spec(), contents, (record,))

    return make


def test_opening_a_plan(machine: Callable[..., None], make_bundle: Callable[..., Bundle]) -> None:
    machine(gpu(L4), "tensorrt")
    plan = open_plan(make_bundle(), "trt", "odin.onnx")
    assert set(plan.inputs) == {"images", "temperature"}


@pytest.mark.parametrize(
    ("changes", "device"),
    [
        ({"hardware_compatibility": "ampere+", "device": ""}, H100),
        (
            {"hardware_compatibility": "ampere+", "device": "", "compute_capabilities": ("12.0",)},
            A10,
        ),
        ({"hardware_compatibility": "same-cc", "device": ""}, Device("NVIDIA L40S", (8, 9))),
        ({"device": "", "compute_capabilities": ("8.6", "8.9")}, A10),
    ],
)
def test_plans_for_several_gpus(
    machine: Callable[..., None], make_bundle: Callable[..., Bundle], changes: Any, device: Device
) -> None:
    machine(gpu(device), "tensorrt")
    assert plan_problem(make_bundle(**changes), "trt", "odin.onnx") is None


@pytest.mark.parametrize(
    ("changes", "device", "part"),
    [
        ({}, A10, "built for NVIDIA L4 of compute capability 8.9, and here is NVIDIA A10 (comp"),
        ({}, Device("NVIDIA L40S", (8, 9)), "and here is NVIDIA L40S (compute capability 8.9)"),
        ({"hardware_compatibility": "same-cc", "device": ""}, A10, "built for GPUs of compute"),
        ({"hardware_compatibility": "ampere+", "device": ""}, T4, "here is Tesla T4"),
        (
            {"device": "", "compute_capabilities": ("8.6", "12.0")},
            L4,
            "built for GPUs of compute capability 8.6, 12.0, and here is NVIDIA L4",
        ),
        ({"version": "10.16.1"}, L4, "built by TensorRT 10.16.1, and here is 11.4.0.106"),
        ({"graph_sha256": "0" * 64}, L4, "built from another odin.onnx than the bundle holds"),
    ],
)
def test_plans_for_another_machine(
    machine: Callable[..., None],
    make_bundle: Callable[..., Bundle],
    changes: Any,
    device: Device,
    part: str,
) -> None:
    machine(gpu(device), "tensorrt")
    bundle = make_bundle(**changes)
    with pytest.raises(OdinError) as caught:
        open_plan(bundle, "trt", "odin.onnx")
    assert part in str(caught.value)
    assert f"build it with 'odin-export {bundle.path} --engine trt'" in str(caught.value)


def test_each_gpu_of_a_machine(
    machine: Callable[..., None], make_bundle: Callable[..., Bundle]
) -> None:
    machine(Driver(13000, (A10, L4), None), "tensorrt")
    bundle = make_bundle()
    assert plan_problem(bundle, "trt", "odin.onnx", device=1) is None
    assert "here is NVIDIA A10" in str(plan_problem(bundle, "trt", "odin.onnx"))


def test_plans_that_are_not_there(
    machine: Callable[..., None], make_bundle: Callable[..., Bundle]
) -> None:
    machine(gpu(L4), "tensorrt")
    bundle = make_bundle()
    for engine, graph in (("rtx", "odin.onnx"), ("trt", "gradient.onnx")):
        problem = plan_problem(bundle, engine, graph)
        assert problem is not None
        assert f"holds no plan of {graph} for --engine {engine}" in problem
        assert f"'odin-export {bundle.path} --engine {engine}'" in problem


def test_a_plan_on_a_machine_without_a_gpu(
    machine: Callable[..., None], make_bundle: Callable[..., Bundle]
) -> None:
    machine(NO_DRIVER, "tensorrt")
    with pytest.raises(OdinError, match=r"odin\.trt\.plan cannot run here: no NVIDIA driver"):
        open_plan(make_bundle(), "trt", "odin.onnx")
