"""A GPU for a while: no memory that grows, no score that changes, and how fast it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpu.support import CALLS, MOST, Report, free_memory, resident_bytes
from odin_engines.bundle import Bundle
from odin_runtime import Scorer
from odin_runtime.driver import Driver
from odin_runtime.images import normalised
from runtime.foreign_arrays import Foreign, WithInterface

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("installed_kernels")]
# What an allocator may keep back.
SLACK = 32 << 20
FORMS = ("fused", "split")


@pytest.mark.parametrize("form", FORMS)
def test_memory_does_not_grow(
    gpu: Driver,
    plan_engine: str,
    planned: Callable[..., Bundle],
    raw_images: Callable[..., np.ndarray],
    form: Any,
) -> None:
    """By turns from the host and on the device: on one stream of the caller's, and one a call."""
    images = normalised(raw_images(9, seed=3), planned().spec)
    with Scorer.open(planned(), plan_engine, form=form, driver=gpu.name) as scorer:
        expected = scorer.score(images).score
        stream = gpu.stream()
        on_gpu = WithInterface(Foreign(gpu, images, stream))

        def calls(count: int) -> None:
            for number in range(count):
                size = 1 + number % 9
                found = scorer.score(images[:size]).score
                assert np.allclose(found, expected[:size], rtol=0, atol=1e-6), number
                scorer.score_on_device(on_gpu)
                own = gpu.stream()
                scorer.score_on_device(on_gpu, stream=own)
                own.close()

        calls(CALLS // 2)
        before, resident = free_memory(gpu), resident_bytes()
        calls(CALLS // 2)
        # A forgotten event a call is as much.
        assert before - free_memory(gpu) < 1 << 20
        assert resident_bytes() - resident < 1 << 20
        stream.synchronize()
        on_gpu.array.free()
        stream.close()


@pytest.mark.parametrize("form", FORMS)
def test_opening_and_closing_gives_everything_back(
    gpu: Driver,
    plan_engine: str,
    planned: Callable[..., Bundle],
    raw_images: Callable[..., np.ndarray],
    form: Any,
) -> None:
    raw = raw_images(5, seed=3)

    def once() -> None:
        with Scorer.open(planned(), plan_engine, form=form, driver=gpu.name) as scorer:
            for _ in range(3):
                scorer.score(raw)

    for _ in range(3):
        once()
    before = free_memory(gpu)
    for _ in range(20):
        once()
    assert before - free_memory(gpu) < SLACK


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_speed(
    plan_engine: str,
    planned: Callable[..., Bundle],
    raw_images: Callable[..., np.ndarray],
    report: Report,
    form: Any,
    precision: Any,
) -> None:
    """Of the tiny network: what is around the network, for the most part."""
    bundle = planned(precision=precision, graph_precision=precision)
    raw = raw_images(32 * MOST, seed=1)
    with Scorer.open(bundle, plan_engine, form=form) as scorer:
        name = f"{plan_engine} {form} {precision}"
        for _ in range(3):
            scorer.score(raw)
            scorer.score(raw[:1])
        begin = time.perf_counter()
        for _ in range(5):
            scorer.score(raw)
        seconds = time.perf_counter() - begin
        report(f"{name}, batches of {MOST}", 5 * len(raw) / seconds, "images/s")
        begin = time.perf_counter()
        for _ in range(200):
            scorer.score(raw[:1])
        seconds = time.perf_counter() - begin
        report(f"{name}, one image", 1e6 * seconds / 200, "us")


@pytest.mark.parametrize("form", FORMS)
def test_speed_on_the_device(
    gpu: Driver,
    plan_engine: str,
    planned: Callable[..., Bundle],
    raw_images: Callable[..., np.ndarray],
    report: Report,
    form: Any,
) -> None:
    """Images that lie on the device, measured by CUDA events on the caller's stream."""
    with Scorer.open(planned(), plan_engine, form=form, driver=gpu.name) as scorer:
        stream = gpu.stream()
        begin, end = gpu.event(timing=True), gpu.event(timing=True)
        array = Foreign(gpu, raw_images(MOST, seed=1), stream)
        for _ in range(5):
            scorer.score_on_device(WithInterface(array))
        begin.record(stream)
        for _ in range(50):
            scorer.score_on_device(WithInterface(array))
        end.record(stream)
        end.synchronize()
        spent = end.elapsed_ms(begin) / 50
        assert spent > 0
        report(f"{gpu.name} {plan_engine} {form}, {MOST} images on the device", 1e3 * spent, "us")
        array.free()
        for one in (begin, end, stream):
            one.close()
