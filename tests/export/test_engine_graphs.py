"""The ODIN graph in an engine's own form: the same scores, and who opens it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from odin_bench import models, throughput
from odin_engines import engine as engines
from odin_engines.bundle import FORWARD, ODIN, Bundle, read_bundle, write_bundle
from odin_engines.errors import OdinError
from odin_export import cli, engine_graphs, exporter
from odin_export.engine_graphs import add_own_graph
from odin_export.plan_flags import _OWN_GRAPH
from odin_runtime import Scorer
from odin_runtime.images import normalised

ORT_ODIN = "odin.ort.onnx"


@pytest.fixture(scope="module")
def bundle(densenet10_bundle: Bundle) -> Bundle:
    """densenet10 with the weights of the package."""
    return densenet10_bundle


@pytest.fixture
def plain(bundle: Bundle, tmp_path: Path) -> Bundle:
    """The same without a graph for ONNX Runtime."""
    graphs = {name: content for name, content in bundle.graphs().items() if name != ORT_ODIN}
    return write_bundle(tmp_path / "plain", bundle.spec, graphs)


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


def test_a_bundle_gets_it_later(bundle: Bundle, plain: Bundle, tmp_path: Path) -> None:
    written = add_own_graph(plain, "ort")
    assert written.path == plain.path
    assert read_bundle(plain.path).files == bundle.files
    assert add_own_graph(written, "ort", tmp_path / "other").files == bundle.files
    assert read_bundle(tmp_path / "other").spec == plain.spec


def test_half_precision_has_none(tiny_spec: Callable[..., Any]) -> None:
    with pytest.raises(
        OdinError, match=r"these are in bf16: leave it out, or export with --precision fp32"
    ):
        engine_graphs.check("ort", tiny_spec(precision="bf16", graph_precision="bf16"))


def test_it_is_added_by_command(
    bundle: Bundle, plain: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "copy"
    assert cli.main([str(plain.path), "--engine", "ort", "--output", str(target)]) == 0
    assert read_bundle(target).files == bundle.files
    assert re.search(
        r"odin\.ort\.onnx \(\d\.\d MB\): the same in the form", capsys.readouterr().out
    )


def test_one_that_is_no_longer_made_goes(plain: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    add_own_graph(plain, "ort")
    monkeypatch.setitem(engine_graphs.REWRITES, "ort", lambda graph: 0)
    add_own_graph(read_bundle(plain.path), "ort")
    assert ORT_ODIN not in read_bundle(plain.path).files


def test_a_damaged_one_is_in_the_way_of_its_engine_alone(plain: Bundle) -> None:
    file = add_own_graph(plain, "ort").path / ORT_ODIN
    file.write_bytes(file.read_bytes()[:-1])
    damaged = read_bundle(plain.path)
    assert damaged.odin("openvino").name == ODIN
    remedy = (
        rf"odin\.ort\.onnx has .* bytes.*'odin-export {re.escape(str(plain.path))} --engine ort'"
    )
    with pytest.raises(OdinError, match=remedy):
        Scorer.open(damaged, "ort")
    assert cli.main([str(plain.path), "--engine", "ort"]) == 0
    assert Scorer.open(plain.path, "ort").engine == "ort"


def test_the_bundles_of_the_bench_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(models, "export", lambda *arguments: asked.append(arguments[-1]))
    for precision in ("fp32", "bf16"):
        models.find_bundle(
            "densenet10", None, exporter.Options(precision=precision), lambda name: None
        )
    assert asked == ["ort", None]


def test_means_come_before_convolutions(bundle: Bundle) -> None:
    """Between the three blocks; the last mean makes the features."""
    nodes = onnx.load(bundle.file(FORWARD)).graph.node
    users = {name: node.op_type for node in nodes for name in node.input}
    pools = [node for node in nodes if node.op_type == "AveragePool"]
    assert [users[pool.output[0]] for pool in pools[:2]] == ["Conv", "Conv"]
    assert len(pools) == 3


def test_speed_is_measured_on_it(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def note(name: str, graph: Path, *rest: Any) -> Any:
        opened.append(graph.name)
        return original(name, graph, *rest)

    original = engines.open_graph
    monkeypatch.setattr(engines, "open_graph", note)
    throughput.open_programs([bundle], "ort", "fp32", engines.Tuning())
    assert ORT_ODIN in opened
    assert ODIN not in opened
