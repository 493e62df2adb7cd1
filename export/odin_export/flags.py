"""Command-line flags that odin-export and odin-bench share; imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path

from odin_engines.errors import OdinError


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
    for name, default in (
        ("mean", "125.3/255, 123/255, 113.9/255"),
        ("std", "63/255, 62.1/255, 66.7/255"),
    ):
        parser.add_argument(
            f"--{name}",
            type=_three_numbers,
            metavar="R,G,B",
            help=f"of the training images, for pixels in [0, 1] (default: {default})",
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
        help="in which the engine computes the network; scores are float32 always (default: fp32)",
    )


def given_options(parsed: argparse.Namespace) -> dict[str, object]:
    """Return those of the flags above that set a field of `exporter.Options` and were given.

    Raises:
        OdinError: one of --mean and --std without the other.
    """
    if (parsed.mean is None) != (parsed.std is None):
        given, other = ("--mean", "--std") if parsed.std is None else ("--std", "--mean")
        raise OdinError(f"{given} is given without {other}; a normalisation needs both")
    names = ("method", "mean", "std", "precision")
    return {name: getattr(parsed, name) for name in names if getattr(parsed, name) is not None}


def _three_numbers(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3:
        raise argparse.ArgumentTypeError(f"{text!r}: give three numbers, as 0.49,0.48,0.45")
    return values
