"""odin-score: scores of images, as a table on disk."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from odin_engines import command
from odin_engines.bundle import Bundle, read_bundle
from odin_engines.calibration import Calibration, as_json
from odin_engines.engine import ENGINES
from odin_engines.errors import OdinError
from odin_runtime import drift, rows, sources
from odin_runtime.flagged import check_folder, copy_flagged
from odin_runtime.journal import Journal
from odin_runtime.preparation import Preparation, usual, usual_size
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
  find photos -newer yesterday -type f -print0 | odin-score my-bundle - --output scores.jsonl
        a list of paths on standard input, one a line or ended by NUL each
  odin-score my-bundle photos/ --output scores.csv --resume
        goes on where an interrupted run stopped; anew, if there is none
  odin-score my-bundle photos/ --output worst.csv --sort score --top 50 --copy-flagged odd/
        the 50 lowest scores; and copies of all images that are out-of-distribution
"""
# What of a bundle's description changes scores of the same graph.
_SETTINGS = ("temperature", "magnitude", "mean", "std", "input_type")
_TOLD = 5  # images that cannot be read, of which the summary tells why
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
        "that of the calibration's images, or the network's only size, or its smallest); without "
        "any of these three, images are cropped as the calibration's too",
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
        help="go on with an interrupted run of the same bundle, flags and images, which are known "
        "by their names",
    )
    return parser


def _score(parsed: argparse.Namespace) -> int:
    with warnings.catch_warnings():
        warnings.showwarning = _tell_warning
        bundle = _checked(parsed)
        against = _drift_calibration(parsed, bundle) if parsed.drift_against else None
        return _scored(parsed, bundle, against)


def _scored(parsed: argparse.Namespace, bundle: Bundle, against: Calibration | None) -> int:
    listed = _listed(parsed.paths)
    prepare = _preparation(parsed, bundle, against)
    options = {"precision": parsed.precision, "threads": parsed.threads}
    partial = parsed.output.with_name(f"{parsed.output.name}.partial")

    def items() -> Iterator[sources.Item]:
        return sources.items(parsed.paths, listed, bundle.spec.channels)

    with Scorer.open(bundle, parsed.engine, **options) as scorer:
        if against is not None and against != bundle.calibration:
            _warn_of_other_scores(parsed, against, scorer)
        decision = Decision(parsed.threshold)
        journal = Journal(partial, _about(scorer, prepare, decision), CHUNK, resume=parsed.resume)
        with _kept(journal):
            _run(Run(scorer, prepare, decision, parsed.strict), items(), journal)
            _write_table(parsed, scorer, journal)
            if parsed.copy_flagged:
                copy_flagged(items(), journal.rows(), parsed.copy_flagged)
            summary = _summary(parsed, journal.rows())
            scores = _scores(journal) if against is not None else []
    print("\n".join(map(_printable, summary)))
    if against is not None:
        _tell_drift(np.array(scores, np.float32), against)
    return 0


@contextmanager
def _kept(journal: Journal) -> Iterator[None]:
    """Remove a journal when all is done; after an error keep it, if it has rows."""
    try:
        yield
    except BaseException:
        if journal.count:
            journal.close()
            kept = f"{journal.path} keeps the rows so far; --resume goes on from there"
            print(kept, file=sys.stderr)
        else:
            journal.remove()
        raise
    journal.remove()


def _listed(paths: Sequence[str]) -> list[str]:
    """The paths on standard input, where it is asked for."""
    if sources.LIST not in paths:
        return []
    if sys.stdin is None:
        raise OdinError(f"{sources.LIST} wants a list of paths on standard input, which is closed")
    return sources.paths_of_list(sys.stdin.buffer.read())


def _checked(parsed: argparse.Namespace) -> Bundle:
    """The bundle, once all that can be refused before the work was looked at."""
    rows.check_output(parsed.output)
    sources.check_paths(parsed.paths)
    bundle = read_bundle(Path(parsed.bundle))
    if parsed.top and not parsed.sort:
        raise OdinError("--top wants --sort, which says what comes first")
    problem = _uncalibrated(bundle)
    if parsed.sort == "percentile" and problem:
        raise OdinError(f"--sort percentile wants a calibration: {problem}")
    if parsed.copy_flagged and problem and parsed.threshold is None:
        raise OdinError(f"--copy-flagged wants a threshold: give --threshold; {problem}")
    if parsed.copy_flagged:
        check_folder(parsed.copy_flagged, parsed.paths)
    return bundle


def _uncalibrated(bundle: Bundle) -> str | None:
    """Why there is no threshold for the scores, and the remedy; None if there is one."""
    known, spec = bundle.calibration, bundle.spec
    if known is None:
        return (
            f"bundle {bundle.path} is not calibrated: run "
            f"'odin-bench {bundle.argument} --calibrate IN_DATASET'"
        )
    return known.unlike(spec, spec.temperature, spec.magnitude)


