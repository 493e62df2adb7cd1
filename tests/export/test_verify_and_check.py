"""--verify: the gradient against finite differences; --check: what stands in the way."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from export.user_models import (
    BODY,
    FEATURES,
    IMAGES,
    OfText,
    assert_refused,
    odin_export,
    refusal,
    save,
    text_model,
)
from odin_engines import engine as engines
from odin_engines.errors import OdinError
from odin_export import check as checking
from odin_export.check import as_text, check
from odin_export.classifier import find_classifier
from odin_export.emit import Emitter
from odin_export.evaluate import evaluator
from odin_export.exporter import Options, from_file
from odin_export.obstacles import QUANTISED
from odin_export.rules import NO_GRADIENT, RULES
from odin_export.verify import STEPS, TOLERANCE, Agreement, directions, trial_shape

SHAPE = (2, 3, 8, 8)
Gradients = list[ir.Value | None]


def agreements(nodes: str = BODY, count: int = 3, **weights: Any) -> list[Agreement]:
    forward = find_classifier(text_model(nodes, **weights)).forward
    return list(directions(forward, SHAPE, count))


# Finite differences


def test_right_gradients_agree() -> None:
    found = agreements()
    assert len(found) == 3
    assert all(each.holds for each in found)
    assert len({each.analytic for each in found}) == 3  # directions and images of their own
    assert all(each.error < 1e-7 for each in found)


def test_what_the_evaluator_cannot_run_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unable:
        def __init__(self, model: Any) -> None: ...

        def run(self, *_: Any) -> None:
            raise NotImplementedError("no such op,\nnot yet")

    monkeypatch.setattr("odin_export.verify.evaluator", Unable)
    outcome = odin_export(save(tmp_path, text_model()), "--verify", "1")
    assert_refused(outcome)
    assert "cannot run the model in float64: no such op, not yet; leave --verify out" in outcome.err


def test_the_numbers_are_those_of_autograd() -> None:
    """x, v and s drawn as `directions` draws them: <gradient of <s, f(x)>, v>."""
    model = text_model()
    (found,) = directions(find_classifier(model).forward, SHAPE, 1)
    generator = np.random.default_rng(0)
    x, v = (torch.from_numpy(each) for each in generator.standard_normal((2, *SHAPE)))
    factors = torch.from_numpy(generator.standard_normal((2, 5)))
    network = OfText(model)
    _, product = torch.autograd.functional.jvp(lambda image: (network(image) * factors).sum(), x, v)
    assert found.analytic == pytest.approx(float(product), rel=1e-10)
    assert found.numeric == pytest.approx(float(product), rel=1e-6)


def doubled(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    return [e.op("Add", dy, dy)]


def everywhere(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    return [e.op("Identity", dy)]


def slightly_off(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    (dx,) = RIGHT(e, node, dy)
    return [e.op("Mul", dx, e.floats(1 + 1e-3))]


def nothing(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    return [e.op("Mul", dy, e.floats(0))]


def not_a_number(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    return [e.op("Mul", dy, e.floats(np.nan))]


RIGHT = RULES["Relu"]


@pytest.mark.parametrize("wrong", [doubled, everywhere, slightly_off, nothing, not_a_number])
def test_a_wrong_rule_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Any) -> None:
    file = save(tmp_path, text_model())
    arguments = (file, "--output", tmp_path / "bundle", "--verify", 2)
    assert odin_export(*arguments, "--check").status == 0
    monkeypatch.setitem(RULES, "Relu", wrong)
    assert not any(each.holds for each in agreements())
    outcome = odin_export(*arguments)
    assert outcome.status == 1
    assert outcome.out.count("DIFFERS") == 2
    assert "they DIFFER: please report this model" in outcome.out
    assert sorted(tmp_path.iterdir()) == [file]
    checked = odin_export(*arguments, "--check")
    assert checked.status == 1


def test_an_evaluator_that_computes_another_network_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule and evaluator agree with each other, and neither with ONNX Runtime."""

    class Halved:
        def __init__(self, model: Any) -> None:
            self._evaluator = evaluator(model)

        def run(self, *arguments: Any) -> list[np.ndarray]:
            return [each / 2 for each in self._evaluator.run(*arguments)]

    monkeypatch.setattr("odin_export.verify.evaluator", Halved)
    file = save(tmp_path, text_model())
    outcome = odin_export(file, "--output", tmp_path / "bundle", "--verify", 2)
    assert outcome.status == 1
    assert "against ONNX Runtime's in float32: error 1.0e+00  DIFFERS" in outcome.out
    assert outcome.out.count("DIFFERS") == 1  # no direction does
    assert not (tmp_path / "bundle").exists()


