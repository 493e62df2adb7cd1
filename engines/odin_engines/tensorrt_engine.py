"""TensorRT and TensorRT for RTX: why they cannot be used here, and opening a bundle's plans.

What is opened is `odin_engines.plan.Plan`, which runs on buffers and streams of the caller.
"""

from __future__ import annotations

from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from odin_engines.bundle import Bundle
from odin_engines.cuda_probe import OLDEST_DRIVERS, Device, Driver, ask_driver, version_text
from odin_engines.engine import ENGINES, Session, Tuning
from odin_engines.errors import OdinError
from odin_engines.plan import Plan, deserialized
from odin_engines.plan_messages import Messages, make_logger
from odin_engines.plan_records import ENGINE_MODULES, ENGINE_TITLES, PlanRecord
from odin_engines.plans import make_builder, parse
from odin_engines.spec import Precision

# Whether it is here


def unavailable(precision: Precision, engine: str = "trt") -> str | None:
    """Why no plan can be run here, and what would run it; None if plans can be run.

    Which precisions there are is a matter of the plan, so `precision` changes nothing.
    """
    driver = ask_driver()
    # Of several GPUs, one that will do is enough: `plan_problem` looks at the one that is wanted.
    problems = [_problem(engine, driver, number) for number in range(len(driver.devices) or 1)]
    problem = None if None in problems else problems[0]
    return problem and f"{problem}; on a CPU: openvino, ort"


def building_problem(engine: str) -> str | None:
    """Why no plan can be built here, and what would do; None if plans can be built."""
    if engine == "rtx":
        if _installed(engine):
            return None
        return f"{ENGINE_MODULES[engine]} is not installed: {_install(engine)}"
    problem = _problem(engine, ask_driver())
    if problem is None:
        return None
    return f"TensorRT builds on the GPU that it builds for, and {problem}; rtx builds on any CPU"


def load(engine: str) -> ModuleType:
    """Import the package of an engine.

    Raises:
        OdinError: it is not installed, or its libraries are not.
    """
    module = ENGINE_MODULES[engine]
    if not _installed(engine):
        raise OdinError(f"{module} is not installed: {_install(engine)}")
    try:
        return import_module(module)
    except (ImportError, OSError) as error:
        raise OdinError(
            f"{module} does not load ({error}); its libraries come from NVIDIA's package index: "
            f"{_install(engine)}"
        ) from error


def _problem(engine: str, driver: Driver, device: int = 0) -> str | None:
    reasons, needs = [], []
    if not _installed(engine):
        reasons.append(f"{ENGINE_MODULES[engine]} is not installed")
        needs.append(_install(engine))
    where = "on a machine with a GPU" if needs else "it takes a machine with a GPU"
    cuda = _cuda_version(engine)
    if driver.problem:
        reasons.append(driver.problem)
        needs.append(f"{where} and driver {OLDEST_DRIVERS[cuda]} or newer")
    elif driver.version < 1000 * cuda:
        here = version_text(driver.version)
        reasons.append(f"the NVIDIA driver is for CUDA up to {here}, where {cuda} is wanted")
        needs.append(f"update the driver to {OLDEST_DRIVERS[cuda]} or newer")
    if reasons:
        return f"{' and '.join(reasons)}: {' '.join(needs)}"
    return _library_problem(engine, driver.devices[device])


def _library_problem(engine: str, device: Device) -> str | None:
    """What only the package itself can tell, where it is installed and there is a driver."""
    try:
        trt = load(engine)
    except OdinError as error:
        return str(error)
    if engine == "rtx" and device.capability_text not in rtx_capabilities(trt):
        return (
            f"{ENGINE_TITLES['rtx']} {trt.__version__} has no kernels for {_device_text(device)}: "
            "use --engine trt, which has"
        )
    return None


