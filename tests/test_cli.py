"""odin-export and odin-bench as a user runs them, on a network that takes a second to export."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from odin_bench import cli as bench
from odin_bench.metrics import Metrics, evaluate, reference_grids
from odin_bench.published import Published
from odin_engines.bundle import Bundle, read_bundle
from odin_engines.engine import unavailable
from odin_engines.errors import OdinError
from odin_engines.torch_reference import TorchReference
from odin_export import cli as export
from odin_export import exporter
from odin_export.networks import NETWORKS, RELEASE_MEAN, RELEASE_STD, NetworkSpec
from odin_runtime import Scorer
from odin_runtime.scorer import normalised

METRICS = {"fpr95", "detection_error", "auroc", "aupr_in", "aupr_out"}
COUNT = 40  # images in each set


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    status: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Command:
    """A function: main, arguments -> what it printed and returned."""

    def call(main: Callable[[Sequence[str]], int], *arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            status = int(stop.code or 0)
        return Outcome(status, *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def network(tiny_network: nn.Module) -> NetworkSpec:
    return NetworkSpec("tiny10", "Tiny CNN", 10, "cifar10", type(tiny_network), 63)


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: NetworkSpec) -> None:
    """Keep every test in its own folder, off the user's sets and caches."""
    monkeypatch.setitem(NETWORKS, "tiny10", network)
    monkeypatch.delenv("ODIN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, tiny_network: nn.Module) -> Path:
    """The tiny network's checkpoint."""
    file = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(tiny_network.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def bundle(
    tmp_path_factory: pytest.TempPathFactory, weights: Path, network: NetworkSpec
) -> Iterator[Path]:
    """A tunable bundle of the tiny network, as odin-export writes it; tests must not change it."""
    path = tmp_path_factory.mktemp("exported") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "tiny10", network)
        arguments = ["tiny10", "--checkpoint", str(weights), "--output", str(path), "--tunable"]
        assert export.main(arguments) == 0
    yield path
    read_bundle(path)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, raw_images: Callable[..., Any]) -> Path:
    """A folder with sets: in, with labels; near, far and more; large and small pictures."""
    folder = tmp_path_factory.mktemp("sets")
    labels = np.arange(COUNT) % 10
    np.savez(folder / "in.npz", x=raw_images(COUNT, seed=1), y=labels)
    np.savez(folder / "near.npz", x=raw_images(COUNT, seed=2))
    noise = np.random.default_rng(3).integers(0, 256, (COUNT, 32, 32, 3), np.uint8)
    np.savez(folder / "far.npz", x=noise)
    np.savez(folder / "more.npz", x=255 - noise)
    np.savez(folder / "large.npz", x=raw_images(COUNT, 72, 72, seed=4))
    np.savez(folder / "small.npz", x=raw_images(COUNT, 28, 28, seed=5))
    return folder


