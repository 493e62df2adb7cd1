"""odin-export --engine rtx and trt, as a user runs it on a machine without a GPU."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest

from odin_engines import plan_sets, plans
from odin_engines.bundle import Bundle, read_bundle
from odin_engines.plan_records import PlanRecord
from odin_export import cli as export

PLANS = ["forward.rtx.plan", "gradient.rtx.plan", "odin.rtx.plan"]


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    status: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Command:
    """A function: arguments of odin-export -> what it printed and returned."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            status = export.main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            status = int(stop.code or 0)
        return Outcome(status, *capsys.readouterr())

    return call


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test in its own folder, off the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def bundle(tiny_bundle: Bundle) -> Path:
    """A bundle of our own, "tiny", in the current folder."""
    shutil.copytree(tiny_bundle.path, "tiny")
    return Path("tiny")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[PlanRecord]:
    """Let plans be built at once; the list holds their records."""
    pytest.importorskip("tensorrt_rtx", reason="install the extra rtx")
    records: list[PlanRecord] = []

    def build(trt: Any, graph: bytes, record: PlanRecord, *rest: Any) -> bytes:
        records.append(record)
        return b"a plan of " + record.graph.encode()

    monkeypatch.setattr(plan_sets, "build_plan", build)
    return records


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def refused(outcome: Outcome, *parts: str) -> None:
    """Check that the command refused in one line, or as argparse does, with these parts."""
    assert outcome.status in (1, 2)
    assert outcome.out == ""
    if outcome.status == 1:
        assert len(outcome.err.splitlines()) == 1
    for part in parts:
        assert part in outcome.err


@pytest.mark.parametrize(
    ("precision", "first"),
    [("fp32", "8.0"), ("fp16", "7.5"), ("bf16", "8.0")],  # Turing has no products but float16's
)
def test_a_model_and_its_plans(
    run: Command, tiny_forward: onnx.ModelProto, precision: str, first: str
) -> None:
    """The builder at work, from the command line to the bundle."""
    pytest.importorskip("tensorrt_rtx", reason="install the extra rtx")
    onnx.save(tiny_forward, "net.onnx")
    arguments = f"--preset unit --engine rtx --maxShapes=images:16x3x32x32 --precision {precision}"
    outcome = run("net.onnx", *arguments.split())
    assert outcome.status == 0, outcome.err
    bundle = read_bundle(Path("net"))
    assert bundle.spec.graph_precision == precision
    assert sorted(record.file for record in bundle.plans) == PLANS
    for record in bundle.plans:
        assert record.graph_sha256 == bundle.files[record.graph]
        assert record.compute_capabilities[0] == first
        assert bundle.file(record.file).stat().st_size > 10_000
        line = next(line for line in outcome.out.splitlines() if record.file in line)
        target = ", ".join(record.compute_capabilities)
        assert f", compute capability {target}, {precision}, " in line
        assert re.search(r"TensorRT for RTX [\d.]+, ", line)
        assert line.endswith("batches 1 to 16 of 3x32x32: built")


def test_plans_for_a_bundle(run: Command, bundle: Path, built: list[PlanRecord]) -> None:
    before = content(bundle)
    outcome = run(bundle, "--engine", "rtx")
    assert outcome.status == 0, outcome.err
    after = content(bundle)
    assert sorted(after.keys() - before.keys()) == PLANS
    for name in ("odin.onnx", "gradient.onnx", "forward.onnx"):
        assert after[name] == before[name]
    assert outcome.out.count(": built") == 3
    assert len(built) == 3
    outcome = run(bundle, "--engine", "rtx", "--plans", "both")
    assert outcome.out.count("nothing that it is made from has changed") == 3
    assert len(built) == 3
    assert content(bundle) == after
    assert list(Path.cwd().iterdir()) == [bundle.absolute()]


def test_plans_into_a_copy(run: Command, bundle: Path, built: list[PlanRecord]) -> None:
    before = content(bundle)
    outcome = run(bundle, "--engine", "rtx", "--output", "copy", "--plans", "fused")
    assert outcome.status == 0, outcome.err
    assert content(bundle) == before
    assert [record.file for record in read_bundle(Path("copy")).plans] == ["odin.rtx.plan"]
    assert str(Path("copy").absolute()) in outcome.out


def test_exporting_again_uses_plans_again(
    run: Command, tiny_forward: onnx.ModelProto, built: list[PlanRecord]
) -> None:
    onnx.save(tiny_forward, "net.onnx")
    assert run("net.onnx", "--preset", "unit", "--engine", "rtx").status == 0
    outcome = run("net.onnx", "--preset", "unit", "--engine", "rtx")
    assert (outcome.status, len(built)) == (0, 3)
    outcome = run("net.onnx", "--preset", "unit", "--engine", "rtx", "--magnitude", "0.5")
    # The perturbation is in odin.onnx alone.
    assert outcome.out.count(": built") == 1
    assert [record.graph for record in built[3:]] == ["odin.onnx"]


