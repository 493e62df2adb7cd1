"""What a calibration says of scores, and how a bundle keeps it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.bundle_graphs import GRAPHS, SpecMaker
from odin_engines.bundle import read_bundle, write_bundle, write_calibration
from odin_engines.calibration import MOST_QUANTILES, Calibration
from odin_engines.errors import OdinError

SCORES = np.float32([0.11, 0.12, 0.13, 0.14, 0.15])


def calibration(**changes: Any) -> Calibration:
    fields: dict[str, Any] = {
        "threshold": 0.12,
        "tpr": 0.8,
        "interval": (0.11, 0.13),
        "images": 5,
        "quantiles": tuple(SCORES.astype(float).tolist()),
        "dataset": "cifar10",
        "pixels": "as they are",
        "sha256": "0" * 64,
        "date": "2026-01-02T03:04:05+00:00",
        "engine": "openvino",
        "precision": "fp32",
        "method": "exact",
        "temperature": 10.0,
        "magnitude": 0.01,
    }
    return Calibration(**{**fields, **changes})


def test_what_scores_below_the_threshold_is_out() -> None:
    scores = np.float32([0.12, np.nextafter(np.float32(0.12), np.float32(0)), 0.2, np.nan, -np.inf])
    assert calibration().is_ood(scores).tolist() == [False, True, False, True, True]


def test_percentiles_are_p_values() -> None:
    """Against their definition, where images and quantiles are the same."""
    found = calibration(images=len(SCORES))
    for score, at_or_below in [(0.1, 0), (0.15, 5), (0.5, 5)]:
        assert found.percentile(np.float32([score])) == pytest.approx((1 + at_or_below) / 6)
    between = found.percentile(np.float32([0.125]))
    assert 2 / 6 < between < 4 / 6
    assert np.isnan(found.percentile(np.float32([np.nan])))


def test_percentiles_of_many_images_are_uniform() -> None:
    generator = np.random.default_rng(0)
    known, new = generator.normal(size=(2, 20_000))
    shares = np.linspace(0, 1, MOST_QUANTILES)
    found = calibration(images=20_000, quantiles=tuple(np.quantile(known, shares)))
    exact = (1 + np.searchsorted(np.sort(known), new, side="right")) / 20_001
    np.testing.assert_allclose(found.percentile(new), exact, atol=0.002)
    assert np.ptp(np.histogram(found.percentile(new), 10, (0, 1))[0]) < 300


def test_percentiles_of_equal_scores() -> None:
    found = calibration(quantiles=(0.1, 0.2, 0.2, 0.2, 0.3), images=100)
    assert found.percentile(np.float64([0.2])) == pytest.approx(76 / 101)
    # 70 % below 0.2, and all others at 0.5: between the two there is nobody.
    gap = (*np.linspace(0, 0.2, 71), *[0.5] * 30)
    found = calibration(quantiles=gap, images=1000)
    shares = found.share_below(np.float64([0.2, 0.45, 0.4999999, 0.5, 0.6]))
    assert shares.tolist() == pytest.approx([0.7, 0.71, 0.71, 1, 1], abs=0.01)
    alike = calibration(quantiles=(0.2, 0.2, 0.2), images=100)
    assert alike.percentile(np.float64([0.1, 0.2, 0.3])).tolist() == pytest.approx([1 / 101, 1, 1])
    assert np.isnan(alike.percentile(np.float64([np.nan])))


@pytest.mark.parametrize(
    ("changes", "setting", "word"),
    [
        ({}, (10.0, 0.01), None),
        ({}, (float(np.float32(10)), float(np.float32(0.01))), None),
        ({}, (11.0, 0.01), "temperature 10, .* temperature 11"),
        ({}, (10.0, 0.0), "magnitude 0.01, .* magnitude 0:"),
        ({"method": "first-order"}, (10.0, 0.01), "method first-order, .* method exact"),
    ],
)
def test_other_scores_are_told(
    changes: dict[str, Any], setting: tuple[float, float], word: str | None, tiny_spec: SpecMaker
) -> None:
    problem = calibration(**changes).unlike(tiny_spec(), *setting)
    if word is None:
        assert problem is None
    else:
        assert problem is not None
        with pytest.raises(OdinError, match=f"calibrated with {word}"):
            raise OdinError(problem)


def test_drift_is_told() -> None:
    assert calibration().drift("ort", "fp32") is None
    assert "in fp32 by openvino, and is opened in bf16" in str(
        calibration().drift("openvino", "bf16")
    )
    half = calibration(precision="bf16")
    assert half.drift("openvino", "bf16") is None
    assert half.drift("trt", "bf16") is not None


def test_a_bundle_keeps_it(tmp_path: Path, tiny_spec: SpecMaker) -> None:
    plain = write_bundle(tmp_path / "tiny", tiny_spec(), GRAPHS)
    assert read_bundle(plain.path).calibration is None
    written = write_calibration(plain, calibration())
    read = read_bundle(plain.path)
    assert read == written
    assert read.calibration == calibration()
    assert read.spec == dataclasses.replace(plain.spec, threshold=0.12)
    assert read.files == plain.files
    again = write_bundle(tmp_path / "other", read.spec, GRAPHS, (), read.calibration)
    assert read_bundle(again.path).calibration == calibration()
    assert sorted(file.name for file in plain.path.iterdir()) == sorted([*GRAPHS, "odin.json"])


def test_what_was_done_to_the_images_is_kept(tmp_path: Path, tiny_spec: SpecMaker) -> None:
    known = calibration(size=(32, 36), crop=32, scaled=True)
    bundle = write_bundle(tmp_path / "tiny", tiny_spec(), GRAPHS, (), known)
    assert read_bundle(bundle.path).calibration == known
    file = bundle.path / "odin.json"
    content = json.loads(file.read_text())
    for name in ("size", "crop", "scaled"):  # as earlier versions wrote it
        del content["calibration"][name]
    file.write_text(json.dumps(content))
    assert read_bundle(bundle.path).calibration == calibration()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"size": [32]}, "size is not"),
        ({"size": [32, 0]}, "size is not"),
        ({"size": "32x32"}, "size is not"),
        ({"crop": 31.5}, "crop is not"),
        ({"crop": -1}, "crop is not"),
        ({"scaled": 1}, "scaled is neither"),
        ({"tpr": 1.5}, "tpr is 1.5"),
        ({"tpr": "most"}, "tpr is not a number"),
        ({"images": 0}, "images is not"),
        ({"images": True}, "images is not"),
        ({"images": 10**400}, "images is not"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"tpr": 10**400}, "tpr is not a number"),
        ({"quantiles": [0.1, 10**400]}, "quantiles holds"),
        ({"quantiles": [0.1]}, "quantiles is not a list of 2"),
        ({"quantiles": [0.2, 0.1]}, "quantiles does not ascend"),
        ({"quantiles": [0.1, None]}, "quantiles holds"),
        ({"interval": [0.1]}, "interval is not"),
        ({"precision": "int8"}, "precision is 'int8'"),
        ({"method": None}, "method is None"),
        ({"sha256": 5}, "sha256 is not text"),
        ({"magnitude": float("inf")}, "magnitude is not a number"),
    ],
)
def test_one_that_is_none(
    changes: dict[str, Any], word: str, tmp_path: Path, tiny_spec: SpecMaker
) -> None:
    bundle = write_bundle(tmp_path / "tiny", tiny_spec(), GRAPHS, (), calibration())
    file = bundle.path / "odin.json"
    content = json.loads(file.read_text())
    content["calibration"] |= changes
    file.write_text(json.dumps(content))
    with pytest.raises(OdinError, match=f"calibration's {word}.*export it again"):
        read_bundle(bundle.path)


@pytest.mark.parametrize(
    ("entry", "word"),
    [([], "not a description"), ({}, "does not say tpr, interval"), ("x", "not a description")],
)
def test_one_of_another_kind(entry: Any, word: str, tmp_path: Path, tiny_spec: SpecMaker) -> None:
    bundle = write_bundle(tmp_path / "tiny", tiny_spec(threshold=0.1), GRAPHS)
    file = bundle.path / "odin.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"calibration": entry}))
    with pytest.raises(OdinError, match=word):
        read_bundle(bundle.path)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"threshold": None}))
    with pytest.raises(OdinError, match="calibration"):
        read_bundle(bundle.path)
