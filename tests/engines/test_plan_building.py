"""Building one plan: flags, progress, Ctrl-C, and what is refused."""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from odin_engines import plans
from odin_engines.errors import OdinError
from odin_engines.plan import deserialized
from odin_engines.plan_messages import Messages, because, make_logger
from odin_engines.plan_records import Limits, PlanRecord
from odin_engines.plan_sets import PlanOptions, check_options, wanted_plans
from odin_engines.plans import Phases, build_plan, parse
from odin_engines.spec import Spec

SpecMaker = Callable[..., Spec]
NEWER = ("8.0", "8.6", "8.9", "12.0", "12.1")


@pytest.fixture(scope="module")
def trt() -> ModuleType:
    reason = "install tensorrt-rtx-cu13: pip install '.[cpu,test,rtx]'"
    return pytest.importorskip("tensorrt_rtx", reason=reason)


@pytest.fixture
def record(trt: ModuleType, tiny_spec: SpecMaker) -> PlanRecord:
    """What the tiny network's plan of forward.onnx is to be."""
    return wanted_plans(tiny_spec(), PlanOptions("rtx"))[2]


@pytest.fixture(scope="module")
def graph(tiny_forward: onnx.ModelProto) -> bytes:
    return tiny_forward.SerializeToString()


def model(*nodes: onnx.NodeProto, constants: dict[str, np.ndarray] | None = None) -> bytes:
    """A graph of images -> y."""
    shape = ["N", 3, 32, 32]
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return proto.SerializeToString()


# Flags


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("level", [None, 0, 5])
def test_flags(
    trt: ModuleType, record: PlanRecord, graph: bytes, tf32: bool, level: int | None
) -> None:
    record = dataclasses.replace(record, tf32=tf32, optimization_level=level)
    logger = make_logger(trt, Messages())
    builder = trt.Builder(logger)
    network, _ = parse(trt, builder, logger, graph)
    default = builder.create_builder_config()
    assert default.get_flag(trt.BuilderFlag.TF32)
    config = plans._config(trt, builder, network, record, Messages())
    assert config.get_flag(trt.BuilderFlag.TF32) is tf32
    assert config.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    wanted = default.builder_optimization_level if level is None else level
    assert config.builder_optimization_level == wanted
    assert config.num_optimization_profiles == 1
    assert config.num_compute_capabilities == len(record.compute_capabilities)
    found = [config.get_compute_capability(i).name for i in range(config.num_compute_capabilities)]
    assert found == ["SM80", "SM86", "SM89", "SM120", "SM121"]
    assert network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


@pytest.mark.parametrize(
    ("asked", "level"),
    [("none", None), ("ampere+", "AMPERE_PLUS"), ("same-cc", "SAME_COMPUTE_CAPABILITY")],
)
def test_hardware_compatibility(
    trt: ModuleType, record: PlanRecord, asked: str, level: str | None
) -> None:
    """Only TensorRT has it, so the configuration is a test double; the levels are real."""
    config = SimpleNamespace()
    record = dataclasses.replace(record, hardware_compatibility=asked)
    plans._set_compatibility(trt, config, record)
    expected = None if level is None else getattr(trt.HardwareCompatibilityLevel, level)
    assert getattr(config, "hardware_compatibility_level", None) == expected


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (PlanOptions("rtx", optimization_level=6), "--builderOptimizationLevel 6: give a number"),
        (PlanOptions("rtx", optimization_level=-1), "--builderOptimizationLevel -1: give a number"),
        (PlanOptions("rtx", forms=()), "choose from fused, split"),
        (PlanOptions("rtx", hardware_compatibility="ampere+"), "--hardwareCompatibility is for"),
        (PlanOptions("rtx", timing_cache=Path("file")), "--timingCacheFile is for --engine trt"),
        (PlanOptions("trt", compute_capabilities=("8.6",)), "--computeCapabilities is for"),
        (PlanOptions("trt"), "TensorRT builds on the GPU that it builds for"),
    ],
)
def test_refused_options(options: PlanOptions, part: str) -> None:
    with pytest.raises(OdinError) as caught:
        check_options(options)
    assert part in str(caught.value)


@pytest.mark.parametrize("text", ["9.0", "8.7", "86", "sm_86", ""])
def test_targets_that_do_not_exist(trt: ModuleType, tiny_spec: SpecMaker, text: str) -> None:
    options = PlanOptions("rtx", compute_capabilities=("8.6", text))
    with pytest.raises(OdinError, match=r"builds for 7\.5, 8\.0, 8\.6, 8\.9, 12\.0, 12\.1; for"):
        wanted_plans(tiny_spec(), options)


def test_targets_are_in_order(trt: ModuleType, tiny_spec: SpecMaker) -> None:
    options = PlanOptions("rtx", compute_capabilities=("12.0", "8.6", "12.0"))
    assert wanted_plans(tiny_spec(), options)[0].compute_capabilities == ("8.6", "12.0")


