"""The scores beside ODIN's, against their formulas in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import parser
from torch import Tensor, nn

from odin_engines.engine import open_graph
from odin_engines.errors import OdinError
from odin_engines.spec import SCORE_NAMES, Spec
from odin_export.odin_graph import odin_graph
from odin_export.scores import _SCORES

FEATURES, CLASSES = 12, 10


def run(graph: onnx.ModelProto, images: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"images": images}), strict=True))


def features_of(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The last map's cells that are pooled, and the features of the tiny network."""
    seen = []
    handle = network.fc.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = F.relu(network.bn1(network.conv1(images)))
    x = F.avg_pool2d(torch.cat([x, network.conv2(x)], dim=1), 2)
    x = F.avg_pool2d(x + network.conv3(F.relu(network.bn2(x))), 2)
    network(images)
    handle.remove()
    return x[:, :, :8, :8], seen[0]


def expected_scores(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        cells, features = features_of(network, images)
        logits = network.fc(features)
        p = logits.softmax(dim=1)
        maps = torch.einsum("nkhw,nk->nhw", cells, network.fc.weight[logits.argmax(dim=1)])
    return {
        "msp": p.amax(dim=1),
        "max-logit": logits.amax(dim=1),
        "energy": logits.logsumexp(dim=1),
        "entropy": (p * p.log()).sum(dim=1),
        "gen": -(p.pow(0.1) * (1 - p).pow(0.1)).sum(dim=1),
        "gradnorm": torch.stack([norm_of_gradient(network.fc, each) for each in features]),
        "cam-max": maps.flatten(1).amax(dim=1),
        "cam-std": maps.flatten(1).std(dim=1, correction=0),
    }


def norm_of_gradient(layer: nn.Linear, features: Tensor) -> Tensor:
    """By autograd, from the definition: KL(uniform, p) differentiated for the weight."""
    weight = layer.weight.detach().requires_grad_()
    logs = F.linear(features[None], weight, layer.bias).log_softmax(dim=1)
    loss = F.kl_div(logs, torch.full_like(logs, 1 / CLASSES), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, weight)
    return gradient.abs().sum()


def test_every_name_has_a_formula() -> None:
    assert set(_SCORES) == set(SCORE_NAMES)


@pytest.mark.parametrize("size", [32, 36])
def test_scores_are_those_of_their_formulas(
    size: int,
    tiny_network: nn.Module,
    tiny_forward: onnx.ModelProto,
    tiny_spec: Callable[..., Spec],
) -> None:
    graph = odin_graph(tiny_forward, tiny_spec(scores=SCORE_NAMES))
    onnx.checker.check_model(graph, full_check=True)
    images = np.random.default_rng(0).standard_normal((5, 3, size, size)).astype(np.float32)
    found = run(graph, images)
    assert list(found) == ["score", "baseline", "label", "logits", *SCORE_NAMES]
    for name, expected in expected_scores(tiny_network, torch.from_numpy(images)).items():
        assert found[name].shape == (5,)
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], expected, rtol=2e-5, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(found["msp"], found["baseline"])


@pytest.mark.parametrize("opset", [13, 17, 20, 23])
def test_engines_agree_whatever_the_opset(
    opset: int, tiny_spec: Callable[..., Spec], tmp_path: Path
) -> None:
    forward = forward_of("g = GlobalAveragePool (images)  h = Flatten (g)  logits = Gemm (h, w, b)")
    forward.opset_import[0].version = opset
    graph = odin_graph(forward, tiny_spec(classes=4, scores=SCORE_NAMES))
    images = np.random.default_rng(4).standard_normal((3, 3, 5, 7)).astype(np.float32)
    (tmp_path / "odin.onnx").write_bytes(graph.SerializeToString())
    expected = run(graph, images)
    found = open_graph("openvino", tmp_path / "odin.onnx").run({"images": images})
    for name in SCORE_NAMES:
        assert found[name].shape == (3,)
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, err_msg=name)


HEADER = '<ir_version: 10, opset_import: ["" : 20]>\n'
HEADS = {
    "GlobalAveragePool, Flatten, Gemm": """
        g = GlobalAveragePool (images)  h = Flatten (g)  logits = Gemm (h, w, b)
    """,
    "ReduceMean, MatMul, Add": """
        axes = Constant <value_ints = [-2, -1]> ()
        h = ReduceMean <keepdims = 0> (images, axes)
        m = MatMul (h, w)  logits = Add (b, m)
    """,
    "channels last": """
        axes = Constant <value_ints = [1, 2]> ()
        t = Transpose <perm = [0, 2, 3, 1]> (images)
        h = ReduceMean <keepdims = 0> (t, axes)
        logits = Gemm (h, w, b)
    """,
    "Dropout and Identity between": """
        g = GlobalAveragePool (images)  d = Dropout (g)  f = Flatten (d)  h = Identity (f)
        logits = Gemm (h, w, b)
    """,
}


