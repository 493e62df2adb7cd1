"""What libodin says of wrong calls and of damaged bundles, and its own readers."""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from native.c_api.programs import HERE, Programs, write_images
from native.toolchain import SOURCES, attempt, cmake, configure, cxx, run
from odin_engines.bundle import Bundle

# Of each wrong call: the status, and a part of the message.
CALLS = {
    "missing": (16, "it has no odin.json; make one with 'odin-export MODEL"),
    "null bundle": (1, "bundle is null"),
    "null handle": (1, "scorer is null"),
    "small options": (3, "odin_scorer_options.size is 4"),
    "newer options": (3, "fields that this version does not have"),
    "tensorrt": (20, "built without TensorRT"),
    "engine": (5, "options.engine is 9"),
    "threads": (5, "options.threads is -1"),
    "streams": (5, "options.streams is 2, of 1 threads"),
    "precision": (19, "written in fp32"),
    "cache": (16, "is no folder"),
    "half an allocator": (1, "one of its two functions"),
    "no memory": (22, "no memory"),
    "newer options of zero": (0, ""),
    "null scorer": (1, "scorer is null"),
    "null images": (1, "images is null"),
    "null scores": (1, "scores is null"),
    "null data": (1, "images.data is null"),
    "misaligned data": (2, "not at a multiple of 4 bytes"),
    "type": (4, "the images' type is 7"),
    "count": (3, "count is -1"),
    "overflow": (3, "more bytes than fit in 63 bits"),
    "height": (3, "31 pixels high, where tiny takes 32 to 63; scale the images up"),
    "width": (3, "64 pixels wide, where tiny takes 32 to 63; resize or crop the images"),
    "channels": (3, "4 channels, where tiny takes 3"),
    "size": (3, "odin_images.size is 0"),
    "memory": (5, "images.memory is 2; it must be ODIN_HOST or ODIN_DEVICE"),
    "device": (19, "is OpenVINO's: give memory of the host"),
    "enqueue": (19, "is OpenVINO's: use odin_scorer_score"),
    "reserved": (5, "scores.reserved is not 0"),
    "misaligned score": (2, "scores.score is not at a multiple of 4 bytes"),
    "is_ood": (19, "is not calibrated, so there is nothing to find scores.is_ood with"),
    "percentile": (19, "nothing to find scores.percentile with: run 'odin-bench"),
    "no images": (0, ""),
    "info": (3, "info.size is 8"),
    "null info": (1, "info is null"),
}
Change = Callable[[dict[str, Any]], object]


def check_wrong_calls(programs: Programs, bundle: Path, tensorrt: bool = False) -> None:
    """Compare what the C program's wrong calls returned with `CALLS`.

    Args:
        programs: of which the C program is run.
        bundle: without plans.
        tensorrt: whether the library was built with it.
    """
    calls = CALLS | ({"tensorrt": (19, "holds no plan of odin.onnx")} if tensorrt else {})
    printed = programs.run(programs.c, "errors", bundle, bundle / "missing")
    lines = [line.split("|", 2) for line in printed.splitlines()]
    assert [line[0] for line in lines] == list(CALLS)
    for name, status, message in lines:
        assert (int(status), calls[name][1] in message) == (calls[name][0], True), message


def test_wrong_calls(programs: Programs, tiny_bundle: Bundle) -> None:
    check_wrong_calls(programs, tiny_bundle.path)


def open_damaged(programs: Programs, bundle: Path, folder: Path) -> tuple[int, str]:
    """The status and the message of opening a bundle."""
    images = write_images(folder, np.zeros((1, 32, 32, 3), np.uint8))
    done = programs.attempt(programs.c, "score", bundle, *images)
    assert done.returncode == 1, done.stdout
    status, text, message = done.stdout.rstrip("\n").split("|", 2)
    assert text != "unknown status"
    return int(status), message


