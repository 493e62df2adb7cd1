"""ONNX's own test models, one for each behaviour of each op, as cases for the gradient.

The `onnx` package makes them in memory, with inputs and expected outputs. Each floating-point input
takes its turn as the image, with the others as constants; everything is computed in float64. What
is claimed: the evaluator returns what ONNX expects, and the gradient is that of differences.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnx.backend.test.case.test_case import TestCase

from export.rule_cases import random_for
from odin_engines.errors import OdinError
from odin_export import clean
from odin_export.backward import input_gradient
from odin_export.composed import COMPOSED
from odin_export.evaluate import evaluator
from odin_export.precision import FLOATS, in_precision
from odin_export.rules import NO_GRADIENT, RULES

Arrays = dict[str, np.ndarray]

# Ops that pass floating-point numbers on and have no rule: their cases are not checked.
WITHOUT_RULE = {
    "losses, which a classifier does not end in": (
        "NegativeLogLikelihoodLoss",
        "SoftmaxCrossEntropyLoss",
    ),
    "control flow that the image decides": ("If", "Loop", "Scan"),
    "quantisation": ("DequantizeLinear", "DynamicQuantizeLinear"),
    "recurrent": ("GRU", "LSTM", "RNN"),
    "sampling at positions, detection": (
        *("AffineGrid", "Col2Im", "DeformConv", "GridSample", "RoiAlign"),
    ),
    "signals and linear algebra": ("DFT", "Det", "MelWeightMatrix", "STFT"),
    "random": ("Bernoulli", "RandomUniformLike"),
    "of no use between image and logits": (
        *("CumProd", "MaxUnpool", "Mod", "OneHot", "OptionalGetElement", "Range"),
        *("TensorScatter", "Unique"),
    ),
    "newer than the newest opset that is read": (
        *("CausalConvWithState", "LinearAttention", "SwiGLU", "ai.onnx.preview::FlexAttention"),
    ),
    "withdrawn from the opsets that are read": ("Scatter", "Upsample"),
    "training": (
        *("ai.onnx.preview.training::Adagrad", "ai.onnx.preview.training::Adam"),
        "ai.onnx.preview.training::Momentum",
    ),
    "classical machine learning": (
        *("ai.onnx.ml::ArrayFeatureExtractor", "ai.onnx.ml::Binarizer"),
        "ai.onnx.ml::TreeEnsemble",
    ),
}

# Cases whose ops have rules and that are not tried all the same.
EXCLUDED = {
    "test_batchnorm_epsilon_training_mode": "training, which the evaluator does not run",
    "test_batchnorm_example_training_mode": "training, which the evaluator does not run",
    "test_celu": "takes only float32 up to opset 27; checked in its expanded form",
    "test_celu_bfloat16": "a type that the op takes after opset 25",
    "test_celu_float16": "a type that the op takes after opset 25",
    "test_compress_bfloat16": "a type that the op takes after opset 25",
    "test_dropout_random_old": "opset 12, changed since",
    "test_dynamicquantizelinear_expanded": "quantisation, which does not take float64",
    "test_dynamicquantizelinear_max_adjusted_expanded": "quantisation",
    "test_dynamicquantizelinear_min_adjusted_expanded": "quantisation",
    "test_einsum_batch_matmul_bfloat16": "a type that the op takes after opset 25",
    "test_einsum_sum_bfloat16": "a type that the op takes after opset 25",
    "test_einsum_transpose_bfloat16": "a type that the op takes after opset 25",
    "test_mvn": "ONNX does not infer its type in float64; checked in its expanded form",
    "test_reversesequence_bfloat16": "a type that the op takes after opset 25",
    "test_spacetodepth_crd_mode_example": "an attribute that is newer than opset 25",
    "test_spacetodepth_dcr_mode_example": "an attribute that is newer than opset 25",
}

# Inputs, as `case:input` with wildcards, whose gradient is refused with a message.
REFUSED = {
    "test_batchnorm_*:[!x]*": "its parameters made from the image",
    "test_basic_conv_*:W": "a weight made from the image",
    "test_causal_conv_with_state_*_expanded:bias": "a bias made from the image",
    "test_causal_conv_with_state_*_expanded:weight": "a weight made from the image",
    "test_constant_pad*:value": "a padding value made from the image",
    "test_conv_with_*:W": "a weight made from the image",
    "test_convtranspose*:W": "a weight made from the image",
    "test_convtranspose_output_shape:X": "larger than what the windows reach: engines differ",
    "test_einsum_batch_diagonal:x": "the diagonal of a matrix",
    "test_resize_*:scales": "sizes made from the image",
    "test_resize_downsample_scales_*_align_corners:X": "scales that do not fit: engines differ",
    "test_resize_tf_crop_and_resize*": "it crops to a region of interest",
    "test_scatter*_m[aiu][nlx]*:*": "a reduction other than the sum",
    "test_training_dropout*_default*:x": "training",
    "test_training_dropout*:r": "a ratio made from the image",
    "test_training_dropout:x": "training",
    "test_training_dropout_mask:x": "training",
}

# Known faults, by case with wildcards: the test fails as soon as one is repaired.
FAULTS: dict[str, str] = {}

# Inputs that are moved to where the output is a number.
MOVED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "test_acosh_example:x": lambda x: x + 0.5,
    "test_pow:x": np.abs,
}

# How many cases are checked with ONNX_VERSION: fewer mean that some were lost.
ONNX_VERSION, FLOOR = "1.23", 910

STEP = 1e-6
TOLERANCE = 1e-6


@dataclass(frozen=True)
class OnnxCase:
    """A model with one set of inputs and the outputs that ONNX expects."""

    name: str
    graph: onnx.GraphProto
    model: onnx.ModelProto
    inputs: Arrays
    expected: Arrays
    tolerance: float


@cache
def collected() -> dict[str, OnnxCase]:
    """All of ONNX's test cases by name; making them takes seconds and warns a lot."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return {each.name: _case(each) for each in collect_testcases(None)}


