"""Image sets from .npz files and folders of images: what is read, cropped and refused."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from bench.image_sets import pictures, write_png
from odin_bench.datasets import load
from odin_engines.errors import OdinError
from odin_runtime import image_files

pytestmark = pytest.mark.usefixtures("alone")


# .npz files


def test_an_npz_file_by_path(tmp_path):
    file = tmp_path / "mine.v2.npz"
    np.savez(file, x=np.asfortranarray(pictures()), y=np.array([3, 1, 4, 1], np.uint8))
    found = load(str(file))
    assert (found.name, found.source, len(found)) == ("mine.v2", str(file), 4)
    assert found.images.flags.c_contiguous
    np.testing.assert_array_equal(found.images, pictures())
    assert found.labels is not None
    assert found.labels.dtype == np.int64
    assert found.labels.tolist() == [3, 1, 4, 1]


def test_skip_and_limit(tmp_path):
    np.savez(tmp_path / "a.npz", x=pictures(5), y=np.arange(5))
    found = load(str(tmp_path / "a.npz"), skip=1, limit=3)
    np.testing.assert_array_equal(found.images, pictures(5)[1:4])
    assert found.labels is not None
    assert found.labels.tolist() == [1, 2, 3]
    assert len(load(str(tmp_path / "a.npz"), skip=1, limit=30)) == 4


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"skip": 4}, "has 4 images; cannot leave out the first 4"),
        ({"skip": -1}, "want skip >= 0 and limit >= 1"),
        ({"limit": 0}, "want skip >= 0 and limit >= 1"),
    ],
)
def test_skip_and_limit_out_of_range(bounds, message, tmp_path):
    np.savez(tmp_path / "a.npz", x=pictures(4))
    with pytest.raises(OdinError, match=message):
        load(str(tmp_path / "a.npz"), **bounds)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": pictures()}, "has no array x; want an .npz file with x: uint8"),
        ({"x": np.array([{}, None], object)}, "cannot be read: Object arrays cannot be loaded"),
        ({"x": pictures() / 255.0}, r"x is float64 \(4, 6, 6, 3\); want uint8 \(N, H, W, 3\)"),
        ({"x": pictures().transpose(0, 3, 1, 2)}, r"x is uint8 \(4, 3, 6, 6\); want uint8"),
        ({"x": pictures()[0]}, r"x is uint8 \(6, 6, 3\); want uint8"),
        ({"x": pictures()[:0]}, "empty set"),
        ({"x": pictures()[:, :0]}, "empty set"),
        ({"x": pictures(), "y": np.arange(3)}, r"y is int64 \(3,\); want integers \(4,\)"),
        ({"x": pictures(), "y": np.ones(4)}, r"y is float64 \(4,\); want integers \(4,\)"),
        ({"x": pictures(), "y": np.array([None] * 4)}, "cannot be read: Object arrays"),
    ],
)
def test_an_npz_file_with_the_wrong_content(arrays, message, tmp_path):
    file = tmp_path / "wrong.npz"
    np.savez(file, **arrays)
    with pytest.raises(OdinError, match=message) as caught:
        load(str(file))
    assert str(file) in str(caught.value)


def test_files_that_are_no_npz(tmp_path):
    file = tmp_path / "set.npz"
    np.save(tmp_path / "bare.npy", pictures())
    with zipfile.ZipFile(tmp_path / "text.zip", "w") as archive:
        archive.writestr("x", "not an array")
    contents = [b"", b"text", b"\x80\x04N."]
    contents += [(tmp_path / name).read_bytes() for name in ("bare.npy", "text.zip")]
    for content in contents:
        file.write_bytes(content)
        with pytest.raises(OdinError, match=str(file)):
            load(str(file))


@pytest.mark.parametrize("compressed", [True, False])
def test_a_truncated_npz_file(compressed, tmp_path):
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, x=pictures(1, 2), y=[1])
    whole, file = buffer.getvalue(), tmp_path / "cut.npz"
    for length in range(0, len(whole), 7):
        file.write_bytes(whole[:length])
        with pytest.raises(OdinError, match=r"cut\.npz"):
            load(str(file))


@pytest.mark.filterwarnings("ignore")  # of zipfile and numpy, about the damage
def test_a_damaged_npz_file_never_gives_anything_but_our_error(tmp_path):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=pictures(1, 2), y=[1])
    whole, file = buffer.getvalue(), tmp_path / "damaged.npz"
    refused = 0
    for i in range(len(whole)):
        for flip in (0xFF, 0x01, 0x20):
            file.write_bytes(whole[:i] + bytes([whole[i] ^ flip]) + whole[i + 1 :])
            try:
                load(str(file))
            except OdinError:
                refused += 1
    assert refused > len(whole)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (10**9, 32, 32, 3)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 32, 32, 3)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999999999, 32, 32, 3)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 32, 32, 3)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (True,)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
        "{[]: 1}",
        "[",
        "(" * 3000,
    ],
)
def test_an_npz_file_with_a_lying_header(header, tmp_path):
    npy = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"abc"
    with zipfile.ZipFile(tmp_path / "lies.npz", "w") as archive:
        archive.writestr("x.npy", npy)
    with pytest.raises(OdinError, match=r"lies\.npz"):
        load(str(tmp_path / "lies.npz"))


def test_a_set_too_large_for_the_memory(tmp_path, monkeypatch):
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    np.savez(tmp_path / "a.npz", x=pictures())
    monkeypatch.setattr(np, "load", exhausted)
    with pytest.raises(OdinError, match="does not fit in memory"):
        load(str(tmp_path / "a.npz"))


# Image folders


@pytest.mark.parametrize("where", ["", "test", "cat", "test/cat"])
def test_image_folders_are_read_in_the_order_of_their_paths(where, data):
    for i in (2, 0, 3, 1):
        write_png(data / "iSUN" / where / f"{i:04}.png", pictures()[i])
    (data / "iSUN" / where / "._0000.png").write_bytes(b"left by macOS")
    (data / "iSUN" / "list.txt").write_text("no image")
    found = load("iSUN", data)
    assert (found.name, found.labels, found.source) == ("iSUN", None, str(data / "iSUN"))
    np.testing.assert_array_equal(found.images, pictures())
    part = load("iSUN", data, skip=1, limit=2)
    np.testing.assert_array_equal(part.images, pictures()[1:3])


def test_class_subfolders_and_an_upper_case_suffix(tmp_path):
    write_png(tmp_path / "mine" / "dog" / "0.PNG", pictures()[1])
    write_png(tmp_path / "mine" / "cat" / "9.png", pictures()[0])
    found = load(str(tmp_path / "mine"))
    assert found.name == "mine"
    np.testing.assert_array_equal(found.images, pictures()[:2])


def test_only_the_test_folder_of_a_set_with_both_is_read(tmp_path):
    write_png(tmp_path / "mine" / "train" / "0.png", pictures()[1])
    write_png(tmp_path / "mine" / "test" / "0.png", pictures()[0])
    np.testing.assert_array_equal(load(str(tmp_path / "mine")).images, pictures()[:1])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_any_8_bit_mode_becomes_rgb(mode, tmp_path):
    write_png(tmp_path / "mine" / "0.png", pictures()[0], mode)
    wanted = np.asarray(Image.open(tmp_path / "mine" / "0.png").convert("RGB"))
    np.testing.assert_array_equal(load(str(tmp_path / "mine")).images[0], wanted)


def test_16_bit_images_are_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    Image.fromarray(np.full((4, 4), 700, np.uint16)).save(tmp_path / "mine" / "0.png")
    with pytest.raises(OdinError, match=r"0\.png: pixels of mode I;16; want 8 bits a channel"):
        load(str(tmp_path / "mine"))


def test_images_of_two_sizes_are_refused(tmp_path):
    write_png(tmp_path / "mine" / "0.png", pictures(1, 6)[0])
    write_png(tmp_path / "mine" / "1.png", pictures(1, 5)[0])
    with pytest.raises(OdinError, match=r"1\.png is 5x5 and .*0\.png is 6x6; scale"):
        load(str(tmp_path / "mine"))


def test_a_folder_without_images(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(OdinError, match=r"mine holds no images; want .*test.*\.png"):
        load(str(tmp_path / "mine"))


@pytest.mark.filterwarnings("ignore")  # of Pillow, about the damage
def test_a_damaged_image_never_gives_anything_but_our_error(tmp_path):
    for suffix in ("png", "jpg", "bmp", "tif", "webp", "ppm"):
        file = tmp_path / suffix / f"0.{suffix}"
        write_png(file, pictures(1, 4)[0])
        whole = file.read_bytes()
        damaged = [whole[:cut] for cut in range(0, len(whole), 11)]
        damaged += [
            whole[:i] + bytes([whole[i] ^ 0xFF]) + whole[i + 1 :] for i in range(0, len(whole), 3)
        ]
        refused = 0
        for content in damaged:
            file.write_bytes(content)
            try:
                image_files.decode_rgb(file, file.name)
            except OdinError as error:
                assert file.name in str(error)
                refused += 1
        assert refused > 5, suffix


# Crop


def test_crop_keeps_the_inner_pixels(tmp_path):
    np.savez(tmp_path / "a.npz", x=pictures(2, 36))
    found = load(str(tmp_path / "a.npz"), crop=32)
    np.testing.assert_array_equal(found.images, pictures(2, 36)[:, 2:34, 2:34])
    assert found.images.flags.c_contiguous
    assert load(str(tmp_path / "a.npz"), crop=36).images.shape == (2, 36, 36, 3)


@pytest.mark.parametrize("crop", [37, 0, -1])
def test_a_crop_that_does_not_fit(crop, tmp_path):
    np.savez(tmp_path / "a.npz", x=pictures(2, 36))
    with pytest.raises(OdinError, match=f"cannot crop 36x36 images to {crop}x{crop}"):
        load(str(tmp_path / "a.npz"), crop=crop)
