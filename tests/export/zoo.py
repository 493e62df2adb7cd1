"""Classifiers of torchvision and timm, exported and compared with PyTorch's autograd.

    cd tests && python -m export.zoo            # the architectures of the tests
    cd tests && python -m export.zoo --all      # a small member of every family in both libraries

Either prints a table as it goes, and then how many passed.

Weights are random, and so are the statistics of batch normalisation: nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from export import rtx
from odin_export.backward import input_gradient
from odin_export.evaluate import evaluator
from odin_export.exporter import Options, from_file
from odin_export.odin_graph import odin_graph
from odin_export.precision import in_precision

CLASSES = 10
BATCHES = (1, 3)
LARGEST_ERROR_64, LARGEST_ERROR_32 = 1e-6, 1e-3
_DRAWS = 4
BUILDS = "builds"


@dataclass(frozen=True)
class Architecture:
    """One network to try.

    Attributes:
        library: "torchvision" or "timm".
        name: as the library calls it.
        what: what is special about it.
        size: height and width of its images.
        arguments: that make it small.
    """

    library: str
    name: str
    what: str
    size: int = 64
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.library} {self.name}"


def _torchvision(name: str, what: str, size: int = 64, **arguments: Any) -> Architecture:
    return Architecture("torchvision", name, what, size, arguments)


def _timm(name: str, what: str, size: int = 64, **arguments: Any) -> Architecture:
    return Architecture("timm", name, what, size, arguments)


ARCHITECTURES = [
    _torchvision("resnet18", "residual"),
    _torchvision("resnext50_32x4d", "residual, grouped"),
    _torchvision("googlenet", "inception", init_weights=False, aux_logits=False),
    _torchvision("squeezenet1_1", "fire modules, ceil_mode pooling"),
    _torchvision("mobilenet_v2", "inverted bottlenecks, ReLU6"),
    _torchvision("mobilenet_v3_small", "inverted bottlenecks, squeeze-excite, hard-swish"),
    _torchvision("mnasnet0_5", "inverted bottlenecks"),
    _torchvision("shufflenet_v2_x0_5", "channel shuffle, depthwise"),
    _torchvision("efficientnet_b0", "inverted bottlenecks, squeeze-excite, SiLU"),
    _torchvision("regnet_y_400mf", "grouped, squeeze-excite"),
    _timm("densenet121", "dense", block_config=(3, 3, 3, 3)),
    _timm("convnext_atto", "large kernels, layer norm, GELU", depths=(1, 1, 2, 1)),
    _timm("resnet26d", "residual, deep stem, average-pool shortcuts"),
    _timm("seresnet18", "residual, squeeze-excite"),
    _timm("skresnet18", "selective kernels"),
    _timm("resnest14d", "split attention"),
    _timm("resnetv2_50", "pre-activation residual", layers=(1, 1, 1, 1)),
    _timm("dla34", "deep layer aggregation"),
    _timm("res2net50_14w_8s", "residual in residual, grouped", layers=(1, 1, 1, 1)),
    _timm("ghostnet_050", "ghost modules"),
    _timm("hrnet_w18_small", "several resolutions, upsampling"),
    _timm("repvgg_a0", "parallel branches"),
    _timm("tresnet_m", "space-to-depth stem, blur pooling, leaky ReLU", layers=(1, 1, 1, 1)),
    _timm("vovnet39a", "one-shot aggregation"),
    _timm("legacy_xception", "separable convolutions", 96),
    _timm("resnet26", "residual, dilated", output_stride=8),
    _timm("convmixer_768_32", "patch convolutions, GELU", 56),
    _timm("mixer_s32_224", "MLP-mixer", img_size=64),
    _timm("resmlp_12_224", "MLP, affine", img_size=64),
    _timm("gmixer_12_224", "gated MLP", img_size=64),
    _timm("vit_tiny_patch16_224", "plain attention", img_size=64, depth=3),
    _timm("deit_tiny_distilled_patch16_224", "attention, distilled", img_size=64, depth=3),
    _timm("cait_xxs24_224", "class attention, talking heads", img_size=64, depth=3),
    _timm("xcit_nano_12_p16_224", "cross-covariance attention", img_size=64, depth=3),
    _timm("swin_tiny_patch4_window7_224", "windowed attention", 56, img_size=56, depths=(2, 2)),
    _timm("swinv2_tiny_window8_256", "cosine attention", img_size=64, depths=(2, 2)),
    _timm("pvt_v2_b0", "pyramid attention", depths=(1, 1, 1, 1)),
    _timm("test_coatnet", "convolution and attention", img_size=64),
    _timm("mobilevit_xxs", "convolution and attention, SiLU"),
    _timm("edgenext_xx_small", "convolution and cross-covariance attention", depths=(1, 1, 2, 1)),
    _timm("levit_128s", "attention with batch norm, hard-swish", 224, depth=(1, 1, 1)),
    _timm("poolformer_s12", "pooling as token mixer, group norm"),
    _timm("efficientformer_l1", "pooling, then attention", 224, depths=(1, 1, 1, 2)),
    _timm("fastvit_t8", "reparametrised, large kernels"),
    _timm("inception_next_atto", "band kernels"),
    _timm("nf_resnet26", "normaliser-free, standardised weights"),
    _timm("gcresnet33ts", "global context, SiLU"),
    _timm("eca_resnext26ts", "efficient channel attention"),
    _timm("resnet50_gn", "group norm", layers=(1, 1, 1, 1)),
    _timm("lambda_resnet26t", "lambda layers"),
    _timm("botnet26t_256", "bottleneck attention", 256),
    _timm("starnet_s1", "star operation, ReLU6"),
]


@dataclass(frozen=True)
class Result:
    """How one network fared.

    Attributes:
        nodes: of the forward graph.
        error_64: of the float64 gradient against float64 autograd: largest over the batch sizes of
            |difference| / |gradient|, in the Euclidean norm.
        error_32: of the float32 gradient in ONNX Runtime against float64 autograd, likewise, at
            the best of up to four draws of the images.
        rtx: what TensorRT for RTX says of the whole ODIN graph: "builds", or why not.
    """

    nodes: int
    error_64: float
    error_32: float
    rtx: str

    @property
    def passed(self) -> bool:
        """Whether both errors are within bounds."""
        return self.error_64 <= LARGEST_ERROR_64 and self.error_32 <= LARGEST_ERROR_32


def network(architecture: Architecture) -> nn.Module:
    """Build it in float64 with random weights, always the same, in evaluation mode."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        if architecture.library == "torchvision":
            models = torchvision_models()
            built = getattr(models, architecture.name)(
                num_classes=CLASSES, **architecture.arguments
            )
        else:
            torchvision_models()  # timm imports torchvision
            import timm

            built = timm.create_model(
                architecture.name, num_classes=CLASSES, **architecture.arguments
            )
        _randomise(built)
    return built.eval().double()


