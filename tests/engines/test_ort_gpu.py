"""What ONNX Runtime on a GPU misses here, each thing by its name and with its remedy."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from odin_engines import engine as engines
from odin_engines import ort_gpu
from odin_engines.bundle import Bundle
from odin_engines.cuda_probe import Device, Driver
from odin_engines.engine import open_graph, resolve
from odin_engines.errors import OdinError
from odin_engines.ort_gpu import CUDA, INSTALL, TENSORRT, Provider, unavailable
from odin_runtime import Scorer

GPU = Driver(13000, (Device("a GPU of the tests", (8, 9)),), None)
NO_DRIVER = Driver(0, (), "no NVIDIA driver (libcuda.so.1) is found")
NEEDS_DRIVER = (
    "no NVIDIA driver (libcuda.so.1) is found: it takes an NVIDIA GPU with driver 580 or newer"
)
# Versions that exist nowhere, so that no machine has them.
CUDA_NEEDS = ("libcublasLt.so.97", "libcublas.so.97", "libc.so.6", "libcuda.so.1")
TENSORRT_NEEDS = ("libnvinfer.so.96", "libnvonnxparser.so.96", "libcublas.so.97")
Install = Callable[..., ModuleType]
Compile = Callable[..., Path]


@pytest.fixture
def compile_library(tmp_path: Path) -> Compile:
    """A function: file, libraries that it needs, source -> a shared library."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    stubs = tmp_path / "stubs"
    stubs.mkdir()

    def make(file: Path, needs: tuple[str, ...] = (), source: str = "") -> Path:
        (stubs / "source.c").write_text(source)
        command = [compiler, "-shared", "-fPIC", "-nostdlib", "-Wl,--no-as-needed"]
        command += [f"-Wl,-soname,{file.name}", str(stubs / "source.c"), "-o", str(file)]
        for name in needs:
            if not (stubs / name).exists():
                make(stubs / name)
            command.append(str(stubs / name))
        subprocess.run(command, check=True, timeout=60)
        return file

    return make


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compile_library: Compile) -> Install:
    """A function: distributions, and what differs -> an ONNX Runtime of the tests, imported.

    A whole onnxruntime-gpu on a machine with a GPU and all libraries, unless told otherwise.
    """

    def make(
        *distributions: str,
        providers: tuple[str, ...] = (TENSORRT.name, CUDA.name, "CPUExecutionProvider"),
        tells_nodes: bool = True,
        cuda_needs: tuple[str, ...] = ("libc.so.6",),
        tensorrt_needs: tuple[str, ...] = ("libc.so.6",),
        driver: Driver = GPU,
        also: dict[str, str] | None = None,
    ) -> ModuleType:
        capi = tmp_path / "onnxruntime" / "capi"
        capi.mkdir(parents=True)
        compile_library(capi / CUDA.files[0], cuda_needs)
        compile_library(capi / TENSORRT.files[0], tensorrt_needs)
        session = type("InferenceSession", (), {})
        if tells_nodes:
            session.get_provider_graph_assignment_info = None
        module = ModuleType("onnxruntime")
        module.__file__ = str(tmp_path / "onnxruntime" / "__init__.py")
        module.__version__ = "1.31.1"
        module.InferenceSession = session
        module.get_available_providers = lambda: list(providers)
        module.preload_dlls = lambda: print("Failed to load libnoise.so")
        versions = dict.fromkeys(distributions or ("onnxruntime-gpu",), "1.31.1")
        versions |= also or {}
        monkeypatch.setitem(sys.modules, "onnxruntime", module)
        monkeypatch.setattr(engines, "find_spec", lambda name: ModuleSpec(name, None, origin=name))
        monkeypatch.setattr(
            ort_gpu, "installed", lambda names: {n: versions[n] for n in names if n in versions}
        )
        for asking in (ort_gpu, engines):
            monkeypatch.setattr(asking, "ask_driver", lambda: driver)
        return module

    return make


