"""The layouts that torch.save has written, read without executing anything.

Legacy (PyTorch 0.1.10 to 1.5): five pickles, then the storages. The pickles are a magic number, a
protocol version, facts about the machine, the object itself, and the list of the storages' keys;
then follows, for each key, the count of numbers as int64 and the numbers.

Zip (since PyTorch 1.6): an uncompressed archive with `<root>/data.pkl`, the object; for each
storage `<root>/data/<key>`, its bytes; and `<root>/byteorder`.

The object is a state dict, a dict that holds one, or a whole module. A whole module's tensors get
the names that `torch.nn.Module.state_dict` would give them.
"""

from __future__ import annotations

import io
import math
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import torch

from odin_export.unpickle import (
    MAX_BYTES,
    TENSOR_TYPES,
    FormatError,
    Global,
    Instance,
    Storage,
    read_pickle,
)

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001

_WRAPPER_KEYS = ("state_dict", "model_state_dict", "model", "net")
_MAX_NESTING = 8
_MAX_MODULES = 20_000
_MAX_PREFIX = 1_000

_REBUILD_TENSOR = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
_REBUILD_TENSOR_FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
_PARAMETERS = {
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.autograd.variable.Variable",
    "torch.nn.parameter.Buffer",
    "torch.nn.parameter.Parameter",
}

# What zipfile raises, depending on which of an archive's bytes are damaged.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)

# The bytes of a storage, in this machine's byte order.
StorageReader = Callable[[Storage], bytearray]


def read_legacy(data: bytes) -> dict[str, torch.Tensor]:
    """Return the tensors of a legacy file by name.

    Raises:
        FormatError: cut off, damaged, refers to a name not allowed, or holds no network.
    """
    stream = io.BytesIO(data)
    if not _is_number(read_pickle(stream).root, _MAGIC):
        raise FormatError("is a pickle that torch.save did not write")
    if not _is_number(read_pickle(stream).root, _VERSION):
        raise FormatError("has an unknown version of PyTorch's format")
    system = read_pickle(stream).root
    little = not isinstance(system, dict) or system.get("little_endian") is not False
    content = read_pickle(stream)
    keys = read_pickle(stream).root
    if not isinstance(keys, list) or not all(map(_is_key, keys)):
        raise FormatError("is damaged: the list of its storages cannot be read")

    places: dict[str, memoryview] = {}
    view, position = memoryview(data), stream.tell()
    for key in map(str, keys):
        storage = content.storages.get(key)
        if storage is None:
            raise FormatError(f"is damaged: nothing tells the type of storage {key[:80]!r}")
        _check_count(view[position : position + 8], storage, little)
        start, position = position + 8, position + 8 + storage.numel * storage.dtype.itemsize
        if position > len(data):
            raise FormatError("is cut off before its weights end")
        places[key] = view[start:position]

    def read(storage: Storage) -> bytearray:
        raw = bytearray(places.get(storage.key, b""))
        # Whatever the machine, PyTorch writes these numbers with their lowest byte first.
        return _native(raw, storage, "little")

    return _tensors(content.root, read)


def _is_key(key: object) -> bool:
    # A number with thousands of digits could not even be turned into text.
    return isinstance(key, str) or (isinstance(key, int) and abs(key) < 2**64)


def _is_number(value: Any, expected: int) -> bool:
    # Comparing with whatever a pickle holds could take for ever.
    return isinstance(value, int) and value == expected


def _check_count(raw: memoryview, storage: Storage, little: bool) -> None:
    # Only the count is in the byte order of the machine that wrote the file.
    if len(raw) < 8:
        raise FormatError("is cut off before its weights end")
    count = int.from_bytes(raw, "little", signed=True)
    swapped = int.from_bytes(raw, "big", signed=True)
    if storage.numel not in ((count,) if little else (count, swapped)):
        raise FormatError(
            f"is damaged: a storage of {storage.numel} numbers says that it has {count}"
        )


