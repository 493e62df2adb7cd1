"""A whole set of images, from files to scores: which step the time goes to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from odin_bench.evaluation import size_to_scale_to
from odin_engines.errors import OdinError
from odin_runtime import Scorer, image_files
from odin_runtime.images import check_images, normalised
from odin_runtime.preparation import scaled
from odin_runtime.scorer import PLAN_ENGINES

CHUNK = 256  # images that are in memory at once; of an .npz file, all are
_STEPS = {"read": "reading and decoding", "prepare": "preprocessing", "score": "scoring"}


@dataclass
class EndToEnd:
    """Seconds of each step, which follow each other, so far.

    Attributes:
        images: how many went through all steps.
        read: reading and decoding.
        prepare: scaling, and where the engine takes normalised images, normalising.
        score: scoring.
    """

    images: int = 0
    read: float = 0.0
    prepare: float = 0.0
    score: float = 0.0

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return self.read + self.prepare + self.score

    @property
    def bottleneck(self) -> str:
        """The longest step, in words."""
        return _STEPS[max(_STEPS, key=lambda step: getattr(self, step))]

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            **asdict(self),
            "images_per_second": self.images / self.seconds,
            "images_per_second_scoring": self.images / self.score,
            "bottleneck": self.bottleneck,
        }

    def as_text(self) -> str:
        """For people."""
        lines = []
        for step, name in _STEPS.items():
            seconds = getattr(self, step)
            lines.append(f"{name:<21}{seconds:>9.3f} s {100 * seconds / self.seconds:>5.1f} %")
        return "\n".join(
            [
                *lines,
                f"{'all of it':<21}{self.seconds:>9.3f} s, {self.images:,} images, one step after "
                "the other",
                f"{self.images / self.seconds:,.1f} images/s end to end, "
                f"{self.images / self.score:,.1f} images/s scoring alone",
                f"the bottleneck is {self.bottleneck}",
            ]
        )


def run(
    scorer: Scorer,
    path: Path,
    size: tuple[int, int] | None,
    taken: EndToEnd,
    progress: Callable[[int], object],
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Score a set, and add what each step takes to `taken`, chunk by chunk.

    What comes in a new number of images is scored once before, for engines to compile.

    Args:
        scorer: a bundle opened in an engine.
        path: a folder of image files, or an .npz file.
        size: height and width to scale the images to; None scales only those that the network does
            not take, to a size that it does, and a folder's images to that of its first.
        taken: what is added to; what it holds after an interruption is right.
        progress: called after each chunk with its number of images.
        clock: seconds; for tests.

    Raises:
        OdinError: there are no images, or one is damaged or of a size that the network refuses.
    """
    chunks = _chunks(path)
    warm = set()  # numbers of images
    while True:
        began = clock()
        chunk = next(chunks, None)
        if chunk is None:
            return
        decoded = clock()
        size = size or _size(scorer, chunk[0])
        ready = _prepared(scorer, chunk, size)
        prepared = clock()
        if len(ready) not in warm:
            scorer.score(ready)
            warm.add(len(ready))
        started = clock()
        scorer.score(ready)
        ended = clock()
        taken.images += len(ready)
        taken.read += decoded - began
        taken.prepare += prepared - decoded
        taken.score += ended - started
        progress(len(ready))


def count_images(path: Path) -> int | None:
    """How many image files a folder holds; None for a file, which does not tell so soon.

    Raises:
        OdinError: there is nothing at the path, or no image in the folder.
    """
    if not path.exists():
        raise OdinError(f"{path} does not exist; give a folder of images, or an .npz file")
    if not path.is_dir():
        return None
    count = sum(1 for _ in image_files.image_files(path))
    if not count:
        raise OdinError(
            f"{path} holds no images ({', '.join(sorted(image_files.SUFFIXES))}); give a folder "
            "that does, or an .npz file"
        )
    return count


def _chunks(path: Path) -> Iterator[list[np.ndarray] | np.ndarray]:
    if path.is_dir():
        files = sorted(image_files.image_files(path))
        for start in range(0, len(files), CHUNK):
            yield [image_files.decode_rgb(f, str(f)) for f in files[start : start + CHUNK]]
        return
    images, _ = image_files.read_npz(path)
    for start in range(0, len(images), CHUNK):
        yield images[start : start + CHUNK]


def _size(scorer: Scorer, image: np.ndarray) -> tuple[int, int]:
    height, width = image.shape[:2]
    size = size_to_scale_to(scorer.spec, (height, width)) or (height, width)
    check_images(np.empty((1, *size, image.shape[2]), np.uint8), scorer.spec)
    return size


def _prepared(
    scorer: Scorer, images: list[np.ndarray] | np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """What the engine takes: raw images, uint8 (N, H, W, C), or normalised ones."""
    if isinstance(images, np.ndarray) and images.shape[1:3] == size:
        raw = images
    else:
        raw = np.stack([scaled(image, size) for image in images])
    if scorer.engine in PLAN_ENGINES or scorer.input_type == "uint8":
        return raw
    return normalised(raw, scorer.spec)