@pytest.fixture(autouse=True)
def without_libraries_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN and TensorRT may be on the machine or not: here they are what a test says."""
    monkeypatch.setattr(ort_gpu, "_TENSORRT_FOLDER", "odin_no_such_module")
    monkeypatch.setattr(ort_gpu, "_TENSORRT_MAJORS", (95,))


def uninstall(monkeypatch: pytest.MonkeyPatch, *absent: str) -> None:
    """Let only these modules look as if they were not installed."""

    def find(name: str) -> ModuleSpec | None:
        return None if name in absent else ModuleSpec(name, None, origin=name)

    monkeypatch.setattr(engines, "find_spec", find)


def bare(provider: Provider) -> Provider:
    """The provider without the libraries that it opens later."""
    return Provider(provider.name, provider.title, provider.engine, provider.files, ())


@pytest.mark.parametrize("provider", [CUDA, TENSORRT], ids=["cuda", "trt"])
def test_nothing_is_missing(
    install: Install, capsys: pytest.CaptureFixture[str], provider: Provider
) -> None:
    install()
    assert unavailable(bare(provider)) is None
    assert capsys.readouterr() == ("", "")


def test_all_that_is_missing_is_told(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(cuda_needs=("libcudart.so.97",), driver=NO_DRIVER)
    uninstall(monkeypatch, "onnx")
    assert [line.partition(":")[0] for line in str(unavailable(bare(CUDA))).splitlines()] == [
        "onnx is not installed",
        "libcudart.so.97 is not found (this onnxruntime-gpu is made for CUDA 97)",
        "no NVIDIA driver (libcuda.so.1) is found",
    ]


@pytest.mark.parametrize("module", ["onnxruntime", "onnx"])
def test_a_package_that_is_not_installed(
    install: Install, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    install(driver=NO_DRIVER)
    uninstall(monkeypatch, module)
    again = f"pip uninstall -y onnxruntime-gpu && {INSTALL}"
    remedy = again if module == "onnxruntime" else "pip install onnx"
    assert unavailable(bare(CUDA)) == f"{module} is not installed: {remedy}\n{NEEDS_DRIVER}"


def test_a_folder_that_pip_left_behind(
    install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install("onnxruntime-gpu")
    (tmp_path / "odin_left_behind").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(engines, "find_spec", lambda name: find_spec("odin_left_behind"))
    reason = f"onnxruntime is not installed: pip uninstall -y onnxruntime-gpu && {INSTALL}"
    assert str(unavailable(CUDA)).splitlines()[0] == reason
    assert engines.unavailable("ort", "fp32") == (
        "onnxruntime is not installed: pip install 'odin-ood[cpu]'"
    )


@pytest.mark.parametrize("provider", [CUDA, TENSORRT], ids=["cuda", "trt"])
def test_the_package_for_cpus(install: Install, provider: Provider) -> None:
    install("onnxruntime", providers=("CPUExecutionProvider",), driver=NO_DRIVER)
    assert unavailable(provider) == (
        f"onnxruntime 1.31.1 is the package for CPUs and has no {provider.name}: "
        f"pip uninstall -y onnxruntime && {INSTALL}\n{NEEDS_DRIVER}"
    )


def test_two_packages_over_each_other(install: Install) -> None:
    install("onnxruntime", "onnxruntime-gpu", providers=("CPUExecutionProvider",))
    assert unavailable(CUDA) == (
        "onnxruntime 1.31.1 and onnxruntime-gpu 1.31.1 are installed over each other, and what "
        "came out has no CUDAExecutionProvider: "
        f"pip uninstall -y onnxruntime onnxruntime-gpu && {INSTALL}"
    )


def test_two_packages_of_which_the_right_one_won(install: Install) -> None:
    install("onnxruntime", "onnxruntime-gpu")
    assert unavailable(bare(CUDA)) is None


def test_a_gpu_package_without_tensorrt(install: Install) -> None:
    install("onnxruntime-gpu", providers=(CUDA.name, "CPUExecutionProvider"))
    assert unavailable(bare(CUDA)) is None
    reason = unavailable(TENSORRT)
    assert reason == (
        "onnxruntime-gpu 1.31.1 has no TensorrtExecutionProvider: "
        f"pip uninstall -y onnxruntime-gpu && {INSTALL}"
    )


def test_a_provider_whose_file_was_overwritten(install: Install, tmp_path: Path) -> None:
    install("onnxruntime", "onnxruntime-gpu")
    (tmp_path / "onnxruntime" / "capi" / CUDA.files[0]).unlink()
    assert "are installed over each other, and what came out has no CUDA" in unavailable(CUDA)


def test_what_pip_left_of_a_package(install: Install) -> None:
    module = install("onnxruntime-gpu")
    del module.InferenceSession
    assert unavailable(CUDA) == (
        f"what is left of onnxruntime is not whole: pip uninstall -y onnxruntime-gpu && {INSTALL}"
    )


def test_a_package_that_does_not_load(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("onnxruntime-gpu")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    reason = unavailable(CUDA)
    assert reason.startswith("onnxruntime does not load (")
    assert reason.endswith(f"pip uninstall -y onnxruntime-gpu && {INSTALL}")


def test_a_package_too_old(install: Install) -> None:
    install("onnxruntime-gpu", tells_nodes=False, also={"onnxruntime-gpu": "1.22.0"})
    assert unavailable(CUDA) == (
        "onnxruntime-gpu 1.22.0 is too old: it does not tell what the GPU computes; "
        f"{INSTALL} --upgrade"
    )


def test_all_missing_libraries_at_once(install: Install) -> None:
    install(cuda_needs=CUDA_NEEDS)
    provider = Provider(CUDA.name, CUDA.title, CUDA.engine, CUDA.files, ("libcudnn.so.98",))
    assert unavailable(provider) == (
        "libcublasLt.so.97, libcublas.so.97, libcudnn.so.98 are not found: "
        "pip install 'onnxruntime-gpu[cuda,cudnn]'"
    )


def test_cudnn_is_asked_for() -> None:
    assert CUDA.opened_later == TENSORRT.opened_later == ("libcudnn.so.9",)


def test_a_library_that_is_broken(install: Install, tmp_path: Path) -> None:
    install(cuda_needs=("libbroken.so.97",))
    broken = tmp_path / "libbroken.so.97"
    broken.write_bytes(b"not a library")
    provider = Provider(CUDA.name, CUDA.title, CUDA.engine, CUDA.files, (str(broken),))
    first, second = unavailable(provider).splitlines()
    assert first.startswith("libbroken.so.97 is not found: pip install ")
    assert second.startswith(f"{broken} does not load ({broken}: ")
    assert second.endswith("): reinstall the package that it is of")


@pytest.mark.parametrize("title", ["tensorrt", "tensorrt-cu13"])
def test_tensorrt_of_another_version(install: Install, title: str) -> None:
    needs = (*TENSORRT_NEEDS[:2], "libcudart.so.97")
    install(tensorrt_needs=needs, also={title: "11.4.0.106"}, driver=Driver(97000, (), None))
    first, second = unavailable(bare(TENSORRT)).splitlines()
    assert first == (
        "ONNX Runtime's TensorRT provider wants TensorRT 96 (libnvinfer.so.96, "
        "libnvonnxparser.so.96), and TensorRT 11.4.0.106 is installed: "
        f"pip uninstall -y {title} && pip install 'tensorrt-cu97>=96,<97'"
    )
    assert second == (
        "libcudart.so.97 is not found (this onnxruntime-gpu is made for CUDA 97): "
        "pip install 'onnxruntime-gpu[cuda,cudnn]'"
    )


def test_tensorrt_of_another_version_from_the_system(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tensorrt_needs=TENSORRT_NEEDS[:1])
    found = ort_gpu.missing
    monkeypatch.setattr(
        ort_gpu, "missing", lambda names: found(n for n in names if n != "libnvinfer.so.95")
    )
    assert unavailable(bare(TENSORRT)) == (
        "ONNX Runtime's TensorRT provider wants TensorRT 96 (libnvinfer.so.96), and TensorRT 95 is "
        "installed: pip install 'tensorrt-cu13>=96,<97'"
    )


def test_without_tensorrt(install: Install) -> None:
    install(tensorrt_needs=TENSORRT_NEEDS, cuda_needs=CUDA_NEEDS, driver=NO_DRIVER)
    assert unavailable(bare(TENSORRT)).splitlines() == [
        "ONNX Runtime's TensorRT provider wants TensorRT 96 (libnvinfer.so.96, "
        "libnvonnxparser.so.96), which is not found: pip install 'tensorrt-cu13>=96,<97'",
        "libcublas.so.97, libcublasLt.so.97 are not found: "
        "pip install 'onnxruntime-gpu[cuda,cudnn]'",
        NEEDS_DRIVER,
    ]


def test_tensorrt_from_pip(
    install: Install,
    compile_library: Compile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its folder is no place where the loader looks; its module loads what is in it."""
    module = install(tensorrt_needs=TENSORRT_NEEDS[:2])
    folder = tmp_path / "odin_tensorrt_libs"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "import ctypes, pathlib\n"
        "for file in sorted(pathlib.Path(__file__).parent.glob('*.so.*')):\n"
        "    ctypes.CDLL(str(file))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(ort_gpu, "_TENSORRT_FOLDER", folder.name)
    with pytest.raises(OdinError, match="wants TensorRT 96"):
        ort_gpu.load_tensorrt(module)
    version = "int getInferLibVersion(void) { return 960102; }"
    compile_library(folder / "libnvinfer.so.96", source=version)
    compile_library(folder / "libnvonnxparser.so.96")
    assert unavailable(bare(TENSORRT)) is None
    assert ort_gpu.load_tensorrt(module) == 960102


