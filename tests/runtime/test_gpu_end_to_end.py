"""The whole pipeline with the compiler's own PTX for kernels; and opening a bundle's plans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivers.double_library import IMAGE, Double
from drivers.fixtures import Seen
from drivers.kernel_backends import run_ptx
from drivers.test_memory import error_of
from odin_engines import engine as engines
from odin_engines.bundle import Bundle, read_bundle, write_bundle
from odin_engines.errors import OdinError
from odin_runtime import Scorer, gpu_scorer
from odin_runtime.driver import open_driver
from odin_runtime.gpu_forms import Device
from odin_runtime.gpu_fused import Fused
from odin_runtime.gpu_scorer import choose_form
from odin_runtime.gpu_split import Split
from ptx.compiled import ptx_text
from runtime.plan_double import (
    MOST,
    FakePlan,
    Machine,
    Opened,
    as_lists,
    bundle_of,
    example_images,
    fake_records,
)
from runtime.test_gpu_pipeline import agree, reference

Scenario = Callable[..., Seen]
pytestmark = pytest.mark.usefixtures("pipelines")
COUNT = 2


class Ptx:
    """The interpreter in the kernels' place."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.launches: Callable[[], int] = lambda: 0

    def take(self, taken: Any) -> None:
        self.launches = run_ptx(taken, self._text)


def on_the_interpreter(double: Double, name: str) -> list[Any]:
    text = double.files["ptx"].read_text("utf-8")
    images = example_images()
    found = []
    for kind, which in (("exact", "raw"), ("first", "normalised")):
        ptx = Ptx(text)
        with Opened(double, name, kind, "split", graphs=False, kernels=ptx.take) as pipeline:
            results = pipeline.score(images[which][:COUNT], magnitudes=[0.01, 0.03])
            found.append([as_lists(results), ptx.launches()])
    return found


@pytest.fixture(scope="module")
def ptx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels as nvcc's PTX, or the test is skipped."""
    file = tmp_path_factory.mktemp("ptx") / "kernels.ptx"
    file.write_text(ptx_text(), "utf-8")
    return file


def test_the_compilers_ptx_gives_the_same_scores(
    run_in_double: Callable[..., Seen],
    ptx_file: Path,
    gpu_bundle: Any,
    gpu_images: dict[str, np.ndarray],
) -> None:
    seen = run_in_double(on_the_interpreter, "cuda-core", files={"ptx": ptx_file})
    kinds = (("tunable", "raw"), ("tunable-first", "normalised"))
    # normalise, score, perturb and a score a magnitude; score, total and a score a magnitude, then
    # one for NaN and one a row.
    launches = [1 + 1 + 1 + 2, 1 + 1 + 2 + 1 + 3]
    for (kind, which), (found, count), wanted in zip(kinds, seen.result, launches, strict=True):
        images = gpu_images[which][:COUNT]
        rows = [reference(gpu_bundle(kind), images, magnitude=m) for m in (0.01, 0.03)]
        agree(found, rows[0] | {"score": np.concatenate([row["score"] for row in rows])})
        assert count == wanted
    assert seen.errors == seen.leaks == seen.faults == []


# Opening


def with_plans(bundle: Bundle, folder: Path, *forms: str) -> Bundle:
    """The bundle with files that stand for plans of the forms."""
    contents = {name: bundle.file(name).read_bytes() for name in bundle.files}
    plans, records = fake_records(contents, forms)
    return write_bundle(folder / "planned", bundle.spec, contents | plans, records)


@pytest.mark.parametrize(
    ("kind", "forms", "wanted"),
    [
        ("exact", ["fused", "split"], "fused"),
        ("exact", ["split"], "split"),
        ("exact", [], "fused"),
        ("tunable", ["fused", "split"], "split"),
        ("tunable", ["fused"], "fused"),
        ("scores", ["split"], "fused"),
    ],
)
def test_the_form_that_is_opened(
    gpu_bundle: Any, tmp_path: Path, kind: str, forms: list[str], wanted: str
) -> None:
    bundle = with_plans(gpu_bundle(kind), tmp_path, *forms)
    assert choose_form(bundle, "trt") == wanted
    assert choose_form(bundle, "trt", "fused") == "fused"


