"""A sweep gives the scores that each pair has by itself, for no more than the distinct passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from odin_bench import sweep as module
from odin_bench.grid import parse_grid
from odin_bench.sweep import Passes, Sweep, max_probability
from odin_engines import engine as engines
from odin_engines.bundle import Bundle
from odin_engines.errors import OdinError
from odin_runtime import Scorer

Images = Callable[..., np.ndarray]
Make = Callable[..., Bundle]
Opened = Callable[..., Sweep]

GRADIENTS = "gradients-0.onnx"  # of all temperatures
COUNT = 7  # no multiple of any engine's batch
MAGNITUDES = (0.0, 0.004, 0.02)
# The last two have the same signs at every image; the first differs from them.
TEMPERATURES = (1.0, 1000.0, 1000.001)


@pytest.fixture(scope="module")
def bundles(make_tiny_bundle: Make) -> dict[str, Bundle]:
    return {
        method: make_tiny_bundle(tunable=True, method=method) for method in ("exact", "first-order")
    }


@pytest.fixture
def opened() -> Iterator[Callable[..., Sweep]]:
    """A function: what Sweep takes -> a Sweep, closed in the end."""
    with ExitStack() as stack:
        yield lambda *given: stack.enter_context(Sweep(*given))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many images went through each graph, by the name of its file."""
    images: dict[str, int] = {}
    real = engines.open_graph

    class Counting(engines.Session):
        def __init__(self, session: engines.Session, name: str) -> None:
            self._session, self._name = session, name

        def run(self, feeds: engines.Arrays) -> dict[str, np.ndarray]:
            images[self._name] = images.get(self._name, 0) + len(feeds["images"])
            return self._session.run(feeds)

    def counting(name: str, graph: Path, *rest: object) -> engines.Session:
        return Counting(real(name, graph, *rest), graph.name)  # type: ignore[arg-type]

    monkeypatch.setattr(engines, "open_graph", counting)
    monkeypatch.setattr(engines, "images_at_once", lambda *_: 1)
    return images


@pytest.mark.parametrize("engine", ["openvino", "ort"])
@pytest.mark.parametrize("method", ["exact", "first-order"])
def test_each_pair_scores_as_by_itself(
    opened: Opened, bundles: dict[str, Bundle], raw_images: Images, engine: str, method: str
) -> None:
    images = raw_images(COUNT)
    found = opened(bundles[method], engine).score(images, MAGNITUDES, TEMPERATURES)
    assert found.score.shape == (len(TEMPERATURES), len(MAGNITUDES), COUNT)
    assert found.score.dtype == found.baseline.dtype == np.float32
    scorer = Scorer.open(bundles[method], engine)
    for row, temperature in zip(found.score, TEMPERATURES, strict=True):
        for scores, magnitude in zip(row, MAGNITUDES, strict=True):
            alone = scorer.score(images, temperature=temperature, magnitude=magnitude)
            assert scores == pytest.approx(alone.score, abs=1e-6, rel=1e-6)
            assert found.baseline == pytest.approx(alone.baseline, abs=1e-6)
    assert np.ptp(found.score[0], axis=0).min() > 1e-4  # a mistake in the magnitude would show


def test_temperatures_whose_signs_agree_share_the_perturbed_pass(
    opened: Opened, bundles: dict[str, Bundle], raw_images: Images, counted: dict[str, int]
) -> None:
    found = opened(bundles["exact"], "ort").score(raw_images(COUNT), MAGNITUDES, TEMPERATURES)
    # Two patterns of signs at each of two magnitudes; at 0 the first pass will do.
    assert counted == {GRADIENTS: COUNT, "forward.onnx": COUNT * 2 * 2}
    assert found.passes == Passes(forward=COUNT * 5, backward=COUNT * 3, naive=COUNT * 3 * 9)
    assert found.passes.distinct == COUNT * 8


def test_a_zero_gradient_is_not_negative() -> None:
    gradient = np.array([0.0, -0.0, -1e-30, 1.0], np.float32).reshape(1, 1, 2, 2)
    assert module._packed_signs(gradient).tolist() == [[0b0010_0000]]


def test_images_are_grouped_each_for_itself() -> None:
    first, second = [0b1010_0000], [0b0101_0000]
    signs = np.array([[first, first], [first, second], [second, first]], np.uint8)
    which, (temperature, image) = module._distinct(signs)
    assert which.tolist() == [[0, 1], [0, 2], [3, 1]]
    assert temperature.tolist() == [0, 0, 1, 2]
    assert image.tolist() == [0, 1, 1, 0]


def test_first_order_takes_no_perturbed_pass(
    opened: Opened, bundles: dict[str, Bundle], raw_images: Images, counted: dict[str, int]
) -> None:
    sweep = opened(bundles["first-order"], "ort")
    found = sweep.score(raw_images(COUNT), MAGNITUDES, TEMPERATURES)
    assert counted == {GRADIENTS: COUNT}
    assert found.passes == Passes(forward=COUNT, backward=3 * COUNT, naive=27 * COUNT)


