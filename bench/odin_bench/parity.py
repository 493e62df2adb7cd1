"""How far an engine strays from the PyTorch reference, in the terms of the task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from odin_bench.metrics import evaluate
from odin_engines.bundle import GRADIENT
from odin_engines.engine import Tuning, open_graph
from odin_engines.torch_reference import TorchReference
from odin_runtime import Scorer
from odin_runtime.gpu_options import PLAN_ENGINES
from odin_runtime.images import normalised

# Small batches keep the reference's memory low; its speed hardly depends on them.
_BATCH = 16

Progress = Callable[[int], object]


@dataclass(frozen=True)
class Trace:
    """What one engine made of one set of images.

    Attributes:
        score: float (N,).
        label: int64 (N,).
        positive: bool (M, C, H, W): where the input gradient is >= 0, which is all of it that the
            perturbation depends on, for the first M <= N images.
    """

    score: np.ndarray
    label: np.ndarray
    positive: np.ndarray


@dataclass(frozen=True)
class Parity:
    """An engine against PyTorch autograd, on the same images.

    Attributes:
        images: how many, of both sets together.
        max_abs_score_difference: largest difference of two ODIN scores.
        sign_agreement: share of the input gradient's elements whose sign is the same, sign(0)
            being +1; None where the engine gives no gradient.
        label_agreement: share of images with the same predicted class.
        auroc_difference, fpr95_difference: engine minus reference, of the ODIN score's metrics.
    """

    images: int
    max_abs_score_difference: float
    sign_agreement: float | None
    label_agreement: float
    auroc_difference: float
    fpr95_difference: float


def trace_reference(
    reference: TorchReference,
    images: np.ndarray,
    temperature: float,
    magnitude: float,
    progress: Progress = lambda count: None,
) -> Trace:
    """Score raw images, uint8 (N, H, W, C), by PyTorch autograd."""
    tuned = {"temperature": np.array(temperature), "magnitude": np.array(magnitude)}
    parts = []
    for start in range(0, len(images), _BATCH):
        given = normalised(images[start : start + _BATCH], reference.spec)
        found = reference.run({"images": given, **tuned})
        parts.append(Trace(found["score"], found["label"], found["input_gradient"] >= 0))
        progress(len(given))
    return _joined(parts)


def trace_engine(
    scorer: Scorer,
    images: np.ndarray,
    temperature: float,
    magnitude: float,
    progress: Progress = lambda count: None,
    signs: int | None = None,
    threads: int | None = None,
) -> Trace:
    """Score raw images, uint8 (N, H, W, C), as a user does; the signs come from `gradient.onnx`.

    `signs`: of how many images, the first ones; None is all; engines that run plans give none.
    `threads`: of the engine.

    Raises:
        OdinError: the images do not fit the bundle, or it has another temperature or magnitude.
    """
    if scorer.engine in PLAN_ENGINES:
        signs = 0
    if signs != 0:
        graph = scorer.bundle.file(GRADIENT)
        session = open_graph(scorer.engine, graph, scorer.precision, Tuning(threads))
    tuned = {"temperature": np.array(temperature, np.float32)} if scorer.spec.tunable else {}
    parts = []
    for start in range(0, len(images), _BATCH):
        raw = images[start : start + _BATCH]
        found = scorer.score(raw, temperature=temperature, magnitude=magnitude)
        seen = raw if signs is None else raw[: max(signs - start, 0)]
        positive = np.empty((0, *raw.shape[3:], *raw.shape[1:3]), bool)
        if len(seen):
            outputs = session.run({"images": normalised(seen, scorer.spec), **tuned})
            positive = outputs["input_gradient"] >= 0
        parts.append(Trace(found.score, found.label, positive))
        progress(len(raw))
    return _joined(parts)


def compare(engine: tuple[Trace, Trace], reference: tuple[Trace, Trace]) -> Parity:
    """Compare the traces of (in-distribution, out-of-distribution) images.

    Raises:
        OdinError: metrics are not defined on the scores.
    """
    ours = evaluate(engine[0].score, engine[1].score)
    theirs = evaluate(reference[0].score, reference[1].score)
    pairs = list(zip(engine, reference, strict=True))
    images = sum(len(found.score) for found in engine)
    same_signs = sum(
        int((found.positive == true.positive[: len(found.positive)]).sum()) for found, true in pairs
    )
    signs = sum(found.positive.size for found in engine)
    same_labels = sum(int((found.label == true.label).sum()) for found, true in pairs)
    return Parity(
        images,
        max(float(np.abs(found.score - true.score).max()) for found, true in pairs),
        same_signs / signs if signs else None,
        same_labels / images,
        ours.auroc - theirs.auroc,
        ours.fpr95 - theirs.fpr95,
    )


def _joined(parts: list[Trace]) -> Trace:
    return Trace(
        np.concatenate([part.score for part in parts]),
        np.concatenate([part.label for part in parts]),
        np.concatenate([part.positive for part in parts]),
    )
