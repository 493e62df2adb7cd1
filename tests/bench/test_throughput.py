"""Rows and speed-ups from made-up times, memory, PyTorch's programs, profiles, whole sets."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from odin_bench import end_to_end
from odin_bench.end_to_end import EndToEnd
from odin_bench.profile import OpTime, by_op, split_runs
from odin_bench.tables import throughput_table
from odin_bench.throughput import (
    EAGER,
    Measured,
    Program,
    bytes_needed,
    default_size,
    open_programs,
    plan_program,
    sample_images,
    summary,
    time_programs,
)
from odin_bench.timing import Timing
from odin_bench.torch_speed import compiled_programs, eager_programs, torch_threads
from odin_engines.bundle import Bundle
from odin_engines.engine import Tuning, images_at_once
from odin_engines.errors import OdinError
from odin_engines.spec import Spec
from odin_engines.torch_reference import TorchReference
from odin_runtime import Scorer
from odin_runtime.images import normalised

BundleMaker = Callable[..., Bundle]


def program(engine: str, precision: Any, method: Any, layout: str = "", **more: Any) -> Program:
    return Program(engine, precision, method, lambda feeds: None, layout, **more)


def table(times: dict[tuple[str, ...], list[float]]) -> Measured:
    """Rows from seconds in each round: engine, precision, method and layout -> seconds."""
    programs = [
        program(engine, precision, None if method == "forward" else method, *layout)
        for engine, precision, method, *layout in times
    ]
    turns = zip(programs, times.values(), strict=True)
    return summary(programs, {p.name: Timing([[each] for each in t]) for p, t in turns}, batch=8)


def torch_times(eager: float, last: float, bf16: float) -> dict[tuple[str, ...], list[float]]:
    seconds = zip(EAGER, (eager, last, bf16), strict=True)
    return {("torch", p, "exact", layout): [each] * 7 for (p, layout), each in seconds}


def test_passes_are_of_the_faster_forward_pass() -> None:
    """Small parts, which suit ODIN, are not to make a forward pass slow that passes are told in."""
    for in_parts, whole in ((0.2, 0.1), (0.1, 0.2)):
        programs = [
            Program("ort", "fp32", None, print),
            Program("ort", "fp32", None, print, least=5),
            Program("ort", "fp32", "exact", print),
        ]
        seconds = (in_parts, whole, 0.3)
        timings = {
            program.name: Timing([[each]] * 7)
            for program, each in zip(programs, seconds, strict=True)
        }
        rows = summary(programs, timings, batch=8).rows
        assert [row.method for row in rows] == ["forward", "forward, whole", "exact"]
        assert rows[2].passes == pytest.approx(3)


def test_rows() -> None:
    """Passes compare with the forward pass of the same engine and precision, round by round."""
    drift = np.array([1, 1, 1, 1, 2, 2, 2, 2, 2])
    times = {
        ("openvino", "fp32", "forward"): list(0.10 * drift),
        ("openvino", "fp32", "exact"): list(0.32 * drift),
        ("openvino", "bf16", "forward"): list(0.02 * drift),
        ("openvino", "bf16", "exact"): list(0.08 * drift),
        ("openvino", "bf16", "first-order"): list(0.05 * drift),
    }
    found = table(times)
    rows = {(row.precision, row.method): row for row in found.rows}
    passes = {key: row.passes for key, row in rows.items()}
    assert passes["fp32", "forward"] is None
    assert passes["fp32", "exact"] == pytest.approx(3.2)
    assert passes["bf16", "exact"] == pytest.approx(4.0)
    assert passes["bf16", "first-order"] == pytest.approx(2.5)
    assert rows["fp32", "exact"].passes_interval == pytest.approx((3.2, 3.2))
    assert rows["bf16", "exact"].images_per_second == pytest.approx(8 / 0.16)
    assert rows["bf16", "exact"].latency_ms["p50"] == pytest.approx(160)
    assert (rows["bf16", "exact"].rounds, rows["bf16", "exact"].calls) == (9, 9)
    assert all(row.speedup_vs_torch is None for row in found.rows)
    # All drift alike, which the absolute times do not survive.
    assert len(found.noise) == 2
    assert "lie 50 % apart (the worst of 5 programs)" in found.noise[0]
    assert "changed by 100 % (the worst of 5 programs)" in found.noise[1]
    json.dumps([row.as_json() for row in found.rows], allow_nan=False)


def test_speed_ups_are_over_exact_odin() -> None:
    """Of the fastest eager program, and of plain eager float32; compiled ones do not count."""
    times = {
        ("openvino", "bf16", "forward"): [0.5] * 7,
        ("openvino", "bf16", "exact"): [2.0] * 7,
        ("openvino", "bf16", "first-order"): [1.0] * 7,
        **torch_times(30.0, 20.0, 6.0),
        ("torch", "bf16", "exact", "channels_last compile"): [3.0] * 7,
        ("torch", "bf16", "first-order", "channels_last"): [4.0] * 7,
    }
    found = table(times)
    speed = [(row.method, row.speedup_vs_torch, row.speedup_vs_eager) for row in found.rows]
    assert speed == [
        ("forward", None, None),
        ("exact", 3.0, 15.0),
        ("first-order", 6.0, 30.0),
        ("exact", 0.2, 1.0),
        ("exact", 0.3, 1.5),
        ("exact", 1.0, 5.0),
        ("exact", 2.0, 10.0),
        ("first-order", 1.5, 7.5),
    ]
    assert found.noise == []
    text = throughput_table(found.rows).splitlines()
    assert len({len(line) for line in text}) == 1
    assert [cell.strip() for cell in text[3].split("|")[1:-1]] == [
        *("openvino", "bf16", "exact", "4.0", "2,000.00", "2,000.00", "2,000.00"),
        *("4.00 [4.00, 4.00]", "3.00 [3.00, 3.00]", "15.00"),
    ]


def test_the_best_of_pytorch_is_known_only_when_all_were_timed() -> None:
    times = torch_times(30.0, 20.0, 6.0)
    del times["torch", "bf16", "exact", "channels_last"]
    rows = table({("ort", "fp32", "exact"): [5.0] * 7, **times}).rows
    assert [row.speedup_vs_torch for row in rows] == [None] * 3
    assert [row.speedup_vs_eager for row in rows] == [6.0, 1.0, 1.5]


def test_memory(tiny_spec: Callable[..., Spec]) -> None:
    """Engines keep the parts that they compute at once, PyTorch the whole batch, once."""
    spec = tiny_spec(activation_bytes=1_000_000)
    engine = program("ort", "fp32", "exact", held=8)
    whole = program("torch", "fp32", "exact")
    images = 5 * 3 * 32 * 32
    needed = bytes_needed([engine, engine, whole, whole], spec, 64, (32, 32))
    assert needed == (2 * 8 + 64) * 1_000_000 + 64 * images
    assert bytes_needed([engine], spec, 2, (32, 32)) == 2 * (1_000_000 + images)
    assert bytes_needed([engine], spec, 2, (64, 64)) == 4 * 2 * (1_000_000 + images)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        ((32, 63), (32, 63), (32, 32)),
        ((224, 224),) * 2 + ((224, 224),),
        ((1, 28), (8, 500), (28, 32)),
    ],
)
def test_sizes_of_images(
    tiny_spec: Callable[..., Spec], height: Any, width: Any, size: tuple[int, int]
) -> None:
    spec = tiny_spec(height=height, width=width)
    assert default_size(spec) == size
    images = sample_images(spec, 5, size)
    assert (images.shape, images.dtype) == ((5, *size, 3), np.uint8)
    assert np.array_equal(images, sample_images(spec, 5, size))
    assert images.std() > 60


@pytest.mark.parametrize("changes", [{}, {"input_type": "uint8"}, {"tunable": True}])
def test_engines_are_given_what_they_take(make_tiny_bundle: BundleMaker, changes: Any) -> None:
    """Programs of an engine score what `Scorer` scores, in parts, and are all timed."""
    bundles = [make_tiny_bundle(method=method, **changes) for method in ("exact", "first-order")]
    spec = bundles[0].spec
    programs = open_programs(bundles, "ort", "fp32", Tuning(1, 1))
    assert [each.name for each in programs] == [
        *("ort fp32 forward", "ort fp32 forward whole", "ort fp32 exact"),
        "ort fp32 first-order",
    ]
    raw = sample_images(spec, 7, (32, 32))
    for bundle, each in zip(bundles, programs[2:], strict=True):
        feeds = {"images": raw if each.raw else normalised(raw, spec)}
        expected = Scorer.open(bundle, "ort", threads=1).score(raw)
        found: Any = each.call(feeds)
        np.testing.assert_allclose(found["score"], expected.score, rtol=1e-6)
    (found,) = time_programs(programs, spec, [5], (32, 32), seconds=0.01, precision=1.0)
    methods = ["forward", "forward, whole", "exact", "first-order"]
    assert [row.method for row in found.rows] == methods
    assert found.rows[2].passes is not None
    assert found.rows[2].passes > 1
    part = images_at_once("ort", "fp32")
    (found,) = time_programs(programs, spec, [part], (32, 32), seconds=0.01, precision=1.0)
    assert [row.method for row in found.rows] == [methods[0], *methods[2:]]  # one part is whole


def test_plans_have_no_passes(tiny_bundle: Bundle) -> None:
    """Their scorer is timed on images of the host, without a forward pass beside it."""
    seen = []

    class OnPlans(Scorer):
        def score(self, images: np.ndarray, **_: Any) -> Any:
            seen.append((images.shape, images.dtype))

    opened = Scorer.open(tiny_bundle, "ort")
    scorer = OnPlans(**{**vars(opened), "engine": "trt"})
    programs = [plan_program(scorer)]
    (found,) = time_programs(programs, scorer.spec, [3], (32, 32), seconds=0.01, precision=1.0)
    assert set(seen) == {((3, 32, 32, 3), np.dtype(np.uint8))}
    assert (found.rows[0].engine, found.rows[0].passes) == ("trt", None)
    assert "| - |" in " ".join(throughput_table(found.rows).split())


# PyTorch


def test_eager_pytorch_is_the_reference(tiny_reference: TorchReference) -> None:
    """Every arrangement computes ODIN, in both methods, without gradients of parameters."""
    spec = tiny_reference.spec
    planes = normalised(sample_images(spec, 6, (32, 32)), spec)
    programs = eager_programs(tiny_reference, ["exact", "first-order"])
    assert [(p.precision, p.layout, p.method) for p in programs] == [
        (*arrangement, method) for arrangement in EAGER for method in (None, "exact", "first-order")
    ]
    for each in programs:
        found: Any = each.call({"images": planes})
        logits = found if each.method is None else found["logits"]
        reference = TorchReference(tiny_reference.network, replace(spec, method=each.method))
        expected = reference.run({"images": planes})
        close = 0.1 if each.precision == "bf16" else 1e-4
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected["logits"], atol=10 * close)
        assert (np.abs(logits - expected["logits"]).max() > 1e-3) == (each.precision == "bf16")
        if each.method:
            np.testing.assert_allclose(found["score"], expected["score"], atol=close)
    assert all(parameter.requires_grad for parameter in tiny_reference.network.parameters())
    assert all(parameter.grad is None for parameter in tiny_reference.network.parameters())


def test_threads_of_pytorch_are_as_before() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before
    with torch_threads(None):
        assert torch.get_num_threads() == before


def test_pytorch_that_cannot_compile(
    tiny_reference: TorchReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no C++ compiler\nand much more")

    monkeypatch.setattr(torch, "compile", lambda network, **_: Refusing(network))
    planes = normalised(sample_images(tiny_reference.spec, 2, (32, 32)), tiny_reference.spec)
    with pytest.raises(OdinError, match=r"^torch\.compile fails here: no C\+\+ compiler$"):
        compiled_programs(tiny_reference, ["exact"], planes)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(which, ("g++", "clang++"))), reason="needs a C++ compiler")
def test_compiled_pytorch(tiny_reference: TorchReference) -> None:
    """It computes the same, for one batch size after the other."""
    spec = tiny_reference.spec
    planes = normalised(sample_images(spec, 6, (32, 32)), spec)
    programs = compiled_programs(tiny_reference, ["exact"], planes)
    assert [(p.precision, p.layout, p.method) for p in programs] == [
        (precision, "channels_last compile", method)
        for precision in ("fp32", "bf16")
        for method in (None, "exact")
    ]
    for images in (planes, planes[:3]):
        expected = tiny_reference.run({"images": images})
        found: Any = programs[1].call({"images": images})
        np.testing.assert_allclose(found["score"], expected["score"], atol=1e-4)


# Profiles


def test_ops_are_summed() -> None:
    runs = [
        [("a", "Conv", "fast", 0.004), ("b", "Conv", "fast", 0.002), ("c", "Add", "", 0.001)],
        [("a", "Conv", "fast", 0.006), ("c", "Add", "", 0.001), ("d", "Conv", "slow", 0.02)],
    ]
    found = by_op(runs, images=2)
    assert found == [
        OpTime("Conv", "slow", 1, pytest.approx(5)),
        OpTime("Conv", "fast", 2, pytest.approx(3)),
        OpTime("Add", "", 1, pytest.approx(0.5)),
    ]


def test_events_of_onnx_runtime() -> None:
    """Of each run the nodes' kernels, and neither what is around them nor how the model loads."""

    def node(name: str, start: int, op: str) -> dict[str, Any]:
        args = {"op_name": op, "node_index": name[0]}
        return {"cat": "Node", "name": name, "ts": start, "dur": 5, "args": args}

    events = [
        {"cat": "Session", "name": "model_loading_uri", "ts": 0, "dur": 90},
        node("a_kernel_time", 105, "Conv"),
        node("a_fence_before", 104, "Conv"),
        {"cat": "Session", "name": "model_run", "ts": 100, "dur": 50},
        node("a_kernel_time", 205, "Conv"),
        node("b_kernel_time", 211, "Add"),
        {"cat": "Session", "name": "model_run", "ts": 200, "dur": 50},
    ]
    assert split_runs(events) == [
        [("a", "Conv", "", pytest.approx(5e-6))],
        [("a", "Conv", "", pytest.approx(5e-6)), ("b", "Add", "", pytest.approx(5e-6))],
    ]


