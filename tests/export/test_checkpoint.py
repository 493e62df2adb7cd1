"""Checkpoints of every kind load; hostile and damaged ones are refused without being executed."""

from __future__ import annotations

import gzip
import importlib.util
import io
import os
import pickle
import random
import re
import struct
import sys
import tarfile
import time
import types
import warnings
import zipfile
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from odin_engines.errors import OdinError
from odin_export import checkpoint, networks
from odin_export.checkpoint import default_checkpoint, load_network, read_checkpoint

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"long": 8}}

# ---- files as PyTorch 0.1 and 0.2 wrote them ------------------------------------------------


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


# ---- files as today's PyTorch writes them ---------------------------------------------------


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


# ---- what loads -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def densenet() -> nn.Module:
    torch.manual_seed(1)
    network = networks.build("densenet10")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return network


@pytest.mark.parametrize(
    ("options", "packed"),
    [
        ({"python": 2}, True),
        ({"python": 3}, False),
        ({"python": 2, "tensors": "0.1.10"}, False),
    ],
)
def test_release_file_gives_the_same_logits(
    densenet: nn.Module, options: dict[str, Any], packed: bool, tmp_path: Path
) -> None:
    assert "densenet" not in sys.modules
    assert importlib.util.find_spec("densenet") is None
    data = old_file(densenet, **options)
    assert b"cdensenet\nDenseNet3\n" in data
    name = "densenet10.pth"
    if packed:
        data, name = gzip.compress(tar_file(**{name: data}), 1), "densenet10.pth.tar.gz"
    network, found = load_network("densenet10", write(tmp_path, data, name))
    assert (found.file, len(found.sha256)) == (name, 64)
    assert not network.training
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(images), densenet(images))


def test_old_data_parallel_module_loses_its_prefix(tmp_path: Path) -> None:
    module = small_module()
    expected = {k: v for k, v in module.state_dict().items() if "num_batches" not in k}
    data = old_file(nn.DataParallel(module), python=2)
    found = read_checkpoint(write(tmp_path, data)).state_dict
    # non-persistent buffers are younger than the format, so the module does not list them
    assert_same(found, {"scratch": torch.zeros(3), **expected})


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_modern_whole_module_gives_its_state_dict(zipped: bool, tmp_path: Path) -> None:
    module = small_module()
    path = write(tmp_path, saved(module, zipped))
    assert_same(read_checkpoint(path).state_dict, module.state_dict())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_class_that_no_longer_exists(
    zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = type("DenseNet3", (nn.Linear,), {"__module__": "densenet"})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "densenet", types.SimpleNamespace(DenseNet3=cls))
        module = cls(3, 2)
        path = write(tmp_path, saved({"net": module}, zipped))
    assert_same(read_checkpoint(path).state_dict, module.state_dict())


