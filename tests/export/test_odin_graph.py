"""odin.onnx, run by three ONNX runtimes with no code of ours, against PyTorch autograd."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from torch import nn

from export.graph_runners import (
    FAST_RUNNERS,
    INPUT_TYPES,
    METHODS,
    RUNNERS,
    SCORE_TOLERANCE,
    Images,
    SpecMaker,
    by_onnxruntime,
    check_outputs,
    expected_outputs,
    feeds_for,
    softmax,
)
from odin_export.odin_graph import odin_graph

# Every form of the graph, in every runtime


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("tunable", [False, True], ids=["fixed", "tunable"])
@pytest.mark.parametrize("input_type", INPUT_TYPES)
@pytest.mark.parametrize("method", METHODS)
def test_scores_are_those_of_pytorch(
    runner: str,
    method: str,
    input_type: str,
    tunable: bool,
    tiny_forward: onnx.ModelProto,
    tiny_network: nn.Module,
    tiny_spec: SpecMaker,
    raw_images: Images,
) -> None:
    spec = tiny_spec(method=method, input_type=input_type, tunable=tunable)
    graph = odin_graph(tiny_forward, spec)
    onnx.checker.check_model(graph, full_check=True)
    raw = raw_images(2 if runner == "reference" else 5)
    expected = expected_outputs(tiny_network, spec, raw)
    unperturbed = softmax(expected["logits"] / spec.temperature).max(axis=1)
    assert np.abs(expected["score"] - unperturbed).min() > 500 * SCORE_TOLERANCE
    check_outputs(RUNNERS[runner](graph, feeds_for(spec, raw)), expected)


@pytest.mark.parametrize("runner", FAST_RUNNERS)
@pytest.mark.parametrize("method", METHODS)
def test_at_temperature_1000(
    runner: str,
    method: str,
    tiny_forward: onnx.ModelProto,
    tiny_network: nn.Module,
    tiny_spec: SpecMaker,
    raw_images: Images,
) -> None:
    """All scores are close to 1/10 then; they have to be right to the last bits of float32."""
    spec = tiny_spec(method=method, temperature=1000.0, magnitude=0.0014)
    raw = raw_images(64)
    found = RUNNERS[runner](odin_graph(tiny_forward, spec), feeds_for(spec, raw))
    expected = expected_outputs(tiny_network, spec, raw)
    unperturbed = softmax(expected["logits"] / spec.temperature).max(axis=1)
    assert np.abs(expected["score"] - unperturbed).min() > 1e-6
    np.testing.assert_allclose(found["score"], expected["score"], rtol=0, atol=4e-8)
    assert len(np.unique(found["score"])) > 60


def test_methods_differ_but_little(
    tiny_forward: onnx.ModelProto, tiny_spec: SpecMaker, raw_images: Images
) -> None:
    scores = {}
    for method in METHODS:
        spec = tiny_spec(method=method, magnitude=0.001)
        graph = odin_graph(tiny_forward, spec)
        outputs = by_onnxruntime(graph, feeds_for(spec, raw_images(5)))
        scores[method] = outputs["score"]
        effect = outputs["score"] - softmax(outputs["logits"] / spec.temperature).max(axis=1)
        assert effect.min() > 1e-4  # the perturbation raises the score
    difference = np.abs(scores["exact"] - scores["first-order"])
    assert 0 < difference.max() < 0.1 * effect.min()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("input_type", INPUT_TYPES)
def test_perturbation_left_out(
    method: str,
    input_type: str,
    tiny_forward: onnx.ModelProto,
    tiny_spec: SpecMaker,
    raw_images: Images,
) -> None:
    raw = raw_images(5)
    for tunable in (False, True):
        changes = {"method": method, "input_type": input_type, "tunable": tunable}
        spec = tiny_spec(magnitude=0.0, **changes)
        found = by_onnxruntime(odin_graph(tiny_forward, spec), feeds_for(spec, raw))
        tempered = softmax(found["logits"] / spec.temperature).max(axis=1)
        np.testing.assert_allclose(found["score"], tempered, rtol=1e-6)
        np.testing.assert_allclose(found["baseline"], softmax(found["logits"]).max(axis=1), 1e-6)
        assert np.abs(found["score"] - found["baseline"]).min() > 0.01
        spec = tiny_spec(magnitude=0.0, temperature=1.0, **changes)
        found = by_onnxruntime(odin_graph(tiny_forward, spec), feeds_for(spec, raw))
        np.testing.assert_array_equal(found["score"], found["baseline"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("default", [0.01, 0.0])
@pytest.mark.parametrize(("temperature", "magnitude"), [(1.0, 0.02), (25.0, 0.0), (1000.0, 0.05)])
def test_tuning_scores_as_values_built_in(
    method: str,
    default: float,
    temperature: float,
    magnitude: float,
    tiny_forward: onnx.ModelProto,
    tiny_spec: SpecMaker,
    raw_images: Images,
) -> None:
    raw = raw_images(4)
    built_in = tiny_spec(method=method, temperature=temperature, magnitude=magnitude)
    tunable = tiny_spec(method=method, tunable=True, magnitude=default)
    feeds = {
        **feeds_for(tunable, raw),
        "temperature": np.array(temperature, np.float32),
        "magnitude": np.array(magnitude, np.float32),
    }
    expected = by_onnxruntime(odin_graph(tiny_forward, built_in), feeds_for(built_in, raw))
    graph = odin_graph(tiny_forward, tunable)
    found = by_onnxruntime(graph, feeds)["score"]
    np.testing.assert_allclose(found, expected["score"], rtol=0, atol=2e-7)
    assert np.abs(by_onnxruntime(graph, feeds_for(tunable, raw))["score"] - found).min() > 1e-4


# Batches and sizes


@pytest.mark.parametrize("runner", FAST_RUNNERS)
@pytest.mark.parametrize("input_type", INPUT_TYPES)
def test_one_graph_takes_any_batch(
    runner: str,
    input_type: str,
    tiny_forward: onnx.ModelProto,
    tiny_network: nn.Module,
    tiny_spec: SpecMaker,
    raw_images: Images,
) -> None:
    spec = tiny_spec(input_type=input_type)
    graph = odin_graph(tiny_forward, spec)
    raw = raw_images(64)
    expected = expected_outputs(tiny_network, spec, raw)
    for count in (1, 3, 64):
        found = RUNNERS[runner](graph, feeds_for(spec, raw[:count]))
        check_outputs(found, {name: values[:count] for name, values in expected.items()})


@pytest.mark.parametrize("runner", FAST_RUNNERS)
@pytest.mark.parametrize("input_type", INPUT_TYPES)
@pytest.mark.parametrize("method", METHODS)
def test_one_graph_takes_any_size(
    runner: str,
    method: str,
    input_type: str,
    tiny_forward: onnx.ModelProto,
    tiny_network: nn.Module,
    tiny_spec: SpecMaker,
    raw_images: Images,
) -> None:
    spec = tiny_spec(method=method, input_type=input_type)
    graph = odin_graph(tiny_forward, spec)
    for height, width in ((32, 32), (36, 36), (40, 33), (63, 63)):
        raw = raw_images(2, height, width)
        found = RUNNERS[runner](graph, feeds_for(spec, raw))
        check_outputs(found, expected_outputs(tiny_network, spec, raw))


@pytest.mark.parametrize("runner", FAST_RUNNERS)
def test_an_image_that_is_too_large_fails(
    runner: str, tiny_forward: onnx.ModelProto, tiny_spec: SpecMaker, raw_images: Images
) -> None:
    """Instead of giving several rows of scores an image."""
    graph = odin_graph(tiny_forward, tiny_spec())
    with pytest.raises(Exception, match=r"(?i)shape|dim|reshape"):
        RUNNERS[runner](graph, feeds_for(tiny_spec(), raw_images(2, 64, 64)))


@pytest.mark.parametrize("runner", FAST_RUNNERS)
@pytest.mark.parametrize("method", METHODS)
def test_not_a_number_stays_in_its_image(
    runner: str,
    method: str,
    tiny_forward: onnx.ModelProto,
    tiny_spec: SpecMaker,
    raw_images: Images,
) -> None:
    spec = tiny_spec(method=method)
    graph = odin_graph(tiny_forward, spec)
    feeds = feeds_for(spec, raw_images(4))
    clean = RUNNERS[runner](graph, feeds)
    feeds["images"][2, 1, 5, 7] = np.nan
    found = RUNNERS[runner](graph, feeds)
    others = [0, 1, 3]
    for name, values in clean.items():
        np.testing.assert_array_equal(found[name][others], values[others], err_msg=name)


# Through a file


def test_a_file_of_its_own(
    tmp_path: Path,
    tiny_forward: onnx.ModelProto,
    tiny_network: nn.Module,
    tiny_spec: SpecMaker,
    raw_images: Images,
) -> None:
    """Written and opened as any ONNX file: nothing lies beside it."""
    spec = tiny_spec(input_type="uint8")
    onnx.save(odin_graph(tiny_forward, spec), tmp_path / "odin.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["odin.onnx"]
    found = by_onnxruntime(onnx.load(tmp_path / "odin.onnx"), {"images": raw_images(3)})
    check_outputs(found, expected_outputs(tiny_network, spec, raw_images(3)))
