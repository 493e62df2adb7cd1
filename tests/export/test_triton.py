"""A server's repository: its configs by Triton's own schema, and its graphs run one by one."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from engines.test_calibration import calibration
from odin_engines.bundle import Bundle, read_bundle, write_bundle, write_calibration
from odin_engines.calibration import Calibration
from odin_engines.errors import OdinError
from odin_engines.plan_records import Limits
from odin_export import triton
from odin_export.decision import write_decision
from odin_export.triton_graphs import decide_graph, prepare_graph
from odin_runtime.images import normalised
from odin_runtime.scorer import Scorer
from runtime.plan_double import fake_records

TYPES = {"FP32": "tensor(float)", "INT64": "tensor(int64)", "UINT8": "tensor(uint8)"}
TYPES["BOOL"] = "tensor(bool)"
MakeBundle = Callable[..., Bundle]


def with_plan(bundle: Bundle, folder: Path, batches: tuple[int, int] = (1, 16)) -> Bundle:
    """A copy of a bundle with a file that stands for a fused plan."""
    graphs = bundle.graphs()
    contents, records = fake_records(graphs, ["fused"], batches)
    write_bundle(folder, bundle.spec, graphs | contents, records, bundle.calibration)
    return read_bundle(folder)


def configs(models: list[triton.Model]) -> dict[str, Any]:
    """The configs by name of the model, as the server reads them."""
    reason = "tritonclient is not installed: pip install 'odin-ood[test]'"
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason=reason)
    from google.protobuf import text_format

    return {each.name: text_format.Parse(each.config(), schema.ModelConfig()) for each in models}


def names(tensors: Any) -> list[str]:
    return [tensor.name for tensor in tensors]


def run(models: list[triton.Model], name: str, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    """What one of the ONNX models gives, as the server's backend would run it."""
    model = next(each for each in models if each.name == name)
    session = onnxruntime.InferenceSession(model.files["model.onnx"])
    outputs = [each.name for each in session.get_outputs()]
    return dict(zip(outputs, session.run(outputs, feeds), strict=True))


def through(models: list[triton.Model], images: np.ndarray) -> dict[str, np.ndarray]:
    """What the ensemble's steps give one after the other, (N,) each."""
    given = {each.name for each in models}
    known = {"images": images}
    if "odin_prepare" in given:
        known["images"] = run(models, "odin_prepare", images=images)["normalised"]
    found = run(models, "odin_onnx", **known)
    if "odin_decide" in given:
        decided = run(models, "odin_decide", score=found["score"][:, None])
        found |= {name: values[:, 0] for name, values in decided.items()}
    return found


@pytest.mark.parametrize("scorer", triton.SCORERS)
@pytest.mark.parametrize("input_type", ["float32", "uint8"])
def test_configs_are_what_the_server_reads(
    make_tiny_bundle: MakeBundle,
    calibrated: Bundle,
    tmp_path: Path,
    scorer: str,
    input_type: str,
) -> None:
    made = make_tiny_bundle(input_type=input_type, scores=("energy",))
    made = with_plan(dataclasses.replace(made, calibration=calibrated.calibration), tmp_path / "b")
    found = configs(triton.repository(made, scorer))
    helpers = {"odin_decide"} | ({"odin_prepare"} if input_type == "float32" else set())
    wanted = {"odin_python", "odin_onnx", "odin_trt", "odin"}
    assert set(found) == wanted | (set() if scorer == "python" else helpers)
    for name, config in found.items():
        assert config.name == name
        assert config.version_policy.latest.num_versions == 1
        assert config.max_batch_size == (
            16 if "trt" in (name[5:], scorer) and name in ("odin_trt", "odin", *helpers) else 64
        )
    for name in ("odin_python", "odin_onnx", "odin_trt"):
        config = found[name]
        assert config.dynamic_batching.max_queue_delay_microseconds == 2000
        assert len(config.instance_group) == 1
        warm_up = config.model_warmup[0]
        tensor = warm_up.inputs["images"]
        assert (warm_up.batch_size, tensor.zero_data) == (1, True)
        assert tensor.data_type == config.input[0].data_type
        for size, dim in zip(tensor.dims, config.input[0].dims, strict=True):
            assert dim in (-1, size)
        assert config.parameters["odin.model"].string_value == "tiny"
        assert config.parameters["odin.threshold"].string_value == repr(made.spec.threshold)
    assert [found[n].backend for n in ("odin_python", "odin_onnx", "odin_trt")] == [
        "python",
        "onnxruntime",
        "tensorrt",
    ]
    assert found["odin"].platform == "ensemble"
    assert names(found["odin"].output) == [
        "score",
        "baseline",
        "label",
        "energy",
        "is_ood",
        "percentile",
    ]
    _check_ensemble(found)