@pytest.mark.parametrize(
    ("fields", "turing"),
    [
        ({}, False),
        ({"precision": "bf16", "graph_precision": "bf16"}, False),
        ({"precision": "fp16", "graph_precision": "fp16"}, True),
        ({"precision": "fp16", "graph_precision": "fp16", "scores": ("energy", "gen")}, True),
        ({"precision": "fp16", "graph_precision": "fp16", "scores": ("cam-std",)}, False),
    ],
)
def test_all_targets(trt: ModuleType, tiny_spec: SpecMaker, fields: Any, turing: bool) -> None:
    """That each builds what is said here, and refuses what is not, test_plans.py shows."""
    record = wanted_plans(tiny_spec(**fields), PlanOptions("rtx"))[0]
    assert record.compute_capabilities == (*(("7.5",) if turing else ()), *NEWER)


def test_a_precision_that_is_not_in_the_graphs(trt: ModuleType, tiny_spec: SpecMaker) -> None:
    spec = tiny_spec(precision="bf16", graph_precision="fp32")
    with pytest.raises(OdinError, match=r"graphs are in fp32.*--precision bf16 --engine rtx"):
        wanted_plans(spec, PlanOptions("rtx"))


# What is refused


def test_an_op_that_the_parser_does_not_know(trt: ModuleType, record: PlanRecord) -> None:
    relu = helper.make_node("Relu", ["images"], ["r"], name="first")
    odd = helper.make_node("Det", ["r"], ["y"], name="the odd one")
    with pytest.raises(OdinError) as caught:
        build_plan(trt, model(relu, odd), record, ["y"])
    message = str(caught.value)
    assert message.startswith("TensorRT for RTX does not take forward.onnx: node 'the odd one' (")
    assert "(Det)" in message
    assert "express this node in other ops" in message
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"", b"no graph at all"])
def test_what_is_no_graph(trt: ModuleType, record: PlanRecord, content: bytes) -> None:
    with pytest.raises(OdinError, match=r"forward\.onnx"):
        build_plan(trt, content, record, ["y"])


@pytest.mark.parametrize(
    ("outputs", "text"),
    [(["y", "z"], "made outputs y of forward.onnx, not y, z"), ([], "made outputs y of")],
)
def test_an_output_that_is_lost(
    trt: ModuleType, record: PlanRecord, outputs: list[str], text: str
) -> None:
    graph = model(helper.make_node("Relu", ["images"], ["y"]))
    with pytest.raises(OdinError, match=text):
        build_plan(trt, graph, record, outputs)


def test_what_the_builder_refuses(trt: ModuleType, record: PlanRecord, graph: bytes) -> None:
    record = dataclasses.replace(record, compute_capabilities=("7.5",))
    with pytest.raises(OdinError) as caught:
        build_plan(trt, graph, record, ["logits"])
    message = str(caught.value)
    assert "cannot build a plan of forward.onnx: Cannot compile operation" in message
    assert "FP32 GEMM is not supported; leave 7.5 out of --computeCapabilities, or" in message
    assert "/_src/" not in message


