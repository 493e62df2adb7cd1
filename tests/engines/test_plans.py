"""Plans are built by TensorRT for RTX, whose builder needs no GPU; TensorRT itself needs one.

What is built cannot be run here: these tests check what goes in, what the parser makes of it and
what the builder says of the result.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from odin_engines import plans
from odin_engines.bundle import FORWARD, GRADIENT, ODIN
from odin_engines.errors import OdinError
from odin_engines.plan_messages import Messages, make_logger
from odin_engines.plan_sets import PlanOptions, PlanSet, graph_outputs, make_plans, wanted_plans
from odin_engines.plans import build_plan, parse
from odin_engines.spec import Spec
from odin_export.checkpoint import load_network
from odin_export.forward import forward_graph
from odin_export.half_range import seed_scale
from odin_export.mixed import in_mixed_precision
from odin_export.networks import MIN_SIZE, NETWORKS, RELEASE_MEAN, RELEASE_STD, DenseNetBC
from odin_export.odin_graph import gradient_graph, odin_graph
from tracing import Trace

SpecMaker = Callable[..., Spec]
PRECISIONS = ("fp32", "fp16", "bf16")
TARGETS: dict[str, tuple[str, ...]] = {"desktop": ("8.6", "8.9"), "all": ()}
FILES = {ODIN: "odin.rtx.plan", GRADIENT: "gradient.rtx.plan", FORWARD: "forward.rtx.plan"}


@pytest.fixture(scope="module")
def trt() -> ModuleType:
    reason = "install tensorrt-rtx-cu13: pip install '.[cpu,test,rtx]'"
    return pytest.importorskip("tensorrt_rtx", reason=reason)


def graphs_of(
    forward: onnx.ModelProto, spec: Spec, precision: Any, own_scale: bool = False
) -> tuple[dict[str, onnx.ModelProto], Spec]:
    """A network's graphs in a precision, and the spec that says so.

    `own_scale`: the seed's scale is what odin-export takes for the network; it takes seconds.
    """
    mixed = in_mixed_precision(forward, precision).forward
    spec = dataclasses.replace(spec, precision=precision, graph_precision=precision)
    if precision == "fp16":
        scale = seed_scale(mixed, spec) if own_scale else 1024.0
        spec = dataclasses.replace(spec, seed_scale=scale)
    made = {ODIN: odin_graph(mixed, spec), GRADIENT: gradient_graph(mixed, spec), FORWARD: mixed}
    return made, spec


def contents_of(graphs: dict[str, onnx.ModelProto]) -> dict[str, bytes]:
    return {name: graph.SerializeToString() for name, graph in graphs.items()}


# The networks


@pytest.fixture(scope="module", params=["densenet", "wideresnet"])
def forwards(
    request: pytest.FixtureRequest, trt: ModuleType, trace_once: Trace
) -> dict[str, onnx.ModelProto]:
    """The forward graphs of both networks of a kind: densenet10 as it is exported, else random."""
    first, second = NETWORKS[f"{request.param}10"], NETWORKS[f"{request.param}100"]
    if first.name == "densenet10":
        network, _ = load_network(first.name, None)
    else:
        network = seeded(lambda: first.build(first.classes))
    forward = trace_once(network, first.max_size)
    return {first.name: forward, second.name: with_classes(forward, second.classes)}


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return build().eval()


def with_classes(forward: onnx.ModelProto, classes: int) -> onnx.ModelProto:
    """The same network with another last layer."""
    made = onnx.ModelProto()
    made.CopyFrom(forward)
    (last,) = (node for node in made.graph.node if node.op_type == "Gemm")
    (transposed,) = (each.i for each in last.attribute if each.name == "transB")
    assert transposed
    weights = {tensor.name: tensor for tensor in made.graph.initializer}
    generator = np.random.default_rng(1)
    for name in last.input[1:]:
        sizes = (classes, *weights[name].dims[1:])
        values = generator.standard_normal(sizes).astype(np.float32)
        weights[name].CopyFrom(onnx.numpy_helper.from_array(values, name))
    axes = {last.output[0]: 1, **dict.fromkeys(last.input[1:], 0)}  # where the classes are
    for value in (*made.graph.output, *made.graph.value_info):
        if value.name in axes:
            value.type.tensor_type.shape.dim[axes[value.name]].dim_value = classes
    onnx.checker.check_model(made, full_check=True)
    return made


def test_the_number_of_classes_is_in_the_last_layer_alone() -> None:
    """So that `with_classes` makes what the other network's own forward graph is."""
    ten, hundred = (
        forward_graph(seeded(lambda n=n: DenseNetBC(n, depth=10)), 63) for n in (10, 100)
    )
    made = with_classes(ten, 100)
    assert list(made.graph.node) == list(hundred.graph.node)
    for field in ("input", "output", "value_info"):
        assert list(getattr(made.graph, field)) == list(getattr(hundred.graph, field))
    found, wanted = (
        {tensor.name: (tensor.data_type, tuple(tensor.dims)) for tensor in graph.initializer}
        for graph in (made.graph, hundred.graph)
    )
    assert found == wanted


