"""The C library on a GPU: its launchers choose the grid and launch from the library's own objects.

The cases and tolerances are those of the kernels (tests/ptx), and its host twins' results.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu.device_code import DeviceCode
from native.twins import CODES, Library, Twins
from odin_runtime.driver import Driver, Pointer, Stream
from ptx.checks import TYPES, FirstOrder, Normalize, Perturb, Score, check
from ptx.kernel_cases import CASES, clamp, first_order, logits, normalize, perturb

pytestmark = pytest.mark.gpu
REFUSED = "only a lower bound"  # which the kernel takes for no bounds
NAMED = [(kernel, name) for kernel, cases in CASES.items() for name in cases if name != REFUSED]


class ThroughLibrary:
    """A driver whose kernels are launched by the C library, on grids of its own."""

    def __init__(self, driver: Any, library: Library) -> None:
        self._driver, self._library = driver, library

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def load(self, image: bytes) -> ThroughLibrary:
        return self

    def kernel(self, name: str) -> str:
        return name

    def close(self) -> None:
        """Nothing was loaded."""

    def launch(
        self, kernel: str, grid: int, block: int, arguments: Sequence[Any], stream: Stream
    ) -> None:
        name, _, suffix = kernel.rpartition("_")
        plain = [
            one.address or None if isinstance(one, Pointer) else one.item() for one in arguments
        ]
        with self._driver.current():
            status = getattr(self._library.functions, name)(CODES[suffix], *plain, stream.handle)
        assert status == 0, self._library.last_error()


@pytest.fixture(scope="module")
def library(cuda_build: Path) -> Twins:
    built = Twins(cuda_build / "runtime" / "libodin_kernels.so")
    assert built.functions.odin_has_cuda() == 1
    return built


@pytest.fixture(scope="module")
def code(gpu: Driver, library: Twins) -> Iterator[Any]:
    driver: Any = ThroughLibrary(gpu, library)
    opened = DeviceCode(driver, b"")
    yield opened
    opened.close()


@pytest.mark.parametrize("suffix", sorted(TYPES))
@pytest.mark.parametrize(("kernel", "name"), NAMED)
def test_case(code: Any, kernel: str, name: str, suffix: str) -> None:
    check(code, suffix, CASES[kernel][name])


@pytest.mark.parametrize("suffix", sorted(TYPES))
def test_launchers_agree_with_host_twins(code: Any, library: Twins, suffix: str) -> None:
    """More work than 4096 blocks take in one turn."""
    pixels = normalize(40, 1 << 18, 3)
    assert isinstance(pixels, Normalize)
    (images,) = pixels.run(code, suffix)
    ours = library.normalize(pixels.pixels, pixels.scale, pixels.offset, suffix)
    np.testing.assert_array_equal(images.view(np.uint8), ours.view(np.uint8))
    moved = perturb(12, 3, 1 << 18, 2, **clamp(3))
    assert isinstance(moved, Perturb) and moved.low is not None and moved.high is not None
    perturbed, x, g = moved.run(code, suffix)
    limits = (moved.low, moved.high)
    ours = library.perturb(x, g, moved.steps, moved.channel_scale, limits)
    same, wanted = (each.astype(np.float32).ravel() for each in (perturbed, ours))
    np.testing.assert_array_equal(same, wanted)  # a NaN of any bits
    scored = Score(logits(17_000, 100), temperature=1000.0)
    rows, score, baseline, label, *_ = scored.run(code, suffix)
    expected = library.score(rows, 1000.0, scored.seed_scale)
    np.testing.assert_allclose(score, expected["score"], rtol=5e-6)
    np.testing.assert_allclose(baseline, expected["baseline"], rtol=2e-5)
    np.testing.assert_array_equal(label, expected["label"])
    summed = first_order(5000, 3, 100, 2)
    assert isinstance(summed, FirstOrder) and summed.probability is not None
    gradient, total, _ = summed.run(code, suffix)
    sums, _ = library.first_order(gradient, summed.channel_scale, summed.probability, summed.steps)
    np.testing.assert_array_equal(total, sums)


def test_launches_are_captured_in_a_graph(gpu: Driver, library: Twins) -> None:
    """As the header says of every launcher: replayed on new logits."""
    if not gpu.has_graphs:
        pytest.skip(f"{gpu.name} has no graphs")
    driver = ThroughLibrary(gpu, library)
    stream = gpu.stream()
    host, device = gpu.pinned(4096), gpu.allocate(4096)
    with host, device:
        values, scores = host.array.view(np.float32)[:40], host.array.view(np.float32)[512:516]
        out = device.pointer + 2048
        sizes = [np.float32(10.0), np.float32(1.0), np.int64(4), np.int64(10)]
        nothing = [Pointer(0)] * 4
        arguments = [Pointer(device.pointer), Pointer(out), *nothing, *sizes]

        def queue() -> None:
            gpu.copy_to_device(device.pointer, host.pointer, 160, stream)
            driver.launch("odin_score_f32", 0, 0, arguments, stream)
            gpu.copy_to_host(host.pointer + 2048, out, 16, stream)

        queue()  # the library loads its kernels at the first launch
        with gpu.capture(stream) as captured:
            queue()
        graph = captured.graph()
        for seed in range(3):
            stream.synchronize()
            values[:] = np.random.default_rng(seed).standard_normal(40)
            scores[:] = 0
            graph.launch(stream)
            stream.synchronize()
            expected = library.score(values.reshape(4, 10).copy(), 10.0)["score"]
            np.testing.assert_allclose(scores, expected, rtol=2e-6)
        graph.close()
    stream.close()
