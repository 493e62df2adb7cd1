"""Scoring a stream of images chunk by chunk, decoding ahead."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from odin_engines.errors import OdinError
from odin_runtime.journal import Journal
from odin_runtime.preparation import Preparation
from odin_runtime.rows import Row, row_of_error, rows_of
from odin_runtime.scorer import Scorer
from odin_runtime.scores import Scores
from odin_runtime.sources import Item

CHUNK = 64  # images that are scored together
_TOLERANT = "without --strict it would be told in its row"
_AHEAD = 4  # chunks that are decoded while others are scored


@dataclass(frozen=True)
class Decision:
    """How scores become decisions.

    Attributes:
        threshold: in place of the calibration's; None takes that, where there is one.
    """

    threshold: float | None = None

    def is_ood(self, scores: Scores) -> np.ndarray | None:
        """Whether each image is out-of-distribution; None where nothing tells."""
        if self.threshold is not None:
            return ~(scores.score >= np.float32(self.threshold))
        return None if isinstance(scores.calibration, str) else scores.is_ood


@dataclass(frozen=True)
class Run:
    """What is done to each image.

    Attributes:
        scorer: which scores them.
        prepare: what comes before.
        decision: what comes after.
        strict: whether an image that cannot be read ends the run.
        workers: threads that decode.
    """

    scorer: Scorer
    prepare: Preparation
    decision: Decision
    strict: bool = False
    workers: int = 2

    def go(
        self, items: Iterator[Item], journal: Journal, progress: Callable[[int, int], object]
    ) -> None:
        """Score what the journal does not hold yet.

        Args:
            items: from the first, always in the same order.
            journal: gets a row for each.
            progress: called after each chunk with its number of images, and of those that could not
                be read.

        Raises:
            OdinError: the items are not those that the journal was begun with; or `strict`, and an
                image cannot be read, or could not by the earlier run.
        """
        _skip(items, journal, self.strict)
        with ThreadPoolExecutor(self.workers) as pool:
            waiting: deque[tuple[list[Item], list[Future[np.ndarray | str]]]] = deque()
            try:
                for chunk in _chunks(items):
                    waiting.append((chunk, [pool.submit(self._decode, item) for item in chunk]))
                    if len(waiting) > _AHEAD:
                        self._finish(*waiting.popleft(), journal, progress)
                while waiting:
                    self._finish(*waiting.popleft(), journal, progress)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _decode(self, item: Item) -> np.ndarray | str:
        """A prepared image, or why there is none."""
        try:
            return self.prepare(item.read(), self.scorer.spec)
        except OdinError as error:
            return str(error)

    def _finish(
        self,
        chunk: Sequence[Item],
        decoding: Sequence[Future[np.ndarray | str]],
        journal: Journal,
        progress: Callable[[int, int], object],
    ) -> None:
        decoded = [future.result() for future in decoding]
        problems = [found for found in decoded if isinstance(found, str)]
        if problems and self.strict:
            raise OdinError(f"{problems[0]}; {_TOLERANT}")
        journal.append(self._rows(chunk, decoded))
        progress(len(chunk), len(problems))

    def _rows(self, chunk: Sequence[Item], decoded: Sequence[np.ndarray | str]) -> list[Row]:
        rows: list[Row | None] = [
            row_of_error(item.name, found) if isinstance(found, str) else None
            for item, found in zip(chunk, decoded, strict=True)
        ]
        for places, images in _by_size(decoded):
            scores = self.scorer.score(images)
            is_ood = self.decision.is_ood(scores)
            names = [chunk[place].name for place in places]
            for place, row in zip(places, rows_of(names, scores, is_ood), strict=True):
                rows[place] = row
        return [row for row in rows if row is not None]


def _chunks(items: Iterator[Item]) -> Iterator[list[Item]]:
    while chunk := list(itertools.islice(items, CHUNK)):
        yield chunk


def _by_size(decoded: Iterable[np.ndarray | str]) -> Iterator[tuple[list[int], np.ndarray]]:
    """Images of each size, and their places."""
    places: dict[tuple[int, ...], list[int]] = {}
    images = list(decoded)
    for place, image in enumerate(images):
        if not isinstance(image, str):
            places.setdefault(image.shape, []).append(place)
    for found in places.values():
        yield found, np.stack([images[place] for place in found])


def _skip(items: Iterator[Item], journal: Journal, strict: bool) -> None:
    """Pass by the items that were scored, and check that they are the same."""
    for row in itertools.islice(journal.rows(), journal.done):
        item = next(items, None)
        name = None if item is None else item.name
        if name != row["path"]:
            raise OdinError(
                f"{journal.path} has a row of {row['path']} where the images now have "
                f"{name or 'no more'}: they are not those of the run that was interrupted; remove "
                "it to start anew"
            )
        if strict and row["error"] is not None:
            raise OdinError(f"{row['error']}; {_TOLERANT}")
