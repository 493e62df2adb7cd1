"""Loading image sets: names, files, folders, noise, and the release's split."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from odin_bench import datasets, download, image_files
from odin_bench.datasets import Dataset, available, canonical, load, noise, protocol_split
from odin_engines.errors import OdinError

REAL = os.environ.get("ODIN_DATA")
real_data = pytest.mark.skipif(not REAL, reason="set ODIN_DATA to a folder with the image sets")


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test off the user's own sets and off the network."""
    monkeypatch.delenv("ODIN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def refuse(*_: object, **__: object) -> Path:
        raise AssertionError("this test must not fetch anything")

    monkeypatch.setattr(download, "fetch", refuse)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def pictures(n: int = 4, side: int = 6) -> np.ndarray:
    """Images that all differ."""
    return np.arange(n * side * side * 3, dtype=np.uint8).reshape(n, side, side, 3) * 7


def write_png(path: Path, pixels: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path)


def fake(name: str, n: int) -> Dataset:
    """A set whose every image carries its own index."""
    images = np.arange(n, dtype="<u4").view(np.uint8).reshape(n, 1, 1, 4)[..., :3]
    return Dataset(name, images, None, f"/sets/{name}.npz")


def indices(part: Dataset) -> tuple[int, int]:
    """The first and last index of a part of a `fake` set."""
    first, last = part.images[0, 0, 0].astype(int), part.images[-1, 0, 0].astype(int)
    weights = np.array([1, 256, 65536])
    return int(first @ weights), int(last @ weights)


# Names


@pytest.mark.parametrize(
    ("name", "role", "wanted"),
    [
        ("cifar10", None, "cifar10"),
        ("CIFAR10", None, "cifar10"),
        ("CIFAR-10", None, "CIFAR-10"),
        ("cifar_100", None, "CIFAR-100"),
        ("CIFAR-100", "in", "cifar100"),
        ("cifar100", "out", "CIFAR-100"),
        ("imagenet", None, "Imagenet"),
        ("IMAGENET-RESIZE", None, "Imagenet_resize"),
        ("isun", None, "iSUN"),
        ("gaussian", "out", "Gaussian"),
        ("./SVHN", None, None),
        ("cifar", None, None),
    ],
)
def test_names_are_matched_in_any_case(name, role, wanted):
    assert canonical(name, role) == wanted


@pytest.mark.parametrize(
    ("name", "meant"),
    [("Imagnet", "Imagenet"), ("gausian", "Gaussian"), ("LSUN_rezise", "LSUN_resize")],
)
def test_a_misspelled_name_is_answered_with_the_right_one(name, meant, data):
    with pytest.raises(OdinError, match=f"did you mean {meant}\\?"):
        load(name, data)


def test_an_unknown_name_lists_the_known_ones(data):
    with pytest.raises(OdinError, match=r"unknown image set 'qqq'; known are cifar10, .*Uniform"):
        load("qqq", data)


@pytest.mark.parametrize("name", ["nothing.npz", "no/such/folder"])
def test_a_path_that_does_not_exist(name):
    with pytest.raises(OdinError, match=f"{name} does not exist"):
        load(name)


# Where sets are looked for


def test_search_path_is_data_then_variable_then_cache(tmp_path, data, monkeypatch):
    named, cache = tmp_path / "named", tmp_path / "cache" / "odin-ood" / "data"
    named.mkdir()
    cache.mkdir(parents=True)
    monkeypatch.setenv("ODIN_DATA", str(named))
    assert datasets.search_path(data) == [data, named, cache]
    assert datasets.search_path() == [named, cache]
    monkeypatch.setenv("ODIN_DATA", str(tmp_path / "gone"))
    assert datasets.search_path() == [cache]


def test_a_data_folder_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(OdinError, match="gone is not a folder"):
        load("SVHN", tmp_path / "gone")


def test_cache_folder_without_the_variable_is_in_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert datasets.cache_folder() == tmp_path / ".cache" / "odin-ood" / "data"


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(OdinError, match="set XDG_CACHE_HOME"):
        datasets.search_path()


def test_a_cache_folder_that_may_not_be_looked_at_is_passed_over(data, monkeypatch):
    is_dir = Path.is_dir

    def forbidden(path: Path) -> bool:
        if "cache" in path.parts:
            raise PermissionError(13, "Permission denied")
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", forbidden)
    assert datasets.search_path(data) == [data]


def test_the_first_folder_wins(tmp_path, data, monkeypatch):
    named = tmp_path / "named"
    named.mkdir()
    np.savez(named / "SVHN.npz", x=pictures(1))
    np.savez(data / "SVHN.npz", x=pictures(2))
    monkeypatch.setenv("ODIN_DATA", str(named))
    assert load("svhn", data).source == str(data / "SVHN.npz")
    assert load("svhn").source == str(named / "SVHN.npz")


def test_available_keeps_the_order_of_the_release_and_leaves_out_the_own_set(data):
    assert available(data) == ["Uniform", "Gaussian"]
    for name in ("DTD", "SVHN", "iSUN", "Imagenet", "cifar100_train_10k", "cifar10_test"):
        np.savez(data / f"{name}.npz", x=pictures())
    write_png(data / "LSUN" / "test" / "0.png", pictures()[0])
    (data / "LSUN_resize").mkdir()  # empty: nothing to score
    sets = ["Imagenet", "LSUN", "iSUN", "SVHN", "DTD"]
    assert available(data) == [*sets, "CIFAR-100", "Uniform", "Gaussian"]
    assert available(data, "CIFAR-100") == [*sets, "CIFAR-10", "Uniform", "Gaussian"]


def test_the_best_cifar100_file_at_hand_is_taken_for_either_role(data):
    np.savez(data / "cifar100_test_1k.npz", x=pictures(1), y=[0])
    assert load("CIFAR-100", data).source.endswith("cifar100_test_1k.npz")
    np.savez(data / "cifar100_train_10k.npz", x=pictures(2))
    assert load("CIFAR-100", data).source.endswith("cifar100_train_10k.npz")
    assert load("cifar100", data).source.endswith("cifar100_test_1k.npz")
    np.savez(data / "cifar100_test.npz", x=pictures(3), y=[0, 1, 2])
    assert len(load("CIFAR-100", data)) == len(load("cifar100", data)) == 3
    assert load("cifar100", data, role="out").name == "CIFAR-100"


def test_a_set_that_cannot_be_had_says_where_to_get_it_and_where_to_put_it(data, tmp_path):
    with pytest.raises(OdinError) as caught:
        load("LSUN", data)
    message = str(caught.value)
    assert "github.com/facebookresearch/odin" in message
    assert str(data) in message
    assert str(tmp_path / "cache" / "odin-ood" / "data" / "LSUN") in message
    with pytest.raises(OdinError, match=r"housenumbers.* as SVHN/test"):
        load("SVHN")


@pytest.mark.parametrize(
    ("name", "source"), [("cifar10", "cifar10"), ("CIFAR-10", "cifar10"), ("CIFAR-100", "cifar100")]
)
def test_only_a_missing_cifar_set_is_fetched(name, source, data, tmp_path, monkeypatch):
    asked = []

    def fetch(wanted: download.Source, folder: Path, look_in: list[Path]) -> Path:
        asked.append((wanted, folder, look_in))
        folder.mkdir(parents=True)
        np.savez(folder / wanted.file, x=pictures(), y=np.arange(4))
        return folder / wanted.file

    monkeypatch.setattr(download, "fetch", fetch)
    found = load(name, data)
    cache = tmp_path / "cache" / "odin-ood" / "data"
    assert asked == [(download.SOURCES[source], cache, [data])]
    assert (found.name, found.source) == (name, str(cache / download.SOURCES[source].file))
    load(name, data)
    assert len(asked) == 1


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


# Noise


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("Uniform", "554b036bda319d8f64a717cd827c4de41a5193a25b8fa06fe169bfd2aebcc9aa"),
        ("Gaussian", "a1cd3c8217c32411a3c8a63f9f1fb63ed65c7a19a04c70dac1027d8453105f94"),
    ],
)
def test_noise_is_the_same_everywhere(name, digest):
    images = noise(name, 300)
    assert (images.shape, images.dtype) == ((300, 32, 32, 3), np.uint8)
    assert hashlib.sha256(images.tobytes()).hexdigest() == digest
    np.testing.assert_array_equal(noise(name, 7), images[:7])
    part = load(name, skip=250, limit=20)
    assert (part.name, part.source, part.labels) == (name, "generated", None)
    np.testing.assert_array_equal(part.images, images[250:270])


