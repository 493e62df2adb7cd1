"""A cluster of Ray's with two workers, on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from odin_engines.bundle import Bundle, write_calibration
from odin_engines.calibration import Calibration
from odin_runtime import Scorer

NODES = 2


@pytest.fixture(scope="session")
def ray_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What Ray's processes need: this source tree, and caches that are not the user's."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ADDRESS": "local",  # and no cluster that runs already
    }


@pytest.fixture(scope="session")
def cluster(ray_environment: dict[str, str]) -> Iterator[Any]:
    """Two nodes of one core each, and this process as the driver."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ray_environment.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS")
        import ray
        import ray.data
        from ray.cluster_utils import Cluster

        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        for _ in range(NODES - 1):
            made.add_node(num_cpus=1)
        ray.init(address=made.address, logging_level="warning", log_to_driver=False)
        # Else a job begins with the first of its workers, and may be over before the second.
        ray.data.DataContext.get_current().wait_for_min_actors_s = 300
        try:
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


@pytest.fixture(scope="session")
def calibrated(make_tiny_bundle: Callable[..., Bundle], raw_images: Callable[..., Any]) -> Bundle:
    """The tiny network's bundle, calibrated so that half of such images are flagged."""
    bundle = make_tiny_bundle()
    scores = np.sort(Scorer.open(bundle).score(raw_images(200, seed=8)).score).astype(float)
    spec = bundle.spec
    return write_calibration(
        bundle,
        Calibration(
            threshold=float(np.median(scores)),
            tpr=0.5,
            interval=(float(scores[80]), float(scores[120])),
            images=len(scores),
            quantiles=tuple(scores.tolist()),
            dataset="blocks",
            pixels="as they are",
            sha256="0" * 64,
            date="2026-01-01T00:00:00+00:00",
            engine="openvino",
            precision="fp32",
            method=spec.method,
            temperature=spec.temperature,
            magnitude=spec.magnitude,
        ),
    )


@pytest.fixture
def photos(tmp_path: Path, raw_images: Callable[..., Any]) -> Path:
    """A folder with images as cameras write them: JPEG and PNG, of several sizes, one grey."""
    from PIL import Image

    folder = tmp_path / "photos"
    folder.mkdir()
    for place, (height, width) in enumerate([(48, 64), (64, 48), (40, 40), (96, 80), (33, 47)]):
        picture = Image.fromarray(raw_images(1, height, width, seed=place)[0])
        picture.save(folder / f"{place}.jpg", quality=90)
        picture.save(folder / f"{place}.png")
    Image.fromarray(raw_images(1, 50, 50, seed=9)[0]).convert("L").save(folder / "grey.png")
    return folder
