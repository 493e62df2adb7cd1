"""odin-bench --throughput, --profile and --opening: how fast, where time goes, how soon."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from odin_bench import machine
from odin_bench.end_to_end import EndToEnd, count_images
from odin_bench.end_to_end import run as score_files
from odin_bench.models import find_reference
from odin_bench.opening import PROCESSES, Opening, measure
from odin_bench.profile import ENGINES as PROFILED
from odin_bench.profile import profiles
from odin_bench.report import measured_as_json, write_json
from odin_bench.tables import opening_table, profile_table, throughput_table
from odin_bench.terminal import SHARE, progress_bar, say, surroundings
from odin_bench.throughput import (
    Measured,
    Program,
    bytes_needed,
    default_size,
    open_programs,
    plan_program,
    sample_images,
    time_programs,
)
from odin_bench.torch_speed import compiled_programs, eager_programs, torch_threads
from odin_engines import command
from odin_engines import engine as engines
from odin_engines.bundle import Bundle, is_bundle
from odin_engines.engine import ENGINES, Tuning
from odin_engines.errors import OdinError
from odin_engines.spec import Method, Precision, Spec
from odin_engines.torch_reference import TorchReference
from odin_runtime import Scorer
from odin_runtime.gpu_options import PLAN_ENGINES, STREAMING
from odin_runtime.images import normalised

# The passes are known well enough when their interval is this wide to either side.
_WELL_KNOWN = 0.01
# As many processes at work elsewhere disturb.
_BUSY = 0.5

Find = Callable[..., Bundle]


def run(parsed: argparse.Namespace, find: Find, open_scorer: Callable[[Bundle], Scorer]) -> int:
    """Measure speed, as the flags say; return the exit status.

    Args:
        parsed: of `flags.parser`, checked by `flags.check_mode`.
        find: fields of `exporter.Options` to change -> the bundle.
        open_scorer: opens a bundle as the flags say.

    Raises:
        OdinError: what is asked for cannot be measured here.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    _check_engine(parsed)
    if load > _BUSY:
        say(
            f"the machine is busy: {load:.1f} processes were at work before this one began, which "
            "makes times longer and less even"
        )
    measured: dict[str, Any] = {}
    status = 0
    bundles: list[Bundle] = []
    try:
        if parsed.end_to_end:
            bundles = [find(tunable=parsed.engine in PLAN_ENGINES)]
            _measure_files(parsed, open_scorer, bundles[0], measured)
        else:
            bundles = _bundles(parsed, find)
        if parsed.throughput and not parsed.end_to_end:
            _measure_programs(parsed, open_scorer, bundles, measured)
        if parsed.profile:
            _measure_ops(parsed, bundles, measured)
        if parsed.opening:
            _measure_opening(parsed, bundles, measured)
    except KeyboardInterrupt:
        status = command.INTERRUPTED
        say("odin-bench: interrupted; what was finished is kept")
    finally:  # what was finished is not lost, whatever happened to the rest
        if measured:
            spec = bundles[0].spec
            _print_surroundings(parsed, bundles[0])
            if parsed.json:
                methods = {bundle.spec.method for bundle in bundles}
                method = methods.pop() if len(methods) == 1 else None
                content = measured_as_json(spec, parsed.engine, parsed.precision, method, measured)
                write_json(parsed.json, content)
    return status


def _check_engine(parsed: argparse.Namespace) -> None:
    """Fail before the work rather than after it."""
    engine = parsed.engine
    if parsed.profile and engine not in ("auto", *PROFILED):
        raise OdinError(
            f"--profile is for engines {' and '.join(PROFILED)}, which tell where their time goes; "
            f"--engine {engine} does not"
        )
    if parsed.streams and engine not in ("auto", *STREAMING):
        raise OdinError(f"--streams is for engines {' and '.join(STREAMING)}, not for {engine}")
    if parsed.torch_compile and engine not in ("auto", "torch"):
        raise OdinError(
            f"--torch-compile is for PyTorch, which --engine {engine} leaves out; give --engine "
            "torch, or none"
        )
    if parsed.opening and engine == "torch":
        raise OdinError("--opening is for engines that open a bundle; --engine torch does not")
    if parsed.end_to_end:
        count_images(parsed.end_to_end)


