"""Arrays on the device that other libraries hold.

`__cuda_array_interface__` version 3 (as Numba documents it: pycuda, CuPy, Numba, PyTorch) and
DLPack (CuPy, PyTorch, JAX). Nothing is copied and no library is imported: an address is read.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from odin_engines.errors import OdinError
from odin_runtime import gpu_dlpack
from odin_runtime.driver_memory import check_device, check_readable
from odin_runtime.driver_reasons import refuse_capturing

LEGACY_STREAM = 1  # how both protocols name the default stream
_DLPACK_KINDS = {(0, 32): "int32", (1, 8): "uint8", (2, 32): "float32", (2, 16): "float16"}


@dataclass(frozen=True)
class DeviceImages:
    """Images on the device.

    Attributes:
        pointer: the address of the first.
        shape: as numpy's; dense and row-major.
        dtype: numpy's.
        stream: a CUstream whose work has to be done before they are read; None if none has.
        owner: what keeps the memory alive.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stream: int | None
    owner: object

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def image_bytes(self) -> int:
        """Of one image."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def on_device(images: object) -> bool:
    """Whether this is an array on a CUDA device."""
    if isinstance(images, np.ndarray):
        return False
    if _interface(images) is not None:
        return True
    device = getattr(images, "__dlpack_device__", None)
    return device is not None and int(device()[0]) in (gpu_dlpack.CUDA, gpu_dlpack.CUDA_MANAGED)


def device_images(images: Any, device: int, reader: int) -> DeviceImages:
    """Read where images lie on the device, whose primary context is current.

    Args:
        images: an array for which `on_device` holds.
        device: the number of the device that reads them.
        reader: a CUstream that a DLPack array lets wait until it may be read.

    Raises:
        OdinError: they lie on another device or in another context, or not dense and row-major; or
            the reader is being captured.
    """
    interface = _interface(images)
    if interface is not None and ("stream" in interface or not hasattr(images, "__dlpack__")):
        found = _from_interface(images, interface)
    else:
        found = _from_dlpack(images, device, reader)
    if 0 not in found.shape:
        check_readable("images", found.pointer, device)
    return found


def _interface(images: Any) -> dict[str, Any] | None:
    try:
        return getattr(images, "__cuda_array_interface__", None)
    except RuntimeError as error:  # PyTorch, of a tensor that records gradients
        raise OdinError(f"images: {error}; give images.detach()") from error


def _from_interface(images: Any, interface: dict[str, Any]) -> DeviceImages:
    if interface.get("mask") is not None:
        raise OdinError("images have a mask; give an array without one")
    dtype = np.dtype(interface["typestr"])
    shape = tuple(int(size) for size in interface["shape"])
    strides = interface.get("strides")
    if strides is not None:
        _check_dense(shape, tuple(strides), dtype.itemsize)
    # Version 2 had no stream: its arrays come of the default stream.
    stream = interface.get("stream", LEGACY_STREAM)
    if stream == 0:
        raise OdinError("images name stream 0 in __cuda_array_interface__, which stands for none")
    pointer = int(interface["data"][0] or 0)
    return DeviceImages(pointer, shape, dtype, None if stream is None else int(stream), images)


def _from_dlpack(images: Any, device: int, reader: int) -> DeviceImages:
    check_device("images", int(images.__dlpack_device__()[1]), device)
    refuse_capturing(reader)  # on which the producer is about to queue a wait
    try:
        # The capsule is not consumed: it frees the tensor when we let go of it.
        capsule = images.__dlpack__(stream=reader)
    except (RuntimeError, BufferError, TypeError) as error:
        raise OdinError(f"images cannot be had through DLPack: {error}") from error
    tensor = gpu_dlpack.tensor_of(capsule)
    kind = _DLPACK_KINDS.get((tensor.code, tensor.bits)) if tensor.lanes == 1 else None
    if kind is None:
        raise OdinError("images are of another type than uint8 and float32; convert them")
    shape = tuple(tensor.shape[: tensor.ndim])
    if tensor.strides:
        _check_dense(shape, tuple(tensor.strides[: tensor.ndim]), 1)
    pointer = int(tensor.data or 0) + int(tensor.byte_offset)
    # The producer has made the reader's stream wait.
    return DeviceImages(pointer, shape, np.dtype(kind), reader, (images, capsule))


def _check_dense(shape: tuple[int, ...], strides: tuple[int, ...], step: int) -> None:
    """Check strides, `step` from an element to the next; those of axes of one say nothing."""
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != step and 0 not in shape:
            raise OdinError(
                f"images of shape {shape} have strides {strides} and are not dense in this order; "
                "give images.contiguous() (PyTorch) or cupy.ascontiguousarray(images)"
            )
        step *= size


def stream_handle(stream: Any) -> int:
    """The CUstream behind a stream of any library, or a number; the default stream is 1.

    Raises:
        OdinError: it is no stream.
    """
    try:
        handle = _handle(stream)
        handle = getattr(handle, "value", handle)  # of ctypes, where None stands for 0
        return (0 if handle is None else int(handle)) or LEGACY_STREAM
    except (TypeError, ValueError, IndexError) as error:
        raise OdinError(
            f"stream is a {type(stream).__name__}; give a CUDA stream or its handle"
        ) from error


def _handle(stream: Any) -> Any:
    if isinstance(stream, int | ctypes.c_void_p):
        return stream
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        return (protocol() if callable(protocol) else protocol)[1]
    for name in ("cuda_stream", "ptr", "handle"):  # PyTorch, CuPy, pycuda
        handle = getattr(stream, name, None)
        if handle is not None:
            return handle
    raise TypeError("no stream")