def spec_of(name: str) -> Spec:
    info = NETWORKS[name]
    return Spec(
        model=info.name,
        architecture=info.architecture,
        checkpoint="random",
        checkpoint_sha256="0" * 64,
        classes=info.classes,
        mean=RELEASE_MEAN,
        std=RELEASE_STD,
        height=(MIN_SIZE, info.max_size),
        width=(MIN_SIZE, info.max_size),
        activation_bytes=100_000_000,
    )


def check_builds(
    trt: ModuleType,
    forward: onnx.ModelProto,
    contents: dict[str, bytes],
    spec: Spec,
    target: str,
) -> None:
    """Both forms of a network's plans are built."""
    options = PlanOptions("rtx", compute_capabilities=TARGETS[target])
    made, engines = built(trt, contents, spec, options)
    assert list(made.contents) == list(FILES.values())
    # Every weight is in the plan, in its precision; other content is of the builder's making.
    least = (4 if spec.precision == "fp32" else 2) * sum(map(size, forward.graph.initializer))
    newer = ("8.0", "8.6", "8.9", "12.0", "12.1")
    every = ("7.5", *newer) if spec.precision == "fp16" else newer
    for record, tensors in zip(made.records, engines, strict=True):
        assert len(made.contents[record.file]) > least
        assert record.precision == spec.precision
        assert record.compute_capabilities == (TARGETS[target] or every)
        check_tensors(tensors, record.graph, spec)


def size(tensor: onnx.TensorProto) -> int:
    return math.prod(tensor.dims)


def check_tensors(tensors: dict[str, tuple[str, str]], graph: str, spec: Spec) -> None:
    """Images and outputs of a plan are of the types and sizes that they should be."""
    outputs = {
        name: (BUILT[dtype], ",".join(str(spec.classes if n == "classes" else n) for n in shape))
        for name, (dtype, shape) in OUTPUTS[graph].items()
    }
    if graph == GRADIENT:
        outputs["input_gradient"] = ("Float", "-1,3,32,32")  # all images are of the usual size
    if graph == ODIN:
        outputs |= dict.fromkeys(spec.scores, ("Float", "-1"))
    assert outputs == {name: tensors.get(name) for name in outputs}
    raw = graph == ODIN and spec.input_type == "uint8"
    assert tensors["images"] == (("UInt8", "-1,32,32,3") if raw else ("Float", "-1,3,32,32"))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_networks(
    trt: ModuleType, forwards: dict[str, onnx.ModelProto], precision: str
) -> None:
    """Each network, in each precision, fused and split, for each set of targets."""
    for name, forward in forwards.items():
        own_scale = name == "densenet10"
        graphs, spec = graphs_of(forward, spec_of(name), precision, own_scale)
        if own_scale and precision == "fp16":
            assert spec.seed_scale > 1
        contents = contents_of(graphs)
        check_layers(trt, forward, graphs, contents, spec)
        for target in TARGETS:
            check_builds(trt, forward, contents, spec, target)


