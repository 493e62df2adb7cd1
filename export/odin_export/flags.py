"""Command-line flags that odin-export and odin-bench share; imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path

from odin_engines.errors import OdinError
from odin_export.presets import MEANINGS, PRESETS, Normalisation


def add_model_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add what tells which weights a network has and how it is scored."""
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="weights: a state dict or whole module of PyTorch, .safetensors, or one of these "
        "inside .gz or .tar.gz; no code in it is ever executed (default: the weights that come "
        "with the package, for densenet10)",
    )
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help="normalisation of the training images: "
        + "; ".join(f"{name}: {meaning}" for name, meaning in MEANINGS.items()),
    )
    for name in ("mean", "std"):
        parser.add_argument(
            f"--{name}",
            type=_numbers,
            metavar="R,G,B",
            help=f"{name} of the training images, in place of a preset; one number counts for all "
            "channels",
        )
    parser.add_argument(
        "--scale",
        type=float,
        metavar="S",
        help="mean and std are for pixels in [0, S] (default: 1); alone, it says that the network "
        "takes pixels in [0, S]",
    )
    parser.add_argument(
        "--method",
        choices=("exact", "first-order"),
        help="exact: ODIN as published; first-order: its Taylor expansion, without the second "
        "forward pass (default: exact)",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "bf16"),
        help="of the network; scores are float32 always. It is written into the graphs, as "
        "TensorRT wants it; odin-bench --engine openvino computes an fp32 bundle in bf16 as well "
        "(default: fp32, or the bundle's)",
    )


def given_options(parsed: argparse.Namespace) -> dict[str, object]:
    """Return those of the flags above that set a field of `exporter.Options` and were given.

    Raises:
        OdinError: the flags contradict each other.
    """
    names = ("method", "precision")
    given = {name: getattr(parsed, name) for name in names if getattr(parsed, name) is not None}
    normalisation = _normalisation(parsed)
    if normalisation is not None:
        given |= {"mean": normalisation.mean, "std": normalisation.std}
    return given


def _normalisation(parsed: argparse.Namespace) -> Normalisation | None:
    """What the flags say of mean and std, for pixels in [0, 1]; None if they say nothing."""
    if (parsed.mean is None) != (parsed.std is None):
        given, other = ("--mean", "--std") if parsed.std is None else ("--std", "--mean")
        raise OdinError(f"{given} is given without {other}; a normalisation needs both")
    if parsed.preset is not None:
        if parsed.mean is not None or parsed.scale is not None:
            raise OdinError("--preset is a whole normalisation; leave out --mean, --std, --scale")
        return PRESETS[parsed.preset]
    if parsed.scale is not None and not 0 < parsed.scale <= 1e6:
        raise OdinError(f"--scale {parsed.scale:g}: give a number above 0, such as 255")
    scale = parsed.scale or 1.0
    if parsed.mean is not None:
        if len(parsed.mean) != len(parsed.std):
            raise OdinError("--mean and --std do not have the same number of values")
        mean, std = (tuple(v / scale for v in values) for values in (parsed.mean, parsed.std))
        return Normalisation(mean, std)
    return None if parsed.scale is None else Normalisation((0.0,), (1 / scale,))


def _numbers(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give three numbers, as 0.49,0.48,0.45, or one for all channels"
        )
    return values
