"""Which plans a bundle is to hold, which of them it holds already, and building the others.

Fused: one plan of odin.onnx, images to scores: what a server loads. Split: one of gradient.onnx
and, for the exact method, one of forward.onnx, with kernels of our own in between: one gradient
serves many magnitudes, and raw images are normalised on the GPU.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType

from odin_engines.bundle import FORWARD, GRADIENT, ODIN, Bundle
from odin_engines.cuda_probe import ask_driver
from odin_engines.errors import OdinError
from odin_engines.files import user_cache
from odin_engines.plan_profiles import INPUT, AskedShapes, image_limits, raw
from odin_engines.plan_records import (
    COMPATIBILITIES,
    ENGINE_TITLES,
    FORMS,
    LEVELS,
    PLAN_SUFFIX,
    PlanRecord,
)
from odin_engines.plans import TimingCache, build_plan
from odin_engines.spec import Spec
from odin_engines.tensorrt_engine import building_problem, load, rtx_capabilities

PlanProgress = Callable[[str, str, float], object]

# Turing, for which TensorRT for RTX has no matrix product in float32, and nothing in bfloat16 ...
_TURING = "7.5"
# ... and scores with a matrix product that is in float32 in every bundle.
_FLOAT32_PRODUCTS = frozenset({"cam-max", "cam-std"})


@dataclass(frozen=True)
class PlanOptions:
    """What plans are to be built.

    Attributes:
        engine: "trt" or "rtx".
        forms: of `plan_records.FORMS`.
        shapes: of the images; None for what the network suggests.
        tf32: whether float32 products may be rounded to TensorFloat-32.
        optimization_level: 0 to 5, higher builds longer; None for the builder's default.
        hardware_compatibility: for trt: "none" (this GPU), "ampere+" or "same-cc".
        compute_capabilities: for rtx: such as ("8.6", "8.9"); () for all, of which Turing's 7.5 in
            fp16 alone: it has no matrix product in float32, nor bfloat16.
        timing_cache: for trt: the file in which measurements are kept from build to build.
        cache_folder: for trt, where timing_cache is None: a folder for such files, one for each
            version and GPU; None for none.
    """

    engine: str
    forms: tuple[str, ...] = FORMS
    shapes: AskedShapes = field(default_factory=AskedShapes)
    tf32: bool = False
    optimization_level: int | None = None
    hardware_compatibility: str = "none"
    compute_capabilities: tuple[str, ...] = ()
    timing_cache: Path | None = None
    cache_folder: Path | None = None


@dataclass(frozen=True)
class PlanSet:
    """Plans for a bundle.

    Attributes:
        contents: of each plan's file, by name.
        records: what the bundle is to say of them, in the same order.
        reused: names of those that the bundle held already.
    """

    contents: dict[str, bytes]
    records: tuple[PlanRecord, ...]
    reused: frozenset[str]


def timing_caches() -> Path | None:
    """The folder for timing caches that the user does not name; None without a home folder."""
    cache = user_cache()
    return cache and cache / "plans"


def wanted_plans(spec: Spec, options: PlanOptions) -> tuple[PlanRecord, ...]:
    """Describe the plans to be built for a network, before any work; without the graphs' hashes.

    Args:
        spec: of the bundle.
        options: what is asked for.

    Raises:
        OdinError: an option is out of range, or plans for this engine cannot be built here.
    """
    check_options(options)
    if spec.precision != spec.graph_precision:
        raise OdinError(
            f"the graphs are in {spec.graph_precision}, for engines that compute in "
            f"{spec.precision} by themselves; TensorRT computes as the graphs say: export the "
            f"model again with --precision {spec.precision} --engine {options.engine}"
        )
    trt = load(options.engine)
    limits = image_limits(spec, options.shapes)
    device, capabilities = _target(trt, spec, options)
    return tuple(
        PlanRecord(
            file=plan_file(graph, options.engine),
            form=form,
            engine=options.engine,
            version=str(trt.__version__),
            device=device,
            compute_capabilities=capabilities,
            precision=spec.graph_precision,
            profile={INPUT: raw(limits) if _takes_raw(graph, spec) else limits},
            tf32=options.tf32,
            optimization_level=options.optimization_level,
            hardware_compatibility=options.hardware_compatibility,
            graph=graph,
            graph_sha256="",
        )
        for form in options.forms
        for graph in form_graphs(form, spec)
    )


def make_plans(
    graphs: Mapping[str, bytes],
    spec: Spec,
    options: PlanOptions,
    existing: Bundle | None = None,
    progress: PlanProgress = lambda file, phase, share: None,
) -> PlanSet:
    """Build plans, except those that a bundle holds already, made of the same in the same way.

    Args:
        graphs: the bundle's ONNX files, by name.
        spec: of the bundle.
        options: what is asked for.
        existing: a bundle whose plans may be used again; other plans of it are kept if their
            graphs are unchanged.
        progress: called with the plan's file, what its builder is at, and the share that is done.

    Raises:
        OdinError: as `wanted_plans`, or a plan cannot be built; the message names the node.
    """
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in graphs.items()}
    wanted = tuple(
        dataclasses.replace(record, graph_sha256=hashes[record.graph])
        for record in wanted_plans(spec, options)
    )
    kept = _kept(existing, wanted, hashes)
    contents = {record.file: _content(existing, record) for record in kept}
    trt = load(options.engine)
    for record in wanted:
        if record in kept:
            continue
        contents[record.file] = build_plan(
            trt,
            graphs[record.graph],
            record,
            graph_outputs(record.graph, spec),
            _timing_cache(options, record),
            partial(progress, record.file),
        )
    others = tuple(record for record in kept if record not in wanted)
    records = (*wanted, *others)
    return PlanSet(
        {record.file: contents[record.file] for record in records},
        records,
        frozenset(record.file for record in kept),
    )


def plan_file(graph: str, engine: str) -> str:
    """The name of a graph's plan in the bundle: odin.onnx -> odin.rtx.plan."""
    return f"{graph.removesuffix('.onnx')}.{engine}{PLAN_SUFFIX}"


