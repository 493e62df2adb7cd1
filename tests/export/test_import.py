"""From a user's .onnx file to a bundle's scores, through the command; and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from export.user_models import (
    BODY,
    FEATURES,
    OfText,
    Small,
    assert_is_odin,
    assert_refused,
    export_torch,
    exported,
    odin_export,
    refusal,
    save,
    text_model,
)
from odin_engines.bundle import read_bundle
from odin_engines.files import sha256
from odin_export.exporter import from_file
from odin_runtime import Scorer

EXAMPLE = torch.zeros(2, 3, 16, 16)
EXPORTERS = pytest.mark.parametrize("dynamo", [False, True], ids=["TorchScript", "dynamo"])


# PyTorch's exporters


@pytest.mark.parametrize(("dynamo", "opset"), [(False, 13), (False, 17), (True, 18), (True, 23)])
def test_opsets(tmp_path: Path, dynamo: bool, opset: int) -> None:
    file = export_torch(tmp_path / "user.onnx", Small(), EXAMPLE, dynamo, opset)
    bundle, _ = exported(tmp_path, file)
    assert_is_odin(bundle, Small())


def test_an_opset_before_the_rules_is_converted(tmp_path: Path) -> None:
    file = export_torch(tmp_path / "user.onnx", Small(), EXAMPLE, False, 11)
    source = from_file(file)
    assert "opset: 11, converted to 13" in source.notes
    assert source.forward.opset_import[0].version == 13


@EXPORTERS
@pytest.mark.parametrize(
    ("end", "note"),
    [
        ("softmax", "the input of the final Softmax"),
        ("log-softmax", "the final LogSoftmax"),
        ("decomposed softmax", "probabilities (its rows sum to 1), whose logarithm is taken"),
        ("softmax, then reshaped", "the input of the final Softmax"),
        ("(N, classes, 1, 1)", ""),
    ],
)
def test_ends(tmp_path: Path, end: str, note: str, dynamo: bool) -> None:
    file = export_torch(tmp_path / "user.onnx", Small(end), EXAMPLE, dynamo)
    bundle, outcome = exported(tmp_path, file)
    assert note in outcome.out
    assert_is_odin(bundle, Small())


@EXPORTERS
def test_a_sigmoid_is_refused_and_its_input_can_be_told(tmp_path: Path, dynamo: bool) -> None:
    file = export_torch(tmp_path / "user.onnx", Small("sigmoid"), EXAMPLE, dynamo)
    outcome = refusal(tmp_path, file)
    assert "ends in a Sigmoid" in outcome.err
    bundle, _ = exported(tmp_path, file, "--logits", outcome.err.rpartition(" ")[2].strip())
    assert_is_odin(bundle, Small())


@EXPORTERS
def test_features_beside_the_logits(tmp_path: Path, dynamo: bool) -> None:
    names = ("features", "classes")
    network = Small("features and logits")
    file = export_torch(tmp_path / "user.onnx", network, EXAMPLE, dynamo, outputs=names)
    outcome = refusal(tmp_path, file)
    assert all(part in outcome.err for part in ("not clear", *names, "--logits NAME"))
    bundle, _ = exported(tmp_path, file, "--logits", "classes")
    assert_is_odin(bundle, Small())


@EXPORTERS
@pytest.mark.parametrize("batch", [1, 8])
def test_a_fixed_batch(tmp_path: Path, batch: int, dynamo: bool) -> None:
    example = torch.zeros(batch, 3, 16, 16)
    file = export_torch(tmp_path / "user.onnx", Small(), example, dynamo, dynamic=())
    bundle, outcome = exported(tmp_path, file)
    assert f"batch: fixed to {batch} in the file, made dynamic" in outcome.out
    assert_is_odin(bundle, Small())


@EXPORTERS
def test_dynamic_height_and_width(tmp_path: Path, dynamo: bool) -> None:
    file = export_torch(tmp_path / "user.onnx", Small(), EXAMPLE, dynamo, dynamic=(0, 2, 3))
    bundle, _ = exported(tmp_path, file)
    for size in ((8, 8), (9, 14), (40, 33)):
        assert_is_odin(bundle, Small(), size)


@pytest.mark.parametrize(("channels", "preset"), [(1, "unit"), (3, "imagenet"), (4, "unit")])
def test_channels(tmp_path: Path, channels: int, preset: str) -> None:
    network, example = Small(channels=channels), torch.zeros(2, channels, 16, 16)
    file = export_torch(tmp_path / "user.onnx", network, example, True)
    bundle, outcome = exported(tmp_path, file)
    assert f"ASSUMED (--preset {preset})" in outcome.out
    spec = read_bundle(bundle).spec
    assert (spec.channels, len(spec.mean), len(spec.std)) == (channels, channels, channels)
    assert_is_odin(bundle, Small(channels=channels))


class Tokens(nn.Module):
    """A small vision transformer, whose class token is repeated for every image."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.patches = nn.Conv2d(3, 16, 8, 8)
            self.token = nn.Parameter(torch.randn(1, 1, 16))
            self.positions = nn.Parameter(torch.randn(1, 5, 16))
            self.layer = nn.TransformerEncoderLayer(
                16, 2, 32, batch_first=True, norm_first=True, activation="gelu"
            )
            self.head = nn.Linear(16, 4)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        return self.head(self.layer(x)[:, 0])