# ONNX ops and the layers that the parser makes of them, one for each node.
LAYERS = {
    "CONVOLUTION": ("Conv",),
    "DECONVOLUTION": ("ConvTranspose",),
    "SCALE": ("BatchNormalization",),
    "ACTIVATION": ("Relu",),
    "POOLING": ("AveragePool",),
    "MATRIX_MULTIPLY": ("Gemm",),
    "CONCATENATION": ("Concat",),
    "TOPK": ("ArgMax",),
    "SOFTMAX": ("Softmax",),
    "SELECT": ("Where",),
    "RESIZE": ("Resize",),
    "REDUCE": ("ReduceMax", "ReduceSum"),
    "UNARY": ("Neg", "Abs", "Exp"),
}
# Those of which the parser adds some of its own, to compute sizes and to fit types ...
LAYERS_AND_MORE = {
    "ELEMENTWISE": ("Add", "Sub", "Mul", "Div", "Equal", "Greater", "Less"),
    "CAST": ("Cast",),
    "SLICE": ("Slice", "Pad"),
}
# ... and how many, in that order, of the version that is known.
KNOWN = "1.7."
ADDED = {
    "densenet": {ODIN: (2139, 305, 6), GRADIENT: (2138, 303, 6), FORWARD: (1, 0, 0)},
    "wideresnet": {ODIN: (431, 71, 4), GRADIENT: (430, 69, 4), FORWARD: (1, 0, 0)},
    # Whose strided convolutions have their gradient without ConvTranspose.
    "wideresnet in bf16": {ODIN: (465, 81, 2), GRADIENT: (464, 79, 2), FORWARD: (1, 0, 0)},
}
OUTPUTS = {
    ODIN: {
        "score": ("FLOAT", (-1,)),
        "baseline": ("FLOAT", (-1,)),
        "label": ("INT64", (-1,)),
        "logits": ("FLOAT", (-1, "classes")),
    },
    GRADIENT: {"logits": ("FLOAT", (-1, "classes")), "input_gradient": ("FLOAT", (-1, 3, -1, -1))},
    FORWARD: {"logits": ("FLOAT", (-1, "classes"))},
}
# The builder's names of these types.
BUILT = {"FLOAT": "Float", "INT64": "Int64"}
# How often each graph holds the network: forward, backward, forward once more.
PASSES = {ODIN: 3, GRADIENT: 2, FORWARD: 1}


def check_layers(
    trt: ModuleType,
    forward: onnx.ModelProto,
    graphs: dict[str, onnx.ModelProto],
    contents: dict[str, bytes],
    spec: Spec,
) -> None:
    """No layer and no output is lost in parsing."""
    convolutions = Counter(node.op_type for node in forward.graph.node)["Conv"]
    assert convolutions > 20
    kind = spec.model.rstrip("01")
    if (kind, spec.precision) == ("wideresnet", "bf16"):
        kind = "wideresnet in bf16"
    for name, graph in graphs.items():
        layers, outputs = parsed(trt, contents[name])
        ops = Counter(node.op_type for node in graph.graph.node)
        wanted = {layer: sum(ops[op] for op in names) for layer, names in LAYERS.items()}
        assert {layer: layers[layer] for layer in LAYERS} == wanted
        added = [
            layers[layer] - sum(ops[op] for op in names) for layer, names in LAYERS_AND_MORE.items()
        ]
        if trt.__version__.startswith(KNOWN):
            assert tuple(added) == ADDED[kind][name]
        assert min(added) >= 0
        assert layers["CONVOLUTION"] + layers["DECONVOLUTION"] == PASSES[name] * convolutions
        assert outputs == {
            output: (dtype, tuple(spec.classes if each == "classes" else each for each in shape))
            for output, (dtype, shape) in OUTPUTS[name].items()
        }


