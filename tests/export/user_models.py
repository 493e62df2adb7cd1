"""Classifiers as users bring them: .onnx files from text and from PyTorch's two exporters.

Every one has a PyTorch network beside it that computes the same in float64, so that a bundle's
scores can be compared with plain ODIN.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper, parser
from torch import Tensor, nn

from odin_engines.bundle import GRADIENT, ODIN, read_bundle
from odin_engines.torch_reference import TorchReference
from odin_export import cli

CLASSES, SIZE = 5, 8
# A low temperature and a high magnitude, so that the perturbation moves scores by more than 1e-3:
# a thousand times the tolerance.
TUNED = ("--temperature", 2, "--magnitude", 0.02)
# From `x` to the logits `y`; `w` and `b` are the weights of the only layer.
BODY = "c = Conv (x, w, b)  r = Relu (c)  p = GlobalAveragePool (r)  y = Flatten (p)"
FEATURES = BODY.replace("y =", "f =")
IMAGES, LOGITS = "float[N,3,8,8] x", "float[N,5] y"


@dataclass(frozen=True)
class Outcome:
    """What the command did."""

    status: int
    out: str
    err: str


def odin_export(*arguments: object) -> Outcome:
    """Run odin-export as from a shell."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            status = int(stop.code or 0)
    return Outcome(status, out.getvalue(), err.getvalue())


def assert_refused(outcome: Outcome, *parts: object) -> None:
    """One line on standard error with these parts, status 1, and no stack trace."""
    assert outcome.status == 1, outcome
    assert re.fullmatch(r"odin-export: [^\n]+\n", outcome.err), outcome.err
    for part in parts:
        assert str(part) in outcome.err


def text_model(
    nodes: str = BODY,
    inputs: str = IMAGES,
    outputs: str = LOGITS,
    opset: int = 17,
    ir_version: int = 8,
    domain: str | None = None,
    functions: str = "",
    channels: int = 3,
    **weights: Any,
) -> onnx.ModelProto:
    """A model from ONNX's text format, with random `w` and `b` and other weights as given."""
    other = f', "{domain}" : 1' if domain else ""
    model = parser.parse_model(
        f'<ir_version: {ir_version}, opset_import: ["" : {opset}{other}]> '
        f"network ({inputs}) => ({outputs}) {{ {nodes} }} {functions}"
    )
    generator = np.random.default_rng(5)
    usual = {
        "w": generator.standard_normal((CLASSES, channels, 3, 3)).astype(np.float32),
        "b": generator.standard_normal(CLASSES).astype(np.float32),
    }
    used = {name for node in model.graph.node for name in node.input}
    for name, array in {**usual, **weights}.items():
        if name in used:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return model


class OfText(nn.Module):
    """What `BODY` computes, times a factor."""

    def __init__(self, model: onnx.ModelProto, factor: float = 1.0) -> None:
        super().__init__()
        arrays = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
        self.w = nn.Parameter(torch.from_numpy(arrays["w"].astype(np.float64)))
        self.b = nn.Parameter(torch.from_numpy(arrays["b"].astype(np.float64)))
        self.factor = factor
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * F.relu(F.conv2d(x, self.w, self.b)).mean(dim=(2, 3))


class Small(nn.Module):
    """A small network for PyTorch's exporters, with an end as users leave it."""

    def __init__(self, end: str = "logits", channels: int = 3, width: int = 6) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
            self.norm = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, stride=2)
            self.dropout = nn.Dropout(0.5)
            self.fc = nn.Linear(width, CLASSES)
            nn.init.normal_(self.norm.get_buffer("running_mean"))
            nn.init.uniform_(self.norm.get_buffer("running_var"), 0.5, 2.0)
            nn.init.normal_(self.fc.weight, 0.0, 3.0)
        self.end = end
        self.eval()

    def features(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.norm(self.conv1(x)))))
        return torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)

    def forward(self, x: Tensor) -> Any:
        features = self.features(x)
        z = self.fc(self.dropout(features))
        match self.end:
            case "softmax":
                return z.softmax(dim=1)
            case "log-softmax":
                return z.log_softmax(dim=1)
            case "sigmoid":
                return z.sigmoid()
            case "decomposed softmax":
                return z.exp() / z.exp().sum(dim=1, keepdim=True)
            case "softmax, then reshaped":
                return z.softmax(dim=1)[:, :, None, None]
            case "(N, classes, 1, 1)":
                return z[:, :, None, None]
            case "features and logits":
                return features, z
        return z


