"""A user's model made ready for differentiation."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx import inliner

from odin_engines.errors import OdinError
from odin_export import clean
from odin_export.sizes import resolve_sizes

# Ops that ONNX defines through other ops, and that are differentiated through these.
COMPOSED = frozenset(
    {
        *("Attention", "RotaryEmbedding", "AffineGrid", "CenterCropPad", "CastLike"),
        *("MeanVarianceNormalization", "SwiGLU", "LinearAttention"),
    }
)


def prepared(model: onnx.ModelProto) -> ir.Model:
    """Return a copy of any valid model in the form that rules work on.

    Names of inputs and outputs are kept. Functions and composed ops are replaced by what they are
    made of, constants are folded, constant branches of If are taken, and the sizes of values are
    known as far as they can be.

    Raises:
        OdinError: the model is not valid ONNX, or of an opset that is too old.
    """
    ready = clean.from_proto(_expanded(clean.checked(model)))
    clean.fold(ready)
    ready = clean.cleaned(ready)
    resolve_sizes(ready)
    return ready


def _expanded(model: onnx.ModelProto) -> onnx.ModelProto:
    used = {node.op_type for node in model.graph.node if not node.domain}
    used |= {node.op_type for each in model.functions for node in each.node if not node.domain}
    if not used & COMPOSED:
        return model
    try:
        flat = inliner.inline_local_functions(model)
        ids = [("", op) for op in sorted(COMPOSED)]
        return inliner.inline_selected_functions(flat, ids, inline_schema_functions=True)
    except Exception as error:
        raise OdinError(f"the functions of the ONNX model cannot be expanded: {error}") from error