WRAPPED = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"epoch": 3, "state_dict": OrderedDict(state)},
    "model": lambda state: {"model": state, "optimizer": {"state": {0: torch.zeros(2)}}},
    "net": lambda state: {"net": {f"module.{k}": v for k, v in state.items()}, "acc": 0.5},
    "training": lambda state: {
        "best": torch.tensor(0.5),
        "accuracy": np.float64(0.5),
        "milestones": Counter({3: 1}),
        "log": defaultdict(list, loss=[1.0]),
        "seen": {1, 2},
        "state_dict": state,
    },
}
PACKED = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "tar": lambda data: tar_file(**{"README": b"text", "._a.pth": data, "sub/a.pth": data}),
    "tar.gz": lambda data: gzip.compress(tar_file(a=data)),
}


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_state_dict_is_found(wrapped: str, zipped: bool, tmp_path: Path) -> None:
    path = write(tmp_path, saved(WRAPPED[wrapped](tensors()), zipped))
    assert_same(read_checkpoint(path).state_dict, tensors())


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_content_decides_not_the_name(kind: str, packed: str, tmp_path: Path) -> None:
    data = safetensors.torch.save(tensors()) if kind == "safetensors" else None
    data = data or saved(tensors(), zipped=kind == "zip")
    found = read_checkpoint(write(tmp_path, PACKED[packed](data), "model.pth.tar"))
    assert found.file == "model.pth.tar"
    assert_same(dict(sorted(found.state_dict.items())), dict(sorted(tensors().items())))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_protocols_and_dtypes(protocol: int, zipped: bool, tmp_path: Path) -> None:
    dtypes = [
        "float32",
        "float64",
        "float16",
        "bfloat16",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "bool",
    ]
    state = {name: torch.tensor([[0, 1], [5, 9]]).to(getattr(torch, name)) for name in dtypes}
    state["part"] = torch.arange(12.0).reshape(3, 4)[1:, ::2]
    state["transposed"] = state["part"].t()
    stream = io.BytesIO()
    torch.save(state, stream, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    path = write(tmp_path, stream.getvalue())
    assert_same(read_checkpoint(path).state_dict, state)


def test_view_of_a_storage(tmp_path: Path) -> None:
    base = Stored(torch.arange(10.0), view=("view", 4, 5))
    parts = (base, 1, (2, 2), (2, 1))
    path = write(tmp_path, old_file({"w": Call("torch._utils", "_rebuild_tensor", parts)}))
    assert read_checkpoint(path).state_dict["w"].tolist() == [[5, 6], [7, 8]]


def test_big_endian_files(tmp_path: Path) -> None:
    numbers = torch.arange(6.0)
    legacy = read_checkpoint(write(tmp_path, old_file({"w": numbers}, little=False)))
    assert_same(legacy.state_dict, {"w": numbers})
    parts = (Stored(numbers), 0, (6,), (1,), False, OrderedDict())
    stream = io.BytesIO()
    OldPickler(stream).dump({"w": Call("torch._utils", "_rebuild_tensor_v2", parts)})
    raw = numbers.numpy().astype(">f4").tobytes()
    data = zip_file(stream.getvalue(), **{f"data__{parts[0].key}": raw, "byteorder": b"big"})
    assert_same(read_checkpoint(write(tmp_path, data)).state_dict, {"w": numbers})


# ---- what would run code --------------------------------------------------------------------


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def hostile_files(evil: Evil) -> dict[str, bytes]:
    headers = [MAGIC, VERSION, SYSTEM, {"w": 1}, []]

    def legacy(position: int) -> bytes:
        parts = [evil if i == position else part for i, part in enumerate(headers)]
        return b"".join(pickle.dumps(part, 2) for part in parts)

    class AsType(OldPickler):
        def persistent_id(self, obj: Any) -> Any:
            pid = super().persistent_id(obj)
            return pid and (pid[0], evil, *pid[2:])

    as_type = io.BytesIO()
    AsType(as_type).dump(tensors())
    module = small_module()
    module.hook = evil
    return {
        **{f"legacy pickle {i}": legacy(i) for i in range(5)},
        "zip": zip_file(pickle.dumps({"w": evil})),
        "zip, protocol 5": zip_file(pickle.dumps({"w": evil}, 5)),
        "storage type": zip_file(as_type.getvalue()),
        "state of a module": saved(module),
        "state of an old module": saved(module, zipped=False),
        "as key": saved({**tensors(), evil: 1}),
        "in a tar.gz": gzip.compress(tar_file(a=zip_file(pickle.dumps(evil)))),
        "text protocol in a zip": zip_file(pickle.dumps(evil, 0)),
        "old class": zip_file(b"(S'touch %s'\niposix\nsystem\n." % bytes(evil.marker)),
    }


@pytest.mark.parametrize("where", hostile_files(Evil(Path("x"))))
def test_code_is_refused_by_name_and_never_run(where: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = write(tmp_path, hostile_files(Evil(marker))[where])
    message = refusal(path)
    assert f"{os.system.__module__}.system" in message
    assert "nothing in it was executed" in message
    assert "state_dict()" in message
    assert not marker.exists()


def test_the_hostile_files_would_have_run_code(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps({"w": Evil(marker)}))  # noqa: S301 - our own, and the point
    assert marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        *("builtins eval", "builtins exec", "builtins getattr", "__builtin__ eval"),
        *("subprocess Popen", "torch load", "torch.hub load", "torch.serialization load"),
        *("torch.nn os.system", "densenet.evil run", "torch.nnx A", "numpy.core.multiarray f"),
    ],
)
def test_other_names_are_refused(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, zip_file(b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n."))
    assert name.replace(" ", ".") in refusal(path)


def test_reading_neither_unpickles_nor_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"w": torch.ones(2)}
    paths = [
        write(tmp_path, data, f"{i}.pth")
        for i, data in enumerate((saved(state), saved(state, zipped=False), old_file(state)))
    ]
    read_checkpoint(paths[0])  # whatever is imported at first use
    for name in ("Unpickler", "_Unpickler", "load", "loads"):
        monkeypatch.setattr(pickle, name, None)
    monkeypatch.setattr("builtins.__import__", None)
    found = [read_checkpoint(path).state_dict for path in paths]
    monkeypatch.undo()
    for one in found:
        assert_same(one, state)


# ---- what is damaged or absurd --------------------------------------------------------------


def damaged_sources() -> dict[str, bytes]:
    legacy = saved(tensors(), zipped=False)
    return {
        "legacy": legacy,
        "old module": old_file(nn.Sequential(nn.Linear(3, 2)), python=2),
        "zip": saved(tensors()),
        "safetensors": safetensors.torch.save(tensors()),
        "gzip": gzip.compress(legacy),
        # what follows the member's last block of 512 bytes is padding
        "tar": tar_file(a=legacy)[: 512 + (len(legacy) + 511) // 512 * 512],
    }


@pytest.mark.parametrize("kind", damaged_sources())
def test_cut_off_files_are_refused(kind: str, tmp_path: Path) -> None:
    data = damaged_sources()[kind]
    read_checkpoint(write(tmp_path, data))
    for length in {*range(0, len(data), max(1, len(data) // 150)), len(data) - 1}:
        refusal(write(tmp_path, data[:length]))


@pytest.mark.parametrize("kind", damaged_sources())
def test_flipped_bytes_never_crash(kind: str, tmp_path: Path) -> None:
    data, generator = damaged_sources()[kind], random.Random(0)
    started = time.monotonic()
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(generator.choice((1, 1, 3))):
            damaged[generator.randrange(len(data))] = generator.randrange(256)
        try:
            state = read_checkpoint(write(tmp_path, bytes(damaged))).state_dict
        except OdinError:
            continue
        assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        *((7, (2,), (1,)), (0, (2, 5), (5, 1)), (0, (9,), (1,)), (-1, (2,), (1,))),
        *((0, (2,), (-1,)), (0, (-2,), (1,)), (0, (2,), (1, 1)), (0, (2,), (1 << 62,))),
        *((0, (1 << 40,), (0,)), (0, "2", (1,)), (None, (2,), (1,)), (9, (0,), (1,))),
    ],
)
def test_tensors_stay_inside_their_storage(
    offset: Any, size: Any, stride: Any, tmp_path: Path
) -> None:
    parts = (Stored(torch.arange(8.0)), offset, size, stride)
    path = write(tmp_path, old_file({"w": Call("torch._utils", "_rebuild_tensor", parts)}))
    assert "'w'" in refusal(path)


@pytest.mark.parametrize("view", [("v", 4, 5), ("v", -1, 2), ("v", 0, -1), ("v", None, 1)])
def test_views_stay_inside_their_storage(view: Any, tmp_path: Path) -> None:
    parts = (Stored(torch.arange(8.0), view), 0, (1,), (1,))
    path = write(tmp_path, old_file({"w": Call("torch._utils", "_rebuild_tensor", parts)}))
    refusal(path)


def test_counts_that_disagree(tmp_path: Path) -> None:
    data = old_file({"w": torch.arange(8.0)})
    changed = data[: -8 * 4 - 8] + struct.pack("<q", 1 << 40) + data[-8 * 4 :]
    assert "8 numbers" in refusal(write(tmp_path, changed))


def exhausting_files() -> dict[str, bytes]:
    pairs = b"\x80\x02)" + b"2\x86" * 100  # (t, t) of (t, t) of ...: 2^100 leaves
    itself = b"(X\x01\x00\x00\x00aq\x01ctorch.nn\nA\n)\x81q\x02}X\x08\x00\x00\x00_modules}h\x01"
    return {
        "memo far away": zip_file(b"\x80\x02Nr\xff\xff\xff\xff."),
        "bytes without end": zip_file(b"\x80\x04\x8e" + b"\xff" * 7 + b"\x0f."),
        "bytearray without end": zip_file(b"\x80\x05\x96" + b"\x00" * 5 + b"\x01\x00\x00."),
        "nested key": zip_file(b"\x80\x02}" + pairs[2:] + b"Ns."),
        "nested root": zip_file(pairs + b"."),
        "nested header": pairs + b".",
        "deep tuple": zip_file(b"\x80\x02)" + b"\x85" * 200_000 + b"."),
        "module in itself": zip_file(b"\x80\x02" + itself + b"h\x02ssb."),
        "empty stack": zip_file(b"\x80\x020."),
        "compressed": zip_file(pickle.dumps("a" * 10_000_000), zipfile.ZIP_DEFLATED),
        "gzip": gzip.compress(bytes(80_000_000), 1),
        "gzip in gzip": gzip.compress(
            gzip.compress(gzip.compress(gzip.compress(gzip.compress(saved(tensors())))))
        ),
    }


@pytest.mark.parametrize("kind", exhausting_files())
def test_exhausting_files_are_refused_quickly(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, exhausting_files()[kind])
    started = time.monotonic()
    refusal(path)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"some text", "is not a checkpoint"),
        (pickle.dumps({"w": 1}), "torch.save did not write"),
        (saved([1, 2]), "holds a list"),
        (saved({"epoch": 3}), "without any tensor"),
        (saved({"net": nn.ReLU()}), "without any tensor"),
        (tar_file(README=b"text"), "without a checkpoint"),
        (zip_file(b"N.", **{"constants.pkl": b"N."}), "TorchScript"),
        (tar_file(pickle=b"1", storages=b"2", tensors=b"3"), "before 0.1.10"),
        (tar_file(**{"a.pth": saved({}), "b.pth": saved({})}), "a.pth, b.pth"),
    ],
)
def test_other_files_are_named_for_what_they_are(data: bytes, message: str, tmp_path: Path) -> None:
    assert message in refusal(write(tmp_path, data))


