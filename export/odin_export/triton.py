"""A repository of models for the Triton Inference Server, from a bundle.

Models: `odin_python` (Python backend around `odin_runtime.Scorer`), `odin_onnx` (ONNX Runtime
backend), `odin_trt` (TensorRT backend, where the bundle has a fused plan of engine trt), and the
ensemble `odin`, raw images in and scores and decisions out. The ensemble's helpers `odin_prepare`
(normalises raw images) and `odin_decide` (compares scores with the calibration) are ONNX graphs.

Written against Triton's model_config.proto.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from odin_engines.bundle import ODIN, Bundle
from odin_engines.calibration import DECISION
from odin_engines.errors import OdinError
from odin_engines.files import unused_name
from odin_engines.plan_records import PlanRecord
from odin_engines.spec import Spec
from odin_export.decision import has_decision
from odin_export.triton_graphs import decide_graph, prepare_graph, with_constants

SCORERS = ("onnx", "trt", "python")
DEFAULT_BATCH = 64
_DELAY_MICROSECONDS = 2000  # that a request waits for others to be computed with
_TYPES = {"score": "FP32", "baseline": "FP32", "label": "INT64"}
_DECISIONS = {DECISION: "BOOL", "percentile": "FP32"}
_METADATA = ("model", "architecture", "checkpoint_sha256", "method", "temperature", "magnitude")
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
        batch: the most images that are computed at once.
        parameters: what the server tells of the model, and its backend takes.
        more: further entries of config.pbtxt.
    """

    name: str
    backend: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    files: Mapping[str, bytes]
    batch: int
    parameters: Mapping[str, str]
    more: tuple[str, ...] = ()

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
            *(
                f"parameters {{ key: {json.dumps(key)} value {{ string_value: "
                f"{json.dumps(value)} }} }}"
                for key, value in self.parameters.items()
            ),
        ]
        return "\n".join(entries) + "\n"


@dataclass(frozen=True)
class Images:
    """What images a model takes.

    Attributes:
        channels: of the image.
        height, width: smallest and largest, in pixels.
    """

    channels: int
    height: tuple[int, int]
    width: tuple[int, int]

    def of_size(self, size: tuple[int, int] | None) -> Images:
        """Of this height and width alone, where one is given.

        Raises:
            OdinError: they are not among these.
        """
        if size is None:
            return self
        for side, (least, most) in zip(size, (self.height, self.width), strict=True):
            if not least <= side <= most:
                raise OdinError(
                    f"--triton-size {size[0]}x{size[1]}: images may be {self.height[0]} to "
                    f"{self.height[1]} high and {self.width[0]} to {self.width[1]} wide"
                )
        return Images(self.channels, (size[0], size[0]), (size[1], size[1]))

    @property
    def fixed(self) -> bool:
        """Whether they are of one size."""
        return self.height[0] == self.height[1] and self.width[0] == self.width[1]

    def tensor(self, name: str, *, raw: bool) -> Tensor:
        """Uint8 (H, W, C), raw, or float32 (C, H, W)."""
        sides = [least if least == most else -1 for least, most in (self.height, self.width)]
        dims = (*sides, self.channels) if raw else (self.channels, *sides)
        return Tensor(name, "UINT8" if raw else "FP32", dims)

    def warm_up(self, *, raw: bool) -> str:
        """An image of zeros, of the smallest size, before the model is ready."""
        sides = (self.height[0], self.width[0])
        dims = (*sides, self.channels) if raw else (self.channels, *sides)
        return (
            f'model_warmup [ {{ name: "zeros" batch_size: 1 inputs {{ key: "images" value {{ '
            f"data_type: TYPE_{'UINT8' if raw else 'FP32'} dims: "
            f"[ {', '.join(map(str, dims))} ] zero_data: true }} }} }} ]"
        )


def repository(
    bundle: Bundle,
    scorer: str = "onnx",
    batch: int = DEFAULT_BATCH,
    size: tuple[int, int] | None = None,
) -> list[Model]:
    """The models that serve a bundle.

    Args:
        bundle: what is served.
        scorer: of `SCORERS`: which model the ensemble scores with.
        batch: the most images that are computed at once.
        size: height and width of all images; None for all that the network takes.

    Raises:
        OdinError: scorer is "trt", and the bundle has no plan that fits; it is "onnx", and the
            graph is in bfloat16; the network, or the plan, does not take the size; or a file of the
            bundle cannot be read.
    """
    images = _images(bundle.spec).of_size(size)
    models = [_python_model(bundle, images, batch)]
    if bundle.spec.graph_precision != "bf16":
        models.append(_onnx_model(bundle, images, batch))
    elif scorer == "onnx":
        raise OdinError(
            f"the graph of bundle {bundle.path} is in bfloat16, in which ONNX Runtime computes few "
            "ops: take another --triton-scorer"
        )
    problem = _plan_problem(bundle)
    if problem is None:
        record = bundle.plan("trt", ODIN)
        assert record is not None
        of_plan = _images_of_plan(bundle.spec, record).of_size(size)
        plan = _trt_model(bundle, record, of_plan, batch)
        models.append(plan)
        if scorer == "trt":
            images, batch = of_plan, plan.batch
    elif scorer == "trt":
        raise OdinError(f"{problem}; or take another --triton-scorer")
    return [*models, *_ensemble(bundle, scorer, images, batch)]


