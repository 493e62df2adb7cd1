"""odin-bench as a user runs it: its flags, its table and its JSON file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from commands.runs import COUNT, Command, images_of, pair, refused, results
from odin_bench import cli as bench
from odin_bench import machine
from odin_bench.metrics import Metrics, evaluate, reference_grids
from odin_bench.published import Published
from odin_engines.bundle import Bundle, read_bundle
from odin_engines.cuda_probe import ask_driver
from odin_engines.engine import unavailable
from odin_runtime import Scorer

METRICS = {"fpr95", "detection_error", "auroc", "aupr_in", "aupr_out"}


def judged(scorer: Scorer, ins: np.ndarray, outs: np.ndarray, **tuning: float) -> tuple[Any, Any]:
    """Baseline and ODIN metrics of two arrays of raw images, by the exact definition."""
    first, second = scorer.score(ins, **tuning), scorer.score(outs, **tuning)
    return evaluate(first.baseline, second.baseline), evaluate(first.score, second.score)


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
    environment = written["environment"]
    assert environment["packages"]["numpy"] == np.__version__
    assert environment["processor"] == machine.describe().cpu
    assert environment["gpus"] == [device.name for device in ask_driver().devices]
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


@pytest.mark.parametrize(("flags", "size"), [((), 32), (("--resize", 40), 40)])
def test_images_are_scaled_to_what_the_network_takes(
    run: Command, bundle: Path, sets: Path, flags: tuple[object, ...], size: int
) -> None:
    """28x28 images, of which the network takes none: to its smallest size, or as the user says."""
    arguments = (bundle, "--in-dataset", sets / "small.npz", "--out-dataset", sets / "far.npz")
    outcome = run(bench.main, *arguments, *flags, "--parity", 0, "--json", "out.json")
    assert outcome.status == 0, outcome.err
    assert ("images are scaled to 32x32" in outcome.err) == (not flags)
    ins, outs = (
        np.stack([np.asarray(Image.fromarray(each).resize((size, size), 2)) for each in images])
        for images in (images_of(sets, "small"), images_of(sets, "far"))
    )
    baseline, odin = judged(Scorer.open(bundle), ins, outs)
    assert results()["results"][0]["odin"]["auroc"] == pytest.approx(odin.auroc)
    assert results()["results"][0]["baseline"]["auroc"] == pytest.approx(baseline.auroc)
