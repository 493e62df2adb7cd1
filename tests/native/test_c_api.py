"""libodin: installed, linked, and its scores, which are Python's."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from native.c_api.programs import (
    Programs,
    assert_same_scores,
    build,
    calibrated,
    score_in_c,
    score_in_cpp,
    write_images,
)
from native.toolchain import INCLUDE, run
from odin_engines.bundle import Bundle
from odin_engines.engine import unavailable
from odin_runtime import Scorer
from odin_runtime.images import normalised

MakeBundle = Callable[..., Bundle]
Images = Callable[..., np.ndarray]


@pytest.mark.parametrize("count", [16, 7, 1])
def test_raw_images_score_as_in_python(
    programs: Programs, tiny_bundle: Bundle, raw_images: Images, tmp_path: Path, count: int
) -> None:
    images = raw_images(count, 33, 47)
    found = score_in_c(programs, tiny_bundle.path, images, tmp_path)
    assert_same_scores(found, tiny_bundle, images)
    assert (found.rows[:, 5:].argmax(axis=1) == found.rows[:, 2]).all()  # the logits


def test_normalised_images_score_as_in_python(
    programs: Programs, tiny_bundle: Bundle, raw_images: Images, tmp_path: Path
) -> None:
    images = normalised(raw_images(5), tiny_bundle.spec)
    assert_same_scores(
        score_in_c(programs, tiny_bundle.path, images, tmp_path), tiny_bundle, images
    )


@pytest.mark.parametrize(
    "changes",
    [{"input_type": "uint8"}, {"tunable": True}, {"method": "first-order"}],
    ids=lambda changes: next(iter(changes)),
)
def test_other_bundles_score_as_in_python(
    programs: Programs,
    make_tiny_bundle: MakeBundle,
    raw_images: Images,
    tmp_path: Path,
    changes: dict[str, object],
) -> None:
    bundle, images = make_tiny_bundle(**changes), raw_images(6)
    assert_same_scores(score_in_c(programs, bundle.path, images, tmp_path), bundle, images)


def test_bfloat16_scores_as_in_python(
    programs: Programs, make_tiny_bundle: MakeBundle, raw_images: Images, tmp_path: Path
) -> None:
    """Which OpenVINO makes of a float32 graph."""
    reason = unavailable("openvino", "bf16")
    if reason:
        pytest.skip(reason)
    bundle, images = make_tiny_bundle(precision="bf16"), raw_images(8)
    found = score_in_c(programs, bundle.path, images, tmp_path)
    assert found.info[0] == "tiny exact float32 openvino bf16"
    assert_same_scores(found, bundle, images, Scorer.open(bundle, "openvino").score(images))
    exact = Scorer.open(bundle, "openvino", precision="fp32").score(images)
    assert np.abs(found.rows[:, 0] - exact.score).max() > 1e-6


def test_a_calibrated_bundle_gives_the_decision(
    programs: Programs, make_tiny_bundle: MakeBundle, raw_images: Images, tmp_path: Path
) -> None:
    images = raw_images(16)
    bundle = calibrated(make_tiny_bundle, images)
    found = score_in_c(programs, bundle.path, images, tmp_path)
    assert_same_scores(found, bundle, images)
    calibrated_flag, threshold = found.info[2].split()[3:]
    assert calibrated_flag == "1"
    assert float(threshold) == bundle.spec.threshold
    in_cpp = score_in_cpp(programs, bundle.path, images, tmp_path, threads=1, rounds=1)
    assert_same_scores(in_cpp, bundle, images)


def test_a_threshold_of_other_scores_is_none(
    programs: Programs, make_tiny_bundle: MakeBundle, raw_images: Images, tmp_path: Path
) -> None:
    images = raw_images(4)
    bundle = calibrated(make_tiny_bundle, images, temperature=7.0)
    found = score_in_c(programs, bundle.path, images, tmp_path)
    assert found.info[2].split()[3:] == ["0", "nan"]
    assert set(found.rows[:, 3]) == {-1}


def test_images_that_are_not_finite_score_nan(
    programs: Programs, tiny_bundle: Bundle, raw_images: Images, tmp_path: Path
) -> None:
    images = normalised(raw_images(6), tiny_bundle.spec)
    images[1, 0, 3, 4], images[4, 2, 31, 31] = np.nan, np.inf
    found = score_in_c(programs, tiny_bundle.path, images, tmp_path)
    np.testing.assert_array_equal(np.isnan(found.rows[:, 0]), [0, 1, 0, 0, 1, 0])
    np.testing.assert_array_equal(np.isnan(found.rows[:, 1]), [0, 1, 0, 0, 1, 0])


def test_what_is_known_of_a_bundle(
    programs: Programs, make_tiny_bundle: MakeBundle, raw_images: Images, tmp_path: Path
) -> None:
    bundle = make_tiny_bundle(tunable=True, model='tiny "é\U0001f600"\\')
    spec = bundle.spec
    info = score_in_c(programs, bundle.path, raw_images(1), tmp_path).info
    assert info[0] == f"{spec.model} exact float32 openvino fp32"
    assert info[1] == f"{spec.classes} 3 32 63 32 63"
    assert info[2] == f"{spec.temperature:.17g} {spec.magnitude:.17g} 1 0 nan"
    pairs = [float(value) for value in info[3].split()]
    assert (tuple(pairs[::2]), tuple(pairs[1::2])) == (spec.mean, spec.std)


@pytest.mark.parametrize("streams", [1, 2])
def test_threads_share_a_scorer(
    programs: Programs, tiny_bundle: Bundle, raw_images: Images, tmp_path: Path, streams: int
) -> None:
    """Eight at once, batches of all sizes; what the caller's allocator gave is freed in the end."""
    images = raw_images(16)
    found = score_in_cpp(programs, tiny_bundle.path, images, tmp_path, streams=streams)
    assert_same_scores(found, tiny_bundle, images)
    difference, held, allocated, lines = found.last
    assert difference < 1e-6
    assert held == 0
    assert allocated > images[0].size * 4
    assert lines >= 2  # of compiled sizes, at least


