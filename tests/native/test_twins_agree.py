"""Host twins against the kernels themselves, run from nvcc's PTX by the interpreter in tests/ptx.

`normalize`, `perturb` and `first_order` are compiled from the same lines, so images and totals must
be the same bits. So must labels, but `score` is the same algorithm only beyond 1024 classes: up to
there the kernel sums relative to the row's maximum, the twin relative to the maximum so far, and
all but labels agrees to the tolerances of float32 sums.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from native.twins import ELEMENTS, Twins
from ptx.checks import FirstOrder, Normalize, Perturb, Score
from ptx.compiled import interpreter
from ptx.kernel_cases import CASES


def cases(kernel: str) -> Iterator[tuple[str, object]]:
    assert CASES[kernel]
    yield from CASES[kernel].items()


def assert_same_bits(ours: np.ndarray, kernel: np.ndarray, name: str) -> None:
    """But for the bits of NaN, of which the hardware has its own."""
    nan = np.isnan(kernel.astype(np.float32))
    np.testing.assert_array_equal(np.isnan(ours.astype(np.float32)), nan, err_msg=name)
    bits = f"u{kernel.dtype.itemsize}"
    np.testing.assert_array_equal(ours.view(bits)[~nan], kernel.view(bits)[~nan], err_msg=name)


@pytest.mark.parametrize("element", ELEMENTS)
def test_normalize(twins: Twins, element: str) -> None:
    for name, case in cases("normalize"):
        assert isinstance(case, Normalize)
        (images,) = case.run(interpreter(), element)
        ours = twins.normalize(case.pixels, case.scale, case.offset, element)
        assert_same_bits(ours, images, name)


@pytest.mark.parametrize("element", ELEMENTS)
def test_perturb(twins: Twins, element: str) -> None:
    for name, case in cases("perturb"):
        assert isinstance(case, Perturb)
        # One limit alone is no clamp for the kernel, and an error for the C library.
        limits = None if case.low is None or case.high is None else (case.low, case.high)
        perturbed, images, gradient = case.run(interpreter(), element)
        ours = twins.perturb(images, gradient, case.steps, case.channel_scale, limits)
        assert_same_bits(ours, perturbed, name)


@pytest.mark.parametrize("element", ELEMENTS)
def test_first_order(twins: Twins, element: str) -> None:
    for name, case in cases("first_order"):
        assert isinstance(case, FirstOrder)
        if case.probability is None:
            case = dataclasses.replace(case, probability=np.ones(len(case.gradient), np.float32))
        case = dataclasses.replace(case, outputs="total score")
        gradient, total, score = case.run(interpreter(), element)
        ours = twins.first_order(gradient, case.channel_scale, case.probability, case.steps)
        assert_same_bits(ours[0], total, name)
        np.testing.assert_allclose(ours[1], score, rtol=3e-7, err_msg=name)


@pytest.mark.parametrize("element", ELEMENTS)
def test_score(twins: Twins, element: str) -> None:
    for name, case in cases("score"):
        assert isinstance(case, Score)
        if case.logits.shape[1] == 0:
            continue  # nothing for the kernel, an error for the C library
        case = dataclasses.replace(case, outputs=" ".join(Score.NAMES))
        logits, *results = case.run(interpreter(), element)
        ours = twins.score(logits, case.temperature, case.seed_scale)
        for output, values in zip(Score.NAMES, results, strict=True):
            what = f"{name}: {output}"
            if output == "label":
                np.testing.assert_array_equal(ours[output], values, err_msg=what)
                continue
            # Exponentials differ by an ulp; then a seed may round to its neighbour.
            step = spacing(values.dtype) if output == "seed" else 1e-6
            near = 1e-6 * (case.seed_scale if output == "seed" else 1)
            np.testing.assert_allclose(
                ours[output].astype(np.float64),
                values.astype(np.float64),
                rtol=step,
                atol=near,
                err_msg=what,
            )


def spacing(dtype: np.dtype) -> float:
    """The distance from 1 to the next number, at least that of the exponentials."""
    return {"float32": 1e-6, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype.name]