def rtx_capabilities(trt: ModuleType) -> tuple[str, ...]:
    """The compute capabilities that TensorRT for RTX builds for, such as "8.6", in order.

    There are none of data centres beyond Ampere: 9.0 and 10.0 are TensorRT's alone.
    """
    names = [name for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    return tuple(f"{name[2:-1]}.{name[-1]}" for name in sorted(names, key=lambda n: int(n[2:])))


def _device_text(device: Device) -> str:
    return f"{device.name} (compute capability {device.capability_text})"


def _installed(engine: str) -> bool:
    spec = find_spec(ENGINE_MODULES[engine])
    # A folder of type stubs looks like a package without a file.
    return spec is not None and spec.origin is not None


def _install(engine: str) -> str:
    return f"pip install 'odin-ood[{ENGINES[engine].gpu_extra}]'"


def _cuda_version(engine: str) -> int:
    """The major version of CUDA that the installed package was made for, else the newest."""
    for cuda in OLDEST_DRIVERS:
        try:
            metadata.version(f"{ENGINE_MODULES[engine]}_cu{cuda}_bindings")
        except metadata.PackageNotFoundError:
            continue
        return cuda
    return max(OLDEST_DRIVERS)


# Opening


def open_graph(graph: Path, precision: Precision, tuning: Tuning) -> Session:
    """Refuse: it is plans that are opened, with `open_plan`.

    Raises:
        OdinError: always, with the reason.
    """
    raise OdinError(
        f"{graph} is an ONNX graph, and TensorRT runs plans of a bundle: build them with "
        "'odin-export BUNDLE --engine trt', or rtx, and open the bundle"
    )


def plan_problem(bundle: Bundle, engine: str, graph: str, device: int = 0) -> str | None:
    """Why a bundle's plan of one of its graphs cannot be run here, and the remedy; None if it can.

    Args:
        bundle: whose files were verified.
        engine: "trt" or "rtx".
        graph: "odin.onnx", "gradient.onnx" or "forward.onnx".
        device: number of the GPU.
    """
    rebuild = f"build it with 'odin-export {bundle.argument} --engine {engine}'"
    record = bundle.plan(engine, graph)
    if record is None:
        return f"bundle {bundle.path} holds no plan of {graph} for --engine {engine}; {rebuild}"
    if record.file in bundle.damaged:
        return bundle.damaged[record.file]
    file = bundle.path / record.file
    if record.graph_sha256 != bundle.files[graph]:
        return f"{file} was built from another {graph} than the bundle holds; {rebuild}"
    driver = ask_driver()
    problem = _problem(engine, driver, device)
    if problem is not None:
        return f"{file} cannot run here: {problem}"
    here = str(load(engine).__version__)
    title = ENGINE_TITLES[engine]
    if record.version != here:
        return f"{file} was built by {title} {record.version}, and here is {here}; {rebuild}"
    if not _fits(record, driver.devices[device]):
        built_for = ", ".join(record.compute_capabilities)
        return (
            f"{file} was built for {record.device or 'GPUs'} of compute capability {built_for}, "
            f"and here is {_device_text(driver.devices[device])}; {rebuild}"
        )
    return None


def _fits(record: PlanRecord, device: Device) -> bool:
    if record.hardware_compatibility == "ampere+":
        return device.compute_capability >= (8, 0)
    if record.device and record.device != device.name:
        return False
    return device.capability_text in record.compute_capabilities


def open_plan(bundle: Bundle, engine: str, graph: str, device: int = 0) -> Plan:
    """Open a bundle's plan of one of its graphs, on the current CUDA device.

    Args:
        bundle, engine, graph: as `plan_problem`.
        device: number of the current device.

    Raises:
        OdinError: it cannot be run here; says why, and what to do.
    """
    problem = plan_problem(bundle, engine, graph, device)
    if problem is not None:
        raise OdinError(problem)
    record = bundle.plan(engine, graph)
    assert record is not None
    file = bundle.file(record.file)
    return deserialized(load(engine), file, file.read_bytes(), engine)


# Parsing alone


def parser_obstacle(graph: bytes) -> str | None:
    """The first node that the parser of TensorRT for RTX refuses, and why; None if it takes all.

    Parsing needs no GPU.

    Args:
        graph: an ONNX model, serialized.

    Raises:
        OdinError: tensorrt_rtx is not installed.
    """
    trt = load("rtx")
    logger = make_logger(trt, Messages())
    return parse(trt, make_builder(trt, logger, "rtx"), logger, graph)[1]
