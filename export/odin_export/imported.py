"""A user's .onnx file: found, compared with what it was, and described for a bundle."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.external_data_helper import uses_external_data

from odin_engines.errors import OdinError
from odin_engines.files import sha256
from odin_export import clean
from odin_export.classifier import Classifier, find_classifier, load_model
from odin_export.emit import Emitter
from odin_export.ends import Choice
from odin_export.precision import in_precision

LARGEST_SIZE = 16384
_POOLS = ("AveragePool", "LpPool", "MaxPool")
_SIZES = (
    *(1, 2, 4, 8, 16, 24, 28, 32, 48, 64, 96, 128, 144, 160, 192, 224, 240, 256, 260, 288, 299),
    *(300, 320, 331, 336, 380, 384, 448, 456, 480, 512),
)
_LARGEST_TRIAL = 1024
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
        text = " ".join(str(error).split())  # ONNX Runtime's messages have several lines
        raise OdinError(text if text.startswith(str(file)) else f"{file}: {text}") from error
    return Imported(found, file, _digest(file, model), height, width)


def _digest(file: Path, model: onnx.ModelProto) -> str:
    """SHA-256 of the file; of the whole model where its weights lie in other files."""
    skeleton = onnx.load(str(file), load_external_data=False)
    if not any(map(uses_external_data, skeleton.graph.initializer)):
        return sha256(file)
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def _size_ranges(found: Classifier) -> tuple[tuple[int, int], tuple[int, int]]:
    """Smallest and largest height and width; dynamic ones are tried."""
    if found.height is not None and found.width is not None:
        return (found.height, found.height), (found.width, found.width)
    model, windows = _with_shapes_of_pools(found.forward)
    run = session(model)

    def fits(size: int) -> bool:
        shape = (1, found.channels, found.height or size, found.width or size)
        try:
            logits, *shapes = run(np.zeros(shape, np.float32))
        except OdinError:
            return False
        held = all(
            (shape[2:] >= window).all() for shape, window in zip(shapes, windows, strict=True)
        )
        return held and logits.shape == (1, found.classes)

    for least in _SIZES:
        if fits(least):
            most = _largest(fits, least)
            return _range(found.height, least, most), _range(found.width, least, most)
    raise OdinError(
        f"the network takes none of the image sizes {', '.join(map(str, _SIZES))}: export it with "
        "the height and width that it was trained with"
    )


def _with_shapes_of_pools(
    forward: onnx.ModelProto,
) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """The graph with the shapes of what it pools as further outputs, and each window's size.

    ONNX Runtime pools what is smaller than the window as if it were as large; others refuse it.
    """
    model = onnx.ModelProto()
    model.CopyFrom(forward)
    windows = []
    for node in forward.graph.node:
        given = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        if node.op_type not in _POOLS or given.get("auto_pad", b"").startswith(b"SAME"):
            continue
        kernel = np.asarray(given["kernel_shape"])
        dilations = np.asarray(given.get("dilations", np.ones_like(kernel)))
        pads = np.asarray(given.get("pads", np.zeros(2 * len(kernel), int)))
        windows.append((kernel - 1) * dilations + 1 - pads[: len(kernel)] - pads[len(kernel) :])
        name = f"{node.input[0]}_shape_before_pool_{len(windows)}"
        model.graph.node.append(onnx.helper.make_node("Shape", node.input[:1], [name]))
        output = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None)
        model.graph.output.append(output)
    return model, windows


def _largest(fits: Callable[[int], bool], least: int) -> int:
    """The largest size, where one of the next few is refused: a last pooling of fixed size, say,
    makes several rows of a larger image, and a Flatten too many features."""
    most = least
    for larger in (least + 1, least + 2, least + least // 2, 2 * least, 4 * least):
        if most < larger <= _LARGEST_TRIAL:
            if not fits(larger):
                # Some take multiples of a size alone; the engine refuses what lies between.
                if any(size > larger and fits(size) for size in (32, 64, 224)):
                    return LARGEST_SIZE
                return _between(fits, most, larger)
            most = larger
    return LARGEST_SIZE


def _between(fits: Callable[[int], bool], taken: int, refused: int) -> int:
    """The largest size that is taken, by bisection."""
    while refused - taken > 1:
        middle = (taken + refused) // 2
        taken, refused = (middle, refused) if fits(middle) else (taken, middle)
    return taken


def _range(fixed: int | None, least: int, most: int) -> tuple[int, int]:
    return (least, most) if fixed is None else (fixed, fixed)


def _tried(found: Classifier, size: tuple[int, int]) -> Classifier:
    """Run the forward graph on random images, and look at what comes out.

    Images must not influence one another, and rows that sum to one are probabilities, whatever op
    made them: their logarithm takes the place of the logits.
    """
    generator = np.random.default_rng(0)
    images = generator.standard_normal((3, found.channels, *size)).astype(np.float32)
    run = session(found.forward)
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
        raise OdinError(
            "the network's outputs are not finite on random images" + _damage(found.forward)
        )
    alone = np.concatenate([run(images[index : index + 1])[0] for index in range(3)])
    _compare_rows(together, alone)
    _compare_with_file(found, images, together)
    if together.min() >= 0 and np.allclose(together.sum(axis=1), 1, atol=1e-3):
        note = (
            "logits: the output is probabilities (its rows sum to 1), whose logarithm is taken; "
            "--logits NAME names the logits, which are more precise"
        )
        return dataclasses.replace(
            found,
            forward=_with_logarithm(found.forward),
            notes=[*found.notes, note],
            log_probabilities=True,
        )
    sums = np.logaddexp.reduce(together.astype(np.float64), axis=1)
    return dataclasses.replace(found, log_probabilities=bool(np.allclose(sums, 0, atol=1e-3)))


def _compare_with_file(found: Classifier, images: np.ndarray, logits: np.ndarray) -> None:
    """Run the file itself: what was changed on the way must not have changed what it says."""
    own = images[:, ::-1] if found.bgr else images
    own = own.transpose(0, 2, 3, 1) if found.layout == "NHWC" else own
    tensor = found.original.graph.input[0].type.tensor_type
    fixed = tensor.shape.dim[0].dim_value
    rows = np.arange(fixed or len(images)) % len(images)
    (output,) = _session_in_float32(found.original)(np.ascontiguousarray(own[rows]))
    output = np.asarray(output, np.float64).reshape(len(rows), -1)
    logits = logits[rows].astype(np.float64)
    logs = logits - logits.max(axis=1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
    same = (logits, logs, np.exp(logs))
    scales = [max(np.abs(each).max(), float(np.finfo(np.float32).tiny)) for each in same]
    if output.shape != logits.shape or all(
        not np.abs(output - each).max() <= _TOLERANCE * scale
        for each, scale in zip(same, scales, strict=True)
    ):
        raise OdinError(
            "the graph that was made of the file gives other outputs than the file: this is a "
            "fault of odin-export, please report the model"
        )


def _damage(forward: onnx.ModelProto) -> str:
    """Which weight has a value that is not finite, if any, and what to do."""
    for tensor in forward.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return f": its weight {tensor.name!r} is not; export the model again from sound weights"
    return "; name an inner value with --logits to find out from where on"


def _compare_rows(together: np.ndarray, alone: np.ndarray) -> None:
    scale = max(float(np.abs(alone).max()), float(np.finfo(np.float32).tiny))
    difference = float(np.abs(together - alone).max()) / scale
    if not difference <= _TOLERANCE:
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


def _session_in_float32(model: onnx.ModelProto) -> Any:
    """As `session`, of a model of any type: ONNX Runtime does not run every op in the others."""
    if model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
        with contextlib.suppress(OdinError):  # float64 inside
            return session(model)
    return session(in_precision(model, ir.DataType.FLOAT))


def session(model: onnx.ModelProto) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Return a function: images -> outputs, in ONNX Runtime.

    Raises:
        OdinError: ONNX Runtime cannot open the model; the function raises it where a run fails.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        opened = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise OdinError(f"ONNX Runtime cannot open the network: {error}") from error
    name = model.graph.input[0].name

    def run(images: np.ndarray) -> list[np.ndarray]:
        try:
            return opened.run(None, {name: images})
        except Exception as error:
            raise OdinError(f"ONNX Runtime failed on images {images.shape}: {error}") from error

    return run