def parsed(trt: ModuleType, graph: bytes) -> tuple[Counter[str], dict[str, Any]]:
    """The number of layers of each type, and type and shape of each output by name."""
    logger = make_logger(trt, Messages())
    builder = trt.Builder(logger)
    made, obstacle = parse(trt, builder, logger, graph)
    assert obstacle is None
    layers = Counter(made.get_layer(index).type.name for index in range(made.num_layers))
    outputs = [made.get_output(index) for index in range(made.num_outputs)]
    return layers, {each.name: (each.dtype.name, tuple(each.shape)) for each in outputs}


# A tiny network, in every way


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "first order": {"method": "first-order"},
    "raw": {"input_type": "uint8"},
    "tunable": {"tunable": True},
    "scores": {"scores": ("energy", "gen", "cam-max")},
    "no step": {"magnitude": 0.0},
}


@pytest.mark.parametrize(
    ("precision", "way"),
    [
        *(("fp32", way) for way in WAYS),
        *(("fp16", way) for way in ("plain", "raw")),
        *(("bf16", way) for way in ("plain", "scores")),
    ],
)
def test_what_the_builder_says_of_the_plans(
    trt: ModuleType,
    tiny_forward: onnx.ModelProto,
    tiny_spec: SpecMaker,
    precision: Any,
    way: str,
) -> None:
    graphs, spec = graphs_of(tiny_forward, tiny_spec(**WAYS[way]), precision)
    made, engines = built(trt, contents_of(graphs), spec, PlanOptions("rtx"))
    expected = [ODIN, GRADIENT] if spec.method == "first-order" else [ODIN, GRADIENT, FORWARD]
    assert [record.graph for record in made.records] == expected
    for graph, tensors in zip(expected, engines, strict=True):
        check_tensors(tensors, graph, spec)


@pytest.mark.parametrize(
    ("precision", "fields"),
    [("fp32", {}), ("bf16", {}), ("fp16", {"scores": ("cam-max",)})],
)
def test_what_turing_does_not_take(
    trt: ModuleType,
    tiny_forward: onnx.ModelProto,
    tiny_spec: SpecMaker,
    precision: Any,
    fields: dict[str, Any],
) -> None:
    """So plans are for it by default in all other cases alone."""
    graphs, spec = graphs_of(tiny_forward, tiny_spec(**fields), precision)
    contents = contents_of(graphs)
    make_plans(contents, spec, PlanOptions("rtx", forms=("fused",)))
    for_turing = PlanOptions("rtx", forms=("fused",), compute_capabilities=("7.5", "8.6"))
    with pytest.raises(OdinError, match=r"--computeCapabilities 7\.5: .*leave 7\.5 out"):
        make_plans(contents, spec, for_turing)
    # And the builder would indeed refuse.
    (record,) = wanted_plans(spec, PlanOptions("rtx", forms=("fused",)))
    record = dataclasses.replace(record, compute_capabilities=("7.5", "8.6"))
    with pytest.raises(OdinError, match=r"(?i)sm75.*leave 7\.5 out of --computeCapabilities"):
        build_plan(trt, contents[ODIN], record, graph_outputs(ODIN, spec))


# As the builder writes them: score (Float[-1]).
TENSOR = re.compile(r"([\w-]+) \((\w+)\[([^\]]*)\]")


def built(
    trt: ModuleType, contents: dict[str, bytes], spec: Spec, options: PlanOptions
) -> tuple[PlanSet, list[dict[str, tuple[str, str]]]]:
    """Plans, and type and sizes of the tensors in each of them by name, as its builder says."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "make_logger", lambda trt, messages: recorder(trt, said))
        made = make_plans(contents, spec, options)
    return made, [
        {name: (dtype, shape) for name, dtype, shape in TENSOR.findall(text)} for text in said
    ]


def recorder(trt: ModuleType, said: list[str]) -> Any:
    class Recorder(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: object, msg: str) -> None:
            if msg.startswith("Engine Layer Information"):
                said.append(msg)

    return Recorder()
