"""Engines agree with each other, and say precisely why they cannot run; the PyTorch reference."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from odin_engines import engine as engines
from odin_engines.bundle import Bundle
from odin_engines.engine import (
    ENGINE_NAMES,
    ENGINES,
    Tuning,
    open_graph,
    resolve,
    unavailable,
)
from odin_engines.errors import OdinError
from odin_engines.spec import Spec
from odin_engines.torch_reference import TorchReference

CPU_ENGINES = ("openvino", "ort")
SpecMaker = Callable[..., Spec]


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Normalised images, float32 (5, 3, 32, 32)."""
    return np.random.default_rng(3).standard_normal((5, 3, 32, 32)).astype(np.float32)


def uninstall(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let these packages look as if they were not installed."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        engines, "find_spec", lambda name: None if name in names else find_spec(name)
    )


# Choosing an engine


def test_auto_takes_the_fastest() -> None:
    assert resolve("auto", "fp32") == "openvino"


def test_auto_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    uninstall(monkeypatch, "openvino")
    assert resolve("auto", "fp32") == "ort"


def test_auto_with_nothing_installed_lists_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    uninstall(monkeypatch, "openvino", "onnxruntime")
    with pytest.raises(OdinError) as caught:
        resolve("auto", "fp32")
    first, *reasons = str(caught.value).splitlines()
    assert first == "no engine is available here"
    assert [line.split(":")[0].strip() for line in reasons] == list(ENGINES)
    assert all("pip install" in line for line in reasons[:2])


def test_auto_in_a_precision_that_none_has(monkeypatch: pytest.MonkeyPatch) -> None:
    uninstall(monkeypatch, "openvino")
    with pytest.raises(OdinError, match="ort: ONNX Runtime computes in fp32 on a CPU, not in bf16"):
        resolve("auto", "bf16")


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_an_engine_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    module = {"openvino": "openvino", "ort": "onnxruntime"}[name]
    uninstall(monkeypatch, module)
    reason = f"engine {name} is not available: {module} is not installed: pip install"
    with pytest.raises(OdinError, match=reason):
        open_graph(name, Path("odin.onnx"))


def test_torch_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("torch", "fp32") == "torch"
    uninstall(monkeypatch, "torch")
    with pytest.raises(OdinError, match=r"engine torch needs PyTorch: pip install"):
        resolve("torch", "fp32")


@pytest.mark.parametrize("name", ["onnxruntime", "", "ORT", "tensorrt"])
def test_an_unknown_engine(name: str) -> None:
    with pytest.raises(OdinError) as caught:
        resolve(name, "fp32")
    assert f"no engine {name!r}; choose from " in str(caught.value)
    assert all(known in str(caught.value) for known in ENGINE_NAMES)


@pytest.mark.parametrize("name", ["trt", "rtx"])
def test_tensorrt_needs_a_gpu(name: str) -> None:
    reason = unavailable(name, "fp32")
    if reason is None:
        pytest.skip("this machine has what it takes")
    assert "\n" not in reason
    assert "NVIDIA" in reason
    assert "openvino" in reason  # what to use instead
    with pytest.raises(OdinError, match=f"engine {name} is not available: "):
        open_graph(name, Path("odin.onnx"))


def test_ort_refuses_bf16() -> None:
    with pytest.raises(OdinError, match=r"fp32 on a CPU, not in bf16, .*: use --engine openvino"):
        open_graph("ort", Path("odin.onnx"), "bf16")


def test_openvino_refuses_a_float32_graph_in_fp16(tiny_bundle: Bundle) -> None:
    with pytest.raises(OdinError, match=r"odin.onnx is a float32 graph, .* not compute in fp16"):
        open_graph("openvino", tiny_bundle.file("odin.onnx"), "fp16")


def test_openvino_in_bf16(
    tiny_bundle: Bundle, tiny_reference: TorchReference, images: np.ndarray
) -> None:
    reason = unavailable("openvino", "bf16")
    if reason is not None:
        assert reason == "this CPU has no bfloat16 instructions: use --precision fp32"
        return
    found = open_graph("openvino", tiny_bundle.file("odin.onnx"), "bf16").run({"images": images})
    logits = tiny_reference.run({"images": images})["logits"]
    difference = np.abs(found["logits"] - logits).max()
    assert 1e-5 < difference < 0.05 * np.abs(logits).max()
    assert found["score"].dtype == np.float32


