"""Plans are built by TensorRT for RTX, whose builder needs no GPU; TensorRT itself needs one.

What is built cannot be run here: these tests check what goes in, what the parser makes of it and
what the builder says of the result.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any

import onnx
import pytest
import torch

from odin_engines import plans
from odin_engines.bundle import FORWARD, GRADIENT, ODIN
from odin_engines.plan_messages import Messages, make_logger
from odin_engines.plan_records import FORMS
from odin_engines.plan_sets import PlanOptions, form_graphs, make_plans
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


def graphs_of(forward: onnx.ModelProto, spec: Spec) -> tuple[dict[str, bytes], Spec]:
    """A network's graphs in the precision that `spec` names, and the spec that says so."""
    scale = 1024.0 if spec.precision == "fp16" else 1.0
    spec = dataclasses.replace(spec, graph_precision=spec.precision, seed_scale=scale)
    mixed = in_mixed_precision(forward, spec.precision).forward
    made = {ODIN: odin_graph(mixed, spec), GRADIENT: gradient_graph(mixed, spec), FORWARD: mixed}
    return {name: graph.SerializeToString() for name, graph in made.items()}, spec


# The networks


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest, trt: ModuleType) -> tuple[onnx.ModelProto, Spec]:
    """The forward graph of one of the four networks, with random weights, and its spec."""
    info = NETWORKS[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        forward = forward_graph(info.build(info.classes).eval(), info.max_size)
    spec = Spec(
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
    return forward, spec


def every_run(model: str) -> list[tuple[str, str, str]]:
    """Precision, targets and form that are built in every run.

    Two networks of a kind differ in their number of classes alone: what one of them is built in,
    the other is not, so that both together have every precision in both forms.
    """
    targets, forms = ("desktop", "all"), FORMS
    if model.endswith("100"):
        targets, forms = targets[::-1], forms[::-1]
    return [
        (precision, targets[index % 2], forms[index % 2])
        for index, precision in enumerate(PRECISIONS)
    ]


def check_builds(
    network: tuple[onnx.ModelProto, Spec], precision: Any, target: str, form: str
) -> None:
    forward, spec = network
    graphs, spec = graphs_of(forward, dataclasses.replace(spec, precision=precision))
    options = PlanOptions("rtx", forms=(form,), compute_capabilities=TARGETS[target])
    made = make_plans(graphs, spec, options)
    assert list(made.contents) == [FILES[graph] for graph in form_graphs(form, spec)]
    # Every weight is in the plan, in its precision; other content is of the builder's making.
    least = (4 if precision == "fp32" else 2) * sum(map(size, forward.graph.initializer))
    for record in made.records:
        assert len(made.contents[record.file]) > least
        assert record.precision == precision
        wanted = TARGETS[target] or ("8.0", "8.6", "8.9", "12.0", "12.1")
        assert record.compute_capabilities == wanted


def size(tensor: onnx.TensorProto) -> int:
    count = 1
    for each in tensor.dims:
        count *= each
    return count


def test_a_network(trt: ModuleType, network: tuple[onnx.ModelProto, Spec]) -> None:
    """It is traced once, which takes as long as building."""
    for precision, target, form in every_run(network[1].model):
        check_layers(trt, network, precision)
        check_builds(network, precision, target, form)


def test_every_run_has_every_precision_form_and_target() -> None:
    for kind in ("densenet", "wideresnet"):
        built = [*every_run(f"{kind}10"), *every_run(f"{kind}100")]
        assert {(precision, form) for precision, _, form in built} == {
            (precision, form) for precision in PRECISIONS for form in FORMS
        }
        assert {target for _, target, _ in built} == set(TARGETS)


@pytest.mark.slow
def test_a_network_in_all_ways(network: tuple[onnx.ModelProto, Spec]) -> None:
    for precision in PRECISIONS:
        for target in TARGETS:
            for form in FORMS:
                if (precision, target, form) not in every_run(network[1].model):
                    check_builds(network, precision, target, form)


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


def check_layers(trt: ModuleType, network: tuple[onnx.ModelProto, Spec], precision: Any) -> None:
    """No layer and no output is lost in parsing."""
    forward, spec = network
    graphs, spec = graphs_of(forward, dataclasses.replace(spec, precision=precision))
    convolutions = Counter(node.op_type for node in forward.graph.node)["Conv"]
    assert convolutions > 20
    for name, graph in graphs.items():
        layers, outputs = parsed(trt, graph)
        ops = Counter(node.op_type for node in onnx.load_from_string(graph).graph.node)
        wanted = {layer: sum(ops[op] for op in names) for layer, names in LAYERS.items()}
        assert {layer: layers[layer] for layer in LAYERS} == wanted
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
    graphs, spec = graphs_of(tiny_forward, tiny_spec(precision=precision, **WAYS[way]))
    made = make_plans(graphs, spec, PlanOptions("rtx"))
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


# As the builder writes them: score (Float[-1]).
TENSOR = re.compile(r"([\w-]+) \((\w+)\[([^\]]*)\]")


def recorder(trt: ModuleType, said: list[str]) -> Any:
    class Recorder(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: object, msg: str) -> None:
            said.append(msg)

    return Recorder()