def test_plans_and_a_graph_of_onnx_runtime_stay_side_by_side(
    run: Command, tiny_forward: onnx.ModelProto, built: list[PlanRecord]
) -> None:
    onnx.save(tiny_forward, "net.onnx")
    again = ("net.onnx", "--preset", "unit")
    assert run(*again, "--engine", "rtx").status == 0
    outcome = run(*again, "--engine", "ort")  # exported anew, which changes no graph
    assert outcome.status == 0
    assert outcome.out.count("as it was, for nothing") == 3
    both = read_bundle(Path("net")).files
    assert {"odin.ort.onnx", *PLANS} <= set(both)
    for arguments in ((*again, "--engine", "rtx"), ("./net", "--engine", "ort")):
        outcome = run(*arguments)
        assert outcome.status == 0
        assert outcome.out.count("as it was, for nothing") == 3
        assert "odin.ort.onnx (" in outcome.out
        assert read_bundle(Path("net")).files == both
    assert run("./net", "--engine", "rtx", "--tf32").status == 0
    assert "odin.ort.onnx" in read_bundle(Path("net")).files
    assert len(built) == 6
    outcome = run(*again, "--engine", "ort", "--magnitude", "0.5")
    assert [plan.graph for plan in read_bundle(Path("net")).plans] == [
        "gradient.onnx",
        "forward.onnx",
    ]


def test_a_damaged_graph_of_another_engine_is_told(
    run: Command, tiny_forward: onnx.ModelProto, built: list[PlanRecord]
) -> None:
    onnx.save(tiny_forward, "net.onnx")
    assert run("net.onnx", "--preset", "unit", "--engine", "ort").status == 0
    Path("net/odin.ort.onnx").write_bytes(b"")
    outcome = run("./net", "--engine", "rtx")
    assert outcome.status == 0
    assert "left out: " in outcome.out
    assert "odin.ort.onnx has 0 bytes" in outcome.out
    assert "'odin-export net --engine ort'" in outcome.out.replace("./", "")
    assert "odin.ort.onnx" not in read_bundle(Path("net")).files
    assert run("./net", "--engine", "ort").out.count("left out") == 0


def test_every_flag(run: Command, bundle: Path, built: list[PlanRecord]) -> None:
    arguments = "--engine rtx --plans split --minShapes=images:2x3x32x32 --tf32 "
    arguments += "--optShapes=images:4x3x40x40 --maxShapes=images:8x3x48x48 "
    arguments += "--builderOptimizationLevel 2 --computeCapabilities 12.0,8.6"
    outcome = run(bundle, *arguments.split())
    assert outcome.status == 0, outcome.err
    assert [record.graph for record in built] == ["gradient.onnx", "forward.onnx"]
    for record in built:
        limits = record.profile["images"]
        shapes = (limits.minimum, limits.optimum, limits.maximum)
        assert shapes == ((2, 3, 32, 32), (4, 3, 40, 40), (8, 3, 48, 48))
        assert (record.tf32, record.optimization_level) == (True, 2)
        assert record.compute_capabilities == ("8.6", "12.0")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("--engine trt", ("--engine trt", "TensorRT builds on the GPU", "libcuda.so.1", "rtx")),
        ("", ("tiny is a bundle", "--engine trt or rtx adds plans")),
        ("--tf32", ("--tf32 is for plans", "--engine trt or --engine rtx")),
        ("--plans fused", ("--plans is for plans",)),
        ("--maxShapes=images:1x3x32x32", ("--maxShapes is for plans",)),
        ("--engine rtx --plans all", ("--plans", "all", "fused")),
        ("--engine rtx --maxShapes=1x3x32x32", ("--maxShapes", "as images:1x3x32x32")),
        ("--engine rtx --maxShapes=images:1x3x32x99", ("--maxShapes", "99 pixels wide")),
        ("--engine rtx --maxShapes=x:1x3x32x32", ("--maxShapes=x:1x3x32x32", "images is the only")),
        (
            "--engine rtx --minShapes=images:999x3x32x32 --maxShapes=images:9x3x32x32",
            ("is larger",),
        ),
        ("--engine rtx --builderOptimizationLevel 7", ("--builderOptimizationLevel 7", "0 to 5")),
        ("--engine rtx --builderOptimizationLevel fast", ("--builderOptimizationLevel", "fast")),
        ("--engine rtx --computeCapabilities 9.0", ("--computeCapabilities 9.0", "--engine trt")),
        (
            "--engine rtx --computeCapabilities 7.5,8.6",
            ("--computeCapabilities 7.5", "--precision fp16", "or leave 7.5 out"),
        ),
        ("--engine rtx --computeCapabilities 8.6,,8.9", ("'8.6,,8.9' has an empty part",)),
        ("--engine rtx --hardwareCompatibility ampere+", ("--hardwareCompatibility is for",)),
        ("--engine rtx --timingCacheFile cache", ("--timingCacheFile is for --engine trt",)),
        ("--engine rtx --temperature 5", ("--temperature changes graphs", "tiny is a bundle")),
        ("--engine rtx --input-type uint8", ("--input-type changes graphs",)),
        ("--engine rtx --precision bf16", ("--precision changes graphs",)),
        ("--engine rtx --check", ("--check proves a model", "tiny is a bundle")),
    ],
)
def test_refusals(
    run: Command, bundle: Path, built: list[PlanRecord], arguments: str, parts: tuple[str, ...]
) -> None:
    before = content(bundle)
    refused(run(bundle, *arguments.split()), *parts)
    assert content(bundle) == before
    assert built == []
    assert list(Path.cwd().iterdir()) == [bundle.absolute()]


