"""odin-bench with a grid of magnitudes and temperatures: metrics of each pair, and a choice.

In the file of --json a sweep is under "sweep", beside "results", which stays empty:

    magnitudes, temperatures    of the grid, ascending
    in_distribution_choice      None for first order, else by_temperature (temperature, magnitude,
                                gain, at_end of each), and the temperature and magnitude taken
    passes                      forward, backward, distinct, naive: images x passes of all sets'
                                validation images
    seconds, forward_seconds    that these took, and one forward pass of one image
    results                     for each out-of-distribution set
        in_dataset, out_dataset, n_validation_in, n_validation_out, n_in, n_out, note
        fpr95, auroc            of the validation images: a list for each temperature, of each
                                magnitude; None where scores are not finite
        choices                 baseline, default, release and, if there is one, in_distribution:
                                temperature, magnitude (None of the baseline) and metrics, those of
                                the test images, as fractions
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from odin_bench import sets, sweep_tables
from odin_bench.datasets import Dataset, Split
from odin_bench.grid import parse_grid
from odin_bench.metrics import Metrics, evaluate
from odin_bench.report import measured_as_json, write_json
from odin_bench.sweep import Passes, Sweep, Swept
from odin_bench.sweep_choice import (
    ByGain,
    ChoiceSplit,
    Pair,
    choice_split,
    choose_by_gain,
    choose_by_release,
    judge_grid,
    own_temperature,
    validation_images,
)
from odin_bench.terminal import say
from odin_engines import command
from odin_engines.bundle import Bundle
from odin_engines.engine import Tuning, cache_folder, resolve
from odin_engines.errors import OdinError

Resized = Callable[[Dataset], np.ndarray]

_TIMED_IMAGES = 128


@dataclass(frozen=True)
class SetResult:
    """A sweep against one out-of-distribution set.

    Attributes:
        split: what the choice was made by, and what it is judged by.
        grid: metrics of the validation images: a list for each temperature, of each magnitude.
        choices: the pair of each rule, by its name; None is the baseline.
        metrics: of the test images, by the same names.
    """

    split: ChoiceSplit
    grid: list[list[Metrics | None]]
    choices: dict[str, Pair | None]
    metrics: dict[str, Metrics]


@dataclass
class Cost:
    """What the sweeps over validation images took.

    Attributes:
        passes: of them.
        seconds: that they took.
        forward: seconds of one forward pass of one image, measured before and after each.
    """

    passes: Passes = field(default_factory=Passes)
    seconds: float = 0.0
    forward: list[float] = field(default_factory=list)


@dataclass
class Run:
    """One call of odin-bench.

    Attributes:
        sweep: the bundle, opened.
        magnitudes, temperatures: the grid.
        pixels: gives a set's images at the size to be scored.
        cost: so far.
        by_gain: what in-distribution images choose; empty for first order.
        results: of the sets that are finished.
    """

    sweep: Sweep
    magnitudes: tuple[float, ...]
    temperatures: tuple[float, ...]
    pixels: Resized
    cost: Cost = field(default_factory=Cost)
    by_gain: list[ByGain] = field(default_factory=list)
    results: list[SetResult] = field(default_factory=list)
    # Test scores of in-distribution images: by their first index, and pair.
    known: dict[tuple[int, Pair | None], np.ndarray] = field(default_factory=dict)

    @property
    def own(self) -> Pair:
        """The bundle's temperature and magnitude."""
        return Pair(self.sweep.spec.temperature, self.sweep.spec.magnitude)

    @property
    def chosen_by_gain(self) -> ByGain | None:
        """Of `by_gain`, the one of the temperature that is taken."""
        taken = own_temperature(self.temperatures, self.own.temperature)
        return next((each for each in self.by_gain if each.pair.temperature == taken), None)


def sweep(parsed: argparse.Namespace, bundle: Bundle) -> int:
    """Score, print, choose, and write --json; return the exit status.

    Args:
        parsed: odin-bench's flags; `magnitude` and `temperature` are text, or None.
        bundle: tunable, unless magnitudes alone vary.

    Raises:
        OdinError: flags, bundle, engine or sets do not fit a sweep.
    """
    magnitudes, temperatures = _grid(parsed, bundle)
    name = resolve(parsed.engine, parsed.precision or bundle.spec.precision)
    tuning = Tuning(parsed.threads, parsed.streams, cache_folder(name))
    with Sweep(bundle, name, parsed.precision, tuning) as opened:
        opened.check(magnitudes, temperatures)
        in_set = sets.in_set(parsed, opened.spec)
        size = sets.size(parsed, opened.spec, in_set, say)
        out_sets = sets.out_sets(parsed, opened.spec, in_set, size, say)
        splits = [choice_split(in_set, out_set, parsed.limit) for out_set in out_sets]

        def pixels(images: Dataset) -> np.ndarray:
            return images.images if size is None else images.resized(*size).images

        say(
            f"{opened.spec.architecture}, weights {opened.spec.checkpoint}, engine "
            f"{opened.engine}, {opened.precision}, {opened.spec.method}; "
            f"{len(magnitudes)} magnitudes x {len(temperatures)} temperatures"
        )
        run = Run(opened, magnitudes, temperatures, pixels)
        return _sweep_sets(parsed, run, validation_images(in_set, parsed.limit), splits)


