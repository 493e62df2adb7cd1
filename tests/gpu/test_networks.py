"""Real networks on a GPU, from the command line to scores at T = 1000, against a CPU.

The last tests need no GPU: they try what the others stand on, in small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gpu.support import MOST
from odin_bench import datasets
from odin_bench.metrics import evaluate
from odin_engines.bundle import Bundle, read_bundle
from odin_export import cli
from odin_export.networks import NETWORKS, NetworkSpec
from odin_runtime import Scorer, Scores

on_gpu = pytest.mark.gpu
each_form = pytest.mark.parametrize("form", ["fused", "split"])
each_precision = pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])

# What is allowed to differ from float32 on a CPU. Of ODIN's score, the root mean square of the
# differences, as a share of the scores' own spread, which at T = 1000 is all that counts.
# Of a DenseNet whose halves are rounded on a CPU it is 0.0014 in fp16 and 0.0097 in bf16.
NOISE = {"fp32": 0.01, "fp16": 0.03, "bf16": 0.1}
BASELINE = {"fp32": 1e-4, "fp16": 0.01, "bf16": 0.05}
LABELS = {"fp32": 1.0, "fp16": 0.97, "bf16": 0.95}
AUROC = 0.001
IMAGES = 1000  # of either set


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What TensorRT measures is kept for this module alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """A function: model, arguments of odin-export -> its bundle, made once."""
    made: dict[tuple[object, ...], Bundle] = {}

    def export(*arguments: object) -> Bundle:
        if arguments not in made:
            folder = tmp_path_factory.mktemp("exported") / "bundle"
            given = [*map(str, arguments), "--output", str(folder)]
            assert cli.main(given) == 0, given
            made[arguments] = read_bundle(folder)
        return made[arguments]

    return export


def random_weights(model: str, folder: Path, raw: np.ndarray) -> Path:
    """A checkpoint of random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = NETWORKS[model].build(NETWORKS[model].classes)
    torch.save(settled(network, raw).state_dict(), folder / "random.pth")
    return folder / "random.pth"


def settled(network: nn.Module, raw: np.ndarray) -> nn.Module:
    """The network with the statistics of these images, so that its values neither grow nor fade."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # no older ones
    with torch.no_grad():
        network.train()(torch.from_numpy(raw / 127.5 - 1).permute(0, 3, 1, 2).float())
    return network.eval()


def with_plans(engine: str, precision: str) -> tuple[str, ...]:
    return ("--engine", engine, "--precision", precision, f"--maxShapes=images:{MOST}x3x32x32")


def check_scale(bundle: Bundle) -> None:
    """float16 could not hold the gradients of T = 1000 without a scale."""
    assert bundle.spec.temperature == 1000
    assert (bundle.spec.seed_scale > 1) == (bundle.spec.precision == "fp16")


def compare(found: Scores, true: Scores, precision: str) -> None:
    """Assert that scores, baselines and labels agree."""
    assert len(found) == len(true)
    noise = float(np.sqrt(np.mean((found.score - true.score) ** 2)) / true.score.std())
    baseline = float(np.abs(found.baseline - true.baseline).max())
    labels = float(np.mean(found.label == true.label))
    told = f"{precision}: noise {noise:.4f}, baseline {baseline:.1e}, labels {labels:.4f}"
    assert noise <= NOISE[precision], told
    assert baseline <= BASELINE[precision], told
    assert labels >= LABELS[precision], told


def check(bundle: Bundle, engine: str, form: Any, reference: Bundle, raw: np.ndarray) -> None:
    """Full batches, and the rest of one, which is of another size."""
    check_scale(bundle)
    true = Scorer.open(reference, "ort").score(raw)
    with Scorer.open(bundle, engine, form=form) as scorer:
        for count in (len(raw), 1, len(raw)):  # then as CUDA graphs
            compare(scorer.score(raw), true, bundle.spec.precision)
            scorer.score(raw[:count])


def auroc(scorer: Scorer, sets: tuple[np.ndarray, np.ndarray]) -> float:
    ins, outs = (scorer.score(images).score for images in sets)
    return evaluate(ins, outs).auroc


@pytest.fixture(scope="module")
def sets(data_folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-10, and the inner 32x32 of Tiny-ImageNet, as the release takes them."""
    ins = datasets.load("cifar10", data_folder, skip=1000, limit=IMAGES, role="in")
    outs = datasets.load("Imagenet", data_folder, skip=1000, limit=IMAGES).cropped(32)
    return ins.images, outs.images