def _bundles(parsed: argparse.Namespace, find: Find) -> list[Bundle]:
    """A network's bundles, one for each method; a user's own bundle has one only."""
    if is_bundle(Path(parsed.nn or parsed.model or "")):
        return [find()]
    methods = [parsed.method] if parsed.method else ["exact", "first-order"]
    tunable = parsed.engine in PLAN_ENGINES  # those are built for any magnitude
    return [find(method=method, tunable=tunable) for method in methods]


# --throughput


def _measure_programs(
    parsed: argparse.Namespace,
    open_scorer: Callable[[Bundle], Scorer],
    bundles: Sequence[Bundle],
    measured: dict[str, Any],
) -> None:
    """Time everything at each batch size; `measured` gets what is finished."""
    spec = bundles[0].spec
    size = _size(parsed, spec)
    with ExitStack() as stack:
        stack.enter_context(torch_threads(parsed.threads))
        programs = list(_engine_programs(parsed, open_scorer, bundles, stack))
        reference = _torch_reference(parsed, bundles[0])
        methods = _torch_methods(parsed, bundles)
        if reference is not None:
            programs += eager_programs(reference, methods)
        programs = _as_asked(parsed, programs)
        batches = list(_batches_that_fit(parsed.batch_sizes, programs, spec, size))
        if reference is not None and parsed.torch_compile:
            images = sample_images(spec, batches[0], size)
            programs += _as_asked(parsed, _compiled(reference, methods, images, spec))
        bars = stack.enter_context(_Bars())
        for found in time_programs(
            programs,
            spec,
            batches,
            size,
            seconds=parsed.seconds,
            precision=_WELL_KNOWN,
            progress=bars.advance,
        ):
            _print_batch(found)
            measured.setdefault("throughput", []).extend(row.as_json() for row in found.rows)
            measured.setdefault("noise", {})[str(found.batch)] = found.noise
            measured["image_size"] = size


def _engine_programs(
    parsed: argparse.Namespace,
    open_scorer: Callable[[Bundle], Scorer],
    bundles: Sequence[Bundle],
    stack: ExitStack,
) -> Iterator[Program]:
    """The programs of all engines but PyTorch."""
    if parsed.engine in PLAN_ENGINES:
        for bundle in bundles:
            yield plan_program(stack.enter_context(open_scorer(bundle)))
        return
    tuning = Tuning(parsed.threads, parsed.streams)
    for engine, precision in _targets(parsed, bundles[0].spec):
        yield from open_programs(bundles, engine, precision, tuning)


def _targets(parsed: argparse.Namespace, spec: Spec) -> list[tuple[str, Precision]]:
    """Engines and the precisions in which to measure them; what is left out is told.

    Raises:
        OdinError: nothing is left.
    """
    if parsed.engine == "torch":
        return []
    on_cpu = [name for name, info in ENGINES.items() if info.gpu_extra is None]
    targets: list[tuple[str, Precision]] = []
    problems = []
    for name in on_cpu if parsed.engine == "auto" else [parsed.engine]:
        for precision in _precisions(parsed, name, spec):
            problem = engines.takes_precision(name, spec, precision)
            problem = problem or engines.unavailable(name, precision)
            if problem is None:
                targets.append((name, precision))
            else:
                problems.append(f"{name} in {precision} is left out: {problem}")
    if not targets:
        raise OdinError("there is no engine to time\n  " + "\n  ".join(problems))
    for problem in problems:
        say(problem)
    return targets


