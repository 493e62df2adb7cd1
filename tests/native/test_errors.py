"""What the C library says of wrong arguments, of a missing compiler and of a missing driver."""

from __future__ import annotations

import ctypes
import ctypes.util
import re
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from native.toolchain import INCLUDE
from native.twins import PARAMETERS, POINTER, Library, address

OK, NULL_POINTER, MISALIGNED, BAD_SIZE, BAD_TYPE, BAD_VALUE, NO_CUDA, CUDA_FAILED = range(8)
FLOATS = np.ones(4096, np.float32)
BYTES = np.ones(4096, np.uint8)
IMAGES = np.ones(4096, np.float32)
SCORES = np.ones(64, np.float32)
LABELS = np.ones(64, np.int64)
ODD = ctypes.c_void_p(FLOATS.ctypes.data + 1)
TENSORS = {"images", "gradient", "perturbed", "logits", "seed"}  # of the type given

# The names of the parameters after the type, and arguments that are right.
RIGHT: dict[str, dict[str, Any]] = {
    "normalize": {
        "pixels": address(BYTES),
        "images": address(IMAGES),
        "scale": address(FLOATS),
        "offset": address(FLOATS),
        "count": 2,
        "plane": 8,
        "channels": 3,
    },
    "perturb": {
        "images": address(FLOATS),
        "gradient": address(FLOATS),
        "perturbed": address(IMAGES),
        "steps": address(FLOATS),
        "channel_scale": address(FLOATS),
        "low": None,
        "high": None,
        "count": 2,
        "plane": 8,
        "channels": 3,
        "magnitudes": 2,
    },
    "score": {
        "logits": address(FLOATS),
        "score": None,
        "baseline": None,
        "label": address(LABELS),
        "energy": None,
        "seed": None,
        "temperature": 1000.0,
        "seed_scale": 1.0,
        "rows": 3,
        "classes": 10,
    },
    "first_order": {
        "gradient": address(FLOATS),
        "channel_scale": address(FLOATS),
        "probability": address(FLOATS),
        "steps": address(FLOATS),
        "total": None,
        "score": address(SCORES),
        "count": 2,
        "plane": 8,
        "channels": 3,
        "magnitudes": 2,
    },
}
REQUIRED = {
    "normalize": ("pixels", "images", "scale", "offset"),
    "perturb": ("images", "gradient", "perturbed", "steps", "channel_scale"),
    "score": ("logits",),
    "first_order": ("gradient", "channel_scale", "probability", "steps"),
}
ALL = [(function, host) for function in PARAMETERS for host in (True, False)]


@pytest.fixture(scope="module")
def library(host_build: Path) -> Library:
    return Library(host_build / "runtime" / "libodin_kernels.so")


def call(
    library: Library, function: str, host: bool, element: int = 0, **changes: Any
) -> tuple[int, str]:
    """Status and last error of a call with right arguments but for the changes."""
    arguments = [element, *{**RIGHT[function], **changes}.values()]
    name = f"odin_{function}_host" if host else f"odin_{function}"
    status = getattr(library.functions, name)(*arguments, *([] if host else [None]))
    return status, library.last_error() if status else ""


@pytest.mark.parametrize("function", PARAMETERS)
def test_right_arguments_are_right(library: Library, function: str) -> None:
    assert call(library, function, host=True) == (OK, "")


@pytest.mark.parametrize(("function", "host"), ALL)
def test_null_pointers(library: Library, function: str, host: bool) -> None:
    prefix = f"odin_{function}_host" if host else f"odin_{function}"
    for name in REQUIRED[function]:
        status, text = call(library, function, host, **{name: None})
        assert (status, text) == (NULL_POINTER, f"{prefix}: {name} is null")


@pytest.mark.parametrize(("function", "host"), ALL)
def test_negative_sizes(library: Library, function: str, host: bool) -> None:
    sizes = {"count", "plane", "channels", "magnitudes", "rows", "classes"}
    for name in sizes & set(RIGHT[function]):
        status, text = call(library, function, host, **{name: -1})
        assert status == BAD_SIZE
        assert f"{name} is -1" in text


@pytest.mark.parametrize(("function", "host"), ALL)
def test_sizes_whose_product_overflows(library: Library, function: str, host: bool) -> None:
    size = {"score": {"rows": 2**40, "classes": 2**40}}
    changes = size.get(function, {"count": 2**40, "plane": 2**40})
    status, text = call(library, function, host, **changes)
    assert status == BAD_SIZE
    assert "63 bits" in text


@pytest.mark.parametrize(("function", "host"), ALL)
@pytest.mark.parametrize("element", [-1, 3, 2**31 - 1])
def test_unknown_types(library: Library, function: str, host: bool, element: int) -> None:
    status, text = call(library, function, host, element)
    assert status == BAD_TYPE
    assert f"type is {element}" in text


@pytest.mark.parametrize(("function", "host"), ALL)
def test_pointers_between_elements(library: Library, function: str, host: bool) -> None:
    """Pointers come first among the parameters; pixels are bytes, so any address is theirs."""
    names = list(RIGHT[function])[: PARAMETERS[function].count(POINTER)]
    for name in set(names) - {"pixels"}:
        both = {"low": address(FLOATS)} if name == "high" else {}
        for element, tensor_bytes in ((0, 4), (1, 2), (2, 2)):
            size = tensor_bytes if name in TENSORS else {"label": 8}.get(name, 4)
            status, text = call(library, function, host, element, **both, **{name: ODD})
            assert status == MISALIGNED
            assert f"{name} is not at a multiple of {size} bytes" in text


