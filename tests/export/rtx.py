"""Building graphs with TensorRT for RTX, whose builder needs no GPU."""

from __future__ import annotations

import onnx
import pytest

Shape = tuple[int, ...]
Limits = tuple[Shape, Shape, Shape]


def builder() -> object:
    """Return the module, or skip the test."""
    return pytest.importorskip(
        "tensorrt_rtx", reason="install tensorrt-rtx-cu13: pip install '.[cpu,test,rtx]'"
    )


def build(model: onnx.ModelProto, shapes: dict[str, Limits]) -> None:
    """Parse and build `model`; fail with the parser's or the builder's words.

    Args:
        model: float32.
        shapes: smallest, usual and largest shape of each input.
    """
    builder()
    found = problem(model, shapes)
    if found is not None:
        pytest.fail(found)


def problem(model: onnx.ModelProto, shapes: dict[str, Limits]) -> str | None:
    """Parse and build `model`; return why that cannot be done, or None if it can."""
    import tensorrt_rtx as trt

    messages: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: object, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                messages.append(message)

    logger = Logger()
    trt_builder = trt.Builder(logger)
    network = trt_builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        return "; ".join(f"{error.node_name()}: {error.desc()}" for error in errors)
    config = trt_builder.create_builder_config()
    profile = trt_builder.create_optimization_profile()
    for name, limits in shapes.items():
        profile.set_shape(name, *limits)
    config.add_optimization_profile(profile)
    if trt_builder.build_serialized_network(network, config) is None:
        return "; ".join(messages) or "the builder gave nothing and said nothing"
    return None
