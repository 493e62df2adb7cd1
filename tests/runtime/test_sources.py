"""Which images stand at a path, in which order, and what of those that cannot be read."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from bench.image_sets import pictures, write_png
from odin_engines.errors import OdinError
from odin_runtime.sources import Item, check_paths, items


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images in all forms, in which the tests are."""
    monkeypatch.chdir(tmp_path)
    for index, name in enumerate(("b.png", "a/2.png", "a/10.png", "a/deep/x.PNG")):
        write_png(tmp_path / "set" / name, pictures()[index])
    (tmp_path / "set" / "notes.txt").write_text("no image")
    (tmp_path / "set" / "._b.png").write_bytes(b"of macOS")
    np.savez(tmp_path / "more.npz", x=pictures(3))
    with tarfile.open("shard.tar", "w") as archive:
        archive.add("set")
    return tmp_path


def found(*paths: str, listed: Iterable[str] = ()) -> list[str]:
    return [item.name for item in items(paths, listed)]


def pixels(item: Item) -> np.ndarray:
    image = item.read()
    assert image.dtype == np.uint8
    return image


def test_a_folder_is_sorted_and_deep() -> None:
    names = ["set/a/10.png", "set/a/2.png", "set/a/deep/x.PNG", "set/b.png"]
    assert found("set") == names
    np.testing.assert_array_equal(pixels(next(items(["set/b.png"], ()))), pictures()[0])


def test_archives_in_a_folder_are_opened(here: Path) -> None:
    (here / "more.npz").rename(here / "set" / "more.npz")
    assert found("set")[-3:] == [f"set/more.npz[{index}]" for index in range(3)]


def test_an_array() -> None:
    chosen = list(items(["more.npz"], ()))
    assert [item.name for item in chosen] == [f"more.npz[{index}]" for index in range(3)]
    for item, expected in zip(chosen, pictures(3), strict=True):
        np.testing.assert_array_equal(pixels(item), expected)
        assert item.encoded is None


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_an_archive(mode: str, here: Path) -> None:
    name = "shard.tar" + mode[1:].replace(":", ".")
    with tarfile.open(name, mode) as archive:  # type: ignore[call-overload]
        archive.add("set")
    by_name = {item.name: item for item in items([name], ())}
    assert set(by_name) == {
        f"{name}/set/{n}" for n in ("b.png", "a/2.png", "a/10.png", "a/deep/x.PNG")
    }
    item = by_name[f"{name}/set/b.png"]
    np.testing.assert_array_equal(pixels(item), pictures()[0])
    assert item.encoded is not None
    assert item.encoded() == (here / "set" / "b.png").read_bytes()


def test_a_glob(here: Path) -> None:
    assert found("set/*.png") == ["set/._b.png", "set/b.png"]
    assert found("set/**/1*.png") == ["set/a/10.png"]
    assert found(f"{here}/set/a/*.png") == [f"{here}/set/a/10.png", f"{here}/set/a/2.png"]
    (here / "odd[1].png").write_bytes((here / "set" / "b.png").read_bytes())
    assert found("odd[1].png") == ["odd[1].png"]


def test_a_list() -> None:
    listed = ["set/b.png\n", "\n", "more.npz\n", "-\n", "gone.png"]
    chosen = list(items(["set/a/2.png", "-"], listed))
    names = [item.name for item in chosen]
    assert names[:5] == ["set/a/2.png", "set/b.png", *(f"more.npz[{index}]" for index in range(3))]
    assert names[5:] == ["gone.png"]
    with pytest.raises(OdinError, match=r"gone\.png cannot be read"):
        chosen[-1].read()


def test_what_cannot_be_read_is_an_item(here: Path) -> None:
    (here / "cut.npz").write_bytes((here / "more.npz").read_bytes()[:100])
    whole = (here / "shard.tar").read_bytes()
    (here / "cut.tar").write_bytes(whole[: len(whole) // 2 + 100])
    (here / "empty").mkdir()
    (here / "b.png").write_bytes(b"not a picture")
    for path in ("cut.npz", "cut.tar", "empty", "b.png"):
        *good, bad = items([path], ())
        for item in good:
            pixels(item)
        with pytest.raises(OdinError, match=path):
            bad.read()


def test_members_of_an_archive_are_bytes_alone() -> None:
    """Links and paths that lead elsewhere write and read nothing."""
    with tarfile.open("sly.tar", "w") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        outside = tarfile.TarInfo("../outside.png")
        outside.size = 4
        archive.addfile(outside, io.BytesIO(b"data"))
    assert found("sly.tar") == ["sly.tar/../outside.png"]
    assert not Path("../outside.png").exists()


def test_paths_are_checked_first() -> None:
    check_paths(["set", "more.npz", "-", "set/*.png"])
    with pytest.raises(OdinError, match=r"gone does not exist; give image files, folders"):
        check_paths(["set", "gone"])
    with pytest.raises(OdinError, match=r"set/\*\.tif matches nothing"):
        check_paths(["set/*.tif"])
