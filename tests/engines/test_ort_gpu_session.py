"""Opening a graph through a GPU provider: options, cache, precision, and no fallback.

No GPU is needed: ONNX Runtime's CPU provider stands in for one, or a session of the tests that
only records what it is given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from odin_engines import files, ort_gpu_session
from odin_engines.bundle import Bundle
from odin_engines.cuda_probe import Device, Driver
from odin_engines.engine import Tuning, open_graph
from odin_engines.errors import OdinError
from odin_engines.ort_engine import one_line
from odin_engines.ort_gpu import CUDA, TENSORRT, Provider
from odin_engines.ort_gpu_session import (
    engine_key,
    graph_precision,
    open_session,
    size_nodes,
    weight_files,
)

CPU = Provider("CPUExecutionProvider", "CPU", "ort", (), ())
TF32 = "NVIDIA_TF32_OVERRIDE"


def node(op_type: str, name: str = "") -> SimpleNamespace:
    return SimpleNamespace(op_type=op_type, name=name or f"node_{op_type}", domain="")


class FakeRuntime:
    """Stands in for the module onnxruntime: opens nothing, keeps what it is given."""

    __version__ = "1.31.1"

    def __init__(self, used: str, parts: Sequence[tuple[str, list[SimpleNamespace]]]) -> None:
        self.used, self.parts = used, parts
        self.entries: dict[str, str] = {}
        self.providers: list[Any] = []
        self.fallback: list[str] = []

    def SessionOptions(self) -> SimpleNamespace:
        return SimpleNamespace(add_session_config_entry=self.entries.__setitem__)

    def InferenceSession(
        self, graph: str, options: Any, providers: list[Any], enable_fallback: int
    ) -> SimpleNamespace:
        assert enable_fallback == 0
        self.providers, self.options = providers, options
        return SimpleNamespace(
            get_providers=lambda: [self.used, "CPUExecutionProvider"],
            get_outputs=list,
            disable_fallback=lambda: self.fallback.append("disabled"),
            get_provider_graph_assignment_info=lambda: [
                SimpleNamespace(ep_name=name, get_nodes=lambda nodes=nodes: nodes)
                for name, nodes in self.parts
            ],
        )


def use_gpu(monkeypatch: pytest.MonkeyPatch, device: Device) -> None:
    monkeypatch.setattr(ort_gpu_session, "ask_driver", lambda: Driver(13000, (device,), None))


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., FakeRuntime]:
    """A function: the provider that is used, parts of the graph -> a runtime that does so."""
    use_gpu(monkeypatch, Device("a GPU of the tests", (8, 9)))
    monkeypatch.setattr(ort_gpu_session, "load_tensorrt", lambda runtime: 101303)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(TF32, raising=False)

    def make(
        provider: Provider = CUDA,
        parts: Sequence[tuple[str, list[SimpleNamespace]]] = (),
        used: str | None = None,
    ) -> FakeRuntime:
        fake = FakeRuntime(used or provider.name, parts or [(provider.name, [node("Conv")])])
        monkeypatch.setattr(ort_gpu_session, "load", lambda: fake)
        return fake

    yield make
    os.environ.pop(TF32, None)


def save(path: Path, *initializers: TensorProto, nodes: Sequence[Any] = ()) -> Path:
    """A graph of one node or of these, that computes nothing of use."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in "xy"]
    nodes = nodes or [helper.make_node("Identity", ["x"], ["y"])]
    graph = helper.make_graph(nodes, "graph", value[:1], value[1:], list(initializers))
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=opset), path)
    return path


def weights(kind: int, name: str = "w") -> TensorProto:
    return helper.make_tensor(name, kind, [2], [1.0, 2.0])


# Opening


def test_a_graph_is_opened_and_computed(tiny_bundle: Bundle) -> None:
    graph = tiny_bundle.file("odin.onnx")
    images = np.random.default_rng(3).standard_normal((5, 3, 32, 32)).astype(np.float32)
    found = open_session(CPU, graph, "fp32", Tuning(threads=1)).run({"images": images})
    expected = open_graph("ort", graph).run({"images": images})
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


def test_options_of_cuda(runtime: Callable[..., FakeRuntime], tmp_path: Path) -> None:
    fake = runtime(CUDA)
    open_session(CUDA, save(tmp_path / "a.onnx"), "fp32", Tuning(threads=3))
    options = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    assert fake.providers == [("CUDAExecutionProvider", options)]
    assert fake.entries == {"session.record_ep_graph_assignment_info": "1"}
    assert fake.options.intra_op_num_threads == 3
    assert fake.options.use_deterministic_compute is True
    assert fake.fallback == ["disabled"]
    assert not (tmp_path / "cache").exists()


