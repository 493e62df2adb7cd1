"""odin-export: a network in, a bundle out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from odin_engines import command
from odin_engines.bundle import ODIN, Bundle, check_output, is_bundle, read_bundle
from odin_engines.errors import OdinError
from odin_engines.plan_sets import PlanOptions
from odin_engines.spec import DEFAULT_MAGNITUDE, DEFAULT_TEMPERATURE, SCORE_NAMES
from odin_export.flags import add_model_options, given_options
from odin_export.plan_bundles import PlanMaker, add_plans
from odin_export.plan_flags import (
    PLAN_FLAGS,
    add_plan_options,
    graph_engine,
    plan_lines,
    plan_options,
)
from odin_export.presets import LAYOUTS
from odin_export.triton_flags import TRITON_FLAGS, add_triton_options, write_repository

if TYPE_CHECKING:
    from odin_export.exporter import Source

_DESCRIPTION = """\
Turn a classifier into an ODIN bundle: one ONNX graph that holds the forward pass, the analytic
backward pass, the perturbation, the second forward pass and the score, for any ONNX runtime.
"""
_EXAMPLES = """\
examples:
  odin-export densenet10
        the network that comes with this package, into the folder densenet10
  odin-export densenet100 --checkpoint densenet100.pth.tar.gz --magnitude 0.0028
        the release's own file
  odin-export densenet10 --checkpoint mine.pth --mean 0.4914,0.4822,0.4465 \\
              --std 0.2023,0.1994,0.2010 --output mine
        your weights, with the normalisation that they were trained with
  odin-export densenet10 --input-type uint8 --method first-order
        raw images in, and two thirds of the work: an approximation of the exact score
  odin-export resnet50.onnx --preset imagenet --verify 3
        any classifier; the gradient is compared with finite differences first
  odin-export keras.onnx --scale 255 --check
        whether a network that takes pixels in [0, 255] can be exported, and what stands in the way
