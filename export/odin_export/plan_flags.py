"""odin-export's flags for single engines; those for plans are spelt as trtexec spells them."""

from __future__ import annotations

import argparse
from pathlib import Path

from odin_engines import plan_sets
from odin_engines.bundle import Bundle
from odin_engines.errors import OdinError
from odin_engines.plan_profiles import AskedShapes, parse_shapes
from odin_engines.plan_records import (
    COMPATIBILITIES,
    ENGINE_TITLES,
    FORMS,
    PlanRecord,
    Shape,
    shape_text,
)
from odin_engines.plan_sets import PlanOptions, timing_caches

_ANY_ENGINE = "onnx"
_OWN_GRAPH = ("ort",)  # engine_graphs.REWRITES, which takes onnx to import
_BOTH = "both"
_SHAPES = {"minShapes": "smallest", "optShapes": "most usual", "maxShapes": "largest"}


def add_plan_options(group: argparse._ArgumentGroup) -> None:
    """Add --engine, and what tells how plans are built."""
    group.add_argument(
        "--engine",
        choices=(_ANY_ENGINE, *_OWN_GRAPH, *ENGINE_TITLES),
        default=_ANY_ENGINE,
        help="also write what an engine is faster with: ort, the graph in a form for ONNX Runtime "
        "on the CPU; trt, plans of TensorRT for the GPU of this machine; rtx, plans of TensorRT "
        "for RTX, on any machine (default: onnx, the graphs for any engine alone)",
    )
    group.add_argument(
        "--plans",
        choices=(*FORMS, _BOTH),
        help="fused: one plan, images to scores; split: gradient and forward pass, for kernels "
        "that try many magnitudes on one gradient (default: both)",
    )
    for name, which in _SHAPES.items():
        group.add_argument(
            f"--{name}",
            type=_shapes,
            metavar="images:NxCxHxW",
            help=f"{which} batch and size of images that the plans take (default: batches of 1 to "
            "256, or as many as fit a GPU, tuned for a quarter of that; the network's usual size)",
        )
    group.add_argument(
        "--tf32",
        action="store_true",
        default=None,
        help="let float32 products be rounded to TensorFloat-32: faster, scores differ from a "
        "CPU's by up to 1e-3",
    )
    group.add_argument(
        "--builderOptimizationLevel",
        type=int,
        metavar="0-5",
        help="how long the builder searches (default: its own, 3)",
    )
    group.add_argument(
        "--computeCapabilities",
        type=_capabilities,
        metavar="8.6,8.9,...",
        help="rtx: the GPUs to build for (default: all that it knows, of which 7.5 with "
        "--precision fp16 alone)",
    )
    group.add_argument(
        "--hardwareCompatibility",
        choices=COMPATIBILITIES,
        help="trt: which other GPUs are to take the plans; costs speed (default: none)",
    )
    group.add_argument(
        "--timingCacheFile",
        type=Path,
        metavar="FILE",
        help="trt: what the builder measured, kept for the next build (default: a file for each "
        "version and GPU in the user's cache)",
    )


def graph_engine(parsed: argparse.Namespace) -> str | None:
    """Return the engine for which --engine asks a graph of its own, if it does."""
    return parsed.engine if parsed.engine in _OWN_GRAPH else None


def plan_options(parsed: argparse.Namespace) -> PlanOptions | None:
    """Return what plans the flags ask for; None if none.

    Raises:
        OdinError: they contradict each other, or plans for this engine cannot be built here.
    """
    if parsed.engine not in ENGINE_TITLES:
        for name in PLAN_FLAGS:
            if getattr(parsed, name) is not None:
                raise OdinError(f"--{name} is for plans; add --engine trt or --engine rtx")
        return None
    options = PlanOptions(
        engine=parsed.engine,
        forms=FORMS if parsed.plans in (None, _BOTH) else (parsed.plans,),
        shapes=AskedShapes(*(getattr(parsed, name) or {} for name in _SHAPES)),
        tf32=bool(parsed.tf32),
        optimization_level=parsed.builderOptimizationLevel,
        hardware_compatibility=parsed.hardwareCompatibility or COMPATIBILITIES[0],
        compute_capabilities=parsed.computeCapabilities or (),
        timing_cache=parsed.timingCacheFile,
        cache_folder=timing_caches(),
    )
    plan_sets.check_options(options)
    return options


PLAN_FLAGS = (
    "plans",
    *_SHAPES,
    "tf32",
    "builderOptimizationLevel",
    "computeCapabilities",
    "hardwareCompatibility",
    "timingCacheFile",
)


def plan_lines(bundle: Bundle, reused: frozenset[str] = frozenset()) -> list[str]:
    """Say of each plan of a bundle what it is for, and whether it is new."""
    return [_plan_line(bundle, record, record.file in reused) for record in bundle.plans]


def _plan_line(bundle: Bundle, record: PlanRecord, old: bool) -> str:
    size = bundle.file(record.file).stat().st_size / 1e6
    least, most = record.batches
    image = shape_text(record.profile["images"].maximum[1:])
    target = f"compute capability {', '.join(record.compute_capabilities)}"
    state = "as it was, for nothing that it is made from has changed" if old else "built"
    return (
        f"{record.file} ({size:.1f} MB), {ENGINE_TITLES[record.engine]} {record.version}, "
        f"{record.device or target}, {record.precision}, batches {least} to {most} of {image}: "
        f"{state}"
    )


def _shapes(text: str) -> dict[str, Shape]:
    try:
        return parse_shapes(text)
    except OdinError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _capabilities(text: str) -> tuple[str, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty part; give such as 8.6,8.9")
    return tuple(dict.fromkeys(parts))
