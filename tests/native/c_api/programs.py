"""Programs that use libodin: how they are built, and what they print."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from native.toolchain import attempt, cmake, cxx, generator, run
from odin_engines.bundle import Bundle, write_calibration
from odin_engines.calibration import Calibration
from odin_runtime import Scorer
from odin_runtime.scores import Scores

HERE = Path(__file__).parent
WARNINGS = ("-Wall", "-Wextra", "-pedantic", "-Werror")
FLAGS = {".c": ("-std=c11", *WARNINGS), ".cpp": ("-std=c++17", "-pthread", *WARNINGS)}
CMAKE = """
cmake_minimum_required(VERSION 3.20)
project(programs LANGUAGES C CXX)
set(CMAKE_C_STANDARD 11)
set(CMAKE_CXX_STANDARD 17)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_CXX_EXTENSIONS OFF)
find_package(odin 0.1 REQUIRED)
find_package(Threads REQUIRED)
message(STATUS "scorer: ${odin_HAS_SCORER}; OpenVINO: ${odin_HAS_OPENVINO}")
message(STATUS "TensorRT: ${odin_HAS_TENSORRT}")
add_compile_options(-Wall -Wextra -pedantic -Werror)
add_executable(c_program program.c)
target_link_libraries(c_program PRIVATE odin::odin)
add_executable(cpp_program program.cpp)
target_link_libraries(cpp_program PRIVATE odin::odin Threads::Threads)
add_executable(both both.c)
target_link_libraries(both PRIVATE odin::kernels odin::odin)
"""


@dataclass(frozen=True)
class Programs:
    """The C and the C++ program, and what has to be set to run them."""

    c: Path
    cpp: Path
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def gpu(self) -> Path:
        """The program that scores on the doubles of CUDA and TensorRT, where it was built."""
        return self.cpp.with_name("gpu")

    def attempt(self, program: Path, *arguments: object, **more: str) -> Any:
        """Run one of the two; it may fail."""
        command = [str(program), *map(str, arguments)]
        return attempt(command, timeout=120, **{**dict(self.environment), **more})

    def run(self, program: Path, *arguments: object) -> str:
        """Run one of the two; what it printed."""
        return run([str(program), *map(str, arguments)], timeout=120, **dict(self.environment))


@dataclass(frozen=True)
class Found:
    """What a program printed of a bundle and of images.

    Attributes:
        info: lines on the bundle; of the C program.
        rows: score, baseline, label, decision and percentile (-1: none) and, of the C program,
            logits; float64.
        last: of the C++ program: difference between threads, bytes not freed, bytes, lines of log.
    """

    info: list[str]
    rows: np.ndarray
    last: list[float]


def build_with_cmake(folder: Path, prefix: Path) -> Programs:
    """Build the programs against an installed tree, by find_package."""
    c_compiler()
    folder.mkdir(exist_ok=True)
    (folder / "CMakeLists.txt").write_text(CMAKE, "utf-8")
    for name in ("program.c", "program.cpp", "both.c"):
        shutil.copy(HERE / name, folder)
    build = folder / "build"
    flags = [f"-DCMAKE_CXX_COMPILER={cxx()}", f"-DCMAKE_PREFIX_PATH={prefix}"]
    said = run([cmake(), "-S", folder, "-B", build, *generator(), *flags])
    assert "scorer: ON; OpenVINO: ON" in said
    assert "TensorRT: OFF" in said
    run([cmake(), "--build", build])
    return Programs(build / "c_program", build / "cpp_program")


def build(
    folder: Path,
    flags: Sequence[str],
    environment: Sequence[tuple[str, str]] = (),
    names: Sequence[str] = ("program.c", "program.cpp"),
) -> Programs:
    """Compile the programs with the compilers alone, with these flags beside their own."""
    compilers = {".c": c_compiler(), ".cpp": cxx()}
    for name in names:
        suffix = Path(name).suffix
        stem = Path(name).stem
        target = folder / (f"program_{suffix[1:]}" if stem == "program" else stem)
        run([compilers[suffix], *FLAGS[suffix], HERE / name, "-o", target, *flags])
    return Programs(folder / "program_c", folder / "program_cpp", tuple(environment))


def c_compiler() -> Path:
    """The path of a C compiler, or the test is skipped."""
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if found is None:
        pytest.skip("no C compiler is found; install gcc")
    return Path(found)


def write_images(folder: Path, images: np.ndarray) -> list[object]:
    """Write images for the C program; its arguments that tell of them."""
    file = folder / "images.raw"
    images.tofile(file)
    raw = images.dtype == np.uint8
    count, height, width = (len(images), *(images.shape[1:3] if raw else images.shape[2:]))
    return [file, "u8" if raw else "f32", count, height, width]


def score_in_c(programs: Programs, bundle: Path, images: np.ndarray, folder: Path) -> Found:
    """Score images with the C program."""
    printed = programs.run(programs.c, "score", bundle, *write_images(folder, images))
    lines = printed.splitlines()
    assert len(lines) == 4 + len(images), printed
    return Found(lines[:4], table(lines[4:]), [])


def score_in_cpp(
    programs: Programs,
    bundle: Path,
    images: np.ndarray,
    folder: Path,
    *,
    threads: int = 8,
    rounds: int = 5,
    streams: int = 1,
    batch_size: int = 0,
    cache: str = "",
) -> Found:
    """Score raw images with the C++ program."""
    file, _, *sizes = write_images(folder, images)
    settings = (threads, rounds, streams, batch_size, cache)
    printed = programs.run(programs.cpp, bundle, file, *sizes, *settings)
    lines = printed.splitlines()
    assert len(lines) == len(images) + 1, printed
    return Found([], table(lines[:-1]), list(map(float, lines[-1].split())))


def table(lines: list[str]) -> np.ndarray:
    """Numbers in lines, float64 (lines, numbers)."""
    return np.array([list(map(float, line.split())) for line in lines])


def assert_same_scores(
    found: Found, bundle: Bundle, images: np.ndarray, scores: Scores | None = None
) -> None:
    """That they are those of Python's scorer on the same engine: `scores`, if they are known."""
    wanted = scores or Scorer.open(bundle, "openvino", precision="fp32").score(images)
    np.testing.assert_allclose(found.rows[:, 0], wanted.score, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.rows[:, 1], wanted.baseline, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found.rows[:, 2], wanted.label)
    if bundle.calibration is not None:
        near = np.abs(wanted.score - np.float32(bundle.calibration.threshold)) < 1e-6
        agree = found.rows[:, 3] == wanted.is_ood
        assert (agree | near).all()
        assert set(found.rows[:, 3]) == {0, 1}
        percentiles = bundle.calibration.percentile(found.rows[:, 0].astype(np.float32))
        np.testing.assert_allclose(found.rows[:, 4], percentiles, rtol=0, atol=1e-6)
    else:
        assert set(found.rows[:, 3]) == set(found.rows[:, 4]) == {-1}


