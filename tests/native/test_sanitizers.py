"""The host twins under the address and the undefined-behaviour sanitizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from native.toolchain import INCLUDE, KERNELS, SOURCES, attempt, cxx, run

FLAGS = (
    "-std=c++17",
    "-O1",
    "-g",
    "-Wall",
    "-Wextra",
    "-ffp-contract=off",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver program, linked with the library's own sources."""
    compiler = cxx()
    folder = tmp_path_factory.mktemp("sanitize")
    empty = folder / "empty.cpp"
    empty.write_text("int main() { return 0; }\n", "utf-8")
    probe = attempt([compiler, *FLAGS, empty, "-o", folder / "empty"])
    if probe.returncode != 0:
        pytest.skip(f"the C++ compiler has no sanitizers: {probe.stdout.strip()[:200]}")
    sources = [SOURCES / f"{name}.cpp" for name in ("api", "status", "no_cuda")]
    includes = [f"-I{folder}" for folder in (INCLUDE, KERNELS, SOURCES)]
    program = folder / "driver"
    test = Path(__file__).with_name("sanitize.cpp")
    run([compiler, *FLAGS, *includes, test, *sources, "-o", program])
    return program


def test_no_byte_outside_and_nothing_undefined(driver: Path) -> None:
    printed = run([driver])
    assert int(printed.split()[0]) > 30_000


def test_the_sanitizer_notices_one_element_too_many(driver: Path) -> None:
    done = attempt([driver, "overrun"])
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stdout
    assert "normalize" in done.stdout