def _precisions(parsed: argparse.Namespace, name: str, spec: Spec) -> list[Precision]:
    if parsed.precision:
        return [parsed.precision]
    if spec.graph_precision != "fp32" or not engines.converts(name, "bf16"):
        return [spec.graph_precision]
    return ["fp32", "bf16"]


def _torch_reference(parsed: argparse.Namespace, bundle: Bundle) -> TorchReference | None:
    """The network in PyTorch, where that is asked for and can be had; what is left out is told."""
    if parsed.engine not in ("auto", "torch"):
        return None
    try:
        return find_reference(bundle, parsed.checkpoint)
    except OdinError as error:
        if parsed.engine == "torch":
            raise
        say(f"PyTorch is left out: {error}")
        return None


def _torch_methods(parsed: argparse.Namespace, bundles: Sequence[Bundle]) -> list[Method]:
    """Of PyTorch's programs: exact ODIN is the yardstick, so it is always among them."""
    own: list[Method] = [bundle.spec.method for bundle in bundles]
    return list(dict.fromkeys(own if parsed.engine == "torch" else ["exact", *own]))


def _compiled(
    reference: TorchReference, methods: Sequence[Method], images: np.ndarray, spec: Spec
) -> list[Program]:
    """PyTorch's programs compiled for a batch; what cannot be compiled here is told."""
    say("PyTorch compiles the network, which takes minutes")
    try:
        return compiled_programs(reference, methods, normalised(images, spec))
    except OdinError as error:
        say(f"compiled PyTorch is left out: {error}")
        return []


def _as_asked(parsed: argparse.Namespace, programs: list[Program]) -> list[Program]:
    """All programs, except where PyTorch alone is asked for in one precision.

    Raises:
        OdinError: PyTorch is not timed in that.
    """
    if parsed.engine != "torch" or not parsed.precision:
        return programs
    left = [program for program in programs if program.precision == parsed.precision]
    if programs and not left:
        raise OdinError(f"PyTorch is timed in fp32 and bf16, not in {parsed.precision}")
    return left


def _batches_that_fit(
    batches: Sequence[int], programs: Sequence[Program], spec: Spec, size: tuple[int, int]
) -> Iterator[int]:
    """Those whose activations fit in the memory that is free; the others are told.

    Raises:
        OdinError: none does.
    """
    free = machine.describe().free_memory
    fits = [b for b in batches if not free or bytes_needed(programs, spec, b, size) <= free]
    for batch in batches:
        if batch not in fits:
            needed = bytes_needed(programs, spec, batch, size)
            say(
                f"batch size {batch} is left out: it takes about {needed / 2**30:.1f} GiB, and "
                f"{free / 2**30:.1f} GiB are free"
            )
    if not fits:
        raise OdinError("no batch size fits in memory; give smaller --batch-sizes, or --size")
    yield from fits


def _size(parsed: argparse.Namespace, spec: Spec) -> tuple[int, int]:
    if parsed.size is None:
        return default_size(spec)
    for name, (least, most) in (("high", spec.height), ("wide", spec.width)):
        if not least <= parsed.size <= most:
            raise OdinError(
                f"--size {parsed.size}: {spec.model} takes images {least} to {most} pixels {name}"
            )
    return (parsed.size, parsed.size)


def _print_batch(found: Measured) -> None:
    rounds = found.rows[0].rounds
    print(f"batch {found.batch}, {rounds} rounds\n\n{throughput_table(found.rows)}\n", flush=True)
    for text in found.noise:
        say(f"the machine was not quiet, batch {found.batch}: {text}")


# --end-to-end


def _measure_files(
    parsed: argparse.Namespace,
    open_scorer: Callable[[Bundle], Scorer],
    bundle: Bundle,
    measured: dict[str, Any],
) -> None:
    path = parsed.end_to_end
    taken = EndToEnd()
    with ExitStack() as stack:
        stack.enter_context(torch_threads(parsed.threads))
        scorer = stack.enter_context(open_scorer(bundle))
        size = (parsed.size, parsed.size) if parsed.size else None
        bar = stack.enter_context(progress_bar(f"{path}", count_images(path), unit="image"))
        try:
            score_files(scorer, path, size, taken, bar.update)
        finally:
            bar.close()
            if taken.images:
                name = f"{scorer.engine} {scorer.precision} {scorer.spec.method}"
                print(f"{path}, {name}\n\n{taken.as_text()}\n", flush=True)
                measured["end_to_end"] = {"path": str(path), **taken.as_json()}