def test_a_damaged_bundle(run: Command, bundle: Path, built: list[PlanRecord]) -> None:
    (bundle / "odin.onnx").write_bytes(b"")
    refused(run(bundle, "--engine", "rtx"), "odin.onnx has 0 bytes", "export it again")


def test_ctrl_c_leaves_nothing_behind(
    run: Command, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="install the extra rtx")
    monkeypatch.setattr(plans, "_POLL_SECONDS", 0.01)
    state = plans.Phases.state
    pressed: list[int] = []

    def press(phases: plans.Phases) -> tuple[str, float]:
        if not pressed:
            pressed.append(1)
            signal.raise_signal(signal.SIGINT)
        return state(phases)

    monkeypatch.setattr(plans.Phases, "state", press)
    before = content(bundle)
    outcome = run(bundle, "--engine", "rtx")
    assert outcome.status == 130
    assert outcome.err == "odin-export: interrupted; nothing was left half-written\n"
    assert content(bundle) == before
    assert list(Path.cwd().iterdir()) == [bundle.absolute()]


def test_plans_need_neither_torch_nor_onnx(bundle: Path) -> None:
    """A bundle gets its plans on the machine that runs it."""
    pytest.importorskip("tensorrt_rtx", reason="install the extra rtx")
    code = "import sys; sys.modules.update(dict.fromkeys(('torch', 'onnx', 'onnx_ir'))); "
    code += "from odin_export.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "./tiny", "--engine", "rtx", "--plans", "fused"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=paths())
    assert (done.returncode, done.stderr) == (0, "")
    assert "odin.rtx.plan" in done.stdout


def test_two_at_once(bundle: Path) -> None:
    """The bundle is whole whoever comes last, and nothing else is left."""
    pytest.importorskip("tensorrt_rtx", reason="install the extra rtx")
    code = "import sys; from odin_export.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "./tiny", "--engine", "rtx", "--plans", "fused"]
    both = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=paths()) for _ in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert 0 in [process.returncode for process in both], errors
    for process, error in zip(both, errors, strict=True):
        assert len(error.splitlines()) == (process.returncode != 0), error
    assert [record.file for record in read_bundle(bundle).plans] == ["odin.rtx.plan"]
    assert list(Path.cwd().iterdir()) == [bundle.absolute()]


def paths() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


class Terminal(io.StringIO):
    """Remembers all that was shown."""

    def isatty(self) -> bool:
        return True


def test_the_progress_bar(
    run: Command, bundle: Path, built: list[PlanRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(trt: Any, graph: bytes, record: PlanRecord, *rest: Any) -> bytes:
        progress = rest[-1]
        progress("", 0.0)
        progress("Building Engine", 0.5)
        return b"a plan"

    monkeypatch.setattr(plan_sets, "build_plan", build)
    screen = Terminal()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", screen)
        assert run(bundle, "--engine", "rtx", "--plans", "fused").status == 0
    shown = [" ".join(line.split()) for line in screen.getvalue().split("\r")]
    half = "|" + 15 * "#" + " |"
    assert any(line.startswith("odin.rtx.plan: start | | 0 %") for line in shown), shown
    assert any(line.startswith(f"odin.rtx.plan: building engine {half} 50 %") for line in shown)
    assert shown[-1] == ""  # it is gone at the end
    assert run(bundle, "--engine", "rtx", "--plans", "split").err == ""  # no terminal, no bar


def test_help_tells_every_flag(run: Command) -> None:
    text = run("--help").out
    for flag in (
        *("--engine", "--plans", "--minShapes", "--optShapes", "--maxShapes", "--tf32"),
        *("--timingCacheFile", "--builderOptimizationLevel", "--hardwareCompatibility"),
        "--computeCapabilities",
    ):
        assert flag in text
