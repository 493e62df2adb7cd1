"""odin-export as a user runs it, and the help of both commands."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from commands.runs import Command, refused
from odin_bench import cli as bench
from odin_engines.bundle import read_bundle
from odin_engines.torch_reference import TorchReference
from odin_export import cli as export
from odin_export import exporter
from odin_export.forward import forward_graph
from odin_export.networks import RELEASE_MEAN, RELEASE_STD
from odin_runtime import Scorer
from odin_runtime.images import normalised

EXPORT_HELP = """
MODEL --checkpoint --output --temperature --magnitude --method --mean --std --precision --input-type
--tunable --engine exact first-order fp32 fp16 bf16 float32 uint8 onnx ort trt rtx
--plans fused split both --minShapes --optShapes --maxShapes --tf32 --builderOptimizationLevel
--computeCapabilities --hardwareCompatibility none ampere+ same-cc --timingCacheFile
--scores --preset --scale --check --verify --input --logits --layout --bgr
"""
BENCH_HELP = """
MODEL-or-BUNDLE --engine --in-dataset --out-dataset --magnitude --temperature --data --crop
--metrics --limit --json --nn --in_dataset --out_dataset --gpu --checkpoint --precision --threads
--parity --resize --doctor torch ort openvino ort-cuda ort-trt trt rtx auto exact reference
CUDA_VISIBLE_DEVICES
"""


@pytest.mark.parametrize(
    ("main", "wanted"), [(export.main, EXPORT_HELP), (bench.main, BENCH_HELP)], ids=["e", "b"]
)
def test_help_tells_every_flag(
    run: Command, main: Callable[[Sequence[str]], int], wanted: str
) -> None:
    outcome = run(main, "--help")
    assert outcome.status == 0
    assert outcome.err == ""
    words = set(re.findall(r"[\w+-]+", outcome.out))  # "trt" is not told by "ort-trt"
    assert [word for word in wanted.split() if word not in words] == []
    assert "examples:" in outcome.out


def test_export(
    run: Command, weights: Path, tiny_network: nn.Module, raw_images: Callable[..., Any]
) -> None:
    outcome = run(export.main, "tiny10", "--checkpoint", weights)
    assert outcome.status == 0, outcome.err
    path = Path("tiny10").absolute()
    assert str(path) in outcome.out
    assert "Tiny CNN" in outcome.out
    assert "tiny.pth" in outcome.out
    assert "odin-bench tiny10" in outcome.out
    bundle = read_bundle(path)
    assert set(bundle.files) == {"odin.onnx", "gradient.onnx", "forward.onnx"}
    spec = bundle.spec
    assert (spec.model, spec.classes, spec.in_dataset) == ("tiny10", 10, "cifar10")
    assert (spec.temperature, spec.magnitude, spec.method) == (1000, 0.0014, "exact")
    assert (spec.mean, spec.std) == (RELEASE_MEAN, RELEASE_STD)
    assert (spec.input_type, spec.precision, spec.tunable) == ("float32", "fp32", False)
    assert spec.activation_bytes > 4 * 3 * 32 * 32
    raw = raw_images(8)
    expected = TorchReference(tiny_network, spec).run({"images": normalised(raw, spec)})
    found = Scorer.open(path).score(raw)
    np.testing.assert_allclose(found.score, expected["score"], rtol=0, atol=4e-8)
    np.testing.assert_array_equal(found.label, expected["label"])


def test_export_with_every_flag(run: Command, weights: Path) -> None:
    arguments = "--output out/deep --temperature 500 --magnitude 0.002 --method first-order "
    arguments += "--mean 0.5,0.4,0.3 --std 0.3,0.2,0.1 --precision bf16 --input-type uint8 "
    arguments += "--tunable --engine onnx"
    outcome = run(export.main, "tiny10", "--checkpoint", weights, *arguments.split())
    assert outcome.status == 0, outcome.err
    spec = read_bundle(Path("out/deep")).spec
    assert (spec.temperature, spec.magnitude, spec.method) == (500, 0.002, "first-order")
    assert (spec.mean, spec.std) == ((0.5, 0.4, 0.3), (0.3, 0.2, 0.1))
    assert (spec.precision, spec.input_type, spec.tunable) == ("bf16", "uint8", True)


def test_export_for_onnx_runtime(run: Command, weights: Path) -> None:
    outcome = run(export.main, "tiny10", "--checkpoint", weights, "--engine", "ort")
    assert outcome.status == 0, outcome.err
    assert re.search(r"odin\.ort\.onnx \(\d\.\d MB\): the same in the form", outcome.out)
    assert "odin-bench tiny10" in outcome.out
    made = read_bundle(Path("tiny10")).files
    assert set(made) == {"odin.onnx", "odin.ort.onnx", "gradient.onnx", "forward.onnx"}
    assert run(export.main, "tiny10", "--checkpoint", weights, "--output", "plain").status == 0
    outcome = run(export.main, "./plain", "--engine", "ort")
    assert outcome.status == 0, outcome.err
    assert read_bundle(Path("plain")).files == made
    changed = ("tiny10", "--checkpoint", weights, "--precision", "bf16", "--engine", "ort")
    line = refused(run(export.main, *changed))
    assert "--engine ort rewrites graphs in fp32, and these are in bf16" in line


def test_export_of_what_onnx_runtime_takes_as_it_is(run: Command) -> None:
    """A network without ReLU."""
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), *pool, nn.Linear(4, 5)).eval()
    onnx.save(forward_graph(network, 63), "net.onnx")
    outcome = run(export.main, "net.onnx", "--preset", "unit", "--engine", "ort")
    assert outcome.status == 0, outcome.err
    assert "odin.onnx has nothing that engine ort would be faster with" in outcome.out
    assert set(read_bundle(Path("net")).files) == {"odin.onnx", "gradient.onnx", "forward.onnx"}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_export_writes_the_precision(run: Command, weights: Path, precision: str) -> None:
    outcome = run(export.main, "tiny10", "--checkpoint", weights, "--precision", precision)
    assert outcome.status == 0, outcome.err
    spec = read_bundle(Path("tiny10")).spec
    assert (spec.precision, spec.graph_precision) == (precision, precision)
    assert f"the network is in {precision}" in outcome.out
    assert (f"seed of the backward pass x {spec.seed_scale:g}" in outcome.out) == (
        precision == "fp16"
    )


def test_export_replaces_a_bundle(run: Command, weights: Path, bundle: Path) -> None:
    shutil.copytree(bundle, "mine")
    arguments = ("tiny10", "--checkpoint", weights, "--output", "mine", "--magnitude", "0.5")
    assert run(export.main, *arguments).status == 0
    assert read_bundle(Path("mine")).spec.magnitude == 0.5


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("resnet50", ("resnet50", "densenet10", "wideresnet100")),
        ("densenet100", ("densenet100", "without weights", "--checkpoint")),
        ("tiny10 --checkpoint none.pth", ("none.pth",)),
        ("model.onnx", ("model.onnx", "no such file")),
        ("tiny10 --engine trt", ("trt", "TensorRT")),
        ("tiny10 --engine rtx --timingCacheFile a", ("--timingCacheFile is for", "trt")),
        ("tiny10 --engine cuda", ("--engine", "cuda", "onnx")),
        ("tiny10 --temperature 0", ("--temperature", "0")),
        ("tiny10 --temperature -1", ("--temperature", "-1")),
        ("tiny10 --temperature nan", ("--temperature", "nan")),
        ("tiny10 --temperature inf", ("--temperature", "inf")),
        ("tiny10 --temperature 1e-60", ("--temperature", "1e-60")),
        ("tiny10 --temperature 1e60", ("--temperature", "1e+60")),
        ("tiny10 --temperature hot", ("--temperature", "hot")),
        ("tiny10 --magnitude -0.1", ("--magnitude", "-0.1")),
        ("tiny10 --magnitude nan", ("--magnitude", "nan")),
        ("tiny10 --magnitude 1e60", ("--magnitude", "1e+60")),
        ("tiny10 --magnitude some", ("--magnitude", "some")),
        ("tiny10 --method fast", ("--method", "fast", "first-order")),
        ("tiny10 --precision int8", ("--precision", "int8")),
        ("tiny10 --input-type float64", ("--input-type", "float64", "uint8")),
        ("tiny10 --mean 0.5", ("--mean", "--std", "both")),
        ("tiny10 --mean 0.5,0.4 --std 0.5,0.4", ("--mean", "2 values", "3 channels")),
        ("tiny10 --mean a,b,c", ("--mean", "three numbers")),
        ("tiny10 --mean 0.5,0.5,nan", ("--mean",)),
        ("tiny10 --mean 125,123,113 --std 0.2,0.2,0.2", ("--mean", "divide them by 255")),
        ("tiny10 --mean 0.5,0.5,0.5 --std 63,62,66", ("--std", "divide them by 255")),
        ("tiny10 --mean 0.5,0.5,0.5 --std 0.2,0.2,0", ("--std", "above 0")),
        ("tiny10 --mean 0.5,0.5,0.5 --std 0.2,0.2,-0.2", ("--std", "above 0")),
        ("tiny10 --mean 0,0,0,0 --std 1,1,1,1", ("--mean", "4 values", "3 channels")),
        ("tiny10 --mean 0,0,0 --std 1", ("--mean", "--std", "same number")),
        ("tiny10 --preset imagenet --scale 255", ("--preset", "--scale")),
        ("tiny10 --preset mnist", ("--preset", "imagenet")),
        ("tiny10 --scale 0", ("--scale", "0", "255")),
        ("tiny10 --verify 0", ("--verify", "0", "from 1")),
        ("tiny10 --layout NHWC", ("--layout", ".onnx")),
        ("tiny10 --bgr", ("--bgr", ".onnx")),
        ("model.onnx --checkpoint a.pth", ("--checkpoint", ".onnx")),
        ("tiny10 --speed 5", ("--speed",)),
        ("", ("MODEL",)),
    ],
)
def test_export_refuses(run: Command, weights: Path, arguments: str, parts: tuple[str]) -> None:
    given = arguments.split()
    if "--checkpoint" not in given and given[:1] == ["tiny10"]:
        given += ["--checkpoint", str(weights)]
    outcome = run(export.main, *given)
    refused(outcome, *parts)
    assert outcome.out == ""
    if outcome.status == 1:
        assert len(outcome.err.splitlines()) == 1
    assert list(Path.cwd().iterdir()) == []


def test_export_suggests_only_what_it_takes(run: Command) -> None:
    line = refused(run(export.main, "densenet10", "--engine", "trt"))
    for engine in ("openvino", "ort"):
        assert f"--engine {engine}" not in line


def test_export_of_weights_of_another_network(run: Command, build_tiny: Any) -> None:
    torch.save(build_tiny(width=5).state_dict(), "other.pth")
    line = refused(run(export.main, "tiny10", "--checkpoint", "other.pth"), "other.pth", "tiny10")
    assert "conv1.weight" in line
    assert [path.name for path in Path.cwd().iterdir()] == ["other.pth"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_export_leaves_other_things_alone(run: Command, weights: Path, kind: str) -> None:
    if kind == "folder":
        Path("photos").mkdir()
    file = Path("photos/cat.png") if kind == "folder" else Path("photos")
    file.write_text("mine")
    outcome = run(export.main, "tiny10", "--checkpoint", weights, "--output", "photos")
    refused(outcome, "photos", "not a bundle", "--output")
    assert file.read_text() == "mine"
    assert [path.name for path in Path.cwd().iterdir()] == ["photos"]


def test_export_interrupted(run: Command, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporter, "forward_graph", interrupt)
    outcome = run(export.main, "tiny10", "--checkpoint", weights)
    assert outcome.status == 130
    assert outcome.err.splitlines()[-1].startswith("odin-export: interrupted")
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("package", ["tqdm", "onnxruntime"])
def test_export_without_a_package(
    run: Command, weights: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    outcome = run(export.main, "tiny10", "--checkpoint", weights)
    refused(outcome, f"{package} is not installed", "pip install 'odin-ood[cpu]'")