def test_a_provider_that_was_not_used(runtime: Callable[..., FakeRuntime], tmp_path: Path) -> None:
    runtime(CUDA, used="CPUExecutionProvider")
    with pytest.raises(OdinError, match="with CPUExecutionProvider in place of CUDAExecutionProv"):
        open_session(CUDA, save(tmp_path / "a.onnx"), "fp32", Tuning())


def reshaping(path: Path) -> Path:
    """A graph whose last node takes a shape that is computed from the sizes of another tensor."""
    numbers = {"first": [0], "minus_one": [-1], "three": [3]}
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], "shape"),
        helper.make_node("Constant", [], ["two"], "two", value_ints=[2]),
        helper.make_node("Gather", ["shape", "first"], ["batch"], "gather"),
        helper.make_node("Mul", ["batch", "two"], ["twice"], "mul_sizes"),
        helper.make_node("Concat", ["twice", "minus_one"], ["whole"], "concat", axis=0),
        helper.make_node("ConstantOfShape", ["whole"], ["zeros"], "fill"),
        helper.make_node("Mul", ["x", "x"], ["square"], "mul_values"),
        helper.make_node("Expand", ["three", "whole"], ["threes"], "expand"),
        helper.make_node("Reshape", ["square", "whole"], ["y"], "reshape"),
    ]
    constants = (numpy_helper.from_array(np.array(v), name) for name, v in numbers.items())
    return save(path, *constants, nodes=nodes)


def test_nodes_that_compute_sizes(tmp_path: Path) -> None:
    """By what they compute, not by their op: an image is multiplied as well."""
    found = size_nodes(onnx.load(reshaping(tmp_path / "a.onnx")))
    assert found == {"shape", "gather", "mul_sizes", "concat"}


@pytest.mark.parametrize("provider", [CUDA, TENSORRT], ids=["cuda", "trt"])
def test_sizes_may_be_computed_on_the_cpu(
    runtime: Callable[..., FakeRuntime], tmp_path: Path, provider: Provider
) -> None:
    sizes = [node("Shape", "shape"), node("Mul", "mul_sizes")]
    runtime(provider, [(provider.name, [node("Conv")]), (CPU.name, sizes)])
    open_session(provider, reshaping(tmp_path / "a.onnx"), "fp32", Tuning())


@pytest.mark.parametrize(
    ("op", "name"),
    [("Mul", "mul_values"), ("ConstantOfShape", "fill"), ("Shape", "new"), ("Gemm", "fused")],
)
@pytest.mark.parametrize("provider", [CUDA, TENSORRT], ids=["cuda", "trt"])
def test_a_node_that_was_left_to_the_cpu(
    runtime: Callable[..., FakeRuntime], tmp_path: Path, provider: Provider, op: str, name: str
) -> None:
    left = [node("Shape", "shape"), node(op, name)]
    runtime(provider, [(provider.name, [node("Conv")]), (CPU.name, left)])
    graph = reshaping(tmp_path / "a.onnx")
    with pytest.raises(OdinError) as caught:
        open_session(provider, graph, "fp32", Tuning())
    assert (
        f"{provider.title} provider leaves 1 nodes of {graph} to the CPU, the first of them "
        f"{name!r} (all are {op}): use --engine ort, which"
    ) in str(caught.value)


def test_real_sessions_keep_the_names_of_nodes(tiny_bundle: Bundle) -> None:
    """What ONNX Runtime says of its nodes can be looked up in the graph."""
    graph = tiny_bundle.file("odin.onnx")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(str(graph), options, [CPU.name])
    parts = session.get_provider_graph_assignment_info()
    names = {each.name for part in parts for each in part.get_nodes()}
    model = onnx.load(graph)
    assert names <= {each.name for each in model.graph.node}
    assert names & size_nodes(model)


