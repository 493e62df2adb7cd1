"""How cost and memory grow: verdicts on made-up numbers, what is streamed, sizes, threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from odin_bench import scale
from odin_bench.scale import (
    Sized,
    Streamed,
    Threaded,
    change,
    growth,
    images_a_call,
    in_proportion,
    resident_memory,
    sizes,
    stream,
    thread_counts,
    time_sizes,
    time_threads,
    warm_up,
)
from odin_bench.tables import sizes_table, streamed_table, threads_table
from odin_bench.timing import Timing
from odin_engines.spec import Spec

MIB = 1 << 20


class Counting:
    """A scorer that takes a second an image, and half a MiB of memory that it never gives back."""

    batch_size = 4

    def __init__(self, interrupted_at: int | None = None) -> None:
        self.calls: list[int] = []
        self._interrupted_at = interrupted_at

    def score(self, images: np.ndarray) -> None:
        assert images.dtype == np.uint8
        if len(self.calls) == self._interrupted_at:
            raise KeyboardInterrupt
        self.calls.append(len(images))

    def clock(self) -> float:
        return 100.0 + sum(self.calls)

    def memory(self) -> int:
        return 500 * MIB + sum(self.calls) * MIB // 2


def block(count: int, height: int = 32, width: int = 32) -> np.ndarray:
    return np.zeros((count, height, width, 3), np.uint8)


def streamed(scorer: Any, asked: int, seen: list[int] | None = None) -> Streamed:
    row = Streamed(asked)
    progress = (seen if seen is not None else []).append
    stream(scorer, block(5), row, progress, scorer.clock, scorer.memory)
    return row


# Memory


def test_memory_is_read_off_the_system(tmp_path: Path) -> None:
    status = tmp_path / "status"
    assert resident_memory(status) is None
    status.write_text("Name:\tpython\nVmHWM:\t   90000 kB\nVmRSS:\t   81924 kB\nThreads:\t5\n")
    assert resident_memory(status) == 81924 * 1024
    status.write_text("Name:\tpython\nState:\tZ (zombie)\n")
    assert resident_memory(status) is None


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux alone tells")
def test_memory_that_is_taken_is_seen() -> None:
    before = resident_memory() or 0
    taken = np.ones(64 * MIB, np.uint8)
    assert (resident_memory() or 0) - before > 48 * MIB
    assert taken.all()


def row_of(before: int | None, after: int | None) -> Streamed:
    return Streamed(10, 10, 1.0, before, after)


def test_growth_is_over_all_rows() -> None:
    """From the first start to the worst end: what grows in steps is not flat."""
    rows = [row_of(500, 510), row_of(510, 540), row_of(540, 530)]
    assert [row.growth for row in rows] == [10, 30, -10]
    assert growth(rows) == 40
    assert growth([row_of(500, 480)]) == -20
    assert growth([row_of(None, None)]) is None
    assert row_of(None, None).growth is None


# Proportion


@pytest.mark.parametrize(
    ("costs", "changed", "linear"),
    [
        ((2.0, 2.5, 2.1), 0.05, True),
        ((2.0, 9.0, 1.81), -0.095, True),
        ((2.0, 2.0, 2.3), 0.15, False),
        ((2.0, 1.7), -0.15, False),
        ((2.0,), None, None),
        ((), None, None),
    ],
)
def test_proportion(costs: Sequence[float], changed: float | None, linear: bool | None) -> None:
    """The last against the first, within 10 % to either side."""
    assert change(costs) == (None if changed is None else pytest.approx(changed))
    assert in_proportion(change(costs)) is linear


# Images


def test_streaming() -> None:
    """Whole blocks and what is left; time and memory of these images alone."""
    scorer, seen = Counting(), []
    streamed(scorer, 7)
    row = streamed(scorer, 12, seen)
    assert scorer.calls == [5, 2, 5, 5, 2]
    assert seen == [5, 5, 2]
    assert row == Streamed(12, 12, 12.0, 503 * MIB + MIB // 2, 509 * MIB + MIB // 2)
    assert row.as_json() == {
        **vars(row),
        "images_per_second": 1.0,
        "ms_an_image": 1000.0,
        "growth": 6 * MIB,
    }


def test_an_interrupted_stream_keeps_what_it_has() -> None:
    scorer = Counting(interrupted_at=2)
    row = Streamed(50)
    with pytest.raises(KeyboardInterrupt):
        stream(scorer, block(5), row, print, scorer.clock, scorer.memory)  # type: ignore[arg-type]
    assert (row.images, row.seconds, row.growth) == (10, 10.0, 5 * MIB)


def test_all_numbers_of_images_are_warm() -> None:
    """Also those of the last block of each stream, and no others."""
    warm = Counting()
    warm_up(warm, block(5), [3, 10, 17, 12])  # type: ignore[arg-type]
    assert warm.calls == [2, 3, 5]
    scorer = Counting()
    for asked in (3, 10, 17, 12):
        streamed(scorer, asked)
    assert set(scorer.calls) == set(warm.calls)


# Pixels


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        ((32, 63), (32, 63), [(32, 32), (48, 48), (63, 63)]),
        ((32, 60), (32, 60), [(32, 32), (46, 46), (60, 60)]),
        ((224, 224), (224, 224), [(224, 224)]),
        ((1, 1024), (1, 1024), [(32, 32), (80, 80), (128, 128)]),
        ((64, 64), (32, 96), [(64, 32), (64, 64), (64, 96)]),
    ],
)
def test_sizes(tiny_spec: Callable[..., Spec], height: Any, width: Any, expected: Any) -> None:
    assert sizes(tiny_spec(height=height, width=width)) == expected


def timed(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, list[float]]) -> list[Any]:
    """Let the programs take so many seconds in each round; return what they are paired with."""
    pairs: list[Any] = []

    def measure(calls: dict[str, Callable[[], object]], wanted: Any, **_: Any) -> Any:
        assert set(calls) == set(seconds)
        pairs.extend(wanted)
        for call in calls.values():
            call()
        return {name: Timing([[each] for each in taken]) for name, taken in seconds.items()}

    monkeypatch.setattr(scale, "measure", measure)
    return pairs


ALWAYS: Any = {"seconds": 1.0, "precision": 0.01, "progress": print}


def test_cost_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images with four times the pixels take 4.4 times as long, whatever all drift by."""
    drift = np.array([1.0, 1.0, 1.0, 2.0, 2.0])
    taken = {"32x32": list(0.02 * drift), "64x64": list(0.088 * drift)}
    pairs = timed(monkeypatch, taken)
    scorer: Any = Counting()
    rows = time_sizes(scorer, {(32, 32): block(10), (64, 64): block(10, 64, 64)}, **ALWAYS)
    assert pairs == [("64x64", "32x32")]
    assert scorer.calls == [10, 10]
    small, large = rows
    assert small == Sized(32, 32, 10, 2.0, pytest.approx(2e6 / 1024), (1.0, 1.0, 1.0))
    assert large.ms_an_image == pytest.approx(8.8)
    assert large.ns_a_pixel == pytest.approx(8.8e6 / 4096)
    assert large.cost == pytest.approx((1.1, 1.1, 1.1))


