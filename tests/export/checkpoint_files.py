"""Checkpoint files as PyTorch wrote and writes them, and checks of what is read from them."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from odin_engines.errors import OdinError
from odin_export.checkpoint import read_checkpoint

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"long": 8}}


# Files as PyTorch 0.1 and 0.2 wrote them


class Name:
    """A global, written by its name alone: nothing of that name needs to exist."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __call__(self) -> None: ...


class Call:
    """What REDUCE makes: a global, its arguments, and perhaps a state."""

    def __init__(self, module: str, name: str, args: tuple[Any, ...], *state: Any) -> None:
        self.reduced = (Name(module, name), args, *state)


class Stored:
    """All the numbers of a tensor's storage."""

    def __init__(self, tensor: torch.Tensor, view: tuple[str, int, int] | None = None) -> None:
        self.tensor, self.view = torch.empty(0).set_(tensor.untyped_storage()), view
        self.key = str(self.tensor.data_ptr())

    def raw(self) -> bytes:
        return self.tensor.numpy().tobytes()


class OldPickler(pickle._Pickler):
    """Pickles as PyTorch did in 2017.

    `python` 2 writes byte strings and ordered dicts as lists of lists. `tensors` is "0.1.10" (a
    type and its state) or "0.2" (a call of _rebuild_tensor).
    """

    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)

    def __init__(self, stream: io.BytesIO, python: int = 3, tensors: str = "0.2") -> None:
        super().__init__(stream, protocol=2)
        self.python, self.tensors = python, tensors
        self.storages: dict[str, Stored] = {}
        self.classes: dict[str, Name] = {}

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, Stored):
            return None
        self.storages.setdefault(obj.key, obj)
        kind = Name("torch", "FloatStorage")
        return ("storage", kind, obj.key, "cuda:0", obj.tensor.numel(), obj.view)

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Call):
            return obj.reduced
        if isinstance(obj, nn.Parameter):
            name = Name("torch.nn.parameter", "Parameter")
            return name, (obj.data,), (True, False, None)
        if isinstance(obj, torch.Tensor):
            parts = (Stored(obj), obj.storage_offset(), tuple(obj.shape), obj.stride())
            if self.tensors == "0.1.10":
                return Name("torch.cuda", "FloatTensor"), (), parts
            return Name("torch._utils", "_rebuild_tensor"), parts
        if isinstance(obj, OrderedDict) and self.python == 2:
            return OrderedDict, ([[key, value] for key, value in obj.items()],)
        return NotImplemented

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Name):
            self.write(f"c{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, nn.Module):
            self.save_module(obj)
        else:
            super().save(obj, save_persistent_id)

    def save_module(self, module: nn.Module) -> None:
        cls = old_class(module)
        known = f"{cls.module}.{cls.name}" in self.classes
        self.classes[f"{cls.module}.{cls.name}"] = cls
        if known:  # PyTorch gave each class's source only once
            self.save(cls)
        else:
            super().save(("module", cls, "/src/densenet.py", "class é(nn.Module):\n    ..."))
            self.write(pickle.BINPERSID)
        self.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
        self.save(old_state(module))
        self.write(pickle.BUILD)

    def save_text(self, text: str) -> None:
        if self.python == 3:
            self.save_str(text)
            return
        data = text.encode()
        long, short = b"T" + struct.pack("<i", len(data)), b"U" + bytes([len(data) % 256])
        self.write((short if len(data) < 256 else long) + data)
        self.memoize(text)

    dispatch[str] = save_text


def old_class(module: nn.Module) -> Name:
    """Return the class that the release had for one of our modules."""
    cls = type(module)
    if cls.__module__.startswith("torch.nn."):
        return Name(cls.__module__, cls.__name__)
    if hasattr(module, "fc"):
        return Name("densenet", "DenseNet3")
    if hasattr(module, "layer"):
        return Name("densenet", "DenseBlock")
    return Name("densenet", "BottleneckBlock" if hasattr(module, "bn2") else "TransitionBlock")


def old_state(module: nn.Module) -> dict[str, Any]:
    """Return a module's attributes as PyTorch 0.2 had them."""
    own = {k: v for k, v in vars(module).items() if isinstance(v, int | float | tuple)}
    buffers = {k: v for k, v in module._buffers.items() if k != "num_batches_tracked"}
    return {
        **own,
        "_backend": Call("torch.nn.backends.thnn", "_get_thnn_function_backend", ()),
        "_parameters": OrderedDict(module._parameters),
        "_buffers": OrderedDict(buffers),
        "_backward_hooks": OrderedDict(),
        "_forward_hooks": OrderedDict(),
        "_modules": OrderedDict(module._modules),
        "droprate": 0.0,
    }


def old_file(obj: Any, little: bool = True, **options: Any) -> bytes:
    """Return what torch.save(obj) wrote in 2017."""
    stream = io.BytesIO()
    for header in (MAGIC, VERSION, {**SYSTEM, "little_endian": little}):
        pickle.dump(header, stream, protocol=2)
    pickler = OldPickler(stream, **options)
    pickler.dump(obj)
    pickle.dump(sorted(pickler.storages), stream, protocol=2)
    for key in sorted(pickler.storages):
        stored = pickler.storages[key]
        # Only the count was in the machine's byte order.
        stream.write(struct.pack("<q" if little else ">q", stored.tensor.numel()) + stored.raw())
    return stream.getvalue()


# Files as today's PyTorch writes them


def saved(obj: Any, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class made in a test has no source file
        torch.save(obj, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def zip_file(pickled: bytes, compression: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in members.items():
            archive.writestr(f"archive/{name.replace('__', '/')}", content)
    return stream.getvalue()


def tar_file(**members: bytes | tarfile.TarInfo) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "fc.weight": torch.randn(2, 4, generator=generator),
        "scale": torch.tensor(3.0),
        "none": torch.empty(0),
    }


def small_module() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(4, 2))
    module[2].weight.data = torch.randn(4, 2).t()  # a stride other than the usual
    module.register_buffer("scratch", torch.zeros(3), persistent=False)
    module.register_buffer("unset", None)
    module.add_module("absent", None)
    module.add_module("again", module[0])
    return module


# Writing and reading


def write(folder: Path, data: bytes, name: str = "a.pth") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def refusal(path: Path) -> str:
    """Read a file that must be refused and return the message, which must name the file."""
    with pytest.raises(OdinError) as error:
        read_checkpoint(path)
    assert path.name in str(error.value)
    return str(error.value)
