"""The image sets that odin-bench's flags name, checked before the work."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from odin_bench import datasets
from odin_bench.datasets import Dataset
from odin_bench.evaluation import size_to_scale_to
from odin_engines.errors import OdinError
from odin_engines.spec import Spec
from odin_runtime.images import check_images

Say = Callable[[str], None]


def in_set(parsed: argparse.Namespace, spec: Spec) -> Dataset:
    """Load the in-distribution set.

    Raises:
        OdinError: none is named, it is not at hand, or it has more classes than the network.
    """
    name = parsed.in_dataset or spec.in_dataset
    if name is None:
        raise OdinError("the bundle names no in-distribution set; give one with --in-dataset")
    loaded = datasets.load(name, parsed.data, role="in", channels=spec.channels)
    found = _cropped(loaded, parsed.crop)
    if found.labels is not None and found.labels.max() >= spec.classes:
        raise OdinError(
            f"{found.name} has labels up to {found.labels.max()}, but {spec.model} has "
            f"{spec.classes} classes; choose another --in-dataset"
        )
    return found


def size(
    parsed: argparse.Namespace, spec: Spec, in_images: Dataset, say: Say
) -> tuple[int, int] | None:
    """Height and width to which images are scaled; None leaves them as they are."""
    if parsed.resize:
        return (parsed.resize, parsed.resize)
    wanted = size_to_scale_to(spec, in_images.images.shape[1:3])
    if wanted:
        say(
            f"images are scaled to {wanted[0]}x{wanted[1]}, which {spec.model} takes; --resize "
            "and --crop change that"
        )
    return wanted


def out_sets(
    parsed: argparse.Namespace,
    spec: Spec,
    in_images: Dataset,
    scaled: tuple[int, int] | None,
    say: Say,
) -> list[Dataset]:
    """Load every out-of-distribution set, so that one that does not fit fails before the work.

    Raises:
        OdinError: a set that was asked for is not at hand or does not fit.
    """
    loaded = []
    for name in parsed.out_dataset or datasets.available(parsed.data, in_images.name):
        try:
            out_set = datasets.load(name, parsed.data, role="out", channels=spec.channels)
            out_set = _cropped(out_set, parsed.crop)
            datasets.protocol_split(in_images, out_set, limit=parsed.limit)
            sample = out_set.part(0, 1)
            check_images((sample.resized(*scaled) if scaled else sample).images, spec)
        except OdinError as error:
            if parsed.out_dataset:
                raise OdinError(f"--out-dataset {name}: {error}") from None
            say(f"{name} is left out: {error}")  # it was at hand, but nobody asked for it
            continue
        loaded.append(out_set)
    return loaded


def _cropped(images: Dataset, crop: int | None) -> Dataset:
    return images.cropped(crop) if crop and max(images.images.shape[1:3]) > crop else images
