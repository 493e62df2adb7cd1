"""A repository of models for the Triton Inference Server, from a bundle.

Models: `odin_python` (Python backend around `odin_runtime.Scorer`), `odin_onnx` (ONNX Runtime
backend), `odin_trt` (TensorRT backend, where the bundle has a fused plan of engine trt), and the
ensemble `odin`, raw images in and scores and decisions out. The ensemble's helpers `odin_prepare`
(normalises raw images) and `odin_decide` (compares scores with the threshold) are ONNX graphs.

Written against Triton's model_config.proto.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from odin_engines.bundle import ODIN, Bundle
from odin_engines.calibration import Calibration
from odin_engines.errors import OdinError
from odin_engines.files import unused_name
from odin_engines.plan_sets import plan_file
from odin_engines.spec import Spec

SCORERS = ("onnx", "trt", "python")
DEFAULT_BATCH = 64
_DELAY_MICROSECONDS = 2000  # that a request waits for others to be computed with
_TYPES = {"score": "FP32", "baseline": "FP32", "label": "INT64", "logits": "FP32"}
_DECISIONS = {"is_ood": "BOOL", "percentile": "FP32"}
_MODEL_PY = '''"""The Python backend loads this file; odin-ood has to be installed in its Python."""

from odin_runtime.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True)
class Tensor:
    """An input or output of a model, without the batch.

    Attributes:
        name: of the tensor.
        kind: Triton's name of the type, without "TYPE_".
        dims: -1 for a size that may change; (1,) for a number an image.
        reshape: the graph has no axis for a number an image.
    """

    name: str
    kind: str
    dims: tuple[int, ...]
    reshape: bool = False

    def text(self, label: str) -> str:
        """Its entry, as `input` or `output`."""
        shape = ", ".join(map(str, self.dims))
        reshape = " reshape { shape: [ ] }" if self.reshape else ""
        return (
            f'{label} [ {{ name: "{self.name}" data_type: TYPE_{self.kind} dims: [ {shape} ]'
            f"{reshape} }} ]"
        )


@dataclass(frozen=True)
class Model:
    """One folder of the repository.

    Attributes:
        name: of the model.
        backend: "onnxruntime", "tensorrt", "python", or "" for the ensemble.
        inputs, outputs: of the model.
        files: content by path below the version's folder.
        more: further entries of config.pbtxt.
        batch: the most images that are computed at once.
    """

    name: str
    backend: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    files: Mapping[str, bytes]
    more: tuple[str, ...] = ()
    batch: int = DEFAULT_BATCH

    def config(self) -> str:
        """The text of config.pbtxt."""
        kind = f'backend: "{self.backend}"' if self.backend else 'platform: "ensemble"'
        entries = [
            f'name: "{self.name}"',
            kind,
            f"max_batch_size: {self.batch}",
            *(tensor.text("input") for tensor in self.inputs),
            *(tensor.text("output") for tensor in self.outputs),
            "version_policy { latest { num_versions: 1 } }",
            *self.more,
        ]
        return "\n".join(entries) + "\n"


def repository(bundle: Bundle, scorer: str = "onnx", batch: int = DEFAULT_BATCH) -> list[Model]:
    """The models that serve a bundle.

    Args:
        bundle: what is served.
        scorer: of `SCORERS`: which model the ensemble scores with.
        batch: the most images that are computed at once.

    Raises:
        OdinError: there is no plan for scorer "trt".
    """
    models = [_python_model(bundle, batch), _onnx_model(bundle, batch)]
    plan = _trt_model(bundle, batch)
    if plan is not None:
        models.append(plan)
    elif scorer == "trt":
        raise OdinError(
            f"bundle {bundle.path} has no fused plan of engine trt: build it on the server's GPU "
            f"with 'odin-export {bundle.argument} --engine trt --plans fused', or take another "
            "--triton-scorer"
        )
    return [*models, *_ensemble(bundle, scorer, batch)]


def write(folder: Path, models: Sequence[Model]) -> None:
    """Write a repository; it appears whole, or not at all.

    Raises:
        OdinError: there is something at `folder` already, or it cannot be written.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OdinError(f"--triton-repository {folder}: there is something; give a new folder")
    temporary = unused_name(folder)
    try:
        for model in models:
            version = temporary / model.name / "1"
            version.mkdir(parents=True)
            (version.parent / "config.pbtxt").write_text(model.config(), encoding="utf-8")
            for name, content in model.files.items():
                file = version / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except OSError as error:
        raise OdinError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _python_model(bundle: Bundle, batch: int) -> Model:
    files = {"model.py": _MODEL_PY.encode(), "bundle/odin.json": _read(bundle, "odin.json")}
    files |= {f"bundle/{name}": _read(bundle, name) for name in bundle.files}
    images = _images(bundle.spec, raw=True)
    return Model(
        "odin_python",
        "python",
        (images,),
        tuple(Tensor(name, kind, (1,)) for name, kind in _scores(bundle, decided=True).items()),
        files,
        (
            _batching(),
            "instance_group [ { kind: KIND_CPU count: 1 } ]",
            _warm_up(images, bundle.spec),
            'parameters { key: "engine" value { string_value: "auto" } }',
            'parameters { key: "precision" value { string_value: "" } }',
            'parameters { key: "threads" value { string_value: "0" } }',
        ),
        batch,
    )


