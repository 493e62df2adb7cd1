"""Image sets by name or path, as raw 8-bit pixels, and the release's split of them.

In-distribution sets are `cifar10` and `cifar100`, the test images with their labels. The
out-of-distribution sets go by the names of the ODIN release (see `OUT_SETS`). `CIFAR-10` and
`CIFAR-100`, spelled with a hyphen, are the same images in the other role; there labels do not
matter and a larger set is worth more than the official test split.

A set `NAME` is a file `NAME.npz` (`x` uint8 (N, H, W, 3) RGB, or of another number of channels for
a network that takes such, optionally `y` integer (N,)) or an image folder `NAME/` in one of the
folders of `search_path`.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from odin_engines.errors import OdinError
from odin_engines.files import user_cache
from odin_engines.packages import install_command
from odin_runtime import image_files
from odin_runtime.preparation import scaled

Role = Literal["in", "out"]

IN_SETS = ("cifar10", "cifar100")
# In the order of the release's tables, its own seven sets around ours.
OUT_SETS = (
    "Imagenet",
    "Imagenet_resize",
    "LSUN",
    "LSUN_resize",
    "iSUN",
    "SVHN",
    "DTD",
    "CIFAR-100",
    "CIFAR-10",
    "Uniform",
    "Gaussian",
)

NOISE_IMAGES = 10_000
TUNING_IMAGES = 1_000
SCORED_IMAGES = 9_000
# With fewer images than this left, a rate cannot be told to 0.1 %: skipping would cost too much.
MINIMUM_LEFT = 1_000

_NOISE_SEEDS = {"Uniform": 1, "Gaussian": 2}
# The stems under which a set is looked for, best first; a set that is not here goes by its name.
_STEMS = {
    "cifar10": ("cifar10_test", "cifar10"),
    "CIFAR-10": ("cifar10_test", "cifar10", "CIFAR-10"),
    "cifar100": ("cifar100_test", "cifar100", "cifar100_test_1k"),
    "CIFAR-100": (
        "cifar100_test",
        "cifar100",
        "CIFAR-100",
        "cifar100_train_10k",
        "cifar100_test_1k",
    ),
}
_FETCHED = {
    "cifar10": "cifar10",
    "CIFAR-10": "cifar10",
    "cifar100": "cifar100",
    "CIFAR-100": "cifar100",
}
_RELEASED = "the README of github.com/facebookresearch/odin links it (tar.gz of PNG images)"
_ORIGINS = {
    "SVHN": "its site is http://ufldl.stanford.edu/housenumbers (cropped digits, test)",
    "DTD": "its site is https://www.robots.ox.ac.uk/~vgg/data/dtd (scale the images to one size)",
}


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images of one set, raw.

    Attributes:
        name: canonical name, or the file's stem or folder's name where the set is given by path.
        images: uint8 (N, H, W, C), N >= 1; RGB where C is 3.
        labels: int64 (N,), or None where the set has none.
        source: the path read, or "generated"; for reports.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray | None
    source: str

    def __len__(self) -> int:
        return len(self.images)

    def part(self, start: int, stop: int) -> Dataset:
        """Return images `start` to `stop - 1`, without copying them."""
        labels = None if self.labels is None else self.labels[start:stop]
        return replace(self, images=self.images[start:stop], labels=labels)

    def cropped(self, crop: int) -> Dataset:
        """Return the inner `crop` x `crop` pixels of every image (36 x 36 to the inner 32 x 32).

        Raises:
            OdinError: the images are smaller than `crop`, or it is not positive.
        """
        height, width = self.images.shape[1:3]
        if not 1 <= crop <= min(height, width):
            raise OdinError(
                f"{self.name}: cannot crop {height}x{width} images to {crop}x{crop}; "
                f"choose a crop from 1 to {min(height, width)}"
            )
        top, left = (height - crop) // 2, (width - crop) // 2
        inner = self.images[:, top : top + crop, left : left + crop]
        return replace(self, images=np.ascontiguousarray(inner))

    def resized(self, height: int, width: int) -> Dataset:
        """Return every image scaled to this size, bilinearly."""
        if self.images.shape[1:3] == (height, width):
            return self
        images = np.empty((len(self), height, width, self.images.shape[3]), np.uint8)
        for index, image in enumerate(self.images):
            images[index] = scaled(image, (height, width))
        return replace(self, images=images)


@dataclass(frozen=True, eq=False)
class Split:
    """What of two sets is scored.

    in_start: index in the whole in-distribution set of the first image scored; note: which images
    are scored, in words, for reports.
    """

    in_set: Dataset
    out_set: Dataset
    in_start: int
    note: str


def canonical(name: str, role: Role | None = None) -> str | None:
    """Return the exact spelling of a known set's name, or None for any other text.

    Case, `_` and `-` are ignored. `role` decides between the two spellings of a
    CIFAR set (`cifar100` in-distribution, `CIFAR-100` out of it); without it, the hyphen does.
    """
    plain = _plain(name)
    if plain in IN_SETS and (role == "in" or (role is None and name.casefold() == plain)):
        return plain
    return next((known for known in OUT_SETS if _plain(known) == plain), None)


def cache_folder() -> Path:
    """Return the folder that fetched sets are kept in; it need not exist.

    `$XDG_CACHE_HOME/odin-ood/data`, or `~/.cache/odin-ood/data` where that variable is not set.

    Raises:
        OdinError: this user has no home folder.
    """
    cache = user_cache()
    if cache is None:
        raise OdinError("this user has no home folder to keep image sets in; set XDG_CACHE_HOME")
    return cache / "data"


def search_path(data: Path | None = None) -> list[Path]:
    """Return the folders that sets are looked for in, first match wins.

    `data` where given, then `$ODIN_DATA`, then `cache_folder()`; of these, all that exist.

    Raises:
        OdinError: `data` is given and is not a folder.
    """
    if data is not None and not _is_folder(data):
        raise OdinError(f"{data} is not a folder; give the folder that holds the image sets")
    named = os.environ.get("ODIN_DATA")
    folders = [data, Path(named) if named else None, cache_folder()]
    return [folder for folder in folders if folder is not None and _is_folder(folder)]


def available(data: Path | None = None, in_dataset: str = "cifar10") -> list[str]:
    """Return the out-of-distribution sets that `load` can give now, downloading nothing.

    They come in the order of the release, without `in_dataset` itself. The CIFAR set offered is
    the one that is not `in_dataset`: CIFAR-10 for `cifar100`, else CIFAR-100.

    Raises:
        OdinError: `data` is given and is not a folder.
    """
    own = "CIFAR-100" if canonical(in_dataset, "in") == "cifar100" else "CIFAR-10"
    folders = search_path(data)
    return [
        name
        for name in OUT_SETS
        if name not in (own, in_dataset)
        and (name in _NOISE_SEEDS or _locate(name, folders) is not None)
    ]


def load(
    name: str,
    data: Path | None = None,
    crop: int | None = None,
    limit: int | None = None,
    skip: int = 0,
    size: int = 32,
    n: int = NOISE_IMAGES,
    role: Role | None = None,
    channels: int = 3,
) -> Dataset:
    """Load a set by name, or by the path of an .npz file or image folder.

    A known name comes before a path; write `./SVHN` for a folder here. CIFAR-10 and CIFAR-100
    are fetched into the cache folder where they are not at hand; nothing else ever is.

    Args:
        name: one of `IN_SETS` or `OUT_SETS` in any case, or a path.
        data: folder to look in first, see `search_path`.
        crop: keep the inner crop x crop pixels.
        limit: at most this many images, counted after `skip`.
        skip: leave this many images out at the front.
        size, n: pixels a side and number of images, for `Uniform` and `Gaussian` only.
        role: see `canonical`.
        channels: of the images; files are decoded to 1 (grey) or 3 (RGB).

    Raises:
        OdinError: the set is unknown, not at hand, empty, damaged, smaller than `skip` or `crop`.
    """
    key = canonical(name, role)
    try:
        if key in _NOISE_SEEDS:
            window = _window(key, n, skip, limit)
            found = Dataset(key, noise(key, window.stop, size, channels)[window], None, "generated")
        else:
            path = _given(name) if key is None else _at_hand(key, data)
            found = _read(path, key, skip, limit, channels)
    except MemoryError as error:
        raise OdinError(f"{name} does not fit in memory; want fewer or smaller images") from error
    return found if crop is None else found.cropped(crop)


def noise(name: str, n: int = NOISE_IMAGES, size: int = 32, channels: int = 3) -> np.ndarray:
    """Return the first `n` images of `Uniform` or `Gaussian`: uint8 (n, size, size, channels).

    Uniform pixels are uniform in [0, 1]; Gaussian ones are normal with mean 0.5 and standard
    deviation 1, clipped to [0, 1]. The release draws them anew in every run and feeds them as
    floats. Here they come from a fixed seed, and are rounded to 255 steps as an image file's
    would be, so that every engine sees the same raw images. Image i is the same for every `n`.

    Raises:
        OdinError: `n` or `size` is not positive.
    """
    if n < 1 or size < 1:
        raise OdinError(f"{name}: cannot make {n} images of {size}x{size} pixels; both must be > 0")
    generator = np.random.Generator(np.random.PCG64(_NOISE_SEEDS[name]))
    images = np.empty((n, size, size, channels), np.uint8)
    # One stream, drawn in order and in small blocks: whole it would take 250 MB of float64.
    for start in range(0, n, 256):
        shape = images[start : start + 256].shape
        if name == "Uniform":
            pixels = generator.random(shape)
        else:
            pixels = np.clip(0.5 + generator.standard_normal(shape), 0.0, 1.0)
        images[start : start + 256] = np.rint(pixels * 255.0)
    return images


def protocol_split(
    in_set: Dataset,
    out_set: Dataset,
    skip: int = TUNING_IMAGES,
    limit: int = SCORED_IMAGES,
) -> Split:
    """Choose the images to score by the release's rule; give both sets whole.

    The release leaves the first 1,000 images of each set for tuning and scores the next 9,000.
    Both sides end at the same index, that of the shorter set: against the 8,925 images of iSUN,
    images 1,000 to 8,924 of each side, 7,925 a side.

    A set that would have fewer than `MINIMUM_LEFT` images left after `skip` (DTD with 1,200, the
    first 1,000 of CIFAR-100) is used from its first image on, nothing of it being left for
    tuning, and the other side keeps its own length: every metric weighs the two sides
    equally whatever their lengths, so cutting would only lose precision. `note` says so.

    Raises:
        OdinError: both sides are the same set, or `skip` or `limit` is out of range.
    """
    _refuse_same(in_set, out_set)
    if skip < 0 or limit < 1:
        raise OdinError(f"cannot score {limit} images after {skip}; want skip >= 0 and limit >= 1")
    end = min(skip + limit, len(in_set), len(out_set))
    if all(len(side) - skip >= MINIMUM_LEFT for side in (in_set, out_set)):
        note = f"images {skip:,} to {end - 1:,} of each set"
        if end < skip + limit:
            note += f", the length of {min(in_set, out_set, key=len).name}"
        return Split(in_set.part(skip, end), out_set.part(skip, end), skip, note)
    in_part, in_note = _own_part(in_set, skip, limit)
    out_part, out_note = _own_part(out_set, skip, limit)
    in_start = skip if len(in_set) - skip >= MINIMUM_LEFT else 0
    return Split(in_part, out_part, in_start, f"{in_note}; {out_note}")


def _plain(name: str) -> str:
    return name.casefold().replace("_", "").replace("-", "")


def _given(name: str) -> Path:
    path = Path(name)
    if path.exists():
        return path
    if path.suffix == ".npz" or len(path.parts) > 1 or name.startswith("./"):
        raise OdinError(f"{name} does not exist; give an .npz file or a folder of images")
    known = {each.casefold(): each for each in (*IN_SETS, *OUT_SETS)}
    close = difflib.get_close_matches(name.casefold(), list(known), n=1)
    hint = f"did you mean {known[close[0]]}? " if close else ""
    raise OdinError(
        f"unknown image set {name!r}; {hint}known are {', '.join(known.values())}, "
        "and the path of any .npz file or image folder"
    )


def _at_hand(key: str, data: Path | None) -> Path:
    folders = search_path(data)
    path = _locate(key, folders)
    if path is not None:
        return path
    if key in _FETCHED:
        return _fetch(_FETCHED[key], folders)
    cache = cache_folder()
    searched = ", ".join(map(str, folders)) or "none of the folders exists"
    raise OdinError(
        f"{key} is not at hand: no {key}.npz and no image folder {key} (searched: {searched}). "
        f"To get it: {_ORIGINS.get(key, _RELEASED)}; put it at {cache / key} or in a folder that "
        f"you name with --data or $ODIN_DATA, as {key}/test/*.png or as {key}.npz"
    )


def _fetch(name: str, folders: list[Path]) -> Path:
    # Imported only here: nothing else needs the progress bar, or this module in turn.
    try:
        from odin_bench import download
    except ImportError as error:
        raise OdinError(f"fetching {name} needs {error.name}; {install_command()}") from error
    return download.fetch(download.SOURCES[name], cache_folder(), look_in=folders)


def _locate(key: str, folders: list[Path]) -> Path | None:
    for stem in _STEMS.get(key, (key,)):
        for folder in folders:
            if (file := folder / f"{stem}.npz").is_file():
                return file
            if next(image_files.image_files(folder / stem), None) is not None:
                return folder / stem
    return None


def _is_folder(path: Path) -> bool:
    # A folder that may not be looked at (another user's home in a container) is as good as none.
    try:
        return path.is_dir()
    except OSError:
        return False


def _window(name: str, total: int, skip: int, limit: int | None) -> slice:
    if skip < 0 or (limit is not None and limit < 1):
        raise OdinError(f"{name}: want skip >= 0 and limit >= 1, got {skip} and {limit}")
    if skip >= total:
        raise OdinError(f"{name} has {total} images; cannot leave out the first {skip}")
    return slice(skip, total if limit is None else min(total, skip + limit))


def _read(path: Path, key: str | None, skip: int, limit: int | None, channels: int) -> Dataset:
    if path.is_dir():
        return _read_folder(path, key or path.resolve().name, skip, limit, channels)
    return _read_npz(path, key or path.stem, skip, limit, channels)


def _read_folder(folder: Path, name: str, skip: int, limit: int | None, channels: int) -> Dataset:
    files = sorted(image_files.image_files(folder), key=lambda path: path.relative_to(folder).parts)
    if not files:
        raise OdinError(
            f"{folder} holds no images; want {folder / 'test'}/*.png, {folder}/*.png or one "
            f"subfolder a class ({', '.join(sorted(image_files.SUFFIXES))})"
        )
    files = files[_window(name, len(files), skip, limit)]
    return Dataset(name, image_files.read_images(files, channels), None, str(folder))


def _read_npz(path: Path, name: str, skip: int, limit: int | None, channels: int) -> Dataset:
    images, labels = image_files.read_npz(path, channels)
    found = Dataset(name, images, labels, str(path))
    window = _window(name, len(found), skip, limit)
    return found.part(window.start, window.stop)


def _refuse_same(in_set: Dataset, out_set: Dataset) -> None:
    # The two names of a CIFAR set may stand for different files, and are still one distribution.
    names = {canonical(side.name, "out") for side in (in_set, out_set)}
    same_file = in_set.source == out_set.source != "generated"
    if same_file or (len(names) == 1 and None not in names):
        raise OdinError(
            f"{in_set.name} ({in_set.source}) and {out_set.name} ({out_set.source}) are the same "
            "set; give another out-of-distribution set"
        )


def _own_part(side: Dataset, skip: int, limit: int) -> tuple[Dataset, str]:
    if len(side) - skip >= MINIMUM_LEFT:
        part = side.part(skip, skip + limit)
        return part, f"images {skip:,} to {skip + len(part) - 1:,} of {side.name}"
    part = side.part(0, limit)
    scored = "all" if len(part) == len(side) else f"the first {len(part):,}"
    note = f"{side.name} has {len(side):,} images in all: {scored} scored, none left for tuning"
    return part, note