def forward_of(nodes: str) -> onnx.ModelProto:
    generator = np.random.default_rng(1)
    model = parser.parse_model(
        f"{HEADER} network (float[N,3,H,W] images) => (float[N,4] logits) {{ {nodes} }}"
    )
    for name, shape in (("w", (3, 4)), ("b", (4,))):
        array = generator.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return onnx.shape_inference.infer_shapes(model)


@pytest.mark.parametrize("nodes", HEADS.values(), ids=HEADS.keys())
def test_heads(nodes: str, tiny_spec: Callable[..., Spec]) -> None:
    forward = forward_of(nodes)
    spec = tiny_spec(classes=4, scores=("gradnorm", "cam-max", "cam-std"))
    images = np.random.default_rng(2).standard_normal((3, 3, 5, 7)).astype(np.float32)
    found = run(odin_graph(forward, spec), images)
    weight = onnx.numpy_helper.to_array(forward.graph.initializer[0])
    maps = np.einsum("nkhw,kn->nhw", images, weight[:, found["label"]]).reshape(3, -1)
    np.testing.assert_allclose(found["cam-max"], maps.max(axis=1), rtol=1e-5)
    np.testing.assert_allclose(found["cam-std"], maps.std(axis=1), rtol=1e-5)
    p = torch.from_numpy(found["logits"]).softmax(dim=1).numpy()
    norm = np.abs(images.mean(axis=(2, 3))).sum(axis=1) * np.abs(p - 0.25).sum(axis=1)
    np.testing.assert_allclose(found["gradnorm"], norm, rtol=1e-4)


HEADLESS = {
    "the last layer is no linear one": (
        "g = GlobalAveragePool (images)  f = Flatten (g)  l = Gemm (f, w, b)  logits = Relu (l)",
        "gradnorm",
    ),
    "no average before it": (
        "m = GlobalMaxPool (images)  f = Flatten (m)  logits = Gemm (f, w, b)",
        "cam-max",
    ),
}


@pytest.mark.parametrize(("nodes", "score"), HEADLESS.values(), ids=HEADLESS.keys())
def test_scores_that_the_network_cannot_give(
    nodes: str, score: str, tiny_spec: Callable[..., Spec]
) -> None:
    with pytest.raises(OdinError, match=f"--scores {score}.*leave this score out"):
        odin_graph(forward_of(nodes), tiny_spec(classes=4, scores=(score,)))


def test_gen_of_many_classes_takes_the_hundred_likeliest(tiny_spec: Callable[..., Spec]) -> None:
    model = parser.parse_model(
        f"{HEADER} network (float[N,120,1,1] images) => (float[N,120] logits) "
        "{ logits = Flatten (images) }"
    )
    spec = tiny_spec(
        classes=120, channels=120, mean=(0.0,) * 120, std=(1.0,) * 120, scores=("gen",)
    )
    images = np.random.default_rng(3).standard_normal((2, 120, 1, 1)).astype(np.float32)
    found = run(odin_graph(onnx.shape_inference.infer_shapes(model), spec), images)
    p = torch.from_numpy(found["logits"]).softmax(dim=1).topk(100).values.numpy()
    expected = -(p**0.1 * (1 - p) ** 0.1).sum(axis=1)
    np.testing.assert_allclose(found["gen"], expected, rtol=1e-5)


def test_gen_of_a_confident_image_keeps_its_digits(tiny_spec: Callable[..., Spec]) -> None:
    """Where the likeliest class has p = 1 - 1e-8, which float32 rounds to 1."""
    model = parser.parse_model(
        f"{HEADER} network (float[N,3,1,1] images) => (float[N,3] logits) "
        "{ logits = Flatten (images) }"
    )
    spec = tiny_spec(classes=3, scores=("gen",))
    images = np.array([20.0, 1.5, 0.0], np.float32).reshape(1, 3, 1, 1)
    found = run(odin_graph(onnx.shape_inference.infer_shapes(model), spec), images)
    p = torch.tensor([20.0, 1.5, 0.0], dtype=torch.float64).softmax(dim=0)
    others = torch.stack([p[1] + p[2], 1 - p[1], 1 - p[2]])
    np.testing.assert_allclose(found["gen"], -(p**0.1 * others**0.1).sum(), rtol=1e-5)
