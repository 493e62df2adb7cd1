"""Networks written in float16 and bfloat16: what in them is in which type, and that it fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from export import half
from odin_engines.errors import OdinError
from odin_engines.spec import Precision, Spec
from odin_export import mixed
from odin_export.half_range import check_activations
from odin_export.mixed import in_mixed_precision
from odin_export.networks import NETWORKS
from odin_export.odin_graph import gradient_graph, odin_graph
from odin_export.precision import in_precision
from tracing import Trace

SpecMaker = Callable[..., Spec]
HALVES: tuple[Precision, ...] = ("fp16", "bf16")
FLOAT = ir.DataType.FLOAT
each_half = pytest.mark.parametrize("precision", HALVES)


def graphs_of(
    forward: onnx.ModelProto, spec: Spec, precision: Precision
) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Every graph that a bundle of this precision may hold."""
    written = in_mixed_precision(forward, precision).forward
    yield "forward", written
    for tunable in (False, True):
        own = dataclasses.replace(half.in_half(spec, precision, 64.0), tunable=tunable)
        yield f"gradient, tunable {tunable}", gradient_graph(written, own)
        for method in ("exact", "first-order"):
            for kind in ("float32", "uint8"):
                this = dataclasses.replace(own, method=method, input_type=kind)
                yield f"{method}, {kind}, tunable {tunable}", odin_graph(written, this)


# Every type


@each_half
def test_every_graph_is_strongly_typed(
    tiny_forward: onnx.ModelProto, tiny_spec: SpecMaker, precision: Precision
) -> None:
    for name, model in graphs_of(tiny_forward, tiny_spec(), precision):
        onnx.checker.check_model(model, full_check=True)
        graph = ir.from_proto(model).graph
        given, *scalars = [value.dtype for value in graph.inputs]
        assert given == (ir.DataType.UINT8 if "uint8" in name else FLOAT)
        assert set(scalars) <= {FLOAT}
        for value in graph.outputs:
            assert value.dtype == (ir.DataType.INT64 if value.name == "label" else FLOAT)


@each_half
def test_the_network_computes_in_half_precision(
    tiny_forward: onnx.ModelProto, tiny_spec: SpecMaker, precision: Precision
) -> None:
    own = half.DTYPES[precision]
    for name, model in graphs_of(tiny_forward, tiny_spec(), precision):
        halves, floats = half.ops_in(model, own), half.ops_in(model, FLOAT)
        other = next(dtype for dtype in half.HALVES if dtype != own)
        assert not half.ops_in(model, other)
        passes = 1 if name == "forward" else 2 if "exact" not in name else 3
        ends = passes if precision == "bf16" else 0  # first and last products are float32
        assert halves["Conv"] == 3 * passes - ends, name
        assert floats["Conv"] == ends, name
        assert floats["Gemm"] == ends, name
        assert "ConvTranspose" not in half.ops_in(model, ir.DataType.BFLOAT16)
        if name != "forward":
            assert floats["Softmax"] >= 1
            assert not halves["Softmax"]


@pytest.fixture(scope="module", params=["densenet10", "wideresnet10"])
def large_forward(request: pytest.FixtureRequest, trace_once: Trace) -> onnx.ModelProto:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = NETWORKS[request.param].build(10)
    return trace_once(network.eval(), NETWORKS[request.param].max_size)


@each_half
def test_the_four_networks(
    large_forward: onnx.ModelProto, precision: Precision, tiny_spec: SpecMaker
) -> None:
    """Typed throughout; 32-bit convolutions are those that touch images, in bfloat16."""
    written = in_mixed_precision(large_forward, precision).forward
    model = odin_graph(written, half.in_half(tiny_spec(), precision, 2.0))
    onnx.checker.check_model(model, full_check=True)
    floats, halves = half.ops_in(model, FLOAT), half.ops_in(model, half.DTYPES[precision])
    assert floats["Conv"] == (3 if precision == "bf16" else 0)
    assert halves["Conv"] > 60
    if precision == "bf16":
        assert not halves["ConvTranspose"]
    weights = [t for t in written.graph.initializer if t.data_type == int(half.DTYPES[precision])]
    share = sum(len(t.raw_data) for t in weights) / written.ByteSize()
    assert share > 0.8


