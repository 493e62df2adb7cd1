"""odin-bench --doctor, as a user runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from odin_bench import cli, doctor
from odin_engines import engine as engines
from odin_engines import ort_gpu, tensorrt_engine
from odin_engines.bundle import Bundle
from odin_engines.cuda_probe import Device, Driver
from odin_engines.engine import ENGINES
from odin_engines.engine import unavailable as real_unavailable
from odin_runtime import kernels as kernel_files
from odin_runtime.driver_reasons import Reason

NO_DRIVER = Driver(0, (), "no NVIDIA driver (libcuda.so.1) is found")
NAMES = [*ENGINES, "torch"]
Doctor = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Doctor:
    """A function: arguments -> status, standard output and standard error of --doctor."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main(["--doctor", *map(str, arguments)])
        return status, *capsys.readouterr()

    return call


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test says itself what GPUs there are."""
    for module in (doctor, engines, ort_gpu, tensorrt_engine):
        monkeypatch.setattr(module, "ask_driver", lambda: NO_DRIVER)


@pytest.fixture
def reasons(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Why each engine is unavailable, for a test to change; all are available at first."""
    known: dict[str, str | None] = dict.fromkeys(ENGINES)
    monkeypatch.setattr(doctor.engines, "unavailable", lambda name, precision: known[name])
    return known


def engine_text(text: str, name: str) -> str:
    """What is said of an engine, on one line."""
    part = text.partition("\nengines (")[2].partition("\nfor GPUs")[0]
    blocks = re.split(r"\n  (?=\S)", part)
    (block,) = (block for block in blocks if block.split()[0] == name)
    return " ".join(block.split())


def without_long_words(line: str) -> str:
    """The line less the paths that do not fit, which are not broken."""
    return "" if max(map(len, line.split()), default=0) > 80 else line


def test_on_a_machine_without_a_gpu(run: Doctor) -> None:
    status, out, err = run()
    assert (status, err) == (0, "")
    assert engine_text(out, "openvino").startswith("openvino yes OpenVINO on the CPU 20")
    assert ", fp32" in engine_text(out, "ort")
    assert "(--engine auto takes openvino)" in out
    assert "GPU driver  no NVIDIA driver (libcuda.so.1) is found: GPU engines take" in out
    for name in ("ort-cuda", "ort-trt", "trt", "rtx"):
        text = engine_text(out, name)
        assert text.startswith(f"{name} no "), text
        reason = real_unavailable(name, "fp32")
        assert reason is not None
        assert all(line in text for line in reason.splitlines())
    for name in ("cuda-core", "pycuda", "kernels", "nvcc"):
        assert re.search(rf"^  {name} +\S", out.partition("\nfor GPUs\n")[2], re.MULTILINE)
    assert all(len(without_long_words(line)) <= 100 for line in out.splitlines())


def test_json_tells_the_same(run: Doctor, tmp_path: Path) -> None:
    status, out, _ = run("--json", tmp_path / "doctor.json")
    assert status == 0
    data = json.loads((tmp_path / "doctor.json").read_text())
    assert data["schema"] == 1
    assert [entry["name"] for entry in data["engines"]] == NAMES
    for entry in data["engines"]:
        text = engine_text(out, entry["name"])
        assert text.split()[1] == ("yes" if entry["available"] else "no")
        assert entry["available"] == (not entry["reasons"]) == bool(entry["precisions"])
        assert all(reason in text for reason in entry["reasons"])
        assert (entry["version"] or "") in text
    driver = {"version": 0, "devices": [], "problem": NO_DRIVER.problem, "cuda": None}
    assert data["driver"] == driver
    assert data["auto"] == "openvino"
    assert data["machine"]["cpu"] in out
    assert [part["name"] for part in data["parts"]] == ["cuda-core", "pycuda", "kernels", "nvcc"]
    assert all((part["found"] is None) != (part["reason"] is None) for part in data["parts"])


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """A function: driver packages at hand, whether kernels are -> a machine with two GPUs."""
    devices = (Device("a GPU of the tests", (8, 9), 24 << 30, 58), Device("another", (9, 0)))

    def use(*packages: str, kernels: bool = True) -> None:
        def missing(name: str, try_import: bool) -> Reason | None:
            assert try_import
            return None if name in packages else Reason(f"no {name}", f"install {name}")

        monkeypatch.setattr(doctor, "ask_driver", lambda: Driver(13020, devices, None))
        monkeypatch.setattr(doctor, "missing_package", missing)
        for module in (doctor, kernel_files):
            monkeypatch.setattr(module, "files", lambda package: tmp_path)
        if kernels:
            (tmp_path / "odin_kernels.fatbin").write_bytes(bytes(4096))

    return use


