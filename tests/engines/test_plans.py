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

from odin_engines import plans
from odin_engines.bundle import FORWARD, GRADIENT, ODIN
from odin_engines.errors import OdinError
from odin_engines.plan_messages import Messages, make_logger
from odin_engines.plan_sets import PlanOptions, make_plans
from odin_engines.plans import parse
from odin_engines.spec import Spec
from odin_export.forward import forward_graph
from odin_export.mixed import in_mixed_precision
from odin_export.networks import MIN_SIZE, NETWORKS
from odin_export.odin_graph import gradient_graph, odin_graph

SpecMaker = Callable[..., Spec]
PRECISIONS = ("fp32", "fp16", "bf16")
TARGETS: dict[str, tuple[str, ...]] = {"desktop": ("8.6", "8.9"), "all": ()}
FILES = {ODIN: "odin.rtx.plan", GRADIENT: "gradient.rtx.plan", FORWARD: "forward.rtx.plan"}


@pytest.fixture(scope="module")
def trt() -> ModuleType:
    reason = "install tensorrt-rtx-cu13: pip install '.[cpu,test,rtx]'"
    return pytest.importorskip("tensorrt_rtx", reason=reason)


def graphs_of(
    forward: onnx.ModelProto, spec: Spec, precision: Any
) -> tuple[dict[str, onnx.ModelProto], Spec]:
    """A network's graphs in a precision, and the spec that says so."""
    scale = 1024.0 if precision == "fp16" else 1.0
    spec = dataclasses.replace(
        spec, precision=precision, graph_precision=precision, seed_scale=scale
    )
    mixed = in_mixed_precision(forward, precision).forward
    made = {ODIN: odin_graph(mixed, spec), GRADIENT: gradient_graph(mixed, spec), FORWARD: mixed}
    return made, spec


def contents_of(graphs: dict[str, onnx.ModelProto]) -> dict[str, bytes]:
    return {name: graph.SerializeToString() for name, graph in graphs.items()}


# The networks

# Of the two networks of a kind, which differ in their number of classes alone, the targets that
# each is built for in every run; and in --run-slow for the other's.
EVERY_RUN = {10: "desktop", 100: "all"}


@pytest.fixture(scope="module", params=["densenet", "wideresnet"])
def forwards(request: pytest.FixtureRequest, trt: ModuleType) -> dict[str, onnx.ModelProto]:
    """The forward graphs of both networks of a kind, with random weights."""
    first, second = NETWORKS[f"{request.param}10"], NETWORKS[f"{request.param}100"]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        forward = forward_graph(first.build(first.classes).eval(), first.max_size)
    # Tracing takes as long as all plans of a network: once.
    return {first.name: forward, second.name: with_classes(forward, second.classes)}


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


def spec_of(name: str) -> Spec:
    info = NETWORKS[name]
    return Spec(
        model=info.name,
        architecture=info.architecture,
        checkpoint="random",
        checkpoint_sha256="0" * 64,
        classes=info.classes,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        height=(MIN_SIZE, info.max_size),
        width=(MIN_SIZE, info.max_size),
        activation_bytes=100_000_000,
    )


def check_builds(
    forward: onnx.ModelProto, contents: dict[str, bytes], spec: Spec, target: str
) -> None:
    """Both forms of a network's plans are built."""
    options = PlanOptions("rtx", compute_capabilities=TARGETS[target])
    made = make_plans(contents, spec, options)
    assert list(made.contents) == list(FILES.values())
    # Every weight is in the plan, in its precision; other content is of the builder's making.
    least = (4 if spec.precision == "fp32" else 2) * sum(map(size, forward.graph.initializer))
    newer = ("8.0", "8.6", "8.9", "12.0", "12.1")
    every = ("7.5", *newer) if spec.precision == "fp16" else newer
    for record in made.records:
        assert len(made.contents[record.file]) > least
        assert record.precision == spec.precision
        assert record.compute_capabilities == (TARGETS[target] or every)


def size(tensor: onnx.TensorProto) -> int:
    return math.prod(tensor.dims)


def test_the_networks(trt: ModuleType, forwards: dict[str, onnx.ModelProto]) -> None:
    """Each network, in each precision, fused and split."""
    for name, forward in forwards.items():
        for precision in PRECISIONS:
            graphs, spec = graphs_of(forward, spec_of(name), precision)
            contents = contents_of(graphs)
            check_layers(trt, forward, graphs, contents, spec)
            check_builds(forward, contents, spec, EVERY_RUN[spec.classes])


@pytest.mark.slow
def test_the_networks_for_the_other_targets(forwards: dict[str, onnx.ModelProto]) -> None:
    for name, forward in forwards.items():
        for precision in PRECISIONS:
            graphs, spec = graphs_of(forward, spec_of(name), precision)
            for target in TARGETS.keys() - {EVERY_RUN[spec.classes]}:
                check_builds(forward, contents_of(graphs), spec, target)


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
# Those of which the parser adds some of its own, to compute sizes and to fit types.
LAYERS_AT_LEAST = {
    "ELEMENTWISE": ("Add", "Sub", "Mul", "Div", "Equal", "Greater", "Less"),
    "CAST": ("Cast",),
    "SLICE": ("Slice", "Pad"),
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
    for name, graph in graphs.items():
        layers, outputs = parsed(trt, contents[name])
        ops = Counter(node.op_type for node in graph.graph.node)
        wanted = {layer: sum(ops[op] for op in names) for layer, names in LAYERS.items()}
        assert {layer: layers[layer] for layer in LAYERS} == wanted
        for layer, names in LAYERS_AT_LEAST.items():
            assert layers[layer] >= sum(ops[op] for op in names)
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
    monkeypatch: pytest.MonkeyPatch,
    precision: Any,
    way: str,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(plans, "make_logger", lambda trt, messages: recorder(trt, said))
    graphs, spec = graphs_of(tiny_forward, tiny_spec(**WAYS[way]), precision)
    made = make_plans(contents_of(graphs), spec, PlanOptions("rtx"))
    expected = [ODIN, GRADIENT] if spec.method == "first-order" else [ODIN, GRADIENT, FORWARD]
    assert [record.graph for record in made.records] == expected
    layers = [text for text in said if text.startswith("Engine Layer Information")]
    for graph, text in zip(expected, layers, strict=True):
        types = {"FLOAT": "Float", "INT64": "Int64"}
        wanted = {name: types[dtype] for name, (dtype, _) in OUTPUTS[graph].items()}
        if graph == ODIN:
            wanted |= dict.fromkeys(spec.scores, "Float")
        tensors = {name: (dtype, shape) for name, dtype, shape in TENSOR.findall(text)}
        assert wanted == {name: tensors[name][0] for name in wanted}
        raw = graph == ODIN and spec.input_type == "uint8"
        assert tensors["images"] == (("UInt8", "-1,32,32,3") if raw else ("Float", "-1,3,32,32"))


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
    with pytest.raises(OdinError, match=r"(?i)sm75.*leave 7\.5 out of --computeCapabilities"):
        make_plans(contents, spec, for_turing)


# As the builder writes them: score (Float[-1]).
TENSOR = re.compile(r"([\w-]+) \((\w+)\[([^\]]*)\]")


def recorder(trt: ModuleType, said: list[str]) -> Any:
    class Recorder(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: object, msg: str) -> None:
            said.append(msg)

    return Recorder()
