"""The callable class itself, in this process; test_ray_data.py gives it to Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from odin_engines.bundle import Bundle, write_calibration
from odin_runtime import OdinError, Scorer
from odin_runtime.preparation import Preparation, scaled
from runtime.small_bundles import bundle_of, grey_images

pytest.importorskip("ray", reason="Ray is not installed: pip install 'odin-ood[ray]'")

from odin_runtime.ray import OdinPredictor

Images = Callable[..., np.ndarray]
SCORES = ("score", "baseline", "label")


@pytest.fixture(scope="module")
def predictor(tiny_bundle: Bundle) -> OdinPredictor:
    return OdinPredictor(tiny_bundle.path)


def objects(*images: Any) -> np.ndarray:
    """A column of arrays of any shapes, as Ray gives it."""
    column = np.empty(len(images), object)
    column[:] = images
    return column


def test_images_of_one_size(
    predictor: OdinPredictor, tiny_bundle: Bundle, raw_images: Images
) -> None:
    images = raw_images(9)
    local = Scorer.open(tiny_bundle).score(images)
    found = predictor({"id": np.arange(9), "image": images})
    assert list(found) == ["id", *SCORES]
    assert found["id"].tolist() == list(range(9))
    for name in SCORES:
        np.testing.assert_allclose(found[name], getattr(local, name), rtol=0, atol=1e-6)
        assert found[name].dtype == getattr(local, name).dtype


def test_images_of_several_sizes_are_scaled(
    predictor: OdinPredictor, tiny_bundle: Bundle, raw_images: Images
) -> None:
    sizes = [(32, 32), (40, 60), (32, 32), (200, 10), (5, 7)]
    images = [raw_images(1, *size, seed=seed)[0] for seed, size in enumerate(sizes)]
    prepare = Preparation(size=(32, 32))
    scaled = np.stack([prepare(image, tiny_bundle.spec) for image in images])
    found = predictor({"image": objects(*images)})
    local = Scorer.open(tiny_bundle).score(scaled)
    np.testing.assert_allclose(found["score"], local.score, rtol=0, atol=1e-6)


def test_each_image_keeps_its_row_where_sizes_are_left_as_they_are(
    tiny_bundle: Bundle, raw_images: Images
) -> None:
    sizes = [(32, 32), (40, 48), (32, 32), (48, 40), (40, 48), (32, 32)]
    images = [raw_images(1, *size, seed=seed)[0] for seed, size in enumerate(sizes)]
    predictor = OdinPredictor(tiny_bundle.path, prepare=Preparation())
    scorer = Scorer.open(tiny_bundle)
    local = [scorer.score(image[None]).score[0] for image in images]
    found = predictor({"image": objects(*images)})["score"]
    np.testing.assert_allclose(found, local, rtol=0, atol=1e-6)
    assert len(set(found.round(5).tolist())) == len(sizes)  # or their order would not show


@pytest.mark.parametrize("crop", [None, 48])
def test_images_are_prepared_as_the_calibrations(
    crop: int | None,
    calibrated: Bundle,
    make_tiny_bundle: Callable[..., Bundle],
    raw_images: Images,
) -> None:
    images = raw_images(3, 60, 50)
    assert calibrated.calibration is not None
    known = dataclasses.replace(calibrated.calibration, crop=crop, size=(40, 36), scaled=True)
    bundle = write_calibration(make_tiny_bundle(), known)
    inner = images if crop is None else images[:, 6:54, 1:49]
    small = np.stack([scaled(image, (40, 36)) for image in inner])
    found = OdinPredictor(bundle.path)({"image": images})
    expected = Scorer.open(bundle).score(small)
    np.testing.assert_allclose(found["score"], expected.score, rtol=0, atol=1e-6)


@pytest.mark.parametrize("axis", [True, False])
def test_a_network_of_grey_images(axis: bool, tmp_path: Path) -> None:
    """With an axis for the channel, and without, as read_images(mode="L") gives them."""
    bundle = bundle_of(1, tmp_path / "grey")
    predictor = OdinPredictor(bundle.path)
    images = grey_images(4, 8, 8)
    found = predictor({"image": images if axis else images[..., 0]})
    expected = Scorer.open(bundle).score(images)
    np.testing.assert_allclose(found["score"], expected.score, rtol=0, atol=1e-6)
    with pytest.raises(OdinError, match=r"\(H, W, 1\) uint8, .*mode='L'\) gives such"):
        predictor({"image": np.zeros((1, 8, 8, 3), np.uint8)})


def test_normalised_images(
    predictor: OdinPredictor, tiny_bundle: Bundle, raw_images: Images
) -> None:
    spec, images = tiny_bundle.spec, raw_images(4)
    mean, std = (np.reshape(values, (3, 1, 1)) for values in (spec.mean, spec.std))
    given = ((images.transpose(0, 3, 1, 2) / 255 - mean) / std).astype(np.float32)
    raw = predictor({"image": images})["score"]
    np.testing.assert_allclose(predictor({"image": given})["score"], raw, rtol=0, atol=1e-6)


def test_keep_images(tiny_bundle: Bundle, raw_images: Images) -> None:
    images = raw_images(3)
    found = OdinPredictor(tiny_bundle.path, keep_images=True, column="x")({"x": images})
    assert list(found) == ["x", *SCORES]
    np.testing.assert_array_equal(found["x"], images)


def test_of_a_calibrated_bundle_the_decision_too(calibrated: Bundle, raw_images: Images) -> None:
    found = OdinPredictor(calibrated.path)({"image": raw_images(40)})
    assert list(found) == [*SCORES, "is_ood", "percentile"]
    assert 0 < found["is_ood"].sum() < 40


@pytest.mark.parametrize("batch", [{}, {"image": np.empty((0,), object), "id": np.arange(0)}])
def test_a_block_without_rows_has_the_columns_all_the_same(
    predictor: OdinPredictor, batch: dict[str, np.ndarray], raw_images: Images
) -> None:
    full = predictor({"image": raw_images(2)})
    found = predictor(batch)
    for name in SCORES:
        assert found[name].shape == (0,)
        assert found[name].dtype == full[name].dtype
    assert "image" not in found


def test_a_missing_column(predictor: OdinPredictor, raw_images: Images) -> None:
    with pytest.raises(OdinError, match=r"no column 'image', only 'img', 'id': .* column="):
        predictor({"img": raw_images(2), "id": np.arange(2)})


def test_a_column_of_the_data_is_not_overwritten(tiny_bundle: Bundle, raw_images: Images) -> None:
    batch = {"image": raw_images(2), "label": np.array([3, 4])}
    with pytest.raises(OdinError, match=r"'label' already.*prefix="):
        OdinPredictor(tiny_bundle.path)(batch)
    found = OdinPredictor(tiny_bundle.path, prefix="odin_")(batch)
    assert found["label"].tolist() == [3, 4]
    assert list(found) == ["label", "odin_score", "odin_baseline", "odin_label"]


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((32, 32), np.uint8),
        np.zeros((32, 32, 4), np.uint8),
        np.zeros((32, 32, 3), np.float64),
        np.zeros((3, 20, 20), np.float32),
        None,
        "photo.jpg",
    ],
    ids=["grey", "rgba", "float64", "small", "none", "text"],
)
def test_an_image_that_the_network_does_not_take(
    predictor: OdinPredictor, raw_images: Images, wrong: Any
) -> None:
    with pytest.raises(OdinError, match=r"column 'image', row 1 of a batch: .*(give|scale)"):
        predictor({"image": objects(raw_images(1)[0], wrong)})


def test_a_size_that_is_left_as_it_is_and_not_taken(
    tiny_bundle: Bundle, raw_images: Images
) -> None:
    predictor = OdinPredictor(tiny_bundle.path, prepare=Preparation())
    with pytest.raises(OdinError, match=r"row 0 .* 80 pixels high, where tiny takes 32 to 63"):
        predictor({"image": raw_images(2, 80, 40)})


def test_options_are_the_scorers(tiny_bundle: Bundle) -> None:
    with pytest.raises(OdinError, match="no engine 'tpu'"):
        OdinPredictor(tiny_bundle.path, engine="tpu")
    with pytest.raises(OdinError, match="options of engines trt and rtx"):
        OdinPredictor(tiny_bundle.path, engine="ort", device=1)
    with pytest.raises(OdinError, match="nowhere"):
        OdinPredictor("nowhere")
