"""Opening a bundle's plans on a GPU.

Which form is opened, where the caller leaves it:

    further scores (--scores)       fused: split plans do not give them
    a tunable bundle                split: one gradient for many magnitudes, any temperature
    otherwise                       fused: the fewest launches
    and the other one where plans of the first are missing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from odin_engines.bundle import GRADIENT, ODIN, Bundle
from odin_engines.errors import OdinError
from odin_engines.plan_messages import letting_go
from odin_engines.plan_sets import form_graphs
from odin_runtime.driver import Driver, open_driver
from odin_runtime.gpu_arrays import (
    LEGACY_STREAM,
    DeviceImages,
    device_images,
    on_device,
    stream_handle,
)
from odin_runtime.gpu_forms import Device, Form
from odin_runtime.gpu_fused import Fused
from odin_runtime.gpu_options import FormName, GpuOptions
from odin_runtime.gpu_pipeline import Pipeline
from odin_runtime.gpu_results import DeviceArray
from odin_runtime.gpu_split import Split
from odin_runtime.kernels import fat_binary

if TYPE_CHECKING:
    from odin_engines.plan import Plan


def choose_form(bundle: Bundle, engine: str, form: FormName = "auto") -> str:
    """Return "fused" or "split".

    Args:
        bundle: whose plans are looked for; whether they run here is not.
        engine: "trt" or "rtx".
        form: other than "auto", it is returned.

    Raises:
        OdinError: there is no such form, or it cannot give what the bundle promises.
    """
    if form not in ("auto", "fused", "split"):
        raise OdinError(f"no form {form!r} of plans; choose from auto, fused, split")
    scores = bundle.spec.scores
    if form == "split" and scores:
        raise OdinError(
            f"split plans do not give the bundle's further scores ({', '.join(scores)}); open it "
            "with form='fused', or export it without --scores"
        )
    if form != "auto" or scores:
        return "fused" if form == "auto" else form
    preferred = ("split", "fused") if bundle.spec.tunable else ("fused", "split")
    first_graphs = {"fused": ODIN, "split": GRADIENT}
    for name in preferred:
        if bundle.plan(engine, first_graphs[name]) is not None:
            return name
    return preferred[0]  # opening it says what is missing


class GpuSession:
    """A bundle's plans, opened: see Pipeline, to which it adds the driver and its end.

    Dropping it closes it too, as does the end of Python; errors are then printed.
    """

    def __init__(self, driver: Driver, pipeline: Pipeline, form: str) -> None:
        """Take both over.

        Args:
            driver, pipeline: closed with this.
            form: "fused" or "split".
        """
        self.driver = driver
        self.pipeline = pipeline
        self.form = form
        self._close = weakref.finalize(self, _close, driver, pipeline)

    def placed(self, images: Any, stream: Any = None) -> Any:
        """Images of the host as they are, those of the device as DeviceImages.

        Args:
            images: an array of any library.
            stream: of the caller, on which they are to be read; None for the default stream.

        Raises:
            OdinError: they are on another device or in another context, or not dense; or the
                stream is being captured.
        """
        if not on_device(images):
            return images
        reader = LEGACY_STREAM if stream is None else stream_handle(stream)
        with self.driver.current():
            return device_images(images, self.pipeline.device, reader)

    def check_setting(self, temperature: float | None, magnitude: float | None) -> None:
        """Check that the plans can take these; None takes the bundle's.

        Raises:
            OdinError: a value is out of range, or the plans have another built in.
        """
        self.pipeline.request(temperature, None if magnitude is None else (magnitude,))

    def score(
        self,
        images: np.ndarray | DeviceImages,
        temperature: float | None,
        magnitudes: Sequence[float] | None,
        progress: Callable[[int], object] | None = None,
    ) -> dict[str, np.ndarray]:
        """Score images of the host or the device; the scores are on the host."""
        if isinstance(images, DeviceImages):
            stream = self.pipeline.reader  # nobody but us waits for the results
            on_gpu = self.score_on_device(images, stream, temperature, magnitudes)
            results = self.pipeline.to_host(on_gpu)
            if progress:
                progress(len(images))
            return results
        return self.pipeline.score(
            images, temperature=temperature, magnitudes=magnitudes, progress=progress
        )

    def score_on_device(
        self,
        images: np.ndarray | DeviceImages,
        stream: Any,
        temperature: float | None,
        magnitudes: Sequence[float] | None,
    ) -> dict[str, DeviceArray]:
        """Queue scoring images of the device; see Pipeline."""
        if not isinstance(images, DeviceImages):
            raise OdinError(
                f"images are a {type(images).__name__}, which is not on the GPU: use score()"
            )
        handle = None if stream is None else stream_handle(stream)
        return self.pipeline.score_on_device(
            images, stream=handle, temperature=temperature, magnitudes=magnitudes
        )

    def close(self) -> None:
        """Free everything and release the device; a second call does nothing."""
        self._close()


def _close(driver: Driver, pipeline: Pipeline) -> None:
    with ExitStack() as stack:
        stack.callback(driver.close)
        stack.callback(pipeline.close)


def open_gpu(
    bundle: Bundle,
    engine: str,
    options: GpuOptions,
) -> GpuSession:
    """Open a bundle's plans on a GPU.

    Args:
        bundle: with plans for the engine.
        engine: "trt" or "rtx".
        options: form, driver, device, graphs and batch size.

    Raises:
        OdinError: there are no plans or no GPU, or they do not fit; says what to do.
    """
    chosen = choose_form(bundle, engine, options.form)
    image = fat_binary()
    opened = open_driver(options.driver, options.device)
    with ExitStack() as stack:
        stack.callback(opened.close)
        with opened.current():  # where TensorRT frees the plans if this fails
            pipeline = _open_pipeline(opened, image, bundle, engine, chosen, options)
        stack.pop_all()
    return GpuSession(opened, pipeline, chosen)


@letting_go
def _open_pipeline(
    driver: Driver, image: bytes, bundle: Bundle, engine: str, form: str, options: GpuOptions
) -> Pipeline:
    from odin_engines.tensorrt_engine import open_plan

    plans = {
        name: open_plan(bundle, engine, name, options.device)
        for name in form_graphs(form, bundle.spec)
    }
    return Pipeline(
        driver,
        image,
        bundle.spec,
        partial(_form, form, plans),  # a function of ours would hold the plans in an error's frame
        device=options.device,
        graphs=options.graphs,
        batch_size=options.batch_size,
    )


def _form(name: str, plans: dict[str, Plan], device: Device) -> Form:
    return Fused(device, plans[ODIN]) if name == "fused" else Split(device, plans)
