"""The score's host twin against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from native.twins import ELEMENTS, Twins

NAMES = ("score", "baseline", "label", "energy", "seed")


def expected_outputs(
    logits: np.ndarray, temperature: float, seed_scale: float
) -> dict[str, np.ndarray]:
    """The kernel's definition in float64."""
    exact = logits.astype(np.float64)
    maximum = exact.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        shifted = np.where(exact == -np.inf, np.where(maximum > -np.inf, -np.inf, np.nan), exact)
        shifted = shifted - maximum
        tempered, plain = np.exp(shifted / np.float32(temperature)), np.exp(shifted)
        energy = maximum[:, 0] + np.log(plain.sum(axis=1))
    softmax = tempered / tempered.sum(axis=1, keepdims=True)
    label = exact.argmax(axis=1)
    seed = seed_scale * (softmax - (np.arange(exact.shape[1]) == label[:, None]))
    return {
        "score": softmax[np.arange(len(label)), label],
        "baseline": plain[np.arange(len(label)), label] / plain.sum(axis=1),
        "label": label,
        "energy": energy,
        "seed": seed,
    }


def assert_scores(
    actual: dict[str, np.ndarray], logits: np.ndarray, temperature: float, seed_scale: float
) -> None:
    expected = expected_outputs(logits, temperature, seed_scale)
    np.testing.assert_array_equal(actual["label"], expected["label"])
    for name in ("score", "baseline"):
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(actual["energy"], expected["energy"], rtol=1e-6, atol=1e-5)
    element = np.finfo(np.float16) if logits.dtype == np.float16 else np.finfo(np.float32)
    rounding = 2.0**-8 if logits.dtype == ELEMENTS["bf16"] else float(element.eps)
    seed = actual["seed"].astype(np.float64)
    np.testing.assert_allclose(
        seed,
        expected["seed"],
        rtol=rounding + 2e-5,
        atol=3e-7 * seed_scale + float(element.smallest_subnormal),
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, float, float]:
    """Logits with ties, infinities, NaN; temperature; seed scale."""
    element = draw(st.sampled_from(sorted(ELEMENTS)))
    classes = draw(
        st.one_of(st.integers(1, 40), st.sampled_from([127, 128, 1000, 1023, 1024, 1025, 3001]))
    )
    rows = draw(st.integers(0, 6))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([0.1, 3.0, 30.0]))
    logits = generator.normal(0, spread, (rows, classes))
    if draw(st.booleans()):  # ties
        logits = np.round(logits)
    for special in draw(st.lists(st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0]))):
        if rows:
            row = generator.integers(rows)
            logits[row, generator.integers(classes)] = special
    if rows and draw(st.integers(0, 9)) == 0:
        logits[generator.integers(rows)] = -np.inf
    temperature = draw(st.sampled_from([1.0, 2.0, 10.0, 1000.0, 0.5]))
    return logits.astype(ELEMENTS[element]), temperature, draw(st.sampled_from([1.0, 1000.0, 0.25]))


@given(cases(), st.integers(0, 8))
@settings(deadline=None, max_examples=400)
def test_score(twins: Twins, case: tuple[np.ndarray, float, float], at: int) -> None:
    logits, temperature, seed_scale = case
    actual = twins.score(logits, temperature, seed_scale, at)
    assert_scores(actual, logits, temperature, seed_scale)


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("classes", [21841, 100_000, 100_001])
def test_many_classes(twins: Twins, element: str, classes: int) -> None:
    logits = np.random.default_rng(classes).normal(0, 2, (2, classes)).astype(ELEMENTS[element])
    assert_scores(twins.score(logits, 1000.0, 1000.0), logits, 1000.0, 1000.0)


def test_one_class_is_certain(twins: Twins) -> None:
    outputs = twins.score(np.array([[3.0], [-200.0]], np.float32), 1000.0)
    np.testing.assert_array_equal(outputs["score"], [1, 1])
    np.testing.assert_array_equal(outputs["baseline"], [1, 1])
    np.testing.assert_array_equal(outputs["label"], [0, 0])
    np.testing.assert_array_equal(outputs["energy"], [3, -200])
    np.testing.assert_array_equal(outputs["seed"], [[0], [0]])


@pytest.mark.parametrize("classes", [5, 1024, 1025, 5000])
@pytest.mark.parametrize("element", ELEMENTS)
def test_the_first_of_equal_logits_is_the_label(twins: Twins, element: str, classes: int) -> None:
    for first in {0, 1, classes // 2, classes - 2}:
        logits = np.zeros((1, classes), ELEMENTS[element])
        logits[0, [first, classes - 1]] = 2
        assert twins.score(logits, 1.0)["label"][0] == first


@pytest.mark.parametrize("classes", [5, 1024, 1025, 5000])
def test_a_row_with_nan_is_nan_at_its_first_nan(twins: Twins, classes: int) -> None:
    logits = np.zeros((3, classes), np.float32)
    logits[1, [2, classes - 1]] = np.nan
    logits[1, 0] = np.inf
    outputs = twins.score(logits, 10.0)
    assert outputs["label"][1] == 2
    for name in ("score", "baseline", "energy", "seed"):
        np.testing.assert_array_equal(np.isnan(outputs[name][1]), True)
        assert not np.isnan(outputs[name][[0, 2]]).any()


@pytest.mark.parametrize("classes", [6, 5000])
def test_infinities(twins: Twins, classes: int) -> None:
    """-inf is probability zero; nothing but -inf, or +inf, is NaN; labels stay numpy's."""
    logits = np.zeros((4, classes), np.float32)
    logits[0, :-1] = -np.inf
    logits[1] = -np.inf
    logits[2, 3] = np.inf
    logits[3, ::2] = -np.inf
    outputs = twins.score(logits, 10.0)
    np.testing.assert_array_equal(outputs["label"], [classes - 1, 0, 3, 1])
    np.testing.assert_array_equal(outputs["score"], [1, np.nan, np.nan, np.float32(2 / classes)])
    np.testing.assert_array_equal(outputs["energy"][:3], [0, np.nan, np.nan])
    assert outputs["energy"][3] == pytest.approx(np.log(classes / 2), abs=1e-6)
    np.testing.assert_array_equal(outputs["seed"][0], 0)


@given(st.permutations(NAMES), st.integers(0, 5), st.sampled_from([10, 2000]))
@settings(deadline=None, max_examples=40)
def test_any_output_may_be_left_out(
    twins: Twins, names: list[str], count: int, classes: int
) -> None:
    logits = np.random.default_rng(0).normal(0, 1, (3, classes)).astype(np.float32)
    full = twins.score(logits, 10.0)
    partial = twins.score(logits, 10.0, wanted=names[:count])
    assert set(partial) == set(names[:count])
    for name, values in partial.items():
        np.testing.assert_array_equal(values, full[name])


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("classes", [10, 1000, 1001, 4099])
def test_scores_do_not_depend_on_the_address(twins: Twins, element: str, classes: int) -> None:
    logits = np.random.default_rng(1).normal(0, 3, (3, classes)).astype(ELEMENTS[element])
    at_boundary = twins.score(logits, 1000.0)
    for at in range(1, 9):
        for name, values in twins.score(logits, 1000.0, at=at).items():
            np.testing.assert_array_equal(values, at_boundary[name], err_msg=f"{name} at {at}")
