"""Which images stand at a path, in which order, and what of those that cannot be read."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.image_sets import pictures, write_png
from odin_engines.errors import OdinError
from odin_runtime.sources import Item, check_paths, items, paths_of_list


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


def found(*paths: str, listed: Sequence[str] = ()) -> list[str]:
    return [item.name for item in items(paths, listed, 3)]


def refusal(item: Item) -> str:
    with pytest.raises(OdinError) as caught:
        item.read()
    return str(caught.value)


def pixels(item: Item) -> np.ndarray:
    image = item.read()
    assert image.dtype == np.uint8
    return image


def test_a_folder_is_sorted_and_deep() -> None:
    names = ["set/a/10.png", "set/a/2.png", "set/a/deep/x.PNG", "set/b.png"]
    assert found("set") == names
    np.testing.assert_array_equal(pixels(next(items(["set/b.png"], (), 3))), pictures()[0])


def test_archives_in_a_folder_are_opened(here: Path) -> None:
    (here / "more.npz").rename(here / "set" / "more.npz")
    assert found("set")[-3:] == [f"set/more.npz[{index}]" for index in range(3)]


def test_an_array() -> None:
    chosen = list(items(["more.npz"], (), 3))
    assert [item.name for item in chosen] == [f"more.npz[{index}]" for index in range(3)]
    for item, expected in zip(chosen, pictures(3), strict=True):
        np.testing.assert_array_equal(pixels(item), expected)
        assert item.encoded is None


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_an_archive(mode: str, here: Path) -> None:
    name = "shard.tar" + mode[1:].replace(":", ".")
    with tarfile.open(name, mode) as archive:  # type: ignore[call-overload]
        archive.add("set")
    by_name = {item.name: item for item in items([name], (), 3)}
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
    listed = paths_of_list(b"set/b.png\r\n\nmore.npz\n-\ngone.png")
    chosen = list(items(["set/a/2.png", "-"], listed, 3))
    names = [item.name for item in chosen]
    assert names[:5] == ["set/a/2.png", "set/b.png", *(f"more.npz[{index}]" for index in range(3))]
    assert names[5:] == ["gone.png"]
    assert "gone.png cannot be read" in refusal(chosen[-1])


def test_a_list_names_any_file() -> None:
    """What a line cannot hold, a list of names ended by NUL can."""
    names = [
        b"two\nlines.png",
        b"caf\xe9.png",
        b" blanks .png",
        b"sep\xe2\x80\xa8arator.png",
        b"e\r",
    ]
    assert [os.fsencode(path) for path in paths_of_list(b"\0".join(names))] == names
    assert [os.fsencode(path) for path in paths_of_list(b"\n".join(names[1:4]))] == names[1:4]
    assert paths_of_list(b"") == paths_of_list(b"\n") == []
    write_png(Path(os.fsdecode(names[1])), pictures()[0])
    np.testing.assert_array_equal(pixels(next(items(["-"], ["caf\udce9.png"], 3))), pictures()[0])


def test_a_line_of_a_list_that_is_no_path_harms_no_other() -> None:
    chosen = list(items(["-"], ["x" * 5000, "set/**x", "set/b.png", "no/*.png"], 3))
    assert [item.name for item in chosen] == ["x" * 5000, "set/**x", "set/b.png", "no/*.png"]
    assert "File name too long" in refusal(chosen[0])
    assert refusal(chosen[1]).startswith("set/**x ")
    pixels(chosen[2])
    assert refusal(chosen[3]) == "no/*.png does not exist, and as a glob matches nothing"


def test_what_cannot_be_read_is_an_item(here: Path) -> None:
    (here / "cut.npz").write_bytes((here / "more.npz").read_bytes()[:100])
    whole = (here / "shard.tar").read_bytes()
    (here / "cut.tar").write_bytes(whole[: len(whole) // 2 + 100])
    (here / "empty").mkdir()
    (here / "b.png").write_bytes(b"not a picture")
    for path in ("cut.npz", "cut.tar", "empty", "b.png"):
        *good, bad = items([path], (), 3)
        for item in good:
            pixels(item)
        with pytest.raises(OdinError, match=path):
            bad.read()


def test_a_folder_that_may_not_be_read_is_an_item(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read all, so that the test has to refuse it."""
    scan = os.scandir

    def closed(path: Any) -> Any:
        if Path(path).name == "a":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scan(path)

    monkeypatch.setattr("os.scandir", closed)
    bad, good = items(["set"], (), 3)
    assert bad.name == "set/a"
    assert refusal(bad) == "set/a cannot be read: Permission denied"
    assert good.name == "set/b.png"


def test_links_and_pipes(here: Path) -> None:
    """A link to nothing is told; a pipe, that would never end, is no image; loops are not gone."""
    (here / "set" / "gone.png").symlink_to("nothing.png")
    (here / "set" / "loop").symlink_to(here / "set")
    os.mkfifo(here / "set" / "pipe.png")
    by_name = {item.name: item for item in items(["set"], (), 3)}
    assert len(by_name) == 5
    assert "No such file" in refusal(by_name["set/gone.png"])


def test_an_archive_without_images(here: Path) -> None:
    with tarfile.open("notes.tar", "w") as archive:
        archive.add(here / "set" / "notes.txt", arcname="notes.txt")
    (item,) = items(["notes.tar"], (), 3)
    assert "notes.tar holds no images (.bmp" in refusal(item)


@pytest.mark.parametrize("channels", [1, 4])
def test_channels_are_the_networks(channels: int, here: Path) -> None:
    (here / "more.npz").unlink()
    np.savez(here / "more.npz", x=np.zeros((2, 6, 5, channels), np.uint8))
    for path in ("more.npz", "set/b.png", "shard.tar"):
        item = next(items([path], (), channels))
        if channels == 4 and path != "more.npz":
            assert "the network takes 4; give the images as arrays" in refusal(item)
        else:
            assert pixels(item).shape[2] == channels


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
    with pytest.raises(OdinError, match=r"a PATH is empty.*name \. if"):
        check_paths(["set", ""])
    # Newer Pythons take it for two plain stars.
    with pytest.raises(OdinError, match=r"set/\*\*x (is no glob that can|matches nothing)"):
        check_paths(["set/**x"])
