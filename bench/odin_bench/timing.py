"""Timing several programs side by side, so that what drifts on the machine hits all alike.

Rounds: in each one every contender has a turn, in an order drawn anew. A turn starts with a call
that is not timed, which brings back its caches and threads, except where calls are slow. What is
compared is compared within a round, and a ratio is the median of its rounds. Timing may stop when
the intervals of the ratios are narrow, which makes them hold somewhat less often than they say
where rounds are few, and as often where they are many (Chow and Robbins, Annals of Mathematical
Statistics 36, 1965).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
from scipy.stats import binom

CONFIDENCE = 0.95
# A turn lasts about this long, and has as many timed calls; slow calls have one, without warm-up.
_TURN_SECONDS = 0.06
_MOST_CALLS = 20
_SLOW_CALL = 1.0
_WARM_UP_CALLS = 3
_WARM_UP_SECONDS = 1.0
_FEWEST_ROUNDS, _MOST_ROUNDS = 7, 400
# A quiet machine stays below this: the spread of one contender's rounds, and their drift.
NOISY = 0.05

Clock = Callable[[], float]


@dataclass(frozen=True)
class Interval:
    """A median with a confidence interval of `CONFIDENCE`, from order statistics."""

    median: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the interval, relative to the median."""
        return (self.high - self.low) / 2 / self.median


@dataclass(frozen=True)
class Timing:
    """The timed calls of one contender.

    Attributes:
        turns: seconds of each call, a list of at least one for each round.
    """

    turns: list[list[float]] = field(default_factory=list)

    @property
    def calls(self) -> np.ndarray:
        """Seconds of every call, float64 (calls,)."""
        return np.concatenate([np.asarray(turn) for turn in self.turns])

    @property
    def rounds(self) -> np.ndarray:
        """Median seconds of a call in each round, float64 (rounds,)."""
        return np.array([median(turn) for turn in self.turns])

    @property
    def spread(self) -> float:
        """Distance of the quartiles of the rounds, relative to their median."""
        low, middle, high = np.quantile(self.rounds, (0.25, 0.5, 0.75))
        return float((high - low) / middle)

    @property
    def drift(self) -> float:
        """By how much the last third of the rounds took longer than the first, relative to it."""
        third = max(len(self.turns) // 3, 1)
        return float(np.median(self.rounds[-third:]) / np.median(self.rounds[:third]) - 1)

    def percentile(self, share: float) -> float:
        """Seconds that this share, in percent, of the calls stayed within."""
        return float(np.percentile(self.calls, share))

    def per(self, other: Timing) -> Interval:
        """How many times as long a call takes as one of `other`, round by round."""
        return median_interval(self.rounds / other.rounds)


def median_interval(values: np.ndarray) -> Interval:
    """The median and its distribution-free confidence interval.

    The k-th smallest and k-th largest of n values enclose the median with probability
    1 - 2 P(Binomial(n, 1/2) < k) (David and Nagaraja, Order Statistics, 2003, section 7.1). Where
    n is too small for `CONFIDENCE`, they are the smallest and the largest.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    outside = int(binom.ppf((1 - CONFIDENCE) / 2, len(ordered), 0.5))
    rank = max(outside - 1, 0)
    return Interval(float(np.median(ordered)), float(ordered[rank]), float(ordered[-1 - rank]))


def measure(
    contenders: Mapping[str, Callable[[], object]],
    pairs: Sequence[tuple[str, str]],
    *,
    seconds: float,
    precision: float,
    progress: Callable[[float], object] = lambda share: None,
    clock: Clock = time.perf_counter,
    seed: int = 0,
) -> dict[str, Timing]:
    """Time the contenders round by round.

    Args:
        contenders: what each calls, by name.
        pairs: names of those whose ratio is wanted.
        seconds: no round begins after these, but the fewest are done.
        precision: stops earlier, when the interval of every ratio has at most this half-width,
            relative to the ratio; never, where there are no pairs.
        progress: called after each turn with the share that is done, of the rounds or the time.
        clock: seconds; for tests.
        seed: of the order within the rounds.

    Returns:
        The timings, by name; all of the same number of rounds.
    """
    progress(0.0)
    lengths = {name: _warm_up(call, clock) for name, call in contenders.items()}
    timings = {name: Timing() for name in contenders}
    order = np.random.default_rng(seed)
    start = clock()
    for count in range(_MOST_ROUNDS):
        used = (clock() - start) / seconds
        if count >= _FEWEST_ROUNDS and (used >= 1 or _precise(timings, pairs, precision)):
            break
        turns = {}
        for index, name in enumerate(order.permutation(list(contenders))):
            turns[str(name)] = _turn(contenders[name], lengths[name], clock)
            fewest = (count + (index + 1) / len(contenders)) / _FEWEST_ROUNDS
            progress(min(fewest, max((clock() - start) / seconds, 0), 1.0))
        for name, turn in turns.items():  # a round counts as a whole or not at all
            timings[name].turns.append(turn)
    progress(1.0)
    return timings


def _precise(
    timings: Mapping[str, Timing], pairs: Sequence[tuple[str, str]], precision: float
) -> bool:
    return bool(pairs) and all(timings[a].per(timings[b]).half_width <= precision for a, b in pairs)


def _warm_up(call: Callable[[], object], clock: Clock) -> float:
    """Call until caches are warm; return the seconds of the fastest call.

    The first call counts for nothing: engines compile in it.
    """
    call()
    fastest, start = np.inf, clock()
    for _ in range(_WARM_UP_CALLS):
        began = clock()
        call()
        fastest = min(fastest, clock() - began)
        if clock() - start > _WARM_UP_SECONDS:
            break
    return float(fastest)


def _turn(call: Callable[[], object], length: float, clock: Clock) -> list[float]:
    if length < _SLOW_CALL:
        call()
    count = int(np.clip(_TURN_SECONDS / max(length, 1e-9), 1, _MOST_CALLS))
    seconds = []
    for _ in range(count):
        began = clock()
        call()
        seconds.append(clock() - began)
    return seconds
