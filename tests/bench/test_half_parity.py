"""Half precision against float32 on real images and a trained network, in the terms of the task.

Each result that the graphs have in half precision is rounded to it (`export.half.rounding`): what a
GPU computes that adds up products in float32, as matrix units do.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

from export import half
from odin_bench import datasets
from odin_bench.metrics import evaluate
from odin_engines.spec import Method, Precision
from odin_export.exporter import Options, Source, from_name, in_own_precision
from odin_export.half_range import check_activations, seed_scale
from odin_export.odin_graph import gradient_graph, odin_graph
from odin_runtime.images import normalised

CHECKPOINT = "densenet_bc_100_12_cifar10.pth.tar"
OPTIONS = Options(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
METHODS: tuple[Method, ...] = ("exact", "first-order")
HALVES: tuple[Precision, ...] = ("fp16", "bf16")
# Largest drift of AUROC, which this project promises; least shares of labels and of signs.
AUROC = 0.001
# 64 images a side show what is broken, not what is promised: of so few, one whose label changes
# can move the AUROC by 1/64 at worst, and did so by 0.0015 in bfloat16.
SAMPLE_AUROC = 0.003
LABELS = {"fp16": 0.995, "bf16": 0.98}
SIGNS = {"fp16": 0.97, "bf16": 0.93}
NOISE = 0.03  # root mean square of what the rounding adds to scores, of their spread
BATCH = 16

Sets = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Trace:
    """What a graph gives for in- and out-of-distribution images.

    Attributes:
        scores: ODIN's, of either set.
        labels: of both together.
    """

    scores: tuple[np.ndarray, np.ndarray]
    labels: np.ndarray

    @property
    def auroc(self) -> float:
        return evaluate(*self.scores).auroc


@pytest.fixture(scope="module")
def trained(models_folder: Path) -> Source:
    """The network in float32."""
    return from_name("densenet10", models_folder / CHECKPOINT, OPTIONS)


def written(trained: Source, precision: Precision, method: Method = "exact") -> Source:
    """The same network, as `odin-export --precision` writes it."""
    spec = dataclasses.replace(trained.spec, precision=precision, method=method)
    source = in_own_precision(dataclasses.replace(trained, spec=spec))
    check_activations(source.forward, source.spec)
    if precision == "fp16":
        spec = dataclasses.replace(source.spec, seed_scale=seed_scale(source.forward, source.spec))
        source = dataclasses.replace(source, spec=spec)
    return source


def images_of(data_folder: Path, count: int) -> Sets:
    """The first that the release leaves for testing; inner 32x32 of those out of distribution."""
    ins = datasets.load("cifar10", data_folder, skip=1000, limit=count, role="in")
    outs = datasets.load("Imagenet", data_folder, skip=1000, limit=count).cropped(32)
    return ins.images, outs.images


def outputs_of(
    model: onnx.ModelProto, source: Source, raw: np.ndarray, names: list[str]
) -> list[np.ndarray]:
    session = half.session(model, threads=0)
    parts = [
        session.run(names, {"images": normalised(raw[start : start + BATCH], source.spec)})
        for start in range(0, len(raw), BATCH)
    ]
    return [np.concatenate(each) for each in zip(*parts, strict=True)]


def trace(source: Source, sets: Sets, own: bool = False) -> Trace:
    """Score images; `own` leaves it to ONNX Runtime where it rounds."""
    model = odin_graph(source.forward, source.spec)
    if source.spec.graph_precision != "fp32" and not own:
        model = half.rounding(model)
    (score_in, label_in), (score_out, label_out) = (
        outputs_of(model, source, raw, ["score", "label"]) for raw in sets
    )
    return Trace((score_in, score_out), np.concatenate([label_in, label_out]))


def compare(title: str, precision: str, found: Trace, true: Trace, bar: float) -> None:
    labels = float(np.mean(found.labels == true.labels))
    drift = found.auroc - true.auroc
    scores = np.concatenate(true.scores)
    noise = float((np.concatenate(found.scores) - scores).std() / scores.std())
    print(f"{title}: AUROC {true.auroc:.5f} {drift:+.5f}, labels {labels:.4f}, noise {noise:.4f}")
    assert abs(drift) <= bar
    assert labels >= LABELS[precision]
    assert 0 < noise <= NOISE  # at 0, nothing was rounded


def test_rounding_rounds() -> None:
    """ONNX Runtime keeps what the rounding is made of: casts there and back."""
    for precision, kept in (("fp16", 10), ("bf16", 7)):
        model = onnx.parser.parse_model(
            f"""<ir_version: 10, opset_import: ["" : {half.OPSET}]>
            g (float[N] images) => (float[N] y) {{
                a = Cast <to = {int(half.DTYPES[precision])}> (images)
                b = Add (a, a) c = Mul (b, b) y = Cast <to = 1> (c) }}"""
        )
        rounded = half.rounding(onnx.shape_inference.infer_shapes(model))
        x = np.array([1, 1 + 2.0**-kept, 1 + 2.0 ** -(kept + 2)], np.float32)
        expected = x[[0, 1, 0]].astype(np.float64)  # the last one is the first, once rounded
        square = (4 * expected**2).astype(half.DTYPES[precision].numpy()).astype(np.float32)
        np.testing.assert_array_equal(half.run(rounded, x)["y"], square)


@pytest.mark.parametrize("precision", HALVES)
def test_signs_of_the_gradient(precision: Precision, trained: Source, data_folder: Path) -> None:
    source = written(trained, precision)
    raw = np.concatenate(images_of(data_folder, 16))
    expected, found = (
        outputs_of(model, source, raw, ["input_gradient"])[0]
        for model in (
            gradient_graph(trained.forward, trained.spec),
            half.rounding(gradient_graph(source.forward, source.spec)),
        )
    )
    share = float(np.mean((found >= 0) == (expected >= 0)))
    zeros = float(np.mean(found == 0))
    print(f"{precision}: seed x {source.spec.seed_scale:g}, signs {share:.4f}, zeros {zeros:.1e}")
    assert share >= SIGNS[precision]
    assert zeros < 1e-3
    size = np.abs(found).sum(axis=(1, 2, 3)) / np.abs(expected).sum(axis=(1, 2, 3))
    assert np.median(np.abs(size - 1)) < 0.03


def drift(trained: Source, sets: Sets, method: Method, own: bool) -> None:
    true = trace(written(trained, "fp32", method), sets)
    bar = AUROC if len(sets[0]) >= 1000 else SAMPLE_AUROC
    for precision in HALVES:
        source = written(trained, precision, method)
        title = f"{precision}, {method}, {len(sets[0])} a side"
        compare(title, precision, trace(source, sets), true, bar)
        if own and precision == "fp16":
            title += ", ONNX Runtime's own float16"
            compare(title, precision, trace(source, sets, own=True), true, bar)


@pytest.mark.parametrize("method", METHODS)
def test_auroc_on_a_sample(method: Method, trained: Source, data_folder: Path) -> None:
    drift(trained, images_of(data_folder, 64), method, own=False)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_auroc_on_a_thousand_images(method: Method, trained: Source, data_folder: Path) -> None:
    """1,000 images a side: ten minutes on two cores; -s shows the numbers."""
    drift(trained, images_of(data_folder, 1000), method, own=True)