def export_torch(
    file: Path,
    network: nn.Module,
    example: Tensor,
    dynamo: bool,
    opset: int = 18,
    dynamic: Sequence[int] = (0,),
    outputs: Sequence[str] = ("y",),
    **arguments: Any,
) -> Path:
    """Write a network with PyTorch's exporter: dynamo, or the older one that traces TorchScript."""
    if dynamo:
        dims = {
            axis: torch.export.Dim(f"axis{axis}", min=1 if axis == 0 else 4) for axis in dynamic
        }
        arguments["dynamic_shapes"] = (dims,) if dims else None
    else:
        axes = {axis: f"axis{axis}" for axis in dynamic}
        batch = {name: {0: "axis0"} for name in outputs} if dynamic else {}
        arguments["dynamic_axes"] = {"x": axes, **batch} if dynamic else None
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network,
                (example,),
                str(file),
                dynamo=dynamo,
                opset_version=opset,
                input_names=["x"],
                output_names=list(outputs),
                verbose=False,
                **arguments,
            )
    finally:
        logging.disable(logging.NOTSET)
    return file


def save(folder: Path, model: onnx.ModelProto, name: str = "user.onnx") -> Path:
    file = folder / name
    file.write_bytes(model.SerializeToString())
    return file


def run_onnx(model: onnx.ModelProto | Path, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of a model in ONNX Runtime."""
    content = model.read_bytes() if isinstance(model, Path) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))


def assert_is_odin(path: Path, network: nn.Module, size: tuple[int, int] | None = None) -> None:
    """Compare a bundle with PyTorch's autograd in float64, on images of one size.

    Logits are compared up to a constant an image, which a log-softmax subtracts.
    """
    bundle = read_bundle(path)
    spec = bundle.spec
    height, width = size or (spec.height[0], spec.width[0])
    generator = np.random.default_rng(1)
    images = generator.standard_normal((3, spec.channels, height, width)).astype(np.float32)
    expected = TorchReference(network.double(), spec).run({"images": images})
    score, baseline, label, logits = run_onnx(bundle.file(ODIN), {"images": images})[:4]
    unmoved = F.softmax(torch.from_numpy(expected["logits"]) / spec.temperature, dim=1).amax(dim=1)
    assert np.abs(expected["score"] - unmoved.numpy()).max() > 1e-3, "the test could not fail"
    np.testing.assert_allclose(score, expected["score"], atol=2e-6)
    np.testing.assert_allclose(baseline, expected["baseline"], atol=2e-6)
    np.testing.assert_array_equal(label, expected["label"])
    np.testing.assert_allclose(_centred(logits), _centred(expected["logits"]), rtol=1e-5, atol=1e-5)
    _, gradient = run_onnx(bundle.file(GRADIENT), {"images": images})
    largest = np.abs(expected["input_gradient"]).max()
    np.testing.assert_allclose(gradient, expected["input_gradient"], atol=1e-5 * largest)


def _centred(logits: np.ndarray) -> np.ndarray:
    return logits - logits.mean(axis=1, keepdims=True)


def exported(folder: Path, model: onnx.ModelProto | Path, *flags: object) -> tuple[Path, Outcome]:
    """Export a model that has to be taken; return the bundle and what was said."""
    file = save(folder, model) if isinstance(model, onnx.ModelProto) else model
    bundle = folder / "bundle"
    outcome = odin_export(file, "--output", bundle, *TUNED, *flags)
    assert outcome.status == 0, outcome.err
    assert outcome.err == ""
    return bundle, outcome


def refusal(folder: Path, model: onnx.ModelProto | Path, *flags: object) -> Outcome:
    """Export a model that has to be refused, naming its file and leaving nothing behind."""
    file = save(folder, model) if isinstance(model, onnx.ModelProto) else model
    before = sorted(folder.rglob("*"))
    outcome = odin_export(file, "--output", folder / "bundle", *flags)
    assert_refused(outcome, file)
    assert sorted(folder.rglob("*")) == before
    return outcome


def raises(*parts: str) -> Any:
    """`pytest.raises` of an OdinError of one line with these parts, in this order."""
    from odin_engines.errors import OdinError

    pattern = r"[^\n]*".join(re.escape(part) for part in parts)
    return pytest.raises(OdinError, match=rf"\A[^\n]*{pattern}[^\n]*\Z")
