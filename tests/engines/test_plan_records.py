"""What a bundle says of its plans: written, read, and refused when something is wrong with it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from odin_engines.bundle import Bundle, read_bundle, write_bundle
from odin_engines.errors import OdinError
from odin_engines.plan_records import Limits, PlanRecord
from odin_engines.spec import Spec

SpecMaker = Callable[..., Spec]
GRAPHS = {"odin.onnx": b"a graph", "gradient.onnx": b"another", "forward.onnx": b"a third"}
PLANS = {"odin.rtx.plan": b"a plan", "gradient.trt.plan": b"another plan"}


def limits(most: int) -> Limits:
    return Limits((1, 3, 32, 32), (2, 3, 32, 32), (most, 3, 32, 32))


RECORDS = (
    PlanRecord(
        file="odin.rtx.plan",
        form="fused",
        engine="rtx",
        version="1.7.1",
        device="",
        compute_capabilities=("8.6", "12.0"),
        precision="fp16",
        profile={"images": limits(64)},
        tf32=False,
        optimization_level=None,
        hardware_compatibility="none",
        graph="odin.onnx",
        graph_sha256="0" * 64,
    ),
    PlanRecord(
        file="gradient.trt.plan",
        form="split",
        engine="trt",
        version="11.4.0",
        device="NVIDIA L4",
        compute_capabilities=("8.9",),
        precision="fp32",
        profile={"images": limits(8), "more": Limits((1,), (2,), (3,))},
        tf32=True,
        optimization_level=0,
        hardware_compatibility="same-cc",
        graph="gradient.onnx",
        graph_sha256="f" * 64,
    ),
)


@pytest.fixture
def bundle(tmp_path: Path, tiny_spec: SpecMaker) -> Bundle:
    return write_bundle(tmp_path / "tiny", tiny_spec(), GRAPHS | PLANS, RECORDS)


def change(bundle: Bundle, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change odin.json."""
    file = bundle.path / "odin.json"
    description = json.loads(file.read_text("utf-8"))
    edit(description)
    file.write_text(json.dumps(description), "utf-8")


def test_what_is_written_is_read(bundle: Bundle) -> None:
    read = read_bundle(bundle.path)
    assert read == bundle
    assert read.plans == RECORDS
    for name, content in PLANS.items():
        assert read.file(name).read_bytes() == content
    first, second = RECORDS
    for field in dataclasses.fields(PlanRecord):  # or reading could swap them unseen
        assert getattr(first, field.name) != getattr(second, field.name)


def test_plans_are_found_by_engine_and_graph(bundle: Bundle) -> None:
    assert bundle.plan("rtx", "odin.onnx") == RECORDS[0]
    assert bundle.plan("trt", "gradient.onnx") == RECORDS[1]
    assert bundle.plan("trt", "odin.onnx") is None
    assert bundle.plan("rtx", "forward.onnx") is None
    assert RECORDS[0].batches == (1, 64)


def test_a_bundle_without_plans_says_nothing_of_them(tmp_path: Path, tiny_spec: SpecMaker) -> None:
    written = write_bundle(tmp_path / "tiny", tiny_spec(), GRAPHS)
    assert "plans" not in json.loads((written.path / "odin.json").read_text("utf-8"))
    assert read_bundle(written.path).plans == ()


def test_a_plan_is_verified_like_any_file(bundle: Bundle) -> None:
    (bundle.path / "odin.rtx.plan").write_bytes(b"A plan")
    with pytest.raises(OdinError, match=r"odin\.rtx\.plan does not match its SHA-256"):
        read_bundle(bundle.path).file("odin.rtx.plan")


def test_what_a_newer_version_adds_is_passed_over(bundle: Bundle) -> None:
    change(bundle, lambda description: description["plans"][0].update(colour="green"))
    assert read_bundle(bundle.path).plans == RECORDS


def set_field(name: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda description: description["plans"][1].update({name: value})


def set_limits(name: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda description: description["plans"][1]["profile"]["images"].update({name: value})


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda d: d.update(plans={}), "plans is not a list"),
        (lambda d: d.update(plans=["odin.rtx.plan"]), "something that is not a plan"),
        (lambda d: d["plans"][0].pop("device"), "a plan does not say device"),
        (lambda d: d["plans"].append(d["plans"][0]), "plans name a file twice"),
        (lambda d: d["files"].pop("gradient.trt.plan"), "'gradient.trt.plan', which is not among"),
        (lambda d: d["files"].pop("gradient.onnx"), "'gradient.onnx', which is not among"),
        (set_field("file", 5), "file is not text"),
        (set_field("version", None), "version is not text"),
        (set_field("graph_sha256", 0), "graph_sha256 is not text"),
        (set_field("form", "whole"), "form is 'whole'"),
        (set_field("engine", ["trt"]), r"engine is \['trt'\]"),
        (set_field("precision", "int8"), "precision is 'int8'"),
        (set_field("hardware_compatibility", "any"), "hardware_compatibility is 'any'"),
        (set_field("optimization_level", 6), "optimization_level is 6"),
        (set_field("optimization_level", True), "optimization_level is True"),
        (set_field("tf32", 0), "tf32 is 0"),
        (set_field("compute_capabilities", "8.9"), "compute_capabilities is not a list of text"),
        (set_field("compute_capabilities", [8.9]), "compute_capabilities is not a list of text"),
        (set_field("profile", []), "profile does not tell the shapes of images"),
        (set_field("profile", {}), "profile does not tell the shapes of images"),
        (set_field("profile", {"images": 4}), "profile has no minimum shape"),
        (set_limits("optimum", None), "profile has no optimum shape"),
        (set_limits("maximum", []), "profile has no maximum shape"),
        (set_limits("maximum", [8, 3, 32, "32"]), "a maximum shape that is not one"),
        (set_limits("minimum", [-1, 3, 32, 32]), "a minimum shape that is not one"),
        (set_limits("minimum", [True, 3, 32, 32]), "a minimum shape that is not one"),
        (set_limits("maximum", [8, 3, 32]), "shapes of several ranks"),
        (set_limits("maximum", [1, 3, 32, 32]), "a smallest shape above its largest"),
    ],
)
def test_descriptions_that_are_refused(bundle: Bundle, edit: Any, problem: str) -> None:
    change(bundle, edit)
    with pytest.raises(OdinError, match=problem) as caught:
        read_bundle(bundle.path)
    assert "export it again" in str(caught.value)
    assert str(bundle.path) in str(caught.value)
