"""A bundle of few weights, whose network takes images of any number of channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

from odin_engines.bundle import FORWARD, GRADIENT, ODIN, Bundle, write_bundle
from odin_engines.spec import Spec
from odin_export.odin_graph import gradient_graph, odin_graph

CLASSES, WIDTH = 5, 4


def bundle_of(channels: int, folder: Path, magnitude: float = 0.01) -> Bundle:
    """Write a bundle whose network takes images of 8 to 40 pixels a side.

    Args:
        channels: of the images.
        folder: that does not exist yet.
        magnitude: of the score, built into the graph.
    """
    spec = Spec(
        model="small",
        architecture="Small CNN",
        checkpoint="small.onnx",
        checkpoint_sha256="0" * 64,
        classes=CLASSES,
        mean=(0.4,) * channels,
        std=(0.3,) * channels,
        height=(8, 40),
        width=(8, 40),
        channels=channels,
        temperature=10.0,
        magnitude=magnitude,
    )
    forward = _forward(channels)
    graphs = {
        ODIN: odin_graph(forward, spec),
        GRADIENT: gradient_graph(forward, spec),
        FORWARD: forward,
    }
    contents = {name: graph.SerializeToString() for name, graph in graphs.items()}
    return write_bundle(folder, spec, contents)


def grey_images(count: int, height: int = 8, width: int = 8, seed: int = 0) -> np.ndarray:
    """Images of one channel, uint8 (N, H, W, 1)."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, height, width, 1), np.uint8)


def _forward(channels: int) -> onnx.ModelProto:
    model = parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 18]>
        small (float[N,{channels},H,W] images) => (float[N,{CLASSES}] logits) {{
            mapped = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (images, filters)
            kept = Relu (mapped)
            pooled = GlobalAveragePool (kept)
            features = Flatten (pooled)
            logits = Gemm (features, weights, bias)
        }}"""
    )
    generator = np.random.default_rng(3)
    shapes = {
        "filters": (WIDTH, channels, 3, 3),
        "weights": (WIDTH, CLASSES),
        "bias": (CLASSES,),
    }
    for name, shape in shapes.items():
        values = generator.normal(0, 3 if name == "weights" else 0.3, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model