def test_noise_has_the_distributions_of_the_release():
    uniform, gaussian = (noise(name, 100) / 255.0 for name in ("Uniform", "Gaussian"))
    assert uniform.mean() == pytest.approx(0.5, abs=0.003)
    assert uniform.std() == pytest.approx(12**-0.5, abs=0.003)
    # Normal with mean 0.5 and deviation 1: 30.85 % fall below 0, and as many above 1.
    assert (gaussian == 0).mean() == pytest.approx(0.3085 + 0.0007, abs=0.003)
    assert (gaussian == 1).mean() == pytest.approx(0.3085 + 0.0007, abs=0.003)


def test_noise_sizes():
    assert load("uniform", size=36, n=3).images.shape == (3, 36, 36, 3)
    assert load("uniform", size=36, n=3, crop=32).images.shape == (3, 32, 32, 3)
    with pytest.raises(OdinError, match="cannot make 3 images of 0x0"):
        load("gaussian", size=0, n=3)
    with pytest.raises(OdinError, match="has 3 images; cannot leave out the first 3"):
        load("gaussian", n=3, skip=3)


# The release's split


@pytest.mark.parametrize(
    ("n_in", "n_out", "first", "last", "note"),
    [
        (10_000, 10_000, 1_000, 9_999, "images 1,000 to 9,999 of each set"),
        (
            10_000,
            8_925,
            1_000,
            8_924,
            "images 1,000 to 8,924 of each set, the length of iSUN",
        ),
        (2_000, 12_000, 1_000, 1_999, "images 1,000 to 1,999 of each set, the length of cifar10"),
        (12_000, 12_000, 1_000, 9_999, "images 1,000 to 9,999 of each set"),
    ],
)
def test_both_sides_end_at_the_same_index(n_in, n_out, first, last, note):
    split = protocol_split(fake("cifar10", n_in), fake("iSUN", n_out))
    assert indices(split.in_set) == indices(split.out_set) == (first, last)
    assert len(split.in_set) == len(split.out_set) == last - first + 1
    assert split.note == note


