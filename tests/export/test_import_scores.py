"""How a user's images are normalised and laid out, and what a scorer makes of the bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.user_models import (
    BODY,
    IMAGES,
    LOGITS,
    OfText,
    Small,
    assert_is_odin,
    assert_refused,
    export_torch,
    exported,
    odin_export,
    run_onnx,
    save,
    text_model,
)
from odin_engines.bundle import ODIN, read_bundle
from odin_engines.errors import OdinError
from odin_engines.torch_reference import TorchReference
from odin_export.exporter import Options, export_file
from odin_export.presets import PRESETS
from odin_runtime import Scorer

# Flags


@pytest.mark.parametrize(
    ("flags", "mean", "std"),
    [
        ((), PRESETS["imagenet"].mean, PRESETS["imagenet"].std),
        (("--preset", "raw"), (0.0,) * 3, (1 / 255,) * 3),
        (("--scale", 255), (0.0,) * 3, (1 / 255,) * 3),
        (("--mean", "0.1,0.2,0.3", "--std", "0.4,0.5,0.6"), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        (("--mean", 0.5, "--std", 0.25), (0.5,) * 3, (0.25,) * 3),
        (("--mean", 51, "--std", 102, "--scale", 255), (0.2,) * 3, (0.4,) * 3),
    ],
    ids=["none", "preset", "scale", "three", "one", "of bytes"],
)
def test_normalisation(
    tmp_path: Path, flags: tuple[object, ...], mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    bundle, outcome = exported(tmp_path, text_model(), *flags)
    spec = read_bundle(bundle).spec
    assert (spec.mean, spec.std) == (pytest.approx(mean), pytest.approx(std))
    assert ("ASSUMED" in outcome.out) == (not flags)
    raw = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    normalised = (raw.transpose(0, 3, 1, 2) / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(
        std, (3, 1, 1)
    )
    expected = TorchReference(OfText(text_model()), spec).run({"images": normalised})
    found = Scorer.open(bundle, "ort").score(raw)
    np.testing.assert_allclose(found.score, expected["score"], rtol=1e-4)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--preset", "imagenet"), ("3 values", "1 channels")),
        (("--mean", "0,0,0", "--std", "1,1,1"), ("3 values", "1 channels")),
        (("--mean", "123", "--std", "58"), ("--mean 123", "[0, 255]")),
        (("--checkpoint", "x.pth"), ("--checkpoint",)),
        (("--scale", 0), ("--scale 0",)),
        (("--preset", "unit", "--scale", 255), ("--preset", "--scale")),
    ],
)
def test_flags_that_do_not_fit(
    tmp_path: Path, flags: tuple[object, ...], parts: tuple[str, ...]
) -> None:
    file = save(tmp_path, text_model(inputs="float[N,1,8,8] x", channels=1))
    outcome = odin_export(file, "--output", tmp_path / "bundle", *flags)
    assert_refused(outcome, *parts)
    assert sorted(tmp_path.iterdir()) == [file]


def test_a_mean_and_std_for_each_of_many_channels(tmp_path: Path) -> None:
    model = text_model(inputs="float[N,6,8,8] x", channels=6)
    mean, std = "0,.1,.2,.3,.4,.5", "1,2,3,4,5,6"
    flags = ("--layout", "NCHW", "--mean", mean, "--std", std)
    bundle, _ = exported(tmp_path, model, *flags)
    assert read_bundle(bundle).spec.std == (1, 2, 3, 4, 5, 6)
    assert_is_odin(bundle, OfText(model))


@pytest.mark.parametrize(
    "values",
    [{"mean": (0.5,)}, {"std": (0.5,)}, {"mean": (0.5,), "std": (0.5,) * 3}],
    ids=["no std", "no mean", "other number"],
)
def test_options_that_are_half_given(tmp_path: Path, values: dict[str, tuple[float, ...]]) -> None:
    file = save(tmp_path, text_model(inputs="float[N,1,8,8] x", channels=1))
    with pytest.raises(OdinError, match="std"):
        export_file(file, tmp_path / "bundle", Options(**values))  # type: ignore[arg-type]
    assert sorted(tmp_path.iterdir()) == [file]


# Scoring


NHWC = "t = Transpose <perm = [0, 3, 1, 2]> (x) " + BODY.replace("(x,", "(t,")


class Reversed(nn.Module):
    """A network of blue, green, red."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.flip(1))


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("nodes", [BODY, NHWC], ids=["NCHW", "NHWC"])
def test_layouts_and_orders_of_channels(tmp_path: Path, nodes: str, bgr: bool) -> None:
    model = text_model(nodes, IMAGES if nodes == BODY else "float[N,8,8,3] x")
    flags = ("--bgr",) if bgr else ()
    bundle, _ = exported(tmp_path, model, *flags)
    network = Reversed(OfText(model)) if bgr else OfText(model)
    assert_is_odin(bundle, network)
    raw = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    usual = Scorer.open(bundle, "ort").score(raw)
    (tmp_path / "raw").mkdir()
    file = save(tmp_path / "raw", model)
    own, _ = exported(tmp_path / "raw", file, *flags, "--input-type", "uint8")
    np.testing.assert_allclose(Scorer.open(own, "ort").score(raw).score, usual.score, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_a_scorer_of_other_channels_gives_further_scores(
    tmp_path: Path, channels: int, engine: str
) -> None:
    example = torch.zeros(2, channels, 16, 16)
    network = Small(channels=channels)
    file = export_torch(tmp_path / "user.onnx", network, example, True)
    bundle, _ = exported(tmp_path, file, "--scores", "energy,gradnorm,entropy")
    raw = np.random.default_rng(0).integers(0, 256, (5, 16, 16, channels), np.uint8)
    scores = Scorer.open(bundle, engine, batch_size=2).score(raw)
    planes = torch.from_numpy(raw.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    with torch.no_grad():
        logits, features = network(planes), network.features(planes)
    p = F.softmax(logits, dim=1)
    uniform = (p - 1 / p.shape[1]).abs().sum(dim=1)
    assert list(scores.extra) == ["energy", "gradnorm", "entropy"]
    expected = {
        "energy": logits.logsumexp(dim=1),
        "gradnorm": features.abs().sum(dim=1) * uniform,
        "entropy": (p * p.log()).sum(dim=1),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(scores.extra[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
    reference = TorchReference(network.double(), read_bundle(bundle).spec)
    np.testing.assert_allclose(
        scores.score, reference.run({"images": planes.double().numpy()})["score"], atol=2e-5
    )


def test_grey_images_without_a_channel_axis(tmp_path: Path) -> None:
    bundle, _ = exported(tmp_path, text_model(inputs="float[N,1,8,8] x", channels=1))
    with pytest.raises(OdinError, match=r"images\[\.\.\., None\]"):
        Scorer.open(bundle, "ort").score(np.zeros((5, 8, 8), np.uint8))


def test_what_a_bundle_says(tmp_path: Path) -> None:
    model = text_model(outputs=LOGITS)
    bundle, outcome = exported(tmp_path, model, "--scores", "energy")
    spec = read_bundle(bundle).spec
    assert (spec.model, spec.classes, spec.channels) == ("user.onnx", 5, 3)
    assert (spec.height, spec.width, spec.scores) == ((8, 8), (8, 8), ("energy",))
    assert "5 classes" in outcome.out
    assert "logits, energy" in outcome.out
    names = [each.name for each in onnx.load(bundle / ODIN).graph.output]
    assert names == ["score", "baseline", "label", "logits", "energy"]
    images = np.zeros((2, 3, 8, 8), np.float32)
    assert [each.shape for each in run_onnx(bundle / ODIN, {"images": images})] == [
        *((2,), (2,), (2,), (2, 5), (2,))
    ]
