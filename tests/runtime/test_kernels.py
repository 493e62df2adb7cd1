"""Launch shapes, arguments and finding the fat binary; what kernels compute is tested elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from native.toolchain import ROOT
from odin_runtime import OdinError, kernels
from odin_runtime.driver import Pointer
from odin_runtime.kernels import Kernels, fat_binary, grid_size

HEADER = (ROOT / "runtime" / "include" / "odin" / "kernels.h").read_text("utf-8")


class Recorder:
    """A driver that keeps what is launched."""

    def __init__(self, missing: str = "") -> None:
        self.launches: list[tuple[Any, ...]] = []
        self.closed = 0
        self.missing = missing

    def load(self, image: bytes) -> Recorder:
        return self

    def kernel(self, name: str) -> str:
        if name == self.missing:
            raise OdinError(f"no {name}")
        return name

    def close(self) -> None:
        self.closed += 1

    def launch(self, kernel: str, grid: int, block: int, arguments: list[Any], stream: Any) -> None:
        self.launches.append((kernel, grid, block, arguments, stream))


def launched(suffix: str, name: str, *args: int, **sizes: Any) -> tuple[Any, ...]:
    driver: Any = Recorder()
    getattr(Kernels(driver, b"", suffix), name)(*args, stream="s", **sizes)
    (launch,) = driver.launches
    return launch


def test_blocks_are_those_of_the_header() -> None:
    names = ("NORMALIZE_BLOCK", "PERTURB_BLOCK", "SCORE_BLOCK", "FIRST_ORDER_BLOCK")
    for name in (*names, "SCORE_WARP_CLASSES", "MOST_BLOCKS"):
        found = re.search(rf"#define ODIN_{name} (\d+)", HEADER)
        assert found and int(found[1]) == getattr(kernels, name)


@pytest.mark.parametrize(
    ("work", "per_block", "blocks"),
    [(0, 4, 1), (1, 4, 1), (4, 4, 1), (5, 4, 2), (4 * 4096, 4, 4096), (2**40, 4, 4096)],
)
def test_grids(work: int, per_block: int, blocks: int) -> None:
    assert grid_size(work, per_block) == blocks


def test_arguments_are_those_of_the_header() -> None:
    name, grid, block, arguments, stream = launched(
        "f16", "normalize", 1, 2, 3, 4, count=5, plane=2048, channels=3
    )
    assert (name, grid, block, stream) == ("odin_normalize_f16", 5, 256, "s")  # 8 elements a thread
    assert arguments[:4] == [Pointer(1), Pointer(2), Pointer(3), Pointer(4)]
    assert [type(one) for one in arguments[4:]] == [np.int64, np.int64, np.int32]
    assert [int(one) for one in arguments[4:]] == [5, 2048, 3]

    name, grid, block, arguments, _ = launched(
        "f32", "perturb", 1, 2, 3, 4, 5, count=2, plane=1024, channels=3, magnitudes=7
    )
    assert (name, grid, block) == ("odin_perturb_f32", 6, 256)
    assert arguments[:7] == [Pointer(n) for n in (1, 2, 3, 4, 5, 0, 0)]
    assert [type(one) for one in arguments[7:]] == [np.int64, np.int64, np.int32, np.int32]

    name, grid, block, arguments, _ = launched(
        "bf16", "score", 9, rows=10, classes=1024, temperature=1000.0, label=7
    )
    assert (name, grid, block) == ("odin_score_bf16", 3, 128)
    assert arguments[:6] == [Pointer(n) for n in (9, 0, 0, 7, 0, 0)]
    assert [type(one) for one in arguments[6:]] == [np.float32, np.float32, np.int64, np.int64]
    assert launched("f32", "score", 9, rows=10, classes=1025)[1] == 10

    name, grid, block, arguments, _ = launched(
        "f32", "first_order", 1, 2, count=6, plane=9, channels=3, magnitudes=4, score=8, steps=5
    )
    assert (name, grid, block) == ("odin_first_order_f32", 6, 256)
    assert arguments[:6] == [Pointer(n) for n in (1, 2, 0, 5, 0, 8)]
    assert [int(one) for one in arguments[6:]] == [6, 9, 3, 4]


def test_a_binary_without_a_kernel_is_unloaded() -> None:
    driver: Any = Recorder(missing="odin_score_f32")
    with pytest.raises(OdinError, match="no odin_score_f32"):
        Kernels(driver, b"")
    assert driver.closed == 1
    with pytest.raises(OdinError, match="no kernels for 'f64'; choose from f32, f16, bf16"):
        Kernels(driver, b"", "f64")


def test_the_fat_binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "files", lambda package: tmp_path)
    with pytest.raises(OdinError, match=r"built without nvcc; install nvcc .* odin-ood again"):
        fat_binary()
    (tmp_path / "odin_kernels.fatbin").write_bytes(b"binary")
    assert fat_binary() == b"binary"
