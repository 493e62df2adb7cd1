"""odin-bench --doctor: what can score here, and what is missing for the rest to."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sysconfig
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from odin_bench import machine
from odin_bench.machine import Machine
from odin_bench.published import RESULTS
from odin_engines import engine as engines
from odin_engines.bundle import Bundle, is_bundle, read_bundle
from odin_engines.cuda_probe import Driver, ask_driver
from odin_engines.engine import ENGINES
from odin_engines.errors import OdinError
from odin_engines.files import replacing
from odin_engines.packages import install_command, installed, version_of
from odin_engines.plan_sets import form_graphs
from odin_engines.spec import Precision
from odin_engines.tensorrt_engine import plan_problem
from odin_runtime.driver import DRIVERS
from odin_runtime.driver_reasons import missing_package
from odin_runtime.gpu_options import PLAN_ENGINES
from odin_runtime.gpu_scorer import choose_form
from odin_runtime.kernels import FATBIN, fat_binary

# What pip calls each engine's packages; the first that is installed tells the version.
_DISTRIBUTIONS = {
    "openvino": ("openvino",),
    "ort": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml"),
    "ort-cuda": ("onnxruntime-gpu",),
    "ort-trt": ("onnxruntime-gpu",),
    "trt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu13-bindings"),
    "rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
    "torch": ("torch",),
}
_CPU_MODULES = {"openvino": "openvino", "ort": "onnxruntime"}
_USUAL_FOLDER = "/usr/local/cuda/bin"
_DRIVER_REMEDY = (
    "GPU engines take a machine with an NVIDIA GPU and its driver; a container has to be given the "
    "GPU, as with --gpus all"
)
_COLUMNS = 100
_LABEL = 14  # columns of the names at the left


@dataclass(frozen=True)
class EngineState:
    """Whether an engine can score here.

    Attributes:
        name: for --engine.
        summary: what it is.
        version: of its package; None if it is not installed.
        precisions: in which it computes here; () where it does not.
        devices: names of the CPU or of the GPUs it computes on.
        reasons: why it cannot score, with remedies; () if it can.
    """

    name: str
    summary: str
    version: str | None
    precisions: tuple[str, ...]
    devices: tuple[str, ...]
    reasons: tuple[str, ...]

    @property
    def available(self) -> bool:
        """Whether it can score."""
        return not self.reasons


@dataclass(frozen=True)
class Part:
    """Something that GPU engines use.

    Attributes:
        name: what it is.
        found: version and place; None if it is missing.
        reason: why it is missing, with the remedy; None if it is not.
    """

    name: str
    found: str | None
    reason: str | None = None


@dataclass(frozen=True)
class Report:
    """All that --doctor tells.

    Attributes:
        version: of odin-ood.
        machine: the CPU and its memory.
        driver: of NVIDIA, and its GPUs.
        engines: in the order in which `auto` tries them, PyTorch at the end.
        auto: the engine that `auto` takes; None if none is available.
        parts: for GPU engines.
        bundle: the folder of the bundle that was asked about.
    """

    version: str | None
    machine: Machine
    driver: Driver
    engines: tuple[EngineState, ...]
    auto: str | None
    parts: tuple[Part, ...]
    bundle: str | None


def examine(path: Path | None = None, precision: Precision | None = None) -> Report:
    """Look at everything that engines need.

    Args:
        path: a bundle, for engines to be able to score it; None: to score anything.
        precision: in which; None takes the bundle's own, else fp32.

    Raises:
        OdinError: there is no whole bundle at `path`.
    """
    bundle = None if path is None else read_bundle(path)
    asked: Precision = precision or ("fp32" if bundle is None else bundle.spec.precision)
    here, driver = machine.describe(), ask_driver()
    drivers, kernels = tuple(_drivers(driver)), _kernels()
    lacks = _lacks_of_plans(drivers, kernels) if driver.problem is None else ()
    states = [_engine(name, bundle, asked, here, driver, lacks) for name in (*ENGINES, "torch")]
    return Report(
        version=version_of("odin-ood"),
        machine=here,
        driver=driver,
        engines=tuple(states),
        auto=_auto(asked),
        parts=(*drivers, kernels, _nvcc()),
        bundle=None if bundle is None else str(bundle.path),
    )


def diagnose(
    model: str | None, engine: str, precision: Precision | None, json_file: Path | None
) -> int:
    """Print the report, and write it to a file where one is given.

    Args:
        model: the folder of a bundle, or the name of a network, of which no engine wants more than
            of any other; None for neither.
        engine: the one that is asked about; "auto" for any.
        precision: in which; None takes the bundle's own, else fp32.
        json_file: where `as_json` goes, or None.

    Returns:
        the exit status: 0 if that engine, or at least one, can score; else 1.

    Raises:
        OdinError: there is no whole bundle, or the file cannot be written.
    """
    named = model in RESULTS and not is_bundle(Path(model))
    report = examine(Path(model) if model and not named else None, precision)
    print(as_text(report))
    if json_file:
        with replacing(json_file) as temporary:
            temporary.write_text(json.dumps(as_json(report), indent=1) + "\n", "utf-8")
    asked = [state for state in report.engines if engine in ("auto", state.name)]
    return 0 if any(state.available for state in asked) else 1


def as_json(report: Report) -> dict[str, Any]:
    """Return the report as data; what the classes here compute is in it too."""
    data = dataclasses.asdict(report)
    data["driver"]["cuda"] = report.driver.version_text if report.driver.version else None
    for entry, state in zip(data["engines"], report.engines, strict=True):
        entry["available"] = state.available
    return {"schema": 1, **data}


def as_text(report: Report) -> str:
    """Return the report in lines of at most 100 columns, but for paths that are longer."""
    return "\n".join(
        [
            f"odin-ood {report.version or '(not installed as a package)'}, "
            f"Python {report.machine.python}, {report.machine.system}",
            "",
            "machine",
            *_machine_lines(report.machine),
            *_driver_lines(report.driver),
            "",
            *([f"bundle {report.bundle}", ""] if report.bundle else []),
            f"engines (--engine auto takes {report.auto or 'none'})",
            *(line for state in report.engines for line in _engine_lines(state)),
            "",
            "for GPUs",
            *(line for part in report.parts for line in _part_lines(part)),
        ]
    )


# Engines


def _auto(precision: Precision) -> str | None:
    try:
        return engines.resolve("auto", precision)
    except OdinError:  # each engine tells its reason
        return None


def _engine(
    name: str,
    bundle: Bundle | None,
    asked: Precision,
    here: Machine,
    driver: Driver,
    lacks_of_plans: tuple[str, ...],
) -> EngineState:
    version = next(iter(installed(_DISTRIBUTIONS[name]).values()), None)
    summary = "PyTorch, the reference" if name == "torch" else ENGINES[name].summary
    precisions: tuple[str, ...] = ("fp32",)
    if name == "torch":
        # Not imported, which takes seconds.
        absent = find_spec("torch") is None
        reasons = [f"torch is not installed: {install_command()}"] if absent else []
        if asked != "fp32":
            reasons.append(f"it is the reference in fp32, not in {asked}")
    else:
        reasons = list(_reasons(name, bundle, asked))
        reasons += lacks_of_plans if name in PLAN_ENGINES else ()
        precisions = tuple(_precisions(name, bundle))
    on_cpu = name == "torch" or name in _CPU_MODULES
    devices = (here.cpu,) if on_cpu else tuple(device.name for device in driver.devices)
    if reasons:
        precisions = devices = ()
    return EngineState(name, summary, version, precisions, devices, tuple(reasons))


def _precisions(name: str, bundle: Bundle | None) -> Iterator[str]:
    """Those in which an engine computes a bundle, or other bundles."""
    for precision in get_args(Precision):
        if bundle is not None and engines.takes_precision(name, bundle.spec, precision):
            continue
        if _reason(name, precision) is None:
            yield precision


def _reasons(name: str, bundle: Bundle | None, asked: Precision) -> Iterator[str]:
    """Why an engine cannot score a bundle, or anything, in a precision."""
    reason = _reason(name, asked)
    if reason is not None:
        yield from reason.splitlines()
    if bundle is None:
        return
    if (problem := engines.takes_precision(name, bundle.spec, asked)) is not None:
        yield problem
    elif name in PLAN_ENGINES:
        problem = _plan_problem(bundle, name)
        # Of what is wrong with the machine, both tell; of the plan, the second alone.
        if problem is not None and not (reason and _said(reason, problem)):
            yield problem


def _reason(name: str, precision: Precision) -> str | None:
    try:
        reason = engines.unavailable(name, precision)
        if reason is None and name in _CPU_MODULES:
            import_module(_CPU_MODULES[name])
    except (ImportError, OSError, RuntimeError, AttributeError, OdinError) as error:
        return f"its package does not load ({' '.join(str(error).split())}): install it again"
    return reason


def _plan_problem(bundle: Bundle, engine: str) -> str | None:
    """Why the plans that would be opened cannot run."""
    graphs = form_graphs(choose_form(bundle, engine), bundle.spec)
    problems = (plan_problem(bundle, engine, graph) for graph in graphs)
    return next((problem for problem in problems if problem is not None), None)


def _said(reason: str, problem: str) -> bool:
    return reason.partition(";")[0] in problem


# Parts


def _lacks_of_plans(drivers: tuple[Part, ...], kernels: Part) -> tuple[str, ...]:
    """What plans need beside TensorRT, and is missing."""
    lacks = [] if kernels.reason is None else [kernels.reason]
    if all(part.reason is not None for part in drivers):
        lacks += [f"neither {' nor '.join(part.name for part in drivers)}: {drivers[0].reason}"]
    return tuple(lacks)


def _drivers(driver: Driver) -> Iterator[Part]:
    """What launches kernels from Python; one of the two is enough."""
    for name in DRIVERS:
        # Importing pycuda takes the driver's library.
        reason = missing_package(name, try_import=driver.problem is None)
        if reason is None:
            yield Part(name, version_of(name) or "of an unknown version")
        else:
            yield Part(name, None, f"{reason.cause}: {reason.remedy}")


def _kernels() -> Part:
    """The CUDA kernels, compiled."""
    try:
        size = len(fat_binary())
    except OdinError as error:
        return Part("kernels", None, str(error))
    return Part("kernels", f"{size / 2**10:.0f} KiB, {files('odin_runtime') / FATBIN}")


def _nvcc() -> Part:
    """The compiler of CUDA, needed only to make the kernels."""
    nvcc = next(_nvcc_candidates(), None)
    if nvcc is None:
        return Part("nvcc", None, "not found; it is needed only to compile the kernels")
    try:
        done = subprocess.run(
            [nvcc, "--version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Part("nvcc", None, f"{nvcc} does not run ({error})")
    version = re.search(r"release [\d.]+, V([\d.]+)", done.stdout)
    if done.returncode or version is None:
        return Part("nvcc", None, f"{nvcc} does not tell its version")
    return Part("nvcc", f"{version[1]}, {nvcc}")


def _nvcc_candidates() -> Iterator[str]:
    """Where the build looks for nvcc, in its order (runtime/cmake/OdinNvcc.cmake)."""
    asked = os.environ.get("CUDACXX")
    if asked:  # a wrong name is told, not replaced by another nvcc
        yield shutil.which(asked) or asked
        return
    toolkit = os.environ.get("CUDA_PATH")
    packages = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin"
    folders = [f"{toolkit}/bin"] if toolkit else []
    folders += [os.environ.get("PATH", ""), str(packages), _USUAL_FOLDER]
    for folder in folders:
        if found := shutil.which("nvcc", path=folder):
            yield found


# Text


def _machine_lines(here: Machine) -> Iterator[str]:
    cores = f"{here.cores} cores, " if here.cores else ""
    yield from _lines(
        "CPU", f"{here.cpu}: {cores}{here.threads} threads, {here.usable_threads} for this process"
    )
    yield from _lines("vectors", ", ".join(here.vectors) or "none that are known")
    if here.memory:
        yield from _lines(
            "memory", f"{_gibibytes(here.memory)}, {_gibibytes(here.free_memory)} free"
        )


def _driver_lines(driver: Driver) -> Iterator[str]:
    version = f"takes CUDA up to {driver.version_text}" if driver.version else None
    problem = driver.problem and f"{driver.problem}: {_DRIVER_REMEDY}"
    yield from _lines("GPU driver", "; ".join(filter(None, (version, problem))))
    for index, device in enumerate(driver.devices):
        yield from _lines(
            f"GPU {index}",
            f"{device.name}, compute capability {device.capability_text}, "
            f"{_gibibytes(device.memory)}, {device.multiprocessors} multiprocessors",
        )


def _engine_lines(state: EngineState) -> Iterator[str]:
    title = " ".join(filter(None, (state.summary, state.version)))
    if state.available:
        known = [title, "/".join(state.precisions), *state.devices]
        yield from _lines(state.name, f"yes  {', '.join(known)}", indent=5)
        return
    yield from _lines(state.name, f"no   {title}", indent=5)
    for reason in state.reasons:
        yield from _lines("", f"  -  {reason}", indent=5)


def _part_lines(part: Part) -> Iterator[str]:
    yield from _lines(part.name, part.found or f"no: {part.reason}")


def _lines(label: str, text: str, indent: int = 0) -> list[str]:
    left = f"  {label:<{_LABEL - 2}}"
    return textwrap.wrap(
        text,
        _COLUMNS,
        initial_indent=left,
        subsequent_indent=" " * (_LABEL + indent),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _gibibytes(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
