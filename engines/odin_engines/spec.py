"""What a bundle says of itself: everything needed to score without the exporter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Method = Literal["exact", "first-order"]
Precision = Literal["fp32", "fp16", "bf16"]
InputType = Literal["float32", "uint8"]

SCHEMA = 1
# What the graphs' float32 holds, with room for what is computed from it.
LEAST_TEMPERATURE, MOST = 1e-6, 1e9
DEFAULT_TEMPERATURE = 1000.0
DEFAULT_MAGNITUDE = 0.0014


# What odin.onnx can give beside ODIN's score; formulas and sources are in odin_export.scores.
SCORE_NAMES = ("msp", "max-logit", "energy", "entropy", "gen", "gradnorm", "cam-max", "cam-std")


@dataclass(frozen=True)
class Spec:
    """The content of `odin.json`, less the list of files.

    Attributes:
        model: the name or file that was exported, such as "densenet10".
        architecture: the network's architecture, as reports print it.
        checkpoint: file name of the weights.
        checkpoint_sha256: their SHA-256, or of the `.onnx` file.
        classes: number of classes C.
        in_dataset: the in-distribution data set the network was trained on, if known.
        channels: of the image.
        height, width: smallest and largest size that the network takes, in pixels.
        mean, std: per channel, for pixels in [0, 1]: normalised = (pixel - mean) / std.
        temperature: T of the softmax.
        magnitude: of the perturbation, in units of pixels in [0, 1].
        method: "exact" (two forward passes, one backward) or "first-order" (one of each).
        precision: in which the engine computes the network; scores are float32 always.
        graph_precision: what the graphs themselves say: "fp16" and "bf16" have their casts and
            weights in them; "fp32" leaves it to the engine, some of which compute such a graph in
            bfloat16.
        seed_scale: a power of two by which the graphs multiply the seed of the backward pass, and
            divide the gradient again where its size matters.
        input_type: of `odin.onnx`: "float32" is (N, channels, H, W), normalised; "uint8" is
            (N, H, W, channels), raw.
        tunable: whether temperature and magnitude are inputs of `odin.onnx`.
        scores: further outputs of `odin.onnx`, of `SCORE_NAMES`, float32 (N,); higher means
            in-distribution.
        threshold: the score below which an image is out-of-distribution, once calibrated.
        activation_bytes: memory that one image of the smallest size takes while it is scored.
        tools: versions of what made the bundle.
    """

    model: str
    architecture: str
    checkpoint: str
    checkpoint_sha256: str
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    height: tuple[int, int]
    width: tuple[int, int]
    channels: int = 3
    in_dataset: str | None = None
    temperature: float = DEFAULT_TEMPERATURE
    magnitude: float = DEFAULT_MAGNITUDE
    method: Method = "exact"
    precision: Precision = "fp32"
    graph_precision: Precision = "fp32"
    seed_scale: float = 1.0
    input_type: InputType = "float32"
    tunable: bool = False
    scores: tuple[str, ...] = ()
    threshold: float | None = None
    activation_bytes: int = 0
    tools: dict[str, str] = field(default_factory=dict)
