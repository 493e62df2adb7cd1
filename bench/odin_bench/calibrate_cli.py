"""odin-bench --calibrate: scores in-distribution images and puts the threshold into the bundle."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from odin_bench import sets
from odin_bench.calibrate import calibration_of, check_count, held_out
from odin_bench.datasets import Dataset
from odin_bench.report import environment, write_json
from odin_bench.tables import display_name
from odin_bench.terminal import progress_bar, say
from odin_engines.bundle import Bundle, is_bundle, write_calibration
from odin_engines.calibration import Calibration, as_json
from odin_engines.errors import OdinError
from odin_runtime import Scorer


def calibrate(
    parsed: argparse.Namespace, bundle: Bundle, open_scorer: Callable[[Bundle], Scorer]
) -> int:
    """Score the images, write the calibration, and print it; return the exit status.

    Args:
        parsed: of `flags.parser`, checked by `flags.check_mode`.
        bundle: of the user's own.
        open_scorer: opens it as the flags say.

    Raises:
        OdinError: the set does not fit, or is too small.
    """
    if parsed.decision:
        from odin_export.decision import check_decidable

        check_decidable(bundle)
    found = _images(parsed, bundle)
    scaled = sets.size(parsed, bundle.spec, found, say)
    images = held_out(found, parsed.limit)
    check_count(len(images), parsed.tpr)
    # Without the earlier calibration, of which opening would warn if it was of another precision.
    with open_scorer(dataclasses.replace(bundle, calibration=None)) as scorer:
        scores = _scores(scorer, images, scaled)
        calibration = calibration_of(scorer, scores, images, parsed.tpr, parsed.crop, scaled)
    print(_as_text(calibration, images, _written(bundle, calibration, parsed.decision)))
    if parsed.json:
        content = {"threshold": calibration.threshold, **as_json(calibration)}
        write_json(parsed.json, {"schema": 1, "calibration": content, "environment": environment()})
    return 0


def check_is_bundle(name: str | None) -> None:
    """Check that what is to be calibrated is a bundle of the user's own.

    Raises:
        OdinError: it is a network's name, which stands for a bundle in the cache.
    """
    if name is None or not is_bundle(Path(name)):
        model = name or "densenet10"
        raise OdinError(
            f"--calibrate writes into a bundle, and {model} is none: give the folder of one, made "
            f"by 'odin-export {model} --output DIR'"
        )


def _images(parsed: argparse.Namespace, bundle: Bundle) -> Dataset:
    parsed.in_dataset = parsed.calibrate
    return sets.in_set(parsed, bundle.spec)


def _scores(scorer: Scorer, images: Dataset, scaled: tuple[int, int] | None) -> np.ndarray:
    pixels = images.resized(*scaled) if scaled else images
    with progress_bar(f"{images.name}", len(images), unit="image") as bar:
        return scorer.score(pixels.images, progress=bar.update).score


def _written(bundle: Bundle, calibration: Calibration, decision: bool) -> Bundle:
    """The bundle on disk with its calibration, and where wanted its graphs with the decision."""
    from odin_export.decision import has_decision, write_decision

    if not decision and not has_decision(bundle):
        return write_calibration(bundle, calibration)
    if calibration.precision != bundle.spec.precision:
        say(
            f"warning: the graph's decision is of a threshold in {calibration.precision}, and "
            f"engines compute the graph in {bundle.spec.precision} unless told otherwise: "
            f"calibrate with --precision {bundle.spec.precision}"
        )
    written = write_decision(bundle, calibration)
    for plan in bundle.plans:
        if plan not in written.plans:
            say(
                f"{plan.file} is left out, for its graph has changed: build it again with "
                f"'odin-export {bundle.argument} --engine {plan.engine}'"
            )
    return written


def _as_text(found: Calibration, images: Dataset, bundle: Bundle) -> str:
    name = display_name(found.dataset)
    low, high = found.interval
    return (
        f"{bundle.path}: threshold {found.threshold:.9g}, 95 % interval [{low:.9g}, {high:.9g}]\n"
        f"  accepts {100 * found.tpr:g} % of {found.images:,} images of {name} ({images.source}), "
        f"{found.pixels}\n"
        f"  engine {found.engine}, {found.precision}, {found.method}, temperature "
        f"{found.temperature:g}, magnitude {found.magnitude:g}\n"
        f"  next: odin-score {bundle.argument} PATH... --output scores.csv"
    )
