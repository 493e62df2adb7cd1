"""ONNX Runtime's CUDA and TensorRT providers against its CPU provider, on a GPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from odin_bench.models import find_bundle
from odin_engines.bundle import FORWARD, GRADIENT, ODIN, Bundle
from odin_engines.engine import Session, open_graph, unavailable
from odin_engines.spec import Precision
from odin_export.exporter import Options
from odin_runtime import Scorer
from odin_runtime.images import normalised

pytestmark = pytest.mark.gpu

ENGINES = ("ort-cuda", "ort-trt")
Open = Callable[[str, Path], Session]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """TensorRT's engines are built anew, and TensorFloat-32 is off as the engine sets it."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("NVIDIA_TF32_OVERRIDE", "0")
        yield folder


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """An engine; skipped with its own reason where the machine lacks something beside the GPU."""
    reason = unavailable(request.param, "fp32")
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    return request.param


@pytest.fixture(scope="module")
def densenet(own_cache: Path) -> Bundle:
    """DenseNet-BC-100 with the weights that come with the package; dynamic batch, height, width."""
    return find_bundle("densenet10", None, Options(), lambda step: None)


@pytest.fixture(scope="module")
def pictures(raw_images: Callable[..., np.ndarray]) -> np.ndarray:
    """Raw images, uint8 (16, 32, 32, 3)."""
    return raw_images(16)


@pytest.mark.parametrize("name", [ODIN, GRADIENT, FORWARD])
def test_the_tiny_network(
    engine: str, name: str, tiny_bundle: Bundle, pictures: np.ndarray
) -> None:
    graph = tiny_bundle.file(name)
    images = normalised(pictures, tiny_bundle.spec)
    found = open_graph(engine, graph).run({"images": images})
    expected = open_graph("ort", graph).run({"images": images})
    assert list(found) == list(expected)
    for key, values in expected.items():
        scale = np.abs(values).max()
        np.testing.assert_allclose(found[key], values, rtol=0, atol=1e-4 * scale, err_msg=key)
        assert found[key].dtype == values.dtype


def test_densenet(engine: str, densenet: Bundle, pictures: np.ndarray) -> None:
    images = normalised(pictures, densenet.spec)
    graph = densenet.file(GRADIENT)
    found = open_graph(engine, graph).run({"images": images})
    expected = open_graph("ort", graph).run({"images": images})
    scale = np.abs(expected["logits"]).max()
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=0, atol=1e-4 * scale)
    agree = np.sign(found["input_gradient"]) == np.sign(expected["input_gradient"])
    assert agree.mean() > 0.995
    scores = Scorer.open(densenet, engine).score(pictures)
    wanted = Scorer.open(densenet, "ort").score(pictures)
    np.testing.assert_array_equal(scores.label, wanted.label)
    np.testing.assert_allclose(scores.baseline, wanted.baseline, rtol=0, atol=1e-4)
    # At T = 1000 scores lie within 1e-3 of 0.1: the differences between images are what counts.
    spread = float(np.ptp(wanted.score))
    np.testing.assert_allclose(scores.score, wanted.score, rtol=0, atol=0.01 * spread)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision(
    engine: str, precision: Precision, densenet: Bundle, pictures: np.ndarray
) -> None:
    half = find_bundle("densenet10", None, Options(precision=precision), lambda step: None)
    scores = Scorer.open(half, engine).score(pictures)
    wanted = Scorer.open(densenet, "ort").score(pictures)
    np.testing.assert_allclose(scores.baseline, wanted.baseline, rtol=0, atol=0.05)
    assert (scores.label == wanted.label).mean() > 0.8
    correlation = np.corrcoef(scores.score, wanted.score)[0, 1]
    assert correlation > 0.9


@pytest.mark.parametrize("count", [1, 3, 16])
def test_any_batch_and_size(
    engine: str, tiny_bundle: Bundle, count: int, raw_images: Callable[..., np.ndarray]
) -> None:
    """TensorRT is told of 32 x 32 pixels, and has to build again for others."""
    scorer, reference = (Scorer.open(tiny_bundle, name) for name in (engine, "ort"))
    for height, width in ((32, 32), (36, 36), (33, 40)):
        images = raw_images(count, height, width, seed=height)
        found, expected = scorer.score(images), reference.score(images)
        np.testing.assert_allclose(found.score, expected.score, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(found.label, expected.label)


def test_from_run_to_run(engine: str, densenet: Bundle, pictures: np.ndarray) -> None:
    scorer = Scorer.open(densenet, engine)
    first = scorer.score(pictures)
    for _ in range(5):
        np.testing.assert_array_equal(scorer.score(pictures).score, first.score)


def test_several_threads(engine: str, tiny_bundle: Bundle, pictures: np.ndarray) -> None:
    scorer = Scorer.open(tiny_bundle, engine)
    batches = [np.roll(pictures, shift, axis=1)[: 1 + shift % 5] for shift in range(16)]
    expected = [scorer.score(batch).score for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: scorer.score(batch).score, batches))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("engine", ["ort-trt"], indirect=True)
def test_engines_are_kept(engine: str, tiny_bundle: Bundle, own_cache: Path) -> None:
    folder = own_cache / "odin-ood" / "ort-trt"
    images = np.zeros((1, 3, 32, 32), np.float32)
    open_graph(engine, tiny_bundle.file(ODIN)).run({"images": images})
    built = {file: file.stat().st_mtime_ns for file in folder.rglob("*.engine")}
    assert built
    assert list(folder.rglob("*.timing"))
    open_graph(engine, tiny_bundle.file(ODIN)).run({"images": images})
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*.engine")} == built


def test_the_command(engine: str, densenet: Bundle, tmp_path: Path) -> None:
    arguments = [str(densenet.path), "--engine", engine, "--limit", "64", "--parity", "0"]
    np.savez(
        tmp_path / "in.npz", x=np.random.default_rng(1).integers(0, 256, (64, 32, 32, 3), np.uint8)
    )
    np.savez(tmp_path / "out.npz", x=np.zeros((64, 32, 32, 3), np.uint8))
    sets = ["--in-dataset", str(tmp_path / "in.npz"), "--out-dataset", str(tmp_path / "out.npz")]
    code = "import sys; from odin_bench.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, *sets],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert f"engine {engine}, fp32" in done.stderr