# What is in which type


@each_half
@pytest.mark.parametrize(
    ("body", "op", "wide"),
    [
        ("b = Relu (a)", "Relu", False),
        ("b = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (a)", "MaxPool", False),
        ("b = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (a)", "AveragePool", False),
        ("b = Sigmoid (a)", "Sigmoid", True),
        ("b = Softmax <axis = 1> (a)", "Softmax", True),
        ("b = BatchNormalization (a, c, c, c, c)", "BatchNormalization", True),
        ("b = InstanceNormalization (a, c, c)", "InstanceNormalization", True),
        ("b = Exp (a)", "Exp", True),
        ("m = GlobalAveragePool (a) b = Sub (a, m)", "Sub", True),
        ("m = GlobalMaxPool (a) b = Sub (a, m)", "Sub", False),
        ("m = Mul (a, a) b = Sqrt (m)", "Mul", True),
    ],
)
def test_where_an_op_computes(body: str, op: str, wide: bool, precision: Precision) -> None:
    """Sums and smooth functions in float32, and what they alone use; the rest in half."""
    result = in_mixed_precision(half.parsed(f"{half.START} {body} {half.END}"), precision)
    assert result.notes == []
    found = next(node for node in ir.from_proto(result.forward).graph if node.op_type == op)
    assert found.outputs[0].dtype == (FLOAT if wide else half.DTYPES[precision])
    # And what a convolution takes is half again.
    last = [node for node in ir.from_proto(result.forward).graph if node.op_type == "Conv"][-1]
    assert last.inputs[0] is not None
    assert last.inputs[0].dtype == half.DTYPES[precision]
    onnx.checker.check_model(result.forward, full_check=True)


BEFORE_PRODUCTS = {
    "Pad": "a = Pad (x, pads)",
    "AveragePool": "a = AveragePool <kernel_shape = [3, 3], pads = [2, 2, 2, 2]> (x)",
}


@pytest.mark.parametrize("op", BEFORE_PRODUCTS)
def test_ends_in_bfloat16(op: str) -> None:
    """The image reaches the first product unrounded, and logits leave the last one so."""
    body = f"{BEFORE_PRODUCTS[op]} p = Conv (a, w) " + half.END.replace("(b, v)", "(p, v)")
    model = half.parsed(body, {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])})
    found = in_mixed_precision(model, "bf16").forward
    first, last = (node for node in ir.from_proto(found).graph if node.op_type == "Conv")
    assert (first.outputs[0].dtype, last.outputs[0].dtype) == (FLOAT, ir.DataType.BFLOAT16)
    assert half.ops_in(found, FLOAT)[op] == half.ops_in(found, FLOAT)["MatMul"] == 1
    in_float16 = in_mixed_precision(model, "fp16").forward
    assert not {"Conv", "MatMul", op} & set(half.ops_in(in_float16, FLOAT))


def test_bfloat16_has_no_transposed_convolution() -> None:
    """Not in the forward pass, nor in the gradient of a strided convolution."""
    up = "t = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (a, w) "
    up += "b = ConvTranspose <strides = [2, 2], kernel_shape = [2, 2]> (t, u)"
    model = half.parsed(f"{half.START} {up} {half.END}", {"u": np.full((4, 4, 2, 2), 0.1)})
    forward = in_mixed_precision(model, "bf16").forward
    spec = half.in_half(half.spec_of(model), "bf16")
    for graph in (forward, gradient_graph(forward, spec), odin_graph(forward, spec)):
        assert "ConvTranspose" not in half.ops_in(graph, ir.DataType.BFLOAT16)
        onnx.checker.check_model(graph, full_check=True)
    assert half.ops_in(forward, FLOAT)["ConvTranspose"] == 1
    assert (
        half.ops_in(in_mixed_precision(model, "fp16").forward, ir.DataType.FLOAT16)["ConvTranspose"]
        == 1
    )


