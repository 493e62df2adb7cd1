"""libodin's GPU back end on test doubles of CUDA and TensorRT, compiled with sanitizers.

The doubles compute on the host, as late as a GPU may; whatever is used wrongly they tell
(`faults`), and whatever is not freed (`alive`). See tests/native/c_api/double.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from native.c_api.plan_bundles import expected, with_plans
from native.c_api.programs import HERE, Programs, calibration_of, write_images
from native.test_cmake import try_configure
from native.toolchain import INCLUDE, SOURCES, cuda_tool, cxx, run
from odin_engines.bundle import Bundle
from odin_runtime.images import normalised

Images = Callable[..., np.ndarray]
DOUBLE = HERE / "double"
CONTEXT = "createExecutionContext"
WAYS = ("host", "device", "images", "scores", "enqueue", "default")


@dataclass(frozen=True)
class Scored:
    """What the program printed.

    Attributes:
        info: of the scorer; empty if it was not opened.
        rows: score, baseline, label, decision, percentile (-1: none), logits.
        failed: status and message of each call that failed.
        log: lines, each with its level.
        lanes: how many were made.
    """

    info: list[str]
    rows: np.ndarray
    failed: list[tuple[int, str]]
    log: list[str]
    lanes: int


@pytest.fixture
def score(sanitized_address: Programs, tmp_path: Path) -> Callable[..., Scored]:
    """A function: bundle, images, way, settings -> what the program printed; nothing is left."""

    def run_program(
        bundle: Bundle, images: np.ndarray, way: str = "host", *, faults: str = "", **settings: Any
    ) -> Scored:
        environment: dict[str, str] = settings.pop("environment", {})
        given = [f"{name.replace('__', ':')}={value}" for name, value in settings.items()]
        arguments = [*write_images(tmp_path, images), way, *given]
        program = sanitized_address.gpu
        done = sanitized_address.attempt(program, "score", bundle.path, *arguments, **environment)
        assert done.returncode == 0, done.stdout
        lines = [line.partition(" ")[::2] for line in done.stdout.splitlines()]
        assert lines[-2:] == [("faults", faults), ("alive", "0")], done.stdout
        kinds: dict[str, list[str]] = {
            name: [] for name in ("info", "row", "failed", "lanes", "log")
        }
        for kind, text in lines[:-2]:
            kinds[kind].append(text)
        failed = [text.partition(" ")[::2] for text in kinds["failed"]]
        return Scored(
            " ".join(kinds["info"]).split(),
            np.array([list(map(float, row.split())) for row in kinds["row"]]),
            [(int(status), message) for status, message in failed],
            kinds["log"],
            int(kinds["lanes"][0]),
        )

    return run_program


def assert_expected(scored: Scored, images: np.ndarray, bundle: Bundle, repeat: int = 1) -> None:
    """That all calls gave what the double's network makes of the images."""
    assert scored.failed == []
    wanted = np.tile(expected(images, bundle.spec), (repeat, 1))
    found = np.delete(scored.rows, [3, 4], axis=1)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("way", WAYS)
def test_all_ways(
    score: Callable[..., Scored],
    tiny_bundle: Bundle,
    raw_images: Images,
    tmp_path: Path,
    way: str,
) -> None:
    """Eleven images in three parts, twice, of images that do not lie at a multiple of 256."""
    bundle, images = with_plans(tmp_path, tiny_bundle), raw_images(11, 33, 40)
    found = score(bundle, images, way, repeat=2, offset=64)
    assert found.info == ["trt", "fp32", "4", "32", "40", "32", "40", "0"]
    assert_expected(found, images, bundle, repeat=2)
    assert (found.rows[:, 3:5] == -1).all()


def test_batches_that_grow(
    score: Callable[..., Scored], tiny_bundle: Bundle, raw_images: Images, tmp_path: Path
) -> None:
    """No part sees the shape of the one before; and there are no more lanes than asked for."""
    bundle, images = with_plans(tmp_path, tiny_bundle), raw_images(6)
    found = score(bundle, images, repeat=6, grow=1, streams=1)
    assert found.failed == []
    wanted = np.concatenate([expected(images[:n], bundle.spec) for n in range(1, 7)])
    np.testing.assert_allclose(np.delete(found.rows, [3, 4], axis=1), wanted, rtol=0, atol=2e-6)
    assert found.lanes == 1
    assert score(bundle, raw_images(20)).lanes == 2


