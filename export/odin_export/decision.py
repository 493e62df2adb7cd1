"""A calibrated bundle's decision as an output of its ODIN graphs, for runtimes without our code."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from odin_engines import plan_sets
from odin_engines.bundle import FORWARD, GRADIENT, ODIN, Bundle, write_bundle
from odin_engines.calibration import DECISION, Calibration
from odin_engines.errors import OdinError

_THRESHOLD, _ACCEPTED = "odin_threshold", "odin_accepted"


def check_decidable(bundle: Bundle) -> None:
    """Check that one threshold fits all that the graphs can compute.

    Raises:
        OdinError: temperature and magnitude are inputs.
    """
    if bundle.spec.tunable:
        raise OdinError(
            f"--decision: the graph of bundle {bundle.path} takes temperature and magnitude, and "
            "the threshold is of one pair of them: export the model without --tunable"
        )


def write_decision(bundle: Bundle, calibration: Calibration) -> Bundle:
    """Put a calibration into a bundle on disk, and the decision into its ODIN graphs.

    Plans made of the graphs as they were are left out; the bundle on disk is replaced as a whole.

    Raises:
        OdinError: the bundle is tunable; a file of it cannot be read, or not be written.
    """
    check_decidable(bundle)
    graphs = {
        name: content if name in (FORWARD, GRADIENT) else with_decision(content, calibration)
        for name, content in bundle.graphs().items()
    }
    plans = plan_sets.kept_plans(graphs, bundle)
    contents: Mapping[str, bytes] = graphs | plans.contents
    return write_bundle(bundle.path, bundle.spec, contents, plans.records, calibration)


def with_decision(odin: bytes, calibration: Calibration) -> bytes:
    """An ODIN graph with the output `is_ood`, bool (N,): its score is below the threshold, or NaN.

    Args:
        odin: the graph; a decision that it has is replaced.
        calibration: with the threshold.
    """
    model = onnx.load_model_from_string(odin)
    graph = model.graph
    _remove_decision(graph)
    threshold = numpy_helper.from_array(np.asarray(calibration.threshold, np.float32), _THRESHOLD)
    graph.initializer.append(threshold)
    graph.node.append(helper.make_node("GreaterOrEqual", ["score", _THRESHOLD], [_ACCEPTED]))
    graph.node.append(helper.make_node("Not", [_ACCEPTED], [DECISION]))
    score = next(value for value in graph.output if value.name == "score")
    decision = helper.make_tensor_value_info(DECISION, TensorProto.BOOL, None)
    decision.type.tensor_type.shape.CopyFrom(score.type.tensor_type.shape)
    graph.output.append(decision)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def has_decision(bundle: Bundle) -> bool:
    """Whether a bundle's odin.onnx has it."""
    graph = onnx.load(bundle.file(ODIN)).graph
    return any(output.name == DECISION for output in graph.output)


def _remove_decision(graph: onnx.GraphProto) -> None:
    for values, names in (
        (graph.output, (DECISION,)),
        (graph.initializer, (_THRESHOLD,)),
        (graph.value_info, (_ACCEPTED,)),
    ):
        for value in [each for each in values if each.name in names]:
            values.remove(value)
    for node in [each for each in graph.node if each.output[0] in (DECISION, _ACCEPTED)]:
        graph.node.remove(node)
