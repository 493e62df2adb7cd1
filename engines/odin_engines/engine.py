"""What an engine is, and which there are."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np

from odin_engines.cuda_probe import OLDEST_DRIVERS, ask_driver
from odin_engines.errors import OdinError
from odin_engines.files import user_cache
from odin_engines.packages import install_command
from odin_engines.plan_records import ENGINE_TITLES
from odin_engines.spec import Precision, Spec

Arrays = Mapping[str, np.ndarray]

MOST_THREADS = 4096  # more than any machine has, and no more than any engine takes


@dataclass(frozen=True)
class Tuning:
    """How an engine on the CPU uses it; what is None is left to the engine.

    Attributes:
        threads: in all, at most `MOST_THREADS`.
        streams: how many batches are computed at once, each with its share of the threads, of
            which there is one at least.
        cache: folder in which compiled graphs are kept; None keeps none.
    """

    threads: int | None = None
    streams: int | None = None
    cache: Path | None = None


class Session(ABC):
    """A graph opened in an engine. Safe to use from several threads.

    Attributes:
        streams: how many batches `run_all` computes at once.
    """

    streams: int = 1

    @abstractmethod
    def run(self, feeds: Arrays) -> dict[str, np.ndarray]:
        """Return the graph's outputs, by name, for these inputs, by name: as soon as can be."""

    def run_all(self, batches: Iterable[Arrays]) -> Iterator[dict[str, np.ndarray]]:
        """Return the outputs of each of these inputs, in their order: as many a second as can be.

        An engine of several streams asks for inputs while it computes earlier ones.
        """
        yield from map(self.run, batches)


class Engine(Protocol):
    """A module of this package that opens ONNX graphs."""

    def unavailable(self, precision: Precision) -> str | None:
        """Why the engine cannot run here in this precision, and the remedy; None if it can.

        Where several things are missing, each has a line.
        """

    def open_graph(self, graph: Path, precision: Precision, tuning: Tuning) -> Session:
        """Open an ONNX file."""


@dataclass(frozen=True)
class EngineInfo:
    """Where an engine is found.

    Attributes:
        name: for --engine.
        module: of this package.
        summary: what it is.
        gpu_extra: of odin-ood, which installs what it needs on a GPU; None if it runs on the CPU.
        at_once: images of a batch that are best computed at once, in float32, of a network with
            large activations: on a CPU the fewest that keep it busy, since what is kept of them for
            the backward pass leaves its caches.
    """

    name: str
    module: str
    summary: str
    gpu_extra: str | None = None
    at_once: int = 16


# The fastest first, as measured on a CPU: `auto` takes the first that is available.
ENGINES = {
    info.name: info
    for info in (
        EngineInfo("openvino", "odin_engines.openvino_engine", "OpenVINO on the CPU", at_once=4),
        EngineInfo("ort", "odin_engines.ort_engine", "ONNX Runtime on the CPU", at_once=2),
        EngineInfo("ort-cuda", "odin_engines.ort_cuda_engine", "ONNX Runtime with CUDA", "gpu"),
        EngineInfo("ort-trt", "odin_engines.ort_trt_engine", "ONNX Runtime with TensorRT", "gpu"),
        EngineInfo("trt", "odin_engines.tensorrt_engine", "TensorRT", "gpu"),
        EngineInfo("rtx", "odin_engines.rtx_engine", "TensorRT for RTX", "rtx"),
    )
}
# In what an engine computes a float32 graph by itself; others take the precision from the graph.
_HINTED: Mapping[str, tuple[Precision, ...]] = {"openvino": ("fp32", "bf16")}
# Measured too (bench/RESULTS.md): of activations held at once, and of images.
_HELD_BYTES, _MOST_AT_ONCE = 64 << 20, 64
# The reference needs the PyTorch network itself, so it is opened by `TorchReference`, not by graph.
ENGINE_NAMES = ("auto", "torch", *ENGINES)


def unavailable(name: str, precision: Precision) -> str | None:
    """Why engine `name` cannot run here in this precision, and the remedy; None if it can."""
    return _module(name).unavailable(precision)


