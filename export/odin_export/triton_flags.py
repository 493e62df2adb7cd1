"""Flags of odin-export that tell of a repository of models for the Triton Inference Server."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import Literal

from odin_engines.bundle import read_bundle

TRITON_FLAGS = ("triton_repository", "triton_scorer", "triton_size")
# What the server's backends are among engines; odin_python tells by itself.
_ENGINES = {"onnx": "ort", "trt": "trt"}


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
        metavar="HxW|any",
        help="height and width of all images: the server refuses others by itself; any leaves it "
        "to the models (default: that of the calibration's images; any, if there is none)",
    )


def _size(text: str) -> tuple[int, int] | Literal["any"]:
    if text == "any":
        return "any"
    found = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if found is None:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give height and width, such as 224x224, or any"
        )
    return int(found[1]), int(found[2])


def write_repository(parsed: argparse.Namespace) -> None:
    """Write what the flags ask for, and say what it holds.

    Raises:
        OdinError: as `read_bundle`, `triton.repository` and `triton.write`.
    """
    from odin_export import triton

    bundle = read_bundle(Path(parsed.model))
    known = bundle.calibration
    size = parsed.triton_size or (known.size if known else None)
    size = None if size == "any" else size
    models = triton.repository(bundle, parsed.triton_scorer, size=size)
    triton.write(parsed.triton_repository, models)
    print(f"{parsed.triton_repository}: {', '.join(model.name for model in models)}")
    print(f"  for images {f'of {size[0]}x{size[1]} pixels' if size else 'of any size'}")
    if reason := triton.undecided(bundle):
        print(f"  without is_ood: {reason}")
    elif known and parsed.triton_scorer in _ENGINES:
        engine = _ENGINES[parsed.triton_scorer]
        if problem := known.drift(engine, bundle.spec.precision):
            print(f"  warning: {problem}")
    # Not every server can load all of them: odin_python wants odin-ood installed beside it.
    print(
        f"  next: tritonserver --model-repository {shlex.quote(str(parsed.triton_repository))} "
        "--model-control-mode explicit --load-model odin"
    )
