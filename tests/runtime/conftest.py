"""What scenarios of the pipelines find beside the driver's test double, made once a session."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from native.fixtures import made_once
from odin_engines.bundle import FORWARD, GRADIENT, ODIN, Bundle, read_bundle, write_bundle
from odin_engines.spec import Spec
from odin_runtime.images import normalised
from runtime.plan_double import TWINS

KINDS: dict[str, dict[str, object]] = {
    "exact": {},
    "first": {"method": "first-order"},
    "tunable": {"tunable": True},
    "tunable-first": {"tunable": True, "method": "first-order"},
    "raw": {"input_type": "uint8"},
    "scores": {"scores": ("energy", "entropy")},
}
IMAGES = 11


@pytest.fixture(scope="session")
def pipelines(
    double_folder: Path,
    host_build: Path,
    tiny_forward: onnx.ModelProto,
    tiny_spec: Callable[..., Spec],
    raw_images: Callable[..., np.ndarray],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder with bundles, images and the host twins."""

    def make(folder: Path) -> None:
        for kind, changes in KINDS.items():
            _write(folder / kind, tiny_forward, tiny_spec(**changes))
        raw = raw_images(IMAGES, seed=21)
        np.savez(folder / "images.npz", raw=raw, normalised=normalised(raw, tiny_spec()))
        (folder / TWINS).parent.mkdir()
        shutil.copy(host_build / TWINS, folder / TWINS)

    return made_once(tmp_path_factory, f"{double_folder.name}/pipelines", make)


def _write(folder: Path, forward: onnx.ModelProto, spec: Spec) -> None:
    from odin_export.odin_graph import gradient_graph, odin_graph

    graphs = {
        ODIN: odin_graph(forward, spec),
        GRADIENT: gradient_graph(forward, spec),
        FORWARD: forward,
    }
    contents = {name: graph.SerializeToString() for name, graph in graphs.items()}
    write_bundle(folder, spec, contents)


@pytest.fixture(scope="session")
def gpu_bundle(pipelines: Path) -> Callable[[str], Bundle]:
    """A function: kind -> the bundle that scenarios open by that name."""
    return lambda kind: read_bundle(pipelines / kind)


@pytest.fixture(scope="session")
def gpu_images(pipelines: Path) -> dict[str, np.ndarray]:
    """`raw` uint8 (11, 32, 32, 3), and the same `normalised`, float32 (11, 3, 32, 32)."""
    with np.load(pipelines / "images.npz") as file:
        return dict(file)