def _case(each: TestCase) -> OnnxCase:
    assert each.model is not None
    assert each.data_sets is not None
    graph, ((inputs, outputs),) = each.model.graph, each.data_sets
    return OnnxCase(
        each.name,
        graph,
        each.model,
        _by_name(graph.input, inputs),
        _by_name(graph.output, outputs),
        each.rtol,
    )


def _by_name(values: Sequence[onnx.ValueInfoProto], data: Sequence[object]) -> Arrays:
    """The tensors of a case by name."""
    return {
        value.name: numpy_helper.to_array(each)
        if isinstance(each, onnx.TensorProto)
        else np.asarray(each)
        for value, each in zip(values, data, strict=True)
        if value.type.HasField("tensor_type")
    }


@cache
def checked_names() -> list[str]:
    """The cases from floating-point input to floating-point output whose ops all have rules."""
    return [
        name
        for name, missing in lacking().items()
        if not (missing or name in EXCLUDED or _is_expansion(name))
    ]


def _is_expansion(name: str) -> bool:
    """Whether a case is what the exporter itself makes of another one."""
    original = collected().get(name.partition("_expanded")[0])
    return "_expanded" in name and original is not None and bool(ops_of(original) & COMPOSED)


@cache
def lacking() -> dict[str, set[str]]:
    """The ops without a rule of each case from floating-point input to floating-point output."""
    return {
        name: ops_without_rule(case)
        for name, case in collected().items()
        if any(map(_is_float, case.graph.input)) and any(map(_is_float, case.graph.output))
    }


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", [_marked(name) for name in checked_names()])


def _marked(name: str) -> Any:
    """The name as a parameter, expected to fail where the fault is known."""
    reasons = [reason for key, reason in FAULTS.items() if fnmatchcase(name, key)]
    marks = [pytest.mark.xfail(reason=reason, strict=True) for reason in reasons]
    return pytest.param(name, marks=marks)


def ops_of(case: OnnxCase) -> set[str]:
    return {_name(node) for node in case.graph.node}


