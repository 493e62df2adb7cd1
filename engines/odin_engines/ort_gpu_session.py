"""Opening an ONNX file on an NVIDIA GPU through ONNX Runtime, or saying why it was not.

ONNX Runtime falls back to the CPU where a provider fails or does not take a node, and says so in
its log at most. Here either is an error.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from odin_engines.bundle import is_bundle, read_bundle
from odin_engines.cuda_probe import Device, ask_driver
from odin_engines.engine import Session, Tuning
from odin_engines.errors import OdinError
from odin_engines.files import sha256, user_cache
from odin_engines.ort_engine import OrtSession, one_line
from odin_engines.ort_gpu import TENSORRT, Provider, load, load_tensorrt
from odin_engines.plan_profiles import INPUT, AskedShapes, image_limits, raw
from odin_engines.plan_records import shape_text
from odin_engines.spec import Precision

if TYPE_CHECKING:
    import onnx

# Names and values are in ONNX Runtime's manual. No device_id: the first is the default, and naming
# it makes ONNX Runtime 1.31 print a warning.
CUDA_OPTIONS = {
    # TensorFloat-32 keeps 10 bits: the sign of a small gradient would often be another.
    "use_tf32": "0",
    # Measuring takes the algorithm that was fastest this time: other roundings at each run.
    "cudnn_conv_algo_search": "HEURISTIC",
}
_FATAL_ONLY = 4  # severity: its errors come to us as exceptions, with less decoration
_TF32 = "NVIDIA_TF32_OVERRIDE"
# What makes a tensor as large as its sizes say: no longer a few numbers.
_FILLING_OPS = ("ConstantOfShape", "Expand", "Tile")


def open_session(provider: Provider, graph: Path, precision: Precision, tuning: Tuning) -> Session:
    """Open an ONNX file on the first GPU that CUDA_VISIBLE_DEVICES leaves.

    TensorRT builds its engine here or takes it from the user's cache; an image of a new size may
    make it build another.

    Args:
        provider: `ort_gpu.CUDA` or `ort_gpu.TENSORRT`, which is available.
        graph: the file; where it lies in a bundle, TensorRT is told the sizes of images.
        precision: has to be that of the graph.
        tuning: of what stays on the CPU: its threads.

    Raises:
        OdinError: the graph computes in another precision, ONNX Runtime or TensorRT refuses it,
            or a part of it would have been computed elsewhere.
    """
    runtime = load()
    model = _read(graph)
    _check_precision(provider, model, graph, precision)
    session_options = runtime.SessionOptions()
    session_options.log_severity_level = _FATAL_ONLY
    session_options.intra_op_num_threads = tuning.threads or 0
    session_options.use_deterministic_compute = True
    session_options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if provider is TENSORRT:
        options = _tensorrt_options(model, graph, runtime)
    else:
        options = CUDA_OPTIONS
    try:
        session = runtime.InferenceSession(
            str(graph),
            session_options,
            providers=[(provider.name, options)],
            enable_fallback=0,
        )
    except Exception as error:
        raise OdinError(
            f"ONNX Runtime's {provider.title} provider cannot open {graph}: {one_line(error)}"
        ) from error
    session.disable_fallback()
    _check_assignment(provider, session, model, graph)
    return OrtSession(session, graph)


def tensorrt_options(limits: tuple[str, str, str] | None) -> dict[str, str]:
    """Options of the TensorRT provider that decide what engine is built.

    The precision is the graph's: without trt_fp16_enable and the like the network is strongly
    typed.

    Args:
        limits: smallest, usual and largest shapes of the inputs of dynamic shape, as trtexec spells
            them; None leaves them to what the engine is given first.
    """
    if limits is None:
        return {}
    names = ("trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes")
    return dict(zip(names, limits, strict=True))


def engine_key(graph: Path, files: Iterable[str], facts: dict[str, object]) -> str:
    """A name for an engine that is another wherever the engine would be.

    ONNX Runtime's own name for it holds neither the weights nor the options.

    Args:
        graph: the ONNX file.
        files: names of the files beside it that hold weights.
        facts: options and versions.

    Returns:
        a SHA-256, in hexadecimal.

    Raises:
        OdinError: a file with weights is missing.
    """
    hashes = {"graph": sha256(graph)}
    for name in sorted(set(files)):
        try:
            hashes[f"weights {name}"] = sha256(graph.parent / name)
        except OSError as error:
            raise OdinError(
                f"{graph} has weights in {graph.parent / name}, which cannot be read "
                f"({error.strerror}): keep them together"
            ) from error
    text = json.dumps({"files": hashes, **facts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def weight_files(model: onnx.ModelProto) -> set[str]:
    """Names of the files that hold weights of a model that was read without them."""
    return {
        entry.value
        for tensor in _tensors(model)
        if tensor.data_location == tensor.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }


def graph_precision(model: onnx.ModelProto) -> Precision:
    """The precision in which a graph computes, by the types of its weights and casts."""
    import onnx

    types = {tensor.data_type for tensor in _tensors(model)}
    types |= {
        attribute.i
        for graph in _graphs(model.graph)
        for node in graph.node
        if node.op_type == "Cast"
        for attribute in node.attribute
        if attribute.name == "to"
    }
    if onnx.TensorProto.FLOAT16 in types:
        return "fp16"
    return "bf16" if onnx.TensorProto.BFLOAT16 in types else "fp32"


def _read(graph: Path) -> onnx.ModelProto:
    import onnx

    try:
        return onnx.load(graph, load_external_data=False)
    except Exception as error:
        raise OdinError(f"ONNX Runtime cannot open {graph}: {one_line(error)}") from error


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Weights and constants."""
    for graph in _graphs(model.graph):
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(inner)


