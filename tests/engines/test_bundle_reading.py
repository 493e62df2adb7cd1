"""Bundles are refused when anything about them is wrong, and nothing in them is executed."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engines.bundle_graphs import GRAPHS, SpecMaker
from odin_engines.bundle import is_bundle, read_bundle, write_bundle
from odin_engines.errors import OdinError
from odin_engines.spec import Spec

REMEDIES = ("export it again", "copy the whole bundle", "upgrade", "make one with", "choose a")
HUGE = 10**400  # a number in JSON, but no float


def change(folder: Path, **changes: Any) -> None:
    """Change fields of odin.json."""
    file = folder / "odin.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **changes}), "utf-8")


def refused(folder: Path, *parts: str) -> str:
    """Check that the bundle is refused, with a message of these parts and a remedy."""
    with pytest.raises(OdinError) as caught:
        read_bundle(folder)
    message = str(caught.value)
    for part in (str(folder), *parts):
        assert part in message
    assert any(remedy in message for remedy in REMEDIES), message
    assert "\n" not in message
    return message


# Its description


def test_is_bundle(folder: Path) -> None:
    assert is_bundle(folder)
    assert not is_bundle(folder.parent)
    assert not is_bundle(folder / "odin.json")


def test_a_moved_bundle_and_a_link_to_it(folder: Path, tmp_path: Path) -> None:
    moved = folder.rename(tmp_path / "moved")
    (tmp_path / "link").symlink_to(moved)
    assert read_bundle(moved).files == read_bundle(tmp_path / "link").files


def test_no_folder(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "odin-export MODEL --output")


def test_a_name_that_is_too_long() -> None:
    with pytest.raises(OdinError):
        read_bundle(Path("x" * 5000))


def test_no_description(folder: Path) -> None:
    (folder / "odin.json").unlink()
    refused(folder, "it has no odin.json")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"not JSON",
        b"\xff\xfe{\x00",
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b'{"schema": 1, "temperature": ' + b"1" * 5000 + b"}",
    ],
    ids=["empty", "cut", "text", "utf-16", "bom", "deep", "long number"],
)
def test_invalid_json(folder: Path, content: bytes) -> None:
    (folder / "odin.json").write_bytes(content)
    refused(folder, "odin.json cannot be read")


@pytest.mark.parametrize(
    "content",
    ["[]", "null", "5", '"bundle"', "{}", '{"name": "package"}']
    + [f'{{"schema": {value}}}' for value in ("null", '"1"', "1.0", "[1]", "true")],
)
def test_json_of_another_kind(folder: Path, content: str) -> None:
    (folder / "odin.json").write_text(content)
    refused(folder, "odin.json is not a bundle's description")


@pytest.mark.parametrize("schema", [2, 1000])
def test_a_newer_schema(folder: Path, schema: int) -> None:
    change(folder, schema=schema, files="in a form of its own")
    refused(folder, f"has schema {schema}, from a newer odin-ood", "reads up to 1")


@pytest.mark.parametrize("schema", [0, -1])
def test_a_schema_that_never_was(folder: Path, schema: int) -> None:
    change(folder, schema=schema)
    refused(folder, f"has schema {schema}, which never existed")


@pytest.mark.parametrize(
    "name",
    [
        "model",
        "architecture",
        "checkpoint",
        "checkpoint_sha256",
        "classes",
        "mean",
        "std",
        "height",
        "width",
    ],
)
def test_a_missing_field(folder: Path, name: str) -> None:
    description = json.loads((folder / "odin.json").read_text("utf-8"))
    del description[name]
    (folder / "odin.json").write_text(json.dumps(description))
    refused(folder, f"does not say {name}")


def test_fields_with_a_default_may_be_missing(folder: Path, tiny_spec: SpecMaker) -> None:
    description = json.loads((folder / "odin.json").read_text("utf-8"))
    names = ("channels", "in_dataset", "method", "precision", "graph_precision", "seed_scale")
    for name in (*names, "tunable", "threshold", "tools"):
        del description[name]
    (folder / "odin.json").write_text(json.dumps(description))
    assert read_bundle(folder).spec == tiny_spec()


def test_unknown_fields_are_ignored(folder: Path, tiny_spec: SpecMaker) -> None:
    change(folder, comment="by a later version", serving={"port": 80})
    assert read_bundle(folder).spec == tiny_spec()


NAN, INFINITY = float("nan"), float("inf")
BAD_VALUES = {
    "model": (None, 5, ["tiny"]),
    "architecture": (None, {}),
    "checkpoint": (1,),
    "checkpoint_sha256": (None, 0),
    "classes": (0, -1, 2.5, "10", None, True, [10]),
    "channels": (0, -3, 3.0, "3", None, True),
    "mean": (
        *((0.5,), (0.5, 0.5), (0.5,) * 4, 0.5, "abc", None, (0, 0, "0"), (0, 0, None)),
        *((0, 0, NAN), (0, 0, INFINITY), (0, 0, True), (0, 0, HUGE)),
    ),
    "std": ((1.0,), (1, 1, 0), (1, 1, -1), "abc", None, (1, 1, NAN), (1, 1, HUGE)),
    "height": (
        *(32, (32,), (32, 40, 48), ("32", "63"), (32.0, 63.0), None, "ab", (True, True)),
        *((63, 32), (0, 63), (-5, -1)),
    ),
    "width": (32, (32,), (None, None), (63, 32)),
    "in_dataset": (5, ["cifar10"]),
    "temperature": (0, -1, NAN, INFINITY, "10", None, True, [10], HUGE),
    "magnitude": (-0.1, NAN, INFINITY, "0", None, False, HUGE),
    "method": ("Exact", "", None, 0, ["exact"], {"a": 1}),
    "precision": ("float32", None, 32),
    "graph_precision": ("float16", None, 16, "fp16"),
    "seed_scale": (0, -2, 3, 0.3, NAN, INFINITY, "1", None, True),
    "input_type": ("int8", None, []),
    "tunable": (1, "yes", None, "false"),
    "scores": ("energy", 1, None, [1], {"energy": 1}),
    "threshold": ("0.1", NAN, [0.1], True),
    "activation_bytes": (-1, "many", None, 1.5),
    "tools": (None, [], "onnx"),
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(name, value, id=f"{name}-{str(value)[:20]}")
        for name, values in BAD_VALUES.items()
        for value in values
    ],
)
def test_a_bad_value(folder: Path, name: str, value: Any) -> None:
    change(folder, **{name: value})
    refused(folder, "odin.json", name)


def test_a_value_of_every_field_is_checked() -> None:
    assert set(BAD_VALUES) == {field.name for field in dataclasses.fields(Spec)}


# Its files


@pytest.mark.parametrize("files", [None, [], {}, "odin.onnx", {"forward.onnx": {}}])
def test_no_list_of_files(folder: Path, files: Any) -> None:
    change(folder, files=files)
    refused(folder, "odin.json lists no odin.onnx")


@pytest.mark.parametrize("entry", [None, "abc", {}, {"bytes": 7}, {"sha256": "0"}, [7, "0"]])
def test_no_size_or_hash(folder: Path, entry: Any) -> None:
    change(folder, files={"odin.onnx": entry})
    refused(folder, "odin.json gives no size and hash of odin.onnx")


@pytest.mark.parametrize("entry", [{"bytes": "7", "sha256": "0"}, {"bytes": 7, "sha256": None}])
def test_a_size_or_hash_of_another_kind(folder: Path, entry: Any) -> None:
    change(folder, files={"odin.onnx": entry})
    refused(folder, "odin.onnx")


@pytest.mark.parametrize(
    "name", ["../odin.onnx", "/etc/hostname", "sub/odin.onnx", "..", ".", "", "./odin.onnx", "a/"]
)
def test_a_name_that_leads_elsewhere(folder: Path, name: str) -> None:
    shutil.copy(folder / "odin.onnx", folder.parent / "odin.onnx")
    description = json.loads((folder / "odin.json").read_text("utf-8"))
    files = description["files"]
    change(folder, files={**files, name: files["odin.onnx"]})
    refused(folder, f"odin.json lists {name!r}, which is not a plain file name")


@pytest.mark.parametrize("name", GRAPHS)
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, f"{name} is missing")


def test_a_folder_in_place_of_a_file(folder: Path) -> None:
    (folder / "odin.onnx").unlink()
    (folder / "odin.onnx").mkdir()
    refused(folder, "odin.onnx is missing")


def test_a_truncated_file(folder: Path) -> None:
    (folder / "odin.onnx").write_bytes(b"a gra")
    refused(folder, "odin.onnx has 5 bytes, not 7")


def test_a_longer_file(folder: Path) -> None:
    (folder / "forward.onnx").write_bytes(b"x")
    refused(folder, "forward.onnx has 1 bytes, not 0")


@pytest.mark.parametrize("bit", range(8))
def test_one_flipped_bit(folder: Path, bit: int) -> None:
    content = bytearray(GRAPHS["gradient.onnx"])
    content[3] ^= 1 << bit
    (folder / "gradient.onnx").write_bytes(content)
    refused(folder, "gradient.onnx does not match its SHA-256")


def test_a_file_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def denied(self: Path, *arguments: Any, **keywords: Any) -> Any:
        if self.name == "odin.onnx":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opened(self, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(OdinError, match=r"odin\.onnx.*Permission denied"):
        read_bundle(folder)


def test_a_link_is_judged_by_its_content(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (folder / "odin.onnx").rename(outside)
    (folder / "odin.onnx").symlink_to(outside)
    assert set(read_bundle(folder).files) == set(GRAPHS)
    outside.write_bytes(b"a grapE")
    refused(folder, "odin.onnx does not match its SHA-256")


def test_other_files_in_the_folder_do_not_matter(folder: Path) -> None:
    (folder / "README.md").write_text("mine")
    assert set(read_bundle(folder).files) == set(GRAPHS)


def test_nothing_in_it_is_executed(tmp_path: Path, tiny_spec: SpecMaker) -> None:
    marker = tmp_path / "executed"
    code = f"open({str(marker)!r}, 'w')".encode()
    pickled = b"cbuiltins\neval\n(V" + code + b"\ntR."  # unpickling this runs the code
    names = ("odin.onnx", "odin.py", "__init__.py", "sitecustomize.py", "weights.pkl", "lib.so")
    contents = {name: pickled if name.endswith("pkl") else code for name in names}
    path = write_bundle(tmp_path / "tiny", tiny_spec(), contents).path
    program = f"""
import sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from odin_engines.bundle import read_bundle
seen = []
sys.addaudithook(lambda event, _: seen.append(event))
read_bundle(Path({str(path)!r}))
print(*seen)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    events = set(done.stdout.split())
    assert "open" in events
    running = {"exec", "compile", "import", "pickle.find_class", "ctypes.dlopen"}
    assert not events & {*running, "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"}
    assert not marker.exists()
