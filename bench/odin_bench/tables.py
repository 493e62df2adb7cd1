"""Results as text: the block that the ODIN release prints, and one table over many data sets.

Everything here returns strings, without a newline at the end; printing is the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from odin_bench.metrics import Metrics
from odin_bench.published import published

if TYPE_CHECKING:
    from odin_bench.opening import Opening
    from odin_bench.profile import Profile
    from odin_bench.scale import Sized, Streamed, Threaded
    from odin_bench.throughput import Row as Speed

DISPLAY_NAMES = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "Imagenet": "Tiny-ImageNet (crop)",
    "Imagenet_resize": "Tiny-ImageNet (resize)",
    "LSUN": "LSUN (crop)",
    "LSUN_resize": "LSUN (resize)",
    "iSUN": "iSUN",
    "Uniform": "Uniform noise",
    "Gaussian": "Gaussian noise",
}

# The two columns of the release's block: labels to the left, the values flush right.
_LABEL_WIDTH, _VALUE_WIDTH, _BASELINE_END = 31, 22, 34


@dataclass(frozen=True)
class Row:
    """The results on one out-of-distribution set.

    out_dataset: its name as on the command line ("Imagenet"); n_in, n_out: images scored;
    magnitude: in units of pixels in [0, 1]; baseline, odin: fractions.
    """

    out_dataset: str
    n_in: int
    n_out: int
    magnitude: float
    baseline: Metrics
    odin: Metrics


def display_name(dataset: str) -> str:
    """The release's name of a data set; a set that it does not know keeps its own."""
    return DISPLAY_NAMES.get(dataset, dataset)


def release_block(
    architecture: str, in_name: str, out_name: str, baseline: Metrics, odin: Metrics
) -> str:
    """The block that the release prints for one run, character for character.

    `in_name` and `out_name` are data set names, shown by `display_name`; metrics are fractions,
    shown in percent with one decimal. Names longer than the value column widen the whole block, so
    that its right edge stays straight.
    """
    names = [
        ("Neural network architecture:", _one_line(architecture)),
        ("In-distribution dataset:", _one_line(display_name(in_name))),
        ("Out-of-distribution dataset:", _one_line(display_name(out_name))),
    ]
    width = _LABEL_WIDTH + max(_VALUE_WIDTH, *(len(name) for _, name in names))
    lines = [f"{label:<{_LABEL_WIDTH}}{name:>{width - _LABEL_WIDTH}}" for label, name in names]
    lines += ["", f"{'Baseline':>{_BASELINE_END}}{'Our Method':>{width - _BASELINE_END}}"]
    lines += [
        _release_line("FPR at TPR 95%:", baseline.fpr95, odin.fpr95, width),
        _release_line("Detection error:", baseline.detection_error, odin.detection_error, width),
        _release_line("AUROC:", baseline.auroc, odin.auroc, width),
        _release_line("AUPR In:", baseline.aupr_in, odin.aupr_in, width),
        _release_line("AUPR Out:", baseline.aupr_out, odin.aupr_out, width),
    ]
    return "\n".join(lines)


def summary_table(
    rows: Sequence[Row], network: str | None = None, weights_note: str | None = None
) -> str:
    """All out-of-distribution sets in one table, which reads as plain text and as Markdown.

    Metrics are "baseline/ODIN" in percent. Where `network` ("densenet10") has a published result
    for a set, it follows on a line of its own. Pass None where those results do not compare, such
    as with another in-distribution set.
    weights_note: a sentence to print below when the weights at hand are not the published ones;
    the published lines then refer to it by [1].
    """
    mark = " [1]" if weights_note else ""
    cells = [list(_COLUMNS)]
    marked = False
    for row in rows:
        counts, name = f"{row.n_in}/{row.n_out}", display_name(row.out_dataset)
        cells.append([name, counts, f"{row.magnitude:g}", *_pairs(row.baseline, row.odin)])
        paper = published(network, row.out_dataset) if network else None
        if paper:
            label = f"published (magnitude {paper.magnitude:g}){mark}"
            cells.append([label, "", "", *_pairs(paper.baseline, paper.odin)])
            marked = bool(mark)
    table = "Baseline/ODIN in percent; in-distribution is the positive class.\n\n" + aligned(cells)
    return f"{table}\n\n[1] {_one_line(weights_note)}" if marked and weights_note else table


def scores_table(rows: Sequence[tuple[str, str, Metrics]]) -> str:
    """Further scores: out-of-distribution set, name of the score, metrics in percent."""
    cells = [["Out-of-distribution", "Score", *_COLUMNS[3:]]]
    for out_dataset, name, metrics in rows:
        values = [metrics.fpr95, metrics.detection_error, metrics.auroc]
        values += [metrics.aupr_in, metrics.aupr_out]
        cells.append([display_name(out_dataset), name, *(f"{100 * value:.1f}" for value in values)])
    return "Further scores, in percent.\n\n" + aligned(cells)


