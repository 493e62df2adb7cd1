"""odin-bench's flags; imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path

from odin_bench.grid import is_grid, parse_grid
from odin_engines.engine import ENGINE_NAMES, MOST_THREADS
from odin_engines.errors import OdinError
from odin_engines.spec import DEFAULT_MAGNITUDE, DEFAULT_TEMPERATURE
from odin_export.flags import add_model_options

_DESCRIPTION = """\
Score in-distribution images against out-of-distribution images, print the table of the ODIN release
for each set, and check the engine against the PyTorch reference. Or time it: see --throughput and
--scaling.
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
  odin-bench densenet10 --magnitude 0:0.004:21 --temperature 1,2,5,10,100,1000 --out-dataset SVHN
        every pair, at the cost of what differs between them; which to take, and what it comes to
  odin-bench my-bundle --calibrate cifar10 --tpr 0.95
        a threshold that 95 % of these images pass, written into the bundle
  odin-bench densenet10 --throughput --batch-sizes 1,64 --json speed.json
        how fast each engine scores, in images a second, in forward passes and beside PyTorch
  odin-bench densenet10 --profile --engine ort
        where the time goes, by type of op
  odin-bench densenet10 --opening
        how soon a new process scores its first image
  odin-bench densenet10 --throughput --end-to-end photos/
        how long a whole set takes from files to scores, and which step is the slowest
  odin-bench densenet10 --scaling --images 1000,30000,1000000 --json scale.json
        whether memory stays flat, time grows with images and pixels alone, and speed with cores
  odin-bench --nn densenet10 --out_dataset Imagenet --magnitude 0.0014 --temperature 1000 --gpu 0
        as the release's own program is called

data sets: cifar10 and cifar100 in-distribution; Imagenet, Imagenet_resize, LSUN, LSUN_resize, iSUN,
  SVHN, DTD, CIFAR-100, Uniform, Gaussian out of it; any .npz file with x, uint8 (N, H, W, 3); any
  folder of images. They are looked for in --data, $ODIN_DATA and the cache folder.
