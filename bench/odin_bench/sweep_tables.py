"""What odin-bench prints of a sweep, as text without a newline at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from odin_bench.metrics import Metrics
from odin_bench.sweep_choice import ByGain, Pair
from odin_bench.tables import aligned, display_name

RULES = {
    "baseline": "baseline (no ODIN)",
    "default": "the bundle's own",
    "release": "validation images of both [*]",
    "in_distribution": "in-distribution images alone [+]",
}
_MARKS = {"release": "*", "in_distribution": "+"}


def grid(
    names: tuple[str, str],
    counts: tuple[int, int],
    magnitudes: Sequence[float],
    temperatures: Sequence[float],
    metrics: Sequence[Sequence[Metrics | None]],
    chosen: Mapping[str, Pair],
) -> str:
    """FPR and AUROC at each pair, a row for each magnitude.

    Args:
        names: of the in- and the out-of-distribution set.
        counts: their validation images.
        magnitudes, temperatures: of the grid.
        metrics: a list for each temperature, of each magnitude.
        chosen: by the names of `RULES`.
    """
    cells = [["Magnitude", *(f"T = {temperature:g}" for temperature in temperatures)]]
    for index, magnitude in enumerate(magnitudes):
        row = [f"{magnitude:g}"]
        for temperature, found in zip(temperatures, metrics, strict=True):
            row.append(_cell(found[index], Pair(temperature, magnitude), chosen))
        cells.append(row)
    ins, outs = (display_name(name) for name in names)
    return (
        f"{ins} against {outs}: FPR at TPR 95 % / AUROC, in percent, of {counts[0]:,} and "
        f"{counts[1]:,} validation images\n\n" + aligned(cells)
    )


def choices(pairs: Mapping[str, Pair | None], metrics: Mapping[str, Metrics], note: str) -> str:
    """What each choice comes to on the test images."""
    heads = ["Chosen by", "Temperature", "Magnitude", "FPR at TPR 95%", "Detection error"]
    cells = [[*heads, "AUROC", "AUPR In", "AUPR Out"]]
    for name, pair in pairs.items():
        found = metrics[name]
        values = (found.fpr95, found.detection_error, found.auroc, found.aupr_in, found.aupr_out)
        where = ["1", ""] if pair is None else [f"{pair.temperature:g}", f"{pair.magnitude:g}"]
        cells.append([RULES[name], *where, *(f"{100 * value:.1f}" for value in values)])
    return f"On images that had no part in the choice ({note}), in percent:\n\n" + aligned(cells)


def gains(by_gain: Sequence[ByGain], name: str, count: int) -> str:
    """What in-distribution images alone choose."""
    if not by_gain:
        return f"{display_name(name)} alone chooses no magnitude: at each, some score is not finite"
    cells = [["Temperature", "Magnitude", "Mean score gain"]]
    for each in by_gain:
        end = " (the largest given)" if each.at_end else ""
        cells.append(
            [f"{each.pair.temperature:g}", f"{each.pair.magnitude:g}{end}", f"{each.gain:.3g}"]
        )
    return (
        f"Magnitude with the largest mean score gain of {count:,} validation images of "
        f"{display_name(name)} alone\n(the rule of Generalized ODIN, CVPR 2020). It chooses no "
        "temperature, as gains at two do not compare;\nbelow, the bundle's is taken, or the "
        "largest of a grid without it.\n\n" + aligned(cells)
    )


def _cell(found: Metrics | None, pair: Pair, chosen: Mapping[str, Pair]) -> str:
    if found is None:
        return "not finite"
    marks = "".join(mark for name, mark in _MARKS.items() if chosen.get(name) == pair)
    return f"{marks and marks + ' '}{100 * found.fpr95:.1f}/{100 * found.auroc:.1f}"
