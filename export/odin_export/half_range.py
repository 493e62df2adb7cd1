"""Whether float16, which holds numbers from 6e-8 to 65,504, can hold what a network computes.

Activations are as large as they are: a network whose activations overflow is refused. Gradients are
moved into the range by a factor of the seed that they start from, a power of two that is chosen
once (loss scaling: Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2). Both
are looked at in float32, on a few images. bfloat16 has the range of float32 and needs none of this.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx
import onnx_ir as ir

from odin_engines.errors import OdinError
from odin_engines.spec import DEFAULT_TEMPERATURE, Spec
from odin_export.emit import Emitter
from odin_export.imported import session
from odin_export.odin_graph import gradient_sizes_graph
from odin_export.precision import in_precision
from odin_export.verify import trial_shape

# Below what the largest gradient on the trial images comes to lie: float16 ends 64 times higher, as
# the images to be scored may have larger ones, and the smallest that it holds is 1e-10 of this.
LARGEST = 1024.0
_SMALLEST_NORMAL = 2.0**-14  # below it float16 loses digits
_MOST = 64  # powers of two that the scale goes to; float32 holds twice as many
_IMAGES = 8
_BLOCKS = 4


def seed_scale(forward: onnx.ModelProto, spec: Spec) -> float:
    """The power of two that brings the largest gradient on a few images to 512 ... 1,024.

    Every value of the backward pass counts. The scale of a network whose gradients are zero is 1.

    Args:
        forward: `images` -> `logits`, in `spec.graph_precision` between them.
        spec: tells the precision, the temperature and the normalisation.

    Raises:
        OdinError: an op has no gradient, ONNX Runtime cannot run the network, or no scale brings
            all gradients into the range of float16.
    """
    if spec.graph_precision != "fp16":
        return 1.0
    # What a tunable graph is given, its seed is largest where the softmax is flat.
    least = DEFAULT_TEMPERATURE if spec.tunable else spec.temperature
    trial = dataclasses.replace(spec, temperature=max(spec.temperature, least), seed_scale=1.0)
    run = session(gradient_sizes_graph(in_precision(forward, ir.DataType.FLOAT), trial))
    found = [run(image[None]) for image in _trial_images(spec)]
    largest, last = (_largest(np.concatenate(each)) for each in zip(*found, strict=True))
    if largest == 0:
        return 1.0
    exponent = math.floor(math.log2(LARGEST / largest))
    scale = 2.0 ** max(-_MOST, min(exponent, _MOST))
    if 0 < last < _SMALLEST_NORMAL / scale:
        raise OdinError(
            f"--precision fp16: gradients inside this network are up to {largest:.1g}, and at the "
            f"image {last:.1g}, which float16 cannot both hold; use --precision bf16"
        )
    return scale


def check_activations(forward: onnx.ModelProto, spec: Spec) -> None:
    """Run a network on a few images and see that its activations do not overflow in float16.

    Args:
        forward, spec: as `seed_scale`.

    Raises:
        OdinError: one does; names the node that it comes from.
    """
    if spec.graph_precision != "fp16":
        return
    in_half = {
        value.name
        for node in ir.from_proto(forward).graph
        for value in node.outputs
        if value.dtype == ir.DataType.FLOAT16
    }
    model = ir.from_proto(in_precision(forward, ir.DataType.FLOAT))
    nodes = [node for node in model.graph if node.outputs[0].name in in_half]
    if not nodes:
        return
    e = Emitter(model.graph, ir.DataType.FLOAT)
    one = e.integers([1], "one_value")
    sizes = [
        e.op("Reshape", e.op("ReduceMax", e.op("Abs", node.outputs[0]), keepdims=0), one)
        for node in nodes
    ]
    output = e.op("Concat", *sizes, axis=0, name="largest")
    output.shape, output.type = ir.Shape([len(sizes)]), ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.clear()
    model.graph.outputs.append(output)
    run = session(ir.to_proto(model))
    largest = np.max([run(image[None])[0] for image in _trial_images(spec)], axis=0)
    most = float(np.finfo(np.float16).max)
    for node, size in zip(nodes, largest, strict=True):
        if not size <= most:
            raise OdinError(
                f"--precision fp16: what node {node.name!r} ({node.op_type}) computes reaches "
                f"{size:.3g}, and float16 ends at {most:g}; use --precision bf16"
            )


def _largest(sizes: np.ndarray) -> float:
    return float(np.max(sizes, where=np.isfinite(sizes), initial=0.0))


def _trial_images(spec: Spec) -> np.ndarray:
    """Normalised images, float32 (images, C, H, W): blocks of colour with noise, and noise."""
    generator = np.random.default_rng(0)
    shape = trial_shape(_IMAGES, spec.channels, spec.height, spec.width)
    pixels = generator.random(shape)
    blocks = generator.random((_IMAGES // 2, spec.channels, _BLOCKS, _BLOCKS))
    tall, wide = (-(-size // _BLOCKS) for size in shape[2:])
    blocks = blocks.repeat(tall, axis=2).repeat(wide, axis=3)[:, :, : shape[2], : shape[3]]
    pixels[: len(blocks)] = np.clip(blocks + generator.normal(0, 0.05, blocks.shape), 0, 1)
    mean, std = (np.reshape(each, (-1, 1, 1)) for each in (spec.mean, spec.std))
    return ((pixels - mean) / std).astype(np.float32)