"""


_SPEED = """\
Without --engine, the engines that compute on a CPU, in each precision that they have here, and
PyTorch. Programs take turns, so that what drifts hits all alike. Passes are the time of ODIN over
that of the same engine's forward pass, except with trt and rtx, of which only scoring is timed.
"""
# Which flags change what, by the names that argparse gives them.
_OF_SPEED = {
    "batch_sizes": ("throughput", "profile"),
    "size": ("throughput", "profile", "opening"),
    "seconds": ("throughput", "scaling"),
    "torch_compile": ("throughput",),
    "end_to_end": ("throughput",),
    "images": ("scaling",),
}
_OF_CALIBRATION = ("data", "crop", "resize", "limit")
_OF_ROUNDS = ("batch_sizes", "seconds", "torch_compile")
_OF_SCORING = (
    *("in_dataset", "out_dataset", "data", "crop", "resize", "limit"),
    *("magnitude", "temperature", "metrics", "parity"),
)
BATCH_SIZES = (1, 8, 64)
IMAGES = (1000, 4000, 16000)
SECONDS = 20.0
DEFAULT_TPR = 0.95


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
    _add_calibration_options(whole.add_argument_group("where to draw the line, instead"))
    _add_speed_options(whole.add_argument_group("how fast, in place of how well", _SPEED))
    return whole


def check_mode(parsed: argparse.Namespace) -> None:
    """Check that no flag was given that would change nothing.

    Raises:
        OdinError: naming it, and the flag that it goes with.
    """
    every = ("throughput", "profile", "opening", "scaling", "calibrate")
    modes = {mode for mode in every if getattr(parsed, mode)}
    for alone in ("scaling", "calibrate"):
        for other in sorted(modes - {alone}) if alone in modes else ():
            raise OdinError(f"--{alone} is a run of its own; leave out --{other}")
    default = parser().get_default
    given = {name for name in vars(parsed) if getattr(parsed, name) != default(name)}
    for name in sorted(given & set(_OF_SPEED)):
        if not modes & set(_OF_SPEED[name]):
            wanted = " or ".join(f"--{mode}" for mode in _OF_SPEED[name])
            raise OdinError(f"{_flag(name)} goes with {wanted}; add it")
    for name in sorted(given & {"tpr", "decision"}) if not parsed.calibrate else ():
        raise OdinError(f"{_flag(name)} goes with --calibrate; add it")
    allowed = set(_OF_CALIBRATION) if parsed.calibrate else set()
    for name in sorted(given & set(_OF_SCORING) - allowed) if modes else ():
        raise OdinError(
            f"{_flag(name)} is of scoring sets of images; leave it out with --{max(modes)}"
        )
    if "parity" in given and (is_grid(parsed.magnitude) or is_grid(parsed.temperature)):
        raise OdinError("--parity changes nothing with a grid of settings; leave it out")
    for name in sorted(given & set(_OF_ROUNDS)) if parsed.end_to_end else ():
        raise OdinError(f"{_flag(name)} changes nothing with --end-to-end; leave it out")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    add_model_options(group)
    group.add_argument(
        "--magnitude",
        metavar="M",
        help="of the perturbation, for pixels in [0, 1]; 'release' takes the published one for "
        f"each set; a grid, 0:0.004:21 for 21 values or 0,0.001,0.002, tries them all (default: "
        f"the bundle's, or {DEFAULT_MAGNITUDE:g})",
    )
    group.add_argument(
        "--temperature",
        type=_numbers,
        metavar="T",
        help="of the softmax; a grid, such as 1,10,1000, tries them all with each magnitude "
        f"(default: the bundle's, or {DEFAULT_TEMPERATURE:g})",
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


def _add_calibration_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--calibrate",
        metavar="IN_DATASET",
        help="score these in-distribution images, which the network was not trained on, and write "
        "the threshold below which an image is out-of-distribution into the bundle, with its "
        "confidence interval and the quantiles of the scores",
    )
    group.add_argument(
        "--decision",
        action="store_true",
        help="with --calibrate: add the decision to odin.onnx as output is_ood, for any ONNX "
        "runtime; later calibrations keep it up to date",
    )
    group.add_argument(
        "--tpr",
        type=_share,
        metavar="P",
        default=DEFAULT_TPR,
        help="share of in-distribution images that are to pass the threshold (default: "
        "%(default)g)",
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
    group.add_argument(
        "--threads",
        type=_threads,
        metavar="N",
        help="of the engine (default: what it takes by itself)",
    )
    group.add_argument(
        "--streams",
        type=_threads,
        metavar="N",
        help="batches that openvino and ort compute at once, each with its share of the threads "
        "(default: one for each core)",
    )
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


def _add_speed_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--throughput",
        action="store_true",
        help="time ODIN and the forward pass: images a second, latency, passes, and how many times "
        "as fast as PyTorch; --engine, --precision and --method leave out the others",
    )
    group.add_argument(
        "--profile",
        action="store_true",
        help="tell where the time goes in openvino and ort, by type of op, at the first of "
        "--batch-sizes",
    )
    group.add_argument(
        "--opening",
        action="store_true",
        help="tell how long a new process takes to its first score: to start, to open the bundle, "
        "and for the first image, where compiled graphs are cached and where they are not yet",
    )
    group.add_argument(
        "--batch-sizes",
        type=_counts,
        metavar="N,N",
        default=BATCH_SIZES,
        help=f"images a call (default: {','.join(map(str, BATCH_SIZES))})",
    )
    group.add_argument(
        "--seconds",
        type=_seconds,
        metavar="S",
        default=SECONDS,
        help="for each batch size, and with --scaling for pixels and for cores, from when all is "
        "warm; seven rounds are done at least, and no more once the ratios are known to 1 %% "
        "(default: %(default)g)",
    )
    group.add_argument(
        "--size",
        type=_positive,
        metavar="N",
        help="images of N x N pixels (default: the smallest that the network takes, from 32; with "
        "--end-to-end as they are, where the network takes that)",
    )
    group.add_argument(
        "--torch-compile",
        action="store_true",
        help="time PyTorch with torch.compile too, which takes minutes to compile",
    )
    group.add_argument(
        "--end-to-end",
        type=Path,
        metavar="PATH",
        help="score a whole folder of images or .npz file instead, and tell how long reading, "
        "preprocessing and scoring take",
    )
    group.add_argument(
        "--scaling",
        action="store_true",
        help="tell how scoring in one engine grows: memory and time with the number of images, "
        "time with their pixels (at the smallest, middle and largest size that the network takes), "
        "images a second with threads (1, 2, 4 and so on up to --threads, or all cores)",
    )
    group.add_argument(
        "--images",
        type=_counts,
        metavar="N,N",
        default=IMAGES,
        help="how many images --scaling streams through the scorer, one number after the other "
        f"(default: {','.join(map(str, IMAGES))})",
    )


def _numbers(text: str) -> str:
    try:
        parse_grid(text)
    except OdinError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(map(_positive, text.split(","))))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give whole numbers from 1, as 1,8,64"
        ) from None


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of seconds above 0, to 86400")
    return seconds


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number between 0 and 1, as 0.95")
    return share


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from 1")
    return int(text)


def _threads(text: str) -> int:
    number = _positive(text)
    if number > MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text!r}: give at most {MOST_THREADS:,}")
    return number


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from 0")
    return int(text)
