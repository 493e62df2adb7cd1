"""MODEL-or-BUNDLE: the bundle that a name on the command line stands for, and its network."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import odin_export
from odin_bench.datasets import cache_folder
from odin_engines.bundle import (
    Bundle,
    is_bundle,
    read_bundle,
)
from odin_engines.errors import OdinError
from odin_engines.files import sha256
from odin_engines.plan_sets import PlanOptions, timing_caches
from odin_engines.torch_reference import TorchReference
from odin_export.checkpoint import default_checkpoint, load_network
from odin_export.exporter import Options, check_options, export, tool_versions
from odin_export.networks import NETWORKS, check_name
from odin_export.plan_bundles import add_plans


def find_bundle(
    name: str, checkpoint: Path | None, options: Options, step: Callable[[str], object]
) -> Bundle:
    """Return the bundle in folder `name`, or export the network of that name into the cache.

    Exported bundles are kept and found again by weights, options and versions.

    Args:
        name: a bundle's folder, or a name in `networks.NETWORKS`.
        checkpoint, options: for exporting.
        step: as in `exporter.export`.

    Raises:
        OdinError: neither a bundle nor a network's name, or exporting failed.
    """
    if is_bundle(Path(name)):
        bundle = read_bundle(Path(name))
        if checkpoint is not None:
            _check_weights(bundle, checkpoint, sha256_of(checkpoint))
        return bundle
    if Path(name).exists() and name not in NETWORKS:
        raise OdinError(
            f"{name} is not a bundle: it is no folder with an odin.json; make one with odin-export"
        )
    try:
        check_name(name)
    except OdinError as error:
        raise OdinError(f"{error}, or give the folder of a bundle") from None
    check_options(options)
    weights = checkpoint or default_checkpoint(name)
    folder = cache_folder().parent / "bundles" / f"{name}-{_key(weights, options)}"
    if is_bundle(folder):
        try:
            return read_bundle(folder)
        except OdinError:
            step("mend cached bundle")  # cut short or changed by somebody: export it again
    # One bundle serves every engine; graphs in half precision have no form of an engine's own.
    engine = "ort" if options.precision == "fp32" else None
    return export(name, checkpoint, folder, options, step, engine)


def with_plans(bundle: Bundle, engine: str, step: Callable[[str], object]) -> Bundle:
    """Return a bundle with plans that take any magnitude, built where it has none that fit.

    Args:
        bundle: of ours; it is written anew.
        engine: "trt" or "rtx".
        step: called with what is done before it begins.

    Raises:
        OdinError: they cannot be built here.
    """
    step(f"look for plans of --engine {engine}, build those that are missing")
    options = PlanOptions(engine, forms=("split",), cache_folder=timing_caches())
    return add_plans(bundle, options)[0]


def find_reference(bundle: Bundle, checkpoint: Path | None) -> TorchReference:
    """Return the PyTorch network behind a bundle, as the reference.

    Args:
        bundle: tells the network and the SHA-256 of its weights.
        checkpoint: the weights it was exported with; None looks for those of the package.

    Raises:
        OdinError: the bundle is of none of the four networks, or the weights are others.
    """
    spec = bundle.spec
    if spec.model not in NETWORKS:
        raise OdinError(f"there is no PyTorch network for bundle {bundle.path} ({spec.model})")
    file = checkpoint
    if file is None:
        packaged = _packaged(spec.model)
        if packaged is None or sha256(packaged) != spec.checkpoint_sha256:
            raise OdinError(
                f"bundle {bundle.path} was exported with weights {spec.checkpoint}, which a bundle "
                "does not hold; give the file with --checkpoint"
            )
        file = packaged
    network, weights = load_network(spec.model, file)
    _check_weights(bundle, file, weights.sha256)
    # The same network; PyTorch's convolutions are much faster on a CPU in this layout.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TorchReference(network, spec)


def sha256_of(checkpoint: Path) -> str:
    """Return the SHA-256 of a file that the user named.

    Raises:
        OdinError: it cannot be read.
    """
    try:
        return sha256(checkpoint)
    except OSError as error:
        raise OdinError(f"cannot read --checkpoint {checkpoint}: {error.strerror}") from error


def _check_weights(bundle: Bundle, file: Path, digest: str) -> None:
    if digest != bundle.spec.checkpoint_sha256:
        raise OdinError(
            f"{file} is not the file that bundle {bundle.path} was exported with, "
            f"{bundle.spec.checkpoint} (SHA-256 {bundle.spec.checkpoint_sha256[:16]}...); give "
            "that one, or export another bundle with odin-export --output"
        )


def _packaged(model: str) -> Path | None:
    try:
        return default_checkpoint(model)
    except OdinError:
        return None


def _key(weights: Path, options: Options) -> str:
    parts: list[Any] = [sha256_of(weights), dataclasses.asdict(options), tool_versions()]
    # The exporter's own source counts too: a changed rule must not meet an old graph.
    parts += [sha256(file) for file in sorted(Path(odin_export.__file__).parent.rglob("*.py"))]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
