"""A user's .onnx file: found, compared with what it was, and described for a bundle."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from odin_engines.errors import OdinError
from odin_engines.files import sha256
from odin_export import clean
from odin_export.classifier import Choice, Classifier, find_classifier, load_model
from odin_export.emit import Emitter

LARGEST_SIZE = 16384
_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 224, 256, 384, 512)
# Logits of the bundle's graph against the file's own output, relative to the largest.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Imported:
    """A classifier that was found in a file, tried on random images, and agrees with the file.

    Attributes:
        classifier: with the forward graph.
        file: where it came from.
        digest: SHA-256 of the file.
        height, width: smallest and largest size that it takes.
    """

    classifier: Classifier
    file: Path
    digest: str
    height: tuple[int, int]
    width: tuple[int, int]


def read_classifier(file: Path, choice: Choice) -> Imported:
    """Find the classifier in a file and try it.

    Raises:
        OdinError: the file is not a classifier that can be scored; the message says why.
    """
    try:
        model = load_model(file)
        found = find_classifier(model, choice)
        height, width = _size_ranges(found)
        found = _tried(found, (height[0], width[0]))
    except OdinError as error:
        text = str(error)
        raise error if text.startswith(str(file)) else OdinError(f"{file}: {text}") from error
    return Imported(found, file, sha256(file), height, width)


def image_shape(imported: Imported, batch: int) -> tuple[int, int, int, int]:
    """The smallest images that the network takes, as (batch, C, H, W)."""
    return (batch, imported.classifier.channels, imported.height[0], imported.width[0])


def _size_ranges(found: Classifier) -> tuple[tuple[int, int], tuple[int, int]]:
    """Smallest and largest height and width; dynamic ones are tried."""
    if found.height is not None and found.width is not None:
        return (found.height, found.height), (found.width, found.width)
    run = _session(found.forward)
    for size in _SIZES:
        shape = (1, found.channels, found.height or size, found.width or size)
        try:
            (logits,) = run(np.zeros(shape, np.float32))
        except OdinError:
            continue
        if logits.shape == (1, found.classes):
            return _range(found.height, size), _range(found.width, size)
    raise OdinError(
        f"the network takes none of the image sizes {', '.join(map(str, _SIZES))}: export it with "
        "the height and width that it was trained with"
    )


def _range(fixed: int | None, least: int) -> tuple[int, int]:
    return (least, LARGEST_SIZE) if fixed is None else (fixed, fixed)


def _tried(found: Classifier, size: tuple[int, int]) -> Classifier:
    """Run the forward graph on random images, and look at what comes out.

    Images must not influence one another, and rows that sum to one are probabilities, whatever op
    made them: their logarithm takes the place of the logits.
    """
    generator = np.random.default_rng(0)
    images = generator.standard_normal((3, found.channels, *size)).astype(np.float32)
    run = _session(found.forward)
    try:
        (together,) = run(images)
    except OdinError as error:
        raise OdinError(
            f"the network cannot take a batch of 3 images: {error}. Export it with a dynamic batch "
            "(dynamic_axes or dynamic_shapes in PyTorch, a batch size of None in Keras)"
        ) from error
    if together.shape != (3, found.classes):
        raise OdinError(
            f"the network gives {together.shape} for 3 images, not (3, {found.classes}): its batch "
            "is fixed inside. Export it with a dynamic batch"
        )
    if not np.isfinite(together).all():
        raise OdinError("the network's outputs are not finite on random images")
    alone = np.concatenate([run(images[index : index + 1])[0] for index in range(3)])
    _compare_rows(together, alone)
    if together.min() >= 0 and np.allclose(together.sum(axis=1), 1, atol=1e-3):
        note = (
            "logits: the output is probabilities (its rows sum to 1), whose logarithm is taken; "
            "--logits NAME names the logits, which are more precise"
        )
        return dataclasses.replace(
            found, forward=_with_logarithm(found.forward), notes=[*found.notes, note]
        )
    return found


def _compare_rows(together: np.ndarray, alone: np.ndarray) -> None:
    scale = max(float(np.abs(alone).max()), float(np.finfo(np.float32).tiny))
    difference = float(np.abs(together - alone).max()) / scale
    if difference > _TOLERANCE:
        raise OdinError(
            f"the logits of an image change by {difference:.1e} relative with the other images of "
            "its batch: the model was exported in training mode, or its batch is fixed inside; "
            "export it in evaluation mode with a dynamic batch"
        )


def _with_logarithm(forward: onnx.ModelProto) -> onnx.ModelProto:
    model = clean.from_proto(forward)
    graph = model.graph
    probabilities = graph.outputs[0]
    e = Emitter(graph, ir.DataType.FLOAT)
    least = e.floats(np.finfo(np.float32).tiny, "least_probability")
    logits = e.op("Log", e.op("Max", probabilities, least))
    logits.shape, logits.type = probabilities.shape, probabilities.type
    graph.outputs.clear()
    graph.outputs.append(clean.named_output(graph, logits, "logits"))
    return clean.to_proto(model)


def _session(model: onnx.ModelProto) -> Any:
    """A function: images -> outputs, in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise OdinError(f"ONNX Runtime cannot open the network: {error}") from error
    name = model.graph.input[0].name

    def run(images: np.ndarray) -> list[np.ndarray]:
        try:
            return session.run(None, {name: images})
        except Exception as error:
            raise OdinError(f"ONNX Runtime failed on images {images.shape}: {error}") from error

    return run