def _grid(
    parsed: argparse.Namespace, bundle: Bundle
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Magnitudes and temperatures; the bundle's own where a flag is left out."""
    if parsed.magnitude == "release":
        raise OdinError("--magnitude release is one for each set; a sweep takes numbers")
    if parsed.metrics != "exact":
        raise OdinError(
            f"--metrics {parsed.metrics} has thresholds for temperature 1000 alone; a sweep takes "
            "--metrics exact"
        )
    found = []
    for name in ("magnitude", "temperature"):
        text = getattr(parsed, name)
        try:
            found.append((getattr(bundle.spec, name),) if text is None else parse_grid(str(text)))
        except OdinError as error:
            raise OdinError(f"--{name}: {error}") from None
    return found[0], found[1]


def _sweep_sets(
    parsed: argparse.Namespace, run: Run, in_images: Dataset, splits: Sequence[ChoiceSplit]
) -> int:
    status = 0
    ins = _timed(run, in_images)
    if run.sweep.spec.method == "exact":
        run.by_gain = choose_by_gain(ins, run.magnitudes, run.temperatures)
        print(sweep_tables.gains(run.by_gain, in_images.name, len(in_images)), end="\n\n")
    try:
        for split in splits:
            run.results.append(_sweep_set(run, ins, split))
            _print(run, run.results[-1])
    except KeyboardInterrupt:
        status = command.INTERRUPTED
        say(f"odin-bench: interrupted; {len(run.results)} of {len(splits)} sets were finished")
    finally:  # what was finished is not lost, whatever happened to the rest
        if run.results:
            print(_summary(run))
            if parsed.json:
                write_json(parsed.json, _content(run))
    return status


def _sweep_set(run: Run, ins: Swept, split: ChoiceSplit) -> SetResult:
    outs = _timed(run, split.out_images)
    grid = judge_grid(ins, outs)
    choices: dict[str, Pair | None] = {"baseline": None, "default": run.own}
    choices["release"] = choose_by_release(grid, run.magnitudes, run.temperatures)
    if run.chosen_by_gain is not None:
        choices["in_distribution"] = run.chosen_by_gain.pair
    ours = _in_test_scores(run, split.test, set(choices.values()))
    theirs = _pair_scores(run, split.test.out_set, set(choices.values()))
    metrics = {name: evaluate(ours[pair], theirs[pair]) for name, pair in choices.items()}
    return SetResult(split, grid, choices, metrics)


def _timed(run: Run, images: Dataset) -> Swept:
    """Sweep the whole grid, and count what it cost."""
    pixels = run.pixels(images)
    run.sweep.score(pixels[:1], run.magnitudes, run.temperatures)  # opens what is not open yet
    run.sweep.score(pixels[:1], (0.0,), (1.0,))
    run.cost.forward.append(_forward_seconds(run, pixels))
    start = time.perf_counter()
    swept = _with_bar(run, images.name, pixels, run.magnitudes, run.temperatures)
    run.cost.seconds += time.perf_counter() - start
    run.cost.forward.append(_forward_seconds(run, pixels))
    run.cost.passes += swept.passes
    return swept


def _forward_seconds(run: Run, pixels: np.ndarray) -> float:
    """Seconds of a forward pass of one image, among as many as keep the engine busy."""
    some = pixels[:_TIMED_IMAGES]
    start = time.perf_counter()
    run.sweep.score(some, (0.0,), (1.0,))
    return (time.perf_counter() - start) / len(some)


def _with_bar(
    run: Run,
    name: str,
    pixels: np.ndarray,
    magnitudes: Sequence[float],
    temperatures: Sequence[float],
) -> Swept:
    total = len(pixels) * run.sweep.most_passes(magnitudes, temperatures)
    title = f"{name} ({len(pixels)} images)"
    with tqdm(
        total=total, desc=title, unit="pass", leave=False, mininterval=0.5, disable=None
    ) as bar:
        return run.sweep.score(pixels, magnitudes, temperatures, bar.update)


def _in_test_scores(run: Run, test: Split, pairs: set[Pair | None]) -> dict[Pair | None, Any]:
    """Scores of the test's in-distribution images; each is scored once for a pair."""
    count, start = len(test.in_set), test.in_start
    missing = {pair for pair in pairs if len(run.known.get((start, pair), ())) < count}
    for pair, scores in _pair_scores(run, test.in_set, missing).items():
        run.known[start, pair] = scores
    return {pair: run.known[start, pair][:count] for pair in pairs}


def _pair_scores(run: Run, images: Dataset, pairs: set[Pair | None]) -> dict[Pair | None, Any]:
    """Scores of all images at each pair, float32 (N,); None is the baseline."""
    wanted: dict[float, set[float]] = {}
    for pair in pairs:
        if pair is not None:
            wanted.setdefault(pair.temperature, set()).add(pair.magnitude)
    if not wanted:  # a baseline alone comes with any forward pass
        wanted = {1.0: {0.0}} if pairs else {}
    found: dict[Pair | None, Any] = {}
    pixels = run.pixels(images)
    for temperature, magnitudes in wanted.items():
        ascending = sorted(magnitudes)
        swept = _with_bar(run, images.name, pixels, ascending, (temperature,))
        for magnitude, scores in zip(ascending, swept.score[0], strict=True):
            found[Pair(temperature, magnitude)] = scores
        found[None] = swept.baseline
    return {pair: found[pair] for pair in pairs}


def _print(run: Run, result: SetResult) -> None:
    test = result.split.test
    names = (test.in_set.name, test.out_set.name)
    counts = (len(result.split.in_images), len(result.split.out_images))
    marked = {name: pair for name, pair in result.choices.items() if pair is not None}
    print(
        sweep_tables.grid(names, counts, run.magnitudes, run.temperatures, result.grid, marked),
        sweep_tables.choices(result.choices, result.metrics, test.note),
        sep="\n\n",
        end="\n\n",
        flush=True,
    )


def _summary(run: Run) -> str:
    passes, pairs = run.cost.passes, len(run.magnitudes) * len(run.temperatures)
    forward = float(np.median(run.cost.forward))
    share = run.cost.seconds / (passes.distinct * forward)
    lines = [
        f"cost of the grid: {passes.distinct:,} distinct passes of an image ({passes.forward:,} "
        f"forward, {passes.backward:,} backward); its {pairs} pairs one by one: {passes.naive:,}",
        f"it took {run.cost.seconds:.1f} s, {share:.2f} times as long as that many forward passes "
        f"of {1000 * forward:.2f} ms",
    ]
    if run.sweep.spec.method == "first-order":
        lines.append(
            "method: first-order, an approximation of ODIN. Its score grows with the magnitude "
            "for every image, so in-distribution images alone choose none: sweep --method exact"
        )
    return "\n".join(lines)


def _content(run: Run) -> dict[str, Any]:
    """What --json writes; the module's docstring tells of it."""
    spec, passes, chosen = run.sweep.spec, run.cost.passes, run.chosen_by_gain
    by_gain = None
    if chosen is not None:
        by_gain = {**asdict(chosen.pair), "by_temperature": [_gain(each) for each in run.by_gain]}
    found = {
        "magnitudes": list(run.magnitudes),
        "temperatures": list(run.temperatures),
        "in_distribution_choice": by_gain,
        "passes": {**asdict(passes), "distinct": passes.distinct},
        "seconds": run.cost.seconds,
        "forward_seconds": float(np.median(run.cost.forward)),
        "results": [_set_content(result) for result in run.results],
    }
    return measured_as_json(
        spec, run.sweep.engine, run.sweep.precision, spec.method, {"sweep": found}
    )


def _gain(each: ByGain) -> dict[str, Any]:
    return {**asdict(each.pair), "gain": each.gain, "at_end": each.at_end}


def _set_content(result: SetResult) -> dict[str, Any]:
    test = result.split.test
    nothing = {"temperature": 1.0, "magnitude": None}
    return {
        "in_dataset": test.in_set.name,
        "out_dataset": test.out_set.name,
        "n_validation_in": len(result.split.in_images),
        "n_validation_out": len(result.split.out_images),
        "n_in": len(test.in_set),
        "n_out": len(test.out_set),
        "note": test.note,
        "fpr95": [[None if m is None else m.fpr95 for m in row] for row in result.grid],
        "auroc": [[None if m is None else m.auroc for m in row] for row in result.grid],
        "choices": {
            name: {
                **(nothing if pair is None else asdict(pair)),
                "metrics": asdict(result.metrics[name]),
            }
            for name, pair in result.choices.items()
        },
    }