def undecided(bundle: Bundle) -> str | None:
    """Why there are no decisions, in words; None if there are."""
    known, spec = bundle.calibration, bundle.spec
    if known is None:
        return (
            "the bundle is not calibrated: run "
            f"'odin-bench {bundle.argument} --calibrate IN_DATASET'"
        )
    return known.unlike(spec, spec.temperature, spec.magnitude)


def write(folder: Path, models: Sequence[Model]) -> None:
    """Write a repository; it appears whole, or not at all.

    Args:
        folder: that does not exist, or is empty.
        models: what it is to hold.

    Raises:
        OdinError: there is something at `folder` already, or it cannot be written.
    """
    folder = folder.absolute()
    temporary = unused_name(folder)
    try:
        if folder.is_symlink() or (
            folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
        ):
            raise OdinError(f"--triton-repository {folder}: there is something; give a new folder")
        for model in models:
            version = temporary / model.name / "1"
            version.mkdir(parents=True)
            (version.parent / "config.pbtxt").write_text(model.config(), encoding="utf-8")
            for name, content in model.files.items():
                file = version / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
        temporary.rename(folder)  # which takes the place of an empty folder, and of nothing else
    except OSError as error:
        raise OdinError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _python_model(bundle: Bundle, images: Images, batch: int) -> Model:
    files = {"model.py": _MODEL_PY.encode(), "bundle/odin.json": _read(bundle, "odin.json")}
    files |= {f"bundle/{name}": _read(bundle, name) for name in bundle.files}
    return Model(
        "odin_python",
        "python",
        (images.tensor("images", raw=True),),
        _numbers(_scores(bundle) | _decisions(bundle)),
        files,
        batch,
        _metadata(bundle) | {"engine": "auto", "precision": "", "threads": "0"},
        (
            _batching(),
            # Of the Python process; the engine inside may be on a GPU.
            "instance_group [ { kind: KIND_CPU count: 1 } ]",
            images.warm_up(raw=True),
        ),
    )


def _onnx_model(bundle: Bundle, images: Images, batch: int) -> Model:
    graph = _read(bundle, ODIN)
    if bundle.spec.tunable:
        loaded = onnx.load_model_from_string(graph)
        graph = with_constants(loaded, bundle.spec).SerializeToString()
    raw = bundle.spec.input_type == "uint8"
    decision = {DECISION: _DECISIONS[DECISION]} if has_decision(bundle) else {}
    return Model(
        "odin_onnx",
        "onnxruntime",
        (images.tensor("images", raw=raw),),
        (*_graph_outputs(bundle), *_numbers(decision, reshape=True)),
        {"model.onnx": graph},
        batch,
        _metadata(bundle),
        (
            _batching(),
            "instance_group [ { kind: KIND_AUTO count: 1 } ]",
            images.warm_up(raw=raw),
        ),
    )


def _trt_model(bundle: Bundle, record: PlanRecord, images: Images, batch: int) -> Model:
    most = record.batches[1]
    usual = record.profile["images"].optimum[0]
    raw = bundle.spec.input_type == "uint8"
    batch = min(batch, most)
    return Model(
        "odin_trt",
        "tensorrt",
        (images.tensor("images", raw=raw),),
        _graph_outputs(bundle),
        {"model.plan": _read(bundle, record.file)},
        batch,
        _metadata(bundle) | {"tensorrt": record.version},
        (
            _batching(min(usual, batch)),
            "instance_group [ { kind: KIND_GPU count: 1 } ]",
            *(("optimization { cuda { graphs: true } }",) if images.fixed else ()),
            images.warm_up(raw=raw),
        ),
    )


def _plan_problem(bundle: Bundle) -> str | None:
    """Why there is no odin_trt, and the remedy, in words; None if there is one."""
    record = bundle.plan("trt", ODIN)
    build = (
        "build it on the server's GPU with "
        f"'odin-export {bundle.argument} --engine trt --plans fused'"
    )
    if record is None:
        return f"bundle {bundle.path} has no fused plan of engine trt: {build}"
    if record.file in bundle.damaged:
        return bundle.damaged[record.file]
    if record.graph_sha256 != bundle.files[ODIN]:
        return f"{bundle.path / record.file} was built from another {ODIN}: {build}"
    if (least := record.batches[0]) > 1:
        return (
            f"the plan of bundle {bundle.path} takes batches from {least}, and the server sends "
            f"smaller ones: {build}, for batches from 1"
        )
    if bundle.spec.tunable:
        return (
            f"the plan of bundle {bundle.path} takes temperature and magnitude, which the server "
            "would batch: export the model without --tunable, with --engine trt --plans fused"
        )
    return None


