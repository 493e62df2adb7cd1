"""A user's model made ready for differentiation."""

from __future__ import annotations

from string import ascii_lowercase

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
    _use_small_letters(ready.graph)
    return ready


def _use_small_letters(graph: ir.Graph) -> None:
    """Rename the indices of every Einsum that has capital letters, which TensorRT refuses."""
    for node in graph:
        equation = node.attributes.get_string("equation", "") if node.op_type == "Einsum" else ""
        letters = list(dict.fromkeys(filter(str.isalpha, equation)))
        if "->" not in equation or equation.islower() or len(letters) > len(ascii_lowercase):
            continue  # without an arrow, the order of the letters has a meaning
        small = str.maketrans(dict(zip(letters, ascii_lowercase, strict=False)))
        node.attributes["equation"] = ir.AttrString("equation", equation.translate(small))
