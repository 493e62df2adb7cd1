"""odin-bench --scaling: how scoring grows with images, with their pixels and with cores.

In the file of --json it is under "scale":

    threads             of images and pixels; null: as many as the engine takes by itself
    images              size (height, width), block (images of one call), rows (of each number of
                        images: asked, images, seconds, images_per_second, ms_an_image, and memory
                        in bytes: before, after, growth), change (of ms_an_image, from the fewest to
                        the most images, relative), linear, growth (of memory, over all), flat
    pixels              rows (of each size: height, width, images of a call, ms_an_image,
                        ns_a_pixel, cost: of a pixel over one of the smallest images, with its
                        interval), change, linear
    cores               rows (of each number of threads: threads, images of a call,
                        images_per_second, speedup over one, with its interval), grows

What was left out, or not finished, is not there; null is what cannot be known.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

from odin_bench import scale as scaling
from odin_bench.report import measured_as_json, write_json
from odin_bench.scale import FLAT, IN_PROPORTION, Sized, Streamed, Threaded
from odin_bench.tables import sizes_table, streamed_table, threads_table
from odin_bench.terminal import SHARE, progress_bar, say, surroundings
from odin_bench.throughput import default_size, sample_images
from odin_bench.torch_speed import torch_threads
from odin_engines import command
from odin_engines.bundle import Bundle
from odin_engines.cores import physical_cores
from odin_engines.engine import ENGINES
from odin_runtime import Scorer
from odin_runtime.gpu_options import PLAN_ENGINES

# Ratios are known well enough when their interval is this wide to either side.
_WELL_KNOWN = 0.01

Open = Callable[[Bundle, int | None], Scorer]


def scale(parsed: argparse.Namespace, find: Callable[..., Bundle], open_scorer: Open) -> int:
    """Measure all three, print them, and write --json; return the exit status.

    Args:
        parsed: of `flags.parser`, checked by `flags.check_mode`.
        find: fields of `exporter.Options` to change -> the bundle.
        open_scorer: opens a bundle as the flags say, on so many threads, or None for those of the
            flags.

    Raises:
        OdinError: the bundle cannot be had, or cannot be scored here.
    """
    bundle = find(tunable=parsed.engine in PLAN_ENGINES)
    measured: dict[str, Any] = {}
    status = 0
    try:
        with torch_threads(parsed.threads), open_scorer(bundle, None) as scorer:
            engine, precision = scorer.engine, scorer.precision
            _stream(parsed, scorer, measured)
            _time_sizes(parsed, scorer, measured)
        _time_threads(parsed, bundle, engine, open_scorer, measured)
    except KeyboardInterrupt:
        status = command.INTERRUPTED
        say("odin-bench: interrupted; what was finished is kept")
    finally:  # what was finished is not lost, whatever happened to the rest
        if measured:
            spec = bundle.spec
            title = f"{spec.architecture}, weights {spec.checkpoint}, engine {engine}, {precision}"
            print(surroundings(parsed, f"{title}, {spec.method}"))
            if parsed.json:
                found = {"scale": {"threads": parsed.threads, **measured}}
                content = measured_as_json(spec, engine, precision, spec.method, found)
                write_json(parsed.json, content)
    return status


def _threads(parsed: argparse.Namespace, engine: str) -> int:
    """How many an engine computes on; one where it is not the CPU that computes."""
    return 1 if _on_gpu(engine) else parsed.threads or physical_cores()


def _on_gpu(engine: str) -> bool:
    return engine in ENGINES and ENGINES[engine].gpu_extra is not None


# Images


def _stream(parsed: argparse.Namespace, scorer: Scorer, measured: dict[str, Any]) -> None:
    """Stream each number of images; `measured` gets what is finished, also of the last number."""
    counts = sorted(parsed.images)
    busy = scaling.images_a_call(scorer, _threads(parsed, scorer.engine))
    size = default_size(scorer.spec)
    block = sample_images(scorer.spec, min(max(scaling.BLOCK, busy), counts[-1]), size)
    rows = [Streamed(count) for count in counts]
    bar = progress_bar("images", sum(counts), unit="image")
    try:
        scaling.warm_up(scorer, block, counts)
        for row in rows:
            scaling.stream(scorer, block, row, bar.update)
    finally:
        bar.close()
        rows = [row for row in rows if row.images]
        if rows:
            found = _streamed(rows)
            height, width = size
            print(f"Images of {height}x{width} random pixels, {len(block)} a call\n")
            print(f"{streamed_table(rows)}\n\n{_on_streams(found)}\n", flush=True)
            measured["images"] = {"size": size, "block": len(block), **found}


def _streamed(rows: list[Streamed]) -> dict[str, Any]:
    """What numbers of images come to; costs are compared where a number is complete."""
    change = scaling.change([row.ms_an_image for row in rows if row.images == row.asked])
    growth = scaling.growth(rows)
    return {
        "rows": [row.as_json() for row in rows],
        "change": change,
        "linear": scaling.in_proportion(change),
        "growth": growth,
        "flat": None if growth is None else growth <= FLAT,
    }


def _on_streams(found: dict[str, Any]) -> str:
    text = "time: how it grows takes two numbers of images that were finished"
    if found["change"] is not None:
        text = (
            f"time: an image of the most takes {_percent(found['change'])} of one of the fewest: "
            f"{_verdict(found['change'])}"
        )
    memory = "memory: this system does not tell how much a process has"
    if found["growth"] is not None:
        flat = "flat" if found["flat"] else "not flat"
        memory = (
            f"memory: {found['growth'] / 2**20:+.1f} MiB over all: {flat} (bound "
            f"{FLAT / 2**20:g} MiB)"
        )
    return f"{text}\n{memory}"


# Pixels


def _time_sizes(parsed: argparse.Namespace, scorer: Scorer, measured: dict[str, Any]) -> None:
    spec = scorer.spec
    sizes = scaling.sizes(spec)
    if len(sizes) == 1:
        height, width = sizes[0]
        print(f"Pixels are left out: {spec.model} takes images of one size, {height}x{width}\n")
        return
    count = scaling.images_a_call(scorer, _threads(parsed, scorer.engine))
    with _shares("pixels") as progress:
        rows = scaling.time_sizes(
            scorer,
            {size: sample_images(spec, count, size) for size in sizes},
            seconds=parsed.seconds,
            precision=_WELL_KNOWN,
            progress=progress,
        )
    change = rows[-1].cost[0] - 1
    text = f"{sizes_table(rows)}\n\n{_on_sizes(rows)}\n"
    print(f"Sizes of images, {count} a call\n\n{text}", flush=True)
    measured["pixels"] = {
        "rows": [asdict(row) for row in rows],
        "change": change,
        "linear": scaling.in_proportion(change),
    }


def _on_sizes(rows: list[Sized]) -> str:
    change = rows[-1].cost[0] - 1
    return (
        f"a pixel of the largest images takes {_percent(change)} of one of the smallest: "
        f"{_verdict(change)}"
    )


# Cores


def _time_threads(
    parsed: argparse.Namespace,
    bundle: Bundle,
    engine: str,
    open_scorer: Open,
    measured: dict[str, Any],
) -> None:
    if _on_gpu(engine):
        print(f"Cores are left out: engine {engine} computes on a GPU\n")
        return
    most = _threads(parsed, engine)
    counts = scaling.thread_counts(most)
    if len(counts) == 1:
        print("Cores are left out: there is one thread to compute on\n")
        return
    with ExitStack() as stack:
        scorers = {n: stack.enter_context(open_scorer(bundle, n)) for n in counts}
        images = scaling.images_a_call(scorers[most], most)
        progress = stack.enter_context(_shares("cores"))
        rows = scaling.time_threads(
            scorers,
            sample_images(bundle.spec, images, default_size(bundle.spec)),
            torch_threads if engine == "torch" else nullcontext,
            seconds=parsed.seconds,
            precision=_WELL_KNOWN,
            progress=progress,
        )
    rates = [row.images_per_second for row in rows]
    grows = all(rates[i] < rates[i + 1] for i in range(len(rates) - 1))
    text = f"{threads_table(rows)}\n\n{_on_threads(rows, grows)}\n"
    print(f"Threads, where there are {physical_cores()} cores\n\n{text}", flush=True)
    measured["cores"] = {"rows": [asdict(row) for row in rows], "grows": grows}


def _on_threads(rows: list[Threaded], grows: bool) -> str:
    last = rows[-1]
    share = 100 * last.speedup[0] / last.threads
    lines = [
        f"throughput {'grows' if grows else 'does not grow'} with every step; {last.threads} "
        f"threads are {last.speedup[0]:.2f} times as fast as one: {share:.0f} % of {last.threads}"
    ]
    if len(rows) < 3:
        lines.append(f"{len(rows)} sizes only: three take 3 cores or more")
    return "\n".join(lines)


# What all print


def _percent(change: float) -> str:
    return f"{100 * (1 + change):.1f} %"


def _verdict(change: float) -> str:
    word = "linear"
    if not scaling.in_proportion(change):
        word = f"{'more' if change > 0 else 'less'} than in proportion"
    return f"{word} (bound {100 * IN_PROPORTION:g} %)"


@contextmanager
def _shares(title: str) -> Iterator[Callable[[float], object]]:
    """A progress bar, and what tells it the share that is done."""
    with progress_bar(title, 100, bar_format=SHARE) as bar:
        yield lambda share: bar.update(round(100 * share) - bar.n)