@EXPORTERS
def test_a_class_token_with_a_dynamic_batch(tmp_path: Path, dynamo: bool) -> None:
    file = export_torch(tmp_path / "user.onnx", Tokens(), EXAMPLE, dynamo)
    bundle, _ = exported(tmp_path, file)
    assert_is_odin(bundle, Tokens())


def test_a_class_token_with_a_fixed_batch(tmp_path: Path) -> None:
    file = export_torch(tmp_path / "user.onnx", Tokens(), EXAMPLE[:1], True, dynamic=())
    assert "Export it with a dynamic batch" in refusal(tmp_path, file).err


@pytest.mark.parametrize("part", ["norm", "dropout"])
def test_training_mode(tmp_path: Path, part: str) -> None:
    network = Small()
    getattr(network, part).train()
    mode = torch.onnx.TrainingMode.PRESERVE
    folding = {"training": mode, "do_constant_folding": False}
    file = export_torch(tmp_path / "user.onnx", network, EXAMPLE, False, 17, **folding)
    outcome = refusal(tmp_path, file)
    assert "training mode" in outcome.err
    assert "in evaluation mode" in outcome.err


# Batches that cannot be freed, and images that are not scored each on its own


@pytest.mark.parametrize(
    ("nodes", "parts"),
    [
        (FEATURES + " m = ReduceMean <axes = [0]> (f) y = Sub (f, m)", ("other images",)),
        (FEATURES + " y = Softmax <axis = 0> (f)", ("other images",)),
        (FEATURES + " z = RandomNormalLike (f) y = Add (f, z)", ("change",)),
        (FEATURES + " y = Reshape (f, fixed)", ("batch of 3", "dynamic batch")),
        (FEATURES + " q = Reshape (f, row) y = Slice (q, nil, one)", ("dynamic batch",)),
    ],
    ids=["centred", "softmax over images", "random", "fixed", "the first only"],
)
def test_images_that_do_not_stay_independent(
    tmp_path: Path, nodes: str, parts: tuple[str, ...]
) -> None:
    constants = {"nil": [0], "one": [1], "fixed": [8, 5], "row": [-1, 5]}
    weights = {name: np.array(values) for name, values in constants.items()}
    model = text_model(nodes, outputs="float[M,5] y", **weights)
    outcome = refusal(tmp_path, model)
    assert all(part in outcome.err for part in parts)


def test_damaged_weights(tmp_path: Path) -> None:
    model = text_model()
    damaged = np.full((5, 3, 3, 3), np.nan, np.float32)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(damaged, "w"))
    outcome = refusal(tmp_path, model)
    assert "not finite" in outcome.err
    assert "'w'" in outcome.err


# Ops that have no gradient


@pytest.mark.parametrize(
    ("nodes", "domain", "parts"),
    [
        ("r = com.microsoft.Gelu (c)", "com.microsoft", ("com.microsoft::Gelu", "optimis")),
        ("r = com.microsoft.FusedGelu (c)", "com.microsoft", ("FusedGelu",)),
        ("r = own.Thing (c)", "own", ("own:Thing",)),
        (
            "r = Loop (three, yes, c) <body = b (int64 i, bool go, float[N,5,6,6] v) => "
            "(bool on, float[N,5,6,6] out) { on = Identity (go) out = Sin (v) }>",
            None,
            ("(Loop)", "fixed"),
        ),
    ],
    ids=["of the optimiser", "not registered", "somebody's", "loop"],
)
def test_ops_without_a_rule(
    tmp_path: Path, nodes: str, domain: str | None, parts: tuple[str, ...]
) -> None:
    model = text_model(
        BODY.replace("r = Relu (c)", nodes),
        domain=domain,
        three=np.array(1000),
        yes=np.array(True),
    )
    outcome = refusal(tmp_path, model)
    for part in parts:
        assert part.strip("()") in outcome.err