def test_gpus(
    run: Doctor,
    two_gpus: Callable[..., None],
    reasons: dict[str, str | None],
    tmp_path: Path,
) -> None:
    two_gpus("pycuda")
    status, out, _ = run("--json", tmp_path / "doctor.json")
    assert status == 0
    assert "  GPU driver  takes CUDA up to 13.2\n" in out
    assert (
        "  GPU 0       a GPU of the tests, compute capability 8.9, 24.0 GiB, 58 multiprocessors\n"
    ) in out
    assert "  GPU 1       another, compute capability 9.0," in out
    for name in ("trt", "ort-cuda"):
        assert engine_text(out, name).endswith("fp32/fp16/bf16, a GPU of the tests, another")
    assert "another" not in engine_text(out, "ort")
    assert json.loads((tmp_path / "doctor.json").read_text())["driver"]["cuda"] == "13.2"
    assert "cuda-core   no: no cuda-core: install cuda-core" in out  # one of the two is enough
    assert f"kernels     4 KiB, {tmp_path / 'odin_kernels.fatbin'}" in out


def test_what_plans_need_beside_tensorrt(
    run: Doctor, two_gpus: Callable[..., None], reasons: dict[str, str | None]
) -> None:
    two_gpus(kernels=False)
    _, out, _ = run()
    for name in ("trt", "rtx"):
        text = engine_text(out, name)
        assert text.startswith(f"{name} no ")
        assert "- odin_runtime holds no CUDA kernels (odin_kernels.fatbin): it was built" in text
        assert "nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl" in text
        assert "- neither cuda-core nor pycuda: no cuda-core: install cuda-core" in text
    assert engine_text(out, "ort-cuda").startswith("ort-cuda yes ")
    assert run("--engine", "trt")[0] == 1


def test_a_driver_that_does_not_start(run: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Driver(12040, (), "the NVIDIA driver does not start (CUDA_ERROR_UNKNOWN; look)")
    monkeypatch.setattr(doctor, "ask_driver", lambda: broken)
    out = " ".join(run()[1].split())
    assert "takes CUDA up to 12.4; the NVIDIA driver does not start (CUDA_ERROR_UNKNOWN" in out


def test_nothing_can_score(
    run: Doctor, monkeypatch: pytest.MonkeyPatch, reasons: dict[str, str | None], tmp_path: Path
) -> None:
    reasons.update({name: f"{name} is away: get it" for name in reasons})
    found = doctor.find_spec
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "torch" else found(name))
    status, out, _ = run("--json", tmp_path / "doctor.json")
    assert status == 1
    assert "(--engine auto takes none)" in out
    assert engine_text(out, "rtx").endswith("- rtx is away: get it")
    assert engine_text(out, "torch").endswith(
        "- torch is not installed: pip install 'odin-ood[cpu]'"
    )
    assert json.loads((tmp_path / "doctor.json").read_text())["auto"] is None


@pytest.mark.parametrize("last", ["ort", "torch", "rtx"])
def test_one_engine_is_enough(
    run: Doctor, monkeypatch: pytest.MonkeyPatch, reasons: dict[str, str | None], last: str
) -> None:
    reasons.update({name: "away: get it" for name in reasons if name != last})
    found = doctor.find_spec
    torch = found("torch") if last == "torch" else None
    monkeypatch.setattr(doctor, "find_spec", lambda name: torch if name == "torch" else found(name))
    assert run()[0] == 0
    assert run("--engine", last)[0] == 0
    assert run("--engine", "openvino")[0] == 1


def test_several_things_that_an_engine_lacks(
    run: Doctor, reasons: dict[str, str | None], tmp_path: Path
) -> None:
    reasons["ort-trt"] = "no library: install it\nno driver: install it"
    _, out, _ = run("--json", tmp_path / "doctor.json")
    text = engine_text(out, "ort-trt")
    assert text.endswith("- no library: install it - no driver: install it")
    entries = json.loads((tmp_path / "doctor.json").read_text())["engines"]
    (entry,) = (entry for entry in entries if entry["name"] == "ort-trt")
    assert entry["reasons"] == ["no library: install it", "no driver: install it"]