def calibrated(make_bundle: Callable[..., Bundle], images: np.ndarray, **changes: object) -> Bundle:
    """The tiny network's bundle, with a threshold in the midst of the scores.

    Args:
        make_bundle: makes the bundle.
        images: to score.
        changes: of the calibration.
    """
    bundle = make_bundle()
    scores = Scorer.open(bundle, "openvino").score(images).score
    return write_calibration(bundle, calibration_of(bundle, scores, **changes))


def calibration_of(bundle: Bundle, scores: np.ndarray, **changes: object) -> Calibration:
    """A calibration by scores, with a threshold in their midst; `changes` are of its fields."""
    ordered = np.sort(scores).astype(float)
    threshold = float(np.median(ordered))
    fields: dict[str, Any] = {
        "threshold": threshold,
        "tpr": 0.5,
        "interval": (threshold, threshold),
        "images": len(ordered),
        "quantiles": tuple(ordered.tolist()),
        "dataset": "blocks",
        "pixels": "as they are",
        "sha256": "0" * 64,
        "date": "2026-01-01T00:00:00+00:00",
        "engine": "openvino",
        "precision": "fp32",
        "method": bundle.spec.method,
        "temperature": bundle.spec.temperature,
        "magnitude": bundle.spec.magnitude,
    }
    return Calibration(**{**fields, **changes})