# Cores


@pytest.mark.parametrize(
    ("most", "counts"),
    [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 4]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])],
)
def test_numbers_of_threads(most: int, counts: list[int]) -> None:
    assert thread_counts(most) == counts


def test_speed_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has as many images for each thread; calls that take as long are twice as fast."""
    pairs = timed(monkeypatch, {"1": [1.0] * 5, "2": [1.0] * 5, "4": [1.25] * 5})
    scorers: Any = {threads: Counting() for threads in (1, 2, 4)}
    within: list[int] = []

    @contextmanager
    def on(threads: int) -> Iterator[None]:
        within.append(threads)
        yield

    images = block(images_a_call(scorers[4], 4))
    rows = time_threads(scorers, images, on, **ALWAYS)
    assert pairs == [("2", "1"), ("4", "1")]
    assert within == [1, 2, 4]
    assert [scorer.calls for scorer in scorers.values()] == [[32], [64], [128]]
    assert rows == [
        Threaded(1, 32, 32.0, (1.0, 1.0, 1.0)),
        Threaded(2, 64, 64.0, (2.0, 2.0, 2.0)),
        Threaded(4, 128, pytest.approx(102.4), pytest.approx((3.2, 3.2, 3.2))),
    ]


def test_real_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real clock: what is timed is what was given."""
    monkeypatch.setattr("odin_bench.timing._TURN_SECONDS", 0.0001)
    quick = {**ALWAYS, "seconds": 0.001, "progress": lambda share: None}
    scorers: Any = {threads: Counting() for threads in (1, 2)}
    rows = time_threads(scorers, block(64), lambda threads: nullcontext(), **quick)
    assert [set(scorer.calls) for scorer in scorers.values()] == [{32}, {64}]
    for row in rows:
        middle, low, high = row.speedup
        assert 0 < low <= middle <= high


# Tables


def cells(table: str) -> list[list[str]]:
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


def test_tables() -> None:
    rows = [Streamed(1000, 1000, 8.0, 500 * MIB, 501 * MIB), Streamed(90000, 1234, 10.0)]
    assert cells(streamed_table(rows)) == [
        ["1,000", "8.0", "125.0", "8.000", "500.0", "501.0", "+1.0"],
        ["1,234", "10.0", "123.4", "8.104", "-", "-", "-"],
    ]
    assert cells(sizes_table([Sized(32, 48, 8, 1.5, 976.56, (1.02, 1.0, 1.05))])) == [
        ["32x48", "1,536", "1.500", "976.6", "1.02 [1.00, 1.05]"],
    ]
    assert cells(threads_table([Threaded(2, 64, 1234.5, (1.9, 1.85, 1.95))])) == [
        ["2", "64", "1,234.5", "1.90 [1.85, 1.95]"],
    ]
