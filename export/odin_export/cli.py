"""odin-export: a network in, a bundle out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from odin_engines import command
from odin_engines.bundle import ODIN
from odin_engines.errors import OdinError
from odin_engines.spec import DEFAULT_MAGNITUDE, DEFAULT_TEMPERATURE
from odin_export.flags import add_model_options, given_options

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
        "model", metavar="MODEL", help="densenet10, densenet100, wideresnet10 or wideresnet100"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="the bundle (default: ./MODEL)")
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
        "--engine",
        choices=("onnx", "trt", "rtx"),
        default="onnx",
        help="also build a plan for this engine; onnx, the default, needs none",
    )
    return parser


def _export(parsed: argparse.Namespace) -> int:
    if parsed.engine != "onnx":
        from odin_engines.engine import unavailable

        raise OdinError(f"--engine {parsed.engine}: {unavailable(parsed.engine, 'fp32')}")
    if Path(parsed.model).suffix == ".onnx":
        raise OdinError(
            f"{parsed.model}: this version exports densenet10, densenet100, wideresnet10 and "
            "wideresnet100 only; odin_export.backward.input_gradient derives the gradient graph of "
            "an .onnx classifier"
        )
    from tqdm import tqdm

    from odin_export import exporter

    options = exporter.Options(
        temperature=parsed.temperature,
        magnitude=parsed.magnitude,
        input_type=parsed.input_type,
        tunable=parsed.tunable,
        **given_options(parsed),  # type: ignore[arg-type]
    )
    output = parsed.output or Path(parsed.model)
    layout = "{desc:<16}|{bar:30}| {elapsed}"
    # Only on a terminal (disable=None), and gone when done: what stays are the lines below.
    with tqdm(total=len(exporter.STEPS), bar_format=layout, leave=False, disable=None) as bar:

        def step(name: str) -> None:
            bar.set_description_str(name)
            bar.update()

        bundle = exporter.export(parsed.model, parsed.checkpoint, output, options, step)
    spec = bundle.spec
    print(f"{bundle.path}: {spec.architecture}, {spec.classes} classes, weights {spec.checkpoint}")
    if parsed.mean is None or parsed.std is None:
        print("  normalisation: the release's; --mean and --std change it")
    size = (bundle.path / ODIN).stat().st_size / 1e6
    print(f"  {ODIN} ({size:.1f} MB) takes images and gives score, baseline, label, logits")
    print(f"  next: odin-bench {output}")
    return 0