@pytest.mark.parametrize("n_out", [1, 200, 1_000, 1_200, 1_999])
def test_a_small_set_is_used_whole_and_does_not_cut_the_other_side(n_out):
    split = protocol_split(fake("cifar10", 10_000), fake("DTD", n_out))
    assert indices(split.in_set) == (1_000, 9_999)
    assert indices(split.out_set) == (0, n_out - 1)
    assert split.note == (
        f"images 1,000 to 9,999 of cifar10; "
        f"DTD has {n_out:,} images in all: all scored, none left for tuning"
    )


def test_a_small_in_distribution_set():
    split = protocol_split(fake("cifar100", 1_000), fake("Imagenet", 10_000))
    assert indices(split.in_set) == (0, 999)
    assert indices(split.out_set) == (1_000, 9_999)


def test_the_limit_holds_for_small_sets_too():
    split = protocol_split(fake("cifar100", 1_000), fake("DTD", 1_200), limit=20)
    assert indices(split.in_set) == indices(split.out_set) == (0, 19)
    assert "the first 20 scored" in split.note


def test_labels_are_split_with_their_images():
    labelled = Dataset("cifar10", pictures(3_000, 2), np.arange(3_000), "a")
    split = protocol_split(labelled, fake("SVHN", 2_500), limit=1_200)
    assert split.in_set.labels is not None
    assert (split.in_set.labels[0], split.in_set.labels[-1]) == (1_000, 2_199)


@pytest.mark.parametrize("bounds", [{"skip": -1}, {"limit": 0}])
def test_split_bounds(bounds):
    with pytest.raises(OdinError, match="want skip >= 0 and limit >= 1"):
        protocol_split(fake("cifar10", 9), fake("SVHN", 9), **bounds)


def test_a_set_is_not_measured_against_itself():
    for other in (fake("cifar100", 9), fake("CIFAR-100", 9)):
        with pytest.raises(OdinError, match="are the same set"):
            protocol_split(fake("cifar100", 9), other)
    mine = fake("mine", 9)
    with pytest.raises(OdinError, match="are the same set"):
        protocol_split(mine, mine)
    yours = Dataset("mine", mine.images, None, "/elsewhere/mine.npz")
    protocol_split(mine, yours)
    protocol_split(load("Uniform", n=2), load("Gaussian", n=2))


# The real sets


@real_data
def test_real_cifar10(monkeypatch):
    monkeypatch.setenv("ODIN_DATA", str(REAL))
    found = load("cifar10")
    assert found.images.shape == (10_000, 32, 32, 3)
    source = download.SOURCES["cifar10"]
    assert hashlib.sha256(found.images.tobytes()).hexdigest() == source.images_sha256
    assert found.labels is not None
    assert hashlib.sha256(found.labels.tobytes()).hexdigest() == source.labels_sha256


@real_data
def test_real_sets_split_as_in_the_release(monkeypatch):
    monkeypatch.setenv("ODIN_DATA", str(REAL))
    in_set = load("cifar10")
    for name in available():
        split = protocol_split(in_set, load(name, crop=32))
        assert len(split.out_set) == (1_200 if name == "DTD" else 9_000)
        assert len(split.in_set) == 9_000