# --profile


def _measure_ops(
    parsed: argparse.Namespace, bundles: Sequence[Bundle], measured: dict[str, Any]
) -> None:
    spec = bundles[0].spec
    tuning = Tuning(parsed.threads, parsed.streams)
    batch, size = parsed.batch_sizes[0], _size(parsed, spec)
    targets = _targets(parsed, spec)
    graphs = (1 + len(bundles)) * len(targets)
    with progress_bar("profile", graphs, unit="graph") as bar:
        for engine, precision in targets:
            for found in profiles(bundles, engine, precision, batch, size, tuning):
                bar.update(1)
                images = "1 image" if found.images == 1 else f"{found.images} images"
                threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
                title = f"{engine} {precision} {found.method}: {images} a run, {threads}"
                bar.clear()
                print(f"{title}\n\n{profile_table(found)}\n", flush=True)
                measured.setdefault("profile", []).append(found.as_json())


# --opening


def _measure_opening(
    parsed: argparse.Namespace, bundles: Sequence[Bundle], measured: dict[str, Any]
) -> None:
    spec = bundles[0].spec
    size = _size(parsed, spec)
    on_gpu = parsed.engine in PLAN_ENGINES
    targets = [(parsed.engine, spec.precision)] if on_gpu else _targets(parsed, spec)
    rows: list[Opening] = []
    bar = progress_bar("opening", PROCESSES * len(targets) * len(bundles), unit="process")
    try:
        for engine, precision in targets:
            for bundle in bundles:
                found = measure(
                    bundle,
                    engine,
                    precision,
                    size,
                    threads=parsed.threads,
                    streams=parsed.streams,
                    progress=bar.update,
                )
                rows.extend(found)
    finally:
        bar.close()
        if rows:
            print(f"From the start of a process to its first score\n\n{opening_table(rows)}\n")
            measured["opening"] = [asdict(row) for row in rows]


def _print_surroundings(parsed: argparse.Namespace, bundle: Bundle) -> None:
    """What the times depend on, and what the columns are."""
    spec = bundle.spec
    more = []
    shown = list(PROFILED) if parsed.engine == "auto" else [parsed.engine]
    if set(shown) <= set(PROFILED):
        more.append("graphs: " + ", ".join(f"{name} {bundle.odin(name).name}" for name in shown))
    if parsed.throughput and not parsed.end_to_end:
        height, width = _size(parsed, spec)
        more += [
            f"images of {height}x{width} random pixels; programs take turns, in {parsed.seconds:g} "
            "s a batch size or until the passes are known to 1 %",
            "passes: time of ODIN over that of the forward pass, of the batch in parts or whole, "
            "whichever is faster, round by round; in brackets the 95 % interval of their median",
            "x best PyTorch, x eager: over exact ODIN in the fastest eager PyTorch program, and in "
            "plain eager float32",
        ]
    print(surroundings(parsed, f"{spec.architecture}, weights {spec.checkpoint}", more))


class _Bars(AbstractContextManager["_Bars"]):
    """A progress bar for each batch size."""

    def __init__(self) -> None:
        self._batch = 0
        self._bar: Any = None

    def advance(self, batch: int, share: float) -> None:
        """Show that this share of a batch size is done."""
        if batch != self._batch:
            self._batch = batch
            self._bar = progress_bar(f"batch {batch}", 100, bar_format=SHARE)
        self._bar.update(round(100 * share) - self._bar.n)
        if share >= 1:
            self._bar.close()

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
