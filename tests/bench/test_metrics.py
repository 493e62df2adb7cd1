"""Metrics against golden values, against brute force, and in their symmetries."""

from __future__ import annotations

import dataclasses
import os
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odin_bench import metrics
from odin_bench.metrics import Metrics, evaluate, reference_grids
from odin_engines.errors import OdinError

GOLDEN_FILE = "reference_scores_wideresnet10_LSUN.npz"

# What the ODIN release prints for these scores, in percent with two decimals.
GOLDEN_REFERENCE = {
    "base": Metrics(35.27, 10.83, 94.42, 95.03, 93.04),
    "our": Metrics(22.00, 9.79, 95.83, 95.80, 95.44),
}

# The exact protocol on the same scores. FPR and detection error are whole numbers of 9,000ths.
GOLDEN_EXACT = {
    "base": Metrics(3172 / 9000, 1950 / 18000, 0.944347333, 0.950157842, 0.930387654),
    "our": Metrics(1989 / 9000, 1761 / 18000, 0.958305327, 0.957942894, 0.954418163),
}

# Few distinct values, so that ties within and across the sets are the rule.
tied = st.lists(st.integers(-4, 4), min_size=1, max_size=30)
wide = st.lists(st.integers(-1000, 1000), min_size=1, max_size=30)
samples = st.one_of(tied, wide)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    folder = os.environ.get("ODIN_DATA")
    if not folder:
        pytest.skip(f"ODIN_DATA is unset: it names the folder of {GOLDEN_FILE}")
    path = Path(folder) / GOLDEN_FILE
    if not path.exists():
        pytest.skip(f"ODIN_DATA holds no {GOLDEN_FILE}")
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def assert_close(actual: Metrics, expected: Metrics, tolerance: float = 1e-12) -> None:
    assert dataclasses.asdict(actual) == pytest.approx(
        dataclasses.asdict(expected), abs=tolerance, rel=0
    )


# --- golden values ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["base", "our"])
def test_reference_protocol_gives_the_numbers_of_the_release(golden, method):
    grid = dict(zip(("base", "our"), reference_grids(10, 1000), strict=True))[method]
    result = evaluate(golden[f"{method}_in"], golden[f"{method}_out"], "reference", grid)
    percent = Metrics(*(round(100 * value, 2) for value in dataclasses.astuple(result)))
    assert percent == GOLDEN_REFERENCE[method]


@pytest.mark.parametrize("method", ["base", "our"])
def test_exact_protocol_on_the_scores_of_the_release(golden, method):
    result = evaluate(golden[f"{method}_in"], golden[f"{method}_out"])
    assert_close(result, GOLDEN_EXACT[method], tolerance=1e-9)
    # Both protocols measure the same thing; the release's differs by its grid only.
    published = Metrics(*(v / 100 for v in dataclasses.astuple(GOLDEN_REFERENCE[method])))
    assert_close(result, published, tolerance=2e-3)


@pytest.mark.parametrize(("method", "percent"), [("base", 17.1), ("our", 15.1)])
def test_out_of_distribution_as_positive_class_is_another_number(golden, method, percent):
    swapped = evaluate(-golden[f"{method}_out"], -golden[f"{method}_in"])
    assert round(100 * swapped.fpr95, 1) == percent


def test_float32_scores_hardly_change_the_metrics(golden):
    ins, outs = golden["our_in"], golden["our_out"]
    narrow = evaluate(ins.astype(np.float32), outs.astype(np.float32))
    assert_close(narrow, evaluate(ins, outs), tolerance=5e-4)


# --- brute force -----------------------------------------------------------------------------


def brute_exact(ins: list[int], outs: list[int]) -> Metrics:
    """The definitions word for word, in fractions and loops; floats at the very end."""
    levels = sorted({*ins, *outs}, reverse=True)

    def share(values: list[int], level: int) -> Fraction:
        return Fraction(sum(value >= level for value in values), len(values))

    points = [(share(ins, level), share(outs, level)) for level in levels]
    fpr95 = next(fpr for tpr, fpr in points if tpr >= Fraction(95, 100))
    error = min((1 - tpr + fpr) / 2 for tpr, fpr in [(Fraction(0), Fraction(0)), *points])
    wins = sum(Fraction(2 * (i > o) + (i == o), 2) for i in ins for o in outs)
    auroc = wins / (len(ins) * len(outs))
    below = [(1 - fpr, 1 - tpr) for tpr, fpr in reversed([(Fraction(0), Fraction(0)), *points])][1:]
    aupr = [brute_average_precision(curve) for curve in (points, below)]
    return Metrics(float(fpr95), float(error), float(auroc), *map(float, aupr))


