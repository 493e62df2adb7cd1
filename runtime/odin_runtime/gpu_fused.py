"""The fused form: one plan, images to scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from odin_engines.bundle import ODIN
from odin_engines.errors import OdinError
from odin_runtime.driver import Stream
from odin_runtime.gpu_buffers import MAGNITUDE, TEMPERATURE, OutputLayout, Regions
from odin_runtime.gpu_forms import (
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


class Fused(Shared):
    """One plan, images to scores."""

    def __init__(self, device: Device, plan: Plan) -> None:
        """Take the plan of odin.onnx.

        Raises:
            OdinError: its inputs or outputs are not those of the bundle.
        """
        super().__init__(device, {ODIN: plan})
        self._extra = device.spec.scores
        scores = dict.fromkeys(("score", "baseline", "logits", *self._extra), "float32")
        scalars = ("temperature", "magnitude") if device.spec.tunable else ()
        self.raw_only = plan.inputs["images"].dtype == "uint8"
        check_tensors(plan, plan.inputs, ["images", *scalars], ("float32", "uint8"))
        check_tensors(plan, plan.outputs, [*scores, "label"], ("float32", "int64"))

    def check(self, temperature: float, magnitudes: Sequence[float]) -> None:
        """Check that the plan can take these."""
        if len(magnitudes) != 1:
            raise OdinError(
                f"{len(magnitudes)} magnitudes at once: a fused plan takes one; open the bundle "
                "with form='split'"
            )
        spec = self.device.spec
        if not spec.tunable:
            check_built_in(spec, "temperature", temperature)
            flags = "--tunable, or open its split plans"
            check_built_in(spec, "magnitude", magnitudes[0], flags=flags)

    def kernel_temperature(self, temperature: float) -> float:
        """0: the temperature is the plan's."""
        return 0.0

    def layout(self, job: Job) -> OutputLayout:
        """One row each for score, baseline and the further scores."""
        return OutputLayout(job.count, 2 + len(self._extra))

    def names(self, job: Job) -> dict[str, int]:
        """The rows."""
        names = ("score", "baseline", *self._extra)
        return {name: index for index, name in enumerate(names)}

    def steps(self, job: Job) -> int:
        """One."""
        return 1

    def work_sizes(self, rows: int) -> dict[str, int]:
        """As Shared."""
        return self.common_sizes(rows)

    def enqueue(self, job: Job, places: Places, work: Regions, stream: Stream) -> None:
        """Queue a job."""
        layout = self.layout(job)
        images = places.images
        if not self.raw_only:
            images = self.normalised(job, images, work, stream)
        rows = places.output if job.raw else work["rows"]
        addresses = {
            "images": images,
            "logits": work["logits"],
            "label": places.output,
            **{name: rows + layout.row(index) for name, index in self.names(job).items()},
        }
        if self.device.spec.tunable:
            addresses["temperature"] = places.settings + TEMPERATURE
            addresses["magnitude"] = places.settings + MAGNITUDE
        shape = image_shape(job, self.device.spec, self.raw_only)
        self.run(ODIN, addresses, shape, work, stream)
        if not job.raw:
            self.mark(job, layout, places, work, stream)
