"""Which plans a bundle gets: those that it has are used again, unless anything differs."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest

from engines import tensorrt_double
from odin_engines import plan_sets, tensorrt_engine
from odin_engines.bundle import FORWARD, GRADIENT, ODIN, Bundle, read_bundle, write_bundle
from odin_engines.cuda_probe import Device, Driver
from odin_engines.errors import OdinError
from odin_engines.plan_profiles import AskedShapes
from odin_engines.plan_records import Limits, PlanRecord
from odin_engines.plan_sets import PlanOptions, make_plans, wanted_plans
from odin_engines.plans import TimingCache
from odin_engines.spec import Spec

SpecMaker = Callable[..., Spec]


@pytest.fixture(scope="module")
def trt() -> ModuleType:
    reason = "install tensorrt-rtx-cu13: pip install '.[cpu,test,rtx]'"
    return pytest.importorskip("tensorrt_rtx", reason=reason)


def read(bundle: Bundle) -> dict[str, bytes]:
    return {name: bundle.file(name).read_bytes() for name in (ODIN, GRADIENT, FORWARD)}


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let plans be built at once; the list names the graphs they were built from."""
    names: list[str] = []

    def build(trt: Any, graph: bytes, record: PlanRecord, *rest: Any) -> bytes:
        names.append(record.graph)
        return f"plan of {record.graph} at {time.perf_counter()}".encode()

    monkeypatch.setattr("odin_engines.plan_sets.build_plan", build)
    return names


def with_plans(bundle: Bundle, folder: Path, options: PlanOptions) -> Bundle:
    graphs = read(bundle)
    made = make_plans(graphs, bundle.spec, options, bundle)
    write_bundle(folder / "with plans", bundle.spec, graphs | made.contents, made.records)
    return read_bundle(folder / "with plans")


def test_plans_are_used_again(
    trt: ModuleType, tiny_bundle: Bundle, tmp_path: Path, built: list[str]
) -> None:
    options = PlanOptions("rtx")
    first = with_plans(tiny_bundle, tmp_path, options)
    assert built == [ODIN, GRADIENT, FORWARD]
    again = make_plans(read(first), first.spec, options, first)
    assert built == [ODIN, GRADIENT, FORWARD]
    assert again.records == first.plans
    assert again.reused == set(again.contents)
    for name, content in again.contents.items():
        assert first.file(name).read_bytes() == content


@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_a_damaged_plan_is_built_again(
    trt: ModuleType, tiny_bundle: Bundle, tmp_path: Path, built: list[str], damage: str
) -> None:
    """What needs no plan goes on with the bundle."""
    bundle = with_plans(tiny_bundle, tmp_path, PlanOptions("rtx"))
    file = bundle.file("gradient.rtx.plan")
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:-1] if damage == "cut" else content[:-1] + b"?")
    damaged = read_bundle(bundle.path)
    assert damaged.file(ODIN).is_file()
    remedy = f"odin-export '{bundle.path}' --engine rtx'"  # there is a space in its name
    with pytest.raises(OdinError, match=re.escape(remedy)):
        damaged.file(file.name)
    built.clear()
    assert with_plans(damaged, tmp_path, PlanOptions("rtx")).damaged == {}
    assert built == [GRADIENT]


@pytest.mark.parametrize(
    "options",
    [
        PlanOptions("rtx", tf32=True),
        PlanOptions("rtx", optimization_level=1),
        PlanOptions("rtx", compute_capabilities=("8.6",)),
        "version",
        "profile",
    ],
    ids=str,
)
def test_what_makes_another_plan(
    trt: ModuleType,
    tiny_bundle: Bundle,
    tmp_path: Path,
    built: list[str],
    monkeypatch: pytest.MonkeyPatch,
    options: Any,
) -> None:
    first = with_plans(tiny_bundle, tmp_path, PlanOptions("rtx"))
    built.clear()
    if options == "version":
        monkeypatch.setattr(trt, "__version__", "1.8")
        options = PlanOptions("rtx")
    elif options == "profile":
        options = PlanOptions("rtx", shapes=AskedShapes(maximum={"images": (9, 3, 32, 32)}))
    made = make_plans(read(first), first.spec, options, first)
    assert built == [ODIN, GRADIENT, FORWARD]
    assert made.reused == frozenset()


# Of each field of a plan's record, another value.
OTHER: dict[str, Any] = {
    "file": "other.plan",
    "form": "split",
    "engine": "trt",
    "version": "1.0",
    "device": "NVIDIA L4",
    "compute_capabilities": ("8.6",),
    "precision": "bf16",
    "profile": {"images": Limits((1, 3, 32, 32), (1, 3, 32, 32), (2, 3, 32, 32))},
    "tf32": True,
    "optimization_level": 5,
    "hardware_compatibility": "same-cc",
    "graph": FORWARD,
    "graph_sha256": "0" * 64,
}