def test_an_error_holds_nothing_of_tensorrt(
    trt: ModuleType, record: PlanRecord, graph: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A builder freed by a garbage collection inside another one's logger would block for ever."""
    made = []

    def make_builder(*arguments: Any) -> Any:
        builder = plans_make_builder(*arguments)
        made.append(weakref.ref(builder))
        return builder

    plans_make_builder = plans.make_builder
    monkeypatch.setattr(plans, "make_builder", make_builder)
    gc.disable()
    try:
        with pytest.raises(OdinError) as caught:
            build_plan(trt, graph, dataclasses.replace(record, compute_capabilities=("7.5",)), [])
        assert [builder() for builder in made] == [None]
        assert caught.traceback
    finally:
        gc.enable()


def test_a_profile_that_does_not_fit_the_graph(
    trt: ModuleType, record: PlanRecord, graph: bytes
) -> None:
    for shape, part in (((1, 1, 32, 32), "tensor has 3"), ((1, 3, 32), "profile 0 has 3")):
        wrong = dataclasses.replace(record, profile={"images": Limits(shape, shape, shape)})
        with pytest.raises(OdinError, match=part):
            build_plan(trt, graph, wrong, ["logits"])
    unknown = dataclasses.replace(record, profile={"pictures": Limits((1,), (1,), (1,))})
    with pytest.raises(OdinError, match=r"forward\.onnx has no input 'pictures', only images"):
        build_plan(trt, graph, unknown, ["logits"])


def test_a_plan_cannot_be_opened_without_a_gpu(
    trt: ModuleType, record: PlanRecord, graph: bytes, tmp_path: Path
) -> None:
    """The real runtime, as far as it goes here."""
    content = build_plan(trt, graph, record, ["logits"])
    file = tmp_path / "forward.rtx.plan"
    for each, part in ((content, "cudaError 35"), (b"no plan" * 99, "incompatible serialization")):
        with pytest.raises(OdinError) as caught:
            deserialized(trt, file, each, "rtx")
        message = str(caught.value)
        assert f"cannot open {file}: " in message
        assert part in message
        assert f"'odin-export {tmp_path} --engine rtx'" in message


LOGGED = {
    "IBuilder::build: Error Code 1: Myelin ([a.cpp:337: check] No 'x' for (SM75): none. In f at "
    "/_src/a.cpp:20)": "No 'x' for (SM75): none",
    "IBuilder::build: Error Code 7: Canceled (Build canceled by user In next at /a/b.cpp:92)": (
        "Build canceled by user"
    ),
    "[a.cpp::b::250] Error Code 1: Cuda Runtime (In b at /a.cpp:250 (cudaError 35: too old))": (
        "cudaError 35: too old"
    ),
    "Something else:\n  on two lines.": "Something else: on two lines",
}


@pytest.mark.parametrize("text", LOGGED)
def test_messages(text: str) -> None:
    assert because(text) == LOGGED[text]


def test_the_reason_is_not_a_probe_for_a_driver() -> None:
    messages = Messages()
    assert messages.reason() == "it logged no reason"
    messages.errors.append("[x::catchCudaError::1] Error Code 1: Cuda Runtime (cudaError 35: old)")
    assert messages.reason() == "cudaError 35: old"
    messages.errors.append("the reason")
    assert messages.reason() == "the reason"


# Progress and Ctrl-C


def test_progress(
    trt: ModuleType, record: PlanRecord, graph: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "_POLL_SECONDS", 0.005)
    told: list[tuple[str, float]] = []
    build_plan(trt, graph, record, ["logits"], progress=lambda *state: told.append(state))
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert 0 <= shares[0] <= shares[-1] <= 1
    assert any(name for name, _ in told)


def test_phases_within_phases() -> None:
    phases = Phases()
    assert phases.state() == ("", 0)
    phases.start("all", None, 4)
    phases.step("all", 0)
    assert phases.state() == ("all", 0.25)
    phases.start("part", "all", 2)
    phases.step("part", 0)
    assert phases.state() == ("part", 0.375)
    phases.finish("part")
    assert phases.state() == ("all", 0.375)  # never back
    phases.step("all", 3)
    phases.step("gone", 1)
    assert phases.state() == ("all", 1)
    phases.finish("all")
    assert phases.state() == ("", 1)


def test_ctrl_c_cancels(
    trt: ModuleType, record: PlanRecord, graph: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "_POLL_SECONDS", 0.01)
    kept = Messages()
    monkeypatch.setattr(plans, "Messages", lambda: kept)
    told: list[str] = []

    def press(name: str, share: float) -> None:
        told.append(name)
        if len(told) == 1:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build_plan(trt, graph, record, ["logits"], progress=press)
    assert told[1:] == ["stopping"]
    assert "Build canceled by user" in kept.reason()  # the builder itself was stopped
    assert build_plan(trt, graph, record, ["logits"])  # and can be used again


def test_ctrl_c_while_the_graph_is_parsed(
    trt: ModuleType,
    record: PlanRecord,
    graph: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The parser logs from the thread that it is in, and would swallow what is raised there."""
    logged: list[str] = []
    heard = threading.Event()

    def press_once(trt: ModuleType, messages: Messages) -> Any:
        class Logger(trt.ILogger):  # type: ignore[name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: object, msg: str) -> None:
                logged.append(msg)
                if len(logged) == 2:
                    os.kill(os.getpid(), signal.SIGINT)
                    assert heard.wait(10)

        return Logger()

    monkeypatch.setattr(plans, "make_logger", press_once)
    with pytest.raises(KeyboardInterrupt):
        build_plan(
            trt,
            graph,
            record,
            ["logits"],
            progress=lambda name, _: name == "stopping" and heard.set(),
        )
    assert any("Build canceled by user" in text for text in logged)
    assert "Exception caught" not in capfd.readouterr().err


def test_an_error_of_the_progress_ends_the_build(
    trt: ModuleType, record: PlanRecord, graph: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Messages()
    monkeypatch.setattr(plans, "Messages", lambda: kept)
    monkeypatch.setattr(plans, "_POLL_SECONDS", 0.01)

    def fail(name: str, share: float) -> None:
        raise ValueError("no terminal")

    with pytest.raises(ValueError, match="no terminal"):
        build_plan(trt, graph, record, ["logits"], progress=fail)
    assert "Build canceled by user" in kept.reason()
