"""Checkpoints of every kind load, and into the networks that they fit alone."""

from __future__ import annotations

import gzip
import importlib.util
import io
import os
import re
import sys
import types
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from export.checkpoint_files import (
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
from odin_export import networks
from odin_export.checkpoint import default_checkpoint, load_network, read_checkpoint


@pytest.fixture(scope="module")
def densenet() -> nn.Module:
    torch.manual_seed(1)
    network = networks.build("densenet10")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return network


# What loads


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


# Networks


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
