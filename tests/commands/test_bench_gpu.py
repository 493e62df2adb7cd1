"""odin-bench with the engines that run on a GPU, on machines that have none or only seem to.

No GPU is needed: the driver's answers are the tests' own, and a CPU engine stands in for plans.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from commands.runs import Command, pair, refused, results
from odin_bench import cli as bench
from odin_bench.models import with_plans
from odin_engines import engine as engines
from odin_engines import ort_gpu, tensorrt_engine
from odin_engines.bundle import read_bundle, write_bundle
from odin_engines.cuda_probe import Device, Driver
from odin_engines.errors import OdinError
from odin_engines.plan_records import Limits, PlanRecord
from odin_runtime import Scorer, Scores

NO_DRIVER = Driver(0, (), "no NVIDIA driver (libcuda.so.1) is found")
GPU = Driver(13000, (Device("a GPU of the tests", (8, 9)),), None)
EXTRAS = {"trt": "gpu", "rtx": "rtx", "ort-cuda": "gpu", "ort-trt": "gpu"}
# What each takes beside the driver and this package.
PACKAGES = {
    "trt": {"tensorrt-cu13", "cuda-core", "cuda-bindings"},
    "rtx": {"tensorrt-rtx-cu13", "cuda-core", "cuda-bindings"},
    "ort-cuda": {"onnxruntime-gpu", "onnx"},
    "ort-trt": {"onnxruntime-gpu", "onnx", "tensorrt-cu13"},
}
PROJECT = Path(__file__).parents[2] / "pyproject.toml"
VISIBLE = "CUDA_VISIBLE_DEVICES"


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Driver], None]:
    """A function: what the driver answers."""

    def answer(driver: Driver) -> None:
        for module in (engines, ort_gpu, tensorrt_engine):
            monkeypatch.setattr(module, "ask_driver", lambda: driver)

    return answer


@pytest.fixture
def visible(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """A function: sets CUDA_VISIBLE_DEVICES; it is as before after the test."""

    def leave(value: str | None) -> None:
        monkeypatch.setenv(VISIBLE, value or "")
        if value is None:
            monkeypatch.delenv(VISIBLE)

    return leave


def with_a_plan(bundle: Path, engine: str) -> Path:
    """A copy of a bundle that holds a plan, of nothing."""
    shutil.copytree(bundle, "planned")
    whole = read_bundle(Path("planned"))
    graphs = {name: whole.file(name).read_bytes() for name in whole.files}
    limits = Limits((1, 3, 32, 32), (8, 3, 32, 32), (16, 3, 32, 32))
    record = PlanRecord(
        file=f"odin.{engine}.plan",
        form="fused",
        engine=engine,
        version="11.0",
        device="",
        compute_capabilities=("8.9",),
        precision="fp32",
        profile={"images": limits},
        tf32=False,
        optimization_level=None,
        hardware_compatibility="none",
        graph="odin.onnx",
        graph_sha256=whole.files["odin.onnx"],
    )
    write_bundle(whole.path, whole.spec, graphs | {record.file: b"a plan"}, (record,))
    return whole.path


@pytest.mark.parametrize("installed", [True, False], ids=["installed", "not-installed"])
@pytest.mark.parametrize("planned", [True, False], ids=["plan", "no-plan"])
@pytest.mark.parametrize("engine", EXTRAS)
def test_two_lines_without_a_gpu(
    run: Command,
    bundle: Path,
    sets: Path,
    use: Callable[[Driver], None],
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    planned: bool,
    installed: bool,
) -> None:
    """Why it cannot run, and what would."""
    use(NO_DRIVER)
    for module in (engines, tensorrt_engine):
        here = SimpleNamespace(origin="here") if installed else None
        monkeypatch.setattr(module, "find_spec", lambda name, here=here: here)
    path = with_a_plan(bundle, engine) if planned and engine in ("trt", "rtx") else bundle
    outcome = run(bench.main, path, *pair(sets, "far"), "--engine", engine)
    assert (outcome.status, outcome.out) == (1, "")
    why, what = outcome.err.splitlines()
    assert why == (
        f"odin-bench: engine {engine} is not available: no NVIDIA driver (libcuda.so.1) is found"
    )
    for part in ("NVIDIA GPU", "driver 580", f"odin-ood[{EXTRAS[engine]}]", "openvino or ort"):
        assert part in what
    assert (", nvcc, then pip" in what) == (engine in ("trt", "rtx"))
    assert max(len(why), len(what)) <= 100
    with pytest.raises(OdinError) as caught:
        Scorer.open(path, engine)
    assert f"odin-bench: {caught.value}\n" == outcome.err


@pytest.mark.parametrize("engine", EXTRAS)
def test_the_extra_holds_what_the_engine_takes(engine: str) -> None:
    extras = tomllib.loads(PROJECT.read_text("utf-8"))["project"]["optional-dependencies"]
    names = {re.split(r"[^\w-]", text)[0] for text in extras[EXTRAS[engine]]}
    assert PACKAGES[engine] <= names


@pytest.mark.parametrize("engine", EXTRAS)
def test_with_a_gpu_it_is_something_else(
    run: Command,
    bundle: Path,
    sets: Path,
    use: Callable[[Driver], None],
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
) -> None:
    use(GPU)
    for module in (engines, tensorrt_engine):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    outcome = run(bench.main, bundle, *pair(sets, "far"), "--engine", engine)
    refused(outcome, f"engine {engine} is not available", "is not installed: ", "pip ")
    assert "no NVIDIA driver" not in outcome.err


# --gpu


@pytest.mark.parametrize(
    ("left", "number", "chosen"),
    [(None, 0, "0"), (None, 2, "2"), ("3,1", 1, "1"), ("GPU-5ad,GPU-77", 0, "GPU-5ad")],
)
@pytest.mark.parametrize("engine", EXTRAS)
def test_gpu_is_one_of_those_that_cuda_sees(
    run: Command,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    visible: Callable[[str | None], None],
    engine: str,
    left: str | None,
    number: int,
    chosen: str,
) -> None:
    """It is chosen before the driver is first asked, which is when CUDA reads the variable."""
    visible(left)
    asked = []

    def ask() -> Driver:
        asked.append(os.environ[VISIBLE])
        return NO_DRIVER

    for module in (engines, ort_gpu, tensorrt_engine):
        monkeypatch.setattr(module, "ask_driver", ask)
    assert run(bench.main, bundle, "--engine", engine, "--gpu", number).status == 1
    assert asked
    assert set(asked) == {chosen}


@pytest.mark.parametrize(("left", "count"), [("", 0), ("3,1", 2)])
def test_gpu_that_is_not_there(
    run: Command, bundle: Path, visible: Callable[[str | None], None], left: str, count: int
) -> None:
    visible(left)
    outcome = run(bench.main, bundle, "--engine", "trt", "--gpu", 2)
    refused(outcome, f"--gpu 2: CUDA_VISIBLE_DEVICES={left} leaves {count} GPUs")
    assert os.environ[VISIBLE] == left


@pytest.mark.parametrize("number", ["-1", "one"])
def test_gpu_is_a_number(run: Command, bundle: Path, number: str) -> None:
    refused(run(bench.main, bundle, "--gpu", number), "--gpu", "a whole number from 0")


def test_gpu_changes_nothing_on_the_cpu(
    run: Command, bundle: Path, sets: Path, visible: Callable[[str | None], None]
) -> None:
    visible("")
    arguments = (bundle, *pair(sets, "far"), "--parity", 0, "--engine", "ort", "--gpu", 1)
    outcome = run(bench.main, *arguments)
    assert outcome.status == 0, outcome.err
    assert "--gpu 1 changes nothing: --engine ort is not one for a GPU" in outcome.err
    assert os.environ[VISIBLE] == ""


# Plans


class OnPlans(Scorer):
    """Stands in for a scorer on plans: scores with ONNX Runtime on the CPU."""

    def score(self, images: Any, **tuning: Any) -> Scores:
        return Scorer.open(self.bundle, "ort").score(images, **tuning)


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Engine trt seems to be here; the list gets a word when it is closed."""
    closed: list[str] = []
    session = SimpleNamespace(
        close=lambda: closed.append("closed"), check_setting=lambda temperature, magnitude: None
    )
    real = bench._scorer

    def open_plans(parsed: Any, bundle: Any) -> Scorer:
        parsed.engine = "ort"
        opened = real(parsed, bundle)
        fields = {each.name: getattr(opened, each.name) for each in dataclasses.fields(opened)}
        return OnPlans(**fields | {"engine": "trt", "session": session})

    monkeypatch.setattr(bench, "resolve", lambda name, precision: name)
    monkeypatch.setattr(bench, "_scorer", open_plans)
    return closed


