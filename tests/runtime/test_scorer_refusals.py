"""What a scorer refuses: images that do not fit, unknown engines, damaged bundles."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from odin_engines.bundle import Bundle
from odin_runtime import Scorer
from runtime.scoring import CPU_ENGINES, BundleMaker, Images, close, normalise, recorded, refusal


@pytest.fixture(scope="module")
def scorer(tiny_bundle: Bundle) -> Scorer:
    return Scorer.open(tiny_bundle.path, "ort")


@pytest.fixture(scope="module")
def raw_bundle(make_tiny_bundle: BundleMaker) -> Bundle:
    """A bundle whose odin.onnx takes uint8."""
    return make_tiny_bundle(input_type="uint8")


WRONG_IMAGES = {
    "float64": (np.zeros((2, 3, 32, 32)), "(2, 3, 32, 32) float64", "astype"),
    "float16": (np.zeros((2, 3, 32, 32), np.float16), "float16", "astype"),
    "int32": (np.zeros((2, 32, 32, 3), np.int32), "(2, 32, 32, 3) int32", "uint8"),
    "int8": (np.zeros((2, 32, 32, 3), np.int8), "(2, 32, 32, 3) int8", "uint8"),
    "bool": (np.zeros((2, 32, 32, 3), bool), "(2, 32, 32, 3) bool", "uint8"),
    "complex": (np.zeros((2, 3, 32, 32), complex), "complex128", "float32"),
    "text": (np.array([["a"]]), "(1, 1) <U1", "give"),
    "object": (np.array([None]), "(1,) object", "give"),
    "planes of bytes": (np.zeros((2, 3, 32, 32), np.uint8), "(2, 3, 32, 32) uint8", "transpose"),
    "float pixels": (np.zeros((2, 32, 32, 3), np.float32), "(2, 32, 32, 3) float32", "transpose"),
    "grey": (np.zeros((2, 32, 32, 1), np.uint8), "(2, 32, 32, 1) uint8", "number of channels"),
    "alpha": (np.zeros((2, 4, 32, 32), np.float32), "(2, 4, 32, 32)", "number of channels"),
    "one raw": (np.zeros((32, 32, 3), np.uint8), "(32, 32, 3) uint8", "images[None]"),
    "one normalised": (np.zeros((3, 32, 32), np.float32), "(3, 32, 32)", "images[None]"),
    "flat": (np.zeros(3072, np.float32), "(3072,) float32", "(N, 3, H, W) float32"),
    "videos": (np.zeros((1, 2, 32, 32, 3), np.uint8), "(1, 2, 32, 32, 3)", "(N, H, W, 3)"),
    "list": ([[1, 2], [3, 4]], "list", "numpy array"),
    "none": (None, "NoneType", "numpy array"),
    "small": (np.zeros((1, 28, 32, 3), np.uint8), "28 pixels high", "takes 32 to 63"),
    "narrow": (np.zeros((1, 3, 32, 31), np.float32), "31 pixels wide", "takes 32 to 63"),
    "large": (np.zeros((1, 64, 32, 3), np.uint8), "64 pixels high", "resize or crop"),
    "wide": (np.zeros((1, 3, 40, 224), np.float32), "224 pixels wide", "resize or crop"),
    "no pixels": (np.zeros((1, 0, 0, 3), np.uint8), "0 pixels high", "takes 32 to 63"),
    "none, and wrong": (np.zeros((0, 3, 32, 32), np.uint8), "(0, 3, 32, 32)", "transpose"),
}


@pytest.mark.parametrize("kind", WRONG_IMAGES)
def test_images_that_do_not_fit(kind: str, scorer: Scorer) -> None:
    images, given, wanted = WRONG_IMAGES[kind]
    opened, recorder = recorded(scorer)
    message = refusal(lambda: opened.score(images))  # type: ignore[arg-type]
    assert message.startswith("images are ")
    assert given in message
    assert wanted in message
    assert recorder.shapes == []


def test_a_network_of_one_size_says_so(scorer: Scorer) -> None:
    spec = dataclasses.replace(scorer.spec, height=(32, 32))
    bundle = dataclasses.replace(scorer.bundle, spec=spec)
    opened = dataclasses.replace(scorer, bundle=bundle)
    message = refusal(lambda: opened.score(np.zeros((1, 36, 36, 3), np.uint8)))
    assert "36 pixels high, where tiny takes 32;" in message


@pytest.mark.parametrize("engine", CPU_ENGINES)
def test_a_bundle_that_normalises_takes_no_floats(
    engine: str, raw_bundle: Bundle, raw_images: Images
) -> None:
    opened = Scorer.open(raw_bundle, engine)
    images = normalise(raw_images(2), raw_bundle)
    message = refusal(lambda: opened.score(images))
    assert str(raw_bundle.path) in message
    assert "takes raw uint8 images" in message
    assert "--input-type float32" in message


def test_the_torch_engine_takes_both_from_any_bundle(
    raw_bundle: Bundle, tiny_network: nn.Module, raw_images: Images
) -> None:
    opened = Scorer.open(raw_bundle, "torch", network=tiny_network)
    raw = raw_images(3)
    close(opened.score(raw), opened.score(normalise(raw, raw_bundle)))


def test_torch_without_a_network(tiny_bundle: Bundle) -> None:
    message = refusal(lambda: Scorer.open(tiny_bundle, "torch"))
    assert "engine torch needs the PyTorch network" in message
    assert "network=module" in message


def test_torch_in_another_precision(tiny_bundle: Bundle, tiny_network: nn.Module) -> None:
    message = refusal(
        lambda: Scorer.open(tiny_bundle, "torch", precision="bf16", network=tiny_network)
    )
    assert message == "engine torch is the float32 reference; it does not take bf16"


def test_precision_is_the_bundles_or_what_is_asked(make_tiny_bundle: BundleMaker) -> None:
    bundle = make_tiny_bundle(precision="bf16")
    message = refusal(lambda: Scorer.open(bundle, "ort"))
    assert "fp32 on a CPU, not in bf16" in message
    assert Scorer.open(bundle, "ort", precision="fp32").precision == "fp32"


@pytest.mark.parametrize("engine", ["onnx", "", "Torch"])
def test_an_unknown_engine(engine: str, tiny_bundle: Bundle) -> None:
    assert f"no engine {engine!r}" in refusal(lambda: Scorer.open(tiny_bundle, engine))


def test_no_bundle(tmp_path: Path) -> None:
    assert "no bundle at" in refusal(lambda: Scorer.open(tmp_path / "nothing"))
    assert "no bundle at" in refusal(lambda: Scorer.open(str(tmp_path / "nothing"), "ort"))


def test_a_damaged_bundle(tmp_path: Path, tiny_bundle: Bundle) -> None:
    path = Path(shutil.copytree(tiny_bundle.path, tmp_path / "tiny"))
    content = bytearray((path / "odin.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "odin.onnx").write_bytes(content)
    assert "does not match its SHA-256" in refusal(lambda: Scorer.open(path))
