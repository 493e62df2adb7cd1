"""Copies of images, each under a name of its own; what cannot be copied is told by name."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.image_sets import pictures, write_png
from odin_engines.errors import OdinError
from odin_runtime.flagged import check_folder, copy_flagged
from odin_runtime.sources import Item, items

FOLDER = Path("odd")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for index, name in enumerate(("a/x.png", "b/x.png")):
        write_png(tmp_path / name, pictures()[index])
    return tmp_path


def copied(*paths: str, channels: int = 3, which: Any = lambda name: True) -> list[str]:
    """Paths of the copies, in the order of their names."""
    found = list(items(paths, (), channels))
    rows = [{"path": item.name, "is_ood": which(item.name)} for item in found]
    count = copy_flagged(items(paths, (), channels), rows, FOLDER)
    names = sorted(str(file.relative_to(FOLDER)) for file in FOLDER.rglob("*") if file.is_file())
    assert count == len(names) == sum(row["is_ood"] for row in rows)
    return names


def test_images_of_one_name_do_not_replace_each_other(here: Path) -> None:
    assert copied("a", "b", f"{here}/a", "a/x.png", "./b/../a/x.png") == sorted(
        ["a/x.png", "b/x.png", f"{here}/a/x.png"[1:], "a/x~2.png", "b/_/a/x.png"]
    )
    assert (FOLDER / "b" / "x.png").read_bytes() == Path("b/x.png").read_bytes()


def test_only_what_is_flagged_is_copied() -> None:
    assert copied("a", "b", which=lambda name: name.startswith("b")) == ["b/x.png"]


def test_members_of_an_archive_stay_below_the_folder(here: Path) -> None:
    """One that leads out of the folder, and one that is there twice."""
    content = (here / "a" / "x.png").read_bytes()
    with tarfile.open("shard.tar", "w") as archive:
        for name in ("../../x.png", "/x.png", "y.png", "y.png"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert copied("shard.tar") == [
        f"shard.tar/{name}" for name in ("_/_/x.png", "x.png", "y.png", "y~2.png")
    ]
    assert {file.name for file in here.iterdir()} == {"a", "b", "odd", "shard.tar"}


@pytest.mark.parametrize(("channels", "ending"), [(1, "png"), (3, "png"), (4, "npy")])
def test_arrays_of_any_channels(channels: int, ending: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 4, channels), np.uint8)
    np.savez("more.npz", x=images)
    names = copied("more.npz", channels=channels)
    assert names == [f"more.npz[{index}].{ending}" for index in range(2)]
    copy = FOLDER / names[1]
    found = np.load(copy) if ending == "npy" else np.asarray(Image.open(copy))
    np.testing.assert_array_equal(found.reshape(images[1].shape), images[1])


def test_images_that_changed_meanwhile() -> None:
    rows = [{"path": f"a/{name}.png", "is_ood": True} for name in "xy"]
    with pytest.raises(OdinError, match=r"none is where a/y\.png was; 1 are copied"):
        copy_flagged(items(["a"], (), 3), rows, FOLDER)
    with pytest.raises(OdinError, match=r"b/x\.png is where a/x\.png was; 0 are copied"):
        copy_flagged(items(["b"], (), 3), rows, FOLDER)
    with pytest.raises(OdinError, match=r"b/x\.png is where none was"):
        copy_flagged(items(["a", "b"], (), 3), rows[:1], FOLDER)


def test_an_image_that_is_gone_is_named_and_not_its_copy() -> None:
    found = list(items(["a"], (), 3))
    Path("a/x.png").unlink()
    with pytest.raises(OdinError, match=r"^a/x\.png cannot be read again: No such file"):
        copy_flagged(found, [{"path": "a/x.png", "is_ood": True}], FOLDER)
    assert not list(FOLDER.rglob("*"))


def test_a_copy_that_cannot_be_written(here: Path) -> None:
    def again() -> None:
        item = Item("a/x.png", lambda: pictures()[0], lambda: b"content")
        copy_flagged([item], [{"path": "a/x.png", "is_ood": True}], FOLDER)

    FOLDER.mkdir()
    (FOLDER / "a").write_text("a file")
    with pytest.raises(OdinError, match="cannot make the folder odd/a: File exists"):
        again()
    (FOLDER / "a").unlink()
    (FOLDER / "a" / "x.png").mkdir(parents=True)
    with pytest.raises(OdinError, match=r"cannot write odd/a/x\.png"):
        again()
    assert not list((FOLDER / "a" / "x.png").iterdir())


def test_the_folder_is_checked_first(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_folder(FOLDER, ["a", "b/x.png", "-"])
    check_folder(here / "new" / "deep", ["a"])
    assert not (here / "new").exists()
    with pytest.raises(OdinError, match=r"--copy-flagged a/x\.png is no folder"):
        check_folder(Path("a/x.png"), ["b"])
    with pytest.raises(OdinError, match=r"a/x\.png is no folder"):
        check_folder(Path("a/x.png/new"), ["b"])
    for inside in ("a", "a/odd", "b/../a/odd"):
        with pytest.raises(OdinError, match="lies in a, whose images are scored"):
            check_folder(Path(inside), ["b", "a"])
    monkeypatch.setattr("os.access", lambda path, mode: False)  # which root always may
    with pytest.raises(OdinError, match="is not writable"):
        check_folder(FOLDER, ["a"])
