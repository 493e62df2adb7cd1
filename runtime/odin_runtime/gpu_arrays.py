"""Arrays on the device that other libraries hold.

`__cuda_array_interface__` version 3 (as Numba documents it: pycuda, CuPy, Numba, PyTorch) and
DLPack (CuPy, PyTorch, JAX). Nothing is copied and no library is imported: an address is read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from odin_engines.errors import OdinError
from odin_runtime import gpu_dlpack

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
    """Read where images lie on the device.

    Args:
        images: an array for which `on_device` holds.
        device: the number of the device that reads them.
        reader: a CUstream that a DLPack array lets wait until it may be read.

    Raises:
        OdinError: they lie on another device, or not dense and row-major.
    """
    _check_device(images, device)
    interface = _interface(images)
    if interface is not None and ("stream" in interface or not hasattr(images, "__dlpack__")):
        return _from_interface(images, interface)
    return _from_dlpack(images, device, reader)


def _interface(images: Any) -> dict[str, Any] | None:
    try:
        return getattr(images, "__cuda_array_interface__", None)
    except RuntimeError as error:  # PyTorch, of a tensor that records gradients
        raise OdinError(f"images: {error}; give images.detach()") from error


def _check_device(images: Any, device: int) -> None:
    """Check the number, where the array tells it: the interface itself has no place for it."""
    holder = getattr(images, "device", None)
    number = getattr(holder, "index", getattr(holder, "id", None))
    if isinstance(number, int) and number != device:
        raise OdinError(
            f"images lie on device {number} and the scorer is on device {device}; move them there, "
            f"or open the scorer with device={number}"
        )


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
    try:
        # The capsule is not consumed: it frees the tensor when we let go of it.
        capsule = images.__dlpack__(stream=reader)
    except (RuntimeError, BufferError, TypeError) as error:
        raise OdinError(f"images cannot be had through DLPack: {error}") from error
    tensor = gpu_dlpack.tensor_of(capsule)
    if tensor.device_id != device:
        raise OdinError(
            f"images lie on device {tensor.device_id} and the scorer is on device {device}; move "
            f"them there, or open the scorer with device={tensor.device_id}"
        )
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
    if isinstance(stream, int):
        return stream or LEGACY_STREAM
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        return int((protocol() if callable(protocol) else protocol)[1]) or LEGACY_STREAM
    for name in ("cuda_stream", "ptr", "handle"):  # PyTorch, CuPy, pycuda
        handle = getattr(stream, name, None)
        if handle is not None:
            return int(handle) or LEGACY_STREAM
    raise OdinError(f"stream is a {type(stream).__name__}; give a CUDA stream or its handle")
