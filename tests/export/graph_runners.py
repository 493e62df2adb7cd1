"""Three ONNX runtimes with no code of ours, and what odin.onnx takes and has to give in them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator
from torch import nn

from odin_engines.openvino_engine import the_core
from odin_engines.spec import Spec
from odin_engines.torch_reference import TorchReference

SpecMaker = Callable[..., Spec]
Images = Callable[..., np.ndarray]
Outputs = dict[str, np.ndarray]
Runner = Callable[[onnx.ModelProto, Outputs], Outputs]

METHODS = ("exact", "first-order")
INPUT_TYPES = ("float32", "uint8")
# Scores are float32 values up to 1: eight roundings. The perturbation moves them by 1e-3.
SCORE_TOLERANCE = 1e-6


def by_onnxruntime(model: onnx.ModelProto, feeds: Outputs) -> Outputs:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def by_openvino(model: onnx.ModelProto, feeds: Outputs) -> Outputs:
    core = the_core()
    # Without the hint, OpenVINO computes in bfloat16 where the CPU has it.
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", settings)
    values = compiled(feeds)
    return {output.get_any_name(): values[output] for output in compiled.outputs}


def by_reference(model: onnx.ModelProto, feeds: Outputs) -> Outputs:
    names = [output.name for output in model.graph.output]
    return dict(zip(names, ReferenceEvaluator(model).run(None, feeds), strict=True))


RUNNERS = {"onnxruntime": by_onnxruntime, "openvino": by_openvino, "reference": by_reference}
FAST_RUNNERS = {name: RUNNERS[name] for name in ("onnxruntime", "openvino")}


def normalised(raw: np.ndarray, spec: Spec) -> np.ndarray:
    """Written anew, in float64: (pixel / 255 - mean) / std, (N, 3, H, W)."""
    return ((raw / 255 - spec.mean) / spec.std).transpose(0, 3, 1, 2)


def images_for(spec: Spec, raw: np.ndarray) -> np.ndarray:
    """What odin.onnx takes."""
    return raw if spec.input_type == "uint8" else normalised(raw, spec).astype(np.float32)


def feeds_for(spec: Spec, raw: np.ndarray) -> Outputs:
    feeds = {"images": images_for(spec, raw)}
    if spec.tunable:
        feeds["temperature"] = np.array(spec.temperature, np.float32)
        feeds["magnitude"] = np.array(spec.magnitude, np.float32)
    return feeds


def expected_outputs(network: nn.Module, spec: Spec, raw: np.ndarray) -> Outputs:
    return TorchReference(network, spec).run({"images": normalised(raw, spec)})


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(np.float64(logits) - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def check_outputs(found: Outputs, expected: Outputs) -> None:
    """Check all four outputs.

    Where a gradient is almost zero, rounding may turn its sign; the score, by its very derivative,
    hardly changes then, so that signs are compared elsewhere.
    """
    assert set(found) == {"score", "baseline", "label", "logits"}
    np.testing.assert_array_equal(found["label"], expected["label"])
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-5, atol=1e-5)
    for name in ("baseline", "score"):
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=SCORE_TOLERANCE)
