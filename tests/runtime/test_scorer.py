"""Images in, scores out: every layout, any number of images, temperature and magnitude."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from torch import nn

from odin_engines.bundle import Bundle
from odin_engines.torch_reference import TorchReference
from odin_runtime import Scorer, Scores
from runtime.scoring import CPU_ENGINES, BundleMaker, Images, close, normalise, recorded, refusal


@pytest.fixture(scope="module")
def scorer(tiny_bundle: Bundle) -> Scorer:
    return Scorer.open(tiny_bundle.path, "ort")


@pytest.fixture(scope="module")
def tunable(make_tiny_bundle: BundleMaker) -> Bundle:
    return make_tiny_bundle(tunable=True)


@pytest.fixture(scope="module")
def raw_bundle(make_tiny_bundle: BundleMaker) -> Bundle:
    """A bundle whose odin.onnx takes uint8."""
    return make_tiny_bundle(input_type="uint8")


# Scores


@pytest.mark.parametrize("engine", [*CPU_ENGINES, "torch"])
def test_scores_are_those_of_pytorch(
    engine: str,
    tiny_bundle: Bundle,
    tiny_network: nn.Module,
    tiny_reference: TorchReference,
    raw_images: Images,
) -> None:
    network = tiny_network if engine == "torch" else None
    opened = Scorer.open(tiny_bundle.path, engine, network=network)
    raw = raw_images(9)
    expected = tiny_reference.run({"images": normalise(raw, tiny_bundle)})
    close(opened.score(raw), Scores(expected["score"], expected["baseline"], expected["label"]))
    assert opened.engine == engine
    assert opened.precision == "fp32"
    assert len(set(expected["label"])) > 1


@pytest.mark.parametrize("engine", CPU_ENGINES)
def test_raw_and_normalised_images_score_the_same(
    engine: str, tiny_bundle: Bundle, raw_images: Images
) -> None:
    opened = Scorer.open(tiny_bundle, engine)
    raw = raw_images(7, 36, 40)
    close(opened.score(raw), opened.score(normalise(raw, tiny_bundle)))


@pytest.mark.parametrize("engine", CPU_ENGINES)
def test_a_bundle_that_normalises_scores_the_same(
    engine: str, tiny_bundle: Bundle, raw_bundle: Bundle, raw_images: Images
) -> None:
    raw = raw_images(7, 36, 40)
    opened = Scorer.open(raw_bundle.path, engine)
    assert opened.input_type == "uint8"
    close(opened.score(raw), Scorer.open(tiny_bundle, engine).score(raw))


@pytest.mark.parametrize("engine", ["ort", "torch"])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_types_and_shapes_of_scores(
    engine: str, count: int, tiny_bundle: Bundle, tiny_network: nn.Module, raw_images: Images
) -> None:
    network = tiny_network if engine == "torch" else None
    opened = Scorer.open(tiny_bundle, engine, network=network)
    for images in (raw_images(5)[:count], normalise(raw_images(5)[:count], tiny_bundle)):
        scores = opened.score(images)
        assert len(scores) == count
        for values in (scores.score, scores.baseline, scores.label):
            assert values.shape == (count,)
        assert (scores.score.dtype, scores.baseline.dtype) == (np.float32, np.float32)
        assert scores.label.dtype == np.int64


def test_a_float64_network_scores_in_float32_too(
    tiny_bundle: Bundle, build_tiny: Callable[..., nn.Module], raw_images: Images
) -> None:
    opened = Scorer.open(tiny_bundle, "torch", network=build_tiny().double())
    scores = opened.score(raw_images(3))
    assert (scores.score.dtype, scores.baseline.dtype) == (np.float32, np.float32)
    close(scores, Scorer.open(tiny_bundle, "ort").score(raw_images(3)))


def test_auto_names_the_engine_it_took(tiny_bundle: Bundle) -> None:
    assert Scorer.open(tiny_bundle).engine == "openvino"


def test_images_are_not_changed(scorer: Scorer, raw_images: Images) -> None:
    for images in (raw_images(3), normalise(raw_images(3), scorer.bundle)):
        given = images.copy()
        scorer.score(images)
        np.testing.assert_array_equal(images, given)


def test_any_memory_layout(scorer: Scorer, raw_images: Images) -> None:
    raw = raw_images(6, 32, 40)
    planes = normalise(raw, scorer.bundle)
    expected = scorer.score(raw[::-2])
    views = (
        raw[::-2],
        np.asfortranarray(raw[::-2]),
        planes[::-2],
        np.asfortranarray(planes[::-2]),
        np.ascontiguousarray(planes.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)[::-2],
    )
    for view in views:
        close(scorer.score(view), expected)
    read_only = raw[::-2].copy()
    read_only.flags.writeable = False
    close(scorer.score(read_only), expected)


@pytest.mark.parametrize("engine", CPU_ENGINES)
@pytest.mark.parametrize("method", ["exact", "first-order"])
def test_not_a_number_is_not_hidden(
    engine: str, method: str, make_tiny_bundle: BundleMaker, raw_images: Images
) -> None:
    """A score that looks plausible would be worse than an error or NaN."""
    bundle = make_tiny_bundle(method=method)
    images = normalise(raw_images(3), bundle)
    images[1, :, 4, 4] = np.nan
    scores = Scorer.open(bundle, engine).score(images)
    assert np.isnan(scores.score[1])
    assert np.isfinite(scores.score[[0, 2]]).all()


# Any number of images


@pytest.mark.parametrize("batch_size", [1, 7, 64, 65, 1000])
def test_chunks_do_not_show(batch_size: int, tiny_bundle: Bundle, raw_images: Images) -> None:
    raw = raw_images(65)
    opened, recorder = recorded(Scorer.open(tiny_bundle, "ort", batch_size=batch_size))
    found = opened.score(raw)
    close(found, Scorer.open(tiny_bundle, "ort", batch_size=13).score(raw), 2e-7)
    sizes = [shape[0] for shape in recorder.shapes]
    assert sum(sizes) == 65
    whole, left = divmod(65, batch_size)
    assert sizes == [batch_size] * whole + [size for size in (64, 4, 2, 1) if left & size]


def test_each_image_scores_as_it_does_alone(scorer: Scorer, raw_images: Images) -> None:
    raw = raw_images(20)
    together = scorer.score(raw)
    assert len(np.unique(together.score)) == 20
    for index in (0, 15, 16, 19):
        alone = scorer.score(raw[index : index + 1])
        np.testing.assert_allclose(alone.score, together.score[index], rtol=0, atol=1e-6)


def test_no_images_run_nothing(scorer: Scorer) -> None:
    opened, recorder = recorded(scorer)
    assert len(opened.score(np.empty((0, 32, 32, 3), np.uint8))) == 0
    assert recorder.shapes == []


@pytest.mark.parametrize(
    ("memory", "wanted"),
    [(None, 16), (1 << 40, 16), (8_000_000, 8), (1_500_000, 1), (1, 1), (0, 1)],
)
def test_memory_bounds_the_chunks(
    memory: int | None, wanted: int, make_tiny_bundle: BundleMaker, raw_images: Images
) -> None:
    bundle = make_tiny_bundle(activation_bytes=1_000_000)
    opened, recorder = recorded(Scorer.open(bundle, "ort", batch_size=16, memory=memory))
    opened.score(raw_images(20))
    assert max(shape[0] for shape in recorder.shapes) == wanted


@pytest.mark.parametrize(
    ("memory", "batches", "sizes"),
    [
        (64_000_000, 4, {16}),
        (8_000_000, 4, {2}),
        (4_000_000, 4, {1}),
        (3_500_000, 1, {3, 1}),  # not one on each stream: one after the other
        (1, 1, {1}),
    ],
)
def test_memory_is_of_all_batches_at_once(
    memory: int, batches: int, sizes: set[int], make_tiny_bundle: BundleMaker, raw_images: Images
) -> None:
    bundle = make_tiny_bundle(activation_bytes=1_000_000)
    opened, recorder = recorded(Scorer.open(bundle, "ort", batch_size=16, memory=memory))
    recorder.streams = 4
    opened.score(raw_images(64))
    assert {shape[0] for shape in recorder.shapes} == sizes
    assert recorder.at_once == batches
    default = Scorer.open(bundle, "ort", threads=3)
    assert default.memory == 3 * 2**30 * 2


def test_larger_images_come_in_smaller_chunks(
    make_tiny_bundle: BundleMaker, raw_images: Images
) -> None:
    """activation_bytes is that of the smallest image, 32x32; 60x60 has 3.5 times its pixels."""
    bundle = make_tiny_bundle(activation_bytes=1_000_000)
    opened, recorder = recorded(Scorer.open(bundle, "ort", batch_size=16, memory=8_000_000))
    large = raw_images(5, 60, 60)
    opened.score(large)
    opened.score(normalise(large, bundle))
    assert [shape[0] for shape in recorder.shapes] == [2, 2, 1, 2, 2, 1]


def test_progress_is_told(tiny_bundle: Bundle, raw_images: Images) -> None:
    done: list[int] = []
    Scorer.open(tiny_bundle, "ort", batch_size=4).score(raw_images(10), progress=done.append)
    assert done == [4, 4, 2]


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_that_is_none(batch_size: int, tiny_bundle: Bundle) -> None:
    message = refusal(lambda: Scorer.open(tiny_bundle, "ort", batch_size=batch_size))
    assert message == f"batch_size is {batch_size}; it has to be 1 or more"


@pytest.mark.parametrize("engine", [*CPU_ENGINES, "torch"])
def test_several_threads_share_a_scorer(
    engine: str, tunable: Bundle, tiny_network: nn.Module, raw_images: Images
) -> None:
    network = tiny_network if engine == "torch" else None
    opened = Scorer.open(tunable, engine, network=network, threads=1)
    raw = raw_images(24)
    work = [(raw[i : i + 1 + i % 5], 1.0 + i) for i in range(20)]

    def score(task: tuple[np.ndarray, float]) -> Scores:
        return opened.score(task[0], temperature=task[1])

    expected = [score(task) for task in work]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(score, work))
    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs)
    assert len({float(scores.score[0]) for scores in expected}) == len(work)


# Temperature and magnitude


@pytest.mark.parametrize("engine", [*CPU_ENGINES, "torch"])
def test_tuning(
    engine: str,
    tunable: Bundle,
    tiny_network: nn.Module,
    make_tiny_bundle: BundleMaker,
    raw_images: Images,
) -> None:
    network = tiny_network if engine == "torch" else None
    opened = Scorer.open(tunable, engine, network=network)
    raw = raw_images(5)
    built_in = Scorer.open(make_tiny_bundle(temperature=3.0, magnitude=0.03), "ort")
    found = opened.score(raw, temperature=3.0, magnitude=0.03)
    close(found, built_in.score(raw))
    default = opened.score(raw)
    close(default, Scorer.open(make_tiny_bundle(), "ort").score(raw))
    assert np.abs(found.score - default.score).min() > 1e-2
    only_one = opened.score(raw, magnitude=0.0)
    assert (only_one.score < default.score - 1e-4).all()


def test_the_torch_engine_is_always_tunable(
    tiny_bundle: Bundle, tiny_network: nn.Module, tunable: Bundle, raw_images: Images
) -> None:
    found = Scorer.open(tiny_bundle, "torch", network=tiny_network)
    other = Scorer.open(tunable, "ort")
    raw = raw_images(3)
    close(found.score(raw, temperature=2.0), other.score(raw, temperature=2.0))


@pytest.mark.parametrize(("name", "value"), [("temperature", 5.0), ("magnitude", 0.0)])
def test_what_is_built_in_cannot_be_changed(
    name: str, value: float, scorer: Scorer, raw_images: Images
) -> None:
    opened, recorder = recorded(scorer)
    message = refusal(lambda: opened.score(raw_images(1), **{name: value}))
    assert str(scorer.bundle.path) in message
    built_in = getattr(scorer.spec, name)
    assert f"{name} {built_in:g} built in, not {value:g}" in message
    assert f"--{name} {value:g}" in message
    assert "--tunable" in message
    assert recorder.shapes == []


def test_asking_for_what_is_built_in(scorer: Scorer, raw_images: Images) -> None:
    raw = raw_images(2)
    asked = {"temperature": 10.0, "magnitude": float(np.float32(0.01))}
    close(scorer.score(raw, **asked), scorer.score(raw))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (0.0, -1.0, np.nan, np.inf, 1e-60, 1e60)),
        *(("magnitude", value) for value in (-0.1, np.nan, np.inf, 1e60)),
    ],
)
def test_values_out_of_range(name: str, value: float, tunable: Bundle, raw_images: Images) -> None:
    opened, recorder = recorded(Scorer.open(tunable, "ort"))
    message = refusal(lambda: opened.score(raw_images(1), **{name: value}))
    assert f"{name} is {value}" in message
    assert recorder.shapes == []
