"""Hostile and damaged checkpoints are refused without being executed."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import random
import struct
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from export.checkpoint_files import (
    MAGIC,
    SYSTEM,
    VERSION,
    Call,
    OldPickler,
    Stored,
    assert_same,
    old_file,
    refusal,
    saved,
    small_module,
    tar_file,
    tensors,
    write,
    zip_file,
)
from odin_engines.errors import OdinError
from odin_export import checkpoint
from odin_export.checkpoint import read_checkpoint

# What would run code


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


# What is damaged or absurd


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
