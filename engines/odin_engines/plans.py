"""Building one plan from one ONNX graph, with TensorRT 10 or 11 or TensorRT for RTX: one code path.

The module is passed in: `tensorrt` builds on the GPU that it builds for, `tensorrt_rtx` anywhere.
Networks are strongly typed: what is computed in which type is written in the graph.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from odin_engines.calibration import DECISION
from odin_engines.errors import OdinError
from odin_engines.files import replacing
from odin_engines.plan_messages import Messages, because, letting_go, make_logger
from odin_engines.plan_records import ENGINE_TITLES, PlanRecord

if TYPE_CHECKING:
    import tensorrt
    import tensorrt_rtx

# Called with what the builder is at and which share of the work is done, from the calling thread.
Progress = Callable[[str, float], object]

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class TimingCache:
    """What was measured while building earlier plans, to read and to add to.

    Attributes:
        file: written whole or not at all.
        asked: whether the user named the file. One that we chose is only there to save time: where
            it is of no use, building starts without, and it is written anew.
    """

    file: Path
    asked: bool = True


def build_plan(
    trt: ModuleType,
    graph: bytes,
    record: PlanRecord,
    outputs: Collection[str],
    timing: TimingCache | None = None,
    progress: Progress = lambda phase, share: None,
) -> bytes:
    """Build the plan that `record` describes.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        graph: an ONNX model, serialized, weights included.
        record: tells profile, targets and flags.
        outputs: names of the outputs that the plan has to have.
        timing: for `tensorrt` only.
        progress: called some ten times a second.

    Returns:
        The plan, serialized.

    Raises:
        OdinError: the parser or the builder refuses, with the node's name, the reason and the
            remedy; or the timing cache that the user named cannot be used.
        KeyboardInterrupt: Ctrl-C was pressed; the build was cancelled first.
    """
    phases = Phases()
    # Parsing too: TensorRT swallows a Ctrl-C that comes while it logs in the main thread.
    return _in_background(
        lambda: _build(trt, graph, record, outputs, timing, phases), phases, progress
    )


@letting_go
def _build(
    trt: ModuleType,
    graph: bytes,
    record: PlanRecord,
    outputs: Collection[str],
    timing: TimingCache | None,
    phases: Phases,
) -> bytes:
    messages = Messages()
    logger = make_logger(trt, messages)
    builder: tensorrt.Builder = make_builder(trt, logger, record.engine)
    network, obstacle = parse(trt, builder, logger, graph)
    if obstacle is not None:
        raise OdinError(
            f"{ENGINE_TITLES[record.engine]} does not take {record.graph}: {obstacle}; express "
            "this node in other ops ('odin-export MODEL --check' tells whether that was enough)"
        )
    _check_outputs(network, outputs, record.graph)
    config: tensorrt.IBuilderConfig = _config(trt, builder, network, record, messages)
    cache = None if timing is None else _open_cache(config, timing)
    config.progress_monitor = _monitor(trt, phases)
    messages.clear()
    plan: Any = builder.build_serialized_network(network, config)
    if plan is None:
        raise OdinError(_refusal(messages, record))
    if cache is not None and timing is not None:
        _save_cache(cache, timing)
    return bytes(plan)


def make_builder(trt: ModuleType, logger: tensorrt.ILogger, engine: str) -> tensorrt.Builder:
    """Start the builder of an engine.

    Raises:
        OdinError: it does not start; TensorRT's own needs a GPU.
    """
    try:
        return trt.Builder(logger)
    except (TypeError, RuntimeError) as error:  # how the bindings tell of a null pointer
        raise OdinError(
            f"{ENGINE_TITLES[engine]} {trt.__version__} cannot start its builder here; look at "
            "nvidia-smi: its driver has to be as new as the CUDA that it was made for"
        ) from error


def parse(
    trt: ModuleType, builder: tensorrt.Builder, logger: tensorrt.ILogger, graph: bytes
) -> tuple[tensorrt.INetworkDefinition, str | None]:
    """Parse an ONNX model into a strongly typed network.

    Returns:
        The network, and None; or what there is of it, the first node that is refused, and why.
    """
    # The default on 11, where the flag changes nothing.
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network: tensorrt.INetworkDefinition = builder.create_network(flags)
    parser: tensorrt.OnnxParser = trt.OnnxParser(network, logger)
    return network, None if parser.parse(graph) else _parser_error(parser)


def _parser_error(parser: tensorrt.OnnxParser) -> str:
    if not parser.num_errors:
        return "it gives no reason"
    error: tensorrt.ParserError = parser.get_error(0)
    why = next((line for line in error.desc().splitlines() if "Error" in line), error.desc())
    if not error.node_operator():  # it is not about a node
        return because(why)
    return f"node {error.node_name()!r} ({error.node_operator()}): {because(why)}"


def _check_outputs(
    network: tensorrt.INetworkDefinition, wanted: Collection[str], graph: str
) -> None:
    outputs: list[tensorrt.ITensor] = [
        network.get_output(index) for index in range(network.num_outputs)
    ]
    for output in outputs:
        if output.name == DECISION:  # whoever runs a plan compares scores by himself
            network.unmark_output(output)
    found = {output.name for output in outputs} - {DECISION}
    if found != set(wanted):
        raise OdinError(
            f"the parser made outputs {', '.join(sorted(found)) or 'none'} of {graph}, not "
            f"{', '.join(sorted(wanted))}: export the model again, and if it stays so report it"
        )


def _config(
    trt: ModuleType,
    builder: tensorrt.Builder,
    network: tensorrt.INetworkDefinition,
    record: PlanRecord,
    messages: Messages,
) -> tensorrt.IBuilderConfig:
    config: tensorrt.IBuilderConfig = builder.create_builder_config()
    if record.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:  # on by default, and then no float32 score would agree with a CPU's
        config.clear_flag(trt.BuilderFlag.TF32)
    if record.optimization_level is not None:
        config.builder_optimization_level = record.optimization_level
    if record.engine == "rtx":
        # Or it would allocate memory in some runs, which then cannot be captured as a CUDA graph.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        _set_targets(trt, config, record)
    else:
        _set_compatibility(trt, config, record)
    _set_profile(trt, builder, network, config, record, messages)
    return config


def _set_compatibility(
    trt: ModuleType, config: tensorrt.IBuilderConfig, record: PlanRecord
) -> None:
    level = trt.HardwareCompatibilityLevel
    if record.hardware_compatibility == "ampere+":
        config.hardware_compatibility_level = level.AMPERE_PLUS
    elif record.hardware_compatibility == "same-cc":
        config.hardware_compatibility_level = level.SAME_COMPUTE_CAPABILITY


def _set_targets(trt: ModuleType, config: tensorrt_rtx.IBuilderConfig, record: PlanRecord) -> None:
    """Say which generations of GPUs the plan is for; TensorRT itself has nothing like it."""
    config.num_compute_capabilities = len(record.compute_capabilities)
    for index, text in enumerate(record.compute_capabilities):
        capability = getattr(trt.ComputeCapability, "SM" + text.replace(".", ""))
        if not config.set_compute_capability(capability, index):
            raise OdinError(
                f"TensorRT for RTX {record.version} does not build for compute capability {text}; "
                "leave it out of --computeCapabilities"
            )


def _set_profile(
    trt: ModuleType,
    builder: tensorrt.Builder,
    network: tensorrt.INetworkDefinition,
    config: tensorrt.IBuilderConfig,
    record: PlanRecord,
    messages: Messages,
) -> None:
    tensors: list[tensorrt.ITensor] = [
        network.get_input(index) for index in range(network.num_inputs)
    ]
    inputs = {tensor.name for tensor in tensors}
    profile: tensorrt.IOptimizationProfile = builder.create_optimization_profile()
    for name, limits in record.profile.items():
        if name not in inputs:
            raise OdinError(f"{record.graph} has no input {name!r}, only {', '.join(inputs)}")
        shapes = (limits.minimum, limits.optimum, limits.maximum)
        try:
            profile.set_shape(name, *(trt.Dims(shape) for shape in shapes))
        except ValueError as error:
            raise OdinError(f"input {name} of {record.graph}: {because(str(error))}") from error
    if config.add_optimization_profile(profile) < 0:
        raise OdinError(
            f"the shapes of {', '.join(record.profile)} do not fit {record.graph}: "
            f"{messages.reason()}"
        )


def _refusal(messages: Messages, record: PlanRecord) -> str:
    reason = messages.reason()
    text = f"{ENGINE_TITLES[record.engine]} cannot build a plan of {record.graph}: {reason}"
    if "sm75" in reason.lower():
        return f"{text}; leave 7.5 out of --computeCapabilities, or take --engine trt on such a GPU"
    if "memory" in reason.lower():
        return f"{text}; give a smaller --maxShapes"
    return f"{text}; try another --precision or --builderOptimizationLevel, and report it"


# Timing cache


def _open_cache(
    config: tensorrt.IBuilderConfig, timing: TimingCache
) -> tensorrt.ITimingCache | None:
    file = timing.file
    try:
        file.parent.mkdir(parents=True, exist_ok=True)  # now, not after building for an hour
        content = file.read_bytes() if file.exists() else b""
    except OSError as error:
        if timing.asked:
            raise OdinError(
                f"cannot use timing cache {file}: {error.strerror}; give another --timingCacheFile"
            ) from error
        content = b""
    for measured in (content, b""):
        cache: tensorrt.ITimingCache | None = config.create_timing_cache(measured)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
        if timing.asked:
            raise OdinError(
                f"{file} is no timing cache of this version of TensorRT and this GPU; delete it, "
                "or give another --timingCacheFile"
            )
    return None


def _save_cache(cache: tensorrt.ITimingCache, timing: TimingCache) -> None:
    content: Any = cache.serialize()  # it has the buffer protocol, of which its type says nothing
    try:
        with replacing(timing.file) as temporary:
            temporary.write_bytes(content)
    except OdinError:
        if timing.asked:
            raise


# Progress and cancelling


class Phases:
    """What the builder is at: phases, each with steps, one of which may hold a phase again.

    The builder reports from threads of its own; what it reported is read from another.
    """

    def __init__(self) -> None:
        self.cancelled = False
        self._lock = threading.Lock()
        self._phases: dict[str, tuple[str | None, int, int]] = {}  # parent, steps, steps done
        self._share = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins."""
        with self._lock:
            self._phases[name] = (parent, max(steps, 1), 0)

    def step(self, name: str, index: int) -> None:
        """A step of a phase, counted from 0, is done."""
        with self._lock:
            if name in self._phases:
                parent, steps, _ = self._phases[name]
                self._phases[name] = (parent, steps, index + 1)

    def finish(self, name: str) -> None:
        """A phase is over."""
        with self._lock:
            self._phases.pop(name, None)

    def state(self) -> tuple[str, float]:
        """The innermost phase, and the share of all work that is done; it never goes back."""
        with self._lock:
            share, width, name = 0.0, 1.0, None
            current = next((n for n, phase in self._phases.items() if phase[0] is None), None)
            while current is not None:
                _, steps, done = self._phases[current]
                share += width * min(done, steps) / steps
                width /= steps
                name = current
                current = next((n for n, p in self._phases.items() if p[0] == name), None)
            self._share = max(self._share, min(share, 1.0))
            return name or "", self._share


def _monitor(trt: ModuleType, phases: Phases) -> tensorrt.IProgressMonitor:
    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            phases.step(phase_name, step)
            return not phases.cancelled

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()


def _in_background(work: Callable[[], Any], phases: Phases, progress: Progress) -> Any:
    """Run `work` in a thread of its own, so that Ctrl-C is heard while the builder is at work."""
    ready = threading.Event()

    def begin() -> Any:
        ready.wait()
        return None if phases.cancelled else work()

    with ThreadPoolExecutor(1, "plan builder") as pool:
        try:
            future = pool.submit(begin)
            ready.set()  # only now: a pool does not wait for a thread whose start was interrupted
            while not future.done():
                wait([future], timeout=_POLL_SECONDS)
                progress(*phases.state())
        except KeyboardInterrupt:
            progress("stopping", phases.state()[1])
            raise
        finally:  # whatever came: the builder asks after each step whether to go on
            phases.cancelled = True
            ready.set()
    return future.result()