# Running a graph


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_outputs_are_those_of_pytorch(
    name: str, tiny_bundle: Bundle, tiny_reference: TorchReference, images: np.ndarray
) -> None:
    found = open_graph(name, tiny_bundle.file("odin.onnx")).run({"images": images})
    expected = tiny_reference.run({"images": images})
    assert list(found) == ["score", "baseline", "label", "logits"]
    assert {key: (value.dtype, value.shape) for key, value in found.items()} == {
        "score": (np.float32, (5,)),
        "baseline": (np.float32, (5,)),
        "label": (np.int64, (5,)),
        "logits": (np.float32, (5, 10)),
    }
    np.testing.assert_array_equal(found["label"], expected["label"])
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-5, atol=1e-5)
    for key in ("score", "baseline"):
        np.testing.assert_allclose(found[key], expected[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CPU_ENGINES)
@pytest.mark.parametrize("threads", [1, 2])
def test_number_of_threads_does_not_matter(
    name: str, threads: int, tiny_bundle: Bundle, images: np.ndarray
) -> None:
    graph = tiny_bundle.file("odin.onnx")
    found = open_graph(name, graph, tuning=Tuning(threads=threads)).run({"images": images})
    expected = open_graph(name, graph).run({"images": images})
    np.testing.assert_allclose(found["score"], expected["score"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_a_later_run_leaves_earlier_results_alone(
    name: str, tiny_bundle: Bundle, images: np.ndarray
) -> None:
    session = open_graph(name, tiny_bundle.file("odin.onnx"))
    first = session.run({"images": images})
    kept = {key: value.copy() for key, value in first.items()}
    given = images.copy()
    session.run({"images": -images})
    for key, value in kept.items():
        np.testing.assert_array_equal(first[key], value)
    np.testing.assert_array_equal(images, given)


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_several_threads_share_a_session(
    name: str, tiny_bundle: Bundle, images: np.ndarray
) -> None:
    session = open_graph(name, tiny_bundle.file("odin.onnx"))
    batches = [np.roll(images, shift, axis=3)[: 1 + shift % 5] for shift in range(32)]
    expected = [session.run({"images": batch})["score"] for batch in batches]
    assert len({float(score[0]) for score in expected}) == len(batches)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda batch: session.run({"images": batch})["score"], batches))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-7)


_PRESS = """
import signal, sys
from pathlib import Path
import numpy as np
from odin_engines.engine import open_graph

images = np.zeros((1, 3, 32, 32), np.float32)
first, second = [open_graph("openvino", Path(sys.argv[1])) for _ in range(2)]
first.run({"images": images})
second.run({"images": images})
del first
del second
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("heard")
"""


def test_ctrl_c_after_sessions_of_openvino(tiny_bundle: Bundle) -> None:
    """With a core for each, the interpreter's handler would run on a stack that is freed."""
    command = [sys.executable, "-c", _PRESS, str(tiny_bundle.file("odin.onnx"))]
    environment = os.environ | {"PYTHONPATH": str(Path(engines.__file__).parents[1])}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr


@pytest.mark.parametrize("name", CPU_ENGINES)
@pytest.mark.parametrize("content", [b"", b"not a graph", None], ids=["empty", "text", "cut"])
def test_a_broken_graph(
    name: str, content: bytes | None, tmp_path: Path, tiny_bundle: Bundle
) -> None:
    file = tmp_path / "broken.onnx"
    whole = tiny_bundle.file("odin.onnx").read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(OdinError, match=r"cannot open .*broken\.onnx"):
        open_graph(name, file)


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_a_graph_that_is_not_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(OdinError, match=r"cannot open .*none\.onnx"):
        open_graph(name, tmp_path / "none.onnx")


@pytest.mark.parametrize("name", CPU_ENGINES)
@pytest.mark.parametrize(
    "feeds",
    [
        {"images": np.zeros((1, 4, 32, 32), np.float32)},
        {"images": np.zeros((3, 32, 32), np.float32)},
        {"pictures": np.zeros((1, 3, 32, 32), np.float32)},
    ],
    ids=["channels", "rank", "name"],
)
def test_feeds_that_do_not_fit(name: str, feeds: dict[str, Any], tiny_bundle: Bundle) -> None:
    session = open_graph(name, tiny_bundle.file("odin.onnx"))
    with pytest.raises(OdinError, match=r"failed on .*odin\.onnx, \{'\w+': \("):
        session.run(feeds)


# The PyTorch reference


