"""From a network's name to a bundle on disk."""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch

from odin_engines.bundle import FORWARD, GRADIENT, ODIN, Bundle, check_output, write_bundle
from odin_engines.errors import OdinError
from odin_engines.plan_sets import PlanSet
from odin_engines.spec import (
    DEFAULT_MAGNITUDE,
    DEFAULT_TEMPERATURE,
    LEAST_TEMPERATURE,
    MOST,
    InputType,
    Method,
    Precision,
    Spec,
)
from odin_export import clean, networks
from odin_export.checkpoint import load_network
from odin_export.classifier import Classifier
from odin_export.emit import dims
from odin_export.ends import Choice
from odin_export.engine_graphs import own_graph
from odin_export.forward import forward_graph
from odin_export.half_range import check_activations, seed_scale
from odin_export.imported import Imported, read_classifier
from odin_export.mixed import in_mixed_precision
from odin_export.networks import MIN_SIZE, NETWORKS, RELEASE_MEAN, RELEASE_STD
from odin_export.odin_graph import gradient_graph, odin_graph
from odin_export.presets import MEANINGS, PRESETS, Normalisation, for_channels

# protobuf cannot hold more; larger networks need their weights in files of their own.
_MAX_PROTOBUF = 2**31 - 1
# Logits of the graph against those of the network, relative to the largest: rounding, no more.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Options:
    """How a network is to be scored; the fields are those of `Spec`."""

    temperature: float = DEFAULT_TEMPERATURE
    magnitude: float = DEFAULT_MAGNITUDE
    method: Method = "exact"
    mean: tuple[float, ...] | None = None  # None: the release's, or what a file's images suggest
    std: tuple[float, ...] | None = None
    precision: Precision = "fp32"
    input_type: InputType = "float32"
    tunable: bool = False
    scores: tuple[str, ...] = ()


Step = Callable[[str], object]
STEPS = (
    *("read weights", "trace network", "differentiate", "check graphs", "build plans"),
    "write bundle",
)


@dataclass(frozen=True)
class Source:
    """A network ready to be exported.

    Attributes:
        forward: `images` (N, C, H, W) -> `logits` (N, classes), float32; between them the network
            in `spec.precision`.
        spec: what the bundle is to say of it.
        notes: what was found and assumed, one line each, for the user.
        compare: raises OdinError if the forward graph is not what it was made from.
    """

    forward: onnx.ModelProto
    spec: Spec
    notes: list[str]
    compare: Callable[[], None] = lambda: None


def export(
    model: str,
    checkpoint: Path | None,
    output: Path,
    options: Options | None = None,
    step: Step = lambda name: None,
    engine: str | None = None,
) -> Bundle:
    """Export one of the four networks to a bundle at `output`.

    Args:
        model: a name in `networks.NETWORKS`.
        checkpoint: its weights; None takes those that come with the package.
        output: the bundle's folder; it appears whole or not at all.
        options: None takes the defaults.
        step: called with the name of each of `STEPS` as it begins.
        engine: as `write`.

    Raises:
        OdinError: an unknown name, a checkpoint that does not fit, a value out of range, or an
            output that cannot be written.
    """
    networks.check_name(model)
    check_options(options or Options())
    check_output(output)
    return write(from_name(model, checkpoint, options, step), output, step, engine=engine)


def export_file(
    file: Path,
    output: Path,
    options: Options | None = None,
    choice: Choice | None = None,
    step: Step = lambda name: None,
) -> Bundle:
    """Export the classifier in an .onnx file to a bundle at `output`.

    Args:
        file: any ONNX classifier.
        output: the bundle's folder; it appears whole or not at all.
        options: None takes the defaults; mean and std have one value for all channels, or one each.
        choice: which input and output, where they are not to be found.
        step: called with the name of each of `STEPS` as it begins.

    Raises:
        OdinError: the file is no classifier, or an op between image and logits has no gradient.
    """
    check_options(options or Options())
    check_output(output)
    return write(from_file(file, options, choice, step), output, step)


def from_name(
    model: str,
    checkpoint: Path | None,
    options: Options | None = None,
    step: Step = lambda name: None,
) -> Source:
    """Make the forward graph of one of the four networks; arguments and errors as `export`."""
    options = options or Options()
    networks.check_name(model)
    check_options(options)
    notes = []
    if options.mean is None or options.std is None:
        notes.append("normalisation: the release's; --preset, or --mean and --std change it")
    options = _with_release_normalisation(options)
    step("read weights")
    network, weights = load_network(model, checkpoint)
    step("trace network")
    forward = forward_graph(network, NETWORKS[model].max_size)
    spec = Spec(
        model=model,
        architecture=NETWORKS[model].architecture,
        checkpoint=weights.file,
        checkpoint_sha256=weights.sha256,
        classes=NETWORKS[model].classes,
        in_dataset=NETWORKS[model].in_dataset,
        height=(MIN_SIZE, NETWORKS[model].max_size),
        width=(MIN_SIZE, NETWORKS[model].max_size),
        activation_bytes=_activation_bytes(forward, MIN_SIZE, MIN_SIZE),
        tools=tool_versions(),
        **dataclasses.asdict(options),
    )
    source = Source(forward, spec, notes, lambda: _compare(forward, network))
    return in_own_precision(source)


