"""The release's split of two image sets, made up and real."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import pytest

from bench.image_sets import pictures
from odin_bench import download
from odin_bench.datasets import Dataset, available, load, protocol_split
from odin_engines.errors import OdinError

pytestmark = pytest.mark.usefixtures("alone")

REAL = os.environ.get("ODIN_DATA")
real_data = pytest.mark.skipif(not REAL, reason="set ODIN_DATA to a folder with the image sets")


def fake(name: str, n: int) -> Dataset:
    """A set whose every image carries its own index."""
    images = np.arange(n, dtype="<u4").view(np.uint8).reshape(n, 1, 1, 4)[..., :3]
    return Dataset(name, images, None, f"/sets/{name}.npz")


def indices(part: Dataset) -> tuple[int, int]:
    """The first and last index of a part of a `fake` set."""
    first, last = part.images[0, 0, 0].astype(int), part.images[-1, 0, 0].astype(int)
    weights = np.array([1, 256, 65536])
    return int(first @ weights), int(last @ weights)


@pytest.mark.parametrize(
    ("n_in", "n_out", "first", "last", "note"),
    [
        (10_000, 10_000, 1_000, 9_999, "images 1,000 to 9,999 of each set"),
        (
            10_000,
            8_925,
            1_000,
            8_924,
            "images 1,000 to 8,924 of each set, the length of iSUN",
        ),
        (2_000, 12_000, 1_000, 1_999, "images 1,000 to 1,999 of each set, the length of cifar10"),
        (12_000, 12_000, 1_000, 9_999, "images 1,000 to 9,999 of each set"),
    ],
)
def test_both_sides_end_at_the_same_index(n_in, n_out, first, last, note):
    split = protocol_split(fake("cifar10", n_in), fake("iSUN", n_out))
    assert indices(split.in_set) == indices(split.out_set) == (first, last)
    assert len(split.in_set) == len(split.out_set) == last - first + 1
    assert split.note == note


@pytest.mark.parametrize("n_out", [1, 200, 1_000, 1_200, 1_999])
def test_a_small_set_is_used_whole_and_does_not_cut_the_other_side(n_out):
    split = protocol_split(fake("cifar10", 10_000), fake("DTD", n_out))
    assert indices(split.in_set) == (1_000, 9_999)
    assert indices(split.out_set) == (0, n_out - 1)
    assert split.note == (
        f"images 1,000 to 9,999 of cifar10; "
        f"DTD has {n_out:,} images in all: all scored, none left for tuning"
    )


def test_a_small_in_distribution_set():
    split = protocol_split(fake("cifar100", 1_000), fake("Imagenet", 10_000))
    assert indices(split.in_set) == (0, 999)
    assert indices(split.out_set) == (1_000, 9_999)


def test_the_limit_holds_for_small_sets_too():
    split = protocol_split(fake("cifar100", 1_000), fake("DTD", 1_200), limit=20)
    assert indices(split.in_set) == indices(split.out_set) == (0, 19)
    assert "the first 20 scored" in split.note


def test_labels_are_split_with_their_images():
    labelled = Dataset("cifar10", pictures(3_000, 2), np.arange(3_000), "a")
    split = protocol_split(labelled, fake("SVHN", 2_500), limit=1_200)
    assert split.in_set.labels is not None
    assert (split.in_set.labels[0], split.in_set.labels[-1]) == (1_000, 2_199)


@pytest.mark.parametrize("bounds", [{"skip": -1}, {"limit": 0}])
def test_split_bounds(bounds):
    with pytest.raises(OdinError, match="want skip >= 0 and limit >= 1"):
        protocol_split(fake("cifar10", 9), fake("SVHN", 9), **bounds)


def test_a_set_is_not_measured_against_itself():
    for other in (fake("cifar100", 9), fake("CIFAR-100", 9)):
        with pytest.raises(OdinError, match="are the same set"):
            protocol_split(fake("cifar100", 9), other)
    mine = fake("mine", 9)
    with pytest.raises(OdinError, match="are the same set"):
        protocol_split(mine, mine)
    yours = Dataset("mine", mine.images, None, "/elsewhere/mine.npz")
    protocol_split(mine, yours)
    protocol_split(load("Uniform", n=2), load("Gaussian", n=2))


# The real sets


@real_data
def test_real_cifar10(monkeypatch):
    monkeypatch.setenv("ODIN_DATA", str(REAL))
    found = load("cifar10")
    assert found.images.shape == (10_000, 32, 32, 3)
    source = download.SOURCES["cifar10"]
    assert hashlib.sha256(found.images.tobytes()).hexdigest() == source.images_sha256
    assert found.labels is not None
    assert hashlib.sha256(found.labels.tobytes()).hexdigest() == source.labels_sha256


@real_data
def test_real_sets_split_as_in_the_release(monkeypatch):
    monkeypatch.setenv("ODIN_DATA", str(REAL))
    in_set = load("cifar10")
    for name in available():
        split = protocol_split(in_set, load(name, crop=32))
        assert len(split.out_set) == (1_200 if name == "DTD" else 9_000)
        assert len(split.in_set) == 9_000