BUNDLES: dict[str, dict[str, Any]] = {
    "fused tunable": {"forms": ["fused"], "tunable": True},
    "fused raw": {"forms": ["fused"], "input_type": "uint8"},
    "fused further": {"forms": ["fused", "split"], "scores": ("energy", "msp")},
    "split": {"forms": ["split"]},
    "split tunable": {"forms": ["fused", "split"], "tunable": True},
    "split first-order": {"forms": ["split"], "method": "first-order"},
    "split of three or more": {"forms": ["split"], "batch": (3, 4)},
    "fused of three or more": {"forms": ["fused"], "batch": (3, 4)},
}


@pytest.mark.parametrize("name", BUNDLES)
def test_all_plans(
    score: Callable[..., Scored], tiny_bundle: Bundle, raw_images: Images, tmp_path: Path, name: str
) -> None:
    """Raw and normalised images, with one that is not finite; the last part has one image."""
    bundle = with_plans(tmp_path, tiny_bundle, **BUNDLES[name])
    images = raw_images(5)
    assert_expected(score(bundle, images, "enqueue", offset=4), images, bundle)
    if bundle.spec.input_type == "uint8":
        return
    values = normalised(images, bundle.spec)
    values[1, 2, 5, 7], values[4, 0, 0, 0] = np.nan, -np.inf
    assert_expected(score(bundle, values, "host"), values, bundle)
    found = score(bundle, values, "device", offset=4, device=1, batch=3)
    assert found.info[2] == "3"
    assert_expected(found, values, bundle)


def test_threads_share_a_scorer(
    sanitized_thread: Programs, tiny_bundle: Bundle, raw_images: Images, tmp_path: Path
) -> None:
    """Six of them and two lanes, in all ways at once, and scorers opened and closed meanwhile."""
    images = write_images(tmp_path, raw_images(9))
    for form in ("fused", "split"):
        bundle = with_plans(tmp_path / form, tiny_bundle, [form])
        arguments = [bundle.path, images[0], *images[2:], 6, 5]
        printed = sanitized_thread.run(sanitized_thread.gpu, "threads", *arguments)
        found = re.fullmatch(r"difference (\S+)\nfaults \nalive 0\n", printed)
        assert found is not None, printed
        assert float(found[1]) < 1e-6


def test_a_calibrated_bundle(
    score: Callable[..., Scored], tiny_bundle: Bundle, raw_images: Images, tmp_path: Path
) -> None:
    """Decision and percentile are Python's, between the quantiles, at them and beyond."""
    images = normalised(raw_images(16), tiny_bundle.spec)
    images[3, 0, 0, 0] = np.nan
    scores = expected(images, tiny_bundle.spec)[:, 0].astype(np.float32).astype(float)
    ordered = np.sort(scores[[0, 1, 2, 5, 6, 7, 8]])
    quantiles = tuple(np.repeat(ordered, [1, 1, 3, 1, 1, 2, 1]).tolist())
    known = calibration_of(tiny_bundle, scores[~np.isnan(scores)], quantiles=quantiles, images=61)
    bundle = with_plans(tmp_path, tiny_bundle, calibration=known)
    found = score(bundle, images)
    assert any("was calibrated in fp32 by openvino" in line for line in found.log) is False
    ours = found.rows[:, 0].astype(np.float32)
    np.testing.assert_allclose(found.rows[:, 4], known.percentile(ours), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found.rows[:, 3], known.is_ood(ours))
    assert np.isnan(found.rows[3, 4]) and found.rows[3, 3] == 1


FAILURES = {
    "enqueueV3": (21, "odin.trt.plan: it does not run: Error Code 1: the double fails"),
    "inferShapes": (21, "odin.trt.plan: no shape is known of score"),
    "odin_normalize": (7, "odin_normalize: the double fails"),
    "cudaMemcpyAsync": (7, "copying images to the GPU: .*, which may be of earlier work"),
}


