"""Bundles on disk: written whole or not at all, and refused when anything about them is wrong."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from odin_engines import bundle as bundles
from odin_engines.bundle import is_bundle, read_bundle, write_bundle
from odin_engines.errors import OdinError
from odin_engines.spec import SCHEMA, Spec

GRAPHS = {"odin.onnx": b"a graph", "gradient.onnx": b"another graph", "forward.onnx": b""}
REMEDIES = ("export it again", "copy the whole bundle", "upgrade", "make one with", "choose a")
HUGE = 10**400  # a number in JSON, but no float

SpecMaker = Callable[..., Spec]


@pytest.fixture
def folder(tmp_path: Path, tiny_spec: SpecMaker) -> Path:
    """A bundle alone in its parent folder."""
    return write_bundle(tmp_path / "here" / "tiny", tiny_spec(), GRAPHS).path


def change(folder: Path, **changes: Any) -> None:
    """Change fields of odin.json."""
    file = folder / "odin.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **changes}), "utf-8")


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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


# Writing


def test_what_is_written_is_read(tmp_path: Path, tiny_spec: SpecMaker) -> None:
    spec = tiny_spec(
        in_dataset="cifar10",
        method="first-order",
        precision="bf16",
        graph_precision="bf16",
        seed_scale=0.25,
        input_type="uint8",
        tunable=True,
        scores=("energy", "gen"),
        threshold=0.1003,
        activation_bytes=123_456,
        tools={"onnx": "1.18"},
    )
    unchanged = [
        field.name
        for field in dataclasses.fields(Spec)
        if field.default is not dataclasses.MISSING
        and getattr(spec, field.name) == field.default
        and field.name != "channels"
    ]
    assert not unchanged, "give every field a value that is not its default"
    written = write_bundle(tmp_path / "deep" / "er" / "tiny", spec, GRAPHS)
    read = read_bundle(tmp_path / "deep" / "er" / "tiny")
    assert read == written
    assert read.spec == spec
    assert set(read.files) == set(GRAPHS)
    for name, content in GRAPHS.items():
        assert read.file(name).read_bytes() == content


def test_description_is_plain_json(folder: Path) -> None:
    description = json.loads((folder / "odin.json").read_text("utf-8"))
    assert description["schema"] == SCHEMA
    assert description["temperature"] == 10.0
    assert set(description["files"]) == set(GRAPHS)
    assert description["files"]["odin.onnx"]["bytes"] == len(b"a graph")


def test_any_user_may_read_it(folder: Path) -> None:
    assert folder.stat().st_mode & 0o055 == 0o055


def test_asking_for_a_file_that_it_does_not_have(folder: Path) -> None:
    with pytest.raises(OdinError, match=r"holds no plan\.engine; export it again"):
        read_bundle(folder).file("plan.engine")


def test_replacing_a_bundle(folder: Path, tiny_spec: SpecMaker) -> None:
    write_bundle(folder, tiny_spec(magnitude=0.5), {"odin.onnx": b"new"})
    assert read_bundle(folder).spec.magnitude == 0.5
    assert listing(folder) == ["odin.json", "odin.onnx"]
    assert listing(folder.parent) == ["tiny"]


def test_replacing_a_damaged_bundle(folder: Path, tiny_spec: SpecMaker) -> None:
    (folder / "odin.json").write_text("{")
    write_bundle(folder, tiny_spec(), GRAPHS)
    assert read_bundle(folder).spec == tiny_spec()


def test_an_empty_folder_is_taken(tmp_path: Path, tiny_spec: SpecMaker) -> None:
    (tmp_path / "tiny").mkdir()
    write_bundle(tmp_path / "tiny", tiny_spec(), GRAPHS)
    assert read_bundle(tmp_path / "tiny").spec == tiny_spec()
    assert listing(tmp_path) == ["tiny"]


def test_a_relative_path(
    tmp_path: Path, tiny_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written = write_bundle(Path("tiny"), tiny_spec(), GRAPHS)
    assert written.path == tmp_path / "tiny"
    assert read_bundle(Path("tiny")).files == written.files


def test_a_folder_of_something_else_is_refused(tmp_path: Path, tiny_spec: SpecMaker) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.png").write_bytes(b"cat")
    with pytest.raises(OdinError, match=r"photos exists and is not a bundle; choose another"):
        write_bundle(photos, tiny_spec(), GRAPHS)
    assert listing(photos) == ["cat.png"]
    assert listing(tmp_path) == ["photos"]


def test_a_bundle_with_files_of_the_user_is_refused(folder: Path, tiny_spec: SpecMaker) -> None:
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OdinError, match=r"notes\.txt"):
        write_bundle(folder, tiny_spec(magnitude=0.5), GRAPHS)
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_file_in_the_way_is_refused(tmp_path: Path, tiny_spec: SpecMaker) -> None:
    (tmp_path / "tiny").write_text("mine")
    with pytest.raises(OdinError, match="exists and is not a bundle; choose another"):
        write_bundle(tmp_path / "tiny", tiny_spec(), GRAPHS)
    assert (tmp_path / "tiny").read_text() == "mine"


def test_a_parent_that_is_a_file(tmp_path: Path, tiny_spec: SpecMaker) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OdinError) as caught:
        write_bundle(tmp_path / "file" / "tiny", tiny_spec(), GRAPHS)
    assert str(tmp_path / "file") in str(caught.value)
    assert "choose" in str(caught.value)


def test_a_link_to_a_bundle_is_replaced_not_followed(
    folder: Path, tmp_path: Path, tiny_spec: SpecMaker
) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder)
    write_bundle(link, tiny_spec(magnitude=0.5), GRAPHS)
    assert read_bundle(link).spec.magnitude == 0.5
    assert read_bundle(folder).spec == tiny_spec()
    assert listing(tmp_path) == ["here", "link"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("exists", [False, True])
def test_an_error_in_writing_changes_nothing(
    tmp_path: Path,
    tiny_spec: SpecMaker,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    exists: bool,
) -> None:
    path = tmp_path / "tiny"
    if exists:
        write_bundle(path, tiny_spec(), GRAPHS)
    calls = []

    def failing(file: Path) -> str:
        calls.append(file)
        if len(calls) == 2:
            raise error
        return "0" * 64

    monkeypatch.setattr(bundles, "sha256", failing)
    with pytest.raises((OdinError, KeyboardInterrupt)) as caught:
        write_bundle(path, tiny_spec(magnitude=0.5), GRAPHS)
    monkeypatch.undo()
    assert len(calls) == 2
    assert listing(tmp_path) == (["tiny"] if exists else [])
    if exists:
        assert read_bundle(path).spec == tiny_spec()
    if isinstance(error, OSError):
        assert str(caught.value) == f"cannot write {path}: No space left"


def test_a_value_that_json_cannot_hold_leaves_nothing(tmp_path: Path, tiny_spec: SpecMaker) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_bundle(tmp_path / "tiny", tiny_spec(threshold=float("nan")), GRAPHS)
    assert listing(tmp_path) == []


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("count", [1, 2])
def test_interrupted_while_taking_the_old_ones_place(
    folder: Path,
    tiny_spec: SpecMaker,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    when: str,
    count: int,
) -> None:
    rename = Path.rename
    calls = []

    def interrupted(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == count and when == "before":
            raise error
        renamed = rename(self, target)
        if len(calls) == count:
            raise error
        return renamed

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises((OdinError, KeyboardInterrupt)):
        write_bundle(folder, tiny_spec(magnitude=0.5), GRAPHS)
    monkeypatch.undo()
    done = (count, when) == (2, "after")
    assert read_bundle(folder).spec.magnitude == (0.5 if done else 0.01)
    assert listing(folder.parent) == ["tiny"]


# Reading


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
