"""What is queued for one batch: the two forms that a bundle's plans come in.

    fused:  [normalise] -> plan of odin.onnx -> [NaN]
    split:  [normalise] -> plan of gradient.onnx -> odin_score -> odin_perturb
                        -> plan of forward.onnx -> odin_score -> [NaN]        (exact)
            [normalise] -> plan of gradient.onnx -> odin_score -> odin_first_order -> [NaN]

The last step lets an image with a NaN or infinite pixel score NaN whatever the network makes of it:
TensorRT may turn NaN into 0, as max(NaN, 0). Raw pixels are always finite and need none.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

from odin_engines.errors import OdinError
from odin_engines.plan_records import Limits, Shape, shape_text
from odin_engines.spec import Spec
from odin_runtime.driver import Driver, Stream
from odin_runtime.gpu_buffers import OutputLayout, Regions
from odin_runtime.kernels import Kernels

if TYPE_CHECKING:
    from odin_engines.plan import Plan, Tensor

FLOAT = 4


@dataclass(frozen=True)
class Job:
    """What is to be done with one batch; equal jobs queue equal work.

    Attributes:
        count: images, padding included.
        height, width: in pixels.
        raw: whether they are uint8 (N, H, W, C), not float32 (N, C, H, W).
        magnitudes: how many.
        temperature: of the kernels' softmax; 0 where it is an input of the plan alone.
    """

    count: int
    height: int
    width: int
    raw: bool
    magnitudes: int
    temperature: float

    @property
    def plane(self) -> int:
        """Pixels of an image."""
        return self.height * self.width


@dataclass(frozen=True)
class Places:
    """Addresses of one batch: its images, its settings and its results."""

    images: int
    settings: int
    output: int


@dataclass(frozen=True)
class Device:
    """What the forms work with.

    Attributes:
        driver, kernels: of the device; the kernels for float32.
        constants: as `gpu_buffers.constants` makes them.
        spec: of the bundle.
    """

    driver: Driver
    kernels: Kernels
    constants: Regions
    spec: Spec


class Form(Protocol):
    """One of the two.

    Attributes:
        limits: the images that it takes, (N, C, H, W).
        raw_only: whether only raw images will do.
    """

    limits: Limits
    raw_only: bool

    def check(self, temperature: float, magnitudes: Sequence[float]) -> None:
        """Raise OdinError if the plans have another temperature or magnitude built in."""

    def kernel_temperature(self, temperature: float) -> float:
        """What a job is to say of the temperature."""

    def layout(self, job: Job) -> OutputLayout:
        """Where a job's results lie: rows of scores, of the baseline, of further scores."""

    def names(self, job: Job) -> dict[str, int]:
        """The row of the first score, of the baseline and of the further scores, by name."""

    def steps(self, job: Job) -> int:
        """How many magnitudes the job reads from its settings, repetitions included."""

    def work_sizes(self, rows: int) -> dict[str, int]:
        """Bytes of the memory that `enqueue` works in, by part, for results of so many rows."""

    def enqueue(self, job: Job, places: Places, work: Regions, stream: Stream) -> None:
        """Queue a job."""

    def another(self) -> Form:
        """The same with execution contexts of its own.

        Raises:
            OdinError: the GPU has no memory for them.
        """

    def capturable(self, stream: Stream) -> bool:
        """Whether a job like the last one can be captured on a stream."""

    def close(self) -> None:
        """Let go of the plans."""