def _name(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def ops_without_rule(case: OnnxCase) -> set[str]:
    """Ops without a rule that pass floating-point numbers on from the inputs of a case."""
    known = RULES.keys() | NO_GRADIENT | COMPOSED
    if ops_of(case) <= known:
        return set()
    graph = onnx.shape_inference.infer_shapes(case.model).graph
    typed = [*graph.value_info, *graph.output, *graph.input]
    others = {value.name for value in typed if not _is_float(value)}
    reached = {value.name for value in graph.input} - others
    missing = set()
    for node in graph.node:
        if reached & _used_by(node) and _name(node) not in NO_GRADIENT:
            carried = set(node.output) - others
            if carried and _name(node) not in known:
                missing.add(_name(node))
            reached |= carried
    return missing


def _used_by(node: onnx.NodeProto) -> set[str]:
    """The values that a node uses, in its branches too."""
    names = set(node.input)
    for attribute in node.attribute:
        for inner in attribute.g.node:
            names |= _used_by(inner)
    return names


def _is_float(value: onnx.ValueInfoProto) -> bool:
    return value.type.HasField("tensor_type") and value.type.tensor_type.elem_type in FLOATS


# --- the models ---------------------------------------------------------------------------------


def model_of(case: OnnxCase, x: str) -> onnx.ModelProto:
    """The model of a case in float64 and an opset that is read, with one input left, x."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    _readable(model)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    del model.graph.input[:]
    model.graph.input.append(helper.make_tensor_value_info(x, types[x], case.inputs[x].shape))
    constants = [name for name in types if name != x]
    model.graph.initializer.extend(
        numpy_helper.from_array(case.inputs[name], name) for name in constants
    )
    return in_precision(model, ir.DataType.DOUBLE)


def _readable(model: onnx.ModelProto) -> None:
    """Declare an opset that is read, if the model's is not, and make sure it is valid there.

    Should an op mean something else in that opset, the forward pass is not what is expected.
    """
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = min(max(opset.version, clean.OLDEST_OPSET), clean.NEWEST_OPSET)
    model.ir_version = min(model.ir_version, clean.IR_VERSION)
    onnx.checker.check_model(model, full_check=True)


def with_one_output(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    one = onnx.ModelProto()
    one.CopyFrom(model)
    del one.graph.output[:]
    one.graph.output.extend(value for value in model.graph.output if value.name == name)
    return one


# --- the checks ---------------------------------------------------------------------------------


def run(model: onnx.ModelProto, feeds: Arrays) -> Arrays:
    names = [value.name for value in model.graph.output]
    with np.errstate(all="ignore"):
        return dict(zip(names, evaluator(model).run(names, feeds), strict=True))


def assert_forward_is_expected(case: OnnxCase, found: Arrays) -> None:
    """Within ONNX's own tolerance, and what float32 and the rounder types of the case allow."""
    for name, want in case.expected.items():
        rounder = {ir.DataType.FLOAT16: 1e-2, ir.DataType.BFLOAT16: 1e-1}
        values = [*case.graph.input, *case.graph.output]
        types = [ir.DataType(value.type.tensor_type.elem_type) for value in values]
        tolerance = max(rounder.get(dtype, case.tolerance) for dtype in types)
        largest = np.abs(_numbers(want.astype(np.float64))).max(initial=1)
        np.testing.assert_allclose(
            found[name], want.astype(found[name].dtype), rtol=tolerance, atol=1e-5 * largest
        )


def off_kinks(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """Return x moved a little, element by element: off integers, off ties."""
    amount = rng.uniform(1e-3, 2e-3, x.shape) * rng.choice([-1.0, 1.0], x.shape)
    return np.asarray(x + amount * np.maximum(1, np.abs(_numbers(x))))


def derivatives(
    model: onnx.ModelProto, at: np.ndarray, direction: np.ndarray, seeds: Arrays
) -> dict[str, float]:
    """d<seed, y>/dx along a direction for each output y, by differences of fourth order."""
    (x,) = [value.name for value in model.graph.input]
    total = dict.fromkeys(seeds, 0.0)
    for steps, weight in ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12)):
        moved = run(model, {x: at + steps * STEP * direction})
        for name, seed in seeds.items():
            total[name] += weight / STEP * float(np.sum(seed * _numbers(moved[name])))
    return total


def _numbers(array: np.ndarray) -> np.ndarray:
    """The array with zeros for what is infinite or not a number, which takes no part."""
    return np.where(np.isfinite(array), array, 0)


