"""The host twins under the address and the undefined-behaviour sanitizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from native.toolchain import INCLUDE, KERNELS, SOURCES, attempt, cxx, run

PLAIN = ("-std=c++17", "-Wall", "-Wextra", "-ffp-contract=off")
SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
INCLUDES = [f"-I{folder}" for folder in (INCLUDE, KERNELS, SOURCES)]
TEST = Path(__file__).with_name("sanitize.cpp")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver program, linked with the library's own sources."""
    compiler = cxx()
    folder = tmp_path_factory.mktemp("sanitize")
    empty = folder / "empty.cpp"
    empty.write_text("int main() { return 0; }\n", "utf-8")
    probe = attempt([compiler, *PLAIN, *SANITIZED, empty, "-o", folder / "empty"])
    if probe.returncode != 0:
        pytest.skip(f"the C++ compiler has no sanitizers: {probe.stdout.strip()[:200]}")
    sources = [SOURCES / f"{name}.cpp" for name in ("api", "status", "no_cuda")]
    program = folder / "driver"
    run([compiler, *PLAIN, *SANITIZED, *INCLUDES, TEST, *sources, "-o", program])
    return program


def test_no_byte_outside_and_nothing_undefined(
    driver: Path, host_build: Path, tmp_path: Path
) -> None:
    """And the results are those of the library as CMake builds it."""
    printed = run([driver])
    assert int(printed.split()[0]) > 30_000
    plain, library = tmp_path / "plain", host_build / "runtime"
    linked = [library / "libodin_kernels.so", f"-Wl,-rpath,{library}"]
    run([cxx(), *PLAIN, *INCLUDES, TEST, *linked, "-o", plain])
    assert run([plain]) == printed


def test_the_sanitizer_notices_one_element_too_many(driver: Path) -> None:
    done = attempt([driver, "overrun"])
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stdout
    assert "normalize" in done.stdout


def test_the_sanitizer_notices_what_is_undefined(driver: Path) -> None:
    done = attempt([driver, "overflow"])
    assert done.returncode != 0
    assert "first_order.cuh" in done.stdout
    assert "signed integer overflow" in done.stdout