def unsafe_member(kind: str) -> bytes:
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device = tarfile.TarInfo("device")
    device.type = tarfile.CHRTYPE
    data = saved(tensors())
    return {
        "link": lambda: tar_file(link=link, a=data),
        "device": lambda: tar_file(a=data, device=device),
        "../up": lambda: tar_file(**{"../up": data}),
        "/absolute": lambda: tar_file(**{"/absolute": data}),
        "a/../../b": lambda: tar_file(a=data, **{"a/../../b": b"text"}),
    }[kind]()


@pytest.mark.parametrize("kind", ["link", "device", "../up", "/absolute", "a/../../b"])
def test_unsafe_tar_members_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    assert repr(kind) in refusal(write(folder, unsafe_member(kind)))
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "a.pth"]


def test_paths_that_are_not_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "No such file" in refusal(tmp_path / "absent.pth")
    assert "folder" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a file" in refusal(tmp_path / "pipe")
    path = write(tmp_path, saved(tensors()))
    monkeypatch.setattr(checkpoint, "MAX_BYTES", 1000)
    assert "more than" in refusal(path)


# ---- networks -------------------------------------------------------------------------------


def with_state(tmp_path: Path, state: dict[str, torch.Tensor]) -> Path:
    return write(tmp_path, saved(state))


