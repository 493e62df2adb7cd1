"""How images are commonly given to networks; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

LAYOUTS = ("NCHW", "NHWC")


@dataclass(frozen=True)
class Normalisation:
    """normalised = (pixel - mean) / std, for pixels in [0, 1]; one value a channel, or for all."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


PRESETS = {
    # Of torchvision and timm, and of nearly every PyTorch network that starts from their weights.
    "imagenet": Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # Mean and standard deviation of the training images; the ODIN release's.
    "cifar10": Normalisation(
        (125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)
    ),
    "cifar100": Normalisation(
        (129.3 / 255, 124.1 / 255, 112.4 / 255), (68.2 / 255, 65.4 / 255, 70.4 / 255)
    ),
    "inception": Normalisation((0.5,), (0.5,)),
    "unit": Normalisation((0.0,), (1.0,)),
    "raw": Normalisation((0.0,), (1 / 255,)),
}
MEANINGS = {
    "imagenet": "ImageNet's mean and standard deviation",
    "cifar10": "CIFAR-10's, as the ODIN release has them",
    "cifar100": "CIFAR-100's",
    "inception": "pixels in [-1, 1]",
    "unit": "pixels in [0, 1]",
    "raw": "pixels in [0, 255]",
}


def for_channels(normalisation: Normalisation, channels: int) -> Normalisation:
    """Repeat a single value for every channel; several are left as they are."""
    mean, std = (
        values * channels if len(values) == 1 else values
        for values in (normalisation.mean, normalisation.std)
    )
    return Normalisation(mean, std)
