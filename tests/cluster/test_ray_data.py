"""Data sets scored by two workers of a Ray cluster; one is killed in mid-job.

    pytest tests/cluster --run-slow

Starting the cluster takes about 20 s, each job some 5 s.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from odin_engines.bundle import Bundle
from odin_runtime import Scorer
from odin_runtime.preparation import Preparation, scaled

pytest.importorskip("ray", reason="Ray is not installed: pip install 'odin-ood[ray]'")

import ray

from odin_runtime.ray import OdinPredictor

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]
Images = Callable[..., np.ndarray]
ROWS, BLOCKS, BATCH = 240, 12, 10
WORKERS = 2


def watched(log: Path, pause: float = 0.0) -> type[OdinPredictor]:
    """A predictor that writes down at which batch each process begins."""

    # Inside a function, so that Ray sends the class itself: workers cannot import this file.
    class Watched(OdinPredictor):
        def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            threads = self._scorer.session._settings.get("INFERENCE_NUM_THREADS")  # type: ignore
            with (log / str(os.getpid())).open("a") as file:
                file.write(f"{time.time()} {threads}\n")
            time.sleep(pause)
            return super().__call__(batch)

    return Watched


def begun(log: Path) -> dict[int, list[float]]:
    """When each process began its batches."""
    return {
        int(file.name): [float(line.split()[0]) for line in file.read_text().splitlines()]
        for file in log.iterdir()
    }


def dataset(images: list[np.ndarray] | np.ndarray) -> Any:
    rows = [{"id": row, "image": image} for row, image in enumerate(images)]
    return ray.data.from_items(rows, override_num_blocks=BLOCKS)


def columns(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Rows, which come in any order, by id."""
    rows = sorted(rows, key=lambda row: row["id"])
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def assert_as_local(found: dict[str, np.ndarray], bundle: Bundle, images: np.ndarray) -> None:
    assert found["id"].tolist() == list(range(len(images)))  # none lost, none doubled
    local = Scorer.open(bundle).score(images)
    np.testing.assert_allclose(found["score"], local.score, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found["baseline"], local.baseline, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found["label"], local.label)


def test_two_workers_score_as_one_scorer(
    tiny_bundle: Bundle, raw_images: Images, tmp_path: Path
) -> None:
    images = raw_images(ROWS)
    scored = dataset(images).map_batches(
        watched(tmp_path, pause=0.05),
        fn_constructor_kwargs={"bundle": tiny_bundle.path},
        concurrency=WORKERS,
        batch_size=BATCH,
    )
    found = columns(scored.take_all())
    assert_as_local(found, tiny_bundle, images)
    assert set(found) == {"id", "score", "baseline", "label"}
    times = begun(tmp_path)
    assert len(times) == WORKERS
    assert sum(map(len, times.values())) == ROWS // BATCH


def test_a_worker_is_killed_in_mid_job(
    tiny_bundle: Bundle, raw_images: Images, tmp_path: Path
) -> None:
    images, killed = raw_images(ROWS), []

    def kill_one() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            busy = {process: times for process, times in begun(tmp_path).items() if len(times) > 2}
            if len(busy) == WORKERS:
                victim = max(busy, key=lambda process: busy[process][-1])
                os.kill(victim, signal.SIGKILL)  # while it pauses in a batch
                killed.append((victim, time.time()))
                return
            time.sleep(0.01)

    killer = threading.Thread(target=kill_one)
    killer.start()
    scored = dataset(images).map_batches(
        watched(tmp_path, pause=0.2),
        fn_constructor_kwargs={"bundle": tiny_bundle.path},
        concurrency=WORKERS,
        batch_size=BATCH,
    )
    found = columns(scored.take_all())
    killer.join()
    assert_as_local(found, tiny_bundle, images)
    times = begun(tmp_path)
    [(victim, moment)] = killed
    assert max(times[victim]) < moment
    assert max(max(each) for each in times.values()) > moment
    # Another took its place, and what it had not given was scored again.
    assert len(times) > WORKERS
    assert sum(map(len, times.values())) > ROWS // BATCH


