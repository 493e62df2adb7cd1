"""Engines against the PyTorch reference, on real images and a real network.

The bars are those this project promises: float32 engines keep AUROC to 0.0005 and FPR at 95 % TPR
to 0.003, bfloat16 to 0.001 and 0.006.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from odin_bench import datasets, parity
from odin_engines.engine import unavailable
from odin_engines.torch_reference import TorchReference
from odin_export.checkpoint import load_network
from odin_export.exporter import Options, export
from odin_runtime import Scorer

CHECKPOINT = "densenet_bc_100_12_cifar10.pth.tar"
OPTIONS = Options(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
TUNED = (OPTIONS.temperature, OPTIONS.magnitude)
ENGINES = [("openvino", "fp32"), ("ort", "fp32"), ("openvino", "bf16")]
# Largest |AUROC difference| and |FPR95 difference|, least label and sign agreement.
BARS = {"fp32": (0.0005, 0.003, 0.999, 0.995), "bf16": (0.001, 0.006, 0.98, 0.8)}


@pytest.fixture(scope="module")
def network_and_bundle(models_folder, tmp_path_factory):
    file = models_folder / CHECKPOINT
    folder = tmp_path_factory.mktemp("parity") / "bundle"
    bundle = export("densenet10", file, folder, OPTIONS, engine="ort")
    return load_network("densenet10", file)[0], bundle


def images_of(data_folder, count):
    """In-distribution images, and the out-of-distribution ones at 36x36 and at 32x32."""
    ins = datasets.load("cifar10", data_folder, skip=1000, limit=count, role="in")
    outs = datasets.load("Imagenet", data_folder, skip=1000, limit=count)
    return ins.images, {"36x36": outs.images, "32x32": outs.cropped(32).images}


def check(found: parity.Parity, precision: str) -> None:
    auroc, fpr95, labels, signs = BARS[precision]
    assert abs(found.auroc_difference) <= auroc
    assert abs(found.fpr95_difference) <= fpr95
    assert found.label_agreement >= labels
    assert found.sign_agreement >= signs


def run(network_and_bundle, data_folder, count, engines, signs=None):
    network, bundle = network_and_bundle
    ins, outs = images_of(data_folder, count)
    reference = TorchReference(network.to(memory_format=torch.channels_last), bundle.spec)
    true_in = parity.trace_reference(reference, ins, *TUNED)
    true_outs = {
        size: parity.trace_reference(reference, images, *TUNED) for size, images in outs.items()
    }
    for engine, precision in engines:
        if unavailable(engine, precision):
            print(engine, precision, "left out:", unavailable(engine, precision))
            continue
        scorer = Scorer.open(bundle, engine, precision=precision)
        found_in = parity.trace_engine(scorer, ins, *TUNED, signs=signs)
        for size, images in outs.items():
            found_out = parity.trace_engine(scorer, images, *TUNED, signs=signs)
            found = parity.compare((found_in, found_out), (true_in, true_outs[size]))
            print(engine, precision, size, found, flush=True)
            check(found, precision)


def test_float32_engines_agree_with_pytorch_on_a_sample(network_and_bundle, data_folder):
    run(network_and_bundle, data_folder, 64, [("openvino", "fp32"), ("ort", "fp32")])


@pytest.mark.slow
def test_engines_agree_with_pytorch_on_all_images(network_and_bundle, data_folder):
    """9,000 images a side, signs of the first 1,000: half an hour; -s shows the numbers."""
    run(network_and_bundle, data_folder, 9000, ENGINES, signs=1000)


def trace(score, label, positive):
    return parity.Trace(np.asarray(score), np.asarray(label), np.asarray(positive))


def test_compare_counts_what_differs():
    ins = trace([0.9, 0.8, 0.7, 0.6], [0, 1, 2, 3], [[True, False]] * 4)
    outs = trace([0.1, 0.2], [0, 0], [[True, True]] * 2)
    other_ins = trace([0.9, 0.8, 0.7, 0.5], [0, 1, 2, 4], [[True, False]] * 3 + [[True, True]])
    found = parity.compare((ins, outs), (other_ins, outs))
    assert found.images == 6
    assert found.max_abs_score_difference == pytest.approx(0.1)
    assert found.sign_agreement == pytest.approx(11 / 12)
    assert found.label_agreement == pytest.approx(5 / 6)
    assert found.auroc_difference == 0


def test_compare_gives_the_drift_of_the_metrics_with_its_sign():
    ins, outs = trace([0.9, 0.8], [0, 0], [[True]] * 2), trace([0.1, 0.2], [0, 0], [[True]] * 2)
    swapped = parity.compare((outs, ins), (ins, outs))
    assert swapped.auroc_difference == -1
    assert swapped.fpr95_difference == 1
