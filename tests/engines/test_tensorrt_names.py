"""Every name of TensorRT that our source uses exists in NVIDIA's bindings, and is used as typed.

TensorRT 10 and 11 cannot run here, and TensorRT for RTX differs from both. Their bindings alone can
be looked at (real_bindings.py): names are looked up in the modules themselves, and mypy checks our
source against stubs generated from the signatures in them.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engines.names_used import names_used
from engines.real_bindings import Bindings, bindings
from odin_engines import plan

SOURCES = Path(plan.__file__).parent
FILES = ("plan.py", "plans.py", "plan_messages.py", "plan_sets.py", "tensorrt_engine.py")
VERSIONS = ("11.4.0.106", "10.16.1.11")
# What TensorRT itself has not; our source uses it with TensorRT for RTX only.
RTX_ALONE = {
    "BuilderFlag.REQUIRE_USER_ALLOCATION",
    "ComputeCapability",
    "ComputeCapability.__members__",
    "DynamicShapesKernelSpecializationStrategy",
    "DynamicShapesKernelSpecializationStrategy.EAGER",
    "IExecutionContext.is_stream_capturable",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
}


def all_names() -> set[str]:
    used = {name for file in FILES for name in names_used(SOURCES / file)}
    return used | {f"DataType.{name}" for name in plan._DTYPES}


@pytest.fixture(scope="module", params=VERSIONS)
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bindings:
    return bindings(request.param, tmp_path_factory.mktemp("bindings"))


def test_names_are_read_off_the_source(tmp_path: Path) -> None:
    file = tmp_path / "source.py"
    file.write_text(
        """
class Keeper:
    def __init__(self, trt, engine: tensorrt.ICudaEngine):
        self._trt, self._engine = trt, engine
        context: tensorrt.IExecutionContext = engine.make_one()
        self._context = context
    def run(self):
        return self._context.run_it(self._trt.Mode.FAST)
def build(trt, config: tensorrt_rtx.IConfig | None):
    class Monitor(trt.IMonitor):
        def told(self): pass
    flags = trt.Flags
    config.set(flags.ONE)
    tensors: list[tensorrt.ITensor] = []
    return lambda: [tensor.title for tensor in tensors]
"""
    )
    assert names_used(file) == {
        *("ICudaEngine", "ICudaEngine.make_one", "IExecutionContext", "IExecutionContext.run_it"),
        *("Mode", "Mode.FAST", "IConfig", "IConfig.set", "IMonitor", "IMonitor.told"),
        *("Flags", "Flags.ONE", "ITensor", "ITensor.title"),
    }


def test_the_source_uses_what_a_plan_takes() -> None:
    """Building and running: or reading names off the source has gone blind."""
    names = all_names()
    assert len(names) > 70
    for name in (
        *("OnnxParser.parse", "ParserError.node_name", "IProgressMonitor.step_complete"),
        *("Builder.build_serialized_network", "IBuilderConfig.progress_monitor", "ILogger.log"),
        *("ITimingCache.serialize", "IOptimizationProfile.set_shape", "BuilderFlag.TF32"),
        *("NetworkDefinitionCreationFlag.STRONGLY_TYPED", "ITensor.name", *RTX_ALONE),
        *("Runtime.deserialize_cuda_engine", "IExecutionContext.execute_async_v3"),
        *("IExecutionContext.set_device_memory", "ICudaEngine.create_execution_context"),
        *("ExecutionContextAllocationStrategy.USER_MANAGED", "ICudaEngine.device_memory_size_v2"),
        *("IRuntimeConfig.set_execution_context_allocation_strategy", "ICudaEngine.num_io_tensors"),
        *("IExecutionContext.set_tensor_address", "ICudaEngine.get_tensor_profile_shape"),
    ):
        assert name in names


def test_every_file_that_uses_it_is_looked_at() -> None:
    found = {file.name for file in SOURCES.glob("*.py") if names_used(file)}
    assert found == set(FILES)


def test_names_exist(real: Bindings) -> None:
    names = all_names()
    assert real.lacks(sorted(names - RTX_ALONE)) == []
    assert set(real.lacks(sorted(RTX_ALONE))) == RTX_ALONE
    # What 11 has no longer is found missing there, and only there.
    gone = ["BuilderFlag.FP16", "NetworkDefinitionCreationFlag.EXPLICIT_BATCH"]
    assert real.lacks(gone) == (gone if real.version.startswith("11") else [])


def test_names_exist_in_tensorrt_for_rtx() -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="install the extra rtx")
    for name in all_names():
        functools.reduce(getattr, name.split("."), rtx)


# What mypy has to find, each put in place of the correct line in one file.
WRONG = {
    "a method of an older version": ("plan.py", ".execute_async_v3(", ".execute_async_v2("),
    "a size forgotten": (
        "plan.py",
        ".set_device_memory(work, self.work_bytes)",
        ".set_device_memory(work)",
    ),
    "arguments swapped": (
        "plan.py",
        ".set_tensor_address(name, address)",
        ".set_tensor_address(address, name)",
    ),
    "an argument too many": (
        "plans.py",
        "builder.create_network(flags)",
        "builder.create_network(flags, 0)",
    ),
    "an argument too few": (
        "plans.py",
        ".set_timing_cache(cache, False)",
        ".set_timing_cache(cache)",
    ),
    "an attribute that was renamed": (
        "plan.py",
        ".device_memory_size_v2",
        ".device_memory_size_v3",
    ),
    "a property called": ("plans.py", "parser.num_errors:", "parser.num_errors():"),
}


def test_types_fit(real: Bindings, tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    real.write_stubs(tmp_path)
    package = tmp_path / "source" / "odin_engines"
    shutil.copytree(SOURCES, package, ignore=shutil.ignore_patterns("__pycache__"))
    assert mypy(tmp_path) == ""
    for number, (what, (name, right, wrong)) in enumerate(WRONG.items()):
        file = package / name
        text = file.read_text("utf-8")
        assert text.count(right) == 1, what
        file.write_text(text.replace(right, wrong), "utf-8")
        # As long as before and written in the same second: mypy would take its cache for fresh.
        os.utime(file, (number, number))
        assert f"{name}:" in mypy(tmp_path), what
        file.write_text(text, "utf-8")


def mypy(folder: Path) -> str:
    """Check the copy of our source; return the errors in it."""
    settings = folder / "mypy.ini"
    settings.write_text(
        f"[mypy]\nmypy_path = {folder}:{folder / 'source'}\ncheck_untyped_defs = True\n"
        "[mypy-tensorrt.*]\nignore_errors = True\n"
        "[mypy-tensorrt_rtx.*]\nignore_missing_imports = True\n"
    )
    modules = [f"-modin_engines.{Path(name).stem}" for name in FILES]
    command = [sys.executable, "-m", "mypy", f"--config-file={settings}", "--no-error-summary"]
    command += [f"--cache-dir={folder / 'cache'}", *modules]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return "".join(line for line in done.stdout.splitlines(True) if line.startswith("source"))