then:
  odin-bench densenet10
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run odin-export; return its exit status: 0 done, 1 refused, 130 interrupted."""
    parsed = _parser().parse_args(arguments)
    return command.run("odin-export", lambda: _export(parsed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="odin-export",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="densenet10, densenet100, wideresnet10, wideresnet100, or an .onnx file; or, with "
        "--engine ort, trt or rtx, the folder of a bundle, which gets what that engine wants "
        "without a new export",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="the bundle (default: ./MODEL)")
    _add_file_options(parser.add_argument_group("what an .onnx file holds, where it is not clear"))
    _add_proof_options(parser.add_argument_group("proof"))
    add_model_options(parser)
    parser.add_argument(
        "--temperature",
        type=float,
        default=DEFAULT_TEMPERATURE,
        metavar="T",
        help="of the softmax (default: %(default)g)",
    )
    parser.add_argument(
        "--magnitude",
        type=float,
        default=DEFAULT_MAGNITUDE,
        metavar="M",
        help="of the perturbation, for pixels in [0, 1] (default: %(default)g)",
    )
    parser.add_argument(
        "--tunable",
        action="store_true",
        help="make temperature and magnitude inputs of odin.onnx, instead of building them in",
    )
    parser.add_argument(
        "--input-type",
        choices=("float32", "uint8"),
        default="float32",
        help="of odin.onnx: normalised (N, 3, H, W) float32, or raw (N, H, W, 3) uint8 "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--scores",
        type=_score_names,
        default=(),
        metavar="NAME,...",
        help=f"further outputs of odin.onnx that cost next to nothing: {', '.join(SCORE_NAMES)}; "
        "gradnorm needs a linear last layer, cam-max and cam-std global average pooling before it",
    )
    add_plan_options(parser.add_argument_group("for one engine"))
    add_triton_options(parser.add_argument_group("for the Triton Inference Server"))
    return parser


def _score_names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in SCORE_NAMES:
            raise argparse.ArgumentTypeError(f"{name!r}: choose from {', '.join(SCORE_NAMES)}")
    return names


def _add_file_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--input", metavar="NAME", help="the input that takes the images")
    group.add_argument(
        "--logits",
        metavar="NAME",
        help="the value that holds the logits: an output, or any value inside (default: the output "
        "that looks like one row of classes an image, without a final softmax)",
    )
    group.add_argument(
        "--layout", choices=LAYOUTS, help="of the images (default: told by their shape)"
    )
    group.add_argument(
        "--bgr",
        action="store_true",
        help="the network takes channels in the order blue, green, red; the bundle takes red, "
        "green, blue",
    )


def _add_proof_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--check",
        action="store_true",
        help="write nothing, to --output neither: show which ops have gradient rules, which "
        "engines take the result, and the first obstacle; exit status 1 if there is one",
    )
    group.add_argument(
        "--verify",
        type=int,
        metavar="N",
        help="compare the gradient with finite differences along N random directions, in double "
        "precision, before anything is written; exit status 1 if they differ",
    )


def _export(parsed: argparse.Namespace) -> int:
    plans = plan_options(parsed)
    if parsed.triton_repository is not None:
        return _serve(parsed)
    for name in TRITON_FLAGS:
        if getattr(parsed, name) != _parser().get_default(name):
            flag = f"--{name.replace('_', '-')}"
            raise OdinError(f"{flag} goes with --triton-repository; add it")
    if _is_folder_of_bundle(parsed.model):
        _check_nothing_else_is_given(parsed)
        _add_for_engine(Path(parsed.model), parsed.output, graph_engine(parsed), plans)
        return 0
    from odin_export import engine_graphs, exporter
    from odin_export.ends import Choice

    options = exporter.Options(
        temperature=parsed.temperature,
        magnitude=parsed.magnitude,
        input_type=parsed.input_type,
        tunable=parsed.tunable,
        scores=parsed.scores,
        **given_options(parsed),  # type: ignore[arg-type]
    )
    choice = Choice(parsed.input, parsed.logits, parsed.layout, parsed.bgr)
    is_file = Path(parsed.model).suffix.lower() == ".onnx"
    _check_together(parsed, is_file, choice != Choice())
    output = parsed.output or Path(Path(parsed.model).stem if is_file else parsed.model)
    with _Steps() as steps:
        if not parsed.check:
            exporter.check_output(output)
        if is_file:
            source = exporter.from_file(Path(parsed.model), options, choice, steps.begin)
        else:
            source = exporter.from_name(parsed.model, parsed.checkpoint, options, steps.begin)
        for note in source.notes:
            steps.say(f"  {note}")
        try:
            own, existing = graph_engine(parsed), _bundle_at(output)
            if own is not None:
                engine_graphs.check(own, source.spec)
            elif plans is not None and existing is not None:
                own = engine_graphs.engine_of_own_graph(existing, source.spec)
            maker = None
            if plans is not None or own is not None:  # other engines keep what still fits
                maker = PlanMaker(source.spec, plans, existing)
                maker.check()
            if parsed.check and (status := _checked(source, steps)):
                return status
            if parsed.verify is not None and not _verified(source, parsed.verify, steps):
                return command.REFUSED
            if parsed.check:
                return 0
            bundle = exporter.write(source, output, steps.begin, maker, own)
        except OdinError as error:
            if not is_file:
                raise
            raise OdinError(f"{parsed.model}: {error}") from error
    _summarise(bundle, output, frozenset() if maker is None else maker.reused)
    _say_of_own_graph(bundle, own)
    print(f"  next: odin-bench {output}")
    return 0


def _serve(parsed: argparse.Namespace) -> int:
    """Write a server's repository of models."""
    if not _is_folder_of_bundle(parsed.model):
        raise OdinError(
            f"--triton-repository takes a bundle, and {parsed.model} is none: export it first with "
            f"'odin-export {parsed.model} --output DIR', and give DIR"
        )
    _check_nothing_else_is_given(parsed, *TRITON_FLAGS)
    if parsed.output is not None or graph_engine(parsed) or plan_options(parsed):
        raise OdinError("--triton-repository is a run of its own; leave out --output and --engine")
    write_repository(parsed)
    return 0


def _check_together(parsed: argparse.Namespace, is_file: bool, chosen: bool) -> None:
    """Refuse flags that do not go with a model of this kind."""
    if parsed.verify is not None and parsed.verify < 1:
        raise OdinError(f"--verify {parsed.verify}: give a number of directions from 1")
    if is_file and parsed.checkpoint is not None:
        raise OdinError("--checkpoint is for the four networks; an .onnx file holds its weights")
    if not is_file and chosen:
        raise OdinError("--input, --logits, --layout and --bgr are for .onnx files")


def _summarise(bundle: Bundle, output: Path, reused: frozenset[str]) -> None:
    """Print what a bundle holds, and what to do next."""
    spec = bundle.spec
    print(f"{bundle.path}: {spec.architecture}, {spec.classes} classes, weights {spec.checkpoint}")
    outputs = ("score", "baseline", "label", "logits", *spec.scores)
    size = (bundle.path / ODIN).stat().st_size / 1e6
    print(f"  {ODIN} ({size:.1f} MB) takes images and gives {', '.join(outputs)}")
    if spec.graph_precision != "fp32":
        scale = f", seed of the backward pass x {spec.seed_scale:g}" if spec.seed_scale != 1 else ""
        print(f"  the network is in {spec.graph_precision}{scale}")
    for line in plan_lines(bundle, reused):
        print(f"  {line}")


def _say_of_own_graph(bundle: Bundle, engine: str | None) -> None:
    """Print whether a bundle has the graph in the form of an engine that asked for it."""
    if engine is None:
        return
    file = bundle.odin(engine)
    if file.name == ODIN:
        print(f"  {ODIN} has nothing that engine {engine} would be faster with in another form")
        return
    size = file.stat().st_size / 1e6
    print(f"  {file.name} ({size:.1f} MB): the same in the form that engine {engine} opens")


