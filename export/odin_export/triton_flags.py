"""Flags of odin-export that tell of a repository of models for the Triton Inference Server."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

from odin_engines.bundle import read_bundle

TRITON_FLAGS = ("triton_repository", "triton_scorer", "triton_size")


def add_triton_options(group: argparse._ArgumentGroup) -> None:
    """Add the flags that tell of a Triton server's repository."""
    group.add_argument(
        "--triton-repository",
        type=Path,
        metavar="DIR",
        help="write a repository of models from a bundle: odin_onnx, odin_python, odin_trt if it "
        "has a plan, and odin, which takes raw uint8 images",
    )
    group.add_argument(
        "--triton-scorer",
        choices=("onnx", "trt", "python"),
        default="onnx",
        help="which of them odin scores with (default: %(default)s)",
    )
    group.add_argument(
        "--triton-size",
        type=_size,
        metavar="HxW",
        help="height and width of all images: the server refuses others by itself, also negative "
        "ones, of which some die (default: all sizes that the network takes)",
    )


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r}: give height and width, such as 224x224")
    return int(found[1]), int(found[2])


def write_repository(parsed: argparse.Namespace) -> None:
    """Write what the flags ask for, and say what it holds.

    Raises:
        OdinError: as `read_bundle`, `triton.repository` and `triton.write`.
    """
    from odin_export import triton

    bundle = read_bundle(Path(parsed.model))
    models = triton.repository(bundle, parsed.triton_scorer, size=parsed.triton_size)
    triton.write(parsed.triton_repository, models)
    print(f"{parsed.triton_repository}: {', '.join(model.name for model in models)}")
    if reason := triton.undecided(bundle):
        print(f"  without is_ood: {reason}")
    # Not every server can load all of them: odin_python wants odin-ood installed beside it.
    print(
        f"  next: tritonserver --model-repository {shlex.quote(str(parsed.triton_repository))} "
        "--model-control-mode explicit --load-model odin"
    )