def resolve(name: str, precision: Precision) -> str:
    """Return `name`, or for "auto" the fastest engine available.

    Raises:
        OdinError: the engine does not exist, or is not available, with the reason and the remedy.
    """
    if name == "auto":
        return _fastest(precision)
    if name == "torch":
        if find_spec("torch") is None:
            raise OdinError(f"engine torch needs PyTorch: {install_command()}")
        return name
    if name not in ENGINES:
        raise OdinError(f"no engine {name!r}; choose from {', '.join(ENGINE_NAMES)}")
    reason = unavailable(name, precision)
    if reason is not None:
        raise OdinError(_without_a_gpu(name) or f"engine {name} is not available: {reason}")
    return name


def converts(name: str, precision: Precision) -> bool:
    """Whether engine `name` computes a float32 graph in this precision by itself."""
    return precision in _HINTED.get(name, ())


def images_at_once(name: str, precision: Precision, activation_bytes: int = 0) -> int:
    """How many images of a batch engine `name` best computes at once: a power of two.

    Args:
        name: of the engine.
        precision: in which it computes.
        activation_bytes: of one image, as in `Spec`: of small ones, more are needed to keep an
            engine busy; 0 where it is not known.
    """
    info = ENGINES.get(name)
    if info is None or info.gpu_extra is not None:
        return EngineInfo.at_once
    most = info.at_once
    while activation_bytes and most < _MOST_AT_ONCE and 2 * most * activation_bytes <= _HELD_BYTES:
        most *= 2
    return most * (2 if precision == "bf16" else 1)  # half the bytes


def cache_folder(name: str) -> Path | None:
    """Where engine `name` may keep what it compiles; None where there is no room for it."""
    base = user_cache()
    if name != "openvino" or base is None:
        return None
    folder = base / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a cache is not worth an error: without it, opening takes longer
        return None
    return folder if os.access(folder, os.W_OK) else None


def takes_precision(name: str, spec: Spec, precision: Precision) -> str | None:
    """Why engine `name` does not compute a bundle in this precision, and the remedy, or None.

    fp16 and bf16 are written into the graphs when they are exported, and no engine changes that;
    bf16 is also something that OpenVINO makes of a float32 graph.
    """
    if precision == spec.graph_precision:
        return None
    if spec.graph_precision == "fp32" and converts(name, precision):
        return None
    return (
        f"precision {precision}: the bundle's graphs are written in {spec.graph_precision}, which "
        f"engine {name} does not change; leave --precision out, or export another bundle with "
        f"'odin-export {spec.model} --precision {precision} --output DIR'"
    )


def open_graph(
    name: str, graph: Path, precision: Precision = "fp32", tuning: Tuning | None = None
) -> Session:
    """Open an ONNX file in an engine.

    Raises:
        OdinError: the engine is not available, or refuses the graph.
    """
    return _module(resolve(name, precision)).open_graph(graph, precision, tuning or Tuning())


def missing_package(module: str, remedy: str) -> str | None:
    """The reason and remedy if a package cannot be imported, else None. Imports nothing."""
    spec = find_spec(module)
    # A folder that pip left behind has no file to import.
    whole = spec is not None and spec.origin is not None
    return None if whole else f"{module} is not installed: {remedy}"


def _fastest(precision: Precision) -> str:
    reasons = []
    for name in ENGINES:
        reason = unavailable(name, precision)
        if reason is None:
            return name
        reasons.append(f"{name}: {'; '.join(reason.splitlines())}")
    raise OdinError("no engine is available here\n  " + "\n  ".join(reasons))


def _without_a_gpu(name: str) -> str | None:
    """Two lines where it is the GPU that an engine lacks: why it cannot run, and what would.

    Plans run with kernels that are compiled where nvcc is found when this package is installed.
    """
    extra = ENGINES[name].gpu_extra
    problem = None if extra is None else ask_driver().problem
    if problem is None:
        return None
    nvcc = " nvcc," if name in ENGINE_TITLES else ""
    return (
        f"engine {name} is not available: {problem}\n"
        f"It takes an NVIDIA GPU, driver {max(OLDEST_DRIVERS.values())}+,{nvcc} then "
        f"pip install 'odin-ood[{extra}]'; here: openvino or ort"
    )


def _module(name: str) -> Engine:
    return import_module(ENGINES[name].module)
