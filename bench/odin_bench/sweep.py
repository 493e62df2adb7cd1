"""ODIN scores at every pair of a grid of magnitudes and temperatures, for the distinct passes only.

Liang, Li, Srikant, ICLR 2018; `odin_export.odin_graph` has the formulas. Of one image, a score at
magnitude e and temperature T needs

    the logits                          one forward pass, for the whole grid
    the gradient of -log S_y(x; T)      one backward pass for each T, for all magnitudes
    the logits of x - e sign(g) / std   one forward pass for each distinct perturbed image

The perturbed image depends on T by the signs of g alone, so temperatures whose signs all agree
share it, and at magnitude 0 it is the image itself. The first-order score needs no perturbed image.

The gradient is linear in its seed, softmax(f / T) - onehot, which has classes - 1 dimensions: more
temperatures than that could be had from fewer backward passes. But a gradient put together so is
rounded otherwise, and signs near zero change, so that is not done.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from odin_engines import engine as engines
from odin_engines.bundle import FORWARD, GRADIENT, Bundle
from odin_engines.engine import ENGINES, Arrays, Session, Tuning
from odin_engines.errors import OdinError
from odin_engines.spec import Precision
from odin_runtime.images import check_images, normalised
from odin_runtime.settings import check_range

Progress = Callable[[int], object]

# Images whose perturbed images are computed together: many full batches, and little memory.
_CHUNK = 64
# Engines take longer to open a graph with more.
_TEMPERATURES_AT_ONCE = 8


@dataclass(frozen=True)
class Passes:
    """What was computed, in images x passes through the network.

    Attributes:
        forward, backward: distinct passes, those that were computed.
        naive: passes of scoring each pair by itself, three each.
    """

    forward: int = 0
    backward: int = 0
    naive: int = 0

    @property
    def distinct(self) -> int:
        """Forward and backward."""
        return self.forward + self.backward

    def __add__(self, other: Passes) -> Passes:
        """Both together."""
        return Passes(
            self.forward + other.forward,
            self.backward + other.backward,
            self.naive + other.naive,
        )


@dataclass(frozen=True)
class Swept:
    """The scores of some images at each pair of a grid; higher means in-distribution.

    Attributes:
        score: float32 (temperatures, magnitudes, N).
        unmoved: score at magnitude 0, float32 (temperatures, N).
        baseline: largest softmax probability, float32 (N,).
        passes: what it took.
    """

    score: np.ndarray
    unmoved: np.ndarray
    baseline: np.ndarray
    passes: Passes


@dataclass(frozen=True)
class _Gradients:
    """A graph that gives the input gradient at some temperatures."""

    session: Session
    feeds: Arrays  # beside the images
    names: tuple[str, ...]  # of its outputs, one for each temperature


class Sweep:
    """A bundle opened in an engine for scoring at many magnitudes and temperatures.

    Leaving it as a context manager removes what it has written.

    Args:
        bundle: tunable, unless its own temperature is the only one.
        engine: "openvino", "ort", or "auto" for the first of them that can run here.
        precision: None takes the bundle's.
        tuning: threads and streams of the engine.

    Raises:
        OdinError: the engine is not one on the CPU, is not available here, or does not compute in
            the precision.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: str = "auto",
        precision: Precision | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        self.bundle = bundle
        self.spec = bundle.spec
        self.precision: Precision = precision or bundle.spec.precision
        check_engine(engine)
        self.engine = engines.resolve(engine, self.precision)
        check_engine(self.engine)
        problem = engines.takes_precision(self.engine, self.spec, self.precision)
        if problem is not None:
            raise OdinError(problem)
        self._tuning = tuning or Tuning()
        held = self.spec.activation_bytes
        self._batch = engines.images_at_once(self.engine, self.precision, held)
        self._opened: dict[object, Session] = {}
        # Graphs written here stay while engines may open them again.
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)

    def __enter__(self) -> Sweep:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the graphs that were written for it."""
        self._opened.clear()
        self._folder.cleanup()

    def check(self, magnitudes: Sequence[float], temperatures: Sequence[float]) -> None:
        """Check a grid before there are images.

        Raises:
            OdinError: a value is out of range, or the bundle has another temperature built in.
        """
        for temperature in temperatures:
            check_range(temperature, magnitudes)
        own = np.float32(self.spec.temperature)
        others = [value for value in temperatures if np.float32(value) != own]
        if others and any(magnitudes) and not self.spec.tunable:
            raise OdinError(
                f"bundle {self.bundle.path} has temperature {own:g} built into its gradient, and "
                f"temperature {others[0]:g} needs another: export it again with odin-export "
                f"--tunable, or sweep magnitudes alone, with --temperature {own:g}"
            )

    def most_passes(self, magnitudes: Sequence[float], temperatures: Sequence[float]) -> int:
        """Passes of one image if no two temperatures agree in all signs."""
        moved = sum(1 for magnitude in magnitudes if magnitude > 0)
        if not moved:
            return 1
        perturbed = moved * len(temperatures) if self.spec.method == "exact" else 0
        return len(_groups(temperatures)) + len(temperatures) + perturbed

    def score(
        self,
        images: np.ndarray,
        magnitudes: Sequence[float],
        temperatures: Sequence[float],
        progress: Progress = lambda passes: None,
    ) -> Swept:
        """Score images at each pair of magnitude and temperature.

        Memory beyond the scores does not grow with the number of images.

        Args:
            images: raw, uint8 (N, H, W, C).
            magnitudes, temperatures: each once.
            progress: called with the number of passes that are done or turn out not to be needed,
                `most_passes` for each image in all.

        Raises:
            OdinError: as `check`; or the images have another type, layout or size.
        """
        self.check(magnitudes, temperatures)
        check_images(images, self.spec)
        if images.dtype != np.uint8:
            raise OdinError("a sweep takes raw images, uint8 (N, H, W, C)")
        score = np.empty((len(temperatures), len(magnitudes), len(images)), np.float32)
        unmoved = np.empty((len(temperatures), len(images)), np.float32)
        baseline = np.empty(len(images), np.float32)
        passes = Passes()
        for start in range(0, len(images), _CHUNK):
            part = slice(start, start + _CHUNK)
            planes = normalised(images[part], self.spec)
            chunk = _Chunk(self, planes, magnitudes, temperatures, progress)
            score[..., part] = chunk.scores()
            unmoved[:, part], baseline[part] = chunk.unmoved(), max_probability(chunk.logits, 1)
            passes += chunk.passes
        return Swept(score, unmoved, baseline, passes)

    def forward(self) -> Session:
        """The forward pass, opened."""
        return self._open(FORWARD, self.bundle.file(FORWARD))

    def gradients(self, temperatures: Sequence[float]) -> list[_Gradients]:
        """Graphs that together give the gradients at these temperatures, in their order."""
        return [self._gradients(group) for group in _groups(temperatures)]

    def batches(
        self, session: Session, count: int, make: Callable[[np.ndarray], Arrays]
    ) -> Iterator[tuple[slice, Mapping[str, np.ndarray]]]:
        """Run `count` images through a graph in batches of one size: engines compile for each size.

        Args:
            session: the graph.
            count: at least 1.
            make: gives the inputs for some indices, int (batch,); the last batch repeats its last.

        Yields:
            Which images, and their outputs.
        """
        starts = range(0, count, self._batch)
        indices = (np.minimum(np.arange(at, at + self._batch), count - 1) for at in starts)
        outputs = session.run_all(make(index) for index in indices)
        for at, found in zip(starts, outputs, strict=True):
            if len(found["logits"]) != self._batch:
                raise OdinError(
                    f"bundle {self.bundle.path} gives {len(found['logits'])} rows of logits for "
                    f"{self._batch} images: the network does not take this size; resize or crop "
                    "the images"
                )
            kept = min(self._batch, count - at)
            yield slice(at, at + kept), {name: rows[:kept] for name, rows in found.items()}

    def _gradients(self, group: tuple[float, ...]) -> _Gradients:
        file = self.bundle.file(GRADIENT)
        if len(group) == 1:
            scalar = {"temperature": np.array(group[0], np.float32)}
            feeds = scalar if self.spec.tunable else {}
            return _Gradients(self._open(GRADIENT, file), feeds, ("input_gradient",))
        if group not in self._opened:
            from odin_bench.sweep_graph import gradients_graph

            joint = Path(self._folder.name) / f"gradients-{len(self._opened)}.onnx"
            joint.write_bytes(gradients_graph(file, group).SerializeToString())
            self._open(group, joint)
        names = tuple(f"input_gradient@{index}" for index in range(len(group)))
        return _Gradients(self._opened[group], {}, names)

    def _open(self, key: object, graph: Path) -> Session:
        if key not in self._opened:
            session = engines.open_graph(self.engine, graph, self.precision, self._tuning)
            self._opened[key] = session
        return self._opened[key]


class _Chunk:
    """Some images, normalised, on their way through the grid."""

    def __init__(
        self,
        sweep: Sweep,
        planes: np.ndarray,
        magnitudes: Sequence[float],
        temperatures: Sequence[float],
        progress: Progress,
    ) -> None:
        self._sweep = sweep
        self._planes = planes
        self._magnitudes = np.asarray(magnitudes, np.float32)
        self._temperatures = temperatures
        self._progress = progress
        std = np.asarray(sweep.spec.std, np.float64).reshape(-1, 1, 1)
        self._inverse_std = (1 / std).astype(np.float32)
        self.passes = Passes(naive=3 * len(planes) * len(magnitudes) * len(temperatures))
        self.logits = np.empty((len(planes), sweep.spec.classes), np.float32)

    def scores(self) -> np.ndarray:
        """Float32 (temperatures, magnitudes, images); `logits` and `passes` are known after it."""
        if not self._magnitudes.any():
            self._first_forward()
            return np.repeat(self.unmoved()[:, None], len(self._magnitudes), axis=1)
        if self._sweep.spec.method == "exact":
            return self._exact(self._backward(_packed_signs))
        return self._first_order(self._backward(self._sizes))

    def unmoved(self) -> np.ndarray:
        """Scores at magnitude 0, float32 (temperatures, images), once `logits` are known."""
        return np.stack([max_probability(self.logits, value) for value in self._temperatures])

    def _first_forward(self) -> None:
        def make(index: np.ndarray) -> Arrays:
            return {"images": self._planes[index]}

        session = self._sweep.forward()
        for part, found in self._sweep.batches(session, len(self._planes), make):
            self.logits[part] = found["logits"]
            self._count(forward=part.stop - part.start)

    def _backward(self, reduced: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """What is wanted of the gradients (n, C, H, W) at each temperature; fills `logits` too."""
        rows: list[np.ndarray] = []
        for gradients in self._sweep.gradients(self._temperatures):

            def make(index: np.ndarray, feeds: Arrays = gradients.feeds) -> Arrays:
                return {"images": self._planes[index], **feeds}

            parts = []
            for part, found in self._sweep.batches(gradients.session, len(self._planes), make):
                self.logits[part] = found["logits"]
                parts.append([reduced(found[name]) for name in gradients.names])
                count = part.stop - part.start
                self._count(forward=count, backward=count * len(gradients.names))
            rows += [np.concatenate(each) for each in zip(*parts, strict=True)]
        return np.stack(rows)

    def _sizes(self, gradient: np.ndarray) -> np.ndarray:
        """sum |g| / std of each image."""
        return (np.abs(gradient) * self._inverse_std).sum(axis=(1, 2, 3), dtype=np.float32)

    def _first_order(self, sizes: np.ndarray) -> np.ndarray:
        gain = self._magnitudes[:, None] * sizes[:, None]
        with np.errstate(over="ignore"):  # infinite in the graph too
            return self.unmoved()[:, None] * np.exp(gain)

    def _exact(self, signs: np.ndarray) -> np.ndarray:
        """From packed signs, uint8 (temperatures, images, bytes)."""
        which, firsts = _distinct(signs)
        moved = self._magnitudes > 0
        again = self._perturbed_logits(signs[firsts], firsts[1], self._magnitudes[moved])
        scores = np.empty((*which.shape[:1], len(moved), which.shape[1]), np.float32)
        scores[:, ~moved] = self.unmoved()[:, None]
        for index, temperature in enumerate(self._temperatures):
            scores[index, moved] = max_probability(again[which[index]], temperature).T
        saved = (which.size - len(again)) * again.shape[1]
        self._progress(saved)
        return scores

    def _perturbed_logits(
        self, signs: np.ndarray, owners: np.ndarray, magnitudes: np.ndarray
    ) -> np.ndarray:
        """Logits (patterns, magnitudes, classes) of images moved by patterns of signs.

        Args:
            signs: where the gradient is negative, packed, uint8 (patterns, bytes).
            owners: index of the image of each pattern.
            magnitudes: float32, all above 0.
        """
        planes, steps = self._planes, len(magnitudes)
        up = magnitudes.reshape(-1, 1, 1, 1) * self._inverse_std

        def make(index: np.ndarray) -> Arrays:
            pattern, step = np.divmod(index, steps)
            bits = np.unpackbits(signs[pattern], axis=1, count=planes[0].size)
            negative = bits.reshape(len(index), *planes.shape[1:]).view(bool)
            # sign(0) = +1: a zero gradient moves the pixel down.
            return {"images": planes[owners[pattern]] + np.where(negative, up[step], -up[step])}

        logits = np.empty((len(signs) * steps, self.logits.shape[1]), np.float32)
        for part, found in self._sweep.batches(self._sweep.forward(), len(logits), make):
            logits[part] = found["logits"]
            self._count(forward=part.stop - part.start)
        return logits.reshape(len(signs), steps, -1)

    def _count(self, forward: int = 0, backward: int = 0) -> None:
        self.passes += Passes(forward, backward)
        self._progress(forward + backward)


def max_probability(logits: np.ndarray, temperature: float) -> np.ndarray:
    """max_i softmax(logits / T)_i: float32 (..., classes) -> float32 (...)."""
    scaled = logits / np.float32(temperature)
    scaled -= scaled.max(axis=-1, keepdims=True)
    return 1 / np.exp(scaled).sum(axis=-1)


def _packed_signs(gradient: np.ndarray) -> np.ndarray:
    """Where the gradient (n, C, H, W) is negative, a bit each: uint8 (n, bytes)."""
    return np.packbits((gradient < 0).reshape(len(gradient), -1), axis=1)


def _distinct(signs: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Group temperatures, image by image, by their signs, uint8 (temperatures, images, bytes).

    Returns:
        The number of the pattern that each temperature and image has, int (temperatures, images);
        and for each pattern the temperature and the image that it was first met at.
    """
    which = np.empty(signs.shape[:2], np.intp)
    known: dict[tuple[int, bytes], int] = {}
    firsts: list[tuple[int, int]] = []
    for temperature, image in np.ndindex(*which.shape):
        key = (image, signs[temperature, image].tobytes())
        if key not in known:
            known[key] = len(firsts)
            firsts.append((temperature, image))
        which[temperature, image] = known[key]
    first_temperature, first_image = np.array(firsts).T
    return which, (first_temperature, first_image)


def _groups(temperatures: Sequence[float]) -> list[tuple[float, ...]]:
    """Temperatures whose gradients one graph gives."""
    most = _TEMPERATURES_AT_ONCE
    return [tuple(temperatures[at : at + most]) for at in range(0, len(temperatures), most)]


def check_engine(name: str) -> None:
    """Check that an engine, or "auto", sweeps grids.

    Raises:
        OdinError: it is PyTorch, or computes on a GPU.
    """
    info = ENGINES.get(name)
    if name == "torch" or (info is not None and info.gpu_extra is not None):
        raise OdinError(
            f"--engine {name} does not sweep a grid; use --engine openvino or ort, or give one "
            "magnitude and one temperature"
        )