def refused(outcome: Outcome, *parts: str) -> str:
    """Check that the command refused with a message of these parts; return it."""
    assert outcome.status in (1, 2)
    assert "Traceback" not in outcome.err
    found = re.findall(r"^odin-(?:export|bench): (.*)", outcome.err, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, outcome.err
    for part in parts:
        assert part in found[0]
    return found[0]


# odin-export

EXPORT_HELP = """
MODEL --checkpoint --output --temperature --magnitude --method --mean --std --precision --input-type
--tunable --engine exact first-order fp32 fp16 bf16 float32 uint8 onnx trt rtx
"""
BENCH_HELP = """
MODEL-or-BUNDLE --engine --in-dataset --out-dataset --magnitude --temperature --data --crop
--metrics --limit --json --nn --out_dataset --gpu --checkpoint --precision --threads --parity
torch ort openvino trt rtx auto exact reference
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
    assert [word for word in wanted.split() if word not in outcome.out] == []
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


# odin-bench


def pair(sets: Path, *out_sets: str) -> list[str]:
    """Flags that name in.npz and these sets."""
    names = [str(sets / f"{name}.npz") for name in out_sets]
    return ["--in-dataset", str(sets / "in.npz"), "--out-dataset", *names]


def results(file: str = "out.json") -> dict[str, Any]:
    return json.loads(Path(file).read_text("utf-8"))


def judged(scorer: Scorer, ins: np.ndarray, outs: np.ndarray, **tuning: float) -> tuple[Any, Any]:
    """Baseline and ODIN metrics of two arrays of raw images, by the exact definition."""
    first, second = scorer.score(ins, **tuning), scorer.score(outs, **tuning)
    return evaluate(first.baseline, second.baseline), evaluate(first.score, second.score)


def images_of(sets: Path, name: str) -> np.ndarray:
    return np.load(sets / f"{name}.npz")["x"]


def test_bench(run: Command, bundle: Path, sets: Path, weights: Path) -> None:
    arguments = (bundle, *pair(sets, "near", "far"), "--checkpoint", weights, "--json", "out.json")
    outcome = run(bench.main, *arguments)
    assert outcome.status == 0, outcome.err
    assert outcome.out.count("Neural network architecture:") == 2
    assert outcome.out.count("Out-of-distribution dataset:") == 2
    assert "Tiny CNN" in outcome.out
    assert f"of {COUNT}\n" in outcome.out  # the accuracy
    assert "parity of openvino (fp32) with PyTorch on 80 images of in and near" in outcome.out

    written = results()
    assert set(written) >= {
        *("schema", "model", "engine", "precision", "method", "results", "parity"),
        *("throughput", "environment"),
    }
    assert (written["schema"], written["model"], written["method"]) == (1, "tiny10", "exact")
    assert (written["engine"], written["precision"]) == ("openvino", "fp32")
    assert isinstance(written["throughput"], list)
    assert written["environment"]["packages"]["numpy"] == np.__version__
    assert set(written["parity"]) >= {
        *("max_abs_score_difference", "sign_agreement", "label_agreement"),
        *("auroc_difference", "fpr95_difference"),
    }
    assert written["parity"]["max_abs_score_difference"] < 1e-6
    assert written["parity"]["sign_agreement"] > 0.9998
    assert written["parity"]["label_agreement"] == 1
    assert [result["out_dataset"] for result in written["results"]] == ["near", "far"]
    scorer = Scorer.open(bundle)
    for result in written["results"]:
        assert result["in_dataset"] == "in"
        assert (result["n_in"], result["n_out"]) == (COUNT, COUNT)
        assert (result["magnitude"], result["temperature"]) == (0.0014, 1000)
        outs = images_of(sets, result["out_dataset"])
        baseline, odin = judged(scorer, images_of(sets, "in"), outs)
        assert set(result["baseline"]) == set(result["odin"]) == METRICS
        assert result["baseline"] == pytest.approx(vars(baseline), abs=1e-9)
        assert result["odin"] == pytest.approx(vars(odin), abs=1e-9)
    assert written["results"][0]["odin"] != written["results"][1]["odin"]


def test_bench_as_the_release_spells_it(run: Command, bundle: Path, sets: Path) -> None:
    flags = f"--in_dataset {sets}/in.npz --out_dataset {sets}/far.npz --magnitude 0.003"
    flags += " --temperature 700 --gpu 0 --json out.json"
    outcome = run(bench.main, "--nn", bundle, *flags.split())
    assert outcome.status == 0, outcome.err
    assert "--gpu 0 changes nothing" in outcome.err
    (result,) = results()["results"]
    assert (result["magnitude"], result["temperature"]) == (0.003, 700)
    ins, outs = images_of(sets, "in"), images_of(sets, "far")
    _, odin = judged(Scorer.open(bundle), ins, outs, temperature=700.0, magnitude=0.003)
    assert result["odin"] == pytest.approx(vars(odin), abs=1e-9)


@pytest.mark.parametrize("engine", ["torch", "ort", "openvino"])
def test_bench_in_each_engine(
    run: Command, bundle: Path, sets: Path, weights: Path, engine: str
) -> None:
    arguments = (bundle, *pair(sets, "far"), "--checkpoint", weights, "--threads", 1)
    outcome = run(bench.main, *arguments, "--engine", engine, "--json", "out.json")
    assert outcome.status == 0, outcome.err
    written = results()
    assert written["engine"] == engine
    assert (written["parity"] is None) == (engine == "torch")
    baseline, odin = judged(Scorer.open(bundle), images_of(sets, "in"), images_of(sets, "far"))
    (result,) = written["results"]
    few = 5 / COUNT**2  # pairs of images whose scores rounding may swap
    assert result["odin"]["auroc"] == pytest.approx(odin.auroc, abs=few)
    assert result["baseline"]["auroc"] == pytest.approx(baseline.auroc, abs=few)


@pytest.mark.parametrize("engine", ["trt", "rtx"])
def test_bench_in_an_engine_that_is_not_here(
    run: Command, bundle: Path, sets: Path, engine: str
) -> None:
    outcome = run(bench.main, bundle, *pair(sets, "far"), "--engine", engine)
    refused(outcome, f"engine {engine} is not available", "libcuda.so.1", "openvino and ort run")


def test_bench_by_name_exports_once(
    run: Command, sets: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments = ("tiny10", "--checkpoint", weights, *pair(sets, "far"), "--parity", 0)
    first = run(bench.main, *arguments, "--json", "out.json")
    assert first.status == 0, first.err
    assert "tiny10: trace network" in first.err
    bundles = list((tmp_path / "cache").rglob("odin.json"))
    assert len(bundles) == 1
    before = results()
    second = run(bench.main, *arguments, "--magnitude", 0.0014, "--json", "out.json")
    assert second.status == 0, second.err
    assert "tiny10: trace network" not in second.err
    assert results()["results"] == before["results"]
    bundles[0].with_name("odin.onnx").write_bytes(b"cut")
    third = run(bench.main, *arguments)
    assert third.status == 0, third.err
    assert third.out == first.out
    read_bundle(bundles[0].parent)
    assert list(Path.cwd().iterdir()) == [Path.cwd() / "out.json"]


@pytest.mark.parametrize(
    ("engine", "precision", "written"), [("ort", "fp16", "fp16"), ("openvino", "bf16", "fp32")]
)
def test_bench_by_name_in_half_precision(
    run: Command,
    sets: Path,
    weights: Path,
    tmp_path: Path,
    engine: str,
    precision: str,
    written: str,
) -> None:
    """OpenVINO makes bfloat16 of a float32 bundle; else the precision is in the graphs."""
    if (why := unavailable(engine, precision)) is not None:
        pytest.skip(why)
    arguments = ("tiny10", "--checkpoint", weights, *pair(sets, "far"), "--json", "out.json")
    outcome = run(bench.main, *arguments, "--engine", engine, "--precision", precision)
    assert outcome.status == 0, outcome.err
    (bundle,) = (tmp_path / "cache").rglob("odin.json")
    assert read_bundle(bundle.parent).spec.graph_precision == written
    found = results()
    assert (found["engine"], found["precision"]) == (engine, precision)
    assert 0.5 < found["parity"]["sign_agreement"] <= 1


def test_bench_limit(run: Command, bundle: Path, sets: Path) -> None:
    arguments = (bundle, *pair(sets, "far"), "--limit", 25, "--parity", 0, "--json", "out.json")
    outcome = run(bench.main, *arguments)
    assert outcome.status == 0, outcome.err
    written = results()
    (result,) = written["results"]
    assert (result["n_in"], result["n_out"]) == (25, 25)
    ins, outs = images_of(sets, "in")[:25], images_of(sets, "far")[:25]
    _, odin = judged(Scorer.open(bundle), ins, outs)
    assert result["odin"] == pytest.approx(vars(odin), abs=1e-9)
    assert written["parity"] is None
    assert "first 25" in outcome.out


def test_bench_crop(run: Command, bundle: Path, sets: Path) -> None:
    arguments = (bundle, *pair(sets, "large", "far"), "--parity", 0)
    refused(run(bench.main, *arguments), "72 pixels high")
    outcome = run(bench.main, *arguments, "--crop", 32, "--json", "out.json")
    assert outcome.status == 0, outcome.err
    large, far = results()["results"]
    inner = images_of(sets, "large")[:, 20:52, 20:52]
    scorer = Scorer.open(bundle)
    _, odin = judged(scorer, images_of(sets, "in"), inner)
    assert large["odin"] == pytest.approx(vars(odin), abs=1e-9)
    _, odin = judged(scorer, images_of(sets, "in"), images_of(sets, "far"))
    assert far["odin"] == pytest.approx(vars(odin), abs=1e-9)


def test_bench_crops_the_in_distribution_set_too(run: Command, bundle: Path, sets: Path) -> None:
    """It is helped as "the inner pixels of larger images", with no word of one side only."""
    flags = f"--in-dataset {sets}/large.npz --out-dataset {sets}/far.npz --parity 0 --crop 32"
    outcome = run(bench.main, bundle, *flags.split(), "--json", "out.json")
    assert outcome.status == 0, outcome.err
    inner = images_of(sets, "large")[:, 20:52, 20:52]
    _, odin = judged(Scorer.open(bundle), inner, images_of(sets, "far"))
    assert results()["results"][0]["odin"] == pytest.approx(vars(odin), abs=1e-9)


def test_bench_reference_metrics(run: Command, bundle: Path, sets: Path) -> None:
    arguments = (bundle, *pair(sets, "far"), "--metrics", "reference", "--parity", 0)
    outcome = run(bench.main, *arguments, "--json", "out.json")
    assert outcome.status == 0, outcome.err
    scorer = Scorer.open(bundle)
    first, second = (scorer.score(images_of(sets, name)) for name in ("in", "far"))
    grids = reference_grids(10, 1000)
    baseline = evaluate(first.baseline, second.baseline, "reference", grids[0])
    odin = evaluate(first.score, second.score, "reference", grids[1])
    (result,) = results()["results"]
    assert result["baseline"] == pytest.approx(vars(baseline), abs=1e-9)
    assert result["odin"] == pytest.approx(vars(odin), abs=1e-9)
    assert odin.fpr95 != evaluate(first.score, second.score).fpr95
    outcome = run(bench.main, *arguments, "--temperature", 10)
    refused(outcome, "temperature 1000 only", "--metrics exact")


def test_bench_a_folder_of_images(run: Command, bundle: Path, sets: Path) -> None:
    Path("photos").mkdir()
    for index, image in enumerate(images_of(sets, "far")):
        Image.fromarray(image).save(f"photos/{index:03}.png")
    flags = f"--in-dataset {sets}/in.npz --out-dataset photos {sets}/far.npz --parity 0"
    outcome = run(bench.main, bundle, *flags.split(), "--json", "out.json")
    assert outcome.status == 0, outcome.err
    photos, far = results()["results"]
    assert photos["out_dataset"] == "photos"
    assert photos["odin"] == far["odin"]


def test_bench_takes_what_is_at_hand(run: Command, bundle: Path, sets: Path) -> None:
    Path("data").mkdir()
    shutil.copy(sets / "in.npz", "data/cifar10_test.npz")
    shutil.copy(sets / "near.npz", "data/SVHN.npz")
    flags = "--data data --limit 30 --parity 0 --magnitude release --json out.json"
    outcome = run(bench.main, bundle, *flags.split())
    assert outcome.status == 0, outcome.err
    names = [result["out_dataset"] for result in results()["results"]]
    assert names == ["SVHN", "Uniform", "Gaussian"]
    assert "CIFAR-10" in outcome.out


def test_bench_a_magnitude_for_each_set(
    run: Command, bundle: Path, sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    magnitudes = {"near": 0.0, "far": 0.05}

    def known(network: str, name: str) -> Published | None:
        assert network == "tiny10"
        nothing = Metrics(0, 0, 0, 0, 0)
        return Published(magnitudes[name], nothing, nothing) if name in magnitudes else None

    monkeypatch.setattr("odin_bench.published.published", known)
    flags = ("--magnitude", "release", "--parity", 0, "--json", "out.json")
    outcome = run(bench.main, bundle, *pair(sets, "near", "far", "more"), *flags)
    assert outcome.status == 0, outcome.err
    found = results()["results"]
    assert [result["magnitude"] for result in found] == [0.0, 0.05, 0.0014]
    scorer = Scorer.open(bundle)
    for result in found:
        ins, outs = images_of(sets, "in"), images_of(sets, result["out_dataset"])
        _, odin = judged(scorer, ins, outs, magnitude=result["magnitude"])
        assert result["odin"] == pytest.approx(vars(odin), abs=1e-9)


def test_bench_sets_of_different_lengths(
    run: Command, bundle: Path, sets: Path, raw_images: Callable[..., Any]
) -> None:
    """Both sides end with the shorter set; what is known of the other side is used again."""
    raw = raw_images(2200, seed=8)
    for name, images in (("in", raw), ("short", 255 - raw[:2050]), ("long", raw[:, ::-1])):
        np.savez(f"{name}.npz", x=images)
    flags = "--in-dataset in.npz --out-dataset short.npz long.npz --parity 0 --json out.json"
    outcome = run(bench.main, bundle, *flags.split())
    assert outcome.status == 0, outcome.err
    short, long = results()["results"]
    assert (short["n_in"], short["n_out"]) == (1050, 1050)
    assert (long["n_in"], long["n_out"]) == (1200, 1200)
    scorer = Scorer.open(bundle)
    _, odin = judged(scorer, raw[1000:2050], 255 - raw[1000:2050])
    assert short["odin"] == pytest.approx(vars(odin), abs=1e-9)
    _, odin = judged(scorer, raw[1000:], raw[1000:, ::-1])
    assert long["odin"] == pytest.approx(vars(odin), abs=1e-9)


def test_bench_parity_needs_the_weights(run: Command, bundle: Path, sets: Path) -> None:
    outcome = run(bench.main, bundle, *pair(sets, "far"), "--json", "out.json")
    assert outcome.status == 0, outcome.err
    assert "parity: not checked" in outcome.err
    assert "--checkpoint" in outcome.err
    assert results()["parity"] is None


def test_bench_torch_needs_the_weights(run: Command, bundle: Path, sets: Path) -> None:
    outcome = run(bench.main, bundle, *pair(sets, "far"), "--engine", "torch")
    refused(outcome, str(bundle), "--checkpoint")


def test_bench_of_a_bundle_that_is_not_tunable(
    run: Command, sets: Path, make_tiny_bundle: Callable[..., Bundle]
) -> None:
    path = make_tiny_bundle(method="first-order", in_dataset="cifar10").path
    flags = pair(sets, "far")
    outcome = run(bench.main, path, *flags, "--json", "out.json")
    assert outcome.status == 0, outcome.err
    assert "first-order, an approximation" in outcome.out
    assert "parity: not checked" in outcome.err  # no network is known by its name
    written = results()
    assert (written["method"], written["model"]) == ("first-order", "tiny")
    assert written["results"][0]["magnitude"] == 0.01
    refused(run(bench.main, path, *flags, "--magnitude", 0.5), "--magnitude 0.5", "--tunable")
    refused(run(bench.main, path, *flags, "--method", "exact"), "--method", "odin-export")


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ("--limit 0", ("--limit", "from 1")),
        ("--limit many", ("--limit", "many")),
        ("--crop -1", ("--crop",)),
        ("--crop 16", ("16 pixels high", "32 to 63")),
        ("--threads 0", ("--threads",)),
        ("--engine cuda", ("--engine", "cuda", "openvino")),
        ("--metrics mine", ("--metrics", "mine")),
        ("--parity some", ("--parity",)),
        ("--parity -3", ("--parity",)),
        ("--magnitude large", ("--magnitude", "large", "release")),
        ("--magnitude -1", ("magnitude is -1",)),
        ("--magnitude nan", ("magnitude is nan",)),
        ("--temperature 0", ("temperature is 0",)),
        ("--temperature hot", ("--temperature", "hot")),
        ("--data nowhere --out-dataset SVHN", ("nowhere", "not a folder")),
        ("--precision fp16", ("fp16",)),
        ("--mean 0.5,0.5,0.5 --std 0.2,0.2,0.2", ("--mean", "odin-export")),
        ("--mean 0.5,0.5,0.5", ("--mean", "--std", "both")),
        ("--method first-order", ("--method", "odin-export")),
        ("--nn densenet10", ("--nn", "densenet10")),
        ("--json nowhere/out.json", ("nowhere", "does not exist")),
        ("--json .", ("--json", "folder")),
        ("--checkpoint none.pth --engine torch", ("none.pth",)),
        ("--throughput-of-light", ("--throughput-of-light",)),
    ],
)
def test_bench_refuses(
    run: Command, bundle: Path, sets: Path, flags: str, parts: tuple[str]
) -> None:
    outcome = run(bench.main, bundle, *pair(sets, "far"), *flags.split())
    refused(outcome, *parts)
    assert outcome.out == ""
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("resnet50", ("resnet50", "densenet10")),
        (".", (".", "bundle")),
        ("densenet100", ("densenet100", "--checkpoint")),
    ],
)
def test_bench_of_no_model(run: Command, sets: Path, model: str, parts: tuple[str]) -> None:
    refused(run(bench.main, model, *pair(sets, "far")), *parts)


def test_bench_of_a_damaged_bundle(run: Command, bundle: Path, sets: Path) -> None:
    shutil.copytree(bundle, "mine")
    Path("mine/odin.onnx").write_bytes(b"cut")
    refused(run(bench.main, "mine", *pair(sets, "far")), "mine/odin.onnx", "export it again")


@pytest.mark.parametrize("flag", ["--in-dataset", "--out-dataset"])
@pytest.mark.parametrize("name", ["Imagenett", "nowhere.npz", "SVHN"])
def test_bench_of_a_set_that_is_not_there(
    run: Command, bundle: Path, sets: Path, flag: str, name: str
) -> None:
    others = {"--in-dataset": sets / "in.npz", "--out-dataset": sets / "far.npz"}
    arguments = [part for pair in {**others, flag: name}.items() for part in pair]
    outcome = run(bench.main, bundle, *arguments)
    refused(outcome, name)
    assert outcome.out == ""


@pytest.mark.parametrize(("name", "parts"), [("small", ("28 pixels",)), ("in", ("same set",))])
def test_bench_of_a_set_that_does_not_fit(
    run: Command, bundle: Path, sets: Path, name: str, parts: tuple[str]
) -> None:
    refused(run(bench.main, bundle, *pair(sets, name)), *parts)


def test_bench_of_labels_that_the_network_does_not_have(
    run: Command, bundle: Path, sets: Path
) -> None:
    np.savez("mine.npz", x=images_of(sets, "in"), y=np.arange(COUNT))
    outcome = run(bench.main, bundle, "--in-dataset", "mine.npz", "--out-dataset", sets / "far.npz")
    refused(outcome, "labels up to 39", "10 classes")


def test_bench_checks_the_json_file_before_any_work(
    run: Command, bundle: Path, sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr(bench, "_bundle", work)
    arguments = (bundle, *pair(sets, "far"), "--json")
    refused(run(bench.main, *arguments, "no/where.json"), "no/where.json", "does not exist")
    with pytest.raises(AssertionError, match="the work began"):
        run(bench.main, *arguments, "out.json")


def test_bench_a_later_mistake_loses_nothing(run: Command, bundle: Path, sets: Path) -> None:
    """Either it is found before the work, or what was finished is kept."""
    arguments = (bundle, *pair(sets, "far", "nowhere"), "--parity", 0, "--json", "out.json")
    outcome = run(bench.main, *arguments)
    refused(outcome, "nowhere.npz")
    if "Neural network architecture:" in outcome.out:
        assert "Baseline/ODIN in percent" in outcome.out
        assert len(results()["results"]) == 1


def interrupt_in_call(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let Ctrl-C come in the middle of this call of the scorer."""
    score = Scorer.score
    calls = []

    def interrupted(self: Scorer, images: np.ndarray, **keywords: Any) -> Any:
        calls.append(len(images))
        if len(calls) == count:
            score(self, images[:5], **keywords)
            raise KeyboardInterrupt
        return score(self, images, **keywords)

    monkeypatch.setattr(Scorer, "score", interrupted)


def test_bench_interrupted_in_the_second_set(
    run: Command, bundle: Path, sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_in_call(monkeypatch, 3)  # in, near, far
    arguments = (bundle, *pair(sets, "near", "far", "more"), "--parity", 0, "--json", "out.json")
    outcome = run(bench.main, *arguments)
    assert outcome.status == 130
    assert "interrupted" in outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out.count("Neural network architecture:") == 1
    assert "Baseline/ODIN in percent" in outcome.out
    assert "| near " in outcome.out
    assert "| far " not in outcome.out
    written = results()
    assert [result["out_dataset"] for result in written["results"]] == ["near"]
    assert written["parity"] is None


def test_bench_interrupted_in_the_parity_check(
    run: Command, bundle: Path, sets: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_in_call(monkeypatch, 4)
    arguments = (bundle, *pair(sets, "near", "far"), "--checkpoint", weights, "--json", "out.json")
    outcome = run(bench.main, *arguments)
    assert outcome.status == 130
    assert [result["out_dataset"] for result in results()["results"]] == ["near"]


def test_bench_interrupted_before_anything_is_done(
    run: Command, bundle: Path, sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_in_call(monkeypatch, 1)
    outcome = run(bench.main, bundle, *pair(sets, "near"), "--parity", 0, "--json", "out.json")
    assert outcome.status == 130
    assert outcome.out == ""
    assert not Path("out.json").exists()


def test_bench_writes_json_whole_or_not_at_all(
    run: Command, bundle: Path, sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("out.json").write_text("older results")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("odin_bench.report.json.dumps", interrupt)
    arguments = (bundle, *pair(sets, "near"), "--parity", 0, "--json", "out.json")
    assert run(bench.main, *arguments).status == 130
    assert Path("out.json").read_text() == "older results"
    assert [path.name for path in Path.cwd().iterdir()] == ["out.json"]


def test_bench_without_a_package(
    run: Command, bundle: Path, sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    outcome = run(bench.main, bundle, *pair(sets, "far"))
    refused(outcome, "tqdm is not installed", "pip install 'odin-ood[cpu]'")


def test_an_error_of_ours_is_not_taken_for_the_users(
    run: Command, bundle: Path, sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug keeps its stack trace; only OdinError becomes a line."""
    assert not issubclass(ValueError, OdinError)

    def broken(*_: object, **__: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(Scorer, "score", broken)
    with pytest.raises(ValueError, match="a bug"):
        run(bench.main, bundle, *pair(sets, "far"))
