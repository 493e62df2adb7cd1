"""Where the time of a graph goes, by type of op: as OpenVINO and ONNX Runtime say themselves.

Measuring takes time too: shares tell more than milliseconds.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from odin_bench.throughput import sample_images, tuned
from odin_engines.bundle import FORWARD, Bundle
from odin_engines.cores import physical_cores, streams_of
from odin_engines.engine import Arrays, Tuning, images_at_once
from odin_engines.errors import OdinError
from odin_engines.openvino_engine import the_core
from odin_engines.ort_engine import one_line
from odin_engines.spec import Precision
from odin_runtime.images import normalised

ENGINES = ("openvino", "ort")
_RUNS = 5
_ERRORS_ONLY = 3
_EXECUTED = "_kernel_time"  # how ONNX Runtime's events of executed nodes end

# Of one executed node: its name, its op, the kernel that computed it, seconds.
Event = tuple[str, str, str, float]


@dataclass(frozen=True)
class OpTime:
    """All ops of one type in one graph.

    Attributes:
        op: what the engine calls it, after its own fusions.
        kernel: what computed it; empty where the engine does not tell.
        count: of the nodes that took time; OpenVINO counts whole microseconds.
        milliseconds: an image, in all.
    """

    op: str
    kernel: str
    count: int
    milliseconds: float


@dataclass(frozen=True)
class Profile:
    """Where the time of one graph goes.

    Attributes:
        engine, precision: as for --engine and --precision.
        method: "forward", "exact" or "first-order".
        images: in one run of the engine.
        threads: that computed them.
        ops: the longest first.
    """

    engine: str
    precision: str
    method: str
    images: int
    threads: int
    ops: list[OpTime]

    @property
    def milliseconds(self) -> float:
        """An image, all ops together."""
        return sum(op.milliseconds for op in self.ops)

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        return {**asdict(self), "milliseconds": self.milliseconds}


def profiles(
    bundles: Sequence[Bundle],
    engine: str,
    precision: Precision,
    batch: int,
    size: tuple[int, int],
    tuning: Tuning,
) -> Iterator[Profile]:
    """Profile a network's forward pass and its ODIN graphs.

    A batch that engines compute in parts is profiled as one part on one of the streams.

    Args:
        bundles: of one network, one for each method.
        engine, precision, tuning: one of `ENGINES`, and as `engines.open_graph`.
        batch: images that are scored together.
        size: height and width of the images.

    Raises:
        OdinError: the engine refuses a graph.
    """
    spec = bundles[0].spec
    images = min(batch, images_at_once(engine, precision, spec.activation_bytes))
    threads = tuning.threads or physical_cores()
    if images < batch:
        threads = max(threads // streams_of(tuning), 1)
    raw = sample_images(spec, images, size)
    planes = normalised(raw, spec)
    graphs: list[tuple[str, Path, Arrays]] = [
        ("forward", bundles[0].file(FORWARD), {"images": planes})
    ]
    for bundle in bundles:
        given = raw if bundle.spec.input_type == "uint8" else planes
        inputs = {"images": given, **tuned(bundle.spec)}
        graphs.append((bundle.spec.method, bundle.odin(engine), inputs))
    hint = "bf16" if precision == "bf16" and spec.graph_precision == "fp32" else "f32"
    for method, graph, feeds in graphs:
        try:
            if engine == "openvino":
                ops = by_op(_openvino_runs(graph, feeds, hint, threads), images)
            else:
                ops = by_op(_ort_runs(graph, feeds, threads), images)
        except Exception as error:  # each engine has its own classes
            raise OdinError(f"{engine} cannot profile {graph}: {one_line(error)}") from error
        yield Profile(engine, precision, method, images, threads, ops)


def by_op(runs: Iterable[Sequence[Event]], images: int) -> list[OpTime]:
    """Sum the events of several runs, of so many images each, by op and kernel; longest first."""
    seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
    nodes: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    total = 0
    for events in runs:
        total += 1
        for node, op, kernel, length in events:
            seconds[op, kernel] += length
            nodes[op, kernel].add(node)
    return [
        OpTime(op, kernel, len(nodes[op, kernel]), 1000 * length / total / images)
        for (op, kernel), length in sorted(seconds.items(), key=lambda item: -item[1])
    ]


def _openvino_runs(graph: Path, feeds: Arrays, hint: str, threads: int) -> Iterator[list[Event]]:
    """The executed nodes of each run; the graph is compiled for the sizes, as the engine does."""
    model = the_core().read_model(str(graph))
    model.reshape({name: list(array.shape) for name, array in feeds.items()})
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": threads,
        "PERF_COUNT": True,
    }
    request = the_core().compile_model(model, "CPU", settings).create_infer_request()
    request.infer(dict(feeds))
    for _ in range(_RUNS):
        request.infer(dict(feeds))
        yield [
            (node.node_name, node.node_type, node.exec_type, node.real_time.total_seconds())
            for node in request.get_profiling_info()
            if node.status == node.Status.EXECUTED
        ]


def _ort_runs(graph: Path, feeds: Arrays, threads: int) -> list[list[Event]]:
    """The executed nodes of each run but the first."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(
            str(graph), options, providers=["CPUExecutionProvider"]
        )
        for _ in range(1 + _RUNS):
            session.run(None, dict(feeds))
        written = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    return split_runs(written)[1:]


def split_runs(events: Sequence[dict[str, Any]]) -> list[list[Event]]:
    """The executed nodes in a profile of ONNX Runtime, by run.

    Args:
        events: with `ts` and `dur` in microseconds; a run is one named model_run.
    """
    starts = sorted(event["ts"] for event in events if event.get("name") == "model_run")
    runs: list[list[Event]] = [[] for _ in starts]
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith(_EXECUTED):
            continue
        run = sum(start <= event["ts"] for start in starts) - 1
        told = event["args"]
        runs[run].append((told["node_index"], told["op_name"], "", event["dur"] / 1e6))
    return runs