@pytest.mark.parametrize(
    ("needs", "driver", "wanted"),
    [
        (("libc.so.6",), GPU, None),
        (("libc.so.6",), NO_DRIVER, NEEDS_DRIVER),
        (
            ("libc.so.6",),
            Driver(12080, GPU.devices, None),
            "the NVIDIA driver takes CUDA up to 12.8, and this onnxruntime-gpu is made for CUDA "
            "13: update the driver to 580 or newer",
        ),
    ],
    ids=["fine", "none", "old"],
)
def test_the_driver(
    install: Install, needs: tuple[str, ...], driver: Driver, wanted: str | None
) -> None:
    install(cuda_needs=needs, driver=driver)
    assert unavailable(bare(CUDA)) == wanted


@pytest.mark.parametrize("cuda", [12, 14])
def test_the_driver_for_the_cuda_that_the_package_was_made_for(install: Install, cuda: int) -> None:
    install(cuda_needs=(f"libcudart.so.{cuda}",), driver=Driver(11080, GPU.devices, None))
    reason = unavailable(bare(CUDA)).splitlines()[-1]
    wanted = {12: "525 or newer", 14: "a driver for CUDA 14"}[cuda]
    assert reason.startswith("the NVIDIA driver takes CUDA up to 11.8, and this onnxruntime-gpu ")
    assert reason.endswith(f"is made for CUDA {cuda}: update the driver to {wanted}")


@pytest.mark.parametrize("name", ["ort-cuda", "ort-trt"])
def test_there_is_no_silent_fallback(install: Install, tiny_bundle: Bundle, name: str) -> None:
    install("onnxruntime", providers=("CPUExecutionProvider",))
    wanted = f"engine {name} is not available: onnxruntime 1.31.1 is the package for CPUs"
    with pytest.raises(OdinError, match=wanted):
        resolve(name, "fp32")
    with pytest.raises(OdinError, match=wanted):
        open_graph(name, tiny_bundle.file("odin.onnx"))
    with pytest.raises(OdinError, match=wanted):
        Scorer.open(tiny_bundle, name)


def test_auto_takes_no_gpu_engine_that_lacks_something(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(driver=NO_DRIVER)
    uninstall(monkeypatch, "openvino", "tensorrt", "tensorrt_rtx")
    assert resolve("auto", "fp32") == "ort"
    with pytest.raises(OdinError) as caught:
        resolve("auto", "bf16")
    reason = "; ".join(str(ort_gpu.unavailable(CUDA)).splitlines())
    assert f"\n  ort-cuda: {reason}\n" in str(caught.value)