def throughput_table(rows: Sequence[Speed]) -> str:
    """Programs at one batch size: how fast they are, and how many forward passes ODIN takes."""
    cells = [list(_SPEED_COLUMNS)]
    for row in rows:
        cells.append(
            [
                f"{row.engine} {row.layout}".strip(),
                row.precision,
                row.method,
                f"{row.images_per_second:,.1f}",
                *(f"{row.latency_ms[name]:,.2f}" for name in ("p50", "p90", "p99")),
                _times(row.passes, row.passes_interval),
                _times(row.speedup_vs_torch, row.speedup_interval),
                _times(row.speedup_vs_eager),
            ]
        )
    return aligned(cells)


def profile_table(profile: Profile) -> str:
    """The ops of one graph: how often each is executed, and its share of the time."""
    total = profile.milliseconds
    cells = [["Op", "kernel", "count", "ms an image", "share"]]
    for op in profile.ops:
        share = f"{100 * op.milliseconds / total:.1f} %" if total else "-"
        cells.append([op.op, op.kernel or "-", str(op.count), f"{op.milliseconds:.4f}", share])
    count = sum(op.count for op in profile.ops)
    cells.append(["total", "", str(count), f"{total:.4f}", ""])
    return aligned(cells)


def opening_table(rows: Sequence[Opening]) -> str:
    """Engines' ways to the first score of a new process, in seconds."""
    header = ["Engine", "precision", "method", "cache", "start s", "open s", "first s", "total s"]
    cells = [[*header, "next s"]]
    for row in rows:
        seconds = (row.start, row.opening, row.first, row.total)
        names = [row.engine, row.precision, row.method, row.cache]
        cells.append([*names, *(f"{value:.2f}" for value in seconds), f"{row.later:.3f}"])
    return aligned(cells)


def streamed_table(rows: Sequence[Streamed]) -> str:
    """Numbers of images: what they took, and the memory of the process before and after."""
    cells = [["Images", "seconds", "images/s", "ms an image", "MiB before", "MiB after", "growth"]]
    for row in rows:
        speed = [f"{row.seconds:,.1f}", f"{row.images_per_second:,.1f}", f"{row.ms_an_image:,.3f}"]
        memory = [_mebibytes(row.before), _mebibytes(row.after), _mebibytes(row.growth, "+")]
        cells.append([f"{row.images:,}", *speed, *memory])
    return aligned(cells)


def sizes_table(rows: Sequence[Sized]) -> str:
    """Sizes of images: what an image and a pixel cost, and the pixel beside the first row's."""
    cells = [["Image", "pixels", "ms an image", "ns a pixel", "x first [95 %]"]]
    for row in rows:
        cost = [f"{row.ms_an_image:,.3f}", f"{row.ns_a_pixel:,.1f}", _with_interval(row.cost)]
        cells.append([f"{row.height}x{row.width}", f"{row.height * row.width:,}", *cost])
    return aligned(cells)


def threads_table(rows: Sequence[Threaded]) -> str:
    """Numbers of threads: how fast they are, and over one."""
    cells = [["Threads", "images a call", "images/s", "x one thread [95 %]"]]
    for row in rows:
        speed = [f"{row.images_per_second:,.1f}", _with_interval(row.speedup)]
        cells.append([str(row.threads), str(row.images), *speed])
    return aligned(cells)


_SPEED_COLUMNS = (
    *("Engine", "precision", "method", "images/s", "p50 ms", "p90 ms", "p99 ms"),
    *("passes [95 %]", "x best PyTorch [95 %]", "x eager"),
)
_COLUMNS = (
    "Out-of-distribution",
    "n in/out",
    "Magnitude",
    "FPR at TPR 95%",
    "Detection error",
    "AUROC",
    "AUPR In",
    "AUPR Out",
)


def _release_line(label: str, baseline: float, odin: float, width: int) -> str:
    left = f"{100 * baseline:.1f}%".rjust(_BASELINE_END - len(label))
    return label + left + f"{100 * odin:.1f}%".rjust(width - _BASELINE_END)


def _times(ratio: float | None, interval: tuple[float, float] | None = None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio:.2f}" if interval is None else _with_interval((ratio, *interval))


def _with_interval(values: tuple[float, float, float]) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*values)


def _mebibytes(count: int | None, sign: str = "") -> str:
    return "-" if count is None else f"{count / 2**20:{sign},.1f}"


def _pairs(baseline: Metrics, odin: Metrics) -> list[str]:
    pairs = [
        (baseline.fpr95, odin.fpr95),
        (baseline.detection_error, odin.detection_error),
        (baseline.auroc, odin.auroc),
        (baseline.aupr_in, odin.aupr_in),
        (baseline.aupr_out, odin.aupr_out),
    ]
    return [f"{100 * left:.1f}/{100 * right:.1f}" for left, right in pairs]


def aligned(cells: list[list[str]]) -> str:
    """A Markdown table, columns padded to equal width: the first flush left, the others right."""
    # A bar in a name would end its cell.
    cells = [[_one_line(cell).replace("|", "\\|") for cell in line] for line in cells]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [line[0].ljust(widths[0])]
        + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        for line in [cells[0], rule, *cells[1:]]
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _one_line(text: str) -> str:
    """The text with every run of white space made one space: a newline would tear the layout."""
    return " ".join(text.split())
