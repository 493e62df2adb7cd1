"""Asking the driver, on a library that stands in for it and says so in its devices' names."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import odin_engines
from odin_engines.cuda_probe import Device, Driver, ask_driver, version_text

# Everything that the probe may call, with signatures as in cuda.h; each call is told on stderr.
STAND_IN = r"""
#include <stdio.h>
#include <string.h>
#ifndef INIT
#define INIT 0
#endif
#ifndef COUNT
#define COUNT 2
#endif
#ifndef NAMING
#define NAMING 0
#endif
static int told(const char *name, int status) { fprintf(stderr, "%s\n", name); return status; }
int cuInit(unsigned flags) { return told("cuInit", flags ? 1 : INIT); }
int cuDriverGetVersion(int *version) { *version = 13020; return told("cuDriverGetVersion", 0); }
int cuDeviceGetCount(int *count) { *count = COUNT; return told("cuDeviceGetCount", 0); }
int cuDeviceGet(int *device, int index) { *device = 40 + index; return told("cuDeviceGet", 0); }
int cuDeviceGetName(char *name, int size, int device) {
  snprintf(name, size, "stand-in of the tests %d", device - 40);
  return told("cuDeviceGetName", NAMING);
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) {
  *bytes = (size_t)(device - 39) * 24 << 30;
  return told("cuDeviceTotalMem_v2", 0);
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  int second = device - 40;
  *value = attribute == 16 ? 58 + second : attribute == 75 ? 8 + second : attribute == 76 ? 9 : -1;
  return told("cuDeviceGetAttribute", 0);
}
int cuGetErrorName(int status, const char **name) {
  *name = status == 803 ? "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" : status == 999 ? "CUDA_ERROR_UNKNOWN"
        : status == 34 ? "CUDA_ERROR_STUB_LIBRARY" : 0;
  return told("cuGetErrorName", *name ? 0 : 1);
}
"""
HARMLESS = {
    *("cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName"),
    *("cuDeviceTotalMem_v2", "cuDeviceGetAttribute", "cuGetErrorName"),
}
PROBE = """
import dataclasses, json
from odin_engines.cuda_probe import ask_driver
print(json.dumps(dataclasses.asdict(ask_driver())))
"""
Probe = Callable[..., tuple[dict[str, Any], list[str]]]


@pytest.fixture
def probe(tmp_path: Path) -> Probe:
    """A function: source, definitions -> the probe's answer, and what it called."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")

    def run(source: str = STAND_IN, *definitions: str) -> tuple[dict[str, Any], list[str]]:
        (tmp_path / "cuda.c").write_text(source)
        library = str(tmp_path / "libcuda.so.1")
        flags = [f"-D{definition}" for definition in definitions]
        command = [compiler, "-shared", "-fPIC", *flags, "cuda.c", "-o", library]
        subprocess.run(command, check=True, cwd=tmp_path, timeout=60)
        return ask(tmp_path)

    return run


def ask(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Probe in a new process that finds the driver's library in a folder."""
    packages = str(Path(str(odin_engines.__file__)).parent.parent)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": packages}
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(done.stdout), done.stderr.split()


def test_devices(probe: Probe) -> None:
    found, calls = probe()
    assert found == {
        "version": 13020,
        "problem": None,
        "devices": [
            {
                "name": f"stand-in of the tests {index}",
                "compute_capability": [8 + index, 9],
                "memory": (index + 1) * 24 * 2**30,
                "multiprocessors": 58 + index,
            }
            for index in range(2)
        ],
    }
    assert calls.count("cuInit") == 1
    assert set(calls) - {"cuInit"} <= HARMLESS


@pytest.mark.parametrize(
    ("definition", "problem"),
    [
        (
            "COUNT=0",
            "the NVIDIA driver shows no GPU (look at nvidia-smi and CUDA_VISIBLE_DEVICES)",
        ),
        (
            "INIT=100",
            "the NVIDIA driver shows no GPU (look at nvidia-smi and CUDA_VISIBLE_DEVICES)",
        ),
        (
            "INIT=803",
            "the NVIDIA driver does not start (CUDA_ERROR_SYSTEM_DRIVER_MISMATCH; its library and "
            "its kernel module have different versions: restart the machine)",
        ),
        (
            "INIT=34",
            "the NVIDIA driver does not start (CUDA_ERROR_STUB_LIBRARY; the CUDA toolkit's stub "
            "was found in its place: take its folder off LD_LIBRARY_PATH)",
        ),
        (
            "INIT=999",
            "the NVIDIA driver does not start (CUDA_ERROR_UNKNOWN; look at nvidia-smi)",
        ),
        ("INIT=12345", "the NVIDIA driver does not start (error 12345; look at nvidia-smi)"),
        (
            "NAMING=999",
            "the NVIDIA driver fails in cuDeviceGetName (CUDA_ERROR_UNKNOWN; look at nvidia-smi)",
        ),
    ],
)
def test_what_is_wrong(probe: Probe, definition: str, problem: str) -> None:
    found, _ = probe(STAND_IN, definition)
    assert found == {"version": 13020, "devices": [], "problem": problem}


def test_another_library_of_that_name(probe: Probe) -> None:
    found, _ = probe("int nothing(void) { return 0; }")
    assert (found["version"], found["devices"]) == (0, [])
    assert found["problem"].startswith("libcuda.so.1 is not NVIDIA's driver (")
    assert "cuDriverGetVersion" in found["problem"]


def test_a_driver_cut_short(tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").write_bytes(b"\x7fELF")
    found, _ = ask(tmp_path)
    assert found["problem"].startswith("NVIDIA's driver library does not load (")
    assert "libcuda.so.1: " in found["problem"]


def test_without_a_driver() -> None:
    name = "libodin_no_such_driver.so.1"
    assert ask_driver(name) == Driver(0, (), "no NVIDIA driver (libcuda.so.1) is found")


def test_text_of_versions() -> None:
    assert version_text(12040) == "12.4"
    assert Driver(13000, (), None).version_text == "13.0"
    device = Device("a name", (12, 1))
    assert device.capability_text == "12.1"
    assert dataclasses.replace(device, compute_capability=(8, 6)).capability_text == "8.6"
