"""Imports point one way, light modules stay light, files stay short."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "odin_engines": ROOT / "engines" / "odin_engines",
    "odin_export": ROOT / "export" / "odin_export",
    "odin_runtime": ROOT / "runtime" / "odin_runtime",
    "odin_bench": ROOT / "bench" / "odin_bench",
}
ALLOWED = {
    "odin_engines": set(),
    "odin_export": {"odin_engines"},
    "odin_runtime": {"odin_engines"},
    "odin_bench": {"odin_engines", "odin_export", "odin_runtime"},
}
HEAVY = (
    "torch",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "cuda",
    "pycuda",
    "sklearn",
    "matplotlib",
)
LIGHT_MODULES = (
    "odin_runtime",
    "odin_runtime.driver",
    "odin_runtime.scorer",
    "odin_runtime.score_cli",
    "odin_runtime.gpu_scorer",
    "odin_runtime.gpu_results",
    "odin_runtime.gpu_dlpack",
    "odin_runtime.driver_memory",
    "odin_engines.bundle",
    "odin_engines.engine",
    "odin_export.cli",
    "odin_bench.cli",
    "odin_bench.grid",
)
MOST_LINES = 450


def sources(package: str) -> list[Path]:
    return sorted(PACKAGES[package].rglob("*.py"))


def imported(file: Path) -> Iterator[str]:
    """Top-level names of everything that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            yield str(node.module).partition(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    forbidden = set(PACKAGES) - ALLOWED[package] - {package}
    files = sources(package)
    assert files
    wrong = [(file.name, name) for file in files for name in imported(file) if name in forbidden]
    assert not wrong


def test_the_parser_sees_imports_inside_functions(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text("import a.b\ndef f():\n    from odin_bench.cli import main\n")
    assert list(imported(file)) == ["a", "odin_bench"]


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_importing_loads_nothing_heavy(module: str) -> None:
    paths = [str(folder.parent) for folder in PACKAGES.values()]
    code = f"import sys; sys.path[:0] = {paths}; import {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = done.stdout.split()
    assert module in loaded
    assert set(loaded).isdisjoint(HEAVY)


@pytest.mark.parametrize("package", PACKAGES)
def test_files_are_short(package: str) -> None:
    lengths = {file.name: len(file.read_text("utf-8").splitlines()) for file in sources(package)}
    assert {name: n for name, n in lengths.items() if n >= MOST_LINES} == {}