def test_a_plan_that_differs_in_anything_is_built_again(
    trt: ModuleType, tiny_bundle: Bundle, tmp_path: Path, built: list[str]
) -> None:
    """Whatever its bundle says of it: also what no flag changes."""
    assert list(OTHER) == [field.name for field in dataclasses.fields(PlanRecord)]
    graphs, options = read(tiny_bundle), PlanOptions("rtx", forms=("fused",))
    (record,) = make_plans(graphs, tiny_bundle.spec, options).records
    for count, (name, value) in enumerate(OTHER.items(), start=2):
        other = dataclasses.replace(record, **{name: value})
        contents = graphs | {other.file: b"its plan"}
        folder = tmp_path / name
        bundle = write_bundle(folder, tiny_bundle.spec, contents, (other,))
        made = make_plans(graphs, bundle.spec, options, read_bundle(folder))
        assert (name, len(built)) == (name, count)
        assert made.records[0] == record
        assert len(made.records) == len(made.contents)
        assert made.contents[record.file] != b"its plan"


def test_only_what_changed_is_built(
    trt: ModuleType, tiny_bundle: Bundle, tmp_path: Path, built: list[str]
) -> None:
    """A changed weight is another graph; the plan of a graph that is not asked for is dropped."""
    first = with_plans(tiny_bundle, tmp_path, PlanOptions("rtx"))
    built.clear()
    graphs = read(first)
    proto = onnx.load_from_string(graphs[ODIN])
    weight = next(each for each in proto.graph.initializer if each.raw_data)
    weight.raw_data = bytes([weight.raw_data[0] ^ 1]) + weight.raw_data[1:]
    graphs[ODIN] = proto.SerializeToString()
    made = make_plans(graphs, first.spec, PlanOptions("rtx"), first)
    assert built == [ODIN]
    assert made.reused == {"gradient.rtx.plan", "forward.rtx.plan"}
    built.clear()
    made = make_plans(graphs, first.spec, PlanOptions("rtx", forms=("split",)), first)
    assert built == []
    assert set(made.contents) == {"gradient.rtx.plan", "forward.rtx.plan"}


def test_other_plans_are_kept(
    trt: ModuleType, tiny_bundle: Bundle, tmp_path: Path, built: list[str]
) -> None:
    first = with_plans(tiny_bundle, tmp_path, PlanOptions("rtx", forms=("split",)))
    made = make_plans(read(first), first.spec, PlanOptions("rtx", forms=("fused",)), first)
    assert built == [GRADIENT, FORWARD, ODIN]
    assert set(made.contents) == {"odin.rtx.plan", "gradient.rtx.plan", "forward.rtx.plan"}
    assert made.reused == {"gradient.rtx.plan", "forward.rtx.plan"}


# TensorRT itself, on a machine that looks as if it had a GPU


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Device], None]:
    """A function: GPU -> this machine looks as if it had it, and TensorRT."""

    def become(device: Device) -> None:
        driver = Driver(13000, (device,), None)
        for module in (plan_sets, tensorrt_engine):
            monkeypatch.setattr(module, "ask_driver", lambda: driver)
        monkeypatch.setattr(tensorrt_engine, "_installed", lambda engine: True)
        monkeypatch.setattr(tensorrt_engine, "import_module", lambda name: tensorrt_double.make())

    return become


L4, A10 = Device("NVIDIA L4", (8, 9)), Device("NVIDIA A10", (8, 6))


@pytest.mark.parametrize(
    ("compatibility", "device"), [("none", "NVIDIA L4"), ("ampere+", ""), ("same-cc", "")]
)
def test_plans_for_the_gpu_at_hand(
    machine: Callable[[Device], None], tiny_spec: SpecMaker, compatibility: str, device: str
) -> None:
    machine(L4)
    options = PlanOptions("trt", hardware_compatibility=compatibility)
    records = wanted_plans(tiny_spec(), options)
    assert [record.file for record in records] == [
        *("odin.trt.plan", "gradient.trt.plan", "forward.trt.plan")
    ]
    for record in records:
        assert (record.device, record.compute_capabilities) == (device, ("8.9",))
        assert record.version == tensorrt_double.__version__
        assert record.hardware_compatibility == compatibility


def test_another_gpu_is_another_plan(
    machine: Callable[[Device], None],
    trt: ModuleType,
    tiny_bundle: Bundle,
    tmp_path: Path,
    built: list[str],
) -> None:
    machine(L4)
    first = with_plans(tiny_bundle, tmp_path, PlanOptions("trt"))
    make_plans(read(first), first.spec, PlanOptions("trt"), first)
    assert len(built) == 3
    machine(A10)
    make_plans(read(first), first.spec, PlanOptions("trt"), first)
    assert len(built) == 6


def test_the_timing_cache_is_of_one_version_and_gpu(
    machine: Callable[[Device], None], tiny_spec: SpecMaker, tmp_path: Path
) -> None:
    machine(L4)
    options = PlanOptions("trt", cache_folder=tmp_path, hardware_compatibility="ampere+")
    record = wanted_plans(tiny_spec(), options)[0]
    name = "timing-11.4.0.106-NVIDIA-L4.cache"
    ours = TimingCache(tmp_path / name, asked=False)
    assert plan_sets._timing_cache(options, record) == ours
    own = PlanOptions("trt", cache_folder=tmp_path, timing_cache=tmp_path / "mine")
    assert plan_sets._timing_cache(own, record) == TimingCache(tmp_path / "mine", asked=True)
    assert plan_sets._timing_cache(PlanOptions("trt"), record) is None
    assert plan_sets._timing_cache(PlanOptions("rtx", cache_folder=tmp_path), record) is None