def brute_average_precision(points: list[tuple[Fraction, Fraction]]) -> Fraction:
    total, previous = Fraction(0), Fraction(0)
    for true, false in points:
        if true > previous:
            total += (true - previous) * true / (true + false)
        previous = true
    return total


@settings(max_examples=200, deadline=None)
@given(samples, samples)
def test_exact_agrees_with_brute_force(ins, outs):
    result = evaluate(ins, outs)
    assert_close(result, brute_exact(ins, outs))
    assert all(0 <= value <= 1 for value in dataclasses.astuple(result))


def brute_reference(ins: np.ndarray, outs: np.ndarray, start: float, gap: float, steps: int):
    """The threshold scan, one threshold at a time."""
    roc, pr_in, pr_out = [], [], []
    for step in range(steps):
        up, down = start + gap * step, start + gap * (steps - step)
        roc.append((np.mean(outs > up), np.mean(ins >= up)))
        pr_in.append((np.mean(ins >= up), np.mean(outs >= up)))
        pr_out.append((np.mean(outs < down), np.mean(ins < down)))
    band = [fpr for fpr, tpr in roc if 0.9495 <= tpr <= 0.9505]
    error = min((1 - tpr + fpr) / 2 for fpr, tpr in roc)

    def precision(points):
        return [(true, true / (true + false)) for true, false in points if true + false > 0]

    areas = [brute_riemann(points) for points in (roc, precision(pr_in), precision(pr_out))]
    return Metrics(float(np.mean(band)), float(error), *areas)


def brute_riemann(points) -> float:
    total, previous = 0.0, 1.0
    for width, height in points:
        total += (previous - width) * height
        previous = width
    return float(total + points[-1][0] * points[-1][1])


@pytest.mark.parametrize("seed", range(20))
def test_reference_agrees_with_a_scan_in_a_loop(seed, monkeypatch):
    # Scores and thresholds are multiples of 1/64: exact in floating point, and so many scores lie
    # on a threshold that a wrong side of a comparison shows.
    monkeypatch.setattr(metrics, "GRID_STEPS", 128)
    rng = np.random.default_rng(seed)
    ins = rng.integers(-40, 120, 1000) / 64
    ins[:50], ins[50:] = -1, np.abs(ins[50:]) + 1 / 64  # so that one level has a TPR of 0.95
    outs = rng.integers(-80, 80, 700) / 64
    result = evaluate(ins, outs, "reference", (-0.5, 1.5))
    assert_close(result, brute_reference(ins, outs, -0.5, 1 / 64, 128))


# --- ties, small sets, separation ------------------------------------------------------------


@pytest.mark.parametrize(("n_in", "n_out"), [(1, 1), (5, 3), (1000, 17)])
@pytest.mark.parametrize("value", [0.0, 0.1, -7.25])
def test_equal_scores_are_chance(n_in, n_out, value):
    result = evaluate(np.full(n_in, value), np.full(n_out, value))
    assert result == Metrics(1.0, 0.5, 0.5, 0.5, 0.5)


def test_perfect_separation_and_its_reverse():
    low, high = np.arange(30.0), np.arange(100.0, 140.0)
    assert evaluate(high, low) == Metrics(0.0, 0.0, 1.0, 1.0, 1.0)
    reverse = evaluate(low, high)
    assert (reverse.fpr95, reverse.detection_error, reverse.auroc) == (1.0, 0.5, 0.0)


@pytest.mark.parametrize("n", [20, 40, 100, 140, 180, 1000, 9000, 8940])
def test_fpr95_takes_exactly_95_percent(n):
    # In-scores 1..N: with N a multiple of 20 the threshold is N/20 + 1, free of rounding.
    assert n % 20 == 0
    outs = [n / 20, n / 20 + 0.5, n / 20 + 1, n / 20 + 1.5]
    assert evaluate(np.arange(1, n + 1), outs).fpr95 == 0.5


def test_fpr95_rounds_the_number_of_accepted_samples_up():
    # 0.95 * 21 = 19.95: 20 must be accepted, so the threshold is the second lowest of 1..21.
    assert evaluate(np.arange(1, 22), [1.0, 1.5, 2.0, 3.0]).fpr95 == 0.5


@pytest.mark.parametrize("n", [1, 2, 19])
def test_fpr95_of_fewer_than_20_samples_accepts_all_of_them(n):
    assert evaluate(np.arange(1, n + 1), [0.0, 0.5, 1.0, 2.0]).fpr95 == 0.5


def test_detection_error_never_exceeds_that_of_accepting_nothing():
    assert evaluate([0.0, 1.0], [2.0, 3.0]).detection_error == 0.5