def _ensemble(bundle: Bundle, scorer: str, images: Images, batch: int) -> list[Model]:
    """The ensemble, and the small models that it wants."""
    spec, decisions = bundle.spec, _decisions(bundle)
    scores = _scores(bundle)
    raw = images.tensor("images", raw=True)
    helpers: list[Model] = []
    steps: list[str] = []
    source = "images"
    if scorer != "python" and spec.input_type == "float32":
        source = "normalised"
        graph = {"model.onnx": prepare_graph(spec).SerializeToString()}
        made = (images.tensor("normalised", raw=False),)
        helpers.append(_helper("odin_prepare", (raw,), made, graph, batch))
        steps.append(_step("odin_prepare", {"images": "images"}, ["normalised"]))
    given = scores | decisions if scorer == "python" else scores
    steps.append(_step(f"odin_{scorer}", {"images": source}, given))
    if scorer != "python" and decisions:
        assert bundle.calibration is not None
        graph = {"model.onnx": decide_graph(bundle.calibration).SerializeToString()}
        taken = (Tensor("score", "FP32", (1,)),)
        helpers.append(_helper("odin_decide", taken, _numbers(decisions), graph, batch))
        steps.append(_step("odin_decide", {"score": "score"}, decisions))
    scheduling = "ensemble_scheduling { step [\n  " + ",\n  ".join(steps) + "\n] }"
    whole = Model(
        "odin",
        "",
        (raw,),
        _numbers(scores | decisions),
        {},
        batch,
        _metadata(bundle),
        (scheduling,),
    )
    return [*helpers, whole]


def _helper(
    name: str,
    inputs: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
    files: Mapping[str, bytes],
    batch: int,
) -> Model:
    """A model so small that waiting for more work, or a copy to a GPU, would take longer."""
    more = ("dynamic_batching { }", "instance_group [ { kind: KIND_CPU count: 1 } ]")
    return Model(name, "onnxruntime", inputs, outputs, files, batch, {}, more)


def _images(spec: Spec) -> Images:
    return Images(spec.channels, spec.height, spec.width)


def _images_of_plan(spec: Spec, record: PlanRecord) -> Images:
    limits = record.profile["images"]
    first = 1 if spec.input_type == "uint8" else 2
    height, width = ((limits.minimum[axis], limits.maximum[axis]) for axis in (first, first + 1))
    return Images(spec.channels, height, width)


def _scores(bundle: Bundle) -> dict[str, str]:
    """Types of the outputs that are a number an image, by name."""
    return _TYPES | dict.fromkeys(bundle.spec.scores, "FP32")


def _decisions(bundle: Bundle) -> dict[str, str]:
    return {} if undecided(bundle) else dict(_DECISIONS)


def _numbers(kinds: Mapping[str, str], *, reshape: bool = False) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, kind, (1,), reshape) for name, kind in kinds.items())


def _graph_outputs(bundle: Bundle) -> tuple[Tensor, ...]:
    logits = Tensor("logits", "FP32", (bundle.spec.classes,))
    return (*_numbers(_scores(bundle), reshape=True), logits)


def _metadata(bundle: Bundle) -> dict[str, str]:
    known = {f"odin.{name}": str(getattr(bundle.spec, name)) for name in _METADATA}
    if bundle.calibration is not None:
        known["odin.threshold"] = repr(bundle.calibration.threshold)
        known["odin.calibrated_with"] = bundle.calibration.dataset
    return known


def _batching(preferred: int | None = None) -> str:
    """Requests that come together are computed together."""
    sizes = "" if preferred is None else f"preferred_batch_size: [ {preferred} ] "
    return f"dynamic_batching {{ {sizes}max_queue_delay_microseconds: {_DELAY_MICROSECONDS} }}"


def _step(model: str, inputs: Mapping[str, str], outputs: Sequence[str] | Mapping[str, str]) -> str:
    maps = [f'input_map {{ key: "{key}" value: "{value}" }}' for key, value in inputs.items()]
    maps += [f'output_map {{ key: "{name}" value: "{name}" }}' for name in outputs]
    return f'{{ model_name: "{model}" model_version: -1 {" ".join(maps)} }}'


def _read(bundle: Bundle, name: str) -> bytes:
    file = bundle.path / name
    try:
        return file.read_bytes()
    except OSError as error:
        raise OdinError(f"cannot read {file}: {error.strerror or error}") from error
