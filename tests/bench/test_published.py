"""The published numbers, spot-checked."""

from __future__ import annotations

import dataclasses

import pytest

from odin_bench.metrics import Metrics
from odin_bench.published import RESULTS, published

OUT_DATASETS = ("Imagenet", "Imagenet_resize", "LSUN", "LSUN_resize", "iSUN", "Uniform", "Gaussian")
NETWORKS = ("densenet10", "densenet100", "wideresnet10", "wideresnet100")


def percent(metrics: Metrics) -> tuple[float, ...]:
    return tuple(round(100 * value, 1) for value in dataclasses.astuple(metrics))


@pytest.mark.parametrize(
    ("network", "out_dataset", "magnitude", "baseline", "odin"),
    [
        (
            "densenet10",
            "Imagenet",
            0.0014,
            (34.7, 10.0, 95.3, 96.4, 93.8),
            (4.3, 4.7, 99.1, 99.1, 99.1),
        ),
        ("densenet10", "LSUN", 0, (39.3, 10.2, 94.8, 96.0, 93.1), (8.7, 6.0, 98.2, 98.5, 97.8)),
        (
            "densenet100",
            "Uniform",
            0.0028,
            (100.0, 35.7, 43.2, 63.2, 41.9),
            (99.8, 15.9, 83.0, 89.6, 68.9),
        ),
        ("wideresnet10", "LSUN", 0, (35.0, 10.8, 94.5, 95.1, 93.1), (21.8, 9.8, 95.9, 95.8, 95.5)),
        (
            "wideresnet10",
            "Imagenet_resize",
            0.0011,
            (45.6, 14.8, 91.0, 89.7, 89.9),
            (25.5, 13.4, 92.1, 89.0, 93.6),
        ),
        (
            "wideresnet100",
            "LSUN_resize",
            0.002,
            (76.7, 29.2, 77.4, 79.1, 74.6),
            (46.5, 18.5, 89.5, 89.8, 89.2),
        ),
        (
            "wideresnet100",
            "Gaussian",
            0.0028,
            (28.3, 6.1, 95.7, 97.4, 89.3),
            (0.0, 0.2, 99.9, 100.0, 99.8),
        ),
    ],
)
def test_spot_checks(network, out_dataset, magnitude, baseline, odin):
    result = published(network, out_dataset)
    assert result is not None
    assert result.magnitude == magnitude
    assert percent(result.baseline) == baseline
    assert percent(result.odin) == odin


def test_every_network_has_all_seven_sets():
    assert tuple(RESULTS) == NETWORKS
    for network in NETWORKS:
        assert tuple(RESULTS[network]) == OUT_DATASETS


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("out_dataset", OUT_DATASETS)
def test_numbers_are_fractions_and_odin_is_no_worse_in_fpr(network, out_dataset):
    result = published(network, out_dataset)
    assert result is not None
    values = dataclasses.astuple(result.baseline) + dataclasses.astuple(result.odin)
    assert all(0 <= value <= 1 for value in values)
    assert result.odin.fpr95 <= result.baseline.fpr95
    assert 0 <= result.magnitude <= 0.0048


@pytest.mark.parametrize(
    ("network", "out_dataset"), [("densenet10", "SVHN"), ("resnet18", "LSUN"), ("", "")]
)
def test_unpublished(network, out_dataset):
    assert published(network, out_dataset) is None