def test_an_error_of_onnx_runtime_is_one_line(tmp_path: Path) -> None:
    graph = save(tmp_path / "a.onnx", nodes=[helper.make_node("NoSuchOp", ["x"], ["y"])])
    with pytest.raises(OdinError) as caught:
        open_session(CPU, graph, "fp32", Tuning())
    message = str(caught.value)
    assert message.startswith(f"ONNX Runtime's CPU provider cannot open {graph}: ")
    assert "NoSuchOp" in message
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"", b"not a graph", None], ids=["empty", "text", "none"])
def test_a_file_that_is_no_graph(tmp_path: Path, content: bytes | None) -> None:
    graph = tmp_path / "broken.onnx"
    if content is not None:
        graph.write_bytes(content)
    with pytest.raises(OdinError, match=r"cannot open .*broken\.onnx"):
        open_session(CPU, graph, "fp32", Tuning())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load\nfailed",
            "INVALID_PROTOBUF : Load failed",
        ),
        (
            "/src/core/cuda_call.cc:154 std::conditional_t<THRW, void, Status> CudaCall(ERRTYPE) "
            "[with ERRTYPE = cudaError; bool THRW = true] CUDA failure 35: the driver is old "
            "; GPU=-1 ; hostname=here ; file=/src/a.cc ; line=7 ; expr=cudaSetDevice(0); \n\n",
            "CUDA failure 35: the driver is old",
        ),
        (
            "/src/options.cc:63 static Info From(const Options&) [ONNXRuntimeError] : 1 : FAIL : "
            "Failed to parse",
            "FAIL : Failed to parse",
        ),
        ("Required inputs (['images']) are missing", "Required inputs (['images']) are missing"),
    ],
)
def test_places_in_source_code_are_left_out(text: str, wanted: str) -> None:
    assert one_line(RuntimeError(text)) == wanted


# Precision


@pytest.mark.parametrize(
    ("kind", "precision"),
    [(TensorProto.FLOAT, "fp32"), (TensorProto.FLOAT16, "fp16"), (TensorProto.BFLOAT16, "bf16")],
)
def test_the_precision_is_that_of_the_graph(tmp_path: Path, kind: int, precision: str) -> None:
    half = [weights(TensorProto.FLOAT, "v"), weights(kind)]
    inner = helper.make_graph([helper.make_node("Cast", ["x"], ["z"], to=kind)], "inner", [], [])
    cases = {
        "weights": {"initializers": half},
        "cast": {"nodes": [helper.make_node("Cast", ["x"], ["z"], to=kind)]},
        "constant": {"nodes": [helper.make_node("Constant", [], ["c"], value=weights(kind))]},
        "inside": {"nodes": [helper.make_node("If", ["b"], ["z"], then_branch=inner)]},
    }
    for name, case in cases.items():
        graph = save(tmp_path / name, *case.get("initializers", ()), nodes=case.get("nodes", ()))
        assert graph_precision(onnx.load(graph)) == precision, name


@pytest.mark.parametrize("asked", ["fp16", "bf16"])
def test_another_precision_than_the_graph_has(tiny_bundle: Bundle, asked: Any) -> None:
    graph = tiny_bundle.file("odin.onnx")
    with pytest.raises(OdinError) as caught:
        open_session(CUDA, graph, asked, Tuning())
    assert str(caught.value) == (
        f"{graph} computes in fp32, and engine ort-cuda takes the graph's precision: use "
        f"--precision fp32, or a bundle whose graphs are in {asked}"
    )


# TensorRT


def tensorrt_options(fake: FakeRuntime) -> dict[str, str]:
    ((name, options),) = fake.providers
    assert name == "TensorrtExecutionProvider"
    return options


def test_options_of_tensorrt(
    runtime: Callable[..., FakeRuntime], tiny_bundle: Bundle, tmp_path: Path
) -> None:
    fake = runtime(TENSORRT)
    open_session(TENSORRT, tiny_bundle.file("odin.onnx"), "fp32", Tuning())
    options = dict(tensorrt_options(fake))
    engines, timings = (
        Path(options.pop(f"trt_{kind}_cache_path")) for kind in ("engine", "timing")
    )
    assert options == {
        "trt_profile_min_shapes": "images:1x3x32x32",
        "trt_profile_opt_shapes": "images:64x3x32x32",
        "trt_profile_max_shapes": "images:256x3x32x32",
        # Their parser takes these two words alone.
        "trt_engine_cache_enable": "True",
        "trt_timing_cache_enable": "True",
    }
    folder = tmp_path / "cache" / "odin-ood" / "ort-trt"
    assert engines.parent == folder / "engines"
    assert timings.parent == folder / "timings"
    assert engines.is_dir() and timings.is_dir()
    assert os.environ[TF32] == "0"


def test_raw_images_have_their_own_layout(
    runtime: Callable[..., FakeRuntime], make_tiny_bundle: Callable[..., Bundle]
) -> None:
    fake = runtime(TENSORRT)
    bundle = make_tiny_bundle(input_type="uint8")
    open_session(TENSORRT, bundle.file("odin.onnx"), "fp32", Tuning())
    assert tensorrt_options(fake)["trt_profile_min_shapes"] == "images:1x32x32x3"
    open_session(TENSORRT, bundle.file("gradient.onnx"), "fp32", Tuning())
    assert tensorrt_options(fake)["trt_profile_min_shapes"] == "images:1x3x32x32"


