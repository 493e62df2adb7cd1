"""Which libraries are missing, on small libraries that miss some."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import odin_engines
from odin_engines.errors import OdinError
from odin_engines.shared_libraries import missing, needed

TRY = """
import json, sys
from odin_engines.shared_libraries import missing
print(json.dumps(missing(sys.argv[1:])))
"""
Build = Callable[..., Path]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """A function: name, libraries that it needs -> a shared library in tmp_path."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")

    def make(name: str, *needs: Path) -> Path:
        source = tmp_path / "empty.c"
        source.write_text("")
        command = [compiler, "-shared", "-fPIC", "-nostdlib", "-Wl,--no-as-needed"]
        command += [f"-Wl,-soname,{name}", str(source), *map(str, needs)]
        # What a needed library needs itself may be missing: that is what is tried here.
        command += ["-Wl,--allow-shlib-undefined", "-o", str(tmp_path / name)]
        subprocess.run(command, check=True, timeout=60)
        return tmp_path / name

    return make


def try_to_load(folder: Path, *names: str) -> dict[str, str]:
    """`missing` in a new process whose loader looks in a folder."""
    packages = str(Path(str(odin_engines.__file__)).parent.parent)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": packages}
    done = subprocess.run(
        [sys.executable, "-c", TRY, *names],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(done.stdout)


def test_what_a_library_needs(build: Build) -> None:
    assert needed(build("libodin_alone.so.1")) == []
    names = [f"libodin_part{index}.so.{index}" for index in range(12)]
    whole = build("libodin_whole.so", *[build(name) for name in names])
    assert needed(whole) == names


def test_all_that_are_missing_are_told_at_once(build: Build, tmp_path: Path) -> None:
    gone, also_gone, there = (build(f"libodin_{n}.so.7") for n in ("gone", "also_gone", "there"))
    whole = build("libodin_whole.so", gone, there, also_gone)
    names = needed(whole)
    assert try_to_load(tmp_path, *names) == {}
    gone.unlink()
    also_gone.unlink()
    found = try_to_load(tmp_path, *names)
    assert list(found) == ["libodin_gone.so.7", "libodin_also_gone.so.7"]
    assert all("cannot open shared object file" in text for text in found.values())


def test_what_a_needed_library_misses_in_turn(build: Build, tmp_path: Path) -> None:
    gone = build("libodin_gone.so.7")
    build("libodin_near.so.2", gone)
    gone.unlink()
    assert list(try_to_load(tmp_path, "libodin_near.so.2")) == ["libodin_gone.so.7"]


def test_a_library_that_is_there_but_broken(build: Build, tmp_path: Path) -> None:
    (tmp_path / "libodin_broken.so.1").write_bytes(b"not a library")
    found = try_to_load(tmp_path, "libodin_broken.so.1")
    assert list(found) == ["libodin_broken.so.1"]
    assert "No such file" not in found["libodin_broken.so.1"]


def test_in_this_process() -> None:
    name = "libodin_no_such_library.so.9"
    assert list(missing(["libc.so.6", name])) == [name]


@pytest.mark.parametrize("content", [b"", b"text", b"\x7fELF\x01\x01" + bytes(64)])
def test_something_else_than_a_library(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "libodin_text.so"
    file.write_bytes(content)
    with pytest.raises(OdinError, match=r"libodin_text\.so is not a whole library"):
        needed(file)


def test_a_library_that_was_cut_short(build: Build, tmp_path: Path) -> None:
    whole = build("libodin_whole.so", build("libodin_part.so.1")).read_bytes()
    file = tmp_path / "libodin_cut.so"
    refused = 0
    for size in range(0, len(whole), 64):
        file.write_bytes(whole[:size])
        try:  # what is cut off may be what nobody looks at
            assert needed(file) == ["libodin_part.so.1"]
        except OdinError:
            refused += 1
    assert refused > 3


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OdinError, match=r"none\.so cannot be read: No such file"):
        needed(tmp_path / "none.so")