def test_a_package_that_is_broken(
    run: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "openvino.py").write_text("raise ImportError('libtbb.so.12: no such\\nfile')\n")
    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    text = engine_text(run()[1], "openvino")
    assert "openvino no" in text
    assert "its package does not load (libtbb.so.12: no such file): install it again" in text


# Bundles


def test_a_bundle_without_plans(run: Doctor, tiny_bundle: Bundle) -> None:
    status, out, _ = run(tiny_bundle.path)
    assert status == 0
    assert f"bundle {tiny_bundle.path}\n" in out
    for name in ("trt", "rtx"):
        text = engine_text(out, name)
        assert "no NVIDIA driver (libcuda.so.1) is found" in text
        assert f"bundle {tiny_bundle.path} holds no plan of odin.onnx for --engine {name}" in text
        assert f"build it with 'odin-export {tiny_bundle.path} --engine {name}'" in text
    assert engine_text(out, "openvino").split()[1] == "yes"


def test_a_plan_for_another_gpu(
    run: Doctor,
    monkeypatch: pytest.MonkeyPatch,
    reasons: dict[str, str | None],
    tiny_bundle: Bundle,
) -> None:
    asked = []

    def problem(bundle: Bundle, engine: str, graph: str) -> str | None:
        asked.append((engine, graph))
        return f"{graph} was built for 8.6, and here is 8.9: build it" if engine == "trt" else None

    monkeypatch.setattr(doctor, "plan_problem", problem)
    out = run(tiny_bundle.path)[1]
    assert engine_text(out, "trt").endswith(
        "- odin.onnx was built for 8.6, and here is 8.9: build it"
    )
    assert engine_text(out, "rtx").startswith("rtx yes")
    assert asked == [("trt", "odin.onnx"), ("rtx", "odin.onnx")]


@pytest.mark.parametrize(
    ("method", "tunable", "plans", "graphs"),
    [
        ("exact", False, {"gradient.onnx", "forward.onnx"}, ["gradient.onnx", "forward.onnx"]),
        ("first-order", False, {"gradient.onnx"}, ["gradient.onnx"]),
        ("exact", True, {"odin.onnx", "gradient.onnx"}, ["gradient.onnx", "forward.onnx"]),
        ("exact", False, {"odin.onnx", "gradient.onnx"}, ["odin.onnx"]),
        ("exact", False, set(), ["odin.onnx"]),
    ],
)
def test_the_plans_that_would_be_opened_are_looked_at(
    run: Doctor,
    monkeypatch: pytest.MonkeyPatch,
    reasons: dict[str, str | None],
    make_tiny_bundle: Callable[..., Bundle],
    method: str,
    tunable: bool,
    plans: set[str],
    graphs: list[str],
) -> None:
    bundle = make_tiny_bundle(method=method, tunable=tunable)
    monkeypatch.setattr(Bundle, "plan", lambda self, engine, graph: graph in plans or None)
    asked: list[str] = []
    monkeypatch.setattr(doctor, "plan_problem", lambda b, engine, graph: asked.append(graph))
    out = run(bundle.path)[1]
    assert engine_text(out, "trt").startswith("trt yes")
    assert asked == 2 * graphs


def test_what_is_wrong_with_the_machine_is_told_once(
    run: Doctor,
    monkeypatch: pytest.MonkeyPatch,
    reasons: dict[str, str | None],
    tiny_bundle: Bundle,
) -> None:
    reasons["trt"] = "no driver: it takes one; on a CPU, ort runs the same"
    monkeypatch.setattr(
        doctor, "plan_problem", lambda *_: "odin.plan cannot run here: no driver: it takes one"
    )
    text = engine_text(run(tiny_bundle.path)[1], "trt")
    assert text.count("no driver") == 1


def test_the_precision_of_a_bundle(
    run: Doctor, reasons: dict[str, str | None], make_tiny_bundle: Callable[..., Bundle]
) -> None:
    bundle = make_tiny_bundle(precision="bf16")  # its graphs leave it to the engine
    out = run(bundle.path)[1]
    assert "- precision bf16: the bundle's graphs are written in fp32" in engine_text(
        out, "ort-cuda"
    )
    assert "- precision bf16: the bundle's graphs are written in fp32" in engine_text(out, "trt")
    assert engine_text(out, "openvino").startswith("openvino yes")