# --- symmetries ------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(samples, samples)
def test_swapping_the_sets(ins, outs):
    straight = evaluate(ins, outs)
    swapped = evaluate(outs, ins)
    negated = evaluate(np.negative(outs), np.negative(ins))
    assert swapped.auroc == pytest.approx(1 - straight.auroc, abs=1e-12)
    assert negated.auroc == pytest.approx(straight.auroc, abs=1e-12)
    assert negated.aupr_out == pytest.approx(straight.aupr_in, abs=1e-12)
    assert negated.aupr_in == pytest.approx(straight.aupr_out, abs=1e-12)
    assert negated.detection_error == pytest.approx(straight.detection_error, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(samples, samples)
def test_a_rising_map_of_the_scores_changes_nothing(ins, outs):
    def warp(scores):
        return np.arctan(np.asarray(scores, dtype=np.float64) / 7) * 1e6 - 3

    assert evaluate(warp(ins), warp(outs)) == evaluate(ins, outs)


@settings(max_examples=50, deadline=None)
@given(samples, samples, st.integers(2, 5))
def test_repeating_a_set_changes_no_curve(ins, outs, times):
    # Classes have equal weight, so only the shares count (fpr95 also feels the rounding of 0.95 N).
    once, often = evaluate(ins, outs), evaluate(ins, outs * times)
    assert_close(often, once)


# --- errors ----------------------------------------------------------------------------------

FINE = [0.1, 0.2, 0.3]


@pytest.mark.parametrize("protocol", ["exact", "reference"])
@pytest.mark.parametrize("name", ["in_scores", "out_scores"])
@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ([], "is empty.*--limit"),
        ([0.1, float("nan"), float("nan")], "2 NaN or infinite values of 3.*index 1.*weights"),
        ([0.1, float("inf")], "1 NaN or infinite"),
        ([-float("inf")], "1 NaN or infinite"),
        ([[0.1, 0.9], [0.2, 0.8]], r"shape \(2, 2\).*maximum over the classes"),
        (0.5, r"shape \(\)"),
        (["high", "low"], "not an array of real numbers"),
    ],
)
def test_bad_scores_are_named(name, bad, what, protocol):
    sets = {"in_scores": FINE, "out_scores": FINE, name: bad}
    with pytest.raises(OdinError, match=f"{name}.*{what}"):
        evaluate(**sets, protocol=protocol, grid=(0.0, 1.0))


def test_unknown_protocol():
    with pytest.raises(OdinError, match=r"'release'.*'exact' or 'reference'"):
        evaluate(FINE, FINE, protocol="release")


@pytest.mark.parametrize("grid", [(1.0, 0.1), (0.1, 0.1), (float("nan"), 1.0), (0.0, float("inf"))])
def test_bad_grid(grid):
    with pytest.raises(OdinError, match="start below end"):
        evaluate(FINE, FINE, protocol="reference", grid=grid)


def test_reference_needs_a_grid():
    with pytest.raises(OdinError, match=r"reference_grids\(\).*--metrics exact"):
        evaluate(FINE, FINE, protocol="reference")


@pytest.mark.parametrize(
    "ins",
    [
        np.linspace(0.5, 0.9, 1000),  # as at T = 1: all above the grid
        np.linspace(0.01, 0.02, 1000),  # all below
        np.full(1000, 0.11),  # one value: the TPR jumps from 1 to 0
        np.linspace(0.101, 0.119, 30),  # 28/30 and 29/30 miss the band
    ],
)
def test_reference_without_a_threshold_in_the_band(ins):
    expected = "no threshold of the reference grid from 0.1 to 0.12.*--metrics exact.*1000 only"
    with pytest.raises(OdinError, match=expected):
        evaluate(ins, ins, protocol="reference", grid=(0.1, 0.12))


def test_reference_runs_without_scikit_learn_and_exact_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    ins = np.linspace(0.2, 0.8, 1000)
    assert evaluate(ins, ins, "reference", (0.0, 1.0)).fpr95 == pytest.approx(0.95, abs=1e-3)
    with pytest.raises(OdinError, match=r"scikit-learn.*odin-ood\[cpu\]"):
        evaluate(ins, ins)


def test_reference_grids():
    assert reference_grids(10, 1000) == ((0.1, 1.0), (0.1, 0.12))
    assert reference_grids(100, 1000.0) == ((0.01, 1.0), (0.01, 0.0104))


@pytest.mark.parametrize(
    ("classes", "temperature", "what"),
    [(1000, 1000, "not for 1000"), (10, 1, "temperature 1000 only, not 1"), (100, 999.5, "999.5")],
)
def test_reference_grids_fit_the_release_only(classes, temperature, what):
    with pytest.raises(OdinError, match=f"{what}.*--metrics exact"):
        reference_grids(classes, temperature)


def test_metrics_are_plain_floats_and_frozen():
    result = evaluate(FINE, FINE)
    assert all(type(value) is float for value in dataclasses.astuple(result))
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.auroc = 1.0
