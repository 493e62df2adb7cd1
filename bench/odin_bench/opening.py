"""How long it takes from the start of a new process to its first score."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from odin_engines.bundle import Bundle
from odin_engines.errors import OdinError
from odin_engines.spec import Method, Precision

_RUNS = 5  # with a filled cache; the median counts
PROCESSES = 1 + _RUNS  # that `measure` starts


@dataclass(frozen=True)
class Opening:
    """One engine's way to the first score of one image.

    Attributes:
        engine, precision, method: what is opened.
        cache: of compiled graphs: "empty", "filled", or "none" for an engine that keeps nothing.
        start: seconds until the interpreter has imported the scorer.
        opening: seconds of `Scorer.open`, which checks the bundle.
        first: seconds of the first call, which compiles what is compiled for a size.
        later: seconds of the next call.
    """

    engine: str
    precision: Precision
    method: Method
    cache: str
    start: float
    opening: float
    first: float
    later: float

    @property
    def total(self) -> float:
        """Seconds from the start of the process to the first score."""
        return self.start + self.opening + self.first


def measure(
    bundle: Bundle,
    engine: str,
    precision: Precision,
    size: tuple[int, int],
    *,
    threads: int | None = None,
    streams: int | None = None,
    progress: Callable[[], object] = lambda: None,
) -> Iterator[Opening]:
    """Open a bundle in processes of their own, with a cache that is empty, and then filled.

    Args:
        bundle, engine, precision, threads, streams: as `Scorer.open` takes them.
        size: of the image, (height, width).
        progress: called after each process.

    Raises:
        OdinError: the engine refuses the bundle.
    """
    keeps = engine == "openvino"
    arguments = [bundle.path.absolute(), engine, precision, *size, threads or "", streams or ""]
    with tempfile.TemporaryDirectory() as cache:

        def once() -> tuple[float, ...]:
            found = _in_process([str(each) for each in arguments], cache)
            progress()
            return found

        method = bundle.spec.method
        empty = once()
        if keeps:
            yield Opening(engine, precision, method, "empty", *empty)
        runs = [once() for _ in range(_RUNS)]
        middle = min(runs, key=lambda run: abs(sum(run[:3]) - _median_total(runs)))
        yield Opening(engine, precision, method, "filled" if keeps else "none", *middle)


def _median_total(runs: list[tuple[float, ...]]) -> float:
    return statistics.median(sum(run[:3]) for run in runs)


def _in_process(arguments: list[str], cache: str) -> tuple[float, ...]:
    """The seconds that a new process took: to its imports, to open, for two calls."""
    command = [sys.executable, "-m", __spec__.name, *arguments, str(time.time())]
    done = subprocess.run(
        command,
        env=os.environ | {"XDG_CACHE_HOME": cache},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise OdinError(f"a process that opens {arguments[0]} in {arguments[1]} failed: {why}")
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def _score_once(path: str, engine: str, precision: Precision, *rest: str) -> list[float]:
    height, width, threads, streams, began = rest
    import numpy as np

    from odin_runtime import Scorer

    start = time.time() - float(began)  # of two processes: no other clock is shared
    times = [time.perf_counter()]
    scorer = Scorer.open(
        Path(path),
        engine,
        precision=precision,
        threads=int(threads) if threads else None,
        streams=int(streams) if streams else None,
    )
    times.append(time.perf_counter())
    image = np.zeros((1, int(height), int(width), scorer.spec.channels), np.uint8)
    for _ in range(2):
        scorer.score(image)
        times.append(time.perf_counter())
    return [start, *(later - earlier for earlier, later in pairwise(times))]


if __name__ == "__main__":
    try:
        print(json.dumps(_score_once(*sys.argv[1:])))  # type: ignore[arg-type]
    except OdinError as error:
        sys.exit(str(error))
