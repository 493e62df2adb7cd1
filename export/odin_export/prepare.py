"""A user's model made ready for differentiation."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from odin_export import clean
from odin_export.composed import expanded
from odin_export.dequantise import dequantised
from odin_export.sizes import resolve_sizes


def prepared(model: onnx.ModelProto) -> ir.Model:
    """Return a copy of any valid model in the form that rules work on.

    Names of inputs and outputs are kept. Functions and composed ops are replaced by what they are
    made of, constants are folded, constant branches of If are taken, and the sizes of values are
    known as far as they can be.

    Raises:
        OdinError: the model is not valid ONNX, or of an opset that is too old or too new.
    """
    ready = clean.from_proto(expanded(dequantised(clean.checked(model))), fold_first=True)
    resolve_sizes(ready)
    return ready
