"""The GPU pipelines on the driver's test double agree with ONNX Runtime on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from drivers.double_library import Double
from drivers.fixtures import Seen
from odin_engines.bundle import Bundle
from odin_runtime import Scorer
from runtime.plan_double import Opened, as_lists, example_images

# What float32 leaves of the same computation in another order.
TOLERANCE = 2e-6
Scenario = Callable[..., Seen]
pytestmark = pytest.mark.usefixtures("pipelines")
# kind of bundle, form, images
CASES = [
    ("exact", "fused", "normalised"),
    ("exact", "fused", "raw"),
    ("exact", "split", "normalised"),
    ("exact", "split", "raw"),
    ("first", "fused", "normalised"),
    ("first", "split", "raw"),
    ("first", "split", "normalised"),
    ("tunable", "fused", "normalised"),
    ("tunable", "split", "raw"),
    ("tunable-first", "split", "normalised"),
    ("raw", "fused", "raw"),
    ("scores", "fused", "normalised"),
]


def reference(bundle: Bundle, images: np.ndarray, **settings: Any) -> dict[str, np.ndarray]:
    scores = Scorer.open(bundle, "ort").score(images, **settings)
    return {
        "score": scores.score[None],
        "baseline": scores.baseline,
        "label": scores.label,
        **scores.extra,
    }


def agree(found: dict[str, Any], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        got = np.asarray(found[name])
        assert got.shape == values.shape
        if name == "label":
            np.testing.assert_array_equal(got, values)
        else:
            np.testing.assert_allclose(got, values, rtol=TOLERANCE * 5, atol=TOLERANCE)


def all_counts(double: Double, name: str) -> list[Any]:
    """Every number of images: below a bucket, a bucket, beyond the profile, none."""
    kind, form, which = CASES[double.case]
    images = example_images()[which]
    with Opened(double, name, kind, form) as pipeline:
        return [as_lists(pipeline.score(images[:count])) for count in (11, 3, 1, 4, 11, 0)]


@pytest.mark.parametrize("case", range(len(CASES)), ids=["-".join(case) for case in CASES])
def test_scores_agree(
    scenario: Scenario, gpu_bundle: Any, gpu_images: dict[str, np.ndarray], case: int
) -> None:
    kind, _, which = CASES[case]
    seen = scenario(all_counts, case=case, seed=case % 3)
    images, bundle = gpu_images[which], gpu_bundle(kind)
    expected = reference(bundle, images)
    for count, found in zip((11, 3, 1, 4, 11, 0), seen.result, strict=True):
        agree(found, {k: v[..., :count] for k, v in expected.items()})
    assert seen.errors == seen.leaks == seen.faults == []


MAGNITUDES = (0.0, 0.01, 0.02, 0.005, 0.03, 0.0, 0.04)


def many_magnitudes(double: Double, name: str) -> list[Any]:
    images = example_images()["normalised"]
    kind = ("exact", "first", "tunable")[double.case]
    temperature = 3.0 if kind == "tunable" else None
    with Opened(double, name, kind, "split") as pipeline:
        return [
            as_lists(pipeline.score(images[:count], magnitudes=MAGNITUDES, temperature=temperature))
            for count in (1, 2, 3, 11, 1)
        ]


@pytest.mark.parametrize("case", range(3))
def test_one_gradient_serves_many_magnitudes(
    scenario: Scenario, gpu_bundle: Any, gpu_images: dict[str, np.ndarray], case: int
) -> None:
    seen = scenario(many_magnitudes, case=case, seed=2)
    tunable = gpu_bundle("tunable-first" if case == 1 else "tunable")
    temperature = 3.0 if case == 2 else None
    rows = [
        reference(tunable, gpu_images["normalised"], magnitude=m, temperature=temperature)
        for m in MAGNITUDES
    ]
    expected = rows[0] | {"score": np.concatenate([row["score"] for row in rows])}
    for count, found in zip((1, 2, 3, 11, 1), seen.result, strict=True):
        agree(found, {k: v[..., :count] for k, v in expected.items()})
    assert seen.errors == seen.leaks == seen.faults == []
    gradients = [line for line in seen.runs() if line.startswith("kernel plan_gradient")]
    assert len(gradients) == 1 + 1 + 1 + 3 + 1  # one a batch, whatever the number of magnitudes
    forwards = [line for line in seen.runs() if line.startswith("kernel plan_forward")]
    # Batches of 1 and 2 share passes; one of 3 or 4 fills a pass with one magnitude.
    batches = (1, 2, 3, 4, 4, 3, 1)
    passes = {1: 2, 2: 4, 3: 7, 4: 7}
    wanted = sum(passes[count] for count in batches)
    assert len(forwards) == (0 if case == 1 else wanted)


def least_batch(double: Double, name: str) -> list[Any]:
    images = example_images()["normalised"]
    with Opened(double, name, "exact", "fused", batches=(3, 5)) as pipeline:
        return [as_lists(pipeline.score(images[:count])) for count in (1, 7, 5)]


def test_batches_below_the_profile_are_padded(
    scenario: Scenario, gpu_bundle: Any, gpu_images: dict[str, np.ndarray]
) -> None:
    seen = scenario(least_batch, seed=1)
    expected = reference(gpu_bundle("exact"), gpu_images["normalised"])
    for count, found in zip((1, 7, 5), seen.result, strict=True):
        agree(found, {k: v[..., :count] for k, v in expected.items()})
    assert seen.errors == seen.leaks == seen.faults == []


def with_nan(double: Double, name: str) -> list[Any]:
    images = example_images()["normalised"][:5].copy()
    images[1, 2, 31, 31], images[3, 0, 0, 0] = np.nan, -np.inf
    results = []
    for form in ("fused", "split"):
        with Opened(double, name, "exact", form) as pipeline:
            results.append(as_lists(pipeline.score(images)))
    return results


def test_images_with_nan_score_nan(
    scenario: Scenario, gpu_bundle: Any, gpu_images: dict[str, np.ndarray]
) -> None:
    expected = reference(gpu_bundle("exact"), gpu_images["normalised"][:5])
    for found in scenario(with_nan).result:
        for name in ("score", "baseline"):
            values = np.asarray(found[name]).reshape(-1)
            assert np.isnan(values).tolist() == [False, True, False, True, False]
            np.testing.assert_allclose(values[[0, 2, 4]], expected[name].reshape(-1)[[0, 2, 4]])


def two_threads(double: Double, name: str) -> list[Any]:
    images = example_images()["normalised"]
    results: dict[int, Any] = {}
    with Opened(double, name, "tunable", "split") as pipeline:

        def work(number: int) -> None:
            found = [
                as_lists(pipeline.score(images[number::2], magnitudes=[0.01 * (number + 1)]))
                for _ in range(3)
            ]
            assert all(one == found[0] for one in found)
            results[number] = found[0]

        threads = [threading.Thread(target=work, args=[number]) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return [results[0], results[1]]


def test_two_threads(
    scenario: Scenario, gpu_bundle: Any, gpu_images: dict[str, np.ndarray]
) -> None:
    seen = scenario(two_threads, seed=7)
    for number, found in enumerate(seen.result):
        images = gpu_images["normalised"][number::2]
        agree(found, reference(gpu_bundle("tunable"), images, magnitude=0.01 * (number + 1)))
    assert seen.errors == seen.leaks == seen.faults == []
