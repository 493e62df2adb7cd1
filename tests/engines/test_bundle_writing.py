"""Bundles are written whole or not at all, and replace nothing but bundles."""

from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path

import pytest

from engines.bundle_graphs import GRAPHS, SpecMaker
from odin_engines import bundle as bundles
from odin_engines.bundle import read_bundle, write_bundle
from odin_engines.errors import OdinError
from odin_engines.spec import SCHEMA, Spec


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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