def test_a_branch_that_the_size_decides(tmp_path: Path) -> None:
    """It carries no gradient; both passes take the same branch."""
    nodes = """
        s = Shape <start = 2, end = 3> (x)  large = Greater (s, eight)  k = Squeeze (large)
        f = If (k) < then_branch = a () => (float[1] q) { q = Constant <value_floats = [2.0]> () },
                     else_branch = b () => (float[1] o) { o = Constant <value_floats = [3.0]> () } >
        c = Conv (x, w, b)  r = Relu (c)  p = GlobalAveragePool (r)  v = Flatten (p)  y = Mul (v, f)
    """
    model = text_model(nodes, "float[N,3,H,W] x", eight=np.array([8]))
    bundle, _ = exported(tmp_path, model, "--verify", 1)
    assert_is_odin(bundle, OfText(model, 3), (8, 8))
    assert_is_odin(bundle, OfText(model, 2), (12, 9))


@pytest.mark.parametrize(
    "attributes, least",
    [
        ("kernel_shape = [4, 4], strides = [2, 2]", 8),
        ("kernel_shape = [2, 2], dilations = [5, 5]", 8),
        ("kernel_shape = [4, 4], pads = [1, 1, 2, 2]", 4),
        ('kernel_shape = [4, 4], strides = [2, 2], auto_pad = "SAME_LOWER"', 4),
    ],
)
def test_sizes_leave_room_for_the_windows_of_pools(
    tmp_path: Path, attributes: str, least: int
) -> None:
    """ONNX Runtime pools a smaller map too, where OpenVINO fails. Before the pool is a Conv of
    stride 1, without pads, of 3x3: least is the next size tried that leaves the pool enough."""
    nodes = BODY.replace("r = Relu (c)", f"r = MaxPool <{attributes}> (c)")
    bundle, _ = exported(tmp_path, text_model(nodes, "float[N,3,H,W] x"))
    assert read_bundle(bundle).spec.height[0] == least
    images = np.zeros((1, 3, least, least), np.float32)
    for engine in ("ort", "openvino"):
        assert np.isfinite(Scorer.open(bundle, engine).score(images).score).all()


def test_quantised_by_onnx_runtime(tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")

    class Images(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            generator = np.random.default_rng(0)
            self.batches = iter(generator.standard_normal((3, 1, 3, 8, 8)).astype(np.float32))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"x": batch}

    source, file = save(tmp_path, text_model(), "float.onnx"), tmp_path / "user.onnx"
    quantization.quantize_static(str(source), str(file), Images())
    outcome = refusal(tmp_path, file)
    assert "int8-quantised" in outcome.err
    assert "floating-point model that it was made from" in outcome.err


# Files


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda file: file.unlink(), "no such file"),
        (lambda file: file.write_bytes(b""), "empty"),
        (lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\n"), "not an"),
        (lambda file: file.write_bytes(bytes(1000)), "not an ONNX model"),
        (_cut, "cut short"),
        (_folder, "folder"),
    ],
    ids=["missing", "empty", "text", "zeros", "cut", "folder"],
)
def test_files_that_are_no_models(
    tmp_path: Path, change: Callable[[Path], object], part: str
) -> None:
    file = save(tmp_path, text_model())
    change(file)
    assert part in refusal(tmp_path, file).err


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model whose weights lie beside it, in user.data."""
    file, model = tmp_path / "user.onnx", text_model()
    onnx.save(model, file, save_as_external_data=True, location="user.data", size_threshold=0)
    return file


def test_weights_in_a_file_of_their_own(tmp_path: Path, external: Path) -> None:
    bundle, _ = exported(tmp_path, external)
    assert_is_odin(bundle, OfText(text_model()))
    (tmp_path / "user.data").unlink()  # the bundle needs neither
    assert_is_odin(bundle, OfText(text_model()))


@pytest.mark.parametrize(
    "change",
    [lambda file: file.unlink(), lambda file: file.write_bytes(b"1234"), _folder],
    ids=["missing", "cut", "folder"],
)
def test_weights_that_are_not_there(
    tmp_path: Path, external: Path, change: Callable[[Path], object]
) -> None:
    change(tmp_path / "user.data")
    outcome = refusal(tmp_path, external)
    assert "keep the files with its weights beside it" in outcome.err
    assert "'w'" in outcome.err or "tensor name: w" in outcome.err


def test_names_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, text_model(), "My Model.v2.ONNX")
    monkeypatch.chdir(tmp_path)
    assert odin_export("My Model.v2.ONNX").status == 0
    spec = read_bundle(tmp_path / "My Model.v2").spec
    assert spec.checkpoint == "My Model.v2.ONNX"
    assert spec.checkpoint_sha256 == sha256(tmp_path / "My Model.v2.ONNX")
    outcome = odin_export("nothing.pb")
    assert_refused(outcome, "no network 'nothing.pb'")
