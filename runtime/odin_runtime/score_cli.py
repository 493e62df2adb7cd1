"""odin-score: scores of images, as a table on disk."""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from odin_engines import command
from odin_engines.bundle import Bundle, read_bundle
from odin_engines.calibration import Calibration
from odin_engines.engine import ENGINES
from odin_engines.errors import OdinError
from odin_runtime import drift, rows, sources
from odin_runtime.flagged import copy_flagged
from odin_runtime.journal import Journal
from odin_runtime.preparation import Preparation, usual_size
from odin_runtime.score_run import CHUNK, Decision, Run
from odin_runtime.scorer import Scorer

_DESCRIPTION = """\
Score images with a bundle, and write a row for each: path, score (higher = in-distribution),
baseline, label, and of a calibrated bundle whether it is out-of-distribution (is_ood) and the share
of in-distribution images that score lower (percentile).
"""
_EXAMPLES = """\
examples:
  odin-score my-bundle photos/ --output scores.csv
        every image below photos/
  odin-score my-bundle 'photos/**/*.jpg' more.npz shard-0001.tar --output scores.parquet
        a glob, the array x of an .npz file, the images in a tar archive
  find photos -newer yesterday | odin-score my-bundle - --output scores.jsonl
        a list of paths on standard input
  odin-score my-bundle photos/ --output scores.csv --resume
        goes on where an interrupted run stopped; anew, if there is none
  odin-score my-bundle photos/ --output worst.csv --sort score --top 50 --copy-flagged odd/
        the 50 lowest scores; and copies of all images that are out-of-distribution
"""
_SORTED = ("score", "baseline", "percentile")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run odin-score; return its exit status: 0 done, 1 refused, 130 interrupted."""
    parsed = _parser().parse_args(arguments)
    return command.run("odin-score", lambda: _score(parsed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="odin-score",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="the folder that odin-export wrote")
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="image files, folders, globs, .npz files, tar archives, or - for a list of them on "
        "standard input",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="the table: .csv, .jsonl or .parquet; until it is whole, rows are kept in "
        "FILE.partial beside it",
    )
    images = parser.add_argument_group("images")
    images.add_argument(
        "--shorter",
        type=_positive,
        metavar="N",
        help="first scale the shorter side to N pixels, as many networks' training does",
    )
    images.add_argument(
        "--crop", type=_positive, metavar="N", help="then keep the inner N x N pixels"
    )
    images.add_argument(
        "--size",
        type=_size,
        metavar="N|HxW|keep",
        help="then scale to N x N, or H high and W wide; keep leaves images as they are (default: "
        "the network's only size, or its smallest)",
    )
    images.add_argument(
        "--strict",
        action="store_true",
        help="stop at the first image that cannot be read (default: its row tells why)",
    )
    engine = parser.add_argument_group("engine")
    engine.add_argument("--engine", choices=("auto", *ENGINES), default="auto")
    engine.add_argument(
        "--precision", choices=("fp32", "fp16", "bf16"), help="(default: the bundle's)"
    )
    engine.add_argument(
        "--threads", type=_positive, metavar="N", help="of the engine (default: all cores)"
    )
    table = parser.add_argument_group("table")
    table.add_argument(
        "--threshold",
        type=_finite,
        metavar="S",
        help="images that score below S are out-of-distribution (default: as calibrated)",
    )
    table.add_argument("--sort", choices=_SORTED, help="rows by this column, the lowest first")
    table.add_argument(
        "--top", type=_positive, metavar="N", help="the first N rows only; wants --sort"
    )
    table.add_argument(
        "--copy-flagged",
        type=Path,
        metavar="DIR",
        help="copy every image that is out-of-distribution into DIR, under its path",
    )
    table.add_argument(
        "--drift-against",
        metavar="BUNDLE",
        help="say whether these images' scores are distributed as those that BUNDLE was calibrated "
        "with, by the test of Kolmogorov and Smirnov",
    )
    table.add_argument(
        "--resume",
        action="store_true",
        help="go on with an interrupted run of the same images, bundle and flags",
    )
    return parser


def _score(parsed: argparse.Namespace) -> int:
    bundle = _checked(parsed)
    listed = sys.stdin.read().splitlines() if sources.LIST in parsed.paths else []
    prepare = _preparation(parsed, bundle)
    options = {"precision": parsed.precision, "threads": parsed.threads}
    with Scorer.open(bundle, parsed.engine, **options) as scorer:
        decision = Decision(parsed.threshold)
        run = Run(scorer, prepare, decision, parsed.strict)
        partial = parsed.output.with_name(f"{parsed.output.name}.partial")
        journal = Journal(partial, _about(scorer, prepare, decision), CHUNK, resume=parsed.resume)
        try:
            _run(run, sources.items(parsed.paths, listed), journal)
        except BaseException:
            if not journal.count:
                journal.remove()
                raise
            journal.close()
            print(f"{partial} keeps the rows so far; --resume goes on from there", file=sys.stderr)
            raise
    names = rows.columns(
        scorer.spec.scores, _decides(parsed, bundle), not isinstance(scorer.calibration(), str)
    )
    written = journal.rows()
    if parsed.sort:
        written = iter(rows.lowest(written, parsed.sort, parsed.top))
    rows.write(parsed.output, written, names)
    if parsed.copy_flagged:
        copy_flagged(sources.items(parsed.paths, listed), journal.rows(), parsed.copy_flagged)
    _summarise(parsed, journal.rows())
    scores = [row["score"] for row in journal.rows() if row["error"] is None]
    journal.remove()
    if parsed.drift_against:
        _tell_drift(np.array(scores, np.float32), _drift_calibration(parsed, bundle))
    return 0


def _checked(parsed: argparse.Namespace) -> Bundle:
    """The bundle, once all that can be refused before the work was looked at."""
    rows.check_output(parsed.output)
    sources.check_paths(parsed.paths)
    bundle = read_bundle(Path(parsed.bundle))
    if parsed.top and not parsed.sort:
        raise OdinError("--top wants --sort, which says what comes first")
    if parsed.sort == "percentile" and bundle.calibration is None:
        raise OdinError(f"--sort percentile: bundle {bundle.path} is not calibrated")
    if parsed.drift_against:
        _drift_calibration(parsed, bundle)
    if parsed.copy_flagged and not _decides(parsed, bundle):
        raise OdinError(
            "--copy-flagged wants a threshold: give --threshold, or calibrate the bundle with "
            f"'odin-bench {bundle.argument} --calibrate IN_DATASET'"
        )
    if parsed.copy_flagged and parsed.copy_flagged.exists() and not parsed.copy_flagged.is_dir():
        raise OdinError(f"--copy-flagged {parsed.copy_flagged} is no folder")
    return bundle


def _decides(parsed: argparse.Namespace, bundle: Bundle) -> bool:
    return parsed.threshold is not None or bundle.calibration is not None


def _preparation(parsed: argparse.Namespace, bundle: Bundle) -> Preparation:
    size = usual_size(bundle.spec) if parsed.size is None else parsed.size
    return Preparation(parsed.shorter, parsed.crop, size or None)


def _about(scorer: Scorer, prepare: Preparation, decision: Decision) -> dict[str, Any]:
    """What the rows depend on."""
    size = None if prepare.size is None else list(prepare.size)
    return {
        "schema": 1,
        "bundle": scorer.bundle.files,
        "calibration": scorer.bundle.calibration and scorer.bundle.calibration.date,
        "engine": scorer.engine,
        "precision": scorer.precision,
        "images": {**asdict(prepare), "size": size},
        "threshold": decision.threshold,
    }


def _run(run: Run, items: Iterator[sources.Item], journal: Journal) -> None:
    from tqdm import tqdm

    bar = tqdm(unit="image", initial=journal.done, desc="scored", mininterval=0.5, disable=None)
    bad = 0

    def advance(count: int, unreadable: int) -> None:
        nonlocal bad
        bad += unreadable
        if bad:
            bar.set_postfix_str(f"{bad} unreadable", refresh=False)
        bar.update(count)

    with bar:
        run.go(items, journal, advance)


def _summarise(parsed: argparse.Namespace, found: Iterator[rows.Row]) -> None:
    scored = flagged = 0
    problems = []
    for row in found:
        if row["error"] is None:
            scored += 1
            flagged += bool(row.get("is_ood"))
        else:
            problems.append(row["error"])
    print(f"{parsed.output}: {scored:,} images scored, {len(problems):,} could not be read")
    for problem in itertools.islice(problems, 5):
        print(f"  {problem}")
    if len(problems) > 5:
        print(f"  and {len(problems) - 5:,} more, told in their rows")
    if scored and (flagged or parsed.copy_flagged):
        print(f"  {flagged:,} out-of-distribution ({100 * flagged / scored:.1f} %)")


def _drift_calibration(parsed: argparse.Namespace, bundle: Bundle) -> Calibration:
    """What the scores of a bundle are compared with.

    Raises:
        OdinError: there is no calibration, or it is of other scores.
    """
    against = read_bundle(Path(parsed.drift_against))
    if against.calibration is None:
        raise OdinError(
            f"--drift-against {parsed.drift_against}: it is not calibrated: run 'odin-bench "
            f"{against.argument} --calibrate IN_DATASET'"
        )
    spec = bundle.spec
    problem = against.calibration.unlike(spec, spec.temperature, spec.magnitude)
    if problem:
        raise OdinError(f"--drift-against {parsed.drift_against}: {problem}")
    return against.calibration


def _tell_drift(scores: np.ndarray, calibration: Calibration) -> None:
    found = drift.compare(scores, calibration)
    verdict = "the input has drifted" if found.has_drifted() else "no drift is seen"
    print(
        f"  {verdict}: largest distance from the {calibration.images:,} images of "
        f"{calibration.dataset} {found.distance:.3f}, p = {found.p_value:.2g}\n"
        f"  {100 * found.flagged:.1f} % score below the threshold, where {100 * found.expected:.1f}"
        f" % did; the median's percentile is {found.median:.2f}, where it was 0.50"
    )


def _finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r}: give a number")
    return number


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from 1")
    return int(text)


def _size(text: str) -> tuple[int, ...]:
    """(height, width); () for keep."""
    if text == "keep":
        return ()
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r}: give N, HxW or keep")
    return int(sides[0]), int(sides[-1])