def from_file(
    file: Path,
    options: Options | None = None,
    choice: Choice | None = None,
    step: Step = lambda name: None,
) -> Source:
    """Make the forward graph of an .onnx file; arguments and errors as `export_file`."""
    options = options or Options()
    check_options(options)
    step("read weights")
    imported = read_classifier(file, choice or Choice())
    step("trace network")
    return in_own_precision(describe(imported, options))


def write(
    source: Source,
    output: Path,
    step: Step = lambda name: None,
    make: Callable[[Mapping[str, bytes]], PlanSet] | None = None,
    engine: str | None = None,
) -> Bundle:
    """Derive the graphs of a bundle, check them, have their plans built, and write it.

    Args:
        source: the network.
        output: the bundle's folder; it appears whole or not at all.
        step: called with the name of each of `STEPS` as it begins.
        make: builds plans from the graphs, by name, serialized; None for a bundle without.
        engine: of `engine_graphs.REWRITES`, for which to add the graph in its own form.

    Raises:
        OdinError: an op has no gradient, a graph is not valid or not equivalent, or the bundle
            cannot be written.
    """
    step("differentiate")
    check_activations(source.forward, source.spec)
    spec = dataclasses.replace(source.spec, seed_scale=seed_scale(source.forward, source.spec))
    graphs = {
        ODIN: odin_graph(source.forward, spec),
        GRADIENT: gradient_graph(source.forward, spec),
        FORWARD: source.forward,
    }
    step("check graphs")
    for name, graph in graphs.items():
        _check(name, graph)
    source.compare()
    contents = {name: graph.SerializeToString() for name, graph in graphs.items()}
    if engine is not None:
        contents |= own_graph(engine, contents[ODIN])
    if make is None:
        step("write bundle")
        return write_bundle(output, spec, contents)
    step("build plans")
    plans = make(contents)
    step("write bundle")
    return write_bundle(output, spec, contents | plans.contents, plans.records)


def in_own_precision(source: Source) -> Source:
    """Write the precision that its spec asks for into the forward graph of a source.

    Raises:
        OdinError: as `in_mixed_precision`.
    """
    precision = source.spec.precision
    mixed = in_mixed_precision(source.forward, precision)
    spec = dataclasses.replace(source.spec, graph_precision=precision)
    notes = [*source.notes, *mixed.notes]
    return dataclasses.replace(source, forward=mixed.forward, spec=spec, notes=notes)


def _likely_preset(found: Classifier) -> str:
    """What networks of this kind are mostly given; only where the user does not say."""
    if found.layout == "NHWC":  # Keras: recent networks scale raw pixels themselves
        return "raw"
    return "imagenet" if found.channels == 3 else "unit"


def _with_release_normalisation(options: Options) -> Options:
    """The four networks take three channels, and were trained with the release's mean and std."""
    given = Normalisation(options.mean or RELEASE_MEAN, options.std or RELEASE_STD)
    own = for_channels(given, 3)
    if len(own.mean) != 3 or len(own.std) != 3:
        raise OdinError(
            f"--mean and --std have {len(own.mean)} values, but the networks take 3 channels: give "
            "three numbers, or one for all"
        )
    return dataclasses.replace(options, **dataclasses.asdict(own))


def describe(imported: Imported, options: Options) -> Source:
    """Describe a classifier that was read from a file.

    Raises:
        OdinError: mean and std are not for its number of channels.
    """
    found = imported.classifier
    if (options.mean is None) != (options.std is None):
        raise OdinError("mean is given without std, or std without mean; give both")
    notes = list(found.notes)
    if options.mean is None or options.std is None:
        preset = _likely_preset(found)
        normalisation = PRESETS[preset]
        notes.append(
            f"normalisation: none given, so {MEANINGS[preset]} ASSUMED (--preset {preset}); what "
            "the network was trained with is given by --preset, or --mean, --std and --scale"
        )
    else:
        normalisation = Normalisation(options.mean, options.std)
    normalisation = for_channels(normalisation, found.channels)
    counts = {len(normalisation.mean), len(normalisation.std)} - {found.channels}
    if counts:
        raise OdinError(
            f"--mean and --std have {counts.pop()} values, but the images of "
            f"{imported.file} have {found.channels} channels: give one value for all, or one each"
        )
    if imported.height[0] != imported.height[1] or imported.width[0] != imported.width[1]:
        sides = [f"{least} to {most}" for least, most in (imported.height, imported.width)]
        notes.append(f"sizes: {sides[0]} pixels high, {sides[1]} wide, as far as was tried")
    for name in ("energy", "max-logit"):
        if found.log_probabilities and name in options.scores:
            raise OdinError(
                f"--scores {name}: {imported.file} gives probabilities, which have lost what this "
                "score is made of; name the logits with --logits NAME, or leave the score out"
            )
    own = dataclasses.asdict(options) | dataclasses.asdict(normalisation)
    spec = Spec(
        model=imported.file.name,  # with .onnx: no name of the four networks
        architecture=imported.file.stem,
        checkpoint=imported.file.name,
        checkpoint_sha256=imported.digest,
        classes=found.classes,
        channels=found.channels,
        height=imported.height,
        width=imported.width,
        activation_bytes=_bytes_of_smallest(imported),
        tools=tool_versions(),
        **own,
    )
    return Source(found.forward, spec, notes)