@pytest.mark.parametrize(
    ("failing", "way"),
    # Of the copies in other ways, some are the program's.
    [*((name, "enqueue") for name in list(FAILURES)[:3]), *((name, "host") for name in FAILURES)],
)
def test_what_fails_on_the_way(
    score: Callable[..., Scored],
    tiny_bundle: Bundle,
    raw_images: Images,
    tmp_path: Path,
    failing: str,
    way: str,
) -> None:
    """In the second part, as a rule; the next call finds all as it was."""
    bundle, images = with_plans(tmp_path, tiny_bundle), raw_images(9)
    status, message = FAILURES[failing]
    after = {"inferShapes": 0, "cudaMemcpyAsync": 3}.get(failing, 1)
    found = score(bundle, images, way, repeat=2, **{failing: after})
    assert [each[0] for each in found.failed] == [status]
    assert re.search(message, found.failed[0][1])
    wanted = expected(images, bundle.spec)
    np.testing.assert_allclose(np.delete(found.rows, [3, 4], axis=1), wanted, rtol=0, atol=2e-6)


def test_a_gpu_that_fails_while_it_computes(
    score: Callable[..., Scored], tiny_bundle: Bundle, raw_images: Images, tmp_path: Path
) -> None:
    bundle = with_plans(tmp_path, tiny_bundle)
    found = score(bundle, raw_images(3), repeat=2, cudaStreamSynchronize=0)
    assert [each[0] for each in found.failed] == [7]
    assert "waiting for the GPU: the double fails" in found.failed[0][1]


def test_lack_of_memory(
    score: Callable[..., Scored], tiny_bundle: Bundle, raw_images: Images, tmp_path: Path
) -> None:
    """At the opening nothing works; for a second lane, the first one has to do."""
    bundle, images = with_plans(tmp_path, tiny_bundle), raw_images(9)
    programs_own = 5  # allocations of the program itself in each call
    for failing, first in (("cudaMalloc", programs_own), ("cudaMallocHost", 0), (CONTEXT, 0)):
        ((status, message),) = score(bundle, images, **{f"open__{failing}": 2 * first}).failed
        assert (status, "--maxShapes" in message) == (22, True), message
        found = score(bundle, images, **{failing: first})
        assert_expected(found, images, bundle)
        assert any("fewer parts at once than options.streams" in line for line in found.log)


