"""Both forms of plans, scored on a GPU through the Scorer, against ONNX Runtime on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpu.support import MOST, close
from odin_engines.bundle import Bundle
from odin_runtime import OdinError, Scorer
from odin_runtime.driver import DRIVERS, open_driver
from odin_runtime.images import normalised
from runtime.foreign_arrays import Foreign, WithDlpack, WithInterface, read

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("installed_kernels")]
# Largest differences of scores from float32 on a CPU.
TOLERANCE = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 3e-3}
COUNTS = (1, 3, MOST, 2 * MOST + 5, 0)
FORMS = ("fused", "split")


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    """Each driver's name in turn; skipped with the reason where it cannot be opened."""
    try:
        open_driver(request.param).close()
    except OdinError as error:
        pytest.skip(str(error))
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def raw(raw_images: Callable[..., np.ndarray]) -> np.ndarray:
    return raw_images(2 * MOST + 5, seed=17)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["exact", "first-order"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_scores_agree(
    driver: str,
    plan_engine: str,
    planned: Callable[..., Bundle],
    make_tiny_bundle: Callable[..., Bundle],
    raw: np.ndarray,
    form: Any,
    method: str,
    precision: Any,
) -> None:
    bundle = planned(method=method, precision=precision, graph_precision=precision)
    images = normalised(raw, bundle.spec)
    expected = Scorer.open(make_tiny_bundle(method=method), "ort").score(raw)
    with Scorer.open(bundle, plan_engine, form=form, driver=driver) as scorer:
        for count in COUNTS * 3:  # directly, captured, replayed
            for given in (raw[:count], images[:count]):
                found = scorer.score(given)
                close(found.score, expected.score[:count], TOLERANCE[precision])
                close(found.baseline, expected.baseline[:count], TOLERANCE[precision])
                if precision == "fp32":
                    np.testing.assert_array_equal(found.label, expected.label[:count])


def test_raw_plans_and_further_scores(
    plan_engine: str,
    planned: Callable[..., Bundle],
    make_tiny_bundle: Callable[..., Bundle],
    raw: np.ndarray,
) -> None:
    changes = {"input_type": "uint8", "scores": ("energy", "entropy")}
    expected = Scorer.open(make_tiny_bundle(**changes), "ort").score(raw)
    with Scorer.open(planned(**changes), plan_engine) as scorer:
        found = scorer.score(raw)
    close(found.score, expected.score, 1e-5)
    for name, values in expected.extra.items():
        np.testing.assert_allclose(found.extra[name], values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["exact", "first-order"])
def test_many_magnitudes_and_any_temperature(
    driver: str,
    plan_engine: str,
    planned: Callable[..., Bundle],
    make_tiny_bundle: Callable[..., Bundle],
    raw: np.ndarray,
    method: str,
) -> None:
    magnitudes = (0.0, 0.001, 0.01, 0.02, 0.03)
    bundle = planned(method=method, tunable=True)
    reference = Scorer.open(make_tiny_bundle(method=method, tunable=True), "ort")
    with Scorer.open(bundle, plan_engine, form="split", driver=driver) as scorer:
        for count in (1, 7, len(raw)):
            found = scorer.score(raw[:count], magnitudes=magnitudes, temperature=3.0)
            assert found.score.shape == (len(magnitudes), count)
            for row, magnitude in zip(found.score, magnitudes, strict=True):
                expected = reference.score(raw[:count], magnitude=magnitude, temperature=3.0)
                close(row, expected.score, 2e-5)


@pytest.mark.parametrize("form", FORMS)
def test_graphs_replay_what_runs_directly(
    plan_engine: str, planned: Callable[..., Bundle], raw: np.ndarray, form: Any
) -> None:
    counts = (1, 2, 4, 8, MOST, len(raw))
    with Scorer.open(planned(), plan_engine, form=form, graphs=False) as scorer:
        direct = {count: scorer.score(raw[:count]).score for count in counts}
    with Scorer.open(planned(), plan_engine, form=form, driver="cuda-core", graphs=True) as scorer:
        for _ in range(4):
            for count in counts:
                close(scorer.score(raw[:count]).score, direct[count], 1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_images_with_nan_score_nan(
    plan_engine: str, planned: Callable[..., Bundle], raw: np.ndarray, form: Any
) -> None:
    images = normalised(raw[:9], planned().spec)
    images[2, 0, 5, 5], images[7, 2, 31, 31] = np.nan, np.inf
    with Scorer.open(planned(), plan_engine, form=form) as scorer:
        found = scorer.score(images)
    assert np.flatnonzero(np.isnan(found.score)).tolist() == [2, 7]
    assert np.flatnonzero(np.isnan(found.baseline)).tolist() == [2, 7]


@pytest.mark.parametrize("form", FORMS)
def test_threads(
    driver: str, plan_engine: str, planned: Callable[..., Bundle], raw: np.ndarray, form: Any
) -> None:
    wrong: list[int] = []
    with Scorer.open(planned(), plan_engine, form=form, driver=driver) as scorer:
        expected = scorer.score(raw).score

        def work(number: int) -> None:
            for turn in range(30):
                part = slice(number, number + 1 + (7 * turn) % (2 * MOST))
                if not np.allclose(scorer.score(raw[part]).score, expected[part], atol=1e-6):
                    wrong.append(number)

        threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.parametrize("form", FORMS)
def test_two_scorers_at_once(
    driver: str, plan_engine: str, planned: Callable[..., Bundle], raw: np.ndarray, form: Any
) -> None:
    """Each in a thread of its own; where there are graphs, one captures while the other runs."""
    outcomes: list[str] = []
    options: dict[str, Any] = {"form": form, "driver": driver}
    with Scorer.open(planned(), plan_engine, **options) as scorer:
        expected = scorer.score(raw).score

    def work() -> None:
        with Scorer.open(planned(), plan_engine, **options) as scorer:
            for count in (1, 2, 4, len(raw)) * 4:
                if not np.allclose(scorer.score(raw[:count]).score, expected[:count], atol=1e-6):
                    outcomes.append(f"wrong scores of {count}")
        outcomes.append("done")

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == ["done", "done"]


@pytest.mark.parametrize("form", FORMS)
def test_arrays_on_the_device(
    driver: str, plan_engine: str, planned: Callable[..., Bundle], raw: np.ndarray, form: Any
) -> None:
    """Through both protocols, at addresses of any alignment, on a stream of the caller's."""
    images = normalised(raw, planned().spec)
    with (
        Scorer.open(planned(), plan_engine, form=form, driver=driver) as scorer,
        open_driver(driver) as callers,
    ):
        expected = scorer.score(images).score
        stream = callers.stream()
        for values, shift in ((images, 0), (images[:7], 4), (raw, 0), (raw[:3], 1)):
            array, wanted = Foreign(callers, values, stream, shift), expected[: len(values)]
            for given in (WithInterface(array), WithDlpack(callers, array)):
                found = scorer.score_on_device(given, stream=stream).score
                close(read(callers, found, stream), wanted, 1e-6)
                close(scorer.score(given).score, wanted, 1e-6)
            array.free()
        stream.close()


@pytest.mark.parametrize("form", FORMS)
def test_arrays_of_torch(
    driver: str, plan_engine: str, planned: Callable[..., Bundle], raw: np.ndarray, form: Any
) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this build of PyTorch has no CUDA")
    bundle = planned()
    images = normalised(raw, bundle.spec)
    with Scorer.open(bundle, plan_engine, form=form, driver=driver) as scorer:
        expected = scorer.score(images).score
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            tensor = torch.from_numpy(images).cuda(non_blocking=True)
            for start in (0, 1, 3):  # views at other addresses
                found = scorer.score_on_device(tensor[start:], stream=stream)
                for score in (torch.as_tensor(found.score, device="cuda"), found.score):
                    close(torch.from_dlpack(score).cpu().numpy(), expected[start:], 1e-6)
        torch.cuda.synchronize()
        found = scorer.score_on_device(tensor)  # the default stream, which is current here
        close(torch.as_tensor(found.score, device="cuda").cpu().numpy(), expected, 1e-6)
        with torch.cuda.stream(stream):  # another stream than that of the scores
            close(torch.from_dlpack(found.score).cpu().numpy(), expected, 1e-6)
        close(scorer.score(tensor).score, expected, 1e-6)
        with pytest.raises(OdinError, match="not dense"):
            scorer.score(tensor.permute(0, 1, 3, 2))


def test_torch_keeps_scores_beyond_the_scorer(
    plan_engine: str, planned: Callable[..., Bundle], raw: np.ndarray
) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this build of PyTorch has no CUDA")
    tensor = torch.from_numpy(raw).cuda()
    with Scorer.open(planned(), plan_engine) as scorer:
        expected = scorer.score(raw).score
        kept = [torch.from_dlpack(scorer.score_on_device(tensor).score)]
        with (
            pytest.raises(OdinError, match="the stream is being captured into a CUDA graph"),
            torch.cuda.graph(torch.cuda.CUDAGraph()),
        ):
            scorer.score_on_device(tensor, stream=torch.cuda.current_stream())
    kept.append(
        torch.from_dlpack(Scorer.open(planned(), plan_engine).score_on_device(tensor).score)
    )
    for score in kept:
        close(score.cpu().numpy(), expected, 1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_arrays_of_pycuda(
    plan_engine: str, planned: Callable[..., Bundle], raw: np.ndarray, form: Any
) -> None:
    """In the primary context they are scored, and in one of pycuda.autoinit's kind refused."""
    cuda = pytest.importorskip("pycuda.driver")
    from pycuda import gpuarray

    with (
        Scorer.open(planned(), plan_engine, form=form, driver="pycuda") as scorer,
        open_driver("pycuda") as callers,
    ):
        expected = scorer.score(raw).score
        with callers.current():  # as pycuda.autoprimaryctx
            array, stream = gpuarray.to_gpu(raw), cuda.Stream()
            close(scorer.score(array).score, expected, 1e-6)
            found = scorer.score_on_device(array, stream=stream).score
            taken = gpuarray.GPUArray(found.shape, found.dtype, gpudata=found.pointer)
            stream.synchronize()
            close(taken.get(), expected, 1e-6)
            del array, stream, taken
        context = cuda.Device(0).make_context()
        array = gpuarray.to_gpu(raw)
        with pytest.raises(OdinError, match="images lie in another CUDA context"):
            scorer.score(array)
        del array
        context.pop()
        context.detach()
        close(scorer.score(raw).score, expected, 1e-6)  # the device has not failed


@pytest.mark.parametrize("form", FORMS)
def test_arrays_of_cupy(
    plan_engine: str, planned: Callable[..., Bundle], raw: np.ndarray, form: Any
) -> None:
    cupy = pytest.importorskip("cupy")
    with Scorer.open(planned(), plan_engine, form=form) as scorer:
        expected = scorer.score(raw).score
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            found = scorer.score_on_device(cupy.asarray(raw))
            score = cupy.asnumpy(cupy.asarray(found.score))
        close(score, expected, 1e-6)
