"""odin-bench --scaling as a user runs it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from commands.runs import Command, refused, results
from odin_bench import cli as bench
from odin_bench import scale, scale_cli
from odin_engines.bundle import Bundle
from odin_engines.engine import images_at_once
from odin_runtime import Scorer

QUICK = ("--scaling", "--images", "12,30,20", "--seconds", 0.01, "--json", "out.json")
ORT = ("--engine", "ort", "--threads", 2)
AT_ONCE = images_at_once("ort", "fp32")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images a call, and short turns."""
    monkeypatch.setattr("odin_bench.timing._TURN_SECONDS", 0.001)
    monkeypatch.setattr("odin_engines.engine._HELD_BYTES", 0)  # the fewest at once
    monkeypatch.setattr(scale, "BLOCK", 8)
    monkeypatch.setattr(scale, "_BATCHES_A_THREAD", 1)


def test_scale(run: Command, bundle: Path) -> None:
    outcome = run(bench.main, bundle, *QUICK, *ORT)
    assert outcome.status == 0, outcome.err
    written = results()
    assert (written["engine"], written["precision"], written["method"]) == ("ort", "fp32", "exact")
    found = written["scale"]
    assert found["threads"] == 2

    images = found["images"]
    assert (images["size"], images["block"]) == ([32, 32], 8)
    assert [(row["asked"], row["images"]) for row in images["rows"]] == [
        (n, n) for n in (12, 20, 30)
    ]
    costs = [row["ms_an_image"] for row in images["rows"]]
    assert images["change"] == pytest.approx(costs[-1] / costs[0] - 1)
    assert images["linear"] == (abs(images["change"]) <= 0.1)
    if Path("/proc/self/status").is_file():
        assert (
            images["growth"]
            == max(r["after"] for r in images["rows"]) - images["rows"][0]["before"]
        )
        assert images["flat"] == (images["growth"] <= 32 << 20)

    pixels = found["pixels"]
    assert [(row["height"], row["width"]) for row in pixels["rows"]] == [
        (32, 32),
        (48, 48),
        (63, 63),
    ]
    for row in pixels["rows"]:
        assert row["images"] == 2 * AT_ONCE
        assert row["ns_a_pixel"] == pytest.approx(1e6 * row["ms_an_image"] / row["height"] ** 2)
    assert pixels["change"] == pixels["rows"][-1]["cost"][0] - 1

    cores = found["cores"]["rows"]
    assert [(row["threads"], row["images"]) for row in cores] == [(1, AT_ONCE), (2, 2 * AT_ONCE)]
    assert cores[0]["speedup"] == [1, 1, 1]
    rates = [row["images_per_second"] for row in cores]
    assert found["cores"]["grows"] == (rates[0] < rates[1])
    for text in (
        "Images of 32x32 random pixels, 8 a call",
        "time: an image of the most takes ",
        f"Sizes of images, {2 * AT_ONCE} a call",
        "a pixel of the largest images takes ",
        "2 threads are ",
        "2 sizes only: three take 3 cores or more",
        "Tiny CNN, weights tiny.pth, engine ort, fp32, exact",
        f"numpy {np.__version__}",
    ):
        assert text in outcome.out


