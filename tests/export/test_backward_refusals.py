"""Nodes that `input_gradient` refuses: the message names the node, its op and a remedy."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import pytest

from export.backward_models import PRELUDE, model_of
from odin_engines.errors import OdinError
from odin_export.backward import input_gradient
from odin_export.rules import RULES


@dataclass(frozen=True)
class Refused:
    """A model that cannot be differentiated because of the node that it calls `culprit`.

    Attributes:
        what: is wrong with it.
        op: that the message names.
        remedy: that the message tells.
        nodes: of the model; they may use the constants of `PRELUDE`.
        x: the declaration of the input.
        y: the declaration of the output.
    """

    what: str
    op: str
    remedy: str
    nodes: str
    x: str = "double[N,3] x"
    y: str = "double[] y"

    def __str__(self) -> str:
        return self.what


IN_RULES = "has no gradient rule for its op"
EVALUATION = "export the network in evaluation mode"
IMAGE = "double[N,1,6,6] x"
BRANCHES = (
    "then_branch = a () => (double[N,3] u) {{ u = {0} (x) }}, "
    "else_branch = b () => (double[N,3] v) {{ v = {0} (x) }}"
)
REFUSED = [
    Refused("no rule", "Mod", IN_RULES, "[culprit] y = Mod <fmod = 1> (x, ones)"),
    Refused(
        "no rule, in the middle",
        "Mod",
        IN_RULES,
        "[culprit] a = Mod <fmod = 1> (x, ones)\n y = Neg (a)",
    ),
    Refused(
        "no rule, beside a good path",
        "Mod",
        IN_RULES,
        "[culprit] a = Mod <fmod = 1> (x, ones)\n y = Add (a, x)",
    ),
    Refused("foreign domain", "mine::Op", IN_RULES, "[culprit] y = mine.Op (x)", y="double[N,3] y"),
    Refused(
        "foreign domain, known name",
        "mine::Relu",
        IN_RULES,
        "[culprit] y = mine.Relu (x)",
        y="double[N,3] y",
    ),
    Refused(
        "foreign domain, beside a good path",
        "mine::Op",
        IN_RULES,
        "[culprit] a = mine.Op (x)\n y = Mul (a, x)",
        y="double[N,3] y",
    ),
    Refused(
        "foreign domain, name of an op without gradient",
        "mine::Shape",
        IN_RULES,
        "[culprit] a = mine.Shape (x)\n y = Mul (a, x)",
        y="double[N,3] y",
    ),
    Refused(
        "If whose branches use x",
        "If",
        IN_RULES,
        f"m = ReduceSum <keepdims = 0> (x)\n c = Greater (m, half)\n"
        f"[culprit] y = If (c) <{BRANCHES.format('Neg')}>",
    ),
    Refused(
        "If whose branches use x, beside a good path",
        "If",
        IN_RULES,
        f"m = ReduceSum <keepdims = 0> (x)\n c = Greater (m, half)\n"
        f"[culprit] a = If (c) <{BRANCHES.format('Identity')}>\n y = Add (a, x)",
    ),
    Refused(
        "a long Loop over x",
        "Loop",
        IN_RULES,
        """
        many = Constant <value_int = 1000> ()
        [culprit] a = Loop (many, yes, x) <
            body = b (int64 i, bool c, double[N,3] s) => (bool d, double[N,3] t) {
                d = Identity (c)
                t = Mul (s, x)
            }>
        y = Add (a, x)
        """,
        y="double[N,3] y",
    ),
    Refused(
        "weight depends on x",
        "Conv",
        "make the weight a constant",
        "[culprit] y = Conv (x, x)",
        "double[3,3,2,2] x",
    ),
    Refused(
        "bias depends on x",
        "Conv",
        "constant",
        "[culprit] y = Conv (k, k, x)",
        "double[1] x",
    ),
    Refused(
        "weight of a transposed convolution depends on x",
        "ConvTranspose",
        "make the weight a constant",
        "[culprit] y = ConvTranspose (x, x)",
        "double[3,3,2,2] x",
    ),
    Refused(
        "output_shape of an image of any size",
        "ConvTranspose",
        "use pads and output_padding",
        "[culprit] y = ConvTranspose <strides = [2, 2], output_shape = [6, 6]> (x, k)",
        "double[N,1,H,W] x",
    ),
    Refused(
        "output_shape that no window reaches",
        "ConvTranspose",
        "use pads and output_padding",
        "[culprit] y = ConvTranspose <output_shape = [9, 9]> (x, k)",
        IMAGE,
    ),
    Refused(
        "auto_pad and output_padding",
        "ConvTranspose",
        "without auto_pad",
        '[culprit] y = ConvTranspose <strides = [2, 2], auto_pad = "SAME_UPPER", '
        "output_padding = [1, 0]> (x, k)",
        IMAGE,
    ),
    Refused(
        "a window that starts in the padding",
        "MaxPool",
        "convert the model to opset 22",
        "[culprit] y = MaxPool <kernel_shape = [2, 2], strides = [3, 3], pads = [1, 1, 1, 1], "
        "ceil_mode = 1> (x)",
        "double[N,1,5,5] x",
    ),
    Refused(
        "any number of channels",
        "MaxPool",
        "export with fixed channels",
        "[culprit] y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)",
        "double[N,C,6,6] x",
    ),
    Refused(
        "any number of channels in blocks",
        "DepthToSpace",
        "export with fixed channels",
        '[culprit] y = DepthToSpace <blocksize = 2, mode = "CRD"> (x)',
        "double[N,C,6,6] x",
    ),
    Refused(
        "linear upsampling to any size",
        "Resize",
        "export the network for images of a fixed size",
        "by = Constant <value = float[4] {1, 1, 2, 2}> ()\n"
        '[culprit] y = Resize <mode = "linear"> (x, , by)',
        "double[N,1,H,W] x",
    ),
    Refused(
        "corners aligned between cells",
        "Resize",
        "give sizes in place of scales",
        "by = Constant <value = float[4] {1, 1, 1.4, 1}> ()\n"
        '[culprit] y = Resize <mode = "linear", '
        'coordinate_transformation_mode = "align_corners"> (x, , by)',
        IMAGE,
    ),
    Refused(
        "upsampling of a region of interest",
        "Resize",
        "crop with Slice",
        "by = Constant <value = float[4] {1, 1, 2, 2}> ()\n"
        "region = Constant <value = float[8] {0, 0, 0, 0, 1, 1, 1, 1}> ()\n"
        '[culprit] y = Resize <coordinate_transformation_mode = "tf_crop_and_resize"> '
        "(x, region, by)",
        IMAGE,
    ),
    Refused(
        "normalization in training mode",
        "BatchNormalization",
        EVALUATION,
        "[culprit] y, m, v = BatchNormalization <training_mode = 1> (x, one, one, one, one)",
        IMAGE,
    ),
    Refused(
        "dropout in training mode",
        "Dropout",
        EVALUATION,
        "[culprit] y = Dropout (x, half, yes)",
    ),
    Refused(
        "a diagonal",
        "Einsum",
        "instead of taking the diagonal",
        '[culprit] y = Einsum <equation = "ii->i"> (x)',
        "double[3,3] x",
    ),
    Refused(
        "no cells to normalize over",
        "InstanceNormalization",
        "three axes or more",
        "[culprit] y = InstanceNormalization (x, ones, ones)",
    ),
    Refused(
        "steps known at run time only",
        "Slice",
        "make that input a constant",
        "m = ReduceSum <keepdims = 0> (x)\n i = Cast <to = 7> (m)\n s = Reshape (i, axis)\n"
        "[culprit] y = Slice (x, axis, axis, axis, s)",
    ),
    Refused(
        "pads reflected, by what is known at run time only",
        "Pad",
        "use constant pads",
        's = Shape (x)\n p = Concat <axis = 0> (s, s)\n[culprit] y = Pad <mode = "reflect"> (x, p)',
    ),
    Refused(
        "pads reflected twice",
        "Pad",
        "pad by less",
        '[culprit] y = Pad <mode = "reflect"> (x, far)',
    ),
    Refused(
        "pads with what depends on x",
        "Pad",
        "make that input a constant",
        "m = ReduceSum <keepdims = 0> (x)\n [culprit] y = Pad (x, far, m)",
    ),
    Refused(
        "scatters with a product",
        "ScatterElements",
        "use 'none' or 'add'",
        "i = ArgMax <axis = 1> (x)\n u = ReduceSum (x, axis)\n"
        '[culprit] y = ScatterElements <axis = 1, reduction = "mul"> (x, i, u)',
    ),
    Refused(
        "scatters slices with a maximum",
        "ScatterND",
        "use 'none' or 'add'",
        "i = ArgMax <axis = 1> (x)\n u = Gather (x, axis)\n"
        '[culprit] y = ScatterND <reduction = "max"> (x, i, x)',
    ),
    Refused(
        "a condition known at run time only",
        "Compress",
        "make it a constant",
        "c = Greater (x, half)\n f = Reshape (c, last)\n [culprit] y = Compress (x, f)",
        y="double[M] y",
    ),
    Refused(
        "axes known at run time only",
        "ReduceSum",
        "make them constants",
        "s = Shape (x)\n t = Sub (s, s)\n u = ReduceMax (t)\n [culprit] y = ReduceSum (x, u)",
        y="double[A,B] y",
    ),
]
REFUSED += [
    Refused(
        f"the {name} of a normalization depends on x",
        "BatchNormalization",
        EVALUATION,
        f"r = ReduceMean <keepdims = 0> (x, channels)\n"
        f"[culprit] y = BatchNormalization (x, {', '.join(inputs)})",
        IMAGE,
    )
    for name, inputs in {
        "scale": ("r", "one", "one", "one"),
        "bias": ("one", "r", "one", "one"),
        "mean": ("one", "one", "r", "one"),
        "variance": ("one", "one", "one", "r"),
    }.items()
]


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_refused(case: Refused) -> None:
    model = onnx.shape_inference.infer_shapes(model_of(PRELUDE + case.nodes, case.x, case.y))
    with pytest.raises(OdinError) as error:
        input_gradient(model)
    message = str(error.value)
    assert "'culprit'" in message
    assert case.op in message.replace("'culprit'", "")
    assert case.remedy in message


def test_refusals_are_not_for_lack_of_a_rule() -> None:
    assert all(case.op in RULES for case in REFUSED if case.remedy != IN_RULES)
    assert not any(case.op in RULES for case in REFUSED if case.remedy == IN_RULES)
