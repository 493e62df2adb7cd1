"""One forward pass with the backward passes of several temperatures, from `gradient.onnx`.

Of that graph only the backward pass depends on `temperature`: its seed does, and nothing of the
forward pass. So what depends on it is copied for each temperature, and the rest is there once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

_TEMPERATURE = "temperature"


def gradients_graph(gradient: Path, temperatures: Sequence[float]) -> onnx.ModelProto:
    """Return a graph: normalised `images` -> `logits`, `input_gradient@0`, `input_gradient@1`, ...

    Args:
        gradient: `gradient.onnx` of a tunable bundle.
        temperatures: one for each gradient, in this order; the graph has them as constants.
    """
    model = onnx.load(gradient)
    graph = model.graph
    depends = {_TEMPERATURE}
    shared: list[onnx.NodeProto] = []
    copied: list[onnx.NodeProto] = []
    for node in graph.node:  # each after those that it takes from, as ONNX demands
        if depends.isdisjoint(node.input):
            shared.append(node)
        else:
            copied.append(node)
            depends.update(node.output)
    outputs = [output for output in graph.output if output.name not in depends]
    own_outputs = [output for output in graph.output if output.name in depends]
    inputs = [value for value in graph.input if value.name != _TEMPERATURE]
    infos = [info for info in graph.value_info if info.name not in depends]
    for index, temperature in enumerate(temperatures):
        names = {name: f"{name}@{index}" for name in depends}
        scalar = numpy_helper.from_array(np.array(temperature, np.float32), names[_TEMPERATURE])
        graph.initializer.append(scalar)
        shared += [_renamed(node, names, index) for node in copied]
        for output in own_outputs:
            outputs.append(onnx.ValueInfoProto())
            outputs[-1].CopyFrom(output)
            outputs[-1].name = names[output.name]
    for repeated, kept in (
        (graph.node, shared),
        (graph.input, inputs),
        (graph.output, outputs),
        (graph.value_info, infos),
    ):
        del repeated[:]
        repeated.extend(kept)
    return model


def _renamed(node: onnx.NodeProto, names: dict[str, str], index: int) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = f"{node.name}@{index}"
    copy.input[:] = [names.get(name, name) for name in node.input]
    copy.output[:] = [names.get(name, name) for name in node.output]
    return copy