def _check_ensemble(found: dict[str, Any]) -> None:
    """Every tensor has one source before it is taken, of the same type and as many axes."""
    ensemble = found["odin"]
    known = {each.name: each for each in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:
        model = found[step.model_name]
        assert model.max_batch_size >= ensemble.max_batch_size
        assert set(step.input_map) == set(names(model.input))
        assert set(step.output_map) <= set(names(model.output))
        for each in model.input:
            _check_alike(known[step.input_map[each.name]], each)
        for each in model.output:
            if each.name in step.output_map:
                target = step.output_map[each.name]
                assert target not in known
                known[target] = each
    for each in ensemble.output:
        _check_alike(known[each.name], each)


def _check_alike(given: Any, taken: Any) -> None:
    assert given.data_type == taken.data_type
    for a, b in itertools.zip_longest(given.dims, taken.dims):
        assert a == b or -1 in (a, b)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"input_type": "uint8"},
        {"tunable": True},
        {"method": "first-order"},
        {"scores": ("energy", "gen")},
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_steps_one_by_one_give_the_scores(
    make_tiny_bundle: MakeBundle,
    calibrated: Bundle,
    raw_images: Callable[..., np.ndarray],
    changes: dict[str, Any],
) -> None:
    made, known = make_tiny_bundle(**changes), calibrated.calibration
    assert known is not None
    known = dataclasses.replace(known, method=made.spec.method)
    made = write_calibration(made, known)
    models = triton.repository(made)
    for images in (raw_images(9, seed=5), raw_images(3, 40, 47)):
        expected = Scorer.open(made, "ort").score(images).arrays()
        found = through(models, images)
        for name in ("score", "baseline", *made.spec.scores):
            np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-6)
        np.testing.assert_array_equal(found["label"], expected["label"])
        np.testing.assert_array_equal(found["is_ood"], expected["is_ood"])
        np.testing.assert_allclose(found["percentile"], expected["percentile"], atol=0.03)
    _check_files(models)


def _check_files(models: list[triton.Model]) -> None:
    """Each graph's inputs and outputs are those that its config declares."""
    for model in models:
        if model.backend != "onnxruntime":
            continue
        onnx.checker.check_model(onnx.load_model_from_string(model.files["model.onnx"]))
        session = onnxruntime.InferenceSession(model.files["model.onnx"])
        inputs = {each.name: each for each in session.get_inputs()}
        outputs = {each.name: each for each in session.get_outputs()}
        assert set(inputs) == {each.name for each in model.inputs}
        assert {each.name for each in model.outputs} <= set(outputs)
        for tensor in (*model.inputs, *model.outputs):
            real = {**inputs, **outputs}[tensor.name]
            assert real.type == TYPES[tensor.kind]
            dims = () if tensor.reshape else tensor.dims
            assert len(real.shape) == 1 + len(dims)
            for size, dim in zip(real.shape[1:], dims, strict=True):
                assert size == dim or not isinstance(size, int)


