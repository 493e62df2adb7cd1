"""libodin and its programs under the sanitizers: addresses and undefined behaviour, and threads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from native.c_api.programs import (
    Programs,
    assert_same_scores,
    calibrated,
    score_in_c,
    score_in_cpp,
    write_images,
)
from native.c_api.sanitized import SANITIZERS
from native.test_c_api_errors import check_wrong_calls
from odin_engines.bundle import Bundle

Images = Callable[..., np.ndarray]


@pytest.fixture(params=SANITIZERS)
def sanitized(request: pytest.FixtureRequest) -> Programs:
    """The library and the programs, compiled with a sanitizer."""
    programs: Programs = request.getfixturevalue(f"sanitized_{request.param}")
    return programs


def test_scores_are_those_of_python(
    sanitized: Programs, tiny_bundle: Bundle, raw_images: Images, tmp_path: Path
) -> None:
    images = raw_images(7)
    found = score_in_c(sanitized, tiny_bundle.path, images, tmp_path)
    assert_same_scores(found, tiny_bundle, images)


def test_wrong_calls(sanitized: Programs, tiny_bundle: Bundle) -> None:
    check_wrong_calls(sanitized, tiny_bundle.path, tensorrt=True)


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
    if SANITIZERS["address"].environment[1] in sanitized.environment:
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