def test_three_numbers_of_threads_are_three_scorers(
    run: Command, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is opened for its number; --streams and --precision hold for all."""
    real, opened = Scorer.open, []

    def open_scorer(*arguments: Any, **options: Any) -> Scorer:
        opened.append((options["threads"], options["streams"], options["precision"]))
        return real(*arguments, **options)

    monkeypatch.setattr(Scorer, "open", open_scorer)
    monkeypatch.setattr(Scorer, "score", lambda scorer, images: time.sleep(1e-6 * len(images)))
    flags = ("--engine", "ort", "--threads", 4, "--streams", 2, "--precision", "fp32")
    outcome = run(bench.main, bundle, *QUICK, *flags)
    assert outcome.status == 0, outcome.err
    assert opened == [(n, 2, "fp32") for n in (4, 1, 2, 4)]
    assert [row["threads"] for row in results()["scale"]["cores"]["rows"]] == [1, 2, 4]
    assert "sizes only" not in outcome.out


def test_pytorch_takes_the_threads(
    run: Command, bundle: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, seen = torch.get_num_threads(), []

    def score(scorer: Scorer, images: np.ndarray) -> None:
        assert scorer.engine == "torch"
        seen.append(torch.get_num_threads())

    monkeypatch.setattr(Scorer, "score", score)
    flags = ("--engine", "torch", "--checkpoint", weights, "--threads", 3)
    outcome = run(bench.main, bundle, *QUICK, *flags)
    assert outcome.status == 0, outcome.err
    assert set(seen) == {1, 2, 3}
    assert seen[0] == 3
    assert torch.get_num_threads() == before


def test_what_there_is_one_of_is_left_out(
    run: Command, make_tiny_bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes of images, cores, numbers of images; and memory of which the system does not tell."""
    real = scale.stream
    monkeypatch.setattr(scale, "stream", lambda *given: real(*given, memory=lambda: None))
    path = make_tiny_bundle(height=(32, 32), width=(32, 32)).path
    flags = ("--engine", "ort", "--threads", 1, "--images", 5)
    outcome = run(bench.main, path, *QUICK, *flags)
    assert outcome.status == 0, outcome.err
    found = results()["scale"]
    assert set(found) == {"threads", "images"}
    known = ("change", "linear", "growth", "flat")
    assert [found["images"][name] for name in known] == [None] * 4
    for text in (
        "time: how it grows takes two numbers of images",
        "memory: this system does not tell",
        "Pixels are left out: tiny takes images of one size, 32x32",
        "Cores are left out: there is one thread to compute on",
    ):
        assert text in outcome.out


def test_an_engine_on_a_gpu_has_no_cores(
    run: Command, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale_cli, "_on_gpu", lambda engine: engine == "ort")
    outcome = run(bench.main, bundle, *QUICK, "--engine", "ort")
    assert outcome.status == 0, outcome.err
    assert "Cores are left out: engine ort computes on a GPU" in outcome.out
    assert set(results()["scale"]) == {"threads", "images", "pixels"}


@pytest.mark.parametrize(("calls", "rows"), [(6, [(12, 12), (20, 8)]), (2, [])])
def test_interrupted(
    run: Command, bundle: Path, monkeypatch: pytest.MonkeyPatch, calls: int, rows: Any
) -> None:
    """What was finished is printed and written, of the last number of images too."""
    real, scored = Scorer.score, []

    def score(scorer: Scorer, images: np.ndarray) -> Any:
        if len(scored) == calls:
            raise KeyboardInterrupt
        scored.append(len(images))
        return real(scorer, images)

    monkeypatch.setattr(Scorer, "score", score)
    outcome = run(bench.main, bundle, *QUICK, *ORT)
    assert outcome.status == 130
    assert "interrupted" in outcome.err
    assert Path("out.json").is_file() == bool(rows)
    if rows:
        found = results()["scale"]
        assert [(row["asked"], row["images"]) for row in found["images"]["rows"]] == rows
        assert found["images"]["change"] is None
        assert set(found) == {"threads", "images"}
        assert "| 8 " in outcome.out
        assert "Tiny CNN" in outcome.out


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ("--scaling --throughput", ("--scaling is a run of its own", "--throughput")),
        ("--profile --scaling", ("--scaling is a run of its own", "--profile")),
        ("--images 5", ("--images goes with --scaling",)),
        ("--throughput --images 5", ("--images goes with --scaling",)),
        ("--scaling --images 0", ("--images", "from 1")),
        ("--scaling --images many", ("--images",)),
        ("--scaling --batch-sizes 4", ("--batch-sizes goes with --throughput",)),
        ("--scaling --size 40", ("--size goes with --throughput",)),
        ("--scaling --end-to-end .", ("--end-to-end goes with --throughput",)),
        ("--scaling --magnitude 0.1", ("--magnitude", "leave it out with --scaling")),
        ("--scaling --limit 7", ("--limit", "leave it out with --scaling")),
        ("--scaling --engine torch", ("weights", "--checkpoint")),
        ("--scaling --engine ort-cuda --streams 2", ("ort-cuda",)),
        ("--scaling --json nowhere/out.json", ("nowhere", "does not exist")),
    ],
)
def test_refusals(run: Command, bundle: Path, flags: str, parts: tuple[str, ...]) -> None:
    outcome = run(bench.main, bundle, *flags.split())
    refused(outcome, *parts)
    assert outcome.out == ""
    assert list(Path.cwd().iterdir()) == []
