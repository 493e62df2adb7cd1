"""The gradient of a graph against finite differences, in float64."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from odin_engines.errors import OdinError
from odin_export.backward import input_gradient
from odin_export.evaluate import evaluator
from odin_export.imported import session
from odin_export.precision import in_precision

# Changes of pixels, whose standard deviation is one. The first leaves some ten digits of a double;
# the smaller ones are tried where it differs, because a kink of the network (a ReLU at zero, two
# equal cells of a maximum) may lie within it. A wrong gradient differs at every step.
STEPS = (1e-6, 1e-7, 1e-8)
TOLERANCE = 1e-5
# Of float32 logits, relative to their norm; some architectures lose four digits.
LOGITS_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Agreement:
    """One random direction v at one random image x, with random factors s of the logits.

    Attributes:
        analytic: <gradient of <s, f(x)>, v>, from the graph.
        numeric: <s, f(x + h v) - f(x - h v)> / 2h, from the forward pass alone.
        step: h.
        error: their difference relative to the gradient's norm, which is what a random direction
            makes of it on average.
    """

    analytic: float
    numeric: float
    step: float
    error: float

    @property
    def holds(self) -> bool:
        """Whether the error is what rounding and kinks within the step explain."""
        return self.error <= TOLERANCE


def directions(forward: onnx.ModelProto, shape: tuple[int, ...], count: int) -> Iterator[Agreement]:
    """Compare gradient and finite differences along `count` random directions.

    Args:
        forward: one float input and one float output; converted to float64.
        shape: of the images to try, batch included.
        count: of directions; each has images of its own.

    Raises:
        OdinError: an op has no gradient rule, or the evaluator cannot run the model.
    """
    double = in_precision(forward, ir.DataType.DOUBLE)
    backward = input_gradient(double)  # first: it says which op has no rule
    with _failures_in_words():
        run_forward, run_backward = evaluator(double), evaluator(backward)
    image = double.graph.input[0].name
    generator = np.random.default_rng(0)

    def gradient_of(x: np.ndarray, factors: np.ndarray) -> np.ndarray:
        feeds = {image: x, "seed": factors}
        with _failures_in_words():
            return np.asarray(next(iter(run_backward.run(["input_gradient"], feeds))))

    def logits_of(x: np.ndarray) -> np.ndarray:
        with _failures_in_words():
            return np.asarray(next(iter(run_forward.run(None, {image: x}))))

    for _ in range(count):
        x, v = generator.standard_normal((2, *shape))
        factors = generator.standard_normal(logits_of(x).shape)
        gradient = gradient_of(x, factors)
        for step in STEPS:
            ahead, behind = (logits_of(x + h * v) for h in (step, -step))
            found = _agreement(gradient, v, np.sum(factors * (ahead - behind)) / (2 * step), step)
            if found.holds:
                break
        yield found


def logits_error(forward: onnx.ModelProto, shape: tuple[int, ...]) -> float:
    """How far the logits in float64 are from ONNX Runtime's in float32: |difference| / |logits|.

    Finite differences are taken of the float64 evaluator, from which some rules take their
    constants (Resize its weights). That the evaluator computes the network is shown by an engine
    which shares no code with it.

    Args:
        forward: one float input and one float output.
        shape: of the images to try, batch included.

    Raises:
        OdinError: ONNX Runtime or the evaluator cannot run the model.
    """
    images = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    name = forward.graph.input[0].name
    with _failures_in_words():
        run = evaluator(in_precision(forward, ir.DataType.DOUBLE)).run
        expected = np.asarray(next(iter(run(None, {name: images.astype(np.float64)}))))
    (found,) = session(in_precision(forward, ir.DataType.FLOAT))(images)
    norm = max(float(np.linalg.norm(expected)), float(np.finfo(np.float32).tiny))
    return float(np.linalg.norm(found - expected)) / norm


@contextlib.contextmanager
def _failures_in_words() -> Iterator[None]:
    """Let what the evaluator does not know or cannot compute end in one line."""
    try:
        yield
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())
        raise OdinError(
            f"--verify cannot run the model in float64: {why}; leave --verify out, and compare "
            "gradient.onnx with the framework that the model comes from"
        ) from error


def _agreement(gradient: np.ndarray, v: np.ndarray, numeric: float, step: float) -> Agreement:
    analytic = float(np.sum(gradient * v))
    norm = max(float(np.linalg.norm(gradient)), float(np.finfo(np.float64).tiny))
    return Agreement(analytic, float(numeric), step, abs(analytic - numeric) / norm)


def trial_shape(
    batch: int, channels: int, height: tuple[int, int], width: tuple[int, int]
) -> tuple[int, int, int, int]:
    """A shape of images to try a network with: 64 pixels a side, or as near as it takes."""
    tall, wide = (min(max(least, 64), most) for least, most in (height, width))
    return (batch, channels, tall, wide)
