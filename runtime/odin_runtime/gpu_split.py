"""The split form: a gradient plan and a forward plan with kernels of our own between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from odin_engines.bundle import FORWARD, GRADIENT
from odin_runtime.driver import Stream
from odin_runtime.gpu_buffers import STEPS, TEMPERATURE, OutputLayout, Regions
from odin_runtime.gpu_forms import (
    FLOAT,
    Device,
    Job,
    Places,
    Shared,
    check_tensors,
    image_shape,
)
from odin_runtime.settings import check_built_in

if TYPE_CHECKING:
    from odin_engines.plan import Plan


class Split(Shared):
    """Gradient and forward plan with kernels between them: one gradient for many magnitudes."""

    raw_only = False

    def __init__(self, device: Device, plans: Mapping[str, Plan]) -> None:
        """Take the plans of gradient.onnx and, for the exact method, of forward.onnx.

        Raises:
            OdinError: their inputs or outputs are not those of the bundle.
        """
        super().__init__(device, plans)
        scalars = ("temperature",) if device.spec.tunable else ()
        gradient = plans[GRADIENT]
        check_tensors(gradient, gradient.inputs, ["images", *scalars], ("float32",))
        check_tensors(gradient, gradient.outputs, ["logits", "input_gradient"], ("float32",))
        if self._exact:
            forward = plans[FORWARD]
            check_tensors(forward, forward.inputs, ["images"], ("float32",))
            check_tensors(forward, forward.outputs, ["logits"], ("float32",))

    @property
    def _exact(self) -> bool:
        return self.device.spec.method == "exact"

    def check(self, temperature: float, magnitudes: Sequence[float]) -> None:
        """Check that the plans can take these; any magnitude will do."""
        if not self.device.spec.tunable:
            check_built_in(self.device.spec, "temperature", temperature)

    def kernel_temperature(self, temperature: float) -> float:
        """The kernels have it as an argument."""
        return temperature

    def _at_once(self, job: Job) -> int:
        """Magnitudes in one forward pass: the perturbed images are no more than the plan takes."""
        passes = -(-job.magnitudes // max(self.limits.maximum[0] // job.count, 1))
        # As many in each pass, so that the plan sees one shape.
        return -(-job.magnitudes // passes)

    def steps(self, job: Job) -> int:
        """A multiple of what one forward pass takes."""
        if not self._exact:
            return job.magnitudes
        once = self._at_once(job)
        return -(-job.magnitudes // once) * once

    def layout(self, job: Job) -> OutputLayout:
        """A row for each step, then the baseline."""
        return OutputLayout(job.count, self.steps(job) + 1)

    def names(self, job: Job) -> dict[str, int]:
        """The rows."""
        return {"score": 0, "baseline": self.steps(job)}

    def work_sizes(self, rows: int) -> dict[str, int]:
        """As Shared, with the gradient and what comes of it."""
        most = self.limits.maximum[0]
        sizes = self.common_sizes(rows)
        sizes["gradient"] = self.images_bytes()
        if self._exact:
            return sizes | {"perturbed": self.images_bytes()}
        return sizes | {"probability": FLOAT * most, "total": FLOAT * most}

    def enqueue(self, job: Job, places: Places, work: Regions, stream: Stream) -> None:
        """Queue a job."""
        layout, spec = self.layout(job), self.device.spec
        images = self.normalised(job, places.images, work, stream)
        addresses = {
            "images": images,
            "logits": work["logits"],
            "input_gradient": work["gradient"],
        }
        if spec.tunable:
            addresses["temperature"] = places.settings + TEMPERATURE
        self.run(GRADIENT, addresses, image_shape(job, spec), work, stream)
        rows = places.output if job.raw else work["rows"]
        self.device.kernels.score(
            work["logits"],
            rows=job.count,
            classes=spec.classes,
            stream=stream,
            temperature=job.temperature,
            score=0 if self._exact else work["probability"],
            baseline=rows + layout.row(self.steps(job)),
            label=places.output,
        )
        if self._exact:
            self._exact_scores(job, images, places.settings, rows, work, stream)
        else:
            self._first_order_scores(job, places.settings, rows, work, stream)
        if not job.raw:
            self.mark(job, layout, places, work, stream)

    def _exact_scores(
        self, job: Job, images: int, settings: int, rows: int, work: Regions, stream: Stream
    ) -> None:
        kernels, spec = self.device.kernels, self.device.spec
        once, layout = self._at_once(job), self.layout(job)
        shape = (once * job.count, *image_shape(job, spec)[1:])
        for first in range(0, self.steps(job), once):
            kernels.perturb(
                images,
                work["gradient"],
                work["perturbed"],
                settings + STEPS + FLOAT * first,
                self.device.constants["inverse_std"],
                count=job.count,
                plane=job.plane,
                channels=spec.channels,
                magnitudes=once,
                stream=stream,
            )
            addresses = {"images": work["perturbed"], "logits": work["logits"]}
            self.run(FORWARD, addresses, shape, work, stream)
            for index in range(once):
                kernels.score(
                    work["logits"] + FLOAT * index * job.count * spec.classes,
                    rows=job.count,
                    classes=spec.classes,
                    stream=stream,
                    temperature=job.temperature,
                    score=rows + layout.row(first + index),
                )

    def _first_order_scores(
        self, job: Job, settings: int, rows: int, work: Regions, stream: Stream
    ) -> None:
        """One sum an image, then a score for each magnitude.

        The plan has divided its gradient by temperature and seed scale, so a step is a magnitude.
        """
        kernels, constants = self.device.kernels, self.device.constants
        kernels.first_order(
            work["gradient"],
            constants["inverse_std"],
            count=job.count,
            plane=job.plane,
            channels=self.device.spec.channels,
            magnitudes=0,
            stream=stream,
            total=work["total"],
        )
        for index in range(job.magnitudes):
            step = settings + STEPS + FLOAT * index
            row = rows + self.layout(job).row(index)
            self.grown(job, work["total"], work["probability"], step, row, stream)
