"""Timing with a clock of the tests' own: turns, ratios, intervals, when it stops, noise."""

from __future__ import annotations

from collections.abc import Callable
from math import comb

import numpy as np
import pytest

from odin_bench import timing as timing_module
from odin_bench.timing import Timing, measure, median_interval


@pytest.fixture(autouse=True)
def slow_from_a_quarter_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing_module, "_SLOW_CALL", 0.25)


class Machine:
    """Something that computes at a given speed, and a clock beside it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def program(self, name: str, seconds: Callable[[int], float]) -> Callable[[], None]:
        """What is called takes so many seconds the n-th time."""

        def call() -> None:
            self.now += seconds(self.calls.count(name))
            self.calls.append(name)

        return call

    def measure(
        self, seconds: dict[str, Callable[[int], float]], *, of: str = "", budget: float = 1e6
    ) -> dict[str, Timing]:
        """Time programs; `of` is the one that all ratios are to."""
        programs = {name: self.program(name, each) for name, each in seconds.items()}
        pairs = [(name, of) for name in seconds if of and name != of]
        clock = lambda: self.now  # noqa: E731
        return measure(programs, pairs, seconds=budget, precision=0.01, clock=clock)


def constant(seconds: float) -> Callable[[int], float]:
    return lambda count: seconds


def test_each_has_a_turn_in_every_round() -> None:
    """And not always in the same order. Slow calls have a turn of one, without warm-up."""
    machine = Machine()
    timings = machine.measure({name: constant(0.5) for name in "abc"}, budget=30)
    warm = machine.calls[: len(machine.calls) - 3 * len(timings["a"].turns)]
    assert warm == [*"aaaa", *"bbbb", *"cccc"]  # one that does not count, and three
    turns = machine.calls[len(warm) :]
    rounds = ["".join(turns[start : start + 3]) for start in range(0, len(turns), 3)]
    assert all(sorted(each) == list("abc") for each in rounds)
    assert len(set(rounds)) > 3
    assert len(rounds) == 20  # of 1.5 seconds


def test_quick_calls_have_a_warm_up_in_each_turn() -> None:
    """It is not timed: here, what has not been called just before takes ten times as long."""
    machine = Machine()

    def seconds(name: str) -> Callable[[int], float]:
        return lambda count: 0.011 if machine.calls[-1:] == [name] else 0.1

    timings = machine.measure({name: seconds(name) for name in "ab"}, budget=1)
    for timing in timings.values():
        assert {len(turn) for turn in timing.turns} == {5}  # 0.06 seconds
        assert np.allclose(timing.calls, 0.011)


def test_the_first_call_may_compile() -> None:
    machine = Machine()
    timing = machine.measure({"a": lambda count: 30.0 if count == 0 else 0.001}, budget=1)["a"]
    assert np.allclose(timing.calls, 0.001)
    assert {len(turn) for turn in timing.turns} == {20}


def test_drift_does_not_move_a_ratio() -> None:
    """The machine slows down to half its speed: each program does, the ratio stays."""
    machine = Machine()

    def slowing(seconds: float) -> Callable[[int], float]:
        return lambda count: seconds * (1 + min(machine.now / 100, 1))

    programs = {"forward": slowing(0.3), "odin": slowing(0.9)}
    timings = machine.measure(programs, budget=100)
    ratio = timings["odin"].per(timings["forward"])
    assert ratio.median == pytest.approx(3, rel=0.02)
    assert ratio.low <= ratio.median <= ratio.high
    assert ratio.half_width < 0.02
    assert timings["odin"].drift == pytest.approx(0.5, abs=0.1)
    assert timings["odin"].spread > 0.2


def test_a_quiet_machine_has_neither_spread_nor_drift() -> None:
    timing = Machine().measure({"a": constant(0.5)}, budget=20)["a"]
    assert (timing.spread, timing.drift) == (0, 0)
    assert timing.percentile(50) == timing.percentile(99) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("times", "budget", "rounds"),
    [
        ((0.3, 0.3), 1e6, 7),  # the ratio is known at once
        ((0.3, 0.5), 1e6, 400),  # never known: one call in two takes 0.5
        ((0.3, 0.5), 0.1, 7),
        ((0.3, 0.5), 20.0, 29),  # of 0.7 seconds on average
    ],
)
def test_when_it_stops(times: tuple[float, float], budget: float, rounds: int) -> None:
    seconds = {"forward": constant(0.3), "odin": lambda count: times[count % 2]}
    timings = Machine().measure(seconds, of="forward", budget=budget)
    assert [len(timing.turns) for timing in timings.values()] == [rounds, rounds]


def test_progress() -> None:
    machine = Machine()
    programs = {name: machine.program(name, constant(0.5)) for name in "ab"}
    seen: list[float] = []
    measure(programs, [], seconds=10, precision=0, progress=seen.append, clock=lambda: machine.now)
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0, 1)
    assert len(seen) == 2 + 2 * 10
    assert len(set(seen)) > 15


@pytest.mark.parametrize("count", [6, 7, 10, 20, 51, 400])
def test_the_interval_holds_as_often_as_it_says(count: int) -> None:
    """P(the median of any distribution lies between), summed term by term."""
    interval = median_interval(np.random.default_rng(0).permutation(count))
    low, high = int(interval.low), int(interval.high)
    assert low == count - 1 - high

    def covered(rank: int) -> float:
        return 1 - 2 * sum(comb(count, k) for k in range(rank)) / 2**count

    assert covered(low + 1) >= 0.95
    assert covered(low + 2) < 0.95
    assert interval.median == (count - 1) / 2


def test_the_interval_of_few() -> None:
    """Five values cannot hold the median with 95 %: all that is known is told."""
    interval = median_interval(np.array([5.0, 1.0, 3.0, 2.0, 4.0]))
    assert (interval.low, interval.median, interval.high) == (1, 3, 5)
    assert interval.half_width == pytest.approx(2 / 3)
