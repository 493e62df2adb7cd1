"""odin-score and odin-bench --calibrate as a user runs them."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from commands.runs import COUNT, Command, refused
from odin_bench import cli as bench
from odin_engines.bundle import Bundle, read_bundle, write_bundle
from odin_export import cli as export
from odin_runtime import Scorer, score_cli
from odin_runtime.images import normalised
from odin_runtime.score_run import CHUNK

ENGINE = ("--engine", "ort", "--threads", 1)


@pytest.fixture
def calibrated(run: Command, bundle: Path, sets: Path) -> Path:
    """A calibrated copy of the bundle, "calibrated", here."""
    shutil.copytree(bundle, "calibrated")
    arguments = ("./calibrated", "--calibrate", sets / "in.npz", "--tpr", 0.9, *ENGINE)
    outcome = run(bench.main, *arguments)
    assert outcome.status == 0, outcome.err
    return Path("calibrated")


@pytest.fixture
def decided(run: Command, make_tiny_bundle: Callable[..., Bundle], sets: Path) -> Path:
    """A bundle, "decided", whose graph carries the decision; not tunable."""
    shutil.copytree(make_tiny_bundle().path, "decided")
    arguments = ("--calibrate", sets / "in.npz", "--tpr", 0.9, "--decision", *ENGINE)
    outcome = run(bench.main, "./decided", *arguments)
    assert outcome.status == 0, outcome.err
    return Path("decided")


@pytest.fixture
def photos(raw_images: Callable[..., np.ndarray]) -> Path:
    """Three chunks of pictures in a folder; one is damaged, and one is large."""
    folder = Path("photos")
    folder.mkdir()
    for index, pixels in enumerate(raw_images(2 * CHUNK + 9, seed=4)):
        Image.fromarray(pixels).save(folder / f"{index:04}.png")
    (folder / "0070.png").write_bytes(b"no picture")
    Image.fromarray(raw_images(1, 90, 50)[0]).save(folder / "0071.png")
    return folder


def table(file: str) -> list[dict[str, str]]:
    with Path(file).open(newline="") as content:
        return list(csv.DictReader(content))


def test_calibrating(run: Command, calibrated: Path, sets: Path) -> None:
    found = read_bundle(calibrated)
    assert found.calibration is not None
    scorer = Scorer.open(found, "ort", threads=1)
    images = np.load(sets / "in.npz")["x"]
    scores = scorer.score(images)
    assert found.calibration.threshold == found.spec.threshold
    assert np.count_nonzero(~scores.is_ood) == np.ceil(0.9 * COUNT)
    assert scores.percentile.max() == 1
    assert found.calibration.images == COUNT
    with pytest.raises(Exception, match="calibrated with magnitude"):
        _ = scorer.score(images, magnitude=0.5).is_ood
    outcome = run(bench.main, "calibrated", "--calibrate", sets / "in.npz", "--json", "c.json")
    assert outcome.status == 0, outcome.err
    assert "accepts 95 % of" in outcome.out
    again = json.loads(Path("c.json").read_text())["calibration"]
    assert again["sha256"] == found.calibration.sha256
    assert again["tpr"] == 0.95


def test_the_decision_in_the_graph(run: Command, decided: Path, sets: Path) -> None:
    """Any ONNX runtime decides as the scorer does; calibrating anew replaces it."""
    images = np.concatenate([np.load(sets / f"{name}.npz")["x"] for name in ("in", "far")])
    for tpr in (0.9, 0.5):
        found = read_bundle(decided)
        session = onnxruntime.InferenceSession(
            found.file("odin.onnx"), providers=["CPUExecutionProvider"]
        )
        assert [each.name for each in session.get_outputs()].count("is_ood") == 1
        assert found.calibration is not None
        assert found.calibration.tpr == tpr
        feeds = {"images": normalised(images, found.spec)}
        score, is_ood = session.run(["score", "is_ood"], feeds)
        np.testing.assert_array_equal(is_ood, ~(score >= np.float32(found.spec.threshold)))
        assert 0 < is_ood.sum() < len(is_ood)
        for engine in ("openvino", "ort"):
            scores = Scorer.open(found, engine, threads=1).score(images)
            assert np.count_nonzero(scores.is_ood != is_ood) <= 1
        infinite = {"images": feeds["images"] * np.float32(np.nan)}
        assert session.run(["is_ood"], infinite)[0].all()
        again = ("./decided", "--calibrate", sets / "in.npz", "--tpr", 0.5, *ENGINE)
        assert run(bench.main, *again).status == 0


def test_a_decision_of_another_precision_is_told(run: Command, decided: Path, sets: Path) -> None:
    from odin_engines.engine import unavailable

    if unavailable("openvino", "bf16") is not None:
        pytest.skip("this CPU has no bfloat16 instructions")
    flags = ("--calibrate", sets / "in.npz", "--engine", "openvino", "--precision", "bf16")
    outcome = run(bench.main, "./decided", *flags)
    assert outcome.status == 0, outcome.err
    assert "threshold in bf16" in outcome.err
    assert "calibrate with --precision fp32" in outcome.err


def test_no_decision_of_many_temperatures(run: Command, calibrated: Path, sets: Path) -> None:
    """The bundle is tunable."""
    flags = ("--calibrate", sets / "in.npz", "--decision", *ENGINE)
    refused(run(bench.main, "./calibrated", *flags), "--decision", "without --tunable")


def test_plans_have_no_decision(
    run: Command, make_tiny_bundle: Callable[..., Bundle], sets: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="install the extra rtx")
    shutil.copytree(make_tiny_bundle().path, "planned")
    plans = ("--engine", "rtx", "--plans", "both", "--computeCapabilities", "8.6")
    assert run(export.main, "./planned", *plans).status == 0
    flags = ("--calibrate", sets / "in.npz", "--decision", *ENGINE)
    outcome = run(bench.main, "./planned", *flags)
    assert outcome.status == 0
    assert "odin.rtx.plan is left out, for its graph has changed" in outcome.err
    assert {plan.file for plan in read_bundle(Path("planned")).plans} == {
        *("gradient.rtx.plan", "forward.rtx.plan")
    }
    outcome = run(export.main, "./planned", *plans)
    assert outcome.status == 0, outcome.err
    assert outcome.out.count("as it was, for nothing") == 2
    assert read_bundle(Path("planned")).calibration is not None


def test_other_precisions_are_warned_about(calibrated: Path) -> None:
    from odin_engines.engine import unavailable

    if unavailable("openvino", "bf16") is not None:
        pytest.skip("this CPU has no bfloat16 instructions")
    with pytest.warns(UserWarning, match="calibrated in fp32 by ort, and is opened in bf16"):
        Scorer.open(calibrated, "openvino", precision="bf16")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("densenet10 --calibrate in.npz", ("densenet10 is none", "odin-export densenet10")),
        ("BUNDLE --calibrate in.npz --throughput", ("--calibrate is a run of its own",)),
        ("BUNDLE --calibrate in.npz --magnitude 0.1", ("--magnitude is of scoring",)),
        ("BUNDLE --tpr 0.9", ("--tpr goes with --calibrate",)),
        ("BUNDLE --calibrate in.npz --tpr 1", ("between 0 and 1",)),
        ("BUNDLE --calibrate IN --limit 5", ("5 images tell no threshold", "give 20 or more")),
        ("BUNDLE --calibrate gone.npz", ("gone.npz does not exist",)),
    ],
)
def test_calibrating_refuses(
    run: Command, bundle: Path, sets: Path, arguments: str, parts: tuple[str, ...]
) -> None:
    words = arguments.replace("BUNDLE", str(bundle)).replace("IN", str(sets / "in.npz")).split()
    refused(run(bench.main, *words), *parts)


def test_a_folder(run: Command, calibrated: Path, photos: Path) -> None:
    outcome = run(score_cli.main, "calibrated", photos, "--output", "scores.csv", *ENGINE)
    assert outcome.status == 0, outcome.err
    rows = table("scores.csv")
    assert [row["path"] for row in rows] == sorted(str(file) for file in photos.iterdir())
    assert list(rows[0]) == [
        *("path", "score", "baseline", "label", "is_ood", "percentile", "error")
    ]
    bad = rows[70]
    assert bad["score"] == bad["is_ood"] == ""
    assert "0070.png cannot be read as an image" in bad["error"]
    good = [row for row in rows if not row["error"]]
    assert len(good) == len(rows) - 1
    scorer = Scorer.open(calibrated, "ort", threads=1)
    small = [row for row in good if "0071" not in row["path"]]
    expected = scorer.score(np.stack([np.asarray(Image.open(row["path"])) for row in small]))
    np.testing.assert_allclose([float(row["score"]) for row in small], expected.score, atol=1e-6)
    assert [int(row["label"]) for row in small] == expected.label.tolist()
    assert f"{len(good):,} images scored, 1 could not be read" in outcome.out
    assert not Path("scores.csv.partial").exists()
    assert outcome.err == ""


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_other_tables_say_the_same(run: Command, calibrated: Path, photos: Path, form: str) -> None:
    for output in ("scores.csv", f"scores.{form}"):
        outcome = run(score_cli.main, calibrated, photos, "--output", output, *ENGINE)
        assert outcome.status == 0, outcome.err
    if form == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        rows = parquet.read_table("scores.parquet").to_pylist()
    else:
        rows = [json.loads(line) for line in Path("scores.jsonl").read_text().splitlines()]

    def plain(value: Any) -> str:
        if value is None:
            return ""
        return str(value).lower() if isinstance(value, bool) else str(value)

    assert [{name: plain(row[name]) for name in row} for row in rows] == table("scores.csv")


def test_the_lowest_come_first(run: Command, calibrated: Path, photos: Path) -> None:
    flags = ("--output", "worst.csv", "--sort", "score", "--top", 5, *ENGINE)
    assert run(score_cli.main, calibrated, photos, *flags).status == 0
    assert run(score_cli.main, calibrated, photos, "--output", "all.csv", *ENGINE).status == 0
    everything = [row for row in table("all.csv") if row["score"]]
    assert table("worst.csv") == sorted(everything, key=lambda row: float(row["score"]))[:5]


def test_copies_of_what_is_out(run: Command, calibrated: Path, photos: Path, sets: Path) -> None:
    far = sets / "far.npz"
    flags = ("--output", "all.csv", "--copy-flagged", "odd", *ENGINE)
    assert run(score_cli.main, calibrated, photos, far, *flags).status == 0
    flagged = [row["path"] for row in table("all.csv") if row["is_ood"] == "true"]
    copies = sorted(str(file.relative_to("odd")) for file in Path("odd").rglob("*.png"))
    wanted = [path if path.endswith(".png") else f"{path}.png" for path in flagged]
    assert copies == sorted(path.lstrip("/") for path in wanted)
    assert flagged
    of_array = next(path for path in flagged if "npz" in path)
    index = int(of_array.rpartition("[")[2].rstrip("]"))
    copied = np.asarray(Image.open(Path("odd") / f"{of_array.lstrip('/')}.png"))
    np.testing.assert_array_equal(copied, np.load(far)["x"][index])


def test_a_list_on_standard_input(
    run: Command, bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = io.BytesIO(b"photos/0003.png\nphotos/0001.png\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(listed))
    assert run(score_cli.main, bundle, "-", "--output", "s.csv", *ENGINE).status == 0
    assert [row["path"] for row in table("s.csv")] == ["photos/0003.png", "photos/0001.png"]
    assert "is_ood" not in table("s.csv")[0]


def test_a_threshold_of_ones_own(run: Command, bundle: Path, photos: Path) -> None:
    flags = ("--output", "s.csv", "--threshold", 1e9, *ENGINE)
    assert run(score_cli.main, bundle, photos, *flags).status == 0
    assert {row["is_ood"] for row in table("s.csv") if row["score"]} == {"true"}


def test_sizes(run: Command, bundle: Path, photos: Path) -> None:
    for size, problem in (("keep", "90 pixels high"), ("40x36", "")):
        name = f"{size}.csv"
        flags = ("--output", name, "--size", size, *ENGINE)
        assert run(score_cli.main, bundle, photos, *flags).status == 0
        row = table(name)[71]
        assert (problem in row["error"]) if problem else row["error"] == ""
    flags = ("--output", "c.csv", "--shorter", 40, "--crop", 36, "--size", "keep", *ENGINE)
    assert run(score_cli.main, bundle, photos, *flags).status == 0
    assert table("c.csv")[71]["error"] == ""


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("photos --output s.txt", ("--output s.txt", ".csv, .jsonl, .parquet")),
        ("photos --output none/s.csv", ("folder", "does not exist")),
        ("gone --output s.csv", ("gone does not exist",)),
        ("photos --output s.csv --top 5", ("--top wants --sort",)),
        ("photos --output s.csv --sort percentile", ("not calibrated",)),
        ("photos --output s.csv --copy-flagged odd", ("--threshold", "--calibrate")),
        ("photos --output s.csv --threshold nan", ("'nan': give a number",)),
        ("photos --output s.csv --size big", ("'big'", "give N, HxW or keep")),
        ("photos --output s.csv --strict", ("0070.png cannot be read", "without --strict")),
    ],
)
def test_refusals(
    run: Command, bundle: Path, photos: Path, arguments: str, parts: tuple[str, ...]
) -> None:
    refused(run(score_cli.main, bundle, *arguments.split(), *ENGINE), *parts)
    assert not Path("s.csv").exists()


def test_a_run_that_scored_nothing_leaves_nothing(run: Command, bundle: Path, photos: Path) -> None:
    (photos / "0000.png").write_bytes(b"no picture")
    assert run(score_cli.main, bundle, photos, "--output", "s.csv", "--strict", *ENGINE).status == 1
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["photos"]


def test_drift(run: Command, calibrated: Path, sets: Path) -> None:
    for name, verdict in (("in", "no drift is seen"), ("far", "the input has drifted")):
        images = [sets / f"{name}.npz"] * 2  # forty images are too few
        flags = ("--output", "s.csv", "--drift-against", "calibrated", *ENGINE)
        outcome = run(score_cli.main, calibrated, *images, *flags)
        assert outcome.status == 0, outcome.err
        assert verdict in outcome.out
    flags = ("--output", "t.csv", "--drift-against", "calibrated", *ENGINE)
    refused(run(score_cli.main, calibrated, sets / "in.npz", *flags), "40 scores tell no drift")
    assert Path("t.csv").exists()
    assert not Path("t.csv.partial").exists()


def test_drift_against_another_network(
    run: Command, calibrated: Path, photos: Path, make_tiny_bundle: Callable[..., Bundle]
) -> None:
    own = read_bundle(calibrated)
    spec = dataclasses.replace(own.spec, checkpoint_sha256="1" * 64)
    write_bundle(Path("other"), spec, own.graphs(), (), own.calibration)
    flags = ("--output", "s.csv", "--drift-against", "other", *ENGINE)
    refused(run(score_cli.main, calibrated, photos, *flags), "--drift-against", "other weights")


def test_drift_against_another_precision_is_told(
    run: Command, calibrated: Path, photos: Path
) -> None:
    own = read_bundle(calibrated)
    assert own.calibration is not None
    known = dataclasses.replace(own.calibration, precision="bf16")
    write_bundle(Path("other"), own.spec, own.graphs(), (), known)
    for against, told in (("other", 1), ("calibrated", 0)):
        flags = ("--output", f"{against}.csv", "--drift-against", against, *ENGINE)
        outcome = run(score_cli.main, calibrated, photos, *flags)
        assert outcome.status == 0, outcome.err
        assert outcome.err.count("--drift-against other: the bundle was calibrated in bf16") == told


def test_drift_against_what_is_not_calibrated(
    run: Command, calibrated: Path, bundle: Path, photos: Path
) -> None:
    flags = ("--output", "s.csv", "--drift-against", bundle, *ENGINE)
    refused(run(score_cli.main, calibrated, photos, *flags), "--drift-against", "--calibrate")


def test_other_images_do_not_go_on(run: Command, bundle: Path, photos: Path) -> None:
    flags = ("--output", "s.csv", "--strict", *ENGINE)
    assert run(score_cli.main, bundle, photos, *flags).status == 1
    assert Path("s.csv.partial").exists()
    refused(run(score_cli.main, bundle, photos, "--output", "s.csv", *ENGINE), "--resume")
    (photos / "0001.png").unlink()
    outcome = run(score_cli.main, bundle, photos, "--output", "s.csv", "--resume", *ENGINE)
    refused(outcome, "s.csv.partial has a row of photos/0001.png", "photos/0002.png")


def started(bundle: Path, output: str, *flags: str) -> subprocess.Popen[str]:
    code = "import sys; from odin_runtime.score_cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = [str(bundle), "photos", "--output", output, "--engine", "ort", "--threads", "1"]
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments, *flags],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(file: str) -> int:
    try:
        return Path(file).read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_goes_on(
    kills: int, run: Command, bundle: Path, photos: Path, raw_images: Callable[..., np.ndarray]
) -> None:
    """Exactly the table of a run that nobody disturbed, byte for byte."""
    for index, pixels in enumerate(raw_images(600, seed=5)):
        Image.fromarray(pixels).save(photos / f"1{index:04}.png")
    whole = started(bundle, "whole.csv")
    assert whole.wait(timeout=120) == 0, whole.communicate()
    generator = random.Random(kills)
    killed = 0
    for attempt in range(kills):
        process = started(bundle, "s.csv", *(["--resume"] if attempt else []))
        # After some row; at once where an earlier run came further.
        wanted = generator.randrange(len(list(photos.iterdir())))
        while process.poll() is None and lines("s.csv.partial") < wanted:
            time.sleep(0.005)
        time.sleep(0.1 * generator.random())
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.communicate()
    assert killed
    last = started(bundle, "s.csv", "--resume")
    _, err = last.communicate(timeout=120)
    assert last.returncode == 0, err
    assert Path("s.csv").read_bytes() == Path("whole.csv").read_bytes()
    assert not list(Path.cwd().glob("*.partial"))
