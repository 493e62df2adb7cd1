"""odin-bench's flags; imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path

from odin_engines.engine import ENGINE_NAMES
from odin_engines.spec import DEFAULT_MAGNITUDE, DEFAULT_TEMPERATURE
from odin_export.flags import add_model_options

_DESCRIPTION = """\
Score in-distribution images against out-of-distribution images, print the table of the ODIN release
for each set, and check the engine against the PyTorch reference.
"""
_EXAMPLES = """\
examples:
  odin-bench densenet10 --limit 1000
        every set at hand, 1,000 images a side
  odin-bench densenet10 --out-dataset Imagenet SVHN photos/ --json results.json
        these sets, 9,000 images a side as in the release; photos/ is a folder of images
  odin-bench my-bundle --engine ort --checkpoint mine.pth
        a bundle; the checkpoint is needed for the PyTorch reference only
  odin-bench --doctor
        what can score here; for each engine that cannot, what it lacks
  odin-bench --nn densenet10 --out_dataset Imagenet --magnitude 0.0014 --temperature 1000 --gpu 0
        as the release's own program is called

data sets: cifar10 and cifar100 in-distribution; Imagenet, Imagenet_resize, LSUN, LSUN_resize, iSUN,
  SVHN, DTD, CIFAR-100, Uniform, Gaussian out of it; any .npz file with x, uint8 (N, H, W, 3); any
  folder of images. They are looked for in --data, $ODIN_DATA and the cache folder.
"""


def parser() -> argparse.ArgumentParser:
    """Return what reads odin-bench's command line."""
    whole = argparse.ArgumentParser(
        prog="odin-bench",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    model = whole.add_argument_group("what is scored")
    model.add_argument(
        "model",
        nargs="?",
        metavar="MODEL-or-BUNDLE",
        help="a bundle's folder, or densenet10, densenet100, wideresnet10 or wideresnet100, which "
        "is then exported into the cache (default: densenet10)",
    )
    model.add_argument("--nn", metavar="MODEL", help="the same, as the release spells it")
    _add_model_options(model)
    _add_data_options(whole.add_argument_group("on what images"))
    _add_result_options(whole.add_argument_group("how, and what comes out"))
    return whole


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    add_model_options(group)
    group.add_argument(
        "--magnitude",
        metavar="M",
        help="of the perturbation, for pixels in [0, 1]; 'release' takes the published one for "
        f"each set (default: the bundle's, or {DEFAULT_MAGNITUDE:g})",
    )
    group.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help=f"of the softmax (default: the bundle's, or {DEFAULT_TEMPERATURE:g})",
    )


def _add_data_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--in-dataset",
        "--in_dataset",
        metavar="NAME",
        help="(default: the one that the network was trained on)",
    )
    group.add_argument(
        "--out-dataset",
        "--out_dataset",
        nargs="+",
        metavar="NAME",
        help="one or several (default: every set at hand)",
    )
    group.add_argument("--data", type=Path, metavar="DIR", help="folder to look for sets in first")
    group.add_argument(
        "--crop",
        type=_positive,
        metavar="N",
        help="score the inner N x N pixels of larger images: 32 for the release's 36x36 images "
        "without their black border (default: all pixels, as the release does)",
    )
    group.add_argument(
        "--resize",
        type=_positive,
        metavar="N",
        help="scale images to N x N pixels, bilinearly (default: the size that the network takes, "
        "if it takes one only, or its smallest, if they are smaller)",
    )
    group.add_argument(
        "--limit",
        type=_positive,
        metavar="N",
        default=9000,
        help="at most N images a side, after the 1,000 that the release leaves for tuning "
        "(default: %(default)s)",
    )


def _add_result_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--engine",
        choices=ENGINE_NAMES,
        default="auto",
        help="auto is the fastest on a CPU that is installed; torch is the reference; ort-cuda, "
        "ort-trt, trt and rtx run on a GPU, the last two plans of the bundle, which are built "
        "first for a network that is given by its name (default: auto)",
    )
    group.add_argument("--threads", type=_positive, metavar="N", help="of the engine")
    group.add_argument(
        "--metrics",
        choices=("exact", "reference"),
        default="exact",
        help="exact, or the release's threshold scan (default: %(default)s)",
    )
    group.add_argument(
        "--parity",
        type=_whole,
        metavar="N",
        default=256,
        help="check the engine against PyTorch on N images of each side of the first set; 0 "
        "leaves the check out (default: %(default)s)",
    )
    group.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    group.add_argument(
        "--doctor",
        action="store_true",
        help="tell what can score here, or score the bundle, and what the other engines lack; exit "
        "status 1 if none can, or that of --engine cannot",
    )
    group.add_argument(
        "--gpu",
        type=_whole,
        metavar="N",
        help="the N-th of the GPUs that CUDA_VISIBLE_DEVICES leaves, from 0, for the engines that "
        "run on one (default: 0)",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from 1")
    return int(text)


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from 0")
    return int(text)
