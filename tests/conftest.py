"""What several test files share: a tiny classifier, its graph, its bundle, and image folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odin_engines.bundle import FORWARD, GRADIENT, ODIN, Bundle, write_bundle
from odin_engines.cuda_probe import ask_driver
from odin_engines.spec import Spec
from odin_engines.torch_reference import TorchReference

pytest_plugins = ["native.fixtures", "drivers.fixtures", "tracing"]

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores are at work already
    torch.set_num_threads(1)

CLASSES = 10
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


@pytest.fixture(autouse=True, scope="session")
def own_cache_of_compiled_graphs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that an earlier run compiled is taken, and nothing is left in the user's cache."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("odin_runtime.scorer.cache_folder", lambda name: folder)
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="run the tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow = pytest.mark.skip(reason="takes minutes; run with --run-slow")
    problem = ask_driver().problem
    gpu = pytest.mark.skip(reason=f"needs an NVIDIA GPU: {problem}")
    for item in items:
        # Not item.keywords: these hold the names of folders too.
        if item.get_closest_marker("slow") and not config.getoption("--run-slow"):
            item.add_marker(slow)
        if item.get_closest_marker("gpu") and problem:
            item.add_marker(gpu)
    # So that no process waits in the end for another's.
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


class TinyNetwork(nn.Module):
    """A classifier of the four networks' kind: the same ops, the same sizes of images.

    Concatenation as in a DenseNet, addition as in a ResNet, 2x2 poolings in between; at the end an
    8x8 pooling with stride 8, flattening, and a linear layer.
    """

    def __init__(self, classes: int, width: int = 6) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False)
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.avg_pool2d(torch.cat([x, self.conv2(x)], dim=1), 2)
        x = F.avg_pool2d(x + self.conv3(F.relu(self.bn2(x))), 2)
        return self.fc(F.avg_pool2d(x, 8).view(-1, self.fc.in_features))


def make_tiny_network(classes: int = CLASSES, width: int = 6) -> TinyNetwork:
    """Return a network with random weights, always the same, whose labels vary with the image."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = TinyNetwork(classes, width).eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0.0, 0.3)
                nn.init.normal_(module.running_mean, 0.0, 0.3)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
        nn.init.normal_(network.fc.weight, 0.0, 3.0)
    pixels = make_raw_images(64, seed=99).transpose(0, 3, 1, 2) / 255
    images = (pixels - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    with torch.no_grad():
        network.fc.bias -= network(torch.from_numpy(images).float()).mean(dim=0)
    return network


def make_raw_images(count: int, height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    """Return coloured blocks with noise, uint8 (N, H, W, 3)."""
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (count, 4, 4, 3))
    blocks = blocks.repeat(-(-height // 4), axis=1).repeat(-(-width // 4), axis=2)
    blocks = blocks[:, :height, :width]
    return np.clip(blocks + generator.normal(0, 20, blocks.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def raw_images() -> Callable[..., np.ndarray]:
    """A function: count, height, width, seed -> images, uint8 (N, H, W, 3)."""
    return make_raw_images


@pytest.fixture(scope="session")
def build_tiny() -> Callable[..., nn.Module]:
    """A function: classes, width -> a tiny network."""
    return make_tiny_network


@pytest.fixture(scope="session")
def tiny_network() -> nn.Module:
    """The tiny classifier, float32, in evaluation mode."""
    return make_tiny_network()


@pytest.fixture(scope="session")
def tiny_forward(tiny_network: nn.Module) -> onnx.ModelProto:
    """Its forward graph."""
    from odin_export.forward import forward_graph

    return forward_graph(tiny_network, 63)


@pytest.fixture(scope="session")
def tiny_spec() -> Callable[..., Spec]:
    """A function: fields to change -> the tiny network's spec.

    The temperature is low and the magnitude high, so that the perturbation moves a score by some
    1e-3: a thousand times the tolerances of the tests.
    """

    def make(**changes: Any) -> Spec:
        fields: dict[str, Any] = {
            "model": "tiny",
            "architecture": "Tiny CNN",
            "checkpoint": "tiny.pth",
            "checkpoint_sha256": "0" * 64,
            "classes": CLASSES,
            "mean": MEAN,
            "std": STD,
            "height": (32, 63),
            "width": (32, 63),
            "temperature": 10.0,
            "magnitude": 0.01,
        }
        return Spec(**{**fields, **changes})

    return make


@pytest.fixture(scope="session")
def tiny_reference(tiny_network: nn.Module, tiny_spec: Callable[..., Spec]) -> TorchReference:
    """PyTorch's own answer for the tiny network."""
    return TorchReference(tiny_network, tiny_spec())


@pytest.fixture(scope="session")
def make_tiny_bundle(
    tiny_forward: onnx.ModelProto,
    tiny_spec: Callable[..., Spec],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Bundle]:
    """A function: fields of the spec to change -> the tiny network's bundle, in a new folder."""
    from odin_export.odin_graph import gradient_graph, odin_graph

    def make(**changes: Any) -> Bundle:
        spec = tiny_spec(**changes)
        graphs = {
            ODIN: odin_graph(tiny_forward, spec),
            GRADIENT: gradient_graph(tiny_forward, spec),
            FORWARD: tiny_forward,
        }
        contents = {name: graph.SerializeToString() for name, graph in graphs.items()}
        return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny", spec, contents)

    return make


@pytest.fixture(scope="session")
def tiny_bundle(make_tiny_bundle: Callable[..., Bundle]) -> Bundle:
    """The tiny network's bundle; tests must not change it."""
    return make_tiny_bundle()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with the image sets, or the test is skipped."""
    return _folder("ODIN_DATA", "the image sets")


@pytest.fixture(scope="session")
def models_folder() -> Path:
    """The folder with the trained networks, or the test is skipped."""
    return _folder("ODIN_MODELS", "the trained networks")


def _folder(variable: str, content: str) -> Path:
    value = os.environ.get(variable)
    if not value or not Path(value).is_dir():
        pytest.skip(f"set {variable} to the folder with {content}")
    return Path(value)
