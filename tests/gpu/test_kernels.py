"""Every kernel on a GPU, against float64 numpy and against its host twin.

The cases and tolerances are those that the PTX interpreter is given (tests/ptx).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from gpu.device_code import DeviceCode
from gpu.support import CLASSES, PICTURES, PIXELS, ROWS
from native.twins import Twins
from odin_runtime.driver import Driver, Stream
from odin_runtime.kernels import Kernels
from ptx.checks import TYPES, Case, FirstOrder, Perturb, Score, check
from ptx.kernel_cases import CASES, clamp, first_order, logits, normalize, perturb, ties

pytestmark = pytest.mark.gpu
NAMED = [(kernel, name) for kernel, cases in CASES.items() for name in cases]
# Beyond what an interpreter can run: whole batches of pictures, as many classes as there are.
# Made when they are run: a collection of tests must not take gigabytes.
LARGE: dict[str, Callable[[], Case]] = {
    "normalize": lambda: normalize(64, 224 * 224, 3, grid=4096),
    "perturb": lambda: perturb(16, 3, 224 * 224 + 3, 3, grid=4096, **clamp(3)),
    "score": lambda: Score(logits(300, 100_000), grid=300),
    "score ties": lambda: Score(ties(5000, 1000), temperature=10.0, grid=1250),
    "first_order": lambda: first_order(64, 3, 224 * 224, 5, grid=64),
}


@pytest.fixture(scope="module")
def code(gpu: Driver, fat_binary: bytes) -> Iterator[Any]:
    loaded = DeviceCode(gpu, fat_binary)
    yield loaded
    loaded.close()


@pytest.mark.parametrize("suffix", sorted(TYPES))
@pytest.mark.parametrize(("kernel", "name"), NAMED)
def test_case(code: Any, kernel: str, name: str, suffix: str) -> None:
    check(code, suffix, CASES[kernel][name])


@pytest.mark.parametrize("suffix", sorted(TYPES))
@pytest.mark.parametrize("name", LARGE)
def test_large(code: Any, name: str, suffix: str) -> None:
    check(code, suffix, LARGE[name]())


@pytest.mark.parametrize("suffix", sorted(TYPES))
@pytest.mark.parametrize("name", LARGE)
def test_a_kernel_repeats_itself_to_the_bit(code: Any, name: str, suffix: str) -> None:
    case = LARGE[name]()
    first, second = (case.run(code, suffix) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.view(np.uint8), other.view(np.uint8))


@pytest.mark.parametrize("suffix", sorted(TYPES))
def test_host_twins_agree(code: Any, twins: Twins, suffix: str) -> None:
    dtype = TYPES[suffix]
    case = perturb(3, 3, 1001, 2)
    assert isinstance(case, Perturb)
    ours = case.run(code, suffix)[0]
    x, g = case.images.astype(dtype), case.gradient.astype(dtype)
    theirs = twins.perturb(x, g, case.steps, case.channel_scale)
    # In float32: numpy does not take the NaN of bfloat16 for equal.
    ours, theirs = (each.astype(np.float32).ravel() for each in (ours, theirs))
    np.testing.assert_array_equal(ours, theirs)
    scored = Score(logits(50, 1000), temperature=1000.0)
    _, score, baseline, label, *_ = scored.run(code, suffix)
    expected = twins.score(scored.logits.astype(dtype), 1000.0, scored.seed_scale)
    np.testing.assert_allclose(score, expected["score"], rtol=2e-6)
    np.testing.assert_allclose(baseline, expected["baseline"], rtol=2e-5)
    np.testing.assert_array_equal(label, expected["label"])
    summed = first_order(4, 3, 5000, 2)
    assert isinstance(summed, FirstOrder) and summed.probability is not None
    total = summed.run(code, suffix)[1]
    gradient = summed.gradient.astype(dtype)
    wanted = twins.first_order(gradient, summed.channel_scale, summed.probability, summed.steps)
    np.testing.assert_allclose(total, wanted[0], rtol=1e-4)


class Timing:
    """One kernel on memory of the device alone, again and again."""

    def __init__(self, driver: Driver, stream: Stream, work: Callable[[], None]) -> None:
        self._driver, self._stream, self._work = driver, stream, work

    def milliseconds(self, rounds: int = 50) -> float:
        """The mean of one round, after a warm-up."""
        begin, end = self._driver.event(timing=True), self._driver.event(timing=True)
        for _ in range(5):
            self._work()
        begin.record(self._stream)
        for _ in range(rounds):
            self._work()
        end.record(self._stream)
        end.synchronize()
        spent = end.elapsed_ms(begin) / rounds
        begin.close()
        end.close()
        return spent


@pytest.mark.parametrize("suffix", sorted(TYPES))
def test_speed(gpu: Driver, fat_binary: bytes, report: Any, suffix: str) -> None:
    """256 images of 224 x 224 and logits of 4,096 x 1,000: bytes moved a second."""
    count, plane, channels, rows, classes = PICTURES, PIXELS, 3, ROWS, CLASSES
    item = TYPES[suffix].itemsize
    elements = count * plane * channels
    kernels, stream = Kernels(gpu, fat_binary, suffix), gpu.stream()
    sizes: dict[str, Any] = {"count": count, "plane": plane, "channels": channels, "stream": stream}
    raw, images, gradient, moved, small, scores = (
        gpu.allocate(size)
        for size in (elements, *(elements * item,) * 3, 4096, 8 * max(rows, count))
    )
    fill = gpu.pinned(4096)
    fill.array[:] = 0
    gpu.copy_to_device(small.pointer, fill.pointer, 4096, stream)
    s, x, g = small.pointer, images.pointer, gradient.pointer
    works: dict[str, tuple[Callable[[], None], int]] = {
        "normalize": (
            lambda: kernels.normalize(raw.pointer, x, s, s, **sizes),
            elements * (1 + item),
        ),
        "perturb": (
            lambda: kernels.perturb(x, g, moved.pointer, s, s, magnitudes=1, **sizes),
            3 * elements * item,
        ),
        "score": (
            lambda: kernels.score(
                x, rows=rows, classes=classes, stream=stream, score=scores.pointer
            ),
            rows * classes * item,
        ),
        "first_order": (
            lambda: kernels.first_order(g, s, magnitudes=0, total=scores.pointer, **sizes),
            elements * item,
        ),
    }
    for name, (work, moved_bytes) in works.items():
        spent = Timing(gpu, stream, work).milliseconds()
        assert spent > 0
        report(f"{gpu.name} odin_{name}_{suffix}", moved_bytes / spent / 1e6, "GB/s")
    kernels.close()
    stream.close()
    for memory in (raw, images, gradient, moved, small, scores, fill):
        memory.free()
