"""The four networks of the ODIN release: DenseNet-BC-100-12 and WRN-28-10, 10 and 100 classes.

Parameter names are those of the release, so that its state dicts load unchanged. Both end in an
8x8 average pooling with stride 8, as the release has it: a last map of 9x9 (a 36x36 image) is
pooled over its first 8x8 cells only, which is not the same as a global average.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odin_engines.errors import OdinError

# Mean and standard deviation of the release, for pixels in [0, 1].
RELEASE_MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)
RELEASE_STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)

# The last map must be pooled to 1x1, so it is 8 to 15 cells wide: a quarter of the image's size,
# twice rounded down in DenseNet-BC and twice rounded up in Wide ResNet.
MIN_SIZE = 32


@dataclass(frozen=True)
class NetworkSpec:
    """What a network's name stands for."""

    name: str
    architecture: str  # as the release's table prints it
    classes: int
    in_dataset: str
    build: Callable[[int], nn.Module]  # number of classes -> network with random weights
    max_size: int  # of an image's sides, in pixels


class _Bottleneck(nn.Module):
    """BN, ReLU, 1x1 convolution, BN, ReLU, 3x3 convolution; the result is appended to the input."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.bn1(x)))
        y = self.conv2(F.relu(self.bn2(y)))
        return torch.cat([x, y], dim=1)


class _Transition(nn.Module):
    """BN, ReLU, 1x1 convolution, 2x2 average pooling."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv1(F.relu(self.bn1(x))), 2)


class _Stage(nn.Module):
    """A chain of blocks, named `layer` as in the release's state dicts."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.layer = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def _pool_and_classify(x: Tensor, fc: nn.Linear) -> Tensor:
    return fc(F.avg_pool2d(x, 8).view(-1, fc.in_features))


def _dense_stage(channels: int, blocks: int, growth: int) -> tuple[_Stage, int]:
    layers: list[nn.Module] = [_Bottleneck(channels + i * growth, growth) for i in range(blocks)]
    return _Stage(layers), channels + blocks * growth


class DenseNetBC(nn.Module):
    """DenseNet-BC (Huang et al., CVPR 2017) with reduction 0.5 for small images.

    Images (N, 3, H, W), normalised, H and W from 32 to 63 -> logits (N, classes).
    """

    def __init__(self, classes: int, depth: int = 100, growth: int = 12) -> None:
        super().__init__()
        blocks_per_stage = (depth - 4) // 6
        channels = 2 * growth
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.block1, channels = _dense_stage(channels, blocks_per_stage, growth)
        self.trans1 = _Transition(channels, channels // 2)
        self.block2, channels = _dense_stage(channels // 2, blocks_per_stage, growth)
        self.trans2 = _Transition(channels, channels // 2)
        self.block3, channels = _dense_stage(channels // 2, blocks_per_stage, growth)
        self.bn1 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.trans1(self.block1(self.conv1(x)))
        x = self.trans2(self.block2(x))
        return _pool_and_classify(F.relu(self.bn1(self.block3(x))), self.fc)


class _WideBlock(nn.Module):
    """Pre-activation residual block; where the width changes, the shortcut is a 1x1 convolution."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.convShortcut = (
            None
            if channels == out_channels
            else nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        if self.convShortcut is None:
            return x + y
        return self.convShortcut(activated) + y


def _wide_stage(channels: int, out_channels: int, blocks: int, stride: int) -> _Stage:
    first: list[nn.Module] = [_WideBlock(channels, out_channels, stride)]
    return _Stage(first + [_WideBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)])


class WideResNet(nn.Module):
    """WRN-depth-widen (Zagoruyko and Komodakis, BMVC 2016).

    Images (N, 3, H, W), normalised, H and W from 32 to 60 -> logits (N, classes).
    """

    def __init__(self, classes: int, depth: int = 28, widen: int = 10) -> None:
        super().__init__()
        blocks_per_stage = (depth - 4) // 6
        widths = (16, 16 * widen, 32 * widen, 64 * widen)
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.block1 = _wide_stage(widths[0], widths[1], blocks_per_stage, stride=1)
        self.block2 = _wide_stage(widths[1], widths[2], blocks_per_stage, stride=2)
        self.block3 = _wide_stage(widths[2], widths[3], blocks_per_stage, stride=2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return _pool_and_classify(F.relu(self.bn1(x)), self.fc)


NETWORKS = {
    spec.name: spec
    for spec in (
        NetworkSpec("densenet10", "DenseNet-BC-100", 10, "cifar10", DenseNetBC, 63),
        NetworkSpec("densenet100", "DenseNet-BC-100", 100, "cifar100", DenseNetBC, 63),
        NetworkSpec("wideresnet10", "Wide-ResNet-28-10", 10, "cifar10", WideResNet, 60),
        NetworkSpec("wideresnet100", "Wide-ResNet-28-10", 100, "cifar100", WideResNet, 60),
    )
}


def check_name(name: str) -> None:
    """Check that `name` is one of the four networks.

    Raises:
        OdinError: it is not; the message lists them.
    """
    if name not in NETWORKS:
        close = difflib.get_close_matches(name, NETWORKS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise OdinError(f"no network {name!r}; {hint}choose from {', '.join(NETWORKS)}")


def build(name: str) -> nn.Module:
    """Return the named network with random weights, in evaluation mode."""
    spec = NETWORKS[name]
    return spec.build(spec.classes).eval()