def test_a_bundle_is_computed_in_its_precisions_alone(
    run: Doctor, reasons: dict[str, str | None], make_tiny_bundle: Callable[..., Bundle]
) -> None:
    half = make_tiny_bundle(precision="fp16", graph_precision="fp16")
    assert ", fp16," in engine_text(run(half.path)[1], "ort")
    assert ", fp32/bf16," in engine_text(run(make_tiny_bundle().path)[1], "openvino")


def without_memory(report: str) -> list[str]:
    """Lines of a report, less the one that tells how much memory is free just now."""
    return [line for line in report.splitlines() if "GiB free" not in line]


@pytest.mark.parametrize("name", ["densenet10", "wideresnet100"])
def test_a_network_by_its_name(
    run: Doctor, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run(name)
    assert (status, err) == (0, "")
    assert "\nbundle " not in out
    again = run("--nn", name)
    assert (again[0], without_memory(again[1])) == (status, without_memory(out))


def test_the_precision_asked_for(run: Doctor) -> None:
    status, out, _ = run("--engine", "ort", "--precision", "bf16")
    assert status == 1
    assert "not in bf16" in engine_text(out, "ort")
    assert "fp32, not in bf16" in engine_text(out, "torch")


def test_two_networks(run: Doctor) -> None:
    status, out, err = run("densenet10", "--nn", "densenet100")
    assert (status, out) == (1, "")
    assert "MODEL densenet10 and --nn densenet100 are both given" in err


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_no_whole_bundle(
    run: Doctor, make_tiny_bundle: Callable[..., Bundle], tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "none"
    if damage == "cut":
        path = make_tiny_bundle().path
        (path / "odin.onnx").write_bytes(b"")
    status, out, err = run(path)
    assert (status, out) == (1, "")
    assert err.startswith("odin-bench: ")
    assert str(path) in err


def test_a_file_that_cannot_be_written(run: Doctor, tmp_path: Path) -> None:
    status, out, err = run("--json", tmp_path / "none" / "doctor.json")
    assert (status, out) == (1, "")
    assert "none does not exist" in err


# Parts


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A function: a shell script -> an nvcc of the tests, the only one that is found."""
    monkeypatch.delenv("CUDACXX", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setattr(doctor, "_USUAL_FOLDER", str(tmp_path / "none"))
    monkeypatch.setattr(doctor.sysconfig, "get_path", lambda name: str(tmp_path / "packages"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'empty'}")

    def make(script: str, name: str = "bin/nvcc") -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        return file

    return make


SAYS_13 = "echo 'Cuda compilation tools, release 13.0, V13.0.88'"


def test_nvcc_where_the_build_looks_for_it(
    compiler: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doctor._nvcc().reason == "not found; it is needed only to compile the kernels"
    for name, setting in (
        ("usual/nvcc", {"usual": "usual"}),
        ("packages/nvidia/cu13/bin/nvcc", {}),
        ("path/nvcc", {"PATH": "path"}),
        ("toolkit/bin/nvcc", {"CUDA_PATH": "toolkit"}),
        ("own/my-nvcc", {"CUDACXX": "own/my-nvcc"}),
    ):
        file = compiler(SAYS_13, name)
        for variable, value in setting.items():
            if variable == "usual":
                monkeypatch.setattr(doctor, "_USUAL_FOLDER", str(tmp_path / value))
            else:
                monkeypatch.setenv(variable, str(tmp_path / value))
        assert doctor._nvcc() == doctor.Part("nvcc", f"13.0.88, {file}")
    monkeypatch.setenv("CUDACXX", "no-such-nvcc")  # as in the build, no other is taken for it
    assert str(doctor._nvcc().reason).startswith("no-such-nvcc does not run (")


@pytest.mark.parametrize("script", ["exit 1", "echo something", f"{SAYS_13}; exit 2"])
def test_an_nvcc_that_does_not_work(compiler: Callable[..., Path], script: str) -> None:
    file = compiler(script, "packages/nvidia/cu13/bin/nvcc")
    part = doctor._nvcc()
    assert (part.found, part.reason) == (None, f"{file} does not tell its version")


def test_it_needs_neither_torch_nor_scikit_learn() -> None:
    """The machines that most need it have little installed."""
    code = "import sys; from odin_bench.cli import main; main(['--doctor']); print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env=environment,
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "odin_bench.doctor" in loaded
    assert loaded.isdisjoint({"torch", "sklearn", "PIL", "tqdm", "matplotlib", "tensorrt"})