def form_graphs(form: str, spec: Spec) -> tuple[str, ...]:
    """The graphs that a form has a plan of."""
    if form == "fused":
        return (ODIN,)
    return (GRADIENT, FORWARD) if spec.method == "exact" else (GRADIENT,)


def graph_outputs(graph: str, spec: Spec) -> tuple[str, ...]:
    """The names of a graph's outputs."""
    return {
        ODIN: ("score", "baseline", "label", "logits", *spec.scores),
        GRADIENT: ("logits", "input_gradient"),
        FORWARD: ("logits",),
    }[graph]


def _takes_raw(graph: str, spec: Spec) -> bool:
    return graph == ODIN and spec.input_type == "uint8"


def check_options(options: PlanOptions) -> None:
    """Check, before any work, what needs no network.

    Raises:
        OdinError: an option is out of range, or plans for this engine cannot be built here.
    """
    title = ENGINE_TITLES[options.engine]
    level = options.optimization_level
    if level is not None and level not in LEVELS:
        raise OdinError(f"--builderOptimizationLevel {level}: give a number from 0 to {LEVELS[-1]}")
    if not options.forms:
        raise OdinError(f"no plans are asked for: choose from {', '.join(FORMS)}")
    if options.engine == "rtx":
        if options.hardware_compatibility != COMPATIBILITIES[0]:
            raise OdinError(
                f"--hardwareCompatibility is for --engine trt; plans of {title} are for every GPU "
                "of the generations that --computeCapabilities names"
            )
        if options.timing_cache is not None:
            raise OdinError(
                f"--timingCacheFile is for --engine trt; {title} measures nothing while it builds"
            )
    elif options.compute_capabilities:
        raise OdinError(
            f"--computeCapabilities is for --engine rtx; {title} builds for the GPU at hand, or "
            "for more with --hardwareCompatibility"
        )
    problem = building_problem(options.engine)
    if problem is not None:
        raise OdinError(f"--engine {options.engine}: {problem}")
    if options.engine == "rtx":
        _check_capabilities(load("rtx"), options.compute_capabilities)


def _check_capabilities(trt: ModuleType, asked: tuple[str, ...]) -> None:
    known = rtx_capabilities(trt)
    for text in asked:
        if text not in known:
            raise OdinError(
                f"--computeCapabilities {text}: {ENGINE_TITLES['rtx']} {trt.__version__} builds "
                f"for {', '.join(known)}; for other GPUs there is --engine trt"
            )


def _target(trt: ModuleType, spec: Spec, options: PlanOptions) -> tuple[str, tuple[str, ...]]:
    """The GPU's name where the plan is for it alone, and the compute capabilities."""
    if options.engine == "rtx":
        return "", _rtx_targets(trt, spec, options.compute_capabilities)
    device = ask_driver().devices[0]
    one_only = options.hardware_compatibility == COMPATIBILITIES[0]
    return device.name if one_only else "", (device.capability_text,)


def _rtx_targets(trt: ModuleType, spec: Spec, asked: tuple[str, ...]) -> tuple[str, ...]:
    turing = spec.graph_precision == "fp16" and not _FLOAT32_PRODUCTS & set(spec.scores)
    if _TURING in asked and not turing:
        raise OdinError(
            f"--computeCapabilities {_TURING}: TensorRT for RTX has neither a float32 matrix "
            "product nor bfloat16 for it: export with --precision fp16, without the scores "
            f"{' and '.join(sorted(_FLOAT32_PRODUCTS))}, or leave {_TURING} out"
        )
    return tuple(
        text
        for text in rtx_capabilities(trt)
        if (text in asked if asked else turing or text != _TURING)
    )


def kept_plans(graphs: Mapping[str, bytes], existing: Bundle) -> PlanSet:
    """The plans of a bundle whose graphs are among these, unchanged.

    Args:
        graphs: ONNX files, by name.
        existing: the bundle.
    """
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in graphs.items()}
    records = _kept(existing, (), hashes)
    contents = {record.file: _content(existing, record) for record in records}
    return PlanSet(contents, records, frozenset(contents))


def _kept(
    existing: Bundle | None, wanted: tuple[PlanRecord, ...], hashes: Mapping[str, str]
) -> tuple[PlanRecord, ...]:
    """The plans at hand that are as wanted, or that are none of the wanted files and not stale."""
    if existing is None:
        return ()
    files = {record.file for record in wanted}
    return tuple(
        record
        for record in existing.plans
        if record.file not in existing.damaged
        and (
            record in wanted
            or (record.file not in files and hashes.get(record.graph) == record.graph_sha256)
        )
    )


def _content(existing: Bundle | None, record: PlanRecord) -> bytes:
    assert existing is not None
    return existing.file(record.file).read_bytes()


def _timing_cache(options: PlanOptions, record: PlanRecord) -> TimingCache | None:
    if options.timing_cache is not None:
        return TimingCache(options.timing_cache)
    if options.cache_folder is None or options.engine == "rtx":
        return None
    # Of the GPU itself, whatever others may take the plan.
    device = ask_driver().devices[0]
    plain = "".join(c if c.isalnum() else "-" for c in device.name)
    name = f"timing-{record.version}-{plain}.cache"
    return TimingCache(options.cache_folder / name, asked=False)
