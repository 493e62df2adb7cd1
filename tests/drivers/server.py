"""Runs scenarios against the test double, each in a forked process of its own.

Started with the double in LD_LIBRARY_PATH. A request is a line of JSON: file and function of the
scenario, the driver's name, options of the double and where to write the answer. The packages are
imported once, before any CUDA call; so a scenario costs a fork and not an import.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from drivers.double_library import Double

SECONDS = 60
WARM = ("odin_runtime.cuda_core_driver", "odin_runtime.pycuda_driver", "cuda.core", "pycuda.driver")


def load(file: str) -> ModuleType:
    """Import a test file."""
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def answer(request: dict[str, Any], module: ModuleType) -> dict[str, Any]:
    """Run the scenario."""
    double = Double()
    double.configure(**request["options"])
    double.files = {name: Path(path) for name, path in request["files"].items()}
    result, failure = None, None
    try:
        result = getattr(module, request["function"])(double, request["driver"])
    except Exception:  # noqa: BLE001 - told to the test, which fails with it
        failure = traceback.format_exc()
    log = double.log()
    gc.collect()
    return {
        "result": result,
        "failure": failure,
        "log": log,
        "errors": double.errors(),
        "leaks": double.leaks(),
        "faults": double.faults,
    }


def serve_one(request: dict[str, Any], module: ModuleType) -> int:
    """Fork, run, wait; return the child's status."""
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)  # what a scenario prints is not an answer
        faulthandler.enable()
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        status = 1
        try:
            Path(request["answer"]).write_text(json.dumps(answer(request, module)))
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    """Answer requests until the input ends."""
    for name in WARM:
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            importlib.import_module(name)
    modules: dict[str, ModuleType] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if request["file"] not in modules:
            modules[request["file"]] = load(request["file"])
        print(serve_one(request, modules[request["file"]]), flush=True)


if __name__ == "__main__":
    main()