# What half precision cannot hold


@pytest.mark.parametrize(
    ("body", "weights", "part"),
    [
        ("b = Add (a, big)", {"big": [[[[-3.4028e38]], [[0.0]], [[0.0]], [[0.0]]]]}, "-3.4"),
        ("b = Conv <pads = [1, 1, 1, 1]> (a, large)", {"large": np.full((4, 4, 3, 3), 1e5)}, "1e5"),
        ("b = Max (a, tiny)", {"tiny": 1e-9}, "too small"),
    ],
    ids=["mask", "weight", "epsilon"],
)
def test_constants_that_do_not_fit_stay_in_float32(
    body: str, weights: dict[str, np.ndarray], part: str
) -> None:
    model = half.parsed(f"{half.START} {body} {half.END}", weights)
    result = in_mixed_precision(model, "fp16")
    (note,) = result.notes
    assert "stays in float32" in note
    assert next(iter(weights)) in note
    assert part in note or "more than 65504" in note
    for tensor in result.forward.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        assert np.isfinite(array.astype(np.float64)).all()
        assert array.any() or tensor.name not in weights
    onnx.checker.check_model(result.forward, full_check=True)


def test_infinite_constants_stay_infinite() -> None:
    model = half.parsed(
        f"{half.START} b = Clip (a, low, high) {half.END}", {"low": -np.inf, "high": np.inf}
    )
    assert in_mixed_precision(model, "fp16").notes == []


def test_activations_that_overflow_are_refused() -> None:
    model = half.parsed(
        f"{half.START} b = Mul (a, factor) {half.END}", {"factor": np.full((1, 4, 1, 1), 6e4)}
    )
    forward = in_mixed_precision(model, "fp16").forward
    with pytest.raises(OdinError, match=r"\(Mul\) computes reaches .* float16 ends at 65504"):
        check_activations(forward, half.in_half(half.spec_of(model), "fp16"))
    check_activations(forward, half.in_half(half.spec_of(model), "bf16"))  # it has the range


def test_what_a_branch_decides_has_no_half_precision() -> None:
    body = f"""{half.START} m = ReduceMax <keepdims = 0> (a) s = Cast <to = 9> (m)
    b = If (s) <then_branch = t () => (float[N, 4, 8, 8] p) {{ p = Relu (a) }},
                else_branch = e () => (float[N, 4, 8, 8] q) {{ q = Neg (a) }}> {half.END}"""
    with pytest.raises(OdinError, match=r"\(If\).*use --precision fp32"):
        in_mixed_precision(half.parsed(body), "fp16")


@each_half
def test_what_was_written_is_written_again(
    tiny_forward: onnx.ModelProto, precision: Precision
) -> None:
    """A bundle's own forward graph is a classifier like others, with names like those made here."""
    once = in_mixed_precision(tiny_forward, precision).forward
    again = in_mixed_precision(in_precision(once, FLOAT), precision).forward
    onnx.checker.check_model(again, full_check=True)
    assert half.ops_in(again, half.DTYPES[precision])["Conv"] >= 2
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    found, expected = (half.run(half.rounding(each), images)["logits"] for each in (again, once))
    np.testing.assert_array_equal(found, expected)


def test_older_models_are_converted_for_bfloat16(
    tiny_forward: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiny_forward.opset_import[0].version == 20
    assert in_mixed_precision(tiny_forward, "bf16").forward.opset_import[0].version == half.OPSET
    assert in_mixed_precision(tiny_forward, "fp16").forward.opset_import[0].version == 20

    def fails(model: onnx.ModelProto, version: int) -> None:
        raise RuntimeError("no adapter")

    monkeypatch.setattr(mixed.onnx.version_converter, "convert_version", fails)
    with pytest.raises(OdinError, match=r"opset 20 cannot be converted \(no adapter\); export it"):
        in_mixed_precision(tiny_forward, "bf16")