def test_a_graph_that_carries_the_decision(
    make_tiny_bundle: MakeBundle, calibrated: Bundle, raw_images: Callable[..., np.ndarray]
) -> None:
    known = calibrated.calibration
    assert known is not None
    models = triton.repository(write_decision(make_tiny_bundle(), known))
    images = raw_images(9, seed=5)
    prepared = run(models, "odin_prepare", images=images)["normalised"]
    found = run(models, "odin_onnx", images=prepared)
    expected = Scorer.open(calibrated, "ort").score(images).is_ood
    assert 0 < expected.sum() < 9
    np.testing.assert_array_equal(found["is_ood"], expected)
    onnx_model = next(each for each in models if each.name == "odin_onnx")
    assert "is_ood" in {each.name for each in onnx_model.outputs}
    _check_files(models)
    _check_ensemble(configs(models))


def test_prepared_images_are_the_scorers_to_the_last_bit(
    tiny_bundle: Bundle, raw_images: Callable[..., np.ndarray]
) -> None:
    images = raw_images(5, 33, 47)
    session = onnxruntime.InferenceSession(prepare_graph(tiny_bundle.spec).SerializeToString())
    (found,) = session.run(None, {"images": images})
    np.testing.assert_array_equal(found, normalised(images, tiny_bundle.spec))