def _check_precision(
    provider: Provider, model: onnx.ModelProto, graph: Path, precision: Precision
) -> None:
    has = graph_precision(model)
    if has != precision:
        raise OdinError(
            f"{graph} computes in {has}, and engine {provider.engine} takes the graph's precision: "
            f"use --precision {has}, or a bundle whose graphs are in {precision}"
        )


def _tensorrt_options(model: onnx.ModelProto, graph: Path, runtime: ModuleType) -> dict[str, str]:
    """Options for building an engine, and where it is kept."""
    version = load_tensorrt(runtime)
    # The only way in which ONNX Runtime's users can switch TensorFloat-32 off; NVIDIA's libraries
    # read it once, when they are first used. What the user has set stays.
    tf32 = os.environ.setdefault(_TF32, "0")
    options = tensorrt_options(_limits(graph, model))
    cache = user_cache()
    if cache is None:
        return options
    gpu = _first_gpu()
    place = {
        "onnxruntime": str(runtime.__version__),
        "tensorrt": version,
        "gpu": f"{gpu.name}, compute capability {gpu.capability_text}",
    }
    key = engine_key(graph, weight_files(model), {**place, "options": options, "tf32": tf32})
    folder = cache / "ort-trt"
    timings = hashlib.sha256(json.dumps(place, sort_keys=True).encode()).hexdigest()
    paths = {
        "trt_engine_cache_path": folder / "engines" / key,
        "trt_timing_cache_path": folder / "timings" / timings,
    }
    for path in paths.values():
        _make_folder(path)
    return {
        **options,
        **{name: str(path) for name, path in paths.items()},
        "trt_engine_cache_enable": "True",
        "trt_timing_cache_enable": "True",
    }


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OdinError(
            f"cannot keep TensorRT's engines in {path} ({error.strerror}): set XDG_CACHE_HOME to a "
            "folder that can be written to"
        ) from error


def _first_gpu() -> Device:
    driver = ask_driver()
    if driver.problem is not None:
        raise OdinError(driver.problem)
    return driver.devices[0]


def _limits(graph: Path, model: onnx.ModelProto) -> tuple[str, str, str] | None:
    """Smallest, usual and largest shapes of the images, if a bundle tells them."""
    inputs = {value.name for value in model.graph.input}
    if not is_bundle(graph.parent) or INPUT not in inputs:
        return None
    spec = read_bundle(graph.parent).spec
    limits = image_limits(spec, AskedShapes())
    if spec.input_type == "uint8" and _is_raw(model):
        limits = raw(limits)
    shapes = (limits.minimum, limits.optimum, limits.maximum)
    low, usual, high = (f"{INPUT}:{shape_text(shape)}" for shape in shapes)
    return low, usual, high


def _is_raw(model: onnx.ModelProto) -> bool:
    import onnx

    images = next(value for value in model.graph.input if value.name == INPUT)
    return images.type.tensor_type.elem_type == onnx.TensorProto.UINT8


def _check_assignment(
    provider: Provider, session: Any, model: onnx.ModelProto, graph: Path
) -> None:
    """Check that the GPU computes all that a GPU should.

    The option session.disable_cpu_ep_fallback is no help: it refuses every node on the CPU, and
    ONNX Runtime leaves to it on purpose what computes the sizes of tensors, which is a few numbers
    that the CPU has to know.

    Raises:
        OdinError: otherwise, naming what would be computed elsewhere.
    """
    used = session.get_providers()
    if used[0] != provider.name:
        raise OdinError(
            f"ONNX Runtime opened {graph} with {used[0]} in place of {provider.name}, and does not "
            "say why; odin-bench --doctor shows what is missing"
        )
    sizes = size_nodes(model)
    elsewhere = [
        node
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != provider.name
        for node in part.get_nodes()
        if node.name not in sizes
    ]
    if elsewhere:
        ops = ", ".join(sorted({node.op_type for node in elsewhere}))
        raise OdinError(
            f"ONNX Runtime's {provider.title} provider leaves {len(elsewhere)} nodes of {graph} to "
            f"the CPU, the first of them {elsewhere[0].name!r} (all are {ops}): use --engine ort, "
            "which computes all of them there"
        )


def size_nodes(model: onnx.ModelProto) -> frozenset[str]:
    """Names of the nodes that compute sizes of tensors, from sizes and constants alone."""
    constants = {tensor.name for tensor in model.graph.initializer}
    sizes: set[str] = set()
    names = set()
    for node in model.graph.node:  # each after those that it takes from
        inputs = {name for name in node.input if name}
        known = not inputs - sizes - constants and node.op_type not in _FILLING_OPS
        if node.op_type in ("Shape", "Size") or (known and inputs & sizes):
            sizes.update(node.output)
            names.add(node.name)
        elif known:
            constants.update(node.output)
    return frozenset(names)