def _bytes_of_smallest(imported: Imported) -> int:
    """Memory of an image of the smallest size, reckoned from one of a usual size.

    A network that takes a single pixel does not shrink it, as it does with larger images.
    """
    sizes = (imported.height, imported.width)
    tall, wide = (min(max(least, 224), most) for least, most in sizes)
    share = imported.height[0] * imported.width[0] / (tall * wide)
    return math.ceil(_activation_bytes(imported.classifier.forward, tall, wide) * share)


def check_options(options: Options) -> None:
    """Check the values that a user can get wrong.

    Raises:
        OdinError: naming the flag, the value and what is allowed.
    """
    if not LEAST_TEMPERATURE <= options.temperature <= MOST:
        raise OdinError(
            f"--temperature {options.temperature:g}: give a number from {LEAST_TEMPERATURE:g} to "
            f"{MOST:g}"
        )
    if not 0 <= options.magnitude <= MOST:
        raise OdinError(f"--magnitude {options.magnitude:g}: give a number from 0 to {MOST:g}")
    for name, values in (("mean", options.mean), ("std", options.std)):
        if values is None:
            continue
        if not values or not all(np.isfinite(value) for value in values):
            raise OdinError(f"--{name}: give one number, or R,G,B, for pixels in [0, 1]")
        if max(abs(value) for value in values) > 10:
            raise OdinError(
                f"--{name} {','.join(f'{v:g}' for v in values)}: these are for pixels in [0, 255]; "
                "add --scale 255, or divide them by 255"
            )
    if options.std is not None and min(options.std) <= 0:
        raise OdinError("--std: every value has to be above 0")


def tool_versions() -> dict[str, str]:
    """Versions of what makes the graphs."""
    versions = {"python": platform.python_version()}
    for name in ("odin-ood", "torch", "onnx", "onnxscript", "onnx-ir"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed as a package"
    return versions


def _check(name: str, graph: onnx.ModelProto) -> None:
    if graph.ByteSize() > _MAX_PROTOBUF:
        raise OdinError(f"{name} would exceed 2 GiB, the most that one ONNX file can hold")
    onnx.checker.check_model(graph, full_check=True)


def _compare(forward: onnx.ModelProto, network: torch.nn.Module) -> None:
    """Run the forward graph beside the network, at two sizes: exporting must not change it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        forward.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    generator = torch.Generator().manual_seed(0)
    for size in (MIN_SIZE, MIN_SIZE + 4):
        images = torch.randn(2, 3, size, size, generator=generator)
        with torch.no_grad():
            expected = network(images).numpy()
        (found,) = session.run(["logits"], {"images": images.numpy()})
        if not np.isfinite(expected).all():
            raise OdinError(
                "the network's logits are not finite on random images: its weights are damaged; "
                "give another --checkpoint"
            )
        largest = max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
        difference = float(np.abs(found - expected).max()) / largest
        if not difference <= _TOLERANCE:
            raise OdinError(
                f"the exported graph's logits differ from PyTorch's by {difference:.1e} relative, "
                f"at {size}x{size}: this is a fault of odin-export, please report it with the "
                "versions in use"
            )


def _activation_bytes(forward: onnx.ModelProto, height: int, width: int) -> int:
    """About how much memory one image of this size takes while it is scored.

    Every value of the forward pass, and a gradient for each: engines reuse buffers, so this is an
    upper bound on what they hold.
    """
    model = ir.from_proto(forward)
    image = model.graph.inputs[0]
    channels = dims(image)[1]
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    image.shape = ir.Shape([1, channels, height, width])
    clean.infer_shapes(model)
    total = 0
    for node in model.graph:
        for value in node.outputs:
            if value.shape is None or value.dtype is None:
                continue
            sizes = [dim for dim in value.shape if isinstance(dim, int)]
            total += math.ceil(math.prod(sizes) * value.dtype.itemsize)
    return 2 * total