@pytest.mark.parametrize(
    "quantiles",
    [
        (0.11, 0.12, 0.13, 0.14, 0.15),
        (0.1, 0.1, 0.2, 0.2, 0.2, 0.3, 0.3),
        (0.1, 0.12, 0.13, 0.9, 0.9, 0.9),
        (0.1, 0.1, 0.1),
    ],
    ids=["distinct", "equals", "gap", "one"],
)
def test_decisions_are_the_calibrations(quantiles: tuple[float, ...]) -> None:
    known: Calibration = calibration(quantiles=quantiles, images=7)
    edges = np.float32([*quantiles, known.threshold])
    scores = [edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, np.float32(1))]
    scores += [np.linspace(-1, 1, 101), [np.nan, np.inf, -np.inf]]
    score = np.concatenate(scores).astype(np.float32)
    session = onnxruntime.InferenceSession(decide_graph(known).SerializeToString())
    is_ood, percentile = session.run(["is_ood", "percentile"], {"score": score[:, None]})
    np.testing.assert_array_equal(is_ood[:, 0], known.is_ood(score))
    np.testing.assert_array_equal(np.isnan(percentile[:, 0]), np.isnan(score))
    number = ~np.isnan(score)
    expected = known.percentile(score[number])
    np.testing.assert_allclose(percentile[number, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("scorer", ["onnx", "python"])
def test_without_a_calibration_that_fits_there_are_no_decisions(
    tiny_bundle: Bundle, calibrated: Bundle, scorer: str
) -> None:
    other = dataclasses.replace(calibrated.calibration, temperature=1000.0)  # type: ignore[type-var]
    for bundle in (tiny_bundle, dataclasses.replace(calibrated, calibration=other)):
        models = triton.repository(bundle, scorer)
        assert "odin_decide" not in {each.name for each in models}
        for model in models:
            assert not {"is_ood", "percentile"} & {each.name for each in model.outputs}
        _check_ensemble(configs(models))
    assert "--calibrate" in str(triton.undecided(tiny_bundle))
    assert "calibrated with temperature 1000" in str(triton.undecided(bundle))


def test_a_plan_sets_the_bounds(calibrated: Bundle, tmp_path: Path) -> None:
    made = with_plan(calibrated, tmp_path / "bundle", batches=(1, 16))
    models = triton.repository(made, "trt")
    found = configs(models)
    assert found["odin_trt"].max_batch_size == found["odin"].max_batch_size == 16
    assert found["odin_trt"].model_warmup[0].batch_size == 1
    assert list(found["odin_trt"].dynamic_batching.preferred_batch_size) == [1]
    plan = next(each for each in models if each.name == "odin_trt")
    assert plan.files == {"model.plan": b"plan"}
    assert not found["odin_trt"].optimization.cuda.graphs  # of sizes that change
    _check_ensemble(found)
    limits = Limits((1, 3, 32, 40), (4, 3, 32, 40), (16, 3, 32, 40))
    record = dataclasses.replace(made.plans[0], profile={"images": limits})
    found = configs(triton.repository(dataclasses.replace(made, plans=(record,)), "trt"))
    assert found["odin_trt"].optimization.cuda.graphs
    assert list(found["odin_trt"].input[0].dims) == [3, 32, 40]
    assert list(found["odin"].input[0].dims) == [32, 40, 3]
    assert list(found["odin_trt"].dynamic_batching.preferred_batch_size) == [4]
    _check_ensemble(found)


def test_refusals_of_a_plan(
    calibrated: Bundle, make_tiny_bundle: MakeBundle, tmp_path: Path
) -> None:
    with pytest.raises(OdinError, match="no fused plan of engine trt: build it on the server's"):
        triton.repository(calibrated, "trt")
    tunable = with_plan(make_tiny_bundle(tunable=True), tmp_path / "tunable")
    with pytest.raises(OdinError, match="takes temperature and magnitude"):
        triton.repository(tunable, "trt")
    damaged = with_plan(calibrated, tmp_path / "damaged")
    (damaged.path / "odin.trt.plan").write_bytes(b"pla")
    damaged = read_bundle(damaged.path)
    with pytest.raises(OdinError, match="it was cut or changed"):
        triton.repository(damaged, "trt")
    stale = with_plan(calibrated, tmp_path / "stale")
    record = dataclasses.replace(stale.plans[0], graph_sha256="0" * 64)
    stale = dataclasses.replace(stale, plans=(record,))
    with pytest.raises(OdinError, match="was built from another"):
        triton.repository(stale, "trt")
    for bundle in (tunable, damaged, stale):
        assert "odin_trt" not in {each.name for each in triton.repository(bundle)}


def test_names_that_need_quoting(make_tiny_bundle: MakeBundle) -> None:
    name = 'a "quoted" \\ n\u00e4me\n'
    found = configs(triton.repository(make_tiny_bundle(model=name)))
    assert found["odin"].parameters["odin.model"].string_value == name


def test_the_bundle_of_the_python_model_lists_what_it_holds(
    calibrated: Bundle, tmp_path: Path
) -> None:
    made = with_plan(calibrated, tmp_path / "bundle")
    model = triton.repository(made)[0]
    listed = json.loads(model.files["bundle/odin.json"])["files"]
    assert {f"bundle/{name}" for name in listed} <= set(model.files)


def test_all_models_may_take_images_of_one_size(calibrated: Bundle, tmp_path: Path) -> None:
    models = triton.repository(with_plan(calibrated, tmp_path / "b"), "onnx", size=(33, 40))
    for name, config in configs(models).items():
        if name == "odin_decide":
            continue
        sides = (33, 40, 3) if name in ("odin", "odin_python", "odin_prepare") else (3, 33, 40)
        assert tuple(config.input[0].dims) == sides, name
        for warm_up in config.model_warmup:
            assert tuple(warm_up.inputs["images"].dims) == sides, name


def test_onnx_runtime_gets_no_graph_in_bfloat16(tiny_bundle: Bundle) -> None:
    spec = dataclasses.replace(tiny_bundle.spec, precision="bf16", graph_precision="bf16")
    half = dataclasses.replace(tiny_bundle, spec=spec)
    with pytest.raises(OdinError, match=r"bfloat16.*another --triton-scorer"):
        triton.repository(half)
    assert {each.name for each in triton.repository(half, "python")} == {"odin", "odin_python"}


def test_a_plan_for_larger_batches_alone_is_refused(calibrated: Bundle, tmp_path: Path) -> None:
    made = with_plan(calibrated, tmp_path / "bundle", batches=(2, 16))
    with pytest.raises(OdinError, match=r"takes batches from 2.*--engine trt --plans fused"):
        triton.repository(made, "trt")
    assert "odin_trt" not in {each.name for each in triton.repository(made, "onnx")}