FUSED = b"plan fused exact 10 3 1 4 32 40 32 40 0 0 0 1 1 0 0 0 1 1 1"
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], int, str]] = {
    "no plan": ({"forms": []}, {}, 19, "holds no plan of odin.onnx for TensorRT; build it with"),
    "half a split": (
        {"forms": ["split"], "record": {"graph": "gradient.onnx"}},
        {},
        19,
        "gradient.onnx than the bundle|holds no plan of forward.onnx",
    ),
    "another version": (
        {"record": {"version": "99.1.1.3"}},
        {},
        19,
        r"odin.trt.plan was built by TensorRT 99.1.1.3, and here is 99.1.2.3; build it with",
    ),
    "another GPU": (
        {"record": {"device": "Other"}},
        {},
        19,
        r"built for Other of compute capability 9.0, and here is Double \(compute capability 9.0\)",
    ),
    "another capability": (
        {"record": {"compute_capabilities": ("8.9",), "device": ""}},
        {},
        19,
        "was built for GPUs of compute capability 8.9",
    ),
    "another graph": (
        {"record": {"graph_sha256": "0" * 64}},
        {},
        19,
        "built from another odin.onnx",
    ),
    "another precision": ({}, {"precision": 3}, 19, "computes in fp32, not in fp16"),
    "no GPU": ({}, {"environment": {"DOUBLE_DEVICES": "0"}}, 20, "CUDA finds none: no CUDA-cap"),
    "no such GPU": ({}, {"device": 2}, 20, "options.device is 2, and CUDA finds 2"),
    "no TensorRT": (
        {},
        {"environment": {"LD_LIBRARY_PATH": ""}},
        20,
        r"cannot be loaded: libnvinfer.so.99.*; install TensorRT 99, or add the folder of",
    ),
    "no plan inside": (
        {"content": b"plan of another version"},
        {},
        21,
        r"TensorRT 99.1.2.3 cannot open .*odin.trt.plan: Error Code 1: Serialization.*"
        r"build it again on this machine with 'odin-export .* --engine trt'",
    ),
    "another tensor": (
        {
            "forms": ["split"],
            "content": FUSED,
        },
        {},
        21,
        "gradient.trt.plan has no tensor input_gradient",
    ),
    "other classes": (
        {"content": FUSED.replace(b" 10 3 ", b" 7 3 ")},
        {},
        21,
        "has logits of other sizes than the bundle says, 10 classes",
    ),
    "other channels": (
        {"content": FUSED.replace(b" 10 3 ", b" 10 1 ")},
        {},
        21,
        "has images of other sizes than the bundle says, 3 channels",
    ),
    "no runtime": ({}, {"open__createInferRuntime": 0}, 21, "TensorRT does not start"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_plans_that_cannot_be_opened(
    score: Callable[..., Scored], tiny_bundle: Bundle, raw_images: Images, tmp_path: Path, name: str
) -> None:
    """Each says why, and what to do; no other engine is taken."""
    plans, settings, status, message = REFUSED[name]
    bundle = with_plans(tmp_path, tiny_bundle, **plans)
    ((found, text),) = score(bundle, raw_images(1), **settings).failed
    assert (found, re.search(message, text, re.DOTALL) is not None) == (status, True), text


def test_plans_for_newer_gpus(
    score: Callable[..., Scored], tiny_bundle: Bundle, raw_images: Images, tmp_path: Path
) -> None:
    record = {"hardware_compatibility": "ampere+", "compute_capabilities": ("8.0",), "device": ""}
    record["version"] = "99.1.2"  # as TensorRT's bindings give it without the build's number
    bundle, images = with_plans(tmp_path, tiny_bundle, record=record), raw_images(2)
    assert_expected(score(bundle, images), images, bundle)


def test_a_damaged_plan(
    score: Callable[..., Scored], tiny_bundle: Bundle, raw_images: Images, tmp_path: Path
) -> None:
    """An error where TensorRT was asked for; else the log tells why OpenVINO is used."""
    bundle = with_plans(tmp_path, tiny_bundle)
    with (bundle.path / "odin.trt.plan").open("ab") as file:
        file.write(b"x")
    ((status, text),) = score(bundle, raw_images(1)).failed
    assert status == 17
    assert re.search(r"odin.trt.plan has \d+ bytes, not \d+: it was cut or changed; build", text)
    found = score(bundle, raw_images(1), engine=0)
    assert found.info[0] == "openvino"
    assert any(re.match("1 OpenVINO is used: .*odin.trt.plan has", line) for line in found.log)


def test_the_fastest_engine_is_chosen(
    score: Callable[..., Scored], tiny_bundle: Bundle, raw_images: Images, tmp_path: Path
) -> None:
    """TensorRT where it can be used; a device's memory is nothing for OpenVINO."""
    bundle, images = with_plans(tmp_path / "with", tiny_bundle), raw_images(2)
    assert_expected(score(bundle, images, engine=0), images, bundle)
    without = with_plans(tmp_path / "without", tiny_bundle, [])
    found = score(without, images, engine=0)
    assert found.info[:2] == ["openvino", "fp32"]
    assert any(re.match("1 OpenVINO is used: .* no plan of odin.onnx", line) for line in found.log)
    assert [each[0] for each in score(without, images, "device", engine=0).failed] == [19]
    ((status, text),) = score(without, images, "enqueue", engine=1).failed
    assert (status, "queueing on a stream is for ODIN_ENGINE_TENSORRT" in text) == (19, True)


def test_a_stream_that_is_captured(
    score: Callable[..., Scored], tiny_bundle: Bundle, raw_images: Images, tmp_path: Path
) -> None:
    ((status, text),) = score(with_plans(tmp_path, tiny_bundle), raw_images(1), "captured").failed
    assert (status, "is being captured" in text) == (19, True)


WRONG = {
    "enqueue of the host's": (19, "for those of the host use odin_scorer_score"),
    "width": (3, "41 pixels wide, where the plans take 32 to 40"),
    "memory": (5, "images.memory is 2"),
    "host for device": (5, "images.data is said to be on the device"),
    "another device": (5, "images.data is on GPU 1, and the scorer on GPU 0"),
    "is_ood": (19, "is not calibrated"),
    "percentile": (19, "is not calibrated"),
    "reserved": (5, "scores.reserved is not 0"),
    "host score": (5, "scores.score is said to be on the device"),
    "no images": (0, ""),
    "older scores": (0, ""),
}


def test_wrong_calls(sanitized_address: Programs, tiny_bundle: Bundle, tmp_path: Path) -> None:
    bundle = with_plans(tmp_path, tiny_bundle)
    program = sanitized_address.gpu
    first, *lines = sanitized_address.run(program, "wrong", bundle.path).splitlines()
    assert first == "1 1 1"
    found = [line.split("|", 2) for line in lines]
    assert [line[0] for line in found] == list(WRONG)
    for name, status, message in found:
        assert (int(status), WRONG[name][1] in message) == (WRONG[name][0], True), message


def test_it_compiles_against_cuda_itself(tmp_path: Path) -> None:
    """What the double of CUDA declares is what CUDA declares."""
    include = cuda_tool("nvcc").resolve().parent.parent / "include"
    if not (include / "cuda_runtime_api.h").exists():
        pytest.skip(f"no cuda_runtime_api.h in {include}; pip install nvidia-cuda-runtime")
    headers = tmp_path / "include"
    headers.mkdir()
    for name in ("NvInferRuntime.h", "NvInferVersion.h"):
        (headers / name).write_text((DOUBLE / name).read_text("utf-8"), "utf-8")
    names = ("cuda", "nvinfer", "model", "lanes", "tensorrt")
    source = tmp_path / "all.cpp"
    source.write_text("".join(f'#include "{name}.cpp"\n' for name in names), "utf-8")
    flags = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"]
    folders = [f"-I{SOURCES / 'scorer'}", f"-I{INCLUDE}", "-isystem", headers, "-isystem", include]
    run([str(cxx()), *flags, '-DODIN_TENSORRT_LIBRARY=""', *folders, source])


def test_cmake_finds_tensorrt(tmp_path: Path) -> None:
    """Its headers, and beside them its library; and says what is missing."""
    root = tmp_path / "TensorRT"
    (root / "include").mkdir(parents=True)
    (root / "lib").mkdir()
    (root / "lib" / "libnvinfer.so.99").touch()
    cxx_flag, root_flag = f"-DCMAKE_CXX_COMPILER={cxx()}", f"-DTensorRT_ROOT={root}"
    found = try_configure(tmp_path / "none", cxx_flag, "-DODIN_CUDA=OFF", root_flag)
    assert "libodin without TensorRT: " in found.stdout  # another one may be installed
    for name in ("NvInferRuntime.h", "NvInferVersion.h"):
        (root / "include" / name).write_text((DOUBLE / name).read_text("utf-8"), "utf-8")
    found = try_configure(tmp_path / "none", cxx_flag, "-DODIN_CUDA=OFF", root_flag)
    assert "without TensorRT: it needs the kernels, and ODIN_CUDA is OFF" in found.stdout
    asked = try_configure(tmp_path / "none", "-DODIN_TENSORRT=ON")
    assert asked.returncode != 0
    assert "ODIN_TENSORRT is ON, but it needs the kernels" in asked.stdout
    nvcc = [f"-DODIN_NVCC={cuda_tool('nvcc')}", "-DODIN_CUDA_ARCHITECTURES=75"]
    with_it = try_configure(tmp_path / "with", cxx_flag, *nvcc, root_flag)
    said = " ".join(with_it.stdout.split())
    assert f"libodin with TensorRT 99.1: {root}/include" in said
    assert f"{root}/lib/libnvinfer.so.99" in said
    version = root / "include" / "NvInferVersion.h"
    version.write_text("#define NV_TENSORRT_MAJOR 8\n#define NV_TENSORRT_MINOR 6\n", "utf-8")
    old = try_configure(tmp_path / "none", "-DODIN_TENSORRT=AUTO")
    assert "is of TensorRT 8.6; 10.1 or newer is needed" in " ".join(old.stdout.split())
    for folder, has in (("with", "ON"), ("none", "OFF")):
        (config,) = (tmp_path / folder).rglob("odinConfig.cmake")
        assert f"set(odin_HAS_TENSORRT {has})" in config.read_text("utf-8")