def read_zip(data: bytes) -> dict[str, torch.Tensor]:
    """Return the tensors of a zip file by name.

    Raises:
        FormatError: cut off, damaged, compressed, refers to a name not allowed, or holds no
            network.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except _ZIP_ERRORS as error:
        raise FormatError(f"is a zip archive that is cut off or damaged ({error})") from error
    root = _zip_root(archive.namelist())
    # Stored members cannot be larger than the archive, unless they overlap to look larger.
    budget = len(data)

    def member(name: str) -> bytes:
        nonlocal budget
        try:
            info = archive.getinfo(name)
            budget -= info.file_size
            if info.compress_type != zipfile.ZIP_STORED or budget < 0:
                raise FormatError(
                    f"is not as torch.save writes it: {name[:80]!r} is compressed or overlaps"
                )
            return archive.read(info)
        except _ZIP_ERRORS as error:
            raise FormatError(f"is damaged at {name[:80]!r} ({error})") from error

    order = "little"
    if f"{root}byteorder" in archive.namelist():
        order = member(f"{root}byteorder").decode("latin1")
    if order not in ("little", "big"):
        raise FormatError("is damaged: its byte order is neither little nor big")

    def read(storage: Storage) -> bytearray:
        raw = bytearray(member(f"{root}data/{storage.key}"))
        return _native(raw, storage, order)

    return _tensors(read_pickle(io.BytesIO(member(f"{root}data.pkl"))).root, read)


def _zip_root(names: list[str]) -> str:
    roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
    roots = [root for root in roots if root.count("/") == 1]
    if len(roots) != 1:
        raise FormatError("is a zip archive that torch.save did not write")
    if f"{roots[0]}constants.pkl" in names:
        raise FormatError(
            "is a TorchScript archive, whose code is not executed here",
            "write the weights with torch.save(model.state_dict(), FILE) and give that file",
        )
    return roots[0]


def _native(raw: bytearray, storage: Storage, order: str) -> bytearray:
    size = storage.dtype.itemsize
    if len(raw) != storage.numel * size:
        raise FormatError(
            f"is cut off or damaged: storage {storage.key[:80]!r} has {len(raw)} bytes "
            f"instead of {storage.numel * size}"
        )
    if order == sys.byteorder or size == 1:
        return raw
    swapped = bytearray(len(raw))
    for i in range(size):
        swapped[i::size] = raw[size - 1 - i :: size]
    return swapped


def _tensors(root: Any, read: StorageReader) -> dict[str, torch.Tensor]:
    """Make the tensors of the network in `root`; a storage that several share is read once."""
    flat: dict[str, torch.Tensor] = {}
    tensors = {}
    for name, value in _named_tensors(root).items():
        storage, *geometry = _tensor_parts(value)
        if not isinstance(storage, Storage):
            raise FormatError(f"is damaged: tensor {name[:80]!r} has no storage")
        if storage.key not in flat:
            raw = read(storage)
            # frombuffer refuses an empty buffer.
            flat[storage.key] = (
                torch.frombuffer(raw, dtype=storage.dtype)
                if raw
                else torch.empty(0, dtype=storage.dtype)
            )
        tensors[name] = _view(flat[storage.key], storage, name, geometry)
    return tensors


def _view(flat: torch.Tensor, storage: Storage, name: str, geometry: list[Any]) -> torch.Tensor:
    offset, size, stride = geometry
    size, stride = _numbers(size), _numbers(stride)
    if not isinstance(offset, int) or size is None or stride is None or len(size) != len(stride):
        raise FormatError(f"is damaged: tensor {name[:80]!r} has no shape")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    inside = 0 <= offset <= storage.view_numel and (0 in size or last < storage.view_numel)
    if not inside or len(size) > 16 or math.prod(size) > MAX_BYTES // 8:
        raise FormatError(f"is damaged: tensor {name[:80]!r} reaches outside of its storage")
    return flat.as_strided(size, stride, storage.view_offset + offset)


def _numbers(value: Any) -> tuple[int, ...] | None:
    if isinstance(value, Instance) and value.name == "torch.Size" and value.args:
        value = value.args[0]
    if not isinstance(value, tuple | list):
        return None
    if not all(isinstance(number, int) and 0 <= number <= MAX_BYTES for number in value):
        return None
    return tuple(value)


def _tensor_parts(value: Any) -> tuple[Any, Any, Any, Any]:
    """Return a tensor's storage, offset, size and stride; all None if `value` is no tensor."""
    parts: Any = None
    for _ in range(_MAX_NESTING):
        if not isinstance(value, Instance):
            break
        if value.name in _PARAMETERS:
            value = value.args[0] if value.args else None
        elif value.name == _REBUILD_TENSOR_FROM_TYPE and len(value.args) == 4:
            function, _, args, _ = value.args
            if not isinstance(function, Global) or not isinstance(args, tuple):
                break
            value = Instance(function.name, args)
        elif value.name in _REBUILD_TENSOR:
            parts = value.args[:4]
            break
        elif value.name in TENSOR_TYPES:
            parts = value.state
            break
        else:
            break
    if isinstance(parts, tuple) and len(parts) == 4:
        return parts
    return None, None, None, None


def _is_tensor(value: Any) -> bool:
    return _tensor_parts(value)[0] is not None


def _named_tensors(root: Any) -> dict[str, Any]:
    """Find the state dict in what was saved."""
    for _ in range(_MAX_NESTING):
        if isinstance(root, Instance):
            return _module_tensors(root)
        if not isinstance(root, dict):
            break
        inner = [root[key] for key in _WRAPPER_KEYS if isinstance(root.get(key), dict | Instance)]
        # A state dict's own tensors may have these names too.
        inner = [value for value in inner if not _is_tensor(value)]
        if not inner:
            found = {k: v for k, v in root.items() if isinstance(k, str) and _is_tensor(v)}
            if not found:
                raise FormatError("holds a dict without any tensor and without a state dict")
            return found
        root = inner[0]
    raise FormatError(f"holds a {type(root).__name__} instead of a state dict or a network")


def _module_tensors(root: Instance) -> dict[str, Any]:
    found: dict[str, Any] = {}
    pending = [("", root)]
    visited = 0
    while pending:
        prefix, module = pending.pop()
        visited += 1
        # A damaged file may say that a module contains itself.
        if visited > _MAX_MODULES or len(prefix) > _MAX_PREFIX:
            raise FormatError("is damaged: its modules are nested without end")
        transient = _part(module, "_non_persistent_buffers_set", set)
        for kind in ("_parameters", "_buffers"):
            for name, value in _part(module, kind, dict).items():
                if value is None or (kind == "_buffers" and name in transient):
                    continue
                if not _is_tensor(value):
                    raise FormatError(f"is damaged: {f'{prefix}{name}'[:80]!r} is not a tensor")
                found[f"{prefix}{name}"] = value
        children = _part(module, "_modules", dict).items()
        pending += [
            (f"{prefix}{name}.", child) for name, child in children if isinstance(child, Instance)
        ][::-1]
    if not found:
        raise FormatError(f"holds a {root.name} without any tensor instead of a network")
    return found


def _part(module: Instance, name: str, kind: type) -> Any:
    part = module.state.get(name) if isinstance(module.state, dict) else None
    return part if isinstance(part, kind) else kind()
