"""How fast engines score: images a second, latency, and passes.

Passes are the time of the whole ODIN graph over that of the same engine's forward pass, in the same
precision and the same run. Exact ODIN cannot be below three, nor first order below two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from odin_bench.timing import NOISY, Interval, Timing, measure
from odin_engines import engine as engines
from odin_engines.batches import run_in_parts
from odin_engines.bundle import FORWARD, Bundle
from odin_engines.cores import streams_of
from odin_engines.engine import ENGINES, Arrays, Session, Tuning
from odin_engines.spec import Method, Precision, Spec
from odin_runtime import Scorer
from odin_runtime.images import normalised

Call = Callable[[Arrays], object]

# What eager PyTorch does without a change of the network: precision and layout of its tensors.
PLAIN: tuple[Precision, str] = ("fp32", "eager")
EAGER: tuple[tuple[Precision, str], ...] = (
    PLAIN,
    ("fp32", "channels_last"),
    ("bf16", "channels_last"),
)
_LEAST_SIZE = 32  # pixels: below, a network of any size is hardly the one that it is used as


@dataclass(frozen=True)
class Program:
    """What is timed.

    Attributes:
        engine, precision: as for --engine and --precision.
        method: None for the forward pass alone.
        call: runs it on a batch: its inputs, by name.
        layout: of PyTorch's tensors, or another word on how it runs; else empty.
        raw: it takes raw images, uint8 (N, H, W, C), rather than normalised ones.
        held: how many images' activations it keeps in main memory, also between calls; None: those
            of the batch, during a call.
        least: it is timed from this batch size on: the forward pass of a batch that is not cut into
            parts differs from one that is only then.
    """

    engine: str
    precision: Precision
    method: Method | None
    call: Call
    layout: str = ""
    raw: bool = False
    held: int | None = None
    least: int = 1

    @property
    def group(self) -> tuple[str, str, str]:
        """Programs that share their forward pass."""
        return (self.engine, self.precision, self.layout)

    @property
    def name(self) -> str:
        """One for each program."""
        whole = "whole" if self.least > 1 else ""
        return " ".join(filter(None, (*self.group, self.method or "forward", whole)))


@dataclass(frozen=True)
class Row:
    """One program at one batch size.

    Attributes:
        engine, precision, method, layout: as `Program`; method "forward" is the forward pass.
        batch: images a call.
        images_per_second: of the median call.
        latency_ms: of a call: p50, p90 and p99 of all calls.
        passes: median of the ratio to the faster forward pass, round by round, and in
            `passes_interval` its confidence interval of 95 %; None for the forward pass itself, and
            where none was timed beside it, as with plans.
        speedup_vs_torch: how many times as fast as the fastest eager PyTorch program that computes
            exact ODIN, round by round, also for first order; None for the forward pass, and where
            not all of `EAGER` were timed. `speedup_interval` is its confidence interval of 95 %.
        speedup_vs_eager: the same over plain eager PyTorch in float32.
        rounds, calls: how many were timed.
    """

    engine: str
    precision: str
    method: str
    batch: int
    images_per_second: float
    latency_ms: dict[str, float]
    passes: float | None
    speedup_vs_torch: float | None
    layout: str = ""
    passes_interval: tuple[float, float] | None = None
    speedup_interval: tuple[float, float] | None = None
    speedup_vs_eager: float | None = None
    rounds: int = 0
    calls: int = 0

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


@dataclass(frozen=True)
class Measured:
    """All programs at one batch size, in one run.

    Attributes:
        batch: images a call.
        rows: in the order of the programs.
        noise: what says that the machine was not quiet; empty where nothing does.
    """

    batch: int
    rows: list[Row]
    noise: list[str] = field(default_factory=list)


def open_programs(
    bundles: Sequence[Bundle], engine: str, precision: Precision, tuning: Tuning
) -> list[Program]:
    """Open a network's forward pass and its ODIN graphs in an engine.

    Each runs a batch in the parts that the engine likes best, as `Scorer` does.

    Args:
        bundles: of one network, one for each method.
        engine, precision, tuning: as `engines.open_graph`.

    Raises:
        OdinError: the engine is not available, or refuses a graph.
    """
    most = engines.images_at_once(engine, precision, bundles[0].spec.activation_bytes)
    held = 0  # in main memory, where an engine on a GPU keeps nothing
    if ENGINES[engine].gpu_extra is None:
        held = most * streams_of(tuning)

    def program(session: Session, spec: Spec | None) -> Program:
        method, raw = (spec.method, spec.input_type == "uint8") if spec else (None, False)
        scalars = tuned(spec) if spec else {}

        def call(feeds: Arrays) -> object:
            return run_in_parts(session, {**feeds, **scalars}, most)

        return Program(engine, precision, method, call, raw=raw, held=held)

    def opened(file: Path) -> Session:
        return engines.open_graph(engine, file, precision, tuning)

    forward = opened(bundles[0].file(FORWARD))
    # ODIN likes small parts; a forward pass that does not is not to be slowed down by them.
    whole = Program(engine, precision, None, forward.run, least=most + 1, held=None)
    odin = [program(opened(bundle.odin(engine)), bundle.spec) for bundle in bundles]
    return [program(forward, None), whole, *odin]


def plan_program(scorer: Scorer) -> Program:
    """A bundle's plans, scoring images of the host; no plan of a forward pass is opened."""
    score = scorer.score
    method = scorer.spec.method
    engine, precision = scorer.engine, scorer.precision
    return Program(engine, precision, method, lambda f: score(f["images"]), raw=True, held=0)