@pytest.fixture
def copy(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, to be damaged."""
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "copy"))


def change(bundle: Path, edit: Change) -> None:
    """Change the description of a bundle."""
    file = bundle / "odin.json"
    description = json.loads(file.read_text("utf-8"))
    edit(description)
    file.write_text(json.dumps(description), "utf-8")


@pytest.mark.parametrize("name", ["odin.onnx", "gradient.onnx", "forward.onnx"])
def test_a_changed_byte(programs: Programs, copy: Path, tmp_path: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    status, message = open_damaged(programs, copy, tmp_path)
    assert status == 17
    assert message.startswith(f"odin_scorer_open: {copy}/{name} does not match its SHA-256")
    assert "export it again with odin-export" in message


def test_a_cut_file(programs: Programs, copy: Path, tmp_path: Path) -> None:
    content = (copy / "odin.onnx").read_bytes()
    (copy / "odin.onnx").write_bytes(content[:-1])
    status, message = open_damaged(programs, copy, tmp_path)
    assert status == 17
    assert f"has {len(content) - 1} bytes, not {len(content)}" in message


def test_a_missing_file(programs: Programs, copy: Path, tmp_path: Path) -> None:
    (copy / "forward.onnx").unlink()
    status, message = open_damaged(programs, copy, tmp_path)
    assert status == 16
    assert f"{copy}/forward.onnx is missing; copy the whole bundle" in message


def test_a_newer_schema(programs: Programs, copy: Path, tmp_path: Path) -> None:
    change(copy, lambda description: description.update(schema=2))
    status, message = open_damaged(programs, copy, tmp_path)
    assert status == 18
    assert "has schema 2, from a newer version; this library reads up to 1" in message


WRONG_VALUES: list[tuple[str, object, str]] = [
    ("schema", 0, "has schema 0, which never existed"),
    ("schema", "1", "is not a bundle's description"),
    ("model", None, "model is not text"),
    ("model", "a\0b", "holds a NUL character"),
    ("classes", 0, "classes is not a whole number from 1"),
    ("classes", 10.0, "classes is not a whole number from 1"),
    ("channels", 4, "mean does not have 4 values"),
    ("mean", [0.5, "0.5", 0.5], "mean holds something that is not a number"),
    ("std", [0.2, 0, 0.2], "std is not positive"),
    ("height", [64, 32], "height is a range that no image has"),
    ("width", [32.5, 64], "width is not a smallest and a largest size"),
    ("temperature", 0, "temperature is out of its range"),
    ("temperature", True, "temperature is not a number"),
    ("magnitude", -1e-3, "magnitude is out of its range"),
    ("method", "odin", "method is 'odin', not one of exact, first-order"),
    ("precision", "fp8", "precision is 'fp8'"),
    ("graph_precision", "bf16", "graph_precision is not the bundle's precision"),
    ("input_type", "int8", "input_type is 'int8'"),
    ("tunable", 1, "tunable is neither true nor false"),
    ("activation_bytes", -1, "activation_bytes is not a whole number"),
    ("calibration", [], "calibration is not a description"),
    ("calibration", {"engine": "ort"}, "threshold is not a number"),
    ("files", {}, "lists no odin.onnx"),
    ("files", {"odin.onnx": {}}, "gives no size and hash of odin.onnx"),
]


@pytest.mark.parametrize(("name", "value", "problem"), WRONG_VALUES)
def test_wrong_values(
    programs: Programs, copy: Path, tmp_path: Path, name: str, value: object, problem: str
) -> None:
    change(copy, lambda description: description.update({name: value}))
    status, message = open_damaged(programs, copy, tmp_path)
    assert (status, problem in message) == (17, True), message


@pytest.mark.parametrize("name", ["../odin.onnx", "a/b", "..", "", "a\0b"])
def test_names_that_lead_elsewhere(
    programs: Programs, copy: Path, tmp_path: Path, name: str
) -> None:
    def add(description: dict[str, Any]) -> None:
        description["files"][name] = description["files"]["odin.onnx"]

    change(copy, add)
    status, message = open_damaged(programs, copy, tmp_path)
    assert (status, "which is not a plain file name" in message) == (17, True), message


def test_files_of_other_engines_may_be_damaged(
    programs: Programs, copy: Path, tmp_path: Path
) -> None:
    """As in Python; one for this engine may not."""

    def add(name: str) -> Change:
        return lambda description: description["files"].update({name: {"bytes": 1, "sha256": "0"}})

    change(copy, add("odin.trt.plan"))
    images = write_images(tmp_path, np.zeros((1, 32, 32, 3), np.uint8))
    assert len(programs.run(programs.c, "score", copy, *images).splitlines()) == 5
    change(copy, add("odin.openvino.onnx"))
    status, message = open_damaged(programs, copy, tmp_path)
    assert status == 16
    assert "odin.openvino.onnx is missing" in message
    assert f"build it again with 'odin-export {copy} --engine openvino'" in message


def test_a_file_that_is_no_graph(programs: Programs, copy: Path, tmp_path: Path) -> None:
    """OpenVINO's own exceptions end inside the library."""
    content = b"not a graph"
    (copy / "odin.onnx").write_bytes(content)
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change(copy, lambda description: description["files"].update({"odin.onnx": entry}))
    status, message = open_damaged(programs, copy, tmp_path)
    assert status == 21
    assert f"OpenVINO cannot open {copy}/odin.onnx" in message


def test_without_engines_the_library_says_so(tmp_path: Path, tiny_bundle: Bundle) -> None:
    """It is built all the same; unless OpenVINO was asked for."""
    disabled = "-DCMAKE_DISABLE_FIND_PACKAGE_OpenVINO=ON"
    flags = ["-DODIN_CUDA=OFF", f"-DCMAKE_CXX_COMPILER={cxx()}", disabled]
    build = tmp_path / "build"
    quick = [
        "-DCMAKE_BUILD_TYPE=None",
        "-DCMAKE_UNITY_BUILD=ON",
        "-DCMAKE_UNITY_BUILD_BATCH_SIZE=0",
    ]
    said = configure(build, *flags, *quick)
    assert "libodin without OpenVINO: OpenVINO is not found; pip install openvino" in said
    assert "libodin without TensorRT: " in said
    assert "libodin without an engine" in said
    run([cmake(), "--build", build, "--target", "odin_scorer"])
    (library,) = build.rglob("libodin.so")
    odin = ctypes.CDLL(str(library))
    odin.odin_scorer_last_error.restype = ctypes.c_char_p
    scorer = ctypes.c_void_p()
    path = str(tiny_bundle.path).encode()
    assert odin.odin_scorer_open(path, None, ctypes.byref(scorer)) == 20
    message = b"odin_scorer_open: this library was built without OpenVINO"
    assert odin.odin_scorer_last_error().startswith(message)
    assert [odin.odin_scorer_has_engine(engine) for engine in range(3)] == [0, 0, 0]
    demanded = attempt([str(cmake()), str(build), "-DODIN_SCORER=ON"])
    assert demanded.returncode != 0
    assert "ODIN_SCORER is ON, but" in demanded.stdout


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that reads with the library's own readers."""
    program = tmp_path_factory.mktemp("readers") / "readers"
    folder = SOURCES / "scorer"
    sources = [HERE / "readers.cpp", folder / "json.cpp", folder / "sha256.cpp"]
    run([cxx(), "-std=c++17", "-O1", "-Wall", "-Wextra", f"-I{folder}", *sources, "-o", program])
    return program


def test_hashes_are_sha256(readers: Path, tmp_path: Path) -> None:
    generator = random.Random(3)
    contents = [generator.randbytes(size) for size in (*range(130), 1000, 4095, 100_000)]
    files = []
    for index, content in enumerate(contents):
        files.append(tmp_path / f"{index}")
        files[-1].write_bytes(content)
    found = [line.split() for line in run([readers, "sha256", *files]).splitlines()]
    assert found == [[hashlib.sha256(content).hexdigest()] * 2 for content in contents]


def described(value: object) -> str:
    """A value as the reader prints it."""
    if value is None or isinstance(value, bool):
        return {None: "null ", True: "true ", False: "false "}[value]
    if isinstance(value, int | float):
        whole = isinstance(value, int) and abs(value) < 2**63
        return f"{value if whole else 'float'} {float(value):.17g} "
    if isinstance(value, str):
        return f"'{value.encode().hex()} "
    if isinstance(value, list):
        return "[ " + "".join(map(described, value)) + "] "
    assert isinstance(value, dict)
    return "{ " + "".join(described(k) + described(v) for k, v in value.items()) + "} "


def any_value(generator: random.Random, depth: int = 3) -> object:
    kind = generator.randrange(8 if depth else 6)
    if kind < 2:
        return generator.choice([None, True, False, 0, -7, 2**53 + 1, 10**30])
    if kind < 4:
        return generator.choice([1.0, -0.0, 1e-300, math.pi, 1e300, 2.5e-308 * generator.random()])
    if kind < 6:
        return "".join(
            generator.choices('ab"\\/\n\t\x7f\x01é€\U0001f600', k=generator.randrange(8))
        )
    if kind == 6:
        return [any_value(generator, depth - 1) for _ in range(generator.randrange(4))]
    return {str(i): any_value(generator, depth - 1) for i in range(generator.randrange(4))}


def test_json_is_read_as_python_reads_it(readers: Path, tmp_path: Path) -> None:
    generator = random.Random(5)
    values = [any_value(generator) for _ in range(300)]
    files = []
    for index, value in enumerate(values):
        files.append(tmp_path / f"{index}")
        spaces = generator.choice([None, 1])
        text = json.dumps(value, indent=spaces, ensure_ascii=generator.random() < 0.5)
        files[-1].write_text(text, "utf-8")
    assert run([readers, "json", *files]).splitlines() == [described(value) for value in values]


NOT_JSON = [
    b"",
    b" ",
    b"nul",
    b"[1,]",
    b"[1 2]",
    b"[1",
    b'{"a"}',
    b'{"a":1,}',
    b"{a:1}",
    b'{"a":1,"a":2}',
    b"01",
    b"+1",
    b".5",
    b"1.",
    b"1e",
    b"-",
    b"NaN",
    b"Infinity",
    b"0x10",
    b"'a'",
    b'"a',
    b'"\n"',
    b'"\\x"',
    b'"\\u12g4"',
    b'"\\u12"',
    b'"\\ud800"',
    b'"\\ud800\\u0041"',
    b'"\\udc00"',
    b'"\x80"',
    b'"\xc0\xaf"',
    b'"\xed\xa0\x80"',
    b'"\xf5\x80\x80\x80"',
    b'"\xe2\x82"',
    b"1 1",
    b"\xef\xbb\xbf1",
    b"1\0",
    b"[" * 100 + b"]" * 100,
]


def test_what_is_not_json_is_refused(readers: Path, tmp_path: Path) -> None:
    files = []
    for index, content in enumerate(NOT_JSON):
        files.append(tmp_path / f"{index}")
        files[-1].write_bytes(content)
    lines = run([readers, "json", *files]).splitlines()
    accepted = [text for text, line in zip(NOT_JSON, lines, strict=True) if "error:" not in line]
    assert accepted == []
    (tmp_path / "deep").write_bytes(b"[" * 64 + b"]" * 64)
    assert "error" not in run([readers, "json", tmp_path / "deep"])
