"""The ODIN graph in forms that single engines are faster with: the same results, but for rounding.

A bundle has such a form beside odin.onnx, which any engine takes, and the engine's scorer opens it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir

from odin_engines.bundle import ODIN, Bundle, own_odin, write_bundle
from odin_engines.errors import OdinError
from odin_engines.spec import Spec
from odin_export import clean
from odin_export.rewrites import masks_in_one_op

REWRITES: dict[str, Callable[[ir.Graph], int]] = {"ort": masks_in_one_op}


def check(engine: str, spec: Spec) -> None:
    """Check that a network's graphs can have an engine's own form.

    Raises:
        OdinError: they are not in float32.
    """
    if spec.graph_precision != "fp32":
        raise OdinError(
            f"--engine {engine} rewrites graphs in fp32, and these are in {spec.graph_precision}: "
            "leave it out, or export with --precision fp32"
        )


def engine_of_own_graph(bundle: Bundle, spec: Spec) -> str | None:
    """The engine whose own graph a bundle has, if one of `spec` can have it too."""
    if spec.graph_precision != "fp32":
        return None
    return next((each for each in REWRITES if own_odin(each) in bundle.files), None)


def own_graph(engine: str, odin: bytes) -> dict[str, bytes]:
    """The ODIN graph in an engine's own form, by its file's name; empty if it is no other.

    Args:
        engine: one of `REWRITES`.
        odin: odin.onnx, in float32, as this project writes it: nothing is raised.
    """
    model = clean.from_proto(onnx.load_model_from_string(odin))
    clean.infer_shapes(model)
    if not REWRITES[engine](model.graph):
        return {}
    rewritten = clean.to_proto(model)
    onnx.checker.check_model(rewritten, full_check=True)
    return {own_odin(engine): rewritten.SerializeToString()}


def add_own_graph(bundle: Bundle, engine: str, target: Path | None = None) -> Bundle:
    """Give a bundle on disk the ODIN graph in an engine's own form.

    Args:
        bundle: whose other files stay as they are.
        engine: one of `REWRITES`.
        target: where the bundle with the graph goes; None puts it into `bundle`.

    Raises:
        OdinError: its graphs are not in float32, a plan is damaged, or it cannot be written; it is
            then as it was.
    """
    check(engine, bundle.spec)
    contents = bundle.graphs()
    contents.pop(own_odin(engine), None)
    contents |= own_graph(engine, contents[ODIN])
    contents |= {plan.file: bundle.file(plan.file).read_bytes() for plan in bundle.plans}
    return write_bundle(
        target or bundle.path, bundle.spec, contents, bundle.plans, bundle.calibration
    )
