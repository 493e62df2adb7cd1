"""What GPUs the NVIDIA driver has, asked through its own library alone; no CUDA toolkit is needed.

Names and values are those of the CUDA driver API (cuda.h). Nothing is allocated and no context is
made: `cuInit` is the only call that changes anything.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

LIBRARY = "libcuda.so.1"
# The oldest drivers for each major version of CUDA (NVIDIA's CUDA compatibility table).
OLDEST_DRIVERS = {12: "525", 13: "580"}

# Values of the enum CUdevice_attribute.
_MULTIPROCESSORS, _CAPABILITY_MAJOR, _CAPABILITY_MINOR = 16, 75, 76
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE

NO_DRIVER = f"no NVIDIA driver ({LIBRARY}) is found"
_SMI = "look at nvidia-smi"
_WHILE_CAPTURING = "neither wait nor allocate nor free while a graph is captured"
_OF_THE_PRIMARY_CONTEXT = (
    "give a stream that has not been destroyed, of the device's primary context; with pycuda "
    "import pycuda.autoprimaryctx, not pycuda.autoinit"
)
# What mends the driver's errors, by name.
REMEDIES = {
    "CUDA_ERROR_OUT_OF_MEMORY": "use a smaller batch size, or free memory that other processes "
    "hold (nvidia-smi lists them)",
    "CUDA_ERROR_NOT_INITIALIZED": "CUDA does not survive a fork: open the driver in the process "
    "that uses it, and start processes by multiprocessing's method spawn",
    "CUDA_ERROR_STUB_LIBRARY": "the CUDA toolkit's stub was found in its place: take its folder "
    "off LD_LIBRARY_PATH",
    "CUDA_ERROR_NO_DEVICE": "look at nvidia-smi and CUDA_VISIBLE_DEVICES",
    "CUDA_ERROR_INVALID_DEVICE": "give the number of a device that nvidia-smi lists",
    "CUDA_ERROR_INVALID_IMAGE": "give a fat binary, a cubin or PTX; a damaged file has to be "
    "installed again",
    "CUDA_ERROR_INVALID_CONTEXT": _OF_THE_PRIMARY_CONTEXT,
    "CUDA_ERROR_NO_BINARY_FOR_GPU": "the binary has no code for this device: rebuild the kernels "
    "for its compute capability",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": "the driver is older than the CUDA that compiled the "
    "kernels: update the driver, or build the kernels with an nvcc no newer than the CUDA that "
    "nvidia-smi shows",
    "CUDA_ERROR_INVALID_HANDLE": _OF_THE_PRIMARY_CONTEXT,
    "CUDA_ERROR_NOT_FOUND": "check the name against the binary's list (cuobjdump -elf); an older "
    "binary has to be rebuilt",
    "CUDA_ERROR_ILLEGAL_ADDRESS": "the process cannot use the device any more: restart it, and "
    "run it under compute-sanitizer to find the access",
    "CUDA_ERROR_LAUNCH_FAILED": "the process cannot use the device any more: restart it, and run "
    "it under compute-sanitizer",
    "CUDA_ERROR_SYSTEM_NOT_READY": "start the service nvidia-fabricmanager, or wait until it is up",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "its library and its kernel module have different "
    "versions: restart the machine",
    "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE": "this GPU needs the driver's own libcuda, not "
    "that of the compatibility package",
    "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED": _WHILE_CAPTURING,
    "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED": _WHILE_CAPTURING,
    "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT": "use streams of your own, not the default stream, while "
    "a graph is captured",
    "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD": "end a capture in the thread that began it",
    "CUDA_ERROR_STREAM_CAPTURE_UNJOINED": "let the captured stream wait for the other streams "
    "before the capture ends",
    "CUDA_ERROR_STREAM_CAPTURE_ISOLATION": "record the events that captured work waits for within "
    "the capture",
}
# The names of those that cuInit gives in practice, should the library not tell them: a stub does
# nothing but fail.
_NAMES = {
    3: "CUDA_ERROR_NOT_INITIALIZED",
    34: "CUDA_ERROR_STUB_LIBRARY",
    _NO_DEVICE: "CUDA_ERROR_NO_DEVICE",
    802: "CUDA_ERROR_SYSTEM_NOT_READY",
    803: "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
    804: "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
}


@dataclass(frozen=True)
class Device:
    """A GPU.

    Attributes:
        name: as the driver gives it, such as "NVIDIA L4".
        compute_capability: major and minor version.
        memory: in bytes, all of it.
        multiprocessors: their number.
    """

    name: str
    compute_capability: tuple[int, int]
    memory: int = 0
    multiprocessors: int = 0

    @property
    def capability_text(self) -> str:
        """Such as "8.6"."""
        return "{}.{}".format(*self.compute_capability)


@dataclass(frozen=True)
class Driver:
    """What the driver answers.

    Attributes:
        version: the newest CUDA that it takes, as 1000 major + 10 minor; 0 without a driver.
        devices: its GPUs, in CUDA's order.
        problem: why there is no GPU to use, with what would mend it in brackets; None if there is.
    """

    version: int
    devices: tuple[Device, ...]
    problem: str | None

    @property
    def version_text(self) -> str:
        """The newest CUDA that the driver takes, such as "13.0"."""
        return version_text(self.version)


def version_text(version: int) -> str:
    """1000 major + 10 minor, as CUDA counts its versions -> "major.minor"."""
    return f"{version // 1000}.{version % 1000 // 10}"


def ask_driver(library: str = LIBRARY) -> Driver:
    """Ask the driver for its version and its GPUs; raises nothing.

    Args:
        library: name or path of the driver's library.
    """
    try:
        cuda = ctypes.CDLL(library)
    except OSError as error:
        return Driver(0, (), _unloadable(library, str(error)))
    version = 0
    try:
        version = _number(cuda, "cuDriverGetVersion")
        _call(cuda, "cuInit", ctypes.c_uint(0))
        devices = tuple(_device(cuda, index) for index in range(_number(cuda, "cuDeviceGetCount")))
        problem = None if devices else _words(cuda, "cuDeviceGetCount", _NO_DEVICE)
    except _CallFailed as failure:
        return Driver(version, (), str(failure))
    except AttributeError as error:  # of ctypes: no such function
        return Driver(version, (), f"{library} is not NVIDIA's driver ({error})")
    return Driver(version, devices, problem)


def _unloadable(library: str, error: str) -> str:
    if error.startswith(library) and "No such file" in error:
        return NO_DRIVER
    return f"NVIDIA's driver library does not load ({error})"


class _CallFailed(Exception):
    """A function of the driver gave an error; says which and what would mend it."""


def _call(cuda: ctypes.CDLL, function: str, *arguments: object) -> None:
    status = getattr(cuda, function)(*arguments)
    if status:
        raise _CallFailed(_words(cuda, function, status))


def _words(cuda: ctypes.CDLL, function: str, status: int) -> str:
    if status == _NO_DEVICE:
        return f"the NVIDIA driver shows no GPU ({REMEDIES[_NAMES[status]]})"
    text = ctypes.c_char_p()
    cuda.cuGetErrorName(status, ctypes.byref(text))
    told = (text.value or b"").decode(errors="replace")
    name = told or _NAMES.get(status, f"error {status}")
    hint = REMEDIES.get(name, _SMI)
    what = "does not start" if function == "cuInit" else f"fails in {function}"
    return f"the NVIDIA driver {what} ({name}; {hint})"


def _number(cuda: ctypes.CDLL, function: str, *arguments: object) -> int:
    """The whole number that a function writes to its first argument."""
    value = ctypes.c_int()
    _call(cuda, function, ctypes.byref(value), *arguments)
    return value.value


def _device(cuda: ctypes.CDLL, index: int) -> Device:
    handle = _number(cuda, "cuDeviceGet", index)
    name = ctypes.create_string_buffer(256)
    _call(cuda, "cuDeviceGetName", name, len(name), handle)
    memory = ctypes.c_size_t()
    _call(cuda, "cuDeviceTotalMem_v2", ctypes.byref(memory), handle)
    major, minor, multiprocessors = (
        _number(cuda, "cuDeviceGetAttribute", attribute, handle)
        for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _MULTIPROCESSORS)
    )
    return Device(
        name.value.decode(errors="replace"), (major, minor), memory.value, multiprocessors
    )