def _onnx_model(bundle: Bundle, batch: int) -> Model:
    graph = _with_constants(onnx.load(bundle.file(ODIN)), bundle.spec)
    images = _images(bundle.spec, raw=bundle.spec.input_type == "uint8")
    return Model(
        "odin_onnx",
        "onnxruntime",
        (images,),
        _graph_outputs(bundle),
        {"model.onnx": graph.SerializeToString()},
        (
            _batching(),
            "instance_group [ { kind: KIND_AUTO count: 1 } ]",
            _warm_up(images, bundle.spec),
        ),
        batch,
    )


def _trt_model(bundle: Bundle, batch: int) -> Model | None:
    record = bundle.plan("trt", ODIN)
    if record is None or record.file in bundle.damaged or bundle.spec.tunable:
        return None
    images = _images(bundle.spec, raw=bundle.spec.input_type == "uint8")
    most = min(batch, record.batches[1])
    return Model(
        "odin_trt",
        "tensorrt",
        (images,),
        _graph_outputs(bundle),
        {"model.plan": _read(bundle, plan_file(ODIN, "trt"))},
        (
            _batching(),
            "instance_group [ { kind: KIND_GPU count: 1 } ]",
            "optimization { cuda { graphs: true } }",
            _warm_up(images, bundle.spec),
        ),
        most,
    )


def _ensemble(bundle: Bundle, scorer: str, batch: int) -> list[Model]:
    """The ensemble, and the small models that it wants."""
    spec, calibration = bundle.spec, bundle.calibration
    raw = _images(spec, raw=True)
    if scorer == "python":
        outputs = tuple(_scores(bundle, decided=True))
        steps = [_step("odin_python", {"images": "images"}, {name: name for name in outputs})]
        return [_ensemble_model(bundle, raw, steps, decided=True, batch=batch)]
    helpers: list[Model] = []
    steps = []
    images = "images"
    if spec.input_type == "float32":
        helpers.append(_prepare_model(spec, batch))
        steps.append(_step("odin_prepare", {"images": "images"}, {"normalised": "normalised"}))
        images = "normalised"
    names = tuple(_scores(bundle, decided=False))
    steps.append(_step(f"odin_{scorer}", {"images": images}, {name: name for name in names}))
    if calibration is not None:
        helpers.append(_decide_model(calibration, batch))
        steps.append(_step("odin_decide", {"score": "score"}, {"is_ood": "is_ood"}))
    return [*helpers, _ensemble_model(bundle, raw, steps, decided=False, batch=batch)]


def _ensemble_model(
    bundle: Bundle, images: Tensor, steps: Sequence[str], *, decided: bool, batch: int
) -> Model:
    kinds = _scores(bundle, decided)
    if bundle.calibration is not None:
        kinds["is_ood"] = _DECISIONS["is_ood"]
    outputs = tuple(Tensor(name, kind, (1,)) for name, kind in kinds.items())
    scheduling = "ensemble_scheduling { step [ " + ", ".join(steps) + " ] }"
    return Model("odin", "", (images,), outputs, {}, (scheduling,), batch)


def _prepare_model(spec: Spec, batch: int) -> Model:
    return Model(
        "odin_prepare",
        "onnxruntime",
        (_images(spec, raw=True),),
        (Tensor("normalised", "FP32", _dims(spec, raw=False)),),
        {"model.onnx": _prepare_graph(spec).SerializeToString()},
        (_batching(),),
        batch,
    )