# Whole sets


class Stages:
    """A clock that is looked at after reading, preparing, and around scoring."""

    def __init__(self, *steps: float) -> None:
        self._times = iter(np.cumsum([0.0, *steps]))

    def __call__(self) -> float:
        return float(next(self._times))


def photos(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    folder.mkdir()
    for index, (height, width) in enumerate(sizes):
        pixels = np.full((height, width, 3), 40 * index, np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def test_steps_of_a_whole_set(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two chunks: reading, preparing, warming up (which does not count), scoring."""
    monkeypatch.setattr(end_to_end, "CHUNK", 2)
    path = photos(tmp_path / "photos", [(32, 32), (40, 36), (28, 28)])
    taken, seen = EndToEnd(), []
    clock = Stages(*(4.0, 1.0, 50.0, 2.0), 0.0, *(2.0, 1.0, 50.0, 1.0), 0.0)
    end_to_end.run(Scorer.open(tiny_bundle, "ort"), path, None, taken, seen.append, clock)
    assert seen == [2, 1]
    assert taken == EndToEnd(3, read=6.0, prepare=2.0, score=3.0)
    assert taken.bottleneck == "reading and decoding"
    assert taken.as_json()["images_per_second"] == pytest.approx(3 / 11)
    assert "reading and decoding     6.000 s  54.5 %" in taken.as_text()
    assert "1.0 images/s scoring alone" in taken.as_text()


@pytest.mark.parametrize("input_type", ["float32", "uint8"])
def test_a_whole_set_is_scored_as_it_is(
    make_tiny_bundle: BundleMaker, tmp_path: Path, raw_images: Any, input_type: str
) -> None:
    given = []

    class Recording(Scorer):
        def score(self, images: np.ndarray, **tuning: Any) -> Any:
            given.append(images)
            return super().score(images, **tuning)

    scorer = Recording(**vars(Scorer.open(make_tiny_bundle(input_type=input_type), "ort")))
    raw = raw_images(3)
    np.savez(tmp_path / "set.npz", x=raw)
    end_to_end.run(scorer, tmp_path / "set.npz", None, EndToEnd(), lambda count: None)
    expected = raw if input_type == "uint8" else normalised(raw, scorer.spec)
    assert np.array_equal(given[-1], expected)
    end_to_end.run(scorer, tmp_path / "set.npz", (48, 48), EndToEnd(), lambda count: None)
    assert 48 in given[-1].shape


def test_images_that_the_network_refuses(tiny_bundle: Bundle, tmp_path: Path) -> None:
    path = photos(tmp_path / "photos", [(80, 80)])
    with pytest.raises(OdinError, match="80 pixels high, where tiny takes 32 to 63"):
        end_to_end.run(Scorer.open(tiny_bundle, "ort"), path, None, EndToEnd(), print)
