"""Which pair a sweep chooses, by which images, and what odin-bench makes of it."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from odin_bench import sweep_choice, sweep_tables
from odin_bench.datasets import Dataset
from odin_bench.flags import parser
from odin_bench.metrics import Metrics, evaluate
from odin_bench.sweep import Passes, Sweep, Swept
from odin_bench.sweep_choice import ByGain, Pair, choice_split, choose_by_gain, choose_by_release
from odin_bench.sweep_cli import sweep
from odin_engines.bundle import Bundle
from odin_engines.errors import OdinError
from odin_runtime import Scorer

COUNT = 40  # images in each set of the runs: half to choose by, half to judge
MAGNITUDES, TEMPERATURES = (0.0, 0.01, 0.03), (1.0, 10.0)


def swept(score: Any, unmoved: Any = None) -> Swept:
    scores = np.asarray(score, np.float32)
    first = scores[:, 0] if unmoved is None else np.asarray(unmoved, np.float32)
    return Swept(scores, first, scores[0, 0], Passes())


def judged(fpr95: float, auroc: float = 0.5) -> Metrics:
    return Metrics(fpr95, 0.5, auroc, 0.5, 0.5)


def test_the_release_takes_the_least_fpr() -> None:
    grid = [[judged(0.4), judged(0.2), judged(0.3)], [judged(0.5), judged(0.6), judged(0.25)]]
    assert choose_by_release(grid, MAGNITUDES, TEMPERATURES) == Pair(1.0, 0.01)


@pytest.mark.parametrize(
    ("aurocs", "chosen"),
    [
        ([[0.7, 0.8, 0.8], [0.6, 0.7, 0.9]], Pair(10.0, 0.03)),  # the largest AUROC
        ([[0.7, 0.8, 0.9], [0.6, 0.9, 0.7]], Pair(10.0, 0.01)),  # then the smallest magnitude
        ([[0.7, 0.9, 0.7], [0.6, 0.9, 0.7]], Pair(1.0, 0.01)),  # then the smallest temperature
    ],
)
def test_of_pairs_with_the_same_fpr(aurocs: list[list[float]], chosen: Pair) -> None:
    grid = [[judged(0.2, auroc) for auroc in row] for row in aurocs]
    assert choose_by_release(grid, MAGNITUDES, TEMPERATURES) == chosen


def test_pairs_without_metrics_are_not_chosen() -> None:
    assert choose_by_release([[None, judged(0.9)]], (0.0, 0.1), (5.0,)) == Pair(5.0, 0.1)
    with pytest.raises(OdinError, match=r"no pair .* finite scores; sweep smaller magnitudes"):
        choose_by_release([[None, None]], (0.0, 0.1), (5.0,))


def test_a_grid_is_judged_pair_by_pair() -> None:
    ins = swept([[[0.9, 0.8], [0.9, 0.8]], [[0.1, 0.2], [0.3, np.inf]]])
    outs = swept([[[0.1, 0.2], [0.85, 0.2]], [[0.5, 0.6], [0.1, 0.1]]])
    grid = sweep_choice.judge_grid(ins, outs)
    assert [[m and (m.fpr95, m.auroc) for m in row] for row in grid] == [
        [(0.0, 1.0), (0.5, 0.75)],
        [(1.0, 0.0), None],
    ]


def test_in_distribution_images_take_the_largest_mean_gain() -> None:
    # Means 0.5, 0.7, 0.6 at the first temperature; 0.3, 0.2, 0.4 at the second.
    scores = [[[0.4, 0.6], [0.9, 0.5], [0.7, 0.5]], [[0.3, 0.3], [0.1, 0.3], [0.2, 0.6]]]
    first, second = choose_by_gain(swept(scores), MAGNITUDES, TEMPERATURES)
    assert (first.pair, first.at_end) == (Pair(1.0, 0.01), False)
    assert (second.pair, second.at_end) == (Pair(10.0, 0.03), True)
    assert first.gain == pytest.approx(0.2)
    assert second.gain == pytest.approx(0.1)


def test_the_gain_is_over_the_images_as_they_are() -> None:
    found = swept([[[0.5, 0.7], [0.4, 0.4]]], unmoved=[[0.2, 0.2]])
    (chosen,) = choose_by_gain(found, (0.1, 0.2), (1.0,))
    assert chosen == ByGain(Pair(1.0, 0.1), pytest.approx(0.4), at_end=False)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_no_magnitude_is_chosen_whose_scores_are_not_finite(bad: float) -> None:
    scores = [[[0.5, 0.5], [0.6, bad], [0.3, 0.6]], [[bad, 0.1], [bad, 0.1], [bad, 0.1]]]
    (chosen,) = choose_by_gain(swept(scores), MAGNITUDES, TEMPERATURES)
    assert chosen.pair == Pair(1.0, MAGNITUDES[0])
    assert np.isfinite(chosen.gain)
    assert "chooses no magnitude" in sweep_tables.gains([], "cifar10", 2)


def test_one_magnitude_is_not_at_the_end_of_anything() -> None:
    (chosen,) = choose_by_gain(swept([[[0.5]]]), (0.1,), (1.0,))
    assert not chosen.at_end


def test_the_temperature_is_the_bundles_else_the_largest() -> None:
    assert sweep_choice.own_temperature((1.0, 10.0, 100.0), 10.0) == 10.0
    assert sweep_choice.own_temperature((1.0, 10.0, 100.0), 1000.0) == 100.0


def dataset(name: str, count: int) -> Dataset:
    return Dataset(name, np.zeros((count, 1, 1, 3), np.uint8), None, name)


def test_choice_and_test_images_of_long_sets_are_those_of_the_release() -> None:
    split = choice_split(dataset("in", 10_000), dataset("out", 8_925), limit=9_000)
    assert (len(split.in_images), len(split.out_images)) == (1_000, 1_000)
    assert (len(split.test.in_set), len(split.test.out_set)) == (7_925, 7_925)
    assert split.test.in_start == 1_000
    fewer = choice_split(dataset("in", 10_000), dataset("out", 8_925), limit=300)
    assert (len(fewer.in_images), len(fewer.test.in_set), fewer.test.in_start) == (300, 300, 1_000)


def test_of_a_short_set_the_first_half_chooses() -> None:
    split = choice_split(dataset("in", 10_000), dataset("out", 1_200), limit=9_000)
    assert (len(split.in_images), len(split.out_images)) == (1_000, 600)
    assert (len(split.test.in_set), split.test.in_start) == (9_000, 1_000)
    assert len(split.test.out_set) == 600
    assert "out: 600 images to choose by, the following 600 scored" in split.test.note
    swapped = choice_split(dataset("in", 101), dataset("out", 3_000), limit=20)
    assert (len(swapped.in_images), len(swapped.test.in_set)) == (20, 20)
    assert swapped.test.in_start == 20


def test_validation_and_test_share_no_image() -> None:
    numbered = np.arange(3 * 90, dtype=np.uint8).reshape(90, 1, 1, 3)
    side = Dataset("in", numbered, None, "in")
    split = choice_split(side, dataset("out", 2_500), limit=9_000)
    assert not {*split.in_images.images[:, 0, 0, 0]} & {*split.test.in_set.images[:, 0, 0, 0]}
    with pytest.raises(OdinError, match="has one image"):
        choice_split(side, dataset("out", 1), limit=9)


@pytest.fixture(scope="module")
def images(raw_images: Callable[..., np.ndarray]) -> dict[str, np.ndarray]:
    noise = np.random.default_rng(3).integers(0, 256, (COUNT, 32, 32, 3), np.uint8)
    return {"in": raw_images(COUNT, seed=1), "near": raw_images(COUNT, seed=2), "far": noise}


@pytest.fixture
def flags(images: dict[str, np.ndarray], tmp_path: Path) -> Callable[..., argparse.Namespace]:
    """A function: names of sets, flags by name -> what odin-bench reads of them."""
    for name, pixels in images.items():
        np.savez(tmp_path / f"{name}.npz", x=pixels)

    def make(*out_sets: str, **changes: object) -> argparse.Namespace:
        given = ["--in-dataset", f"{tmp_path}/in.npz", "--json", f"{tmp_path}/out.json"]
        given += ["--out-dataset", *(f"{tmp_path}/{name}.npz" for name in out_sets)]
        parsed = parser().parse_args([*given, "--engine", "ort"])
        own = {"magnitude": "0,0.01,0.03", "temperature": "1,10"}
        for name, value in {**own, **changes}.items():
            setattr(parsed, name, value)
        return parsed

    return make


@pytest.fixture(scope="module")
def tunable(make_tiny_bundle: Callable[..., Bundle]) -> Bundle:
    return make_tiny_bundle(tunable=True)


def written(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out.json").read_text("utf-8"))


def numbers(content: Any) -> list[float]:
    if isinstance(content, dict | list):
        inner = content.values() if isinstance(content, dict) else content
        return [number for each in inner for number in numbers(each)]
    return [content] if isinstance(content, float) else []


def test_what_is_printed_and_written(
    tunable: Bundle,
    images: dict[str, np.ndarray],
    flags: Callable[..., argparse.Namespace],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert sweep(flags("near", "far"), tunable) == 0
    printed = capsys.readouterr().out
    assert "| Magnitude |" in printed
    assert printed.count("validation images of both [*]") == 2
    assert "times as long as that many forward passes" in printed

    found = written(tmp_path)["sweep"]
    assert all(map(math.isfinite, numbers(found)))
    assert (found["magnitudes"], found["temperatures"]) == ([*MAGNITUDES], [*TEMPERATURES])
    # One forward and two backward passes, and one for each of two magnitudes and temperatures.
    half = COUNT // 2
    assert found["passes"]["naive"] == 3 * half * 3 * 6
    assert found["passes"]["distinct"] <= 3 * half * 7
    assert [each["out_dataset"] for each in found["results"]] == ["near", "far"]
    scorer = Scorer.open(tunable, "ort")
    for result in found["results"]:
        ins, outs = images["in"], images[result["out_dataset"]]
        for row, temperature in zip(result["fpr95"], TEMPERATURES, strict=True):
            for fpr95, magnitude in zip(row, MAGNITUDES, strict=True):
                pair = {"temperature": temperature, "magnitude": magnitude}
                choosing = [scorer.score(side[:half], **pair).score for side in (ins, outs)]
                assert fpr95 == pytest.approx(evaluate(*choosing).fpr95, abs=1.01 / half)
        release = result["choices"]["release"]
        place = TEMPERATURES.index(release["temperature"]), MAGNITUDES.index(release["magnitude"])
        assert result["fpr95"][place[0]][place[1]] == min(map(min, result["fpr95"]))
        for choice in ("default", "release", "in_distribution"):
            taken = result["choices"][choice]
            pair = {name: taken[name] for name in ("temperature", "magnitude")}
            tested = [scorer.score(side[half:], **pair).score for side in (ins, outs)]
            auroc = evaluate(*tested).auroc
            assert taken["metrics"]["auroc"] == pytest.approx(auroc, abs=2 / half**2)
        assert result["choices"]["default"]["temperature"] == tunable.spec.temperature
    own = found["in_distribution_choice"]
    taken = found["results"][0]["choices"]["in_distribution"]
    assert own["temperature"] == taken["temperature"] == 10.0
    assert own["magnitude"] == taken["magnitude"]
    assert [each["temperature"] for each in own["by_temperature"]] == [*TEMPERATURES]


def test_what_is_finished_outlives_an_interruption(
    tunable: Bundle,
    images: dict[str, np.ndarray],
    flags: Callable[..., argparse.Namespace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = Sweep.score

    def interrupted(self: Sweep, pixels: np.ndarray, *rest: Any) -> Swept:
        if np.array_equal(pixels[0], images["far"][0]):
            raise KeyboardInterrupt
        return real(self, pixels, *rest)

    monkeypatch.setattr(Sweep, "score", interrupted)
    assert sweep(flags("near", "far"), tunable) == 130
    assert "1 of 2 sets were finished" in capsys.readouterr().err
    assert [each["out_dataset"] for each in written(tmp_path)["sweep"]["results"]] == ["near"]


def test_first_order_leaves_the_choice_to_both_sets(
    make_tiny_bundle: Callable[..., Bundle],
    flags: Callable[..., argparse.Namespace],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = make_tiny_bundle(tunable=True, method="first-order")
    assert sweep(flags("far"), bundle) == 0
    assert "in-distribution images alone choose none" in capsys.readouterr().out
    found = written(tmp_path)["sweep"]
    assert found["in_distribution_choice"] is None
    assert [*found["results"][0]["choices"]] == ["baseline", "default", "release"]
    assert found["passes"]["distinct"] == COUNT * 3  # halves of two sets


def test_a_bundle_that_is_not_tunable_sweeps_magnitudes(
    tiny_bundle: Bundle, flags: Callable[..., argparse.Namespace], tmp_path: Path
) -> None:
    with pytest.raises(OdinError, match=r"odin-export --tunable"):
        sweep(flags("far"), tiny_bundle)
    assert sweep(flags("far", temperature=None), tiny_bundle) == 0
    assert written(tmp_path)["sweep"]["temperatures"] == [tiny_bundle.spec.temperature]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"magnitude": "release"}, "--magnitude release is one for each set"),
        ({"magnitude": "0:1"}, "--magnitude: grid '0:1'"),
        ({"temperature": "1,x"}, "--temperature: grid '1,x': 'x' is no number"),
        ({"metrics": "reference"}, "--metrics reference has thresholds for temperature 1000"),
        ({"engine": "torch"}, "--engine torch does not sweep"),
    ],
)
def test_flags_that_do_not_fit_a_sweep(
    tunable: Bundle,
    flags: Callable[..., argparse.Namespace],
    changes: dict[str, object],
    words: str,
) -> None:
    with pytest.raises(OdinError, match=words):
        sweep(flags("far", **changes), tunable)