def test_many_sizes(
    programs: Programs, tiny_bundle: Bundle, raw_images: Images, tmp_path: Path
) -> None:
    """More than have graphs of their own: the last ones share one."""
    image = raw_images(1, 46, 33)
    file, *_ = write_images(tmp_path, image)
    *printed, lines = programs.run(
        programs.cpp, "sizes", tiny_bundle.path, file, 46, 33
    ).splitlines()
    scorer = Scorer.open(tiny_bundle, "ort")
    wanted = [float(scorer.score(image[:, :rows]).score[0]) for rows in range(32, 47)]
    np.testing.assert_allclose(list(map(float, printed)), wanted * 2, rtol=0, atol=1e-6)
    assert lines == "13"  # twelve sizes, and any


def test_compiled_graphs_are_kept(
    programs: Programs, tiny_bundle: Bundle, raw_images: Images, tmp_path: Path
) -> None:
    images, cache = raw_images(4), tmp_path / "cache"
    cache.mkdir()
    for _ in range(2):
        found = score_in_cpp(
            programs, tiny_bundle.path, images, tmp_path, threads=0, cache=str(cache)
        )
        assert_same_scores(found, tiny_bundle, images)
        blobs = [file.name for file in cache.rglob("*.blob")]
        assert len(blobs) == 1  # the second time, the first one's


def test_real_images_score_as_in_python(
    programs: Programs, densenet10_bundle: Bundle, raw_images: Images, tmp_path: Path
) -> None:
    """DenseNet-BC 100-12, and CIFAR-10 where the image sets are at hand."""
    bundle, images = densenet10_bundle, raw_images(16)
    file = Path(os.environ.get("ODIN_DATA", ""), "cifar10_test.npz")
    if file.is_file():
        with np.load(file) as data:
            images = data["x"][:16]
    wanted = Scorer.open(bundle, "openvino", precision="fp32").score(images)
    in_c = score_in_c(programs, bundle.path, images, tmp_path)
    assert_same_scores(in_c, bundle, images, wanted)
    in_cpp = score_in_cpp(programs, bundle.path, images, tmp_path, rounds=1, batch_size=1)
    assert_same_scores(in_cpp, bundle, images, wanted)
    assert in_cpp.last[0] < 1e-6


def test_pkg_config_is_enough(
    scorer_prefix: Path, tiny_bundle: Bundle, raw_images: Images, tmp_path: Path
) -> None:
    if shutil.which("pkg-config") is None:
        pytest.skip("pkg-config is not found")
    moved = tmp_path / "elsewhere"  # the files name no place
    shutil.copytree(scorer_prefix, moved, symlinks=True)
    (found,) = moved.rglob("odin.pc")
    path = str(found.parent)
    flags = run(["pkg-config", "--cflags", "--libs", "odin"], PKG_CONFIG_PATH=path).split()
    assert run(["pkg-config", "--modversion", "odin"], PKG_CONFIG_PATH=path) == "0.1.0\n"
    assert "-lodin_kernels" in run(["pkg-config", "--libs", "odin-kernels"], PKG_CONFIG_PATH=path)
    (library,) = moved.rglob("libodin.so")
    programs = build(tmp_path, [*flags, f"-Wl,-rpath,{library.parent}"])
    images = raw_images(3)
    assert_same_scores(
        score_in_c(programs, tiny_bundle.path, images, tmp_path), tiny_bundle, images
    )
    in_cpp = score_in_cpp(programs, tiny_bundle.path, images, tmp_path, threads=2, rounds=1)
    assert_same_scores(in_cpp, tiny_bundle, images)


def test_both_libraries_in_one_program(programs: Programs) -> None:
    printed = programs.run(programs.c.with_name("both")).splitlines()
    assert printed[0] == "100 100"
    assert printed[1] == "1 odin_scorer_open: bundle is null"
    assert re.fullmatch(r"4 odin_score_host: .*", printed[2])


def test_only_the_api_is_exported(scorer_prefix: Path) -> None:
    (library,) = scorer_prefix.rglob("libodin.so")
    lines = run(["nm", "-D", "--defined-only", library]).splitlines()
    exported = {line.split()[-1] for line in lines}
    header = (INCLUDE / "odin" / "odin.h").read_text("utf-8")
    declared = set(re.findall(r"ODIN_API [\w ]+?\*? ?(odin_\w+)\(", header))
    assert len(declared) == 9
    assert exported == declared


def test_the_library_needs_no_other_of_this_project(scorer_prefix: Path) -> None:
    (library,) = scorer_prefix.rglob("libodin.so")
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not found")
    needed = re.findall(r"NEEDED.*\[(.*)\]", run(["readelf", "-d", os.path.realpath(library)]))
    assert any(name.startswith("libopenvino.so") for name in needed)
    assert not any("odin" in name or "python" in name for name in needed)
