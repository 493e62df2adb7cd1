"""odin-bench: how well a bundle tells out-of-distribution images, whether PyTorch agrees, speed."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from odin_bench.flags import check_mode, parser
from odin_bench.grid import is_grid
from odin_bench.terminal import say
from odin_engines import command
from odin_engines.engine import ENGINES, converts, resolve
from odin_engines.errors import OdinError

if TYPE_CHECKING:
    from odin_bench.datasets import Dataset
    from odin_bench.evaluation import Evaluation, Result, Setting
    from odin_bench.parity import Parity
    from odin_engines.bundle import Bundle
    from odin_runtime import Scorer

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run odin-bench; return its exit status: 0 done, 1 refused, 130 interrupted."""
    parsed = parser().parse_args(arguments)
    return command.run("odin-bench", lambda: _bench(parsed))


def _bench(parsed: argparse.Namespace) -> int:
    _check_json_folder(parsed.json)
    info = ENGINES.get(parsed.engine)
    if parsed.gpu is not None and info is not None and info.gpu_extra:
        _show_one_gpu(parsed.gpu)
    if parsed.nn and parsed.model:
        raise OdinError(f"MODEL {parsed.model} and --nn {parsed.nn} are both given; give one")
    if parsed.doctor:
        from odin_bench.doctor import diagnose

        return diagnose(parsed.nn or parsed.model, parsed.engine, parsed.precision, parsed.json)
    check_mode(parsed)
    engine = resolve(parsed.engine, parsed.precision or "fp32")
    if parsed.gpu is not None and (info is None or not info.gpu_extra):
        say(f"--gpu {parsed.gpu} changes nothing: --engine {parsed.engine} is not one for a GPU")
    if parsed.throughput or parsed.profile or parsed.opening:
        from odin_bench.throughput_cli import run

        return run(parsed, partial(_bundle, parsed, engine), partial(_scorer, parsed))
    if parsed.calibrate:
        from odin_bench.calibrate_cli import calibrate, check_is_bundle

        check_is_bundle(parsed.nn or parsed.model)
        return calibrate(parsed, _bundle(parsed, engine), partial(_scorer, parsed))
    if parsed.scaling:
        from odin_bench.scale_cli import scale

        return scale(parsed, partial(_bundle, parsed, engine), partial(_scorer, parsed))
    if is_grid(parsed.magnitude) or is_grid(parsed.temperature):
        from odin_bench.sweep import check_engine
        from odin_bench.sweep_cli import sweep

        check_engine(parsed.engine)
        return sweep(parsed, _bundle(parsed, engine))
    bundle = _bundle(parsed, engine)
    magnitude_of = _magnitudes(parsed, bundle)
    with _scorer(parsed, bundle) as scorer:
        return _score_sets(parsed, scorer, magnitude_of)


def _show_one_gpu(number: int) -> None:
    """Let CUDA see this GPU alone, before it is first asked: then it is every engine's first.

    Raises:
        OdinError: the user has left CUDA fewer GPUs.
    """
    left = os.environ.get(_VISIBLE)
    if left is None:
        os.environ[_VISIBLE] = str(number)
        return
    names = [name for name in left.split(",") if name]
    if number >= len(names):
        raise OdinError(
            f"--gpu {number}: {_VISIBLE}={left} leaves {len(names)} GPUs, counted from 0"
        )
    os.environ[_VISIBLE] = names[number]


def _score_sets(
    parsed: argparse.Namespace, scorer: Scorer, magnitude_of: Callable[[str], float]
) -> int:
    """Score and print all sets; return the exit status."""
    from odin_bench import sets
    from odin_bench.evaluation import Evaluation

    spec = scorer.spec
    in_set = sets.in_set(parsed, spec)
    size = sets.size(parsed, spec, in_set, say)
    out_sets = sets.out_sets(parsed, spec, in_set, size, say)
    settings = [_setting(parsed, scorer, magnitude_of(out_set.name)) for out_set in out_sets]
    say(
        f"{spec.architecture}, weights {spec.checkpoint}, engine {scorer.engine}, "
        f"{scorer.precision}, {spec.method}; {in_set.name} from {in_set.source}"
    )
    evaluation = Evaluation(scorer, in_set, _progress_bar, size)
    results: list[Result] = []
    parity: Parity | None = None
    status = 0
    try:
        for out_set, setting in zip(out_sets, settings, strict=True):
            results.append(evaluation.run(out_set, setting))
            _print_result(results[-1], scorer.bundle)
            if len(results) == 1 and parsed.parity > 0:
                parity = _parity(parsed, evaluation, out_set, setting)
    except KeyboardInterrupt:
        status = command.INTERRUPTED
        say(f"odin-bench: interrupted; {len(results)} of {len(out_sets)} sets were finished")
    finally:  # what was finished is not lost, whatever happened to the rest
        if results:
            _print_summary(results, scorer, parity)
            _write_json(parsed, scorer, results, parity)
    return status