def test_forms_that_there_are_not(gpu_bundle: Any) -> None:
    with pytest.raises(OdinError, match=r"split plans do not give .* \(energy, entropy\); open"):
        choose_form(gpu_bundle("scores"), "trt", "split")
    with pytest.raises(OdinError, match="no form 'other' of plans; choose from auto, fused, split"):
        choose_form(gpu_bundle("exact"), "trt", "other")  # type: ignore[arg-type]


def opened_by_the_scorer(double: Double, name: str) -> list[Any]:
    """Scorer.open with everything but TensorRT itself."""
    images, bundle = example_images()["normalised"], read_bundle(double.files["bundle"])
    with open_driver(name) as driver:  # the plans' double needs a driver that outlives the scorer
        machine = Machine(double, driver)
        engines.unavailable = lambda *_: None  # type: ignore[assignment]
        gpu_scorer.fat_binary = lambda: IMAGE  # type: ignore[attr-defined]
        from odin_engines import tensorrt_engine

        def open_plan(bundle: Bundle, engine: str, graph: str, device: int) -> FakePlan:
            assert (engine, device) == ("trt", 0)
            return FakePlan(machine, bundle.path / graph, (1, MOST))

        tensorrt_engine.open_plan = open_plan  # type: ignore[assignment]
        found = []
        for options in ({}, {"form": "split", "graphs": False}, {"batch_size": 3}):
            with Scorer.open(bundle, "trt", driver=name, **options) as scorer:
                scores = scorer.score(images)
                try:
                    scorer.check_setting(None, 0.5)
                    refused = ""
                except OdinError as error:
                    refused = str(error)
                form = scorer.session.form
                found.append([scores.score.tolist(), scorer.batch_size, form, refused[:24]])

        def broken(*_: Any) -> FakePlan:
            raise OdinError("of the plan")

        tensorrt_engine.open_plan = broken  # type: ignore[assignment]
        text = error_of(lambda: Scorer.open(bundle, "trt", driver=name))
        machine.close()
    return [found, text]


def test_scorer_open(
    scenario: Scenario, gpu_bundle: Any, gpu_images: dict[str, np.ndarray], tmp_path: Path
) -> None:
    bundle = with_plans(gpu_bundle("exact"), tmp_path, "fused", "split")
    seen = scenario(opened_by_the_scorer, files={"bundle": bundle.path})
    found, text = seen.result
    expected = reference(gpu_bundle("exact"), gpu_images["normalised"])["score"][0]
    refused = "the plans have magnitude"
    assert [each[1:] for each in found] == [
        [4, "fused", refused],
        [4, "split", ""],  # any magnitude
        [3, "fused", refused],
    ]
    for score, *_ in found:
        np.testing.assert_allclose(score, expected, rtol=1e-5)
    assert text == "of the plan"
    assert seen.errors == seen.leaks == seen.faults == []


def refusals(device: Device, machine: Machine, bundle: Bundle) -> list[str]:
    plan: Any = FakePlan(machine, bundle.path / "forward.onnx", (1, 4))
    other: Any = FakePlan(machine, bundle.path / "gradient.onnx", (5, 8))
    both = {"gradient.onnx": other, "forward.onnx": plan}
    return [error_of(lambda: Fused(device, plan)), error_of(lambda: Split(device, both))]


def plans_that_do_not_fit(double: Double, name: str) -> list[str]:
    bundle = bundle_of("exact")
    with open_driver(name) as driver:
        machine = Machine(double, driver)
        device: Any = Device(driver, None, None, bundle.spec)  # type: ignore[arg-type]
        with driver.current():
            texts = refusals(device, machine, bundle)
        machine.close()
    return texts


def test_plans_of_something_else(scenario: Scenario) -> None:
    fused, split = scenario(plans_that_do_not_fit).result
    assert "forward.onnx has logits where score, baseline, logits, label is wanted; exp" in fused
    assert "take no images in common: one from 5x3x32x32, the other up to 4x3x40x40; build" in split