def _add_for_engine(
    folder: Path, output: Path | None, engine: str | None, options: PlanOptions | None
) -> None:
    """Add to a bundle what an engine wants, and print what became of it."""
    bundle = read_bundle(folder)
    if engine is None and options is None:
        raise OdinError(
            f"{folder} is a bundle: --engine trt or rtx adds plans to it, --engine ort a graph; to "
            "export anew, give the model that it was made from"
        )
    check_output(output or folder)
    reused: frozenset[str] = frozenset()
    if options is not None:
        written, reused = add_plans(bundle, options, output)
    else:
        assert engine is not None
        from odin_export.engine_graphs import add_own_graph

        written = add_own_graph(bundle, engine, output)
        reused = frozenset(plan.file for plan in written.plans)
    print(f"{written.path}: {written.spec.architecture}, {written.spec.classes} classes")
    for line in plan_lines(written, reused):
        print(f"  {line}")
    _say_of_own_graph(written, engine)
    for name, problem in bundle.damaged.items():
        if name not in written.files:
            print(f"  left out: {problem}")


def _bundle_at(path: Path) -> Bundle | None:
    """The bundle there, if there is one that can be read."""
    try:
        return read_bundle(path) if is_bundle(path) else None
    except OdinError:  # it will be replaced
        return None


def _is_folder_of_bundle(model: str) -> bool:
    """Whether MODEL is a bundle; a bare name of a network is that network, exported anew."""
    if not is_bundle(Path(model)):
        return False
    if Path(model).name != model or find_spec("torch") is None:  # which networks need
        return True
    from odin_export.networks import NETWORKS

    return model not in NETWORKS


def _check_nothing_else_is_given(parsed: argparse.Namespace, *but: str) -> None:
    """For a bundle, whose graphs stay as they are."""
    parser = _parser()
    for name, value in vars(parsed).items():
        if name in ("model", "output", "engine", *PLAN_FLAGS, *but) or value == parser.get_default(
            name
        ):
            continue
        does = "proves a model" if name in ("check", "verify") else "changes graphs"
        raise OdinError(
            f"--{name.replace('_', '-')} {does}, and {parsed.model} is a bundle, whose graphs stay "
            "as they are: give the model that it was made from"
        )


class _Steps:
    """A progress bar of steps on a terminal, and lines that stay above it."""

    def __enter__(self) -> _Steps:
        from tqdm import tqdm

        from odin_export.exporter import STEPS

        layout = "{desc:<16}|{bar:30}| {elapsed}"
        # Only on a terminal (disable=None), and gone when done: what stays are the lines said.
        self._bar = tqdm(total=len(STEPS), bar_format=layout, leave=False, disable=None)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def begin(self, name: str) -> None:
        """Show the next step."""
        self._bar.set_description_str(name)
        self._bar.update()

    def say(self, text: str) -> None:
        """Print a line."""
        self._bar.write(text)


def _verified(source: Source, count: int, steps: _Steps) -> bool:
    """Compare the gradient with finite differences, and say how it went."""
    from odin_export.verify import (
        LOGITS_TOLERANCE,
        STEPS,
        TOLERANCE,
        directions,
        logits_error,
        trial_shape,
    )

    spec = source.spec
    shape = trial_shape(2, spec.channels, spec.height, spec.width)
    steps.say(
        f"gradient against central differences, step {STEPS[0]:g}, in float64; for each direction "
        f"2 random images {'x'.join(map(str, shape[1:]))} and random factors of the logits:"
    )
    held = True
    for number, each in enumerate(directions(source.forward, shape, count), start=1):
        held = held and each.holds
        steps.say(
            f"  direction {number}: gradient {each.analytic:+.9e}, differences "
            f"{each.numeric:+.9e}, error {each.error:.1e}"
            + (f" at step {each.step:g}" if each.step != STEPS[0] else "")
            + ("" if each.holds else "  DIFFERS")
        )
    error = logits_error(source.forward, shape)
    same = error <= LOGITS_TOLERANCE
    steps.say(
        f"  logits in float64 against ONNX Runtime's in float32: error {error:.1e}"
        + ("" if same else f"  DIFFERS (allowed: {LOGITS_TOLERANCE:g} of their norm)")
    )
    held = held and same
    verdict = "agree" if held else "DIFFER: please report this model"
    steps.say(f"  they {verdict} (allowed: {TOLERANCE:g} of the gradient's norm)")
    return held


def _checked(source: Source, steps: _Steps) -> int:
    from odin_export.check import as_text, check

    report = check(source.forward, source.spec)
    steps.say(as_text(report))
    return 0 if report.passed else command.REFUSED
