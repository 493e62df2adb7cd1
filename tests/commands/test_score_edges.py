"""odin-score where something is unusual: channels, preparation, names, disks, runs that go on."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from commands.runs import Command, Outcome, refused
from engines.test_calibration import calibration
from odin_bench import cli as bench
from odin_engines.bundle import read_bundle, write_calibration
from odin_runtime import Scorer, score_cli
from odin_runtime.preparation import scaled
from odin_runtime.score_run import CHUNK
from runtime.small_bundles import bundle_of, grey_images

ENGINE = ("--engine", "ort", "--threads", 1)
OUTPUT = ("--output", "s.csv")
ONE_CHUNK = 8500  # bytes of a journal that hold one chunk of rows, and not two
Score = Callable[..., Outcome]


@pytest.fixture(scope="session")
def small_bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Bundles of small networks by their number of channels; tests must not change them."""
    folder = tmp_path_factory.mktemp("small")
    return {channels: bundle_of(channels, folder / f"{channels}").path for channels in (1, 3, 4)}


@pytest.fixture
def small(small_bundles: dict[int, Path]) -> Path:
    """A small network's bundle, "small", here, that a test may change."""
    return Path(shutil.copytree(small_bundles[3], "small"))


@pytest.fixture
def photos() -> Path:
    """Two chunks of pictures in a folder."""
    folder = Path("photos")
    folder.mkdir()
    pixels = np.random.default_rng(1).integers(0, 256, (CHUNK + 40, 8, 8, 3), np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{index:04}.png")
    return folder


@pytest.fixture
def score(run: Command) -> Score:
    """A function: bundle, arguments -> the outcome of odin-score; the last of a flag counts."""
    return lambda *arguments: run(score_cli.main, *ENGINE, *OUTPUT, *arguments)


def table(file: str = "s.csv") -> list[dict[str, str]]:
    with Path(file).open(newline="", encoding="utf-8", errors="surrogateescape") as content:
        return list(csv.DictReader(content))


def scores(file: str = "s.csv") -> list[float]:
    return [float(row["score"]) for row in table(file)]


def grey_of(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"))[None, ..., None]


def calibrate(bundle: Path, **changes: Any) -> None:
    """Write a calibration by which every image is out-of-distribution."""
    read = read_bundle(bundle)
    spec = read.spec
    known = calibration(
        threshold=9.0,
        engine="ort",
        **{"temperature": spec.temperature, "magnitude": spec.magnitude, **changes},
    )
    write_calibration(dataclasses.replace(read, path=bundle), known)


@contextmanager
def full_after(size: int) -> Iterator[None]:
    """A disk that takes no more of a file than so many bytes."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Channels


def test_a_network_of_grey_images(score: Score, small_bundles: dict[int, Path]) -> None:
    """Grey and coloured files, and arrays with and without an axis for the channel."""
    grey = grey_images(6, 10, 12)
    np.savez("with.npz", x=grey)
    np.savez("without.npz", x=grey[..., 0])
    Image.fromarray(grey[0, ..., 0]).save("grey.png")
    colours = Image.fromarray(np.random.default_rng(2).integers(0, 256, (10, 12, 3), np.uint8))
    colours.save("colours.png")
    paths = ("with.npz", "without.npz", "grey.png", "colours.png")
    flags = ("--size", "keep", "--threshold", 9, "--copy-flagged", "odd")
    outcome = score(small_bundles[1], *paths, *flags)
    assert outcome.status == 0, outcome.err
    images = np.concatenate(
        [grey, grey, grey[:1], np.asarray(colours.convert("L"))[None, ..., None]]
    )
    expected = Scorer.open(small_bundles[1], "ort", threads=1).score(images).score
    np.testing.assert_allclose(scores(), expected, rtol=0, atol=1e-6)
    copy = np.asarray(Image.open("odd/without.npz[3].png"))
    np.testing.assert_array_equal(copy, grey[3, ..., 0])


def test_a_network_of_other_images(score: Score, small_bundles: dict[int, Path]) -> None:
    Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save("alpha.png")
    np.savez("four.npz", x=np.random.default_rng(2).integers(0, 256, (3, 20, 9, 4), np.uint8))
    outcome = score(small_bundles[4], "alpha.png", "four.npz")
    assert outcome.status == 0, outcome.err
    assert "3 images scored, 1 could not be read" in outcome.out
    assert "the network takes 4; give the images as arrays: an .npz" in table()[0]["error"]
    images = np.stack([scaled(image, (8, 8)) for image in np.load("four.npz")["x"]])
    expected = Scorer.open(small_bundles[4], "ort", threads=1).score(images).score
    np.testing.assert_allclose(
        [float(row["score"]) for row in table()[1:]], expected, rtol=0, atol=1e-6
    )


def test_calibrating_a_network_of_grey_images(
    run: Command, score: Score, small_bundles: dict[int, Path]
) -> None:
    shutil.copytree(small_bundles[1], "grey")
    np.savez("in.npz", x=grey_images(40, 12, 12)[..., 0])
    outcome = run(bench.main, "./grey", "--calibrate", "./in.npz", *ENGINE)
    assert outcome.status == 0, outcome.err
    assert score("grey", "in.npz").status == 0
    assert [row["is_ood"] for row in table()].count("false") == 38  # 95 %


# Preparation


def test_images_are_prepared_as_the_calibrations(
    run: Command, score: Score, bundle: Path, sets: Path
) -> None:
    shutil.copytree(bundle, "own")
    flags = ("--calibrate", sets / "large.npz", "--crop", 48, "--resize", 40, *ENGINE)
    outcome = run(bench.main, "./own", *flags)
    assert outcome.status == 0, outcome.err
    known = read_bundle(Path("own")).calibration
    assert known is not None
    assert (known.size, known.crop, known.scaled) == ((40, 40), 48, True)
    outcome = score("own", sets / "large.npz")
    assert outcome.status == 0, outcome.err
    assert outcome.err == (
        "images are prepared as the calibration's (cropped to the inner 48x48, then scaled to "
        "40x40); --shorter, --crop and --size change that\n"
    )
    images = np.load(sets / "large.npz")["x"][:, 12:60, 12:60]
    pixels = np.stack([scaled(image, (40, 40)) for image in images])
    found = Scorer.open("own", "ort", threads=1).score(pixels)
    np.testing.assert_allclose(scores(), found.score, rtol=0, atol=1e-6)
    assert [row["is_ood"] for row in table()].count("false") == 38  # the calibration's 95 %


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), ""),
        (("--shorter", 20, "--crop", 12), ""),
        (("--size", 9), "(scaled to 9x9) differs from the calibration (as they are; 12x12 pixels)"),
        (("--size", "keep"), "(left as they are) differs"),
    ],
)
def test_other_preparations_are_warned_about(
    score: Score, small: Path, photos: Path, flags: tuple[Any, ...], words: str
) -> None:
    calibrate(small, size=(12, 12))
    outcome = score(small, photos, *flags)
    assert outcome.status == 0, outcome.err
    warnings = [line for line in outcome.err.splitlines() if "warning" in line]
    assert len(warnings) == bool(words)
    if words:
        assert outcome.err.startswith("odin-score: warning: what is done to images ")
        assert words in outcome.err


def test_a_calibration_of_other_scores_decides_nothing(
    score: Score, small: Path, photos: Path
) -> None:
    calibrate(small, magnitude=0.5)
    outcome = score(small, photos)
    assert outcome.status == 0, outcome.err
    assert "odin-score: warning: the bundle was calibrated with magnitude 0.5" in outcome.err
    assert not {"is_ood", "percentile"} & set(table()[0])
    for flags in (("--copy-flagged", "odd"), ("--sort", "percentile")):
        refused(score(small, photos, *flags), flags[0], "calibrated with magnitude 0.5")
    assert score(small, photos, "--threshold", 9, "--copy-flagged", "odd").status == 0
    assert len(list(Path("odd").rglob("*.png"))) == CHUNK + 40


def test_drift_wants_the_other_bundles_preparation(
    score: Score, small: Path, small_bundles: dict[int, Path], photos: Path
) -> None:
    calibrate(small, size=(12, 12))
    outcome = score(small_bundles[3], photos, "--drift-against", small)
    assert "(scaled to 8x8) differs from the calibration (as they are; 12x12" in outcome.err
    outcome = score(small_bundles[3], photos, "--drift-against", small, "--size", 12)
    assert "warning" not in outcome.err


@pytest.mark.parametrize("flags", [("--size", 41), ("--crop", 50, "--size", "keep")])
def test_a_size_that_the_network_never_takes(
    score: Score, small: Path, photos: Path, flags: tuple[Any, ...]
) -> None:
    outcome = score(small, photos, *flags)
    refused(outcome, "images prepared so", f"{flags[1]} pixels high, where small takes 8 to 40")
    assert not list(Path.cwd().glob("s.csv*"))


# Names and lists


def test_names_that_are_no_text(score: Score, small: Path) -> None:
    names = ["caf\udce9.png", "two\nlines.png", "re\rturn.png"]
    for name in names:
        Path(name).write_bytes(b"no picture")
    outcome = score(small, *names)
    assert outcome.status == 0, outcome.err
    assert [row["path"] for row in table()] == names
    assert r"  caf\udce9.png cannot be read as an image" in outcome.out
    assert r"  two\nlines.png cannot be read as an image" in outcome.out
    assert len(outcome.out.splitlines()) == 1 + len(names)


@pytest.mark.parametrize(
    ("content", "paths"),
    [
        (b"", []),
        (
            b"caf\xe9.png\nphotos/00",
            ["caf\udce9.png", "photos/00"],
        ),
        (b"two\nlines.png\0photos/0001.png\0", ["two\nlines.png", "photos/0001.png"]),
    ],
    ids=["empty", "cut off", "ended by NUL"],
)
def test_lists_as_they_come(
    score: Score,
    small: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    paths: list[str],
) -> None:
    for name in ("caf\udce9.png", "two\nlines.png"):
        shutil.copy(photos / "0000.png", name)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    outcome = score(small, "-")
    assert outcome.status == 0, outcome.err
    assert [row["path"] for row in table()] == paths
    assert [row["path"] for row in table() if row["error"]] == [p for p in paths if p[-2:] == "00"]
    assert f"{len(paths) - ('photos/00' in paths)} images scored" in outcome.out


def test_no_standard_input(score: Score, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    refused(score(small, "-"), "standard input, which is closed")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("",), ("a PATH is empty",)),
        (("photos/*.gif",), ("photos/*.gif matches nothing",)),
        (("photos", "--copy-flagged", "photos/odd"), ("lies in photos", "beside it")),
        (("photos", "--copy-flagged", "photos/0000.png"), ("is no folder",)),
        (("photos", "--copy-flagged", "photos/0000.png/odd"), ("0000.png is no folder",)),
    ],
)
def test_refusals_before_the_work(
    score: Score, small: Path, photos: Path, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    refused(score(small, *arguments, "--threshold", 1), *parts)
    assert not list(Path.cwd().glob("s.csv*"))


def test_an_empty_folder_is_told(score: Score, small: Path) -> None:
    Path("empty").mkdir()
    outcome = score(small, "empty")
    assert outcome.status == 0
    assert "0 images scored, 1 could not be read\n  empty holds no images" in outcome.out


# Runs that end early, and go on


def test_a_full_disk(score: Score, small: Path, photos: Path) -> None:
    assert score(small, photos, "--output", "whole.csv").status == 0
    with full_after(ONE_CHUNK):
        outcome = score(small, photos)
    refused(outcome, "cannot write s.csv.partial: File too large")
    assert "s.csv.partial keeps the rows so far; --resume goes on" in outcome.err
    assert not Path("s.csv").exists()
    outcome = score(small, photos, "--resume")
    assert outcome.status == 0, outcome.err
    assert Path("s.csv").read_bytes() == Path("whole.csv").read_bytes()
    assert not Path("s.csv.partial").exists()


def test_scores_outlive_copies_that_fail(score: Score, small: Path, photos: Path) -> None:
    """Nothing is scored again once there is room for the copies."""
    Path("odd").mkdir()
    Path("odd/photos").write_text("in the way")
    flags = (photos, "--threshold", 9, "--copy-flagged", "odd", "--sort", "score", "--top", 3)
    outcome = score(small, *flags)
    refused(outcome, "cannot make the folder odd/photos")
    assert "keeps the rows so far" in outcome.err
    Path("odd/photos").unlink()
    outcome = score(small, *flags, "--resume")
    assert outcome.status == 0, outcome.err
    assert len(list(Path("odd").rglob("*.png"))) == CHUNK + 40
    assert len(table()) == 3
    assert not Path("s.csv.partial").exists()


def interrupted(score: Score, bundle: Path, *flags: object) -> None:
    """A run that ends after its first chunk."""
    with full_after(ONE_CHUNK):
        assert score(bundle, "photos", *flags).status == 1
    assert len(Path("s.csv.partial").read_bytes()) == ONE_CHUNK


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--size", 9), "images"),
        (("--threshold", 1), "threshold"),
        (("--engine", "openvino"), "engine"),
    ],
)
def test_other_flags_do_not_go_on(
    score: Score, small: Path, photos: Path, flags: tuple[Any, ...], word: str
) -> None:
    interrupted(score, small)
    before = Path("s.csv.partial").read_bytes()
    refused(score(small, photos, "--resume", *flags), f"is of a run with {word} ")
    assert Path("s.csv.partial").read_bytes() == before


@pytest.mark.parametrize("change", ["calibration", "settings", "bundle"])
def test_another_bundle_does_not_go_on(
    score: Score, small: Path, photos: Path, change: str
) -> None:
    interrupted(score, small)
    file = small / "odin.json"
    if change == "calibration":
        calibrate(small)
    elif change == "settings":
        file.write_text(json.dumps(json.loads(file.read_text()) | {"mean": [0.1, 0.1, 0.1]}))
    else:
        shutil.rmtree(small)
        made = bundle_of(3, small, magnitude=0.5)
        assert made.spec.magnitude == 0.5
    refused(score(small, photos, "--resume"), f"s.csv.partial is of a run with {change}")
    assert Path("s.csv.partial").exists()


def test_strict_holds_for_what_an_earlier_run_read(score: Score, small: Path, photos: Path) -> None:
    (photos / "0003.png").write_bytes(b"no picture")
    interrupted(score, small)
    outcome = score(small, photos, "--resume", "--strict")
    refused(outcome, "0003.png cannot be read", "without --strict")
    outcome = score(small, photos, "--resume")
    assert outcome.status == 0, outcome.err
    assert len(table()) == CHUNK + 40


def test_the_lowest_are_the_same_after_going_on(score: Score, small: Path, photos: Path) -> None:
    """With equal scores and images that cannot be read."""
    for index in (5, 70):
        shutil.copy(photos / "0000.png", photos / f"{index:04}.png")
    for index in (7, 71):
        (photos / f"{index:04}.png").write_bytes(b"no picture")
    paths = ("photos", "photos/0000.png", "--sort", "score")
    assert score(small, *paths, "--output", "whole.csv").status == 0
    with full_after(ONE_CHUNK):
        assert score(small, *paths).status == 1
    assert score(small, *paths, "--top", 70, "--resume").status == 0
    whole = table("whole.csv")
    assert table() == whole[:70]
    assert [row["error"] != "" for row in whole[-3:]] == [False, True, True]
    equal = [row["path"][-8:-4] for row in whole if row["score"] == score_of(whole, "0000")]
    assert equal == ["0000", "0005", "0070", "0000"]


def score_of(rows: list[dict[str, str]], name: str) -> str:
    return next(row["score"] for row in rows if row["path"].endswith(f"{name}.png"))