def tuned(spec: Spec) -> dict[str, np.ndarray]:
    """The inputs of a bundle's `odin.onnx` beside the images: a tunable one has two."""
    names = ("temperature", "magnitude") if spec.tunable else ()
    return {name: np.array(getattr(spec, name), np.float32) for name in names}


def default_size(spec: Spec) -> tuple[int, int]:
    """Height and width of images to time: the smallest that the network takes, from 32 pixels."""
    sides = (spec.height, spec.width)
    height, width = (max(least, min(most, _LEAST_SIZE)) for least, most in sides)
    return height, width


def sample_images(spec: Spec, batch: int, size: tuple[int, int]) -> np.ndarray:
    """Random pixels, the same each time, uint8 (batch, height, width, channels)."""
    shape = (batch, *size, spec.channels)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def bytes_needed(
    programs: Sequence[Program], spec: Spec, batch: int, size: tuple[int, int]
) -> float:
    """About how much main memory it takes to time the programs at a batch size."""
    pixels = size[0] * size[1]
    per_image = spec.activation_bytes * max(pixels / (spec.height[0] * spec.width[0]), 1)
    held = sum(min(program.held, batch) for program in programs if program.held is not None)
    whole = batch if any(program.held is None for program in programs) else 0
    return (held + whole) * per_image + batch * pixels * spec.channels * 5  # uint8 and float32


def time_programs(
    programs: Sequence[Program],
    spec: Spec,
    batches: Sequence[int],
    size: tuple[int, int],
    *,
    seconds: float,
    precision: float,
    progress: Callable[[int, float], object] = lambda batch, share: None,
) -> Iterator[Measured]:
    """Time all programs at each batch size.

    Args:
        programs: each group with its forward pass, where passes are wanted.
        spec: of the network.
        batches: images a call.
        size: height and width of the images.
        seconds, precision: as `timing.measure`, for each batch size.
        progress: called with the batch size and the share of it that is done.
    """
    for batch in batches:
        raw = sample_images(spec, batch, size)
        planes = normalised(raw, spec)

        def bound(program: Program, raw: np.ndarray = raw, planes: np.ndarray = planes) -> Any:
            feeds = {"images": raw if program.raw else planes}
            return lambda: program.call(feeds)

        timed = [program for program in programs if batch >= program.least]
        timings = measure(
            {program.name: bound(program) for program in timed},
            list(_pairs(timed)),
            seconds=seconds,
            precision=precision,
            progress=lambda share, batch=batch: progress(batch, share),  # type: ignore[misc]
        )
        yield summary(timed, timings, batch)


def _pairs(programs: Sequence[Program]) -> Iterator[tuple[str, str]]:
    """Names of each program of ODIN and of its forward passes."""
    for program in programs:
        for other in programs:
            if program.method is not None and other.method is None and program.group == other.group:
                yield program.name, other.name


def summary(programs: Sequence[Program], timings: Mapping[str, Timing], batch: int) -> Measured:
    """Turn timings, by the programs' names, into rows."""
    forward_of: dict[str, str] = {}  # the faster one
    for name, other in _pairs(programs):
        known = forward_of.setdefault(name, other)
        forward_of[name] = min(known, other, key=lambda each: timings[each].percentile(50))
    exact = {p.group[1:]: timings[p.name] for p in programs if _is_exact_torch(p)}
    plain = exact.get(PLAIN)
    best = None
    if all(arrangement in exact for arrangement in EAGER):
        best = min((exact[each] for each in EAGER), key=lambda timing: timing.percentile(50))
    rows = []
    for program in programs:
        timing = timings[program.name]
        passes: Interval | None = None
        if program.name in forward_of:
            passes = timing.per(timings[forward_of[program.name]])
        is_odin = program.method is not None
        faster = best.per(timing) if best and is_odin else None
        rows.append(
            Row(
                engine=program.engine,
                precision=program.precision,
                method=program.method or ("forward, whole" if program.least > 1 else "forward"),
                batch=batch,
                images_per_second=batch / timing.percentile(50),
                latency_ms={f"p{p}": 1000 * timing.percentile(p) for p in (50, 90, 99)},
                passes=passes.median if passes else None,
                speedup_vs_torch=faster.median if faster else None,
                speedup_interval=(faster.low, faster.high) if faster else None,
                layout=program.layout,
                passes_interval=(passes.low, passes.high) if passes else None,
                speedup_vs_eager=plain.per(timing).median if plain and is_odin else None,
                rounds=len(timing.turns),
                calls=len(timing.calls),
            )
        )
    return Measured(batch, rows, list(_noise(timings)))


def _is_exact_torch(program: Program) -> bool:
    return program.engine == "torch" and program.method == "exact"


def _noise(timings: Mapping[str, Timing]) -> Iterator[str]:
    """What differs from round to round more than on a quiet machine: the worst, and how many."""
    spreads = {name: timing.spread for name, timing in timings.items()}
    drifts = {name: timing.drift for name, timing in timings.items()}
    for values, text in (
        (spreads, "half of the rounds of {name} lie {percent:.0f} % apart"),
        (drifts, "from first to last rounds {name} changed by {percent:.0f} %"),
    ):
        noisy = [name for name, value in values.items() if abs(value) > NOISY]
        if noisy:
            worst = max(noisy, key=lambda name: abs(values[name]))
            others = f" (the worst of {len(noisy)} programs)" if noisy[1:] else ""
            yield text.format(name=worst, percent=100 * abs(values[worst])) + others