def _decide_model(calibration: Calibration, batch: int) -> Model:
    return Model(
        "odin_decide",
        "onnxruntime",
        (Tensor("score", "FP32", (1,)),),
        (Tensor("is_ood", "BOOL", (1,)),),
        {"model.onnx": _decide_graph(calibration.threshold).SerializeToString()},
        (_batching(),),
        batch,
    )


def _prepare_graph(spec: Spec) -> onnx.ModelProto:
    """uint8 (N, H, W, C) -> (pixel / 255 - mean) / std, float32 (N, C, H, W)."""
    column = (1, spec.channels, 1, 1)
    scale = 1 / (255 * np.asarray(spec.std))
    offset = np.asarray(spec.mean) / np.asarray(spec.std)
    constants = {"scale": scale, "offset": offset}
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["planes", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "offset"], ["normalised"]),
    ]
    return _model(
        nodes,
        [_value("images", TensorProto.UINT8, ["N", "H", "W", spec.channels])],
        [_value("normalised", TensorProto.FLOAT, ["N", spec.channels, "H", "W"])],
        {
            name: np.asarray(values, np.float32).reshape(column)
            for name, values in constants.items()
        },
    )


def _decide_graph(threshold: float) -> onnx.ModelProto:
    """score (N, 1) -> whether it is below the threshold, or no number."""
    nodes = [
        helper.make_node("GreaterOrEqual", ["score", "threshold"], ["in"]),
        helper.make_node("Not", ["in"], ["is_ood"]),
    ]
    return _model(
        nodes,
        [_value("score", TensorProto.FLOAT, ["N", 1])],
        [_value("is_ood", TensorProto.BOOL, ["N", 1])],
        {"threshold": np.float32(threshold)},
    )


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Mapping[str, np.ndarray],
) -> onnx.ModelProto:
    stored = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]
    graph = helper.make_graph(nodes, "odin", inputs, outputs, stored)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made


def _value(name: str, kind: int, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _with_constants(graph: onnx.ModelProto, spec: Spec) -> onnx.ModelProto:
    """A tunable graph with the bundle's own settings: Triton batches every input."""
    for name in ("temperature", "magnitude") if spec.tunable else ():
        found = next(value for value in graph.graph.input if value.name == name)
        graph.graph.input.remove(found)
        value = np.asarray(getattr(spec, name), np.float32)
        graph.graph.initializer.append(numpy_helper.from_array(value, name))
    return graph


def _images(spec: Spec, *, raw: bool) -> Tensor:
    return Tensor("images", "UINT8" if raw else "FP32", _dims(spec, raw=raw))


def _dims(spec: Spec, *, raw: bool) -> tuple[int, ...]:
    sides = [least if least == most else -1 for least, most in (spec.height, spec.width)]
    return (*sides, spec.channels) if raw else (spec.channels, *sides)


def _scores(bundle: Bundle, decided: bool) -> dict[str, str]:
    """Types of the outputs that are a number an image, by name."""
    kinds = {name: _TYPES[name] for name in ("score", "baseline", "label")}
    kinds |= dict.fromkeys(bundle.spec.scores, "FP32")
    return kinds | (_DECISIONS if decided and bundle.calibration is not None else {})


def _graph_outputs(bundle: Bundle) -> tuple[Tensor, ...]:
    numbers = _scores(bundle, decided=False).items()
    return (
        *(Tensor(name, kind, (1,), reshape=True) for name, kind in numbers),
        Tensor("logits", _TYPES["logits"], (bundle.spec.classes,)),
    )


def _batching() -> str:
    return f"dynamic_batching {{ max_queue_delay_microseconds: {_DELAY_MICROSECONDS} }}"


def _warm_up(images: Tensor, spec: Spec) -> str:
    """One image of zeros before the model is ready; of the smallest size, where several are."""
    sides = (spec.height[0], spec.width[0])
    dims = (*sides, spec.channels) if images.kind == "UINT8" else (spec.channels, *sides)
    shape = ", ".join(map(str, dims))
    return (
        'model_warmup [ { name: "one image" batch_size: 1 inputs { key: "images" value { '
        f"data_type: TYPE_{images.kind} dims: [ {shape} ] zero_data: true }} }} }} ]"
    )


def _step(model: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> str:
    maps = [f'input_map {{ key: "{key}" value: "{value}" }}' for key, value in inputs.items()]
    maps += [f'output_map {{ key: "{key}" value: "{value}" }}' for key, value in outputs.items()]
    return f'{{ model_name: "{model}" model_version: -1 {" ".join(maps)} }}'


def _read(bundle: Bundle, name: str) -> bytes:
    return (bundle.path / name).read_bytes()