def torchvision_models() -> Any:
    """Import torchvision, also where its compiled operators do not fit the PyTorch at hand.

    A torchvision for CUDA beside a PyTorch for the CPU cannot load them and then fails on import,
    for want of their names; classifiers need none of them.
    """
    try:
        torch.ops.torchvision.nms  # noqa: B018 - raises where it is not declared
    except AttributeError:
        try:
            import torchvision
        except RuntimeError:
            _declare_operators()
    import torchvision

    return torchvision.models


def _declare_operators() -> None:
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARIES.append(library)


_LIBRARIES: list[Any] = []  # an operator lives as long as its library object


def _randomise(built: nn.Module) -> None:
    """Give batch norms statistics, and layers that start at zero weights: all paths then count."""
    for parameter in built.parameters():
        if parameter.ndim >= 2 and not parameter.any():
            nn.init.normal_(parameter, 0.0, 0.1)
    for module in built.modules():
        mean = getattr(module, "running_mean", None)
        if isinstance(mean, torch.Tensor):
            nn.init.normal_(mean, 0.0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            if module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0.0, 0.1)


def exported(built: nn.Module, size: int) -> onnx.ModelProto:
    """Export with a dynamic batch, as users do: `images` -> `logits`.

    PyTorch 2.13 cannot export some uses of its fused attention in float64; timm's networks then
    compute the same attention step by step. Where one value is clipped several times, its optimizer
    loses the bounds (onnxscript 0.7): such a file, which no engine opens, is exported without it.
    """
    images = torch.zeros(2, 3, size, size, dtype=torch.float64)
    try:
        model = _exported(built, images)
    except torch.onnx.OnnxExporterError:
        fused = [module for module in built.modules() if getattr(module, "fused_attn", False)]
        if not fused:
            raise
        for module in fused:
            module.fused_attn = False
        model = _exported(built, images)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError:
        model = _exported(built, images, optimize=False)
    return model


