"""The ODIN graph in an engine's own form: the same scores, and who opens it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from odin_engines import engine as engines
from odin_engines.bundle import ODIN, Bundle, read_bundle, write_bundle
from odin_engines.errors import OdinError
from odin_export import cli, engine_graphs, exporter
from odin_export.engine_graphs import add_own_graph
from odin_export.plan_flags import _OWN_GRAPH
from odin_runtime import Scorer
from odin_runtime.images import normalised

ORT_ODIN = "odin.ort.onnx"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """densenet10 with the weights of the package."""
    folder = tmp_path_factory.mktemp("bundles")
    return exporter.export("densenet10", None, folder / "densenet10", engine="ort")


def test_every_engine_with_a_rewrite_can_be_asked_for() -> None:
    assert set(_OWN_GRAPH) == set(engine_graphs.REWRITES)


def test_scores_are_the_same(bundle: Bundle, raw_images: Callable[..., np.ndarray]) -> None:
    """A gradient near zero may take the other sign by rounding, and moves a score a little."""
    operators = [
        [node.op_type for node in onnx.load(bundle.file(name)).graph.node]
        for name in (ODIN, ORT_ODIN)
    ]
    masks = operators[1].count("HardSigmoid")
    assert masks == 99  # two in each of 48 layers, one in each transition, one at the end
    assert operators[0].count("Greater") - operators[1].count("Greater") == masks
    images = raw_images(16)
    planes = normalised(images, bundle.spec)
    found, expected = (
        engines.open_graph("ort", bundle.file(name)).run({"images": planes})
        for name in (ORT_ODIN, ODIN)
    )
    assert np.ptp(expected["score"]) > 1e-5
    np.testing.assert_allclose(found["score"], expected["score"], rtol=0, atol=1e-7)
    for name in ("baseline", "label", "logits"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("engine", "file"), [("ort", ORT_ODIN), ("openvino", ODIN)])
def test_each_engine_opens_its_own(
    engine: str, file: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []

    def open_graph(name: str, graph: Path, *rest: Any) -> Any:
        opened.append(graph)
        return original(name, graph, *rest)

    original = engines.open_graph
    monkeypatch.setattr(engines, "open_graph", open_graph)
    Scorer.open(bundle, engine=engine)
    assert opened == [bundle.path / file]


def test_a_bundle_gets_it_later(bundle: Bundle, tmp_path: Path) -> None:
    graphs = {name: content for name, content in bundle.graphs().items() if name != ORT_ODIN}
    plain = write_bundle(tmp_path / "plain", bundle.spec, graphs)
    written = add_own_graph(plain, "ort")
    assert written.path == plain.path
    assert read_bundle(plain.path).files == bundle.files
    assert add_own_graph(written, "ort", tmp_path / "other").files == bundle.files
    assert read_bundle(tmp_path / "other").spec == plain.spec


def test_half_precision_has_none(tiny_spec: Callable[..., Any]) -> None:
    with pytest.raises(OdinError, match=r"rewrites graphs in fp32, and these are in bf16: leave"):
        engine_graphs.check("ort", tiny_spec(precision="bf16", graph_precision="bf16"))


def test_it_is_added_by_command(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "copy"
    assert cli.main([str(bundle.path), "--engine", "ort", "--output", str(target)]) == 0
    assert read_bundle(target).files == bundle.files
    assert re.search(
        r"odin\.ort\.onnx \(\d\.\d MB\): the same in the form", capsys.readouterr().out
    )
