"""Our kernels launched through both drivers on the test double.

What runs is the host twins or nvcc's PTX on the interpreter; nothing here has seen a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivers.double_library import IMAGE, Double
from drivers.fixtures import Seen
from drivers.kernel_backends import run_ptx, run_twins
from drivers.test_memory import error_of
from odin_engines.errors import OdinError
from odin_runtime.driver import Driver, Stream, open_driver
from odin_runtime.kernels import Kernels

COUNT, PLANE, CHANNELS, MAGNITUDES = 3, 35, 3, 2
MEAN, STD = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.25, 0.3])
MEAN_32, STD_32 = MEAN.astype(np.float32), STD.astype(np.float32)
STEPS = np.array([0.01, 0.02], np.float32)


class Buffers:
    """Device memory with the contents of arrays, kept until the driver closes."""

    def __init__(self, driver: Driver, stream: Stream) -> None:
        self.driver, self.stream = driver, stream

    def put(self, array: np.ndarray) -> int:
        """Copy an array to the device."""
        host, memory = self.driver.pinned(array.nbytes), self.driver.allocate(array.nbytes)
        host.array[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.driver.copy_to_device(memory.pointer, host.pointer, array.nbytes, self.stream)
        return memory.pointer

    def room(self, count: int, dtype: type) -> int:
        """Memory for `count` numbers."""
        return self.driver.allocate(count * np.dtype(dtype).itemsize).pointer

    def get(self, address: int, count: int, dtype: type) -> np.ndarray:
        """Copy numbers from the device and wait."""
        size = count * np.dtype(dtype).itemsize
        host = self.driver.pinned(size)
        self.driver.copy_to_host(host.pointer, address, size, self.stream)
        self.stream.synchronize()
        return host.array.view(dtype).copy()


def make_pixels() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (COUNT, PLANE, CHANNELS), np.uint8)


def chain(double: Double, name: str) -> dict[str, Any]:
    """uint8 pixels -> normalised -> perturbed (the images stand for the gradient) -> scored."""
    if "library" in double.files:
        run_twins(double, double.files["library"])
    else:
        run_ptx(double, double.files["ptx"].read_text("utf-8"))
    with open_driver(name) as driver:
        stream, kernels = driver.stream(), Kernels(driver, IMAGE)
        on_device = Buffers(driver, stream)
        size, rows = COUNT * CHANNELS * PLANE, MAGNITUDES * COUNT
        images = on_device.room(size, np.float32)
        perturbed = on_device.room(MAGNITUDES * size, np.float32)
        outputs = {"score": np.float32, "baseline": np.float32, "label": np.int64}
        pointers = {key: on_device.room(rows, dtype) for key, dtype in outputs.items()}
        scale, offset, inverse, steps, pixels = map(
            on_device.put,
            (1 / (255 * STD_32), MEAN_32 / STD_32, 1 / STD_32, STEPS, make_pixels()),
        )
        sizes: Any = {"count": COUNT, "plane": PLANE, "channels": CHANNELS, "stream": stream}
        kernels.normalize(pixels, images, scale, offset, **sizes)
        kernels.perturb(images, images, perturbed, steps, inverse, magnitudes=MAGNITUDES, **sizes)
        classes = CHANNELS * PLANE
        kernels.score(
            perturbed, rows=rows, classes=classes, stream=stream, temperature=5, **pointers
        )
        found = {key: on_device.get(pointers[key], rows, outputs[key]) for key in outputs}
        return {key: values.tolist() for key, values in found.items()}


def expected() -> dict[str, np.ndarray]:
    """The same in float64."""
    images = ((make_pixels() / 255.0 - MEAN) / STD).transpose(0, 2, 1)
    sign = np.where(images >= 0, 1, -1) / STD[:, None]
    moved = images - STEPS.astype(float).reshape(-1, 1, 1, 1) * sign
    logits = moved.reshape(MAGNITUDES * COUNT, -1)

    def largest(values: np.ndarray) -> np.ndarray:
        return 1 / np.exp(values - values.max(1, keepdims=True)).sum(1)

    return {"score": largest(logits / 5), "baseline": largest(logits), "label": logits.argmax(1)}


def check(seen: Seen) -> None:
    wanted = expected()
    np.testing.assert_allclose(seen.result["score"], wanted["score"], rtol=1e-5)
    np.testing.assert_allclose(seen.result["baseline"], wanted["baseline"], rtol=1e-5)
    assert seen.result["label"] == wanted["label"].tolist()
    assert seen.errors == seen.leaks == seen.faults == []
    assert [line.split()[1] for line in seen.runs() if line.startswith("kernel")] == [
        "odin_normalize_f32",
        "odin_perturb_f32",
        "odin_score_f32",
    ]


@pytest.mark.parametrize("seed", (0, 1, 2))
def test_the_host_twins_through_a_driver(
    scenario: Callable[..., Seen], host_build: Path, seed: int
) -> None:
    library = host_build / "runtime" / "libodin_kernels.so"
    check(scenario(chain, seed=seed, files={"library": library}))


@pytest.fixture(scope="session")
def ptx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels' PTX."""
    from ptx.compiled import ptx_text

    file = tmp_path_factory.mktemp("ptx") / "kernels.ptx"
    file.write_text(ptx_text(), "utf-8")
    return file


def test_the_compilers_ptx_through_a_driver(scenario: Callable[..., Seen], ptx_file: Path) -> None:
    check(scenario(chain, files={"ptx": ptx_file}))


def wild(double: Double, name: str) -> str:
    """A size beyond the buffers: the interpreter sees the access."""
    run_ptx(double, double.files["ptx"].read_text("utf-8"))
    texts: list[str] = []
    with suppress(OdinError), open_driver(name) as driver:  # closing fails too
        stream, kernels = driver.stream(), Kernels(driver, IMAGE)
        buffers = Buffers(driver, stream)
        pixels, scale = buffers.put(make_pixels()), buffers.put(np.ones(CHANNELS, np.float32))
        images = buffers.room(COUNT * CHANNELS * PLANE - 1, np.float32)
        sizes: Any = {"count": COUNT, "plane": PLANE, "channels": CHANNELS, "stream": stream}
        kernels.normalize(pixels, images, scale, scale, **sizes)
        texts.append(error_of(stream.synchronize))
    return texts[0]


def test_an_access_out_of_bounds_is_a_fault(scenario: Callable[..., Seen], ptx_file: Path) -> None:
    seen = scenario(wild, files={"ptx": ptx_file})
    assert seen.result.startswith("waiting for a stream's work failed: CUDA_ERROR_LAUNCH_FAILED (")
    assert "PtxError" in seen.faults[0]