def double_network(seed: int = 0) -> nn.Module:
    """tanh of a linear layer, then another: its gradient is easily written by hand."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = (nn.Flatten(), nn.Linear(3 * 2 * 2, 7), nn.Tanh(), nn.Linear(7, 4))
        return nn.Sequential(*layers).double().eval()


def by_hand(network: nn.Module, x: np.ndarray, spec: Spec) -> dict[str, np.ndarray]:
    """ODIN as METHOD tells it, in numpy: the chain rule written out, image by image."""
    a, p, b, q = (parameter.detach().numpy() for parameter in network.parameters())
    found: dict[str, list[Any]] = {"score": [], "baseline": [], "label": [], "input_gradient": []}
    for image in x:
        hidden = np.tanh(a @ image.ravel() + p)
        logits = b @ hidden + q
        label = int(logits.argmax())
        seed = softmax(logits / spec.temperature)
        seed[label] -= 1
        gradient = a.T @ ((b.T @ (seed / spec.temperature)) * (1 - hidden**2))
        gradient = gradient.reshape(image.shape)
        std = np.reshape(spec.std, (3, 1, 1))
        if spec.method == "exact":
            moved = image - spec.magnitude * np.where(gradient >= 0, 1, -1) / std
            score = softmax((b @ np.tanh(a @ moved.ravel() + p) + q) / spec.temperature).max()
        else:
            score = softmax(logits / spec.temperature).max()
            score *= np.exp(spec.magnitude * (np.abs(gradient) / std).sum())
        for key, value in zip(found, (score, softmax(logits).max(), label, gradient), strict=True):
            found[key].append(value)
    return {key: np.array(values) for key, values in found.items()}


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


@pytest.mark.parametrize("method", ["exact", "first-order"])
@pytest.mark.parametrize(("temperature", "magnitude"), [(1000, 0.0014), (2, 0.05), (1, 0.0)])
def test_reference_is_odin_as_published(
    tiny_spec: SpecMaker, method: str, temperature: float, magnitude: float
) -> None:
    spec = tiny_spec(method=method, temperature=temperature, magnitude=magnitude, classes=4)
    network = double_network()
    x = np.random.default_rng(1).standard_normal((6, 3, 2, 2))
    found = TorchReference(network, spec).run({"images": x})
    expected = by_hand(network, x, spec)
    for key, values in expected.items():
        np.testing.assert_allclose(found[key], values, rtol=1e-12, atol=1e-15, err_msg=key)
    assert found["label"].dtype == np.int64
    assert len(set(found["label"])) > 1


def test_reference_takes_temperature_and_magnitude_from_the_feeds(tiny_spec: SpecMaker) -> None:
    network = double_network()
    x = np.random.default_rng(1).standard_normal((2, 3, 2, 2))
    given = {"temperature": np.array(3.0), "magnitude": np.array(0.2)}
    found = TorchReference(network, tiny_spec()).run({"images": x, **given})["score"]
    expected = by_hand(network, x, tiny_spec(temperature=3.0, magnitude=0.2))["score"]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    other = TorchReference(network, tiny_spec()).run({"images": x})["score"]
    assert np.abs(found - other).min() > 1e-3


def test_reference_scores_each_image_on_its_own(
    tiny_reference: TorchReference, images: np.ndarray
) -> None:
    together = tiny_reference.run({"images": images})
    for index in range(len(images)):
        alone = tiny_reference.run({"images": images[index : index + 1]})
        for key, values in together.items():
            np.testing.assert_allclose(alone[key][0], values[index], rtol=1e-4, atol=1e-6)


def test_reference_changes_neither_images_nor_network(
    tiny_reference: TorchReference, images: np.ndarray
) -> None:
    given = images.copy()
    tiny_reference.run({"images": images})
    np.testing.assert_array_equal(images, given)
    assert all(parameter.grad is None for parameter in tiny_reference.network.parameters())


class Inner(nn.Module):
    """Linear in the inner pixels; the border is not looked at. Keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 2 * 2, 4).double()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.fc(x[:, :, 1:-1, 1:-1].flatten(1))


def test_reference_moves_pixels_of_zero_gradient_down(tiny_spec: SpecMaker) -> None:
    network = Inner()
    spec = tiny_spec(classes=4)
    x = np.random.default_rng(1).standard_normal((2, 3, 4, 4))
    gradient = TorchReference(network, spec).run({"images": x})["input_gradient"]
    border = np.ones((4, 4), bool)
    border[1:-1, 1:-1] = False
    assert (gradient[:, :, border] == 0).all()
    assert (gradient[:, :, ~border] != 0).all()
    moved = network.seen[1].numpy() - x
    step = spec.magnitude / np.reshape(spec.std, (1, 3, 1, 1))
    np.testing.assert_allclose(moved[:, :, border], np.broadcast_to(-step[..., 0], (2, 3, 12)))
    np.testing.assert_allclose(moved, -step * np.where(gradient >= 0, 1, -1))


class Kink(nn.Module):
    """max(-x, 0), then linear: at x = 0 the gradient is 0, but a step down is seen."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.fc = nn.Linear(3 * 2 * 2, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(-x).flatten(1))


def test_reference_takes_the_sign_of_zero_as_plus_one(tiny_spec: SpecMaker) -> None:
    network, spec = Kink(), tiny_spec(classes=4)
    found = TorchReference(network, spec).run({"images": np.zeros((1, 3, 2, 2))})
    assert (found["input_gradient"] == 0).all()
    weight, bias = network.fc.weight.detach().numpy(), network.fc.bias.detach().numpy()
    step = np.broadcast_to(spec.magnitude / np.reshape(spec.std, (3, 1, 1)), (3, 2, 2))
    expected = softmax((weight @ step.ravel() + bias) / spec.temperature).max()
    np.testing.assert_allclose(found["score"], [expected], rtol=1e-12)
    assert abs(expected - softmax(bias / spec.temperature).max()) > 1e-5