def test_bench_on_plans(
    run: Command, bundle: Path, sets: Path, weights: Path, plans: list[str]
) -> None:
    """Plans give no gradient: scores and labels are compared with PyTorch's all the same."""
    arguments = (bundle, *pair(sets, "far"), "--checkpoint", weights, "--json", "out.json")
    outcome = run(bench.main, *arguments, "--engine", "trt")
    assert outcome.status == 0, outcome.err
    assert "gradient signs are not compared, which plans do not give, labels 100" in outcome.out
    parity = results()["parity"]
    assert parity["sign_agreement"] is None
    assert parity["label_agreement"] == 1
    assert 0 < parity["max_abs_score_difference"] < 1e-6
    assert results()["engine"] == "trt"
    assert plans == ["closed"]


def test_what_is_on_the_gpu_is_freed_after_an_error(
    run: Command, bundle: Path, sets: Path, plans: list[str]
) -> None:
    refused(run(bench.main, bundle, *pair(sets, "nowhere"), "--engine", "trt"), "nowhere.npz")
    assert plans == ["closed"]


def test_a_network_by_its_name_gets_plans(
    run: Command,
    bundle: Path,
    sets: Path,
    weights: Path,
    plans: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A bundle of the user's own is left as it is."""
    given = []
    monkeypatch.setattr(
        "odin_bench.models.with_plans",
        lambda found, engine, step: given.append((found.path.name, engine)) or found,
    )
    flags = (*pair(sets, "far"), "--engine", "trt", "--parity", 0)
    assert run(bench.main, bundle, *flags).status == 0
    assert given == []
    assert run(bench.main, "tiny10", "--checkpoint", weights, *flags).status == 0
    ((name, engine),) = given
    assert re.fullmatch(r"tiny10-[0-9a-f]+", name)
    assert engine == "trt"


def test_plans_of_a_cached_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built by the real builder, which needs no GPU, with a progress bar, and only once."""
    pytest.importorskip("tensorrt_rtx", reason="the builder of TensorRT for RTX is not installed")
    shutil.copytree(bundle, "cached")
    before = json.loads(Path("cached/odin.json").read_text())
    said: list[str] = []
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", screen)
        made = with_plans(read_bundle(Path("cached")), "rtx", said.append)
    for record in made.plans:
        assert f"\r{record.file}: " in screen.getvalue()
    assert [record.file for record in made.plans] == ["gradient.rtx.plan", "forward.rtx.plan"]
    found = read_bundle(Path("cached"))
    assert found.plans == made.plans
    after = json.loads(Path("cached/odin.json").read_text())
    assert {**after, "files": None, "plans": None} == {**before, "files": None, "plans": None}
    assert before["files"].items() <= after["files"].items()
    assert with_plans(found, "rtx", said.append) is found
    assert said == 2 * ["look for plans of --engine rtx, build those that are missing"]