@pytest.fixture(scope="module")
def true_auroc(exported: Callable[..., Bundle], sets: tuple[np.ndarray, np.ndarray]) -> float:
    return auroc(Scorer.open(exported("densenet10"), "ort"), sets)


@on_gpu
@pytest.mark.usefixtures("installed_kernels")
@each_precision
@each_form
def test_densenet(
    plan_engine: str,
    exported: Callable[..., Bundle],
    raw_images: Callable[..., np.ndarray],
    form: Any,
    precision: str,
) -> None:
    bundle = exported("densenet10", *with_plans(plan_engine, precision))
    check(bundle, plan_engine, form, exported("densenet10"), raw_images(MOST + 5, seed=11))


@on_gpu
@pytest.mark.usefixtures("installed_kernels")
@each_precision
@each_form
def test_auroc_of_densenet(
    plan_engine: str,
    exported: Callable[..., Bundle],
    sets: tuple[np.ndarray, np.ndarray],
    true_auroc: float,
    form: Any,
    precision: str,
) -> None:
    bundle = exported("densenet10", *with_plans(plan_engine, precision))
    with Scorer.open(bundle, plan_engine, form=form) as scorer:
        assert abs(auroc(scorer, sets) - true_auroc) <= AUROC


@pytest.fixture(scope="module")
def wide_resnet(
    tmp_path_factory: pytest.TempPathFactory, raw_images: Callable[..., np.ndarray]
) -> tuple[object, ...]:
    """Wide-ResNet-28-10, whose trained weights are not in the package, for odin-export."""
    folder = tmp_path_factory.mktemp("weights")
    checkpoint = random_weights("wideresnet10", folder, raw_images(64, seed=4))
    return ("wideresnet10", "--checkpoint", checkpoint)


@on_gpu
@pytest.mark.usefixtures("installed_kernels")
@each_form
def test_wide_resnet(
    plan_engine: str,
    exported: Callable[..., Bundle],
    wide_resnet: tuple[object, ...],
    raw_images: Callable[..., np.ndarray],
    form: Any,
) -> None:
    bundle = exported(*wide_resnet, *with_plans(plan_engine, "fp16"))
    check(bundle, plan_engine, form, exported(*wide_resnet), raw_images(MOST + 5, seed=11))


# Without a GPU: plans of a small network are built, and ONNX Runtime runs it in their place.


@pytest.fixture
def small(
    tiny_network: nn.Module,
    tmp_path: Path,
    raw_images: Callable[..., np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[object, ...]:
    spec = NetworkSpec("tiny10", "Tiny CNN", 10, "cifar10", type(tiny_network), 63)
    monkeypatch.setitem(NETWORKS, "tiny10", spec)
    return ("tiny10", "--checkpoint", random_weights("tiny10", tmp_path, raw_images(64, seed=4)))


def test_all_but_the_gpu(
    exported: Callable[..., Bundle],
    small: tuple[object, ...],
    raw_images: Callable[..., np.ndarray],
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the builder of TensorRT for RTX is not installed")
    raw = raw_images(MOST + 5, seed=11)
    bundle, reference = exported(*small, *with_plans("rtx", "fp16")), exported(*small)
    assert [record.precision for record in bundle.plans] == 3 * ["fp16"]
    check(bundle, "ort", "auto", reference, raw)
    sets = (raw, 255 - raw)
    true, found = (auroc(Scorer.open(each, "ort"), sets) for each in (reference, bundle))
    assert abs(found - true) <= AUROC


@each_precision
def test_differences_are_seen(precision: str) -> None:
    generator = np.random.default_rng(0)
    score, baseline = generator.normal(0.1, 1e-5, 100), generator.random(100)
    true = Scores(score, baseline, np.arange(100) % 10)
    compare(true, true, precision)
    for wrong in (
        Scores(score[::-1], baseline, true.label),
        Scores(score + 1e-5, baseline, true.label),
        Scores(score, baseline + 0.2, true.label),
        Scores(score, baseline, np.roll(true.label, 1)),
        Scores(np.where(np.arange(100) == 7, np.nan, score), baseline, true.label),
        true.first(99),
    ):
        with pytest.raises(AssertionError):
            compare(wrong, true, precision)
