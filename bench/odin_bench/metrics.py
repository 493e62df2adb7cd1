"""How well scores tell two data sets apart: one exact definition, and the ODIN release's own.

A higher score means in-distribution. In-distribution is the positive class for the false positive
rate (FPR), AUROC and AUPR-In; AUPR-Out swaps the roles. A sample is accepted as in-distribution
when its score is at or above the threshold. Scores may lie in any range, logits and negative
numbers included: nothing here squashes them.

Source: Liang, Li, Srikant, "Enhancing the Reliability of Out-of-distribution Image Detection in
Neural Networks", ICLR 2018, section 4.3, and the numbers which its released program prints.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from odin_engines.errors import OdinError
from odin_engines.packages import install_command

Grid = tuple[float, float]
_Scores = npt.NDArray[np.float64]

GRID_STEPS = 100_000

# The band of true positive rates that the release takes for "95 %", in units of 1/10,000: rates
# are compared as integers, because 0.95 and most rates have no exact floating point form.
_BAND_LOW, _BAND_HIGH = 9495, 9505


@dataclass(frozen=True)
class Metrics:
    """Detection quality, as fractions (0.05, not 5 %).

    fpr95: share of out-of-distribution samples accepted where 95 % of in-distribution ones are;
    detection_error: the least mean of the two error rates; auroc; aupr_in; aupr_out.
    """

    fpr95: float
    detection_error: float
    auroc: float
    aupr_in: float
    aupr_out: float


def evaluate(
    in_scores: npt.ArrayLike,
    out_scores: npt.ArrayLike,
    protocol: str = "exact",
    grid: Grid | None = None,
) -> Metrics:
    """Metrics of the scores of an in-distribution and an out-of-distribution set.

    `in_scores` (N,) and `out_scores` (M,) are finite real numbers, N and M at least 1; they are
    compared as float64, to which narrower types convert without loss, so ties stay ties.

    protocol "exact" (`grid` is not used):
        fpr95: the largest threshold with TPR >= 0.95 is the ceil(0.95 N)-th largest in-score;
        FPR is the share of out-scores at or above it. With N < 20 no TPR between 0.95 and 1
        exists, so all in-scores are accepted and FPR counts from their minimum.
        detection_error: min over all thresholds of 0.5 (1 - TPR) + 0.5 FPR, "accept all" and
        "accept none" included, hence never above 0.5.
        auroc: the trapezoid rule; a tied pair counts half.
        aupr_in, aupr_out: average precision, both classes given the same total weight; tied
        samples enter together.
        Where all scores are equal, the five are 1, 0.5, 0.5, 0.5, 0.5.

    protocol "reference": what the ODIN release computes, on 100,000 thresholds from `grid[0]`
        (included) to `grid[1]` (not included); `reference_grids` has its grids. fpr95 is the
        mean of the FPR over the thresholds with TPR in [0.9495, 0.9505], detection_error the
        minimum on the grid, auroc a lower Riemann sum, aupr_in and aupr_out Riemann sums with
        precision = TPR / (TPR + FPR). Use it to compare with published numbers only: the result
        depends on the grid.

    Raises OdinError for empty, non-finite, non-numeric or not one-dimensional scores, for an
    unknown protocol, for a reference protocol without a usable grid, and where no threshold of
    the grid has a TPR in the band.
    """
    ins = _checked(in_scores, "in_scores")
    outs = _checked(out_scores, "out_scores")
    if protocol == "exact":
        return _exact(ins, outs)
    if protocol == "reference":
        return _reference(ins, outs, _checked_grid(grid))
    raise OdinError(f"unknown metrics protocol {protocol!r}: choose 'exact' or 'reference'")


def reference_grids(classes: int, temperature: float) -> tuple[Grid, Grid]:
    """The release's threshold grids (baseline, ODIN) for 10 or 100 classes at T = 1000.

    The ODIN grid starts at 1/classes, the least value that a maximum of a softmax has, and ends
    just above what T = 1000 lets it reach; at another temperature scores leave it.
    Raises OdinError for other numbers of classes and other temperatures.
    """
    ends = {10: 0.12, 100: 0.0104}
    if classes not in ends:
        raise OdinError(
            f"the reference metrics have grids for 10 and 100 classes only, not for {classes}: "
            "use --metrics exact, or pass your own grid to evaluate()"
        )
    if temperature != 1000:
        raise OdinError(
            f"the reference metrics' grids fit temperature 1000 only, not {temperature:g}: "
            "use --metrics exact, or --temperature 1000"
        )
    start = 1 / classes
    return (start, 1.0), (start, ends[classes])


def _checked(scores: npt.ArrayLike, name: str) -> _Scores:
    try:
        array = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise OdinError(
            f"{name} is not an array of real numbers ({error}): pass one score per image"
        ) from error
    if array.ndim != 1:
        raise OdinError(
            f"{name} has shape {array.shape}: pass one score per image, shape (N,); "
            "of class probabilities take the maximum over the classes first"
        )
    if array.size == 0:
        raise OdinError(
            f"{name} is empty: pass at least one score; check the data folder and --limit"
        )
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise OdinError(
            f"{name} holds {bad.size} NaN or infinite values of {array.size}, the first at index "
            f"{bad[0]}: look at those images, and at the network's weights"
        )
    return array


def _checked_grid(grid: Grid | None) -> Grid:
    if grid is None:
        raise OdinError(
            "the reference metrics need grid=(start, end): take it from reference_grids(), "
            "or use --metrics exact"
        )
    start, end = grid
    if not (np.isfinite(start) and np.isfinite(end) and start < end):
        raise OdinError(f"grid is ({start}, {end}): both must be finite, and start below end")
    return float(start), float(end)


def _exact(ins: _Scores, outs: _Scores) -> Metrics:
    sk = _sklearn_metrics()
    scores = np.concatenate([ins, outs])
    is_in = np.arange(scores.size) < ins.size
    # Equal weight for both classes. Whole numbers keep scikit-learn's running sums exact, which
    # 1/N and 1/M would not.
    weight = np.where(is_in, outs.size, ins.size).astype(np.float64)
    # From (0, 0), nothing accepted, to (1, 1), everything accepted. Every threshold is kept, since
    # the detection error is the minimum over all of them.
    fpr, tpr, _ = sk.roc_curve(is_in, scores, drop_intermediate=False)
    return Metrics(
        fpr95=_exact_fpr95(ins, outs),
        detection_error=float(np.min(0.5 * (1 - tpr) + 0.5 * fpr)),
        auroc=_fraction(sk.auc(fpr, tpr)),
        aupr_in=_fraction(sk.average_precision_score(is_in, scores, sample_weight=weight)),
        aupr_out=_fraction(sk.average_precision_score(~is_in, -scores, sample_weight=weight)),
    )


def _fraction(area: Any) -> float:
    # A sum of many terms may pass 1 by a rounding error.
    return min(1.0, float(area))


def _exact_fpr95(ins: _Scores, outs: _Scores) -> float:
    rank = -(-19 * ins.size // 20)  # ceil(0.95 N), free of rounding
    threshold = np.sort(ins)[ins.size - rank]
    return float(np.count_nonzero(outs >= threshold) / outs.size)


def _sklearn_metrics() -> ModuleType:
    # Imported late: the reference protocol runs where scikit-learn is not installed.
    try:
        import sklearn.metrics
    except ImportError as error:
        raise OdinError(
            f"exact metrics need scikit-learn: {install_command()}, or use --metrics reference"
        ) from error
    module: ModuleType = sklearn.metrics
    return module


def _reference(ins: _Scores, outs: _Scores, grid: Grid) -> Metrics:
    start, end = grid
    gap = (end - start) / GRID_STEPS
    rising = start + gap * np.arange(GRID_STEPS)
    # For AUPR-Out the release walks down from the end (included) to the start (not included).
    falling = end - gap * np.arange(GRID_STEPS)
    ins, outs = np.sort(ins), np.sort(outs)

    accepted = ins.size - np.searchsorted(ins, rising, side="left")
    tpr = accepted / ins.size
    # The release takes an in-score at the threshold as accepted and an out-score there as
    # rejected, except for the AUPR, where both are accepted.
    fpr = 1 - np.searchsorted(outs, rising, side="right") / outs.size
    fpr_aupr = 1 - np.searchsorted(outs, rising, side="left") / outs.size
    in_rejected = np.searchsorted(ins, falling, side="left") / ins.size
    out_rejected = np.searchsorted(outs, falling, side="left") / outs.size
    return Metrics(
        fpr95=_band_fpr(accepted, fpr, ins, grid),
        detection_error=float(np.min(0.5 * (1 - tpr) + 0.5 * fpr)),
        auroc=_riemann(fpr, tpr),
        aupr_in=_riemann_aupr(tpr, fpr_aupr),
        aupr_out=_riemann_aupr(out_rejected, in_rejected),
    )


def _band_fpr(
    accepted: npt.NDArray[np.integer[Any]], fpr: _Scores, ins: _Scores, grid: Grid
) -> float:
    """Mean FPR over the thresholds whose TPR, accepted / N, lies in [0.9495, 0.9505]."""
    scaled = accepted.astype(np.int64) * 10_000
    band = (scaled >= _BAND_LOW * ins.size) & (scaled <= _BAND_HIGH * ins.size)
    if not band.any():
        raise OdinError(
            f"no threshold of the reference grid from {grid[0]:g} to {grid[1]:g} accepts between "
            f"94.95 % and 95.05 % of in_scores ({ins.size} scores from {ins[0]:.6g} to "
            f"{ins[-1]:.6g}): use --metrics exact. The "
            "release's ODIN grid fits temperature 1000 only, and the band needs about 1,000 or "
            "more distinct scores"
        )
    return float(fpr[band].mean())


def _riemann(width: _Scores, height: _Scores) -> float:
    """Sum of height over the drops of `width`, (K,) each: from 1 to its values, then to 0."""
    return _fraction(-np.diff(width, prepend=1.0) @ height + width[-1] * height[-1])


def _riemann_aupr(recall: _Scores, false: _Scores) -> float:
    """Riemann sum of precision = recall / (recall + false) over falling recall, (K,) each.

    Thresholds that accept nothing at all have no precision and are left out. At least one remains
    once `_band_fpr` has passed.
    """
    total = recall + false
    kept = total > 0
    return _riemann(recall[kept], recall[kept] / total[kept])