@pytest.mark.parametrize("method", ["exact", "first-order"])
def test_without_perturbation_one_forward_pass_serves_all_temperatures(
    opened: Opened,
    bundles: dict[str, Bundle],
    raw_images: Images,
    counted: dict[str, int],
    method: str,
) -> None:
    images = raw_images(COUNT)
    found = opened(bundles[method], "ort").score(images, (0.0,), TEMPERATURES)
    assert counted == {"forward.onnx": COUNT}
    assert found.passes.distinct == COUNT
    scorer = Scorer.open(bundles[method], "ort")
    alone = [scorer.score(images, temperature=t, magnitude=0.0).score for t in TEMPERATURES]
    assert found.score[:, 0] == pytest.approx(np.stack(alone), abs=1e-6)


def test_several_graphs_and_chunks_give_the_same(
    opened: Opened, bundles: dict[str, Bundle], raw_images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = raw_images(COUNT)
    whole = opened(bundles["exact"], "ort").score(images, MAGNITUDES, TEMPERATURES)
    monkeypatch.setattr(module, "_TEMPERATURES_AT_ONCE", 2)
    monkeypatch.setattr(module, "_CHUNK", 3)
    cut = opened(bundles["exact"], "ort").score(images, MAGNITUDES, TEMPERATURES)
    assert cut.score == pytest.approx(whole.score, abs=1e-6)
    assert cut.baseline == pytest.approx(whole.baseline, abs=1e-6)
    assert cut.passes.forward == whole.passes.forward + COUNT  # a forward pass for each graph


@pytest.mark.parametrize("method", ["exact", "first-order"])
@pytest.mark.parametrize("magnitudes", [MAGNITUDES, (0.0,)])
def test_progress_ends_at_what_it_was_told(
    opened: Opened,
    bundles: dict[str, Bundle],
    raw_images: Images,
    method: str,
    magnitudes: tuple[float, ...],
) -> None:
    sweep = opened(bundles[method], "ort")
    done: list[int] = []
    sweep.score(raw_images(COUNT), magnitudes, TEMPERATURES, done.append)
    assert sum(done) == COUNT * sweep.most_passes(magnitudes, TEMPERATURES)
    assert min(done) >= 0


def test_a_bundle_that_is_not_tunable_takes_any_magnitude(
    opened: Opened, tiny_bundle: Bundle, bundles: dict[str, Bundle], raw_images: Images
) -> None:
    images, own = raw_images(COUNT), (tiny_bundle.spec.temperature,)
    found = opened(tiny_bundle, "ort").score(images, MAGNITUDES, own)
    tunable = opened(bundles["exact"], "ort").score(images, MAGNITUDES, own)
    assert found.score == pytest.approx(tunable.score, abs=1e-6)
    with pytest.raises(OdinError, match=r"built into its gradient.*odin-export --tunable"):
        opened(tiny_bundle, "ort").check(MAGNITUDES, (1.0, *own))


@pytest.mark.parametrize("engine", ["torch", "trt", "ort-cuda"])
def test_engines_that_do_not_sweep_are_refused(
    opened: Opened, tiny_bundle: Bundle, engine: str
) -> None:
    with pytest.raises(OdinError, match=f"--engine {engine} does not sweep.*openvino or ort"):
        opened(tiny_bundle, engine)


def test_values_out_of_range_are_refused(opened: Opened, bundles: dict[str, Bundle]) -> None:
    sweep = opened(bundles["exact"], "ort")
    with pytest.raises(OdinError, match="temperature is 0"):
        sweep.check((0.1,), (0.0, 1.0))
    with pytest.raises(OdinError, match=r"magnitude is -0\.1"):
        sweep.check((-0.1, 0.1), (1.0,))


def test_probability_of_large_logits_is_finite() -> None:
    logits = np.array([[1e30, 0.0], [2.0, 2.0]], np.float32)
    assert max_probability(logits, 1).tolist() == [1.0, 0.5]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0.0014", (0.0014,)),
        ("1, 2,1e3", (1.0, 2.0, 1000.0)),
        ("10,1,10.0", (1.0, 10.0)),
        ("0:1:3", (0.0, 0.5, 1.0)),
        ("5,0:1:2", (0.0, 1.0, 5.0)),
    ],
)
def test_grid(text: str, numbers: tuple[float, ...]) -> None:
    assert parse_grid(text) == numbers


def test_a_range_holds_the_numbers_that_its_decimals_say() -> None:
    grid = parse_grid("0:0.004:21")
    assert grid == tuple(float(f"{step * 2}e-4") for step in range(21))
    assert 0.0014 in grid


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' is no number"),
        ("1,,2", "'' is no number"),
        ("1,two", "'two' is no number; give one number, a list"),
        ("nan", "'nan' is no number"),
        ("0:inf:3", "'inf' is no number"),
        ("0:1e9999999:3", "'1e9999999' is no number"),
        ("0:1", "'0:1' is no range; .*FIRST:LAST:COUNT"),
        ("0:1:2:3", "'0:1:2:3' is no range"),
        ("0:1:1", "whole number from 2 to 1,000"),
        ("0:1:2.5", "whole number from 2"),
        ("1:0:3", "does not ascend"),
        ("0:1:1000,2", "1,001 numbers; give at most 1,000"),
    ],
)
def test_grids_that_are_none(text: str, words: str) -> None:
    with pytest.raises(OdinError, match=words):
        parse_grid(text)