def _write_json(
    parsed: argparse.Namespace, scorer: Scorer, results: list[Result], parity: Parity | None
) -> None:
    from odin_bench.report import as_json, write_json

    if parsed.json:
        write_json(parsed.json, as_json(scorer, results, parity))


def _check_json_folder(path: Path | None) -> None:
    """Fail before the work rather than after it."""
    if path is not None and not path.absolute().parent.is_dir():
        raise OdinError(f"--json {path}: the folder {path.absolute().parent} does not exist")
    if path is not None and not os.access(path.absolute().parent, os.W_OK):
        raise OdinError(f"--json {path}: the folder {path.absolute().parent} is not writable")
    if path is not None and path.is_dir():
        raise OdinError(f"--json {path} is a folder; give the name of a file")


def _bundle(parsed: argparse.Namespace, engine: str, **changes: object) -> Bundle:
    """The bundle that the flags name; `changes` are of `Options`, where it is exported."""
    from odin_bench.models import find_bundle, with_plans
    from odin_engines.bundle import is_bundle
    from odin_export.exporter import Options
    from odin_export.flags import given_options
    from odin_runtime.gpu_options import PLAN_ENGINES

    name = parsed.nn or parsed.model or "densenet10"
    # What is exported here takes any temperature and magnitude, so one export serves every run.
    given = given_options(parsed)
    if parsed.precision and converts(engine, parsed.precision):
        del given["precision"]  # an fp32 bundle serves
    options = Options(**{**given, "tunable": True, **changes})  # type: ignore[arg-type]
    bundle = find_bundle(name, parsed.checkpoint, options, lambda step: say(f"{name}: {step}"))
    if engine in PLAN_ENGINES and not is_bundle(Path(name)):  # a user's own is left as it is
        bundle = with_plans(bundle, engine, lambda step: say(f"{name}: {step}"))
    for flag in ("mean", "std", "method"):
        asked, has = given.get(flag), getattr(bundle.spec, flag)
        if isinstance(asked, tuple) and len(asked) == 1:  # one value for all channels
            asked = asked * len(has)
        if asked is not None and asked != has:
            raise OdinError(
                f"--{flag} {_plainly(asked)}: bundle {bundle.path} was exported with "
                f"{_plainly(has)}; leave the flag out, or export another bundle with odin-export"
            )
    return bundle


def _plainly(value: object) -> str:
    return ",".join(f"{part:.4g}" for part in value) if isinstance(value, tuple) else str(value)


def _magnitudes(parsed: argparse.Namespace, bundle: Bundle) -> Callable[[str], float]:
    """The magnitude for each out-of-distribution set."""
    if parsed.magnitude == "release":
        from odin_bench.published import published

        def published_magnitude(name: str) -> float:
            found = published(bundle.spec.model, name)
            return bundle.spec.magnitude if found is None else found.magnitude

        return published_magnitude
    if parsed.magnitude is None:
        return lambda name: bundle.spec.magnitude
    try:
        magnitude = float(parsed.magnitude)
    except ValueError:
        raise OdinError(f"--magnitude {parsed.magnitude}: give a number, or 'release'") from None
    return lambda name: magnitude


def _scorer(parsed: argparse.Namespace, bundle: Bundle, threads: int | None = None) -> Scorer:
    """The bundle, opened as the flags say; `threads` in place of --threads."""
    from odin_runtime import Scorer

    network = None
    if parsed.engine == "torch":
        from odin_bench.models import find_reference

        network = find_reference(bundle, parsed.checkpoint).network
    return Scorer.open(
        bundle,
        parsed.engine,
        precision=parsed.precision,
        threads=threads or parsed.threads,
        streams=parsed.streams,
        network=network,
    )


