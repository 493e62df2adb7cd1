"""The four networks, whole: their gradients in float64 against those of PyTorch autograd."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from odin_export import networks
from odin_export.backward import input_gradient
from odin_export.checkpoint import load_network
from odin_export.forward import forward_graph

REAL_CHECKPOINTS = {
    "densenet10": "densenet_bc_100_12_cifar10.pth.tar",
    "densenet100": "densenet_bc_100_12_cifar100.pth.tar",
}


class Resize(OpRun):
    """Nearest-neighbour Resize by whole numbers; the evaluator's own goes element by element."""

    def _run(self, x, roi, scales, sizes=None, **attributes):
        assert attributes["mode"] == "nearest"
        assert attributes["coordinate_transformation_mode"] == "asymmetric"
        assert list(scales[:2]) == [1, 1]
        assert all(scale == int(scale) for scale in scales)
        return (x.repeat(int(scales[2]), axis=2).repeat(int(scales[3]), axis=3),)


class ConvTranspose(OpRun):
    """y[:, o, s i + k] += x[:, c, i] W[c, o, k], then cut by the pads; the evaluator's own loops
    over elements. No groups, no dilation.
    """

    def _run(self, x, weight, bias=None, **attributes):
        assert bias is None
        assert attributes["group"] == 1
        (stride_h, stride_w), pads = attributes["strides"], attributes["pads"]
        batch, _, height, width = x.shape
        out_channels, kernel_h, kernel_w = weight.shape[1:]
        extra_h, extra_w = attributes["output_padding"]
        full_h = stride_h * (height - 1) + kernel_h + extra_h
        full_w = stride_w * (width - 1) + kernel_w + extra_w
        y = np.zeros((batch, out_channels, full_h, full_w), x.dtype)
        for i in range(kernel_h):
            for j in range(kernel_w):
                rows = slice(i, i + stride_h * height, stride_h)
                columns = slice(j, j + stride_w * width, stride_w)
                y[:, :, rows, columns] += np.tensordot(x, weight[:, :, i, j], (1, 0)).transpose(
                    0, 3, 1, 2
                )
        return (y[:, :, pads[0] : full_h - pads[2], pads[1] : full_w - pads[3]],)


def randomised(name: str) -> torch.nn.Module:
    """Random weights, and batch norm statistics that are not those of an untrained network."""
    torch.manual_seed(20180430)
    network = networks.build(name)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
    return network


def real(name: str) -> torch.nn.Module:
    if name == "densenet10":
        return load_network(name, None)[0]
    return load_network(name, checkpoint_of(name))[0]


def checkpoint_of(name: str) -> Path:
    if "ODIN_MODELS" not in os.environ:
        pytest.skip("set ODIN_MODELS to the folder with the pretrained networks")
    return Path(os.environ["ODIN_MODELS"]) / REAL_CHECKPOINTS[name]


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def check_gradient(
    network: torch.nn.Module, model: onnx.ModelProto, batch: int, height: int, width: int
) -> None:
    """Compare logits and gradient in float64, for random images and a random seed."""
    generator = torch.Generator().manual_seed(batch * 1000 + height)
    images = torch.randn(batch, 3, height, width, generator=generator, dtype=torch.float64)
    seed = torch.randn(batch, network.fc.out_features, generator=generator, dtype=torch.float64)
    logits = network(images.requires_grad_())
    (expected,) = torch.autograd.grad(logits, images, seed)
    evaluator = ReferenceEvaluator(model, new_ops=[Resize, ConvTranspose])
    feeds = {"images": images.detach().numpy(), "seed": seed.numpy()}
    found_logits, found = evaluator.run(["logits", "input_gradient"], feeds)
    assert relative_error(found_logits, logits.detach().numpy()) < 1e-6
    assert relative_error(found, expected.numpy()) < 1e-6


def double_models(make, name: str) -> tuple[torch.nn.Module, onnx.ModelProto]:
    network = make(name).double()
    model = input_gradient(forward_graph(network, networks.NETWORKS[name].max_size))
    onnx.checker.check_model(model, full_check=True)
    return network, model


# A pair of sizes each: the release's 36x36 leaves a ninth row and column that no window pools.
@pytest.mark.parametrize(
    ("make", "name"),
    [(real, "densenet10"), (randomised, "wideresnet10")],
    ids=["densenet10-trained", "wideresnet10-random"],
)
def test_gradient_agrees_with_autograd_in_float64(make, name):
    network, model = double_models(make, name)
    check_gradient(network, model, batch=1, height=32, width=32)
    check_gradient(network, model, batch=3, height=36, width=36)
    check_gradient(network, model, batch=1, height=37, width=50)


@pytest.mark.slow
@pytest.mark.parametrize("make", [randomised, real])
@pytest.mark.parametrize("name", list(networks.NETWORKS))
def test_gradient_agrees_with_autograd_in_float64_at_every_batch_size(make, name):
    if make is real and name.startswith("wideresnet"):
        pytest.skip("no trained weights of wideresnet10 and wideresnet100 are at hand")
    network, model = double_models(make, name)
    for batch in (1, 3, 64):
        for size in (32, 36):
            check_gradient(network, model, batch, size, size)


def test_ninth_row_and_column_of_the_last_map_get_no_gradient():
    """A 36x36 image ends in a 9x9 map of which 8x8 cells are pooled, as in the release."""
    features = torch.randn(1, 4, 9, 9, requires_grad=True)
    fc = torch.nn.Linear(4, 10)
    networks._pool_and_classify(features, fc).sum().backward()
    assert (features.grad[..., :8, :8] != 0).all()
    assert (features.grad[..., 8, :] == 0).all()
    assert (features.grad[..., :, 8] == 0).all()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("densenet10", 769_162),
        ("densenet100", 800_032),
        ("wideresnet10", 36_479_194),
        ("wideresnet100", 36_536_884),
    ],
)
def test_networks_have_the_size_of_the_published_ones(name, parameters):
    assert sum(parameter.numel() for parameter in networks.build(name).parameters()) == parameters


@pytest.mark.parametrize("name", list(REAL_CHECKPOINTS))
def test_published_state_dicts_load_unchanged(name):
    network, _ = load_network(name, checkpoint_of(name))
    assert not network.training


@pytest.mark.parametrize("name", ["densenet10", "wideresnet10"])
def test_names_are_those_of_the_release(name):
    names = set(networks.build(name).state_dict())
    expected = {
        "densenet10": {
            "conv1.weight",
            "block1.layer.0.bn1.running_var",
            "block3.layer.15.conv2.weight",
            "trans2.conv1.weight",
            "bn1.bias",
            "fc.weight",
        },
        "wideresnet10": {
            "conv1.weight",
            "block1.layer.0.convShortcut.weight",
            "block2.layer.3.bn2.running_mean",
            "block3.layer.0.conv1.weight",
            "bn1.bias",
            "fc.bias",
        },
    }
    assert expected[name] <= names