def test_a_right_rule_lets_the_bundle_be_written(tmp_path: Path) -> None:
    file = save(tmp_path, text_model())
    outcome = odin_export(file, "--output", tmp_path / "bundle", "--verify", 2)
    assert outcome.status == 0
    assert outcome.out.count("  direction ") == 2
    assert "they agree" in outcome.out
    assert (tmp_path / "bundle" / "odin.json").is_file()


def test_a_kink_within_the_first_step_is_not_taken_for_an_error() -> None:
    """ReLU at 2e-7 of its kink: the first step straddles it, a smaller one does not."""
    generator = np.random.default_rng(0)
    x, v = generator.standard_normal((2, *SHAPE))
    near = (np.abs(v[0, 0, 0, 0]) * 3e-7) - x[0, 0, 0, 0]
    nodes = "s = Sub (x, shift) r = Relu (s) f = Flatten (r) y = MatMul (f, k)"
    shift = np.full((1, 3, 8, 8), -50.0, np.float64)
    shift[0, 0, 0, 0] = -near
    weight = generator.standard_normal((192, 5))
    model = text_model(nodes, "double[N,3,8,8] x", "double[N,5] y", shift=shift, k=weight)
    forward = model  # in double already: float32 would move the kink
    forward.graph.input[0].name, forward.graph.node[0].input[0] = "images", "images"
    (found,) = directions(forward, SHAPE, 1)
    assert found.holds
    assert found.step in STEPS[1:]


def test_a_step_that_never_agrees_is_told() -> None:
    far = Agreement(analytic=1.0, numeric=2.0, step=STEPS[-1], error=1.0)
    assert not far.holds
    assert Agreement(1.0, 1.0, STEPS[0], TOLERANCE).holds
    assert not Agreement(1.0, 1.0, STEPS[0], float("nan")).holds


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        ((8, 8), (12, 12), (2, 1, 8, 12)),
        ((4, 16384), (4, 16384), (2, 1, 64, 64)),
        ((224, 224), (96, 500), (2, 1, 224, 96)),
        ((8, 63), (1, 20), (2, 1, 63, 20)),
    ],
)
def test_the_size_of_images_to_try(
    height: tuple[int, int], width: tuple[int, int], expected: tuple[int, ...]
) -> None:
    assert trial_shape(2, 1, height, width) == expected


@pytest.mark.parametrize("count", [0, -3])
def test_numbers_of_directions(tmp_path: Path, count: int) -> None:
    file = save(tmp_path, text_model())
    assert_refused(odin_export(file, "--verify", count), f"--verify {count}", "from 1")


def test_verify_names_what_has_no_rule(tmp_path: Path) -> None:
    domain = "com.microsoft"
    model = text_model(BODY.replace("Relu", f"{domain}.Gelu"), domain=domain)
    assert f"{domain}::Gelu" in refusal(tmp_path, model, "--verify", 1).err


# What stands in the way

NO_RULE = "z = Mod <fmod = 1> (c, one) r = Relu (z)"


def spec_of(tmp_path: Path, model: Any) -> Any:
    return from_file(save(tmp_path, model), Options(), None)


def table(text: str) -> dict[str, tuple[int, str]]:
    """The rows of a report: op -> number of nodes, and what is said of the gradient."""
    rows = re.findall(r"^(?: *\|)? *(\S+) +(\d+)  (.+)$", text, re.MULTILINE)
    return {op: (int(count), state.strip()) for op, count, state in rows}


def test_a_report_counts_every_op(tmp_path: Path) -> None:
    nodes = f"""
        {FEATURES} g = Relu (f) sum = Add (f, g)
        s = Shape <start = 0, end = 1> (x) five = Constant <value_ints = [5]> ()
        t = Concat <axis = 0> (s, five) y = Reshape (sum, t)
    """
    source = spec_of(tmp_path, text_model(nodes, "float[N,3,H,W] x"))
    report = check(source.forward, source.spec)
    assert report.passed
    rows = {row.op: (row.count, row.on_path, row.rule) for row in report.rows}
    assert rows["Relu"] == (2, 2, True)
    assert rows["Conv"] == rows["Add"] == (1, 1, True)
    assert [row.count for row in report.rows] == sorted(
        (row.count for row in report.rows), reverse=True
    )
    if "Shape" in rows:
        assert rows["Shape"] == (1, 0, True)
    assert table(as_text(report))["Relu"] == (2, "2")


