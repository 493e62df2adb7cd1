"""What odin-bench refuses, and what it leaves where it is interrupted."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands.runs import COUNT, Command, images_of, pair, refused, results
from odin_bench import cli as bench
from odin_engines.errors import OdinError
from odin_runtime import Scorer

# What is refused


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ("--limit 0", ("--limit", "from 1")),
        ("--limit many", ("--limit", "many")),
        ("--crop -1", ("--crop",)),
        ("--resize 16", ("16 pixels high", "32 to 63")),
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


# What is kept of work that ends early


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
