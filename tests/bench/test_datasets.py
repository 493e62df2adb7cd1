"""Image sets by name: their names, where they are looked for, and noise, which is made."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from bench.image_sets import pictures, write_png
from odin_bench import datasets, download
from odin_bench.datasets import available, canonical, load, noise
from odin_engines.errors import OdinError

pytestmark = pytest.mark.usefixtures("alone")


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
