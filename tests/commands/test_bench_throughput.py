"""odin-bench --throughput, --profile and --end-to-end as a user runs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from commands.runs import COUNT, Command, refused, results
from odin_bench import cli as bench
from odin_bench import throughput, throughput_cli
from odin_bench.machine import Machine, describe
from odin_bench.throughput import EAGER
from odin_engines.bundle import Bundle
from odin_engines.engine import unavailable
from odin_engines.errors import OdinError
from odin_runtime import Scorer

QUICK = ("--seconds", 0.01, "--threads", 1, "--streams", 1)
KEYS = {
    *("engine", "precision", "method", "batch", "images_per_second", "latency_ms", "passes"),
    "speedup_vs_torch",
}
HAS_BF16 = unavailable("openvino", "bf16") is None


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else the machine is doing; turns are short, and parts of a batch are the least."""
    monkeypatch.setattr("odin_bench.timing._TURN_SECONDS", 0.001)
    monkeypatch.setattr("odin_engines.engine._HELD_BYTES", 0)
    monkeypatch.setattr(throughput_cli.os, "getloadavg", lambda: (0.1, 0.1, 0.1))


# Those that cut a batch of five; in bfloat16 eight are a part.
IN_PARTS = [("openvino", "fp32", ""), ("ort", "fp32", "")]


def test_throughput(run: Command, weights: Path) -> None:
    """By its name, a network is timed in both methods, in all CPU engines and in PyTorch."""
    threads = torch.get_num_threads()
    flags = ("--checkpoint", weights, "--batch-sizes", "2,5", "--json", "out.json")
    outcome = run(bench.main, "tiny10", "--throughput", *flags, *QUICK)
    assert outcome.status == 0, outcome.err
    assert torch.get_num_threads() == threads
    assert "is busy" not in outcome.err
    written = results()
    assert (written["schema"], written["results"], written["parity"]) == (1, [], None)
    assert (written["engine"], written["precision"], written["method"]) == ("auto", None, None)
    assert written["image_size"] == [32, 32]
    assert set(written["noise"]) == {"2", "5"}
    targets = [("openvino", "fp32", ""), ("openvino", "bf16", ""), ("ort", "fp32", "")]
    targets = [each for each in targets if HAS_BF16 or each[1] == "fp32"]
    targets += [("torch", *arrangement) for arrangement in EAGER]
    rows = written["throughput"]
    assert [(r["batch"], r["engine"], r["precision"], r["layout"], r["method"]) for r in rows] == [
        (batch, *target, method)
        for batch in (2, 5)
        for target in targets
        for method in ("forward", "forward, whole", "exact", "first-order")
        if method != "forward, whole" or (batch == 5 and target in IN_PARTS)
    ]
    for row in rows:
        assert set(row) >= KEYS
        latency = row["latency_ms"]
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"]
        speed = row["batch"] / latency["p50"] * 1000
        assert row["images_per_second"] == pytest.approx(speed)
        assert row["rounds"] >= 7
        ratios = [row[name] for name in ("passes", "speedup_vs_torch", "speedup_vs_eager")]
        if row["method"].startswith("forward"):
            assert ratios == [None] * 3
        else:
            assert min(ratios) > 0
            low, high = row["passes_interval"]
            assert low <= row["passes"] <= high
    for text in ("batch 2, ", "batch 5, ", "| torch channels_last ", "Tiny CNN, weights tiny.pth"):
        assert text in outcome.out
    assert "threads: 1; streams: 1" in outcome.out
    assert f"numpy {np.__version__}" in outcome.out
    assert describe().cpu in outcome.out


def test_flags_leave_out_the_others(run: Command, bundle: Path) -> None:
    """A bundle has its own method only; its tunable graphs get temperature and magnitude."""
    flags = ("--engine", "ort", "--batch-sizes", 1, "--json", "out.json")
    outcome = run(bench.main, bundle, "--throughput", *flags, *QUICK)
    assert outcome.status == 0, outcome.err
    rows = results()["throughput"]
    assert [(row["engine"], row["method"]) for row in rows] == [
        ("ort", "forward"),
        ("ort", "exact"),
    ]
    assert [row["speedup_vs_torch"] for row in rows] == [None, None]
    assert (results()["engine"], results()["method"]) == ("ort", "exact")


def test_a_network_that_pytorch_does_not_know(run: Command, bundle: Path) -> None:
    """Its weights are not in the bundle: what is missing is told, and the engines are timed."""
    flags = ("--precision", "fp32", "--batch-sizes", 1, "--json", "out.json")
    outcome = run(bench.main, bundle, "--throughput", *flags, *QUICK)
    assert outcome.status == 0, outcome.err
    assert "PyTorch is left out: " in outcome.err
    assert "--checkpoint" in outcome.err
    assert {row["engine"] for row in results()["throughput"]} == {"openvino", "ort"}