def _exported(built: nn.Module, images: torch.Tensor, optimize: bool = True) -> onnx.ModelProto:
    with _quietly():
        program = torch.onnx.export(
            built,
            (images,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("N")},),
            input_names=["images"],
            output_names=["logits"],
            optimize=optimize,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def compare(architecture: Architecture) -> Result:
    """Export, derive the gradient, and compare it with autograd's.

    Raises:
        Exception: whatever building, exporting or differentiating raises.
    """
    import onnxruntime

    built, size = network(architecture), architecture.size
    forward = exported(built, size)
    double = evaluator(input_gradient(forward))
    single = input_gradient(in_precision(forward, ir.DataType.FLOAT)).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(single, options, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    errors_64, errors_32 = [], []
    for batch in BATCHES:
        tries = [_errors(built, double, session, generator, batch, size)]
        while tries[-1][1] > LARGEST_ERROR_32 and len(tries) < _DRAWS:
            tries.append(_errors(built, double, session, generator, batch, size))
        errors_64.append(max(error for error, _ in tries))
        errors_32.append(min(error for _, error in tries))
    return Result(
        len(forward.graph.node), max(errors_64), max(errors_32), _answer_of_rtx(forward, size)
    )


def _answer_of_rtx(forward: onnx.ModelProto, size: int) -> str:
    if find_spec("tensorrt_rtx") is None:
        return "not installed"
    return rtx_problem(forward, size) or BUILDS


def _errors(
    built: nn.Module,
    double: ReferenceEvaluator,
    session: Any,
    generator: np.random.Generator,
    batch: int,
    size: int,
) -> tuple[float, float]:
    """The errors in float64 and float32 at random images and factors of the logits.

    Where rounding takes the input of a ReLU over zero, the float32 gradient jumps, PyTorch's too:
    that happens at some images, a wrong gradient at all.
    """
    images = generator.standard_normal((batch, 3, size, size))
    factors = generator.standard_normal((batch, CLASSES))
    expected = autograd(built, images, factors)
    feeds = {"images": images, "seed": factors}
    (found,) = double.run(["input_gradient"], feeds)
    rough = {name: value.astype(np.float32) for name, value in feeds.items()}
    (single,) = session.run(["input_gradient"], rough)
    return distance(found, expected), distance(single, expected)


def autograd(built: nn.Module, images: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """The gradient of <factors, logits> with respect to the images, in float64.

    A single image is differentiated as the first of two. PyTorch 2.13 on the CPU gives a wrong
    gradient of BatchNorm2d in evaluation mode for one image, where what comes back from the next
    layer is transposed; for two or more it is right.
    """
    count = len(images)
    if count == 1:
        images, factors = images.repeat(2, axis=0), factors.repeat(2, axis=0)
    x = torch.from_numpy(images).requires_grad_()
    (gradient,) = torch.autograd.grad(built(x), x, torch.from_numpy(factors))
    return gradient.numpy()[:count]


def rtx_problem(forward: onnx.ModelProto, size: int) -> str | None:
    """Why TensorRT for RTX cannot build the whole ODIN graph, for 1 to 4 images; None if it can.

    Raises:
        OdinError: the network is no classifier, or an op has no gradient.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        file.write_bytes(forward.SerializeToString())
        source = from_file(file, Options(mean=(0.5,), std=(0.25,)))
    one, two, four = ((batch, 3, size, size) for batch in (1, 2, 4))
    return rtx.problem(odin_graph(source.forward, source.spec), {"images": (one, two, four)})


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """|found - expected| / |expected|."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def main(arguments: list[str]) -> int:
    """Compare every architecture and print the table; return how many failed."""
    if arguments == ["--all"]:
        from export.zoo_families import FAMILIES

        chosen = FAMILIES
    else:
        chosen = ARCHITECTURES
    print("| network | what | nodes | error, float64 | error, float32 | TensorRT for RTX |")
    print("| --- | --- | ---: | ---: | ---: | --- |", flush=True)
    failed = 0
    for architecture in chosen:
        row, passed = _row(architecture)
        failed += not passed
        print(f"| {architecture} | {architecture.what} | {row} |", flush=True)
    print(f"\n{len(chosen) - failed} of {len(chosen)} pass")
    return failed


def _row(architecture: Architecture) -> tuple[str, bool]:
    try:
        result = compare(architecture)
    except Exception as error:  # noqa: BLE001 - whatever a library raises goes into the table
        first = str(error).strip().partition("\n")[0][:120]
        return f"| | | {type(error).__name__}: {first}", False
    errors = f"{result.error_64:.0e} | {result.error_32:.0e}"
    return f"{result.nodes} | {errors} | {result.rtx[:120]}", result.passed


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