def test_a_graph_outside_a_bundle_has_no_profile(
    runtime: Callable[..., FakeRuntime], tmp_path: Path
) -> None:
    fake = runtime(TENSORRT)
    open_session(TENSORRT, save(tmp_path / "a.onnx"), "fp32", Tuning())
    assert not any("profile" in name for name in tensorrt_options(fake))


def test_without_a_home_nothing_is_kept(
    runtime: Callable[..., FakeRuntime], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = runtime(TENSORRT)
    monkeypatch.setattr(ort_gpu_session, "user_cache", lambda: None)
    open_session(TENSORRT, save(tmp_path / "a.onnx"), "fp32", Tuning())
    assert tensorrt_options(fake) == {}


def test_a_cache_that_cannot_be_written_to(
    runtime: Callable[..., FakeRuntime], tmp_path: Path
) -> None:
    runtime(TENSORRT)
    (tmp_path / "cache").write_text("a file in the place of the folder")
    with pytest.raises(OdinError, match=r"cannot keep TensorRT's engines in .*: set XDG_CACHE_HOM"):
        open_session(TENSORRT, save(tmp_path / "a.onnx"), "fp32", Tuning())


def test_a_gpu_that_is_gone(
    runtime: Callable[..., FakeRuntime], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime(TENSORRT)
    monkeypatch.setattr(ort_gpu_session, "ask_driver", lambda: Driver(13000, (), "it is gone"))
    with pytest.raises(OdinError, match="it is gone"):
        open_session(TENSORRT, save(tmp_path / "a.onnx"), "fp32", Tuning())


def test_every_change_makes_another_engine(
    runtime: Callable[..., FakeRuntime], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the user has set stays, and counts."""
    fake = runtime(TENSORRT)
    graph = save(tmp_path / "a.onnx", weights(TensorProto.FLOAT))
    other = save(tmp_path / "b.onnx", helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 3.0]))

    def keys(file: Path = graph) -> tuple[str, str]:
        open_session(TENSORRT, file, "fp32", Tuning())
        options = tensorrt_options(fake)
        return options["trt_engine_cache_path"], options["trt_timing_cache_path"]

    engine, timing = keys()
    assert keys() == (engine, timing)
    changed = [keys(other)]
    assert changed[0][1] == timing  # measurements are the GPU's, not the network's
    with monkeypatch.context() as patch:
        use_gpu(patch, Device("another GPU", (9, 0)))
        changed.append(keys())
    assert changed[1][1] != timing
    monkeypatch.setenv(TF32, "1")
    changed.append(keys())
    assert os.environ[TF32] == "1"
    monkeypatch.setenv(TF32, "0")
    assert keys() == (engine, timing)
    monkeypatch.setattr(ort_gpu_session, "load_tensorrt", lambda runtime: 101400)
    changed.append(keys())
    assert changed[-1][1] != timing
    monkeypatch.setattr(FakeRuntime, "__version__", "1.32.0")
    changed.append(keys())
    assert len({engine, *(key for key, _ in changed)}) == 1 + len(changed)


def with_external_weights(folder: Path, second: float) -> Path:
    """A graph whose weights lie in a file beside it; a change of them leaves the graph alone."""
    folder.mkdir()
    array = np.arange(2000, dtype=np.float32)
    array[1] = second
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2000]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "graph",
        value[:1],
        value[1:],
        [numpy_helper.from_array(array, "w")],
    )
    onnx.save(
        helper.make_model(graph, ir_version=10),
        folder / "a.onnx",
        save_as_external_data=True,
        location="a.weights",
        size_threshold=0,
    )
    return folder / "a.onnx"


def test_the_key_holds_weights_that_lie_outside_the_graph(tmp_path: Path) -> None:
    graphs = [
        with_external_weights(tmp_path / name, second)
        for name, second in zip("abc", (1, 1, 2), strict=True)
    ]
    assert len({graph.read_bytes() for graph in graphs}) == 1
    names = weight_files(onnx.load(graphs[0], load_external_data=False))
    assert names == {"a.weights"}
    first, same, other = (engine_key(graph, names, {"options": {}}) for graph in graphs)
    assert first == same != other
    assert engine_key(graphs[0], names, {"options": {"a": "1"}}) != first
    assert engine_key(graphs[0], [], {"options": {}}) != first
    (graphs[0].parent / "a.weights").unlink()
    with pytest.raises(OdinError, match=r"has weights in .*a\.weights, which cannot be read \(No"):
        engine_key(graphs[0], names, {})


def test_the_cache_of_a_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.user_cache() == tmp_path / "odin-ood"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert files.user_cache() == tmp_path / "home" / ".cache" / "odin-ood"

    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", homeless)
    assert files.user_cache() is None