@pytest.mark.parametrize("host", [True, False])
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf"), 1e-40])
def test_temperatures(library: Library, host: bool, temperature: float) -> None:
    status, text = call(library, "score", host, temperature=temperature)
    assert status == BAD_VALUE
    assert "temperature" in text


@pytest.mark.parametrize("host", [True, False])
def test_other_values(library: Library, host: bool) -> None:
    assert call(library, "score", host, seed_scale=float("nan"))[0] == BAD_VALUE
    assert call(library, "score", host, classes=0)[0] == BAD_SIZE
    assert call(library, "perturb", host, low=address(FLOATS))[0] == NULL_POINTER
    assert call(library, "perturb", host, high=address(FLOATS))[0] == NULL_POINTER


@pytest.mark.parametrize(("function", "host"), ALL)
def test_empty_tensors_may_be_null(library: Library, function: str, host: bool) -> None:
    nothing = dict.fromkeys(REQUIRED[function])
    empty = {"rows": 0} if function == "score" else {"count": 0}
    assert call(library, function, host, **nothing, **empty) == (OK, "")


@pytest.mark.parametrize(("function", "host"), ALL)
def test_empty_tensors_are_checked_too(library: Library, function: str, host: bool) -> None:
    """So that a wrong call does not wait for its first batch to be noticed."""
    changes = {"rows": 0, "classes": -1} if function == "score" else {"count": 0, "plane": -1}
    assert call(library, function, host, **changes)[0] == BAD_SIZE
    assert call(library, function, host, 3, **changes)[0] == BAD_TYPE


def test_images_without_elements_have_a_first_order_score(library: Library) -> None:
    """Zero pixels: the total is 0, the score the probability, as the kernel gives it."""
    changes = {"gradient": None, "channel_scale": None, "plane": 0}
    SCORES[:] = 7
    assert call(library, "first_order", True, **changes)[0] == OK
    np.testing.assert_array_equal(SCORES[:5], [1, 1, 1, 1, 7])


@pytest.mark.parametrize("function", PARAMETERS)
def test_launching_without_the_compiler(library: Library, function: str) -> None:
    status, text = call(library, function, host=False)
    assert status == NO_CUDA
    assert "built without nvcc" in text
    assert f"odin_{function}_host" in text


@pytest.mark.parametrize("function", PARAMETERS)
def test_launching_without_a_driver(cuda_build: Path, function: str) -> None:
    if ctypes.util.find_library("cuda"):
        pytest.skip("there is a driver; tests/gpu/test_c_library.py launches the kernels")
    library = Library(cuda_build / "runtime" / "libodin_kernels.so")
    assert library.functions.odin_has_cuda() == 1
    status, text = call(library, function, host=False)
    assert status == CUDA_FAILED
    assert re.match(
        rf"odin_{function}: the launch, or work before it, failed: cudaError\w+: \w+", text
    )
    assert call(library, function, host=True) == (OK, "")


def test_every_status_has_its_text(library: Library) -> None:
    header = (INCLUDE / "odin" / "kernels.h").read_text("utf-8")
    block = header[header.index("typedef int32_t odin_status") :]
    statuses = [int(value) for value in re.findall(r"ODIN_\w+ = (\d+)", block[: block.index("}")])]
    assert statuses == list(range(8))
    texts = {library.status_text(status) for status in statuses}
    assert len(texts) == len(statuses)
    assert library.status_text(8) == library.status_text(-1) == "unknown status"
    assert "unknown status" not in texts


def test_errors_are_each_threads_own(library: Library) -> None:
    call(library, "normalize", True, count=-5)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(library.last_error()))
    thread.start()
    thread.join()
    assert seen == [""]
    assert "count is -5" in library.last_error()


def test_version(library: Library) -> None:
    header = (INCLUDE / "odin" / "kernels.h").read_text("utf-8")
    major, minor, patch = (
        int(value) for value in re.findall(r"#define ODIN_VERSION_\w+ (\d+)", header)
    )
    assert library.functions.odin_version() == 10000 * major + 100 * minor + patch
    root = INCLUDE.parent.parent
    assert f'version = "{major}.{minor}.{patch}"' in (root / "pyproject.toml").read_text("utf-8")
    assert f"VERSION {major}.{minor}.{patch}" in (root / "CMakeLists.txt").read_text("utf-8")


@pytest.mark.parametrize("build", ["host_build", "cuda_build"])
def test_only_the_api_is_exported(build: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(build)
    command = ["nm", "-D", "--defined-only", folder / "runtime" / "libodin_kernels.so"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    exported = {line.split()[-1] for line in lines}
    header = (INCLUDE / "odin" / "kernels.h").read_text("utf-8")
    declared = set(re.findall(r"ODIN_API [\w ]+?\*? ?(odin_\w+)\(", header))
    assert len(declared) == 12
    assert exported == declared