def test_an_obstacle_is_named_and_nothing_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    nodes = BODY.replace("r = Relu (c)", NO_RULE)
    assert "Mod" not in RULES and "Mod" not in NO_GRADIENT
    file = save(tmp_path, text_model(nodes, one=np.float32(1)))
    outcome = odin_export(file, "--check")
    assert outcome.status == 1
    assert "Traceback" not in outcome.err
    rows = table(outcome.out)
    assert rows["Mod"] == (1, "1, NO RULE")
    assert rows["Relu"] == (1, "1")
    assert re.search(r"^first obstacle: node .*Mod", outcome.out, re.MULTILINE)
    assert sorted(tmp_path.iterdir()) == [file]


def test_a_network_without_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = save(tmp_path, text_model())
    outcome = odin_export(file, "--check", "--input-type", "uint8", "--tunable", "--scores", "gen")
    assert (outcome.status, outcome.err) == (0, "")
    assert table(outcome.out)["Conv"] == (1, "1")
    assert "every node between image and logits has a rule" in outcome.out
    for name in ("ort", "openvino"):
        expected = engines.unavailable(name, "fp32") or "takes it"
        assert f"{name}: {expected}" in outcome.out
    assert sorted(tmp_path.iterdir()) == [file]


def test_an_op_off_the_path_needs_no_rule(tmp_path: Path) -> None:
    nodes = f"{FEATURES} m = Mod <fmod = 1> (k, one) y = Add (f, m)"
    model = text_model(nodes, f"{IMAGES}", k=np.arange(5, dtype=np.float32), one=np.float32(2))
    assert odin_export(save(tmp_path, model), "--check").status == 0


def test_the_logits_do_not_depend_on_the_image(tmp_path: Path) -> None:
    nodes = f"{FEATURES} k = Floor (f) y = Add (k, b)"
    file = save(tmp_path, text_model(nodes))
    outcome = odin_export(file, "--check")
    assert outcome.status == 1
    assert "first obstacle: " in outcome.out
    assert "(Floor)" in outcome.out


@pytest.mark.parametrize("name", ["ort", "openvino"])
def test_an_engine_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    whole = engines.open_graph

    def refuse(which: str, *arguments: Any) -> Any:
        if which == name:
            raise OdinError(f"{which} cannot open this")
        return whole(which, *arguments)

    monkeypatch.setattr(checking.engines, "open_graph", refuse)
    outcome = odin_export(save(tmp_path, text_model()), "--check")
    assert outcome.status == 1
    assert f"{name}: {name} cannot open this" in outcome.out


def test_engines_that_are_not_installed_are_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str, precision: str) -> str:
        return f"{name} is not installed: pip install it"

    def no_parser(graph: bytes) -> str:
        raise OdinError("tensorrt_rtx is not installed: pip install it")

    monkeypatch.setattr(checking.engines, "unavailable", missing)
    monkeypatch.setattr(checking, "parser_obstacle", no_parser)
    outcome = odin_export(save(tmp_path, text_model()), "--check")
    assert outcome.status == 0
    assert outcome.out.count("is not installed") == 3


def test_a_parser_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "parser_obstacle", lambda graph: "node 'n' (Foo): no such op")
    outcome = odin_export(save(tmp_path, text_model()), "--check")
    assert outcome.status == 1
    assert "rtx parser: node 'n' (Foo): no such op" in outcome.out


def test_scores_that_are_not_finite_are_an_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def run(self, feeds: Any) -> dict[str, np.ndarray]:
            return {"score": np.full(len(feeds["images"]), np.nan, np.float32)}

    monkeypatch.setattr(checking.engines, "open_graph", lambda *arguments: Broken())
    outcome = odin_export(save(tmp_path, text_model()), "--check")
    assert outcome.status == 1
    assert "not finite" in outcome.out


@pytest.mark.parametrize("flags", [("--check",), ("--check", "--verify", 1), ()])
def test_a_quantised_model_is_refused_before_anything(
    tmp_path: Path, flags: tuple[object, ...]
) -> None:
    assert "QuantizeLinear" in QUANTISED
    nodes = f"q = QuantizeLinear (x, s) d = DequantizeLinear (q, s) {BODY.replace('(x', '(d')}"
    outcome = refusal(tmp_path, text_model(nodes, s=np.float32(0.1)), *flags)
    assert "int8-quantised" in outcome.err
