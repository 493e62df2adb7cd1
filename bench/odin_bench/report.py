"""The bench's results as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from odin_bench.evaluation import Result
from odin_bench.parity import Parity
from odin_engines.files import replacing
from odin_runtime import Scorer

_PACKAGES = ("odin-ood", "numpy", "torch", "onnx", "onnxruntime", "openvino", "scikit-learn")


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


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all.

    Raises:
        OdinError: the folder does not exist or is not writable.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", "utf-8")


def environment() -> dict[str, Any]:
    """The machine and the versions that the results depend on."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "packages": versions,
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
