"""ONNX Runtime on an NVIDIA GPU, through its CUDA or its TensorRT provider: what it takes.

ONNX Runtime itself only warns when a provider does not load, and computes on the CPU: here each
thing that is missing is found beforehand and named, with its remedy.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from odin_engines.cuda_probe import LIBRARY as DRIVER_LIBRARY
from odin_engines.cuda_probe import OLDEST_DRIVERS, Driver, ask_driver
from odin_engines.engine import missing_package
from odin_engines.errors import OdinError
from odin_engines.packages import installed
from odin_engines.shared_libraries import missing, needed

# The first that tells which nodes a provider took; without it a fallback cannot be seen.
LEAST_VERSION = "1.24"
INSTALL = f"pip install 'onnxruntime-gpu[cuda,cudnn]>={LEAST_VERSION}'"
# All of them install the module onnxruntime: the one installed last has overwritten the others.
_DISTRIBUTIONS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-migraphx",
    "onnxruntime-openvino",
    "onnxruntime-training",
)
_TENSORRT = re.compile(r"libnv(infer|onnxparser)\w*\.so\.(?P<major>\d+)")
_TENSORRT_MAJORS = range(13, 7, -1)
_TENSORRT_DISTRIBUTIONS = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
_TENSORRT_FOLDER = "tensorrt_libs"  # the module in which pip's TensorRT keeps its libraries


@dataclass(frozen=True)
class Provider:
    """An execution provider of ONNX Runtime.

    Attributes:
        name: as ONNX Runtime calls it.
        title: as users know it.
        engine: the engine of ours that it is.
        files: its libraries, in the folder onnxruntime/capi, its own first.
        opened_later: libraries that these open while they compute, beside those that they name.
    """

    name: str
    title: str
    engine: str
    files: tuple[str, ...]
    opened_later: tuple[str, ...]


_CUDA_FILE = "libonnxruntime_providers_cuda.so"
_CUDNN = "libcudnn.so.9"  # for convolutions
CUDA = Provider("CUDAExecutionProvider", "CUDA", "ort-cuda", (_CUDA_FILE,), (_CUDNN,))
TENSORRT = Provider(
    "TensorrtExecutionProvider",
    "TensorRT",
    "ort-trt",
    ("libonnxruntime_providers_tensorrt.so", _CUDA_FILE),  # memory is the CUDA provider's
    (_CUDNN,),
)


def unavailable(provider: Provider) -> str | None:
    """Why the provider cannot be used here; None if it can.

    Each thing that is missing has a line, with its remedy.
    """
    return "\n".join(_faults(provider, ask_driver())) or None


def load() -> ModuleType:
    """Import ONNX Runtime and load CUDA's libraries from pip's packages, where there are any.

    Raises:
        OdinError: it cannot be imported, or is but the rest of an installation.
    """
    try:
        runtime = import_module("onnxruntime")
    except (ImportError, OSError) as error:
        raise OdinError(f"onnxruntime does not load ({error}): {_reinstall()}") from error
    if not hasattr(runtime, "InferenceSession"):  # a folder that pip left behind
        raise OdinError(f"what is left of onnxruntime is not whole: {_reinstall()}")
    if hasattr(runtime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            runtime.preload_dlls()
    return runtime


def _faults(provider: Provider, driver: Driver) -> Iterator[str]:
    absent = missing_package("onnxruntime", _reinstall())
    faults = [absent, missing_package("onnx", "pip install onnx")]
    libraries: list[str] = []
    if absent is None:
        try:
            runtime = load()
            faults.append(_build_fault(provider, runtime))
            libraries = _libraries(provider, runtime) if faults[-1] is None else []
        except OdinError as error:
            faults.append(str(error))
    yield from filter(None, faults)
    yield from _library_faults(provider, libraries)
    yield from _driver_faults(driver, _cuda_version(libraries) or max(OLDEST_DRIVERS))


def _build_fault(provider: Provider, runtime: ModuleType) -> str | None:
    """What is wrong with the package that is installed."""
    here = installed(_DISTRIBUTIONS)
    names = " and ".join(f"{name} {version}" for name, version in here.items())
    names = names or f"onnxruntime {runtime.__version__}"
    whole = all((_folder(runtime) / file).is_file() for file in provider.files)
    if provider.name not in runtime.get_available_providers() or not whole:
        lack = f"no {provider.name}"
        if len(here) > 1:
            return (
                f"{names} are installed over each other, and what came out has {lack}: "
                f"{_reinstall()}"
            )
        if list(here) == ["onnxruntime"]:
            return f"{names} is the package for CPUs and has {lack}: {_reinstall()}"
        return f"{names} has {lack}: {_reinstall()}"
    if not hasattr(runtime.InferenceSession, "get_provider_graph_assignment_info"):
        return f"{names} is too old: it does not tell what the GPU computes; {INSTALL} --upgrade"
    return None


def _reinstall() -> str:
    names = " ".join(installed(_DISTRIBUTIONS))
    return f"pip uninstall -y {names} && {INSTALL}" if names else INSTALL


def _libraries(provider: Provider, runtime: ModuleType) -> list[str]:
    """The libraries that the provider needs."""
    names = [name for file in provider.files for name in needed(_folder(runtime) / file)]
    return list(dict.fromkeys([*names, *provider.opened_later]))


def _folder(runtime: ModuleType) -> Path:
    return Path(str(runtime.__file__)).parent / "capi"


def _library_faults(provider: Provider, names: list[str]) -> Iterator[str]:
    _load_from_pip([name for name in names if _TENSORRT.fullmatch(name)])
    # Of the driver's library there is more to say than that it is missing.
    faults = missing(name for name in names if name != DRIVER_LIBRARY)
    faults.pop(DRIVER_LIBRARY, None)
    tensorrt = [name for name in faults if _TENSORRT.fullmatch(name)]
    if tensorrt:
        yield _tensorrt_fault(tensorrt, _cuda_version(names))
    others = {name: text for name, text in faults.items() if name not in tensorrt}
    absent = [name for name, text in others.items() if text.startswith(f"{name}: cannot open")]
    if absent:
        verb = "is" if len(absent) == 1 else "are"
        cuda = _cuda_version(names)
        made = f" (this onnxruntime-gpu is made for CUDA {cuda})" if cuda else ""
        remedy = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
        yield f"{', '.join(absent)} {verb} not found{made}: {remedy}"
    for name, text in others.items():
        if name not in absent:
            yield f"{name} does not load ({text}): reinstall the package that it is of"


def load_tensorrt(runtime: ModuleType) -> int:
    """Load the TensorRT that ONNX Runtime's provider wants.

    Args:
        runtime: the module onnxruntime.

    Returns:
        its version, as TensorRT counts it: 10000 major + 100 minor + patch.

    Raises:
        OdinError: it is not found.
    """
    names = [name for name in _libraries(TENSORRT, runtime) if _TENSORRT.fullmatch(name)]
    _load_from_pip(names)
    faults = missing(names)
    if faults:
        raise OdinError(_tensorrt_fault(list(faults), _cuda_version(_libraries(CUDA, runtime))))
    library = next(name for name in names if name.startswith("libnvinfer.so"))
    return int(ctypes.CDLL(library).getInferLibVersion())


def _load_from_pip(names: list[str]) -> None:
    """Load TensorRT from pip's package, whose folder the loader does not look in.

    Its libraries open others of the same folder while they work, so all of them are loaded; but
    not those of another version.
    """
    spec = find_spec(_TENSORRT_FOLDER)
    folders = (spec and spec.submodule_search_locations) or ()
    if any((Path(folder) / name).is_file() for folder in folders for name in names):
        import_module(_TENSORRT_FOLDER)


def _tensorrt_fault(absent: list[str], cuda: int | None) -> str:
    match = _TENSORRT.fullmatch(absent[0])
    assert match is not None
    major = int(match["major"])
    pip = {
        name: version
        for name, version in installed(_TENSORRT_DISTRIBUTIONS).items()
        if version.split(".")[0] != str(major)
    }
    other = max(pip.values(), default=None) or _other_tensorrt(major)
    install = f"pip install 'tensorrt-cu{cuda or max(OLDEST_DRIVERS)}>={major},<{major + 1}'"
    if pip:
        install = f"pip uninstall -y {' '.join(pip)} && {install}"
    wants = f"ONNX Runtime's TensorRT provider wants TensorRT {major} ({', '.join(absent)})"
    here = "which is not found" if other is None else f"and TensorRT {other} is installed"
    return f"{wants}, {here}: {install}"


def _other_tensorrt(major: int) -> str | None:
    """The version of a TensorRT that the loader finds and that is not the one wanted."""
    for other in _TENSORRT_MAJORS:
        if other != major and not missing([f"libnvinfer.so.{other}"]):
            return str(other)
    return None


def _driver_faults(driver: Driver, cuda: int) -> Iterator[str]:
    oldest = OLDEST_DRIVERS.get(cuda)
    wanted = f"driver {oldest} or newer" if oldest else f"a driver for CUDA {cuda}"
    if driver.problem is not None:
        yield f"{driver.problem}: it takes an NVIDIA GPU with {wanted}"
    elif driver.version < 1000 * cuda:
        yield (
            f"the NVIDIA driver takes CUDA up to {driver.version_text}, and this onnxruntime-gpu "
            f"is made for CUDA {cuda}: update the driver to {wanted.removeprefix('driver ')}"
        )


def _cuda_version(names: Iterable[str]) -> int | None:
    """The major version of CUDA whose runtime is among the libraries."""
    matches = (re.fullmatch(r"libcudart\.so\.(\d+)(\..*)?", name) for name in names)
    return next((int(match[1]) for match in matches if match), None)