class Shared:
    """What both forms need."""

    def __init__(self, device: Device, plans: Mapping[str, Plan]) -> None:
        self.device = device
        self._plans = dict(plans)
        self.limits = _common_limits(list(plans.values()))

    def another(self) -> Self:
        """The same with execution contexts of its own."""
        other = copy.copy(self)
        with self.device.driver.current():
            other._plans = {name: plan.another() for name, plan in self._plans.items()}
        return other

    def capturable(self, stream: Stream) -> bool:
        """Whether all plans can be captured on a stream."""
        with self.device.driver.current():
            return all(plan.capturable(stream.handle) for plan in self._plans.values())

    def close(self) -> None:
        """Let go of the plans, where TensorRT can free their memory."""
        with self.device.driver.current():
            self._plans = {}

    def images_bytes(self) -> int:
        """Bytes of the largest batch of float32 images."""
        return FLOAT * math.prod(self.limits.maximum)

    def common_sizes(self, rows: int) -> dict[str, int]:
        """Bytes of the memory that both forms work in, by part, for results of so many rows."""
        most = self.limits.maximum[0]
        return {
            "normalised": self.images_bytes(),
            "logits": FLOAT * most * self.device.spec.classes,
            "nan": FLOAT * most,
            # For the plans of all contexts: one at a time runs.
            "plans": max(plan.work_bytes for plan in self._plans.values()),
            "rows": OutputLayout(most, rows).size,
        }

    def normalised(self, job: Job, images: int, work: Regions, stream: Stream) -> int:
        """Queue normalising raw images; return the address of float32 ones."""
        if not job.raw:
            return images
        constants = self.device.constants
        self.device.kernels.normalize(
            images,
            work["normalised"],
            constants["scale"],
            constants["offset"],
            count=job.count,
            plane=job.plane,
            channels=self.device.spec.channels,
            stream=stream,
        )
        return work["normalised"]

    def run(
        self,
        graph: str,
        addresses: Mapping[str, int],
        shape: Shape,
        work: Regions,
        stream: Stream,
    ) -> None:
        """Queue a plan."""
        plan = self._plans[graph]
        varying = [name for name, tensor in plan.inputs.items() if tensor.limits is not None]
        with self.device.driver.current():
            shapes = dict.fromkeys(varying, shape)
            plan.enqueue(addresses, shapes, work["plans"], stream.handle)

    def mark(
        self, job: Job, layout: OutputLayout, places: Places, work: Regions, stream: Stream
    ) -> None:
        """Queue copying the rows to the results, with NaN for images that hold any.

        The first-order kernel does it: p exp(0 sum |x|) is p, and NaN if a pixel is NaN or
        infinite. With p = 0 that makes one number an image, and with that in place of the image
        it does the same to each row.
        """
        kernels, constants = self.device.kernels, self.device.constants
        scale, zeros = constants["inverse_std"], constants["zeros"]
        kernels.first_order(
            places.images,
            scale,
            count=job.count,
            plane=job.plane,
            channels=self.device.spec.channels,
            magnitudes=1,
            stream=stream,
            probability=zeros,
            steps=zeros,
            score=work["nan"],
        )
        for index in range(layout.rows):
            row = layout.row(index)
            self.grown(job, work["nan"], work["rows"] + row, zeros, places.output + row, stream)

    def grown(
        self, job: Job, sums: int, probability: int, step: int, score: int, stream: Stream
    ) -> None:
        """Queue score = probability exp(step sum), where there is one sum of each image."""
        self.device.kernels.first_order(
            sums,
            self.device.constants["one"],
            count=job.count,
            plane=1,
            channels=1,
            magnitudes=1,
            stream=stream,
            probability=probability,
            steps=step,
            score=score,
        )


def image_shape(job: Job, spec: Spec, raw: bool = False) -> Shape:
    """A job's images as a plan takes them: (N, H, W, C) if `raw`, else (N, C, H, W)."""
    if raw:
        return (job.count, job.height, job.width, spec.channels)
    return (job.count, spec.channels, job.height, job.width)


def check_tensors(
    plan: Plan, tensors: Mapping[str, Tensor], names: Sequence[str], dtypes: Sequence[str]
) -> None:
    """Check the inputs or the outputs of a plan.

    Args:
        plan: whose they are.
        tensors: its inputs or its outputs, by name.
        names: all that they have to be.
        dtypes: that each of them may have.

    Raises:
        OdinError: there are others, or one has another type.
    """
    if set(tensors) != set(names):
        raise OdinError(
            f"{plan.file} has {', '.join(tensors)} where {', '.join(names)} is wanted; export the "
            "bundle again"
        )
    for name, tensor in tensors.items():
        if tensor.dtype not in dtypes:
            raise OdinError(
                f"{plan.file} has {name} in {tensor.dtype}, where {' or '.join(dtypes)} is wanted; "
                "export the bundle again"
            )


def _common_limits(plans: Sequence[Plan]) -> Limits:
    """The images (N, C, H, W) that all plans take."""
    each = [_limits(plan.inputs["images"]) for plan in plans]
    low = tuple(max(sizes) for sizes in zip(*(one.minimum for one in each), strict=True))
    high = tuple(min(sizes) for sizes in zip(*(one.maximum for one in each), strict=True))
    if any(a > b for a, b in zip(low, high, strict=True)):
        raise OdinError(
            f"{' and '.join(str(plan.file) for plan in plans)} take no images in common: one from "
            f"{shape_text(low)}, the other up to {shape_text(high)}; build them together"
        )
    return Limits(low, each[0].optimum, high)


def _limits(images: Tensor) -> Limits:
    limits = images.limits or Limits(images.shape, images.shape, images.shape)
    if images.dtype != "uint8":
        return limits
    shapes = (limits.minimum, limits.optimum, limits.maximum)
    return Limits(*((n, channels, height, width) for n, height, width, channels in shapes))
