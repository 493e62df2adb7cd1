"""A plan, opened: what it asks of TensorRT, on a test double; nothing is computed here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines import tensorrt_double
from odin_engines.errors import OdinError
from odin_engines.plan import Plan, Tensor, deserialized
from odin_engines.plan_records import Limits

FILE = Path("here/odin.trt.plan")
ADDRESSES = {"images": 256, "temperature": 512, "score": 768, "label": 1024, "gradient": 1280}
WORK = 0x4000
SHAPES = {"images": (5, 3, 32, 36)}


def opened(trt: Any) -> Plan:
    return deserialized(trt, FILE, b"a plan", "trt")


def test_what_it_takes_and_gives() -> None:
    plan = opened(tensorrt_double.make())
    limits = Limits((1, 3, 32, 32), (4, 3, 32, 32), (8, 3, 40, 40))
    assert plan.inputs == {
        "images": Tensor("images", "float32", (-1, 3, -1, -1), limits),
        "temperature": Tensor("temperature", "float32", ()),
    }
    assert plan.outputs == {
        "score": Tensor("score", "float32", (-1,)),
        "label": Tensor("label", "int64", (-1,)),
        "gradient": Tensor("gradient", "bfloat16", (-1, 3, -1, -1)),
    }
    assert plan.work_bytes == 123_000_000


def test_a_run() -> None:
    trt = tensorrt_double.make()
    opened(trt).enqueue(ADDRESSES, SHAPES, WORK, 0x77)
    assert trt.calls[0] == (1, "set_input_shape", "images", (5, 3, 32, 36))
    addresses = {call[2]: call[3] for call in trt.calls if call[1] == "set_tensor_address"}
    assert addresses == ADDRESSES
    assert trt.calls[-1] == (1, "execute_async_v3", 0x77)
    assert len(trt.calls) == 2 + 1 + len(ADDRESSES) + 1


def test_a_shape_is_set_once() -> None:
    """What is captured as a CUDA graph is then the run alone."""
    trt = tensorrt_double.make()
    plan = opened(trt)
    for shapes in (SHAPES, SHAPES, {"images": (1, 3, 32, 32)}, SHAPES):
        plan.enqueue(ADDRESSES, shapes, WORK, 1)
    plan.output_shapes(SHAPES)
    told = [call[1:] for call in trt.calls if call[1] in ("set_input_shape", "execute_async_v3")]
    run = ("execute_async_v3", 1)
    large, small = (
        ("set_input_shape", "images", (n, 3, *s)) for n, s in ((5, (32, 36)), (1, (32, 32)))
    )
    assert told == [large, run, run, small, run, large, run]


def test_contexts_work_in_memory_of_the_caller() -> None:
    """Made with it alone (see the double); they are told of it once, and when it changes."""
    trt = tensorrt_double.make()
    plan = opened(trt)
    other = plan.another()
    for context, work in ((plan, 256), (other, 256), (plan, 256), (plan, 512), (other, 256)):
        context.enqueue(ADDRESSES, SHAPES, work, 1)
    told = [(call[0], *call[2:]) for call in trt.calls if call[1] == "set_device_memory"]
    size = plan.work_bytes
    assert told == [(1, 256, size), (2, 256, size), (1, 512, size)]


def test_a_shape_that_was_refused_is_set_again() -> None:
    for refuse in ("set_input_shape", "infer_shapes"):
        trt = tensorrt_double.make(refuse)
        plan = opened(trt)
        for _ in range(2):
            with pytest.raises(OdinError, match="this is why"):
                plan.enqueue(ADDRESSES, SHAPES, WORK, 1)
        assert [call[1] for call in trt.calls].count(refuse) == 2


def test_memory_that_was_refused_is_set_again() -> None:
    plan = opened(tensorrt_double.make("set_device_memory"))
    for _ in range(2):
        with pytest.raises(OdinError, match=r"does not run: this is why$"):
            plan.enqueue(ADDRESSES, SHAPES, WORK, 1)


def test_shapes_of_the_outputs() -> None:
    shapes = opened(tensorrt_double.make()).output_shapes(SHAPES)
    assert shapes == {"score": (5,), "label": (5,), "gradient": (5, 3, 32, 36)}


def test_contexts_do_not_share() -> None:
    trt = tensorrt_double.make()
    plan = opened(trt)
    other = plan.another()
    other.enqueue(ADDRESSES, SHAPES, WORK, 2)
    plan.enqueue(ADDRESSES, {"images": (1, 3, 40, 40)}, WORK, 1)
    runs = [call for call in trt.calls if call[1] in ("set_input_shape", "execute_async_v3")]
    assert runs == [
        (2, "set_input_shape", "images", (5, 3, 32, 36)),
        (2, "execute_async_v3", 2),
        (1, "set_input_shape", "images", (1, 3, 40, 40)),
        (1, "execute_async_v3", 1),
    ]


def test_another_context_of_rtx_compiles_before_it_runs() -> None:
    """Or a CUDA graph would keep the kernels that are for any shape."""
    trt = tensorrt_double.make(rtx=True)
    opened(trt).another()
    first, second = trt.configs
    assert not hasattr(first, "dynamic_shapes_kernel_specialization_strategy")
    strategy = tensorrt_double.DynamicShapesKernelSpecializationStrategy.EAGER
    assert second.dynamic_shapes_kernel_specialization_strategy is strategy


def test_what_can_be_captured() -> None:
    """TensorRT for RTX says it; TensorRT has no such question."""
    stream = tensorrt_double.NOT_CAPTURABLE
    plan = opened(tensorrt_double.make(rtx=True))
    assert plan.capturable(1) and not plan.capturable(stream)
    assert opened(tensorrt_double.make()).capturable(stream)


@pytest.mark.parametrize(
    ("refuse", "parts"),
    [
        ("Runtime", ("TensorRT does not start",)),
        (
            "deserialize_cuda_engine",
            ("TensorRT 11.4.0.106 cannot open here/odin.trt.plan: this is why", "build it again"),
        ),
        (
            "context 1",
            ("no memory on the GPU", "Requested size was 5", "--maxShapes"),
        ),
        ("set_input_shape", ("shape 5x3x32x36 of images is refused: this is why",)),
        ("infer_shapes", ("no shapes follow from those of its inputs: this is why",)),
        ("all shapes", ("no shape is known of temperature",)),
        ("set_device_memory", ("odin.trt.plan does not run: this is why",)),
        ("set_tensor_address", ("of images is refused: this is why", "0x100")),
        ("execute_async_v3", ("odin.trt.plan does not run: this is why",)),
    ],
)
def test_every_answer_is_checked(refuse: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(OdinError) as caught:
        opened(tensorrt_double.make(refuse)).enqueue(ADDRESSES, SHAPES, WORK, 1)
    for part in (*parts, "here/odin.trt.plan" if refuse != "Runtime" else "TensorRT"):
        assert part in str(caught.value)


def test_no_memory_for_another() -> None:
    plan = opened(tensorrt_double.make("context 2"))
    with pytest.raises(OdinError, match=r"no memory on the GPU.*free some"):
        plan.another()


def test_an_error_is_not_told_twice() -> None:
    """What was logged in an earlier call is no reason for a later one."""
    trt = tensorrt_double.make("execute_async_v3", log="first reason")
    plan = opened(trt)
    for _ in range(2):
        with pytest.raises(OdinError, match=r"does not run: first reason$"):
            plan.enqueue(ADDRESSES, SHAPES, WORK, 1)


@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        (
            (9, 3, 32, 32),
            ("not 9x3x32x32", "'odin-export here --engine trt --maxShapes=images:9x3x32x32'"),
        ),
        ((8, 3, 41, 32), ("not 8x3x41x32", "--maxShapes=images:8x3x41x32")),
        ((8, 3, 31, 32), ("not 8x3x31x32", "--minShapes=images:8x3x31x32")),
        ((0, 3, 32, 32), ("not 0x3x32x32", "needs no run")),
        ((8, 3, 32), ("not 8x3x32", "give 4 sizes")),
    ],
)
def test_shapes_out_of_the_profile(shape: Any, parts: tuple[str, ...]) -> None:
    trt = tensorrt_double.make()
    with pytest.raises(OdinError) as caught:
        opened(trt).enqueue(ADDRESSES, {"images": shape}, WORK, 1)
    for part in (
        *parts,
        "here/odin.trt.plan takes images of 1x3x32x32 to 8x3x40x40",
    ):
        assert part in str(caught.value)
    assert trt.calls == []


@pytest.mark.parametrize(
    ("addresses", "shapes", "odd"),
    [
        (ADDRESSES, {}, "images"),
        (ADDRESSES, {**SHAPES, "temperature": ()}, "temperature"),
        ({**ADDRESSES, "scores": 1}, SHAPES, "scores"),
        ({name: ADDRESSES[name] for name in ("images", "score")}, SHAPES, "gradient, label, temp"),
    ],
)
def test_names_that_are_missing_or_unknown(addresses: Any, shapes: Any, odd: str) -> None:
    trt = tensorrt_double.make()
    with pytest.raises(OdinError, match=f"look at {odd}"):
        opened(trt).enqueue(addresses, shapes, WORK, 1)
    assert "execute_async_v3" not in [call[1] for call in trt.calls]