def test_packaged_weights() -> None:
    network, found = load_network("densenet10", None)
    assert found.file == default_checkpoint("densenet10").name == "densenet10.safetensors"
    assert not network.training
    assert {value.dtype for value in network.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["densenet100", "wideresnet10", "wideresnet100"])
def test_networks_without_weights_say_where_to_get_them(name: str) -> None:
    with pytest.raises(OdinError, match=rf"--checkpoint.*{name}\.pth\.tar\.gz"):
        load_network(name, None)


def test_unknown_network() -> None:
    for function in (default_checkpoint, lambda name: load_network(name, None)):
        with pytest.raises(OdinError, match=r"'densenet'; did you mean densenet10"):
            function("densenet")


def test_differences_are_named(densenet: nn.Module, tmp_path: Path) -> None:
    state = densenet.state_dict()
    with pytest.raises(OdinError, match=r"fc.weight is \(10, 342\) instead of \(100, 342\)") as e:
        load_network("densenet100", with_state(tmp_path, state))
    assert "it fits densenet10: " in str(e.value)
    del state["fc.weight"], state["bn1.bias"]
    state |= {f"extra{i}": torch.zeros(i) for i in range(5)}
    with pytest.raises(OdinError) as e:
        load_network("densenet10", with_state(tmp_path, state))
    assert "missing bn1.bias (342,), fc.weight (10, 342);" in str(e.value)
    assert re.search(r"unexpected extra0 \(0,\), .*extra2 \(2,\) and 2 more;", str(e.value))
    assert "it fits none of densenet10, " in str(e.value)


def test_weights_are_converted_and_checked(densenet: nn.Module, tmp_path: Path) -> None:
    state = {k: v for k, v in densenet.state_dict().items() if "num_batches" not in k}
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        path = with_state(tmp_path, {k: v.to(dtype) for k, v in state.items()})
        network, found = load_network("densenet10", path)
        assert found.state_dict["fc.weight"].dtype == dtype
        assert torch.equal(network.state_dict()["fc.weight"], state["fc.weight"].to(dtype).float())
    for bad, message in (
        (torch.full((10,), torch.nan), "tensor fc.bias has values"),
        (torch.full((10,), 1e300, dtype=torch.float64), "tensor fc.bias has values"),
        (torch.ones(10, dtype=torch.int64), "tensor fc.bias is of type torch.int64"),
    ):
        with pytest.raises(OdinError, match=message):
            load_network("densenet10", with_state(tmp_path, {**state, "fc.bias": bad}))


def test_names_cannot_command_the_terminal(tmp_path: Path) -> None:
    assert "names" in refusal(with_state(tmp_path, {"\x1b[2J": torch.zeros(1)}))


def test_published_checkpoint() -> None:
    folder = os.environ.get("ODIN_MODELS")
    if not folder:
        pytest.skip("ODIN_MODELS does not name the folder of published checkpoints")
    path = Path(folder) / "densenet_bc_100_12_cifar10.pth.tar"
    network, found = load_network("densenet10", path)
    expected = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    assert_same(found.state_dict, {k.removeprefix("module."): v for k, v in expected.items()})
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
