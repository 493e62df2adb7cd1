"""The options that are passed to ONNX Runtime's providers, looked up in the real package.

Its libraries are read, not loaded, which needs no GPU.
"""

from __future__ import annotations

import mmap
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest

from odin_engines import ort_gpu_session
from odin_engines.bundle import ODIN, Bundle
from odin_engines.cuda_probe import Device, Driver
from odin_engines.ort_gpu import CUDA, TENSORRT, Provider
from odin_engines.ort_gpu_session import CUDA_OPTIONS


@pytest.fixture
def tensorrt_options(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> dict[str, str]:
    """All that are passed for a graph in a bundle."""
    driver = Driver(13000, (Device("a GPU of the tests", (8, 9)),), None)
    monkeypatch.setattr(ort_gpu_session, "ask_driver", lambda: driver)
    monkeypatch.setattr(ort_gpu_session, "load_tensorrt", lambda runtime: 101303)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    graph = tiny_bundle.file(ODIN)
    runtime = SimpleNamespace(__version__="1.31.1")
    return ort_gpu_session._tensorrt_options(onnx.load(graph), graph, runtime)  # type: ignore[arg-type]


def test_the_real_providers_know_our_options(tensorrt_options: dict[str, str]) -> None:
    assert len(tensorrt_options) == 7
    assert unknown(TENSORRT, *tensorrt_options) == []
    assert unknown(CUDA, *CUDA_OPTIONS, CUDA_OPTIONS["cudnn_conv_algo_search"]) == []
    for provider in (CUDA, TENSORRT):  # what is not there is not found
        assert unknown(provider, "no_such_option") == ["no_such_option"]


def unknown(provider: Provider, *names: str) -> list[str]:
    """Those that are no whole string in the provider's library."""
    spec = find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    library = Path(spec.origin).parent / "capi" / provider.files[0]
    if not library.is_file():
        pytest.skip(f"there is no {library.name}: install onnxruntime-gpu in place of onnxruntime")
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return [name for name in names if text.find(b"\0%s\0" % name.encode()) < 0]
