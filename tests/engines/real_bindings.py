"""NVIDIA's own Python bindings of TensorRT, without TensorRT.

The package index has the bindings alone (1 MB); the libraries that they need come from elsewhere
and need gigabytes. Stub libraries with the nine C functions that the bindings link to stand in for
them: every class, method and flag is then there to be looked at, and nothing can be run.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = "tensorrt-cu13-bindings"
FUNCTIONS = """
createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL
createNvOnnxParserRefitter_INTERNAL createNvOnnxParser_INTERNAL getBuilderPluginRegistry
getNvOnnxParserVersion getPluginRegistry initLibNvInferPlugins
"""
# Prints those of the dotted names on standard input that the module does not have.
_LOOK = """
import functools, json, sys
import tensorrt_bindings
def has(path):
    try:
        functools.reduce(getattr, path.split("."), tensorrt_bindings)
    except AttributeError:
        return False
    return True
names = json.load(sys.stdin)
print(json.dumps([tensorrt_bindings.__version__, [name for name in names if not has(name)]]))
"""


@dataclass(frozen=True)
class Bindings:
    """Bindings of one version, unpacked, and the stub libraries beside them."""

    version: str
    package: Path
    libraries: Path

    def run(self, *command: str, text: str = "") -> str:
        """Run a command that imports `tensorrt_bindings`; return what it printed."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.package),
            "LD_LIBRARY_PATH": str(self.libraries),
        }
        done = subprocess.run(
            command, input=text, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def lacks(self, names: list[str]) -> list[str]:
        """Those of the names, such as "Builder.create_network", that do not exist."""
        version, missing = json.loads(self.run(sys.executable, "-c", _LOOK, text=json.dumps(names)))
        assert version == self.version
        return missing

    def write_stubs(self, folder: Path) -> None:
        """Write type stubs for `tensorrt`, made from the signatures in the bindings."""
        module = "tensorrt_bindings.tensorrt"
        made = folder / "made"
        generator = "import sys; from mypy.stubgen import main; main(sys.argv[1:])"
        options = ["--inspect-mode", "--quiet", "-m", module, "-o", str(made)]
        self.run(sys.executable, "-c", generator, *options)
        text = (made / "tensorrt_bindings" / "tensorrt.pyi").read_text("utf-8")
        (folder / "tensorrt").mkdir()
        (folder / "tensorrt" / "__init__.pyi").write_text(_mended(text), "utf-8")
        shutil.rmtree(made)


def bindings(version: str, folder: Path) -> Bindings:
    """Get the bindings of a version into a folder, or skip the test and say what is missing."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler (cc) for libraries that stand in for TensorRT's")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder)]
    command += ["--only-binary", ":all:", "--disable-pip-version-check", f"{PACKAGE}=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"needs {PACKAGE} {version} from a package index: {done.stderr[-200:]}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "package")
    source = folder / "stubs.c"
    source.write_text(
        "".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS.split())
    )
    libraries = folder / "libraries"
    libraries.mkdir()
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        library = libraries / f"lib{name}.so.{version.partition('.')[0]}"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return Bindings(version, folder / "package", libraries)


def _mended(text: str) -> str:
    """Leave out what Python or mypy cannot read: one misspelt signature, and values named bool."""
    kept = []
    for line in text.splitlines():
        if re.fullmatch(r"\w+: DataType", line):
            continue
        if line.lstrip().startswith("def ") and not _parses(line.strip()):
            continue
        kept.append(line)
    return "\n".join(kept) + "\n"


def _parses(line: str) -> bool:
    try:
        ast.parse(line)
    except SyntaxError:
        return False
    return True