def _preparation(
    parsed: argparse.Namespace, bundle: Bundle, against: Calibration | None
) -> Preparation:
    """As the flags say, or as the calibration's images; what should be known of it is told.

    Raises:
        OdinError: the network takes no image of the size that all get.
    """
    spec, prepare = bundle.spec, usual(bundle)
    if (parsed.shorter, parsed.crop, parsed.size) != (None, None, None):
        size = prepare.size if parsed.size is None else parsed.size
        prepare = Preparation(parsed.shorter, parsed.crop, size or None)
    elif prepare != Preparation(size=usual_size(spec)):
        print(
            f"images are prepared as the calibration's ({prepare.in_words()}); --shorter, --crop "
            "and --size change that",
            file=sys.stderr,
        )
    try:
        prepare.check(spec)
    except OdinError as error:
        raise OdinError(f"images prepared so ({prepare.in_words()}): {error}") from None
    calibrations = [known for known in (bundle.calibration, against) if known is not None]
    problems = [prepare.unlike(known, spec) for known in calibrations]
    if bundle.calibration is not None:
        problems.append(_uncalibrated(bundle))
    for problem in dict.fromkeys(filter(None, problems)):
        warnings.warn(problem, stacklevel=2)
    return prepare


def _about(scorer: Scorer, prepare: Preparation, decision: Decision) -> dict[str, Any]:
    """What the rows depend on, beside the images."""
    bundle = scorer.bundle
    known = bundle.calibration and {
        "threshold": bundle.spec.threshold,
        **as_json(bundle.calibration),
    }
    others = [plan.file for plan in bundle.plans if plan.engine != scorer.engine]
    size = None if prepare.size is None else list(prepare.size)
    return {
        "schema": 2,
        "bundle": _digest(
            {name: bundle.files[name] for name in bundle.files if name not in others}
        ),
        "settings": {name: getattr(bundle.spec, name) for name in _SETTINGS},
        "calibration": None if known is None else _digest(known),
        "engine": scorer.engine,
        "precision": scorer.precision,
        "images": {**asdict(prepare), "size": size},
        "threshold": decision.threshold,
    }


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _write_table(parsed: argparse.Namespace, scorer: Scorer, journal: Journal) -> None:
    calibrated = not isinstance(scorer.calibration(), str)
    decided = calibrated or parsed.threshold is not None
    names = rows.columns(scorer.spec.scores, decided, calibrated)
    written = journal.rows()
    if parsed.sort:
        written = iter(rows.lowest(written, parsed.sort, parsed.top))
    rows.write(parsed.output, written, names)


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


def _scores(journal: Journal) -> list[float | None]:
    return [row["score"] for row in journal.rows() if row["error"] is None]


def _summary(parsed: argparse.Namespace, found: Iterator[rows.Row]) -> list[str]:
    """Lines that say how the run went."""
    scored = flagged = unreadable = 0
    problems: list[str] = []
    for row in found:
        if row["error"] is None:
            scored += 1
            flagged += bool(row.get("is_ood"))
        else:
            unreadable += 1
            if len(problems) < _TOLD:
                named = row["path"] in row["error"]
                problems.append(row["error"] if named else f"{row['path']}: {row['error']}")
    lines = [f"{parsed.output}: {scored:,} images scored, {unreadable:,} could not be read"]
    lines += [f"  {problem}" for problem in problems]
    if unreadable > _TOLD:
        lines.append(f"  and {unreadable - _TOLD:,} more, told in their rows")
    if scored and (flagged or parsed.copy_flagged):
        lines.append(f"  {flagged:,} out-of-distribution ({100 * flagged / scored:.1f} %)")
    return lines


def _printable(text: str) -> str:
    """A line for the terminal; names of files may hold line ends, and bytes that are no text."""
    escaped = "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )
    coding = sys.stdout.encoding or "utf-8"
    return escaped.encode(coding, "backslashreplace").decode(coding)


def _tell_warning(message: Warning | str, *_: object, **__: object) -> None:
    """In place of Python's own form, which names lines of code."""
    print(f"odin-score: warning: {message}", file=sys.stderr, flush=True)


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
    if against.spec.checkpoint_sha256 != spec.checkpoint_sha256:
        raise OdinError(
            f"--drift-against {parsed.drift_against}: its network has other weights "
            f"({against.spec.model}, {against.spec.checkpoint}); give a calibration of "
            f"{bundle.argument}'s own"
        )
    problem = against.calibration.unlike(spec, spec.temperature, spec.magnitude)
    if problem:
        raise OdinError(f"--drift-against {parsed.drift_against}: {problem}")
    return against.calibration


def _warn_of_other_scores(parsed: argparse.Namespace, against: Calibration, scorer: Scorer) -> None:
    """Where the other bundle was calibrated in another precision; of its own the scorer tells."""
    problem = against.drift(scorer.engine, scorer.precision)
    if problem:
        warnings.warn(f"--drift-against {parsed.drift_against}: {problem}", stacklevel=2)


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
