"""Whether a classifier can be exported, and what stands in the way."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from odin_engines import engine as engines
from odin_engines.bundle import ODIN
from odin_engines.errors import OdinError
from odin_engines.spec import Spec
from odin_engines.tensorrt_engine import parser_obstacle
from odin_export import clean
from odin_export.backward import nodes_between
from odin_export.obstacles import full_name
from odin_export.odin_graph import odin_graph
from odin_export.rules import NO_GRADIENT, RULES
from odin_export.verify import trial_shape

_TAKES = "takes it"


@dataclass(frozen=True)
class OpRow:
    """One op of the forward graph.

    Attributes:
        op: with its domain.
        count: of its nodes.
        on_path: how many of them lie between image and logits and carry a gradient.
        rule: whether the gradient of such a node can be derived.
    """

    op: str
    count: int
    on_path: int
    rule: bool


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        rows: the ops of the forward graph, the most frequent first.
        obstacle: the first node that has no gradient, and why; None if all have.
        engines: for each engine "takes it", why it does not, or that it is not installed.
        refused: the engines that are installed and do not take the graph.
    """

    rows: list[OpRow]
    obstacle: str | None
    engines: dict[str, str]
    refused: list[str]

    @property
    def passed(self) -> bool:
        """Whether the gradient exists and every installed engine takes the ODIN graph."""
        return self.obstacle is None and not self.refused


def check(forward: onnx.ModelProto, spec: Spec) -> Report:
    """Derive the ODIN graph of a forward graph and give it to every engine at hand."""
    rows = _rows(forward)
    try:
        graph = odin_graph(forward, spec)
    except OdinError as error:
        return Report(rows, str(error), {}, [])
    answers: dict[str, str] = {}
    refused = []
    with tempfile.TemporaryDirectory(prefix="odin-check-") as folder:
        file = Path(folder) / ODIN
        file.write_bytes(graph.SerializeToString())
        for name in ("ort", "openvino"):
            missing = engines.unavailable(name, spec.graph_precision)
            answers[name] = missing or _answer_of(name, file, spec)
            if missing is None and answers[name] != _TAKES:
                refused.append(name)
    try:
        answers["rtx parser"] = parser_obstacle(graph.SerializeToString()) or _TAKES
        if answers["rtx parser"] != _TAKES:
            refused.append("rtx parser")
    except OdinError as error:
        answers["rtx parser"] = str(error)
    return Report(rows, None, answers, refused)


def as_text(report: Report) -> str:
    """The report as a table for a terminal."""
    width = max((len(row.op) for row in report.rows), default=2)
    lines = [f"{'op':<{width}}  nodes  differentiated"]
    for row in report.rows:
        if not row.on_path:
            state = "needs no gradient"
        elif row.rule:
            state = f"{row.on_path}"
        else:
            state = f"{row.on_path}, NO RULE"
        lines.append(f"{row.op:<{width}}  {row.count:>5}  {state}")
    lines.append("")
    if report.obstacle:
        lines.append(f"first obstacle: {report.obstacle}")
    else:
        lines.append("gradient: every node between image and logits has a rule")
    lines += [f"{name}: {answer}" for name, answer in report.engines.items()]
    return "\n".join(lines)


def _rows(forward: onnx.ModelProto) -> list[OpRow]:
    graph = clean.from_proto(forward).graph
    path = nodes_between(graph, graph.inputs[0], graph.outputs[0])
    nodes, on_path = Counter(map(full_name, graph)), Counter(map(full_name, path))
    return [
        OpRow(op, count, on_path[op], op in RULES or op in NO_GRADIENT)
        for op, count in sorted(nodes.items(), key=lambda item: (-item[1], item[0]))
    ]


def _answer_of(name: str, file: Path, spec: Spec) -> str:
    """Run the ODIN graph in an engine, on two random images."""
    generator = np.random.default_rng(0)
    size = trial_shape(2, spec.channels, spec.height, spec.width)
    images = generator.standard_normal(size).astype(np.float32)
    if spec.input_type == "uint8":
        images = generator.integers(0, 256, (2, *size[2:], spec.channels)).astype(np.uint8)
    feeds = {"images": images}
    if spec.tunable:
        feeds["temperature"] = np.array(spec.temperature, np.float32)
        feeds["magnitude"] = np.array(spec.magnitude, np.float32)
    try:
        outputs = engines.open_graph(name, file, spec.graph_precision).run(feeds)
    except OdinError as error:
        return str(error)
    if not np.isfinite(outputs["score"]).all():
        return "its scores of random images are not finite"
    return _TAKES
