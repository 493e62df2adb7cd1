"""Bundles with plans of TensorRT's double, and in numpy what these compute."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from odin_engines.bundle import Bundle, write_bundle, write_calibration
from odin_engines.calibration import Calibration
from odin_engines.plan_records import Limits, PlanRecord
from odin_engines.plan_sets import form_graphs
from odin_engines.spec import Spec
from odin_runtime.images import normalised

VERSION = "99.1.2.3"  # the double's
KINDS = {"odin.onnx": "fused", "gradient.onnx": "gradient", "forward.onnx": "forward"}
Range = tuple[int, int]


def with_plans(
    folder: Path,
    tiny: Bundle,
    forms: Sequence[str] = ("fused",),
    *,
    batch: Range = (1, 4),
    side: Range = (32, 40),
    content: bytes | None = None,
    calibration: Calibration | None = None,
    record: dict[str, Any] | None = None,
    **changes: Any,
) -> Bundle:
    """A copy of a bundle, with plans.

    Args:
        folder: for the bundle.
        tiny: whose graphs are taken.
        forms: "fused", "split", or both.
        batch, side: the smallest and the largest batch, and height and width, that the plans take.
        content: of all plans, in place of the double's.
        calibration: of the bundle.
        record: fields of the plans' records to change.
        changes: of the spec.
    """
    spec = dataclasses.replace(tiny.spec, **changes)
    contents = {name: tiny.file(name).read_bytes() for name in KINDS}
    shapes = [(batch[i], 3, side[i], side[i]) for i in (0, 0, 1)]
    plans = {}
    for form in forms:
        for graph in form_graphs(form, spec):
            file = graph.replace(".onnx", ".trt.plan")
            contents[file] = plan(KINDS[graph], spec, batch, side) if content is None else content
            fields: dict[str, Any] = {
                "file": file,
                "form": form,
                "engine": "trt",
                "version": VERSION,
                "device": "Double",
                "compute_capabilities": ("9.0",),
                "precision": spec.precision,
                "profile": {"images": Limits(*shapes)},
                "tf32": False,
                "optimization_level": None,
                "hardware_compatibility": "none",
                "graph": graph,
                "graph_sha256": hashlib.sha256(contents[graph]).hexdigest(),
            }
            plans[file] = PlanRecord(**{**fields, **(record or {})})
    bundle = write_bundle(folder / "plans", spec, contents, tuple(plans.values()))
    return bundle if calibration is None else write_calibration(bundle, calibration)


def plan(kind: str, spec: Spec, batch: Range, side: Range) -> bytes:
    """A plan of the double, see double/nvinfer.cpp."""
    raw = kind == "fused" and spec.input_type == "uint8"
    further = len(spec.scores) if kind == "fused" else 0
    numbers = [
        *(spec.classes, 3, *batch, *side, *side, int(raw), int(spec.tunable), further),
        *(spec.temperature, spec.magnitude, *spec.mean, *spec.std),
    ]
    return " ".join(["plan", kind, spec.method, *map(repr, numbers)]).encode()


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Of the last axis."""
    grown = np.exp((logits - logits.max(axis=-1, keepdims=True)) / temperature)
    return grown / grown.sum(axis=-1, keepdims=True)


def expected(images: np.ndarray, spec: Spec) -> np.ndarray:
    """What the double's plans make of images: score, baseline, label, logits; (N, 3 + classes)."""
    x = normalised(images, spec) if images.dtype == np.uint8 else images
    broken = ~np.isfinite(x).all(axis=(1, 2, 3))
    x = np.where(np.isfinite(x), x, 0).astype(float)
    i, k = np.arange(x[0].size)[:, None], np.arange(spec.classes)
    weights = ((31 * i + 17 * k) % 13 - 6) / 256
    logits = x.reshape(len(x), -1) @ weights
    seed = softmax(logits, spec.temperature)
    probability = seed.max(axis=1)
    label = logits.argmax(axis=1)
    seed[np.arange(len(x)), label] -= 1
    gradient = (seed @ weights.T).reshape(x.shape) / spec.temperature
    std = np.array(spec.std)[:, None, None]
    if spec.method == "exact":
        moved = x - spec.magnitude / std * np.where(gradient < 0, -1, 1)
        score = softmax(moved.reshape(len(x), -1) @ weights, spec.temperature).max(axis=1)
    else:
        grown = (np.abs(gradient) / std).sum(axis=(1, 2, 3))
        score = probability * np.exp(spec.magnitude * grown)
    baseline = softmax(logits, 1).max(axis=1)
    score[broken] = baseline[broken] = np.nan
    return np.column_stack([score, baseline, label, logits])
