"""How cost grows with images, with their pixels and with cores, and whether memory does.

In proportion means that an image, or a pixel, costs as much at the largest size as at the smallest,
within `IN_PROPORTION`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from odin_bench.throughput import default_size
from odin_bench.timing import Interval, measure
from odin_engines.spec import Spec
from odin_runtime import Scorer

IN_PROPORTION = 0.10
FLAT = 32 << 20  # bytes: of a million images, 34 each
BLOCK = 256  # images that are scored in one call, or more where that does not keep the engine busy

_STATUS = Path("/proc/self/status")
# A call has as many batches for each thread, so that hardly a thread waits for the last ones.
_BATCHES_A_THREAD = 8
_MOST_TIMES_LARGER = 4  # the sides of the largest images, over those of the smallest


@dataclass
class Streamed:
    """Images that went through a scorer, so far.

    Attributes:
        asked: how many there are to be.
        images: how many were scored.
        seconds: that they took.
        before, after: resident memory of the process, in bytes, at the start and now; None where
            the system does not tell.
    """

    asked: int
    images: int = 0
    seconds: float = 0.0
    before: int | None = None
    after: int | None = None

    @property
    def images_per_second(self) -> float:
        """Of those that were scored."""
        return self.images / self.seconds

    @property
    def ms_an_image(self) -> float:
        """Milliseconds."""
        return 1000 * self.seconds / self.images

    @property
    def growth(self) -> int | None:
        """Bytes by which memory grew, or below 0 shrank."""
        return None if self.before is None or self.after is None else self.after - self.before

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            **asdict(self),
            "images_per_second": self.images_per_second,
            "ms_an_image": self.ms_an_image,
            "growth": self.growth,
        }


@dataclass(frozen=True)
class Sized:
    """Images of one size.

    Attributes:
        height, width: in pixels.
        images: in a call.
        ms_an_image: of the median call.
        ns_a_pixel: of the same call; a pixel has all channels.
        cost: of a pixel over that of a pixel of the smallest images, round by round: the median,
            low and high end of its confidence interval.
    """

    height: int
    width: int
    images: int
    ms_an_image: float
    ns_a_pixel: float
    cost: tuple[float, float, float]


@dataclass(frozen=True)
class Threaded:
    """A scorer on so many threads.

    Attributes:
        threads: of the engine.
        images: in a call: as many for each thread.
        images_per_second: of the median call.
        speedup: over one thread, round by round: the median, low and high end of its confidence
            interval.
    """

    threads: int
    images: int
    images_per_second: float
    speedup: tuple[float, float, float]


def resident_memory(status: Path = _STATUS) -> int | None:
    """Bytes of main memory that this process has now; None where the system does not tell.

    Args:
        status: the file in which Linux tells a process of itself.
    """
    try:
        text = status.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"^VmRSS:\s*(\d+) kB$", text, re.MULTILINE)
    return None if found is None else int(found[1]) * 1024


def change(costs: Sequence[float]) -> float | None:
    """By how much the last of them is above the first, relative to it; None of fewer than two."""
    return costs[-1] / costs[0] - 1 if len(costs) > 1 else None


def in_proportion(changed: float | None) -> bool | None:
    """Whether what costs by so much more or less is in proportion; None where nothing is known."""
    return None if changed is None else abs(changed) <= IN_PROPORTION


def growth(rows: Sequence[Streamed]) -> int | None:
    """Bytes by which memory grew from the start to the most that a row ended with."""
    ends = [row.after for row in rows if row.after is not None]
    if not ends or rows[0].before is None:
        return None
    return max(ends) - rows[0].before


def images_a_call(scorer: Scorer, threads: int) -> int:
    """How many images keep an engine busy that computes on so many threads."""
    return scorer.batch_size * threads * _BATCHES_A_THREAD


def warm_up(scorer: Scorer, block: np.ndarray, counts: Sequence[int]) -> None:
    """Score once each number of images that `stream` will score in a call."""
    whole = {min(len(block), count) for count in counts}
    left = {count % len(block) for count in counts} - {0}
    for images in sorted(whole | left):
        scorer.score(block[:images])


def stream(
    scorer: Scorer,
    block: np.ndarray,
    row: Streamed,
    progress: Callable[[int], object],
    clock: Callable[[], float] = time.perf_counter,
    memory: Callable[[], int | None] = resident_memory,
) -> None:
    """Score as many images as `row` asks for, block by block; scores are dropped.

    Args:
        scorer: a bundle opened in an engine, warm.
        block: raw images, uint8 (N, H, W, C): always the same, so that memory is the scorer's.
        row: what is added to; what it holds after an interruption is right.
        progress: called after each block with its number of images.
        clock: seconds; for tests.
        memory: bytes; for tests.
    """
    row.before = row.after = memory()
    start = clock()
    while row.images < row.asked:
        images = block[: row.asked - row.images]
        scorer.score(images)
        row.images += len(images)
        row.seconds = clock() - start
        row.after = memory()
        progress(len(images))


def sizes(spec: Spec) -> list[tuple[int, int]]:
    """Height and width of images: the smallest, middle and largest that the network takes.

    Not below the size that is otherwise timed, nor with sides of more than four times that; one
    size of a network that takes no other.
    """
    least = default_size(spec)
    limits = (spec.height[1], spec.width[1])
    most = [min(limit, _MOST_TIMES_LARGER * low) for low, limit in zip(least, limits, strict=True)]
    middle = [(low + high + 1) // 2 for low, high in zip(least, most, strict=True)]
    return list(dict.fromkeys([least, (middle[0], middle[1]), (most[0], most[1])]))


def time_sizes(
    scorer: Scorer,
    images: Mapping[tuple[int, int], np.ndarray],
    *,
    seconds: float,
    precision: float,
    progress: Callable[[float], object],
) -> list[Sized]:
    """Time images of several sizes, which take turns.

    Args:
        scorer: a bundle opened in an engine.
        images: by height and width, the smallest first: raw, uint8 (N, H, W, C).
        seconds, precision, progress: as `timing.measure`.
    """
    names = {size: "{}x{}".format(*size) for size in images}
    calls = {names[size]: partial(scorer.score, block) for size, block in images.items()}
    least = next(iter(images))
    pairs = [(names[size], names[least]) for size in list(images)[1:]]
    timings = measure(calls, pairs, seconds=seconds, precision=precision, progress=progress)

    def row(size: tuple[int, int], block: np.ndarray) -> Sized:
        timing, pixels = timings[names[size]], _pixels(block)
        ratio = timing.per(timings[names[least]])
        taken = timing.percentile(50)
        return Sized(
            *size,
            images=len(block),
            ms_an_image=1000 * taken / len(block),
            ns_a_pixel=1e9 * taken / pixels,
            cost=_scaled(ratio, _pixels(images[least]) / pixels),
        )

    return [row(size, block) for size, block in images.items()]


def thread_counts(most: int) -> list[int]:
    """1, 2, 4 and so on below `most`, and `most`."""
    return [*(1 << power for power in range((most - 1).bit_length())), most]


def time_threads(
    scorers: Mapping[int, Scorer],
    images: np.ndarray,
    within: Callable[[int], AbstractContextManager[object]],
    *,
    seconds: float,
    precision: float,
    progress: Callable[[float], object],
) -> list[Threaded]:
    """Time scorers on several numbers of threads, which take turns.

    Each is given as many images for each of its threads, so that all calls take about as long.

    Args:
        scorers: by the number of threads, 1 first.
        images: raw, uint8 (N, H, W, C), N at least `images_a_call` of the most threads.
        within: threads -> around each call, what makes an engine take so many that is not opened
            for them.
        seconds, precision, progress: as `timing.measure`.
    """
    counts = {threads: images_a_call(scorer, threads) for threads, scorer in scorers.items()}

    def call(threads: int, scorer: Scorer) -> Callable[[], object]:
        def on_threads() -> None:
            with within(threads):
                scorer.score(images[: counts[threads]])

        return on_threads

    calls = {str(threads): call(threads, scorer) for threads, scorer in scorers.items()}
    pairs = [(str(threads), "1") for threads in scorers if threads > 1]
    timings = measure(calls, pairs, seconds=seconds, precision=precision, progress=progress)

    def row(threads: int) -> Threaded:
        timing, count = timings[str(threads)], counts[threads]
        slower = timings["1"].per(timing)  # seconds of one thread over these
        rate = count / timing.percentile(50)
        return Threaded(threads, count, rate, _scaled(slower, count / counts[1]))

    return [row(threads) for threads in scorers]


def _pixels(images: np.ndarray) -> int:
    """Of all images, uint8 (N, H, W, C)."""
    return images.size // images.shape[-1]


def _scaled(ratio: Interval, factor: float) -> tuple[float, float, float]:
    return (factor * ratio.median, factor * ratio.low, factor * ratio.high)