def test_images_of_several_sizes(tiny_bundle: Bundle, raw_images: Images) -> None:
    sizes = [(32, 32), (40, 60), (64, 48), (35, 33)]
    images = [raw_images(1, *sizes[row % 4], seed=row)[0] for row in range(48)]
    scored = dataset(images).map_batches(
        OdinPredictor,
        fn_constructor_kwargs={"bundle": str(tiny_bundle.path), "keep_images": True},
        concurrency=WORKERS,
        batch_size=BATCH,
    )
    rows = sorted(scored.take_all(), key=lambda row: row["id"])
    for row, image in zip(rows, images, strict=True):
        np.testing.assert_array_equal(row.pop("image"), image)
    small = np.stack([scaled(image, (32, 32)) for image in images])
    assert_as_local(columns(rows), tiny_bundle, small)


def test_a_folder_of_images(tiny_bundle: Bundle, photos: Path) -> None:
    prepare = Preparation(shorter=40, crop=36)
    options = {"bundle": str(tiny_bundle.path), "engine": "ort", "prepare": prepare}
    scored = ray.data.read_images(str(photos), mode="RGB", include_paths=True).map_batches(
        OdinPredictor, fn_constructor_kwargs=options, concurrency=(1, WORKERS)
    )
    found = {Path(row["path"]).name: row["score"] for row in scored.take_all()}
    assert set(found) == {file.name for file in photos.iterdir()}
    scorer = Scorer.open(tiny_bundle, engine="ort")
    for name, score in found.items():
        from PIL import Image

        image = np.asarray(Image.open(photos / name).convert("RGB"))
        local = scorer.score(prepare(image, scorer.spec)[None]).score
        np.testing.assert_allclose(score, local[0], rtol=0, atol=1e-6)


def test_a_worker_takes_the_cores_that_it_is_given(
    tiny_bundle: Bundle, raw_images: Images, tmp_path: Path
) -> None:
    scored = dataset(raw_images(12)).map_batches(
        watched(tmp_path), fn_constructor_kwargs={"bundle": tiny_bundle.path}, concurrency=1
    )
    assert scored.count() == 12
    [file] = tmp_path.iterdir()
    assert {line.split()[1] for line in file.read_text().splitlines()} == {"1"}


def test_blocks_without_rows(tiny_bundle: Bundle, raw_images: Images) -> None:
    images = raw_images(24)
    # Materialised, for its tasks need a core that the workers would hold.
    few = dataset(images).filter(lambda row: row["id"] < 3).materialize()
    scored = few.map_batches(
        OdinPredictor, fn_constructor_kwargs={"bundle": tiny_bundle.path}, concurrency=WORKERS
    )
    assert_as_local(columns(scored.take_all()), tiny_bundle, images[:3])


def faulty(images: np.ndarray) -> Any:
    """A data set of two blocks: these 11 images, and one that the network does not take."""
    rows = [{"id": row, "image": image} for row, image in enumerate(images)]
    rows.append({"id": len(images), "image": np.zeros((32, 32, 4), np.uint8)})
    return ray.data.from_items(rows, override_num_blocks=2)


def test_an_error_is_told_and_not_tried_again(
    tiny_bundle: Bundle, raw_images: Images, tmp_path: Path
) -> None:
    scored = faulty(raw_images(11)).map_batches(
        watched(tmp_path), fn_constructor_kwargs={"bundle": tiny_bundle.path}, concurrency=1
    )
    with pytest.raises(ray.exceptions.RayTaskError, match=r"row 5 of a batch: .*mode='RGB'"):
        scored.take_all()
    assert sum(map(len, begun(tmp_path).values())) == 2


def test_blocks_with_errors_are_dropped_if_that_is_allowed(
    tiny_bundle: Bundle, raw_images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Before the data set is made, which keeps what holds then.
    monkeypatch.setattr(ray.data.DataContext.get_current(), "max_errored_blocks", 1)
    scored = faulty(raw_images(11)).map_batches(
        OdinPredictor, fn_constructor_kwargs={"bundle": tiny_bundle.path}, concurrency=1
    )
    assert_as_local(columns(scored.take_all()), tiny_bundle, raw_images(11)[:6])


def test_a_missing_bundle_is_told(raw_images: Images) -> None:
    scored = dataset(raw_images(12)).map_batches(
        OdinPredictor, fn_constructor_kwargs={"bundle": "/nowhere/bundle"}, concurrency=1
    )
    with pytest.raises(ray.exceptions.RayError, match="/nowhere/bundle"):
        scored.take_all()