def random_like(rng: np.random.Generator, array: np.ndarray) -> np.ndarray:
    """Random numbers, and zeros where the array has no finite number."""
    return np.where(np.isfinite(array), rng.standard_normal(array.shape), 0)


def test_gradient_is_that_of_differences(name: str) -> None:
    case = collected()[name]
    for x in [value.name for value in case.graph.input if _is_float(value)]:
        if any(fnmatchcase(f"{name}:{x}", key) for key in REFUSED):
            assert_refused(case, x)
            continue
        model, array = model_of(case, x), case.inputs[x].astype(np.float64)
        assert_forward_is_expected(case, run(model, {x: array}))
        check_gradients(case, model, array)


def assert_refused(case: OnnxCase, x: str) -> None:
    """What is listed as refused is refused, for at least one of the outputs."""
    with pytest.raises(OdinError):
        model = model_of(case, x)
        for name in [value.name for value in case.graph.output if _is_float(value)]:
            input_gradient(with_one_output(model, name))


def check_gradients(case: OnnxCase, model: onnx.ModelProto, x: np.ndarray) -> None:
    """Check the gradient of each output with respect to the one input of the model."""
    x_name = model.graph.input[0].name
    rng = random_for(f"{case.name}:{x_name}")
    x = off_kinks(rng, MOVED.get(f"{case.name}:{x_name}", np.asarray)(x))
    ys = run(model, {x_name: x})
    outputs = [value.name for value in case.graph.output if _is_float(value)]
    seeds = {name: random_like(rng, ys[name]) for name in outputs}
    directions = [random_like(rng, x) for _ in range(2)]
    numeric = [derivatives(model, x, direction, seeds) for direction in directions]
    for name, seed in seeds.items():
        rounding = 1e-15 / STEP * float(np.sum(np.abs(seed * _numbers(ys[name]))))
        try:
            extended = input_gradient(with_one_output(model, name))
        except OdinError as error:
            assert "does not depend on" in str(error), error
            slopes = [each[name] for each in numeric]
            np.testing.assert_allclose(slopes, 0, atol=rounding, err_msg=str(error))
            continue
        found = run(extended, {x_name: x, "seed": seed})
        # A composed op may compute a constant, such as the scale of Attention, in float32.
        same = 1e-6 if ops_of(case) & COMPOSED else 1e-12
        np.testing.assert_allclose(found[name], ys[name], rtol=same, atol=same)
        assert found["input_gradient"].shape == x.shape
        for direction, each in zip(directions, numeric, strict=True):
            assert_slope(found["input_gradient"], direction, each[name], rounding)


def assert_slope(
    gradient: np.ndarray, direction: np.ndarray, expected: float, rounding: float
) -> None:
    """The gradient along a direction is the expected slope, relative to the terms of the sum."""
    terms = np.where(direction != 0, gradient * direction, 0)
    scale = max(float(np.sum(np.abs(terms))), abs(expected))
    np.testing.assert_allclose(np.sum(terms), expected, rtol=0, atol=TOLERANCE * scale + rounding)


def test_no_case_is_lost() -> None:
    _only_as_measured()
    assert len(checked_names()) >= FLOOR


def test_ops_without_rule_are_known() -> None:
    _only_as_measured()
    listed = [op for ops in WITHOUT_RULE.values() for op in ops]
    assert set(listed) == set().union(*lacking().values())
    assert len(listed) == len(set(listed))


def _only_as_measured() -> None:
    if not onnx.__version__.startswith(f"{ONNX_VERSION}."):
        pytest.skip(f"onnx {onnx.__version__} has other cases than {ONNX_VERSION}")


def test_excluded_cases_would_be_checked() -> None:
    _only_as_measured()
    assert EXCLUDED.keys() <= {name for name, missing in lacking().items() if not missing}


@pytest.mark.parametrize("key", [*REFUSED, *FAULTS])
def test_exceptions_are_of_checked_cases(key: str) -> None:
    _only_as_measured()
    inputs = [
        f"{name}:{value.name}"
        for name in checked_names()
        for value in collected()[name].graph.input
        if _is_float(value)
    ]
    assert any(fnmatchcase(each, key if ":" in key else f"{key}:*") for each in inputs)