def test_first_order_is_compared_with_exact_pytorch(
    run: Command, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what cannot be compiled is left out."""

    def refuse(*_: Any) -> None:
        raise OdinError("torch.compile fails here: no compiler")

    monkeypatch.setattr(throughput_cli, "compiled_programs", refuse)
    flags = ("--checkpoint", weights, "--method", "first-order", "--precision", "fp32")
    flags += ("--batch-sizes", 1, "--torch-compile", "--json", "out.json", "--size", 40)
    outcome = run(bench.main, "tiny10", "--throughput", *flags, *QUICK)
    assert outcome.status == 0, outcome.err
    assert "compiled PyTorch is left out: torch.compile fails here: no compiler" in outcome.err
    rows = results()["throughput"]
    assert {row["method"] for row in rows if row["engine"] == "ort"} == {"forward", "first-order"}
    torch_rows = [row for row in rows if row["engine"] == "torch"]
    assert {row["method"] for row in torch_rows} == {"forward", "exact", "first-order"}
    assert all(row["speedup_vs_torch"] for row in rows if row["method"] != "forward")
    assert results()["image_size"] == [40, 40]
    assert results()["method"] == "first-order"


def test_interrupted(run: Command, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was finished is printed and written."""
    real, calls = throughput.measure, []

    def interrupted(*arguments: Any, **named: Any) -> Any:
        calls.append(named)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    monkeypatch.setattr(throughput, "measure", interrupted)
    flags = ("--engine", "ort", "--batch-sizes", "3,1", "--json", "out.json")
    outcome = run(bench.main, bundle, "--throughput", *flags, *QUICK)
    assert outcome.status == 130
    assert "interrupted" in outcome.err
    assert {row["batch"] for row in results()["throughput"]} == {3}
    assert "batch 3, " in outcome.out
    assert "threads: 1" in outcome.out


def test_what_makes_times_uneven_is_told(
    run: Command, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput_cli.os, "getloadavg", lambda: (3.2, 1.0, 1.0))
    monkeypatch.setattr(throughput, "NOISY", -1.0)
    flags = ("--engine", "ort", "--batch-sizes", 2, "--json", "out.json")
    outcome = run(bench.main, bundle, "--throughput", *flags, *QUICK)
    assert outcome.status == 0, outcome.err
    assert "the machine is busy: 3.2 processes were at work" in outcome.err
    assert "the machine was not quiet, batch 2: half of the rounds of ort fp32 " in outcome.err
    assert "the machine was not quiet, batch 2: from first to last rounds " in outcome.err
    assert len(results()["noise"]["2"]) == 2


def test_memory(
    run: Command, make_tiny_bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch size that does not fit is left out before anything is timed."""
    path = make_tiny_bundle(activation_bytes=1 << 30).path
    full = Machine(**{**vars(describe()), "free_memory": 9 << 30})
    monkeypatch.setattr(throughput_cli.machine, "describe", lambda: full)
    flags = ("--throughput", "--engine", "ort", *QUICK)
    # Forward pass and ODIN hold up to two images on each core.
    outcome = run(bench.main, path, *flags, "--batch-sizes", "2,900000")
    assert outcome.status == 0, outcome.err
    assert "batch size 900000 is left out: it takes about " in outcome.err
    assert "and 9.0 GiB are free" in outcome.err
    assert "batch 2, " in outcome.out
    assert "batch 900000" not in outcome.out
    refused(run(bench.main, path, *flags, "--batch-sizes", 900000), "fits in memory", "--size")


# --opening


def test_opening(run: Command, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("odin_bench.opening._RUNS", 1)
    flags = ("--opening", "--engine", "ort", "--threads", 1, "--json", "out.json")
    outcome = run(bench.main, bundle, *flags)
    assert outcome.status == 0, outcome.err
    (row,) = results()["opening"]
    assert (row["engine"], row["precision"], row["cache"]) == ("ort", "fp32", "none")
    assert "graphs: ort odin.onnx" in outcome.out
    assert 0 < row["later"] < row["start"] + row["opening"] + row["first"]
    assert "From the start of a process to its first score" in outcome.out
    assert "Tiny CNN" in outcome.out


# --profile


@pytest.mark.parametrize("engine", ["openvino", "ort"])
def test_profile(run: Command, bundle: Path, engine: str) -> None:
    flags = ("--engine", engine, "--precision", "fp32", "--batch-sizes", "6,2")
    outcome = run(bench.main, bundle, "--profile", *flags, "--threads", 1, "--json", "out.json")
    assert outcome.status == 0, outcome.err
    found = results()["profile"]
    assert [(each["engine"], each["precision"], each["method"]) for each in found] == [
        (engine, "fp32", "forward"),
        (engine, "fp32", "exact"),
    ]
    convolution = {"openvino": "Convolution", "ort": "Conv"}[engine]
    counts = []
    for each in found:
        assert f"{engine} fp32 {each['method']}: {each['images']} images a run" in outcome.out
        assert 1 < each["images"] <= 6
        times = [op["milliseconds"] for op in each["ops"]]
        assert times == sorted(times, reverse=True)
        assert each["milliseconds"] == pytest.approx(sum(times))
        assert min(op["count"] for op in each["ops"]) >= 1
        counts.append(sum(op["count"] for op in each["ops"] if op["op"] == convolution))
    # Three in the network; its gradient has as many, and then it is run again.
    assert counts == [3, 9]
    assert results()["throughput"] == []


# --end-to-end


def test_end_to_end(run: Command, bundle: Path, sets: Path) -> None:
    path = sets / "small.npz"
    flags = ("--end-to-end", path, "--engine", "ort", "--json", "out.json")
    outcome = run(bench.main, bundle, "--throughput", *flags)
    assert outcome.status == 0, outcome.err
    found = results()["end_to_end"]
    assert found["images"] == COUNT
    steps = [found[name] for name in ("read", "prepare", "score")]
    assert min(steps) > 0
    assert found["images_per_second"] == pytest.approx(COUNT / sum(steps))
    assert found["images_per_second_scoring"] == pytest.approx(COUNT / found["score"])
    names = ("reading and decoding", "preprocessing", "scoring")
    assert found["bottleneck"] == names[int(np.argmax(steps))]
    assert f"the bottleneck is {found['bottleneck']}" in outcome.out
    assert f"{COUNT} images, one step after the other" in outcome.out


def test_end_to_end_interrupted(
    run: Command, bundle: Path, sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("odin_bench.end_to_end.CHUNK", 16)
    real, scored = Scorer.score, []

    def score(scorer: Scorer, images: np.ndarray, **tuning: Any) -> Any:
        scored.append(len(images))
        if len(scored) == 3:  # the first chunk is scored twice
            raise KeyboardInterrupt
        return real(scorer, images, **tuning)

    monkeypatch.setattr(Scorer, "score", score)
    flags = ("--end-to-end", sets / "far.npz", "--engine", "ort", "--json", "out.json")
    outcome = run(bench.main, bundle, "--throughput", *flags)
    assert outcome.status == 130
    assert results()["end_to_end"]["images"] == 16
    assert "16 images, one step after the other" in outcome.out


# What is refused


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ("--throughput --batch-sizes 1,0", ("--batch-sizes", "from 1")),
        ("--throughput --batch-sizes many", ("--batch-sizes", "as 1,8,64")),
        ("--throughput --batch-sizes 1,", ("--batch-sizes",)),
        ("--throughput --seconds 0", ("--seconds", "above 0")),
        ("--throughput --seconds nan", ("--seconds", "nan")),
        ("--throughput --size 16", ("--size 16", "32 to 63 pixels high")),
        ("--throughput --magnitude 0.1", ("--magnitude", "leave it out with --throughput")),
        ("--profile --out-dataset SVHN", ("--out-dataset", "leave it out with --profile")),
        ("--torch-compile", ("--torch-compile goes with --throughput",)),
        ("--profile --torch-compile", ("--torch-compile goes with --throughput",)),
        ("--batch-sizes 4", ("--batch-sizes goes with --throughput or --profile",)),
        ("--seconds 3", ("--seconds goes with --throughput",)),
        ("--end-to-end photos", ("--end-to-end goes with --throughput",)),
        ("--throughput --end-to-end nowhere", ("nowhere does not exist", "folder of images")),
        ("--throughput --end-to-end .", ("holds no images", ".png")),
        ("--throughput --end-to-end . --seconds 2", ("--seconds changes nothing",)),
        ("--opening --engine torch", ("--opening is for engines that open a bundle",)),
        ("--opening --limit 3", ("--limit", "leave it out with --opening")),
        ("--opening --scaling", ("--scaling is a run of its own; leave out --opening",)),
        ("--profile --engine torch", ("--profile is for engines openvino and ort", "torch")),
        ("--throughput --engine torch --streams 2", ("--streams is for engines openvino",)),
        ("--throughput --engine ort --torch-compile", ("--torch-compile is for PyTorch", "ort")),
        ("--throughput --engine torch", ("weights", "--checkpoint")),
        ("--throughput --engine ort --precision fp16", ("no engine to time", "fp32", "fp16")),
        ("--throughput --method first-order", ("--method", "exported with exact")),
        ("--throughput --json nowhere/out.json", ("nowhere", "does not exist")),
    ],
)
def test_refusals(run: Command, bundle: Path, flags: str, parts: tuple[str, ...]) -> None:
    outcome = run(bench.main, bundle, *flags.split())
    refused(outcome, *parts)
    assert outcome.out == ""
    assert list(Path.cwd().iterdir()) == []


def test_engine_torch_has_two_precisions(run: Command, bundle: Path, weights: Path) -> None:
    flags = ("--throughput", "--engine", "torch", "--checkpoint", weights)
    outcome = run(bench.main, bundle, *flags, "--precision", "fp16")
    refused(outcome, "PyTorch is timed in fp32 and bf16, not in fp16")
