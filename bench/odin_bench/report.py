"""The bench's results as JSON."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from odin_bench import machine
from odin_bench.evaluation import Result
from odin_bench.parity import Parity
from odin_engines.cuda_probe import ask_driver
from odin_engines.files import replacing
from odin_engines.packages import installed
from odin_engines.spec import Method, Precision, Spec
from odin_runtime import Scorer

_PACKAGES = (
    *("odin-ood", "numpy", "torch", "onnx", "onnxruntime", "openvino", "scikit-learn"),
    *("onnxruntime-gpu", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-rtx-cu13"),
    *("cuda-core", "pycuda"),
)


def as_json(scorer: Scorer, results: Sequence[Result], parity: Parity | None) -> dict[str, Any]:
    """Return what `--json` writes; metrics are fractions."""
    return {
        "schema": 1,
        "model": scorer.spec.model,
        "engine": scorer.engine,
        "precision": scorer.precision,
        "method": scorer.spec.method,
        "checkpoint": {"file": scorer.spec.checkpoint, "sha256": scorer.spec.checkpoint_sha256},
        "results": [dataclasses.asdict(result) for result in results],
        "parity": None if parity is None else dataclasses.asdict(parity),
        "throughput": [],
        "environment": environment(),
    }


def measured_as_json(
    spec: Spec,
    engine: str,
    precision: Precision | None,
    method: Method | None,
    measured: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what `--json` writes where it is speed that was measured.

    Args:
        spec: of the network.
        engine: the one that was asked for, "auto" for several.
        precision, method: of all that was measured; None for several.
        measured: what came out, under names beside those that are always there.
    """
    return {
        "schema": 1,
        "model": spec.model,
        "engine": engine,
        "precision": precision,
        "method": method,
        "checkpoint": {"file": spec.checkpoint, "sha256": spec.checkpoint_sha256},
        "results": [],
        "parity": None,
        "throughput": [],
        **measured,
        "environment": environment(),
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all.

    Raises:
        OdinError: the folder does not exist or is not writable.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", "utf-8")


def environment() -> dict[str, Any]:
    """The machine and the versions that the results depend on."""
    here = machine.describe()
    return {
        "python": here.python,
        "platform": platform.platform(),
        "processor": here.cpu,
        "cores": here.usable_threads,
        "gpus": [device.name for device in ask_driver().devices],
        "packages": installed(_PACKAGES),
    }