def _setting(parsed: argparse.Namespace, scorer: Scorer, magnitude: float) -> Setting:
    """The setting for one set, checked before any set is scored."""
    from odin_bench.evaluation import Setting
    from odin_bench.metrics import reference_grids

    spec = scorer.spec
    temperature = spec.temperature if parsed.temperature is None else float(parsed.temperature)
    scorer.check_setting(temperature, magnitude)
    if parsed.metrics == "reference":
        reference_grids(spec.classes, temperature)
    return Setting(temperature, magnitude, parsed.limit, parsed.metrics)


def _parity(
    parsed: argparse.Namespace, evaluation: Evaluation, out_set: Dataset, setting: Setting
) -> Parity | None:
    """Compare with PyTorch on the first images that were scored of each side."""
    from odin_bench.datasets import protocol_split
    from odin_bench.models import find_reference
    from odin_bench.parity import compare, trace_engine, trace_reference

    scorer = evaluation.scorer
    if scorer.engine == "torch":
        say("parity: the engine is the reference itself")
        return None
    try:
        reference = find_reference(scorer.bundle, parsed.checkpoint)
    except OdinError as error:
        say(f"parity: not checked, because {error}")
        return None
    split = protocol_split(evaluation.in_set, out_set, limit=min(setting.limit, parsed.parity))
    size = evaluation.size
    parts = [part.resized(*size) if size else part for part in (split.in_set, split.out_set)]
    sides = [part.images for part in parts]
    tuned = (setting.temperature, setting.magnitude)
    count = 2 * sum(len(side) for side in sides)
    progress = _progress_bar(f"parity with PyTorch ({sum(map(len, sides))} images)", count)
    engine = [
        trace_engine(scorer, side, *tuned, progress, threads=parsed.threads) for side in sides
    ]
    expected = [trace_reference(reference, side, *tuned, progress) for side in sides]
    return compare((engine[0], engine[1]), (expected[0], expected[1]))


def _print_result(result: Result, bundle: Bundle) -> None:
    from odin_bench.tables import release_block

    names = (bundle.spec.architecture, result.in_dataset, result.out_dataset)
    print(release_block(*names, result.baseline, result.odin), end="\n\n", flush=True)


def _print_summary(results: list[Result], scorer: Scorer, parity: Parity | None) -> None:
    from odin_bench.tables import Row, scores_table, summary_table

    spec = scorer.spec
    rows = [Row(r.out_dataset, r.n_in, r.n_out, r.magnitude, r.baseline, r.odin) for r in results]
    own = results[0].in_dataset == spec.in_dataset
    print(
        summary_table(
            rows,
            spec.model if own else None,
            f"published for the weights of the ODIN release; these are {spec.checkpoint}",
        )
    )
    if any(result.scores for result in results):
        further = [(r.out_dataset, name, r.scores[name]) for r in results for name in r.scores]
        print("\n" + scores_table(sorted(further, key=lambda row: spec.scores.index(row[1]))))
    first = results[0]
    if first.accuracy is not None:
        print(f"\naccuracy on {first.in_dataset}: {100 * first.accuracy:.2f} % of {first.n_in}")
    for note in dict.fromkeys(result.note for result in results):
        print(f"scored: {note}")
    if spec.method == "first-order":
        print("method: first-order, an approximation of ODIN; --method exact gives ODIN itself")
    if parity is not None:
        _print_parity(parity, first, scorer)


def _print_parity(parity: Parity, first: Result, scorer: Scorer) -> None:
    signs = "gradient signs are not compared, which plans do not give"
    if parity.sign_agreement is not None:
        signs = f"gradient signs agree {100 * parity.sign_agreement:.3f} %"
    print(
        f"parity of {scorer.engine} ({scorer.precision}) with PyTorch on {parity.images} "
        f"images of {first.in_dataset} and {first.out_dataset}:\n"
        f"  {signs}, labels {100 * parity.label_agreement:.3f} %; "
        f"largest score difference {parity.max_abs_score_difference:.1e}\n"
        f"  AUROC differs by {parity.auroc_difference:+.5f}, "
        f"FPR at TPR 95 % by {parity.fpr95_difference:+.5f}"
    )


def _progress_bar(title: str, count: int) -> Callable[[int], object]:
    from tqdm import tqdm

    bar = tqdm(total=count, desc=title, unit="image", leave=False, mininterval=0.5, disable=None)

    def advance(done: int) -> None:
        bar.update(done)
        if bar.n >= count:
            bar.close()

    return advance
