"""From a network's name to a bundle on disk."""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch

from odin_engines.bundle import FORWARD, GRADIENT, ODIN, Bundle, check_output, write_bundle
from odin_engines.errors import OdinError
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
from odin_export.emit import dims
from odin_export.forward import forward_graph
from odin_export.networks import MIN_SIZE, NETWORKS, RELEASE_MEAN, RELEASE_STD
from odin_export.odin_graph import gradient_graph, odin_graph

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
    mean: tuple[float, ...] = RELEASE_MEAN
    std: tuple[float, ...] = RELEASE_STD
    precision: Precision = "fp32"
    input_type: InputType = "float32"
    tunable: bool = False


STEPS = ("read weights", "trace network", "differentiate", "check graphs", "write bundle")


def export(
    model: str,
    checkpoint: Path | None,
    output: Path,
    options: Options | None = None,
    step: Callable[[str], object] = lambda name: None,
) -> Bundle:
    """Export one of the four networks to a bundle at `output`.

    Args:
        model: a name in `networks.NETWORKS`.
        checkpoint: its weights; None takes those that come with the package.
        output: the bundle's folder; it appears whole or not at all.
        options: None takes the defaults.
        step: called with the name of each of `STEPS` as it begins.

    Raises:
        OdinError: an unknown name, a checkpoint that does not fit, a value out of range, or an
            output that cannot be written.
    """
    options = options or Options()
    networks.check_name(model)
    check_options(options)
    check_output(output)
    step("read weights")
    network, weights = load_network(model, checkpoint)
    step("trace network")
    forward = forward_graph(network, NETWORKS[model].max_size)
    step("differentiate")
    spec = Spec(
        model=model,
        architecture=NETWORKS[model].architecture,
        checkpoint=weights.file,
        checkpoint_sha256=weights.sha256,
        classes=NETWORKS[model].classes,
        in_dataset=NETWORKS[model].in_dataset,
        height=(MIN_SIZE, NETWORKS[model].max_size),
        width=(MIN_SIZE, NETWORKS[model].max_size),
        activation_bytes=_activation_bytes(forward, MIN_SIZE),
        tools=tool_versions(),
        **dataclasses.asdict(options),
    )
    graphs = {
        ODIN: odin_graph(forward, spec),
        GRADIENT: gradient_graph(forward, spec),
        FORWARD: forward,
    }
    step("check graphs")
    for name, graph in graphs.items():
        _check(name, graph)
    _compare(forward, network)
    step("write bundle")
    return write_bundle(
        output, spec, {name: graph.SerializeToString() for name, graph in graphs.items()}
    )


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
        if len(values) != 3 or not all(np.isfinite(value) for value in values):
            raise OdinError(f"--{name}: give three numbers, R,G,B, for pixels in [0, 1]")
        if max(abs(value) for value in values) > 10:
            raise OdinError(
                f"--{name} {','.join(f'{v:g}' for v in values)}: these are for pixels in [0, 255]; "
                "divide them by 255"
            )
    if min(options.std) <= 0:
        raise OdinError("--std: every value has to be above 0")
    if options.precision == "fp16":
        raise OdinError(
            "--precision fp16: only GPU engines compute in it, and this version has none; use fp32 "
            "or bf16"
        )


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


def _activation_bytes(forward: onnx.ModelProto, size: int) -> int:
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
    image.shape = ir.Shape([1, channels, size, size])
    clean.infer_shapes(model)
    total = 0
    for node in model.graph:
        for value in node.outputs:
            if value.shape is None or value.dtype is None:
                continue
            sizes = [dim for dim in value.shape if isinstance(dim, int)]
            total += math.ceil(math.prod(sizes) * value.dtype.itemsize)
    return 2 * total
