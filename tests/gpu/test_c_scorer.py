"""libodin with TensorRT itself, against Python's scorer with the same plans.

Skipped without a GPU or TensorRT (conftest.py), and with CMake's reason where TensorRT's headers
are not found: install them, or set TensorRT_ROOT.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu.c_scorer import DEVICE, CScorer, described, empty_results
from gpu.support import MOST, close
from native.fixtures import made_once
from native.toolchain import cmake, configure, cuda_tool, cxx, run
from odin_engines.bundle import Bundle
from odin_runtime import Scorer
from odin_runtime.driver import Driver, open_driver
from odin_runtime.gpu_buffers import aligned
from odin_runtime.images import normalised

pytestmark = pytest.mark.gpu
COUNT = 2 * MOST + 5
# Python cuts batches in another way, for which TensorRT may add in another order.
TOLERANCES = {"fp32": 1e-5, "fp16": 2e-3}


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    with open_driver() as opened:
        yield opened


@pytest.fixture(scope="module")
def library(plan_engine: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """libodin, built with TensorRT."""
    if plan_engine != "trt":
        pytest.skip("libodin runs TensorRT's own plans, not those of TensorRT for RTX")

    def make(folder: Path) -> None:
        nvcc = f"-DODIN_NVCC={cuda_tool('nvcc')}"
        python = f"-DPython_EXECUTABLE={sys.executable}"
        said = configure(folder, "-DODIN_CUDA=ON", nvcc, python, f"-DCMAKE_CXX_COMPILER={cxx()}")
        missing = re.search(r"libodin without TensorRT: (.*)", said)
        if missing is not None:
            pytest.skip(missing[1])
        run([cmake(), "--build", folder, "--target", "odin_scorer"], timeout=600)

    return made_once(tmp_path_factory, "odin-tensorrt", make) / "runtime" / "libodin.so"


@pytest.fixture(scope="module")
def images(raw_images: Callable[..., np.ndarray]) -> np.ndarray:
    """CIFAR-10's where the image sets are at hand, else made ones: uint8 (133, 32, 32, 3)."""
    file = Path(os.environ.get("ODIN_DATA", ""), "cifar10_test.npz")
    if not file.is_file():
        return raw_images(COUNT)
    with np.load(file) as data:
        return np.ascontiguousarray(data["x"][:COUNT])


SPECS: dict[str, dict[str, Any]] = {
    "fused": {},
    "split": {"tunable": True},
    "split first-order": {"tunable": True, "method": "first-order"},
    "raw": {"input_type": "uint8"},
    "fp16": {"precision": "fp16", "graph_precision": "fp16"},
}


@pytest.mark.parametrize("name", SPECS)
def test_scores_are_those_of_python(
    library: Path,
    planned: Callable[..., Bundle],
    images: np.ndarray,
    driver: Driver,
    installed_kernels: None,
    name: str,
) -> None:
    """Of the host, of the device on a stream of ours, and by four threads at once."""
    bundle = planned(**SPECS[name])
    classes, tolerance = bundle.spec.classes, TOLERANCES[bundle.spec.precision]
    batches = [images]
    if bundle.spec.input_type != "uint8":
        broken = normalised(images, bundle.spec)
        broken[3, 1, 4, 5] = np.nan
        batches.append(broken)
    with Scorer.open(bundle, "trt") as python, CScorer(library, bundle.path) as scorer:
        for batch in batches:
            wanted = python.score(batch)

            def compare(found: dict[str, np.ndarray], wanted: Any = wanted) -> None:
                close(found["score"], wanted.score, tolerance)
                close(found["baseline"], wanted.baseline, tolerance)
                assert (found["label"] == wanted.label).mean() >= 1 - tolerance * 5
                finite = np.isfinite(wanted.score)
                largest = found["logits"].argmax(axis=1)
                np.testing.assert_array_equal(largest[finite], found["label"][finite])

            compare(scorer.score(batch, classes))
            compare(queued(scorer, driver, batch, classes))
            with ThreadPoolExecutor(4) as pool:
                for found in pool.map(lambda _, b=batch: scorer.score(b, classes), range(12)):
                    compare(found)


def queued(
    scorer: CScorer, driver: Driver, images: np.ndarray, classes: int
) -> dict[str, np.ndarray]:
    """Score images that are copied to the device, and results back, on one stream, in order."""
    results = empty_results(len(images), classes)
    offsets, size = {}, aligned(images.nbytes)
    for name, array in results.items():
        offsets[name], size = size, size + aligned(array.nbytes)
    stream = driver.stream()
    device, host = driver.allocate(size), driver.pinned(size)
    with device, host:
        host.array[: images.nbytes] = images.reshape(-1).view(np.uint8)
        driver.copy_to_device(device.pointer, host.pointer, images.nbytes, stream)
        batch = described(images.shape, images.dtype == np.uint8, device.pointer, DEVICE)
        places = {name: device.pointer + offsets[name] for name in results}
        scorer.enqueue(batch, places, stream.handle)
        driver.copy_to_host(host.pointer, device.pointer, size, stream)
        stream.synchronize()
        for name, array in results.items():
            part = host.array[offsets[name] : offsets[name] + array.nbytes]
            array[...] = part.view(array.dtype).reshape(array.shape)
    stream.close()
    return results
