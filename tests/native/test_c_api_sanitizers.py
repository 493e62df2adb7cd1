"""libodin and its programs under the sanitizers: addresses and undefined behaviour, and threads.

OpenVINO and its TBB are not instrumented, so the thread sanitizer does not see how their threads
wait for each other. It does see their memcpy and memset, which are the C library's, and would take
each for a race: accesses that the C library makes are left out, those that compiled code of ours
makes are not.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from native.c_api.programs import (
    HERE,
    Programs,
    assert_same_scores,
    build,
    calibrated,
    score_in_c,
    score_in_cpp,
    write_images,
)
from native.fixtures import made_once
from native.test_c_api_errors import check_wrong_calls
from native.toolchain import INCLUDE, attempt, cmake, configure, cxx, run
from odin_engines.bundle import Bundle

Images = Callable[..., np.ndarray]


@dataclass(frozen=True)
class Sanitizer:
    """Flags of the compiler, and variables of the programs."""

    flags: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]


# TBB loads one of its libraries in a way (RTLD_DEEPBIND) that sanitizers refuse, if not told.
_TBB = ("TBB_ENABLE_SANITIZERS", "1")
SANITIZERS = {
    "address": Sanitizer(
        ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
        (
            _TBB,
            ("UBSAN_OPTIONS", "print_stacktrace=1"),
            ("LSAN_OPTIONS", f"suppressions={HERE / 'leaks.supp'}:print_suppressions=0"),
        ),
    ),
    "thread": Sanitizer(
        ("-fsanitize=thread",),
        (_TBB, ("TSAN_OPTIONS", "ignore_interceptors_accesses=1 halt_on_error=1")),
    ),
}


@pytest.fixture(scope="session", params=SANITIZERS)
def sanitized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """The library and the programs, compiled with a sanitizer."""
    pytest.importorskip("openvino", reason="libodin scores with it: pip install openvino")
    sanitizer = SANITIZERS[request.param]
    flags = ["-O1", "-g1", *sanitizer.flags]

    def make(folder: Path) -> None:
        check_compiler(folder, flags)
        configure(
            folder / "build",
            f"-DCMAKE_CXX_COMPILER={cxx()}",
            "-DODIN_CUDA=OFF",
            "-DCMAKE_BUILD_TYPE=None",
            "-DCMAKE_UNITY_BUILD=ON",  # one file is compiled sooner than eleven
            "-DCMAKE_UNITY_BUILD_BATCH_SIZE=0",
            f"-DCMAKE_CXX_FLAGS={' '.join(flags)}",
        )
        library = folder / "build" / "runtime"
        run([cmake(), "--build", folder / "build", "--target", "odin_scorer"])
        linked = [f"-I{INCLUDE}", f"-L{library}", "-lodin", f"-Wl,-rpath,{library}"]
        build(folder, [*flags, *linked])

    folder = made_once(tmp_path_factory, f"odin-{request.param}", make)
    return Programs(folder / "program_c", folder / "program_cpp", sanitizer.environment)


def check_compiler(folder: Path, flags: list[str]) -> None:
    """Skip the test where the compiler has no such sanitizer, or its programs do not run here."""
    empty = folder / "empty.cpp"
    empty.write_text("int main() { return 0; }\n", "utf-8")
    program = folder / "empty"
    for command in ([str(cxx()), *flags, str(empty), "-o", str(program)], [str(program)]):
        done = attempt(command)
        if done.returncode != 0:
            shutil.rmtree(folder)
            pytest.skip(f"no sanitizer here, {' '.join(flags)}: {done.stdout.strip()[:200]}")


def test_scores_are_those_of_python(
    sanitized: Programs, tiny_bundle: Bundle, raw_images: Images, tmp_path: Path
) -> None:
    images = raw_images(7)
    found = score_in_c(sanitized, tiny_bundle.path, images, tmp_path)
    assert_same_scores(found, tiny_bundle, images)


def test_wrong_calls(sanitized: Programs, tiny_bundle: Bundle) -> None:
    check_wrong_calls(sanitized, tiny_bundle.path)


@pytest.mark.parametrize("streams", [1, 2])
def test_eight_threads(
    sanitized: Programs, tiny_bundle: Bundle, raw_images: Images, tmp_path: Path, streams: int
) -> None:
    images = raw_images(16)
    found = score_in_cpp(sanitized, tiny_bundle.path, images, tmp_path, streams=streams)
    assert_same_scores(found, tiny_bundle, images)
    assert found.last[0] < 1e-6
    assert found.last[1] == 0


def test_a_mistake_of_the_caller_is_noticed(
    sanitized: Programs,
    make_tiny_bundle: Callable[..., Bundle],
    raw_images: Images,
    tmp_path: Path,
) -> None:
    """So the library's own code is watched: too few pixels, or two threads and one target."""
    if sanitized.environment == SANITIZERS["address"].environment:
        bundle = make_tiny_bundle()
        done = sanitized.attempt(sanitized.c, "overrun", bundle.path)
        wanted = ("heap-buffer-overflow", "images.cpp")
    else:
        bundle = calibrated(make_tiny_bundle, raw_images(8))
        file = write_images(tmp_path, raw_images(1))[0]
        done = sanitized.attempt(sanitized.cpp, "race", bundle.path, file, 32, 32)
        wanted = ("data race", "scorer.cpp")
    assert done.returncode != 0
    assert all(text in done.stdout for text in wanted), done.stdout
