"""How engines "trt" and "rtx" open a bundle, and which options are of which engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from odin_engines.engine import MOST_THREADS, Tuning
from odin_engines.errors import OdinError

PLAN_ENGINES = ("trt", "rtx")
STREAMING = ("openvino", "ort")  # compute several batches at once
FormName = Literal["auto", "fused", "split"]


@dataclass(frozen=True)
class GpuOptions:
    """See `odin_runtime.Scorer.open`."""

    form: FormName = "auto"
    driver: str = "auto"
    device: int = 0
    graphs: bool | None = None
    batch_size: int | None = None


def check_options(name: str, options: GpuOptions, tuning: Tuning, network: Any) -> None:
    """Check that engine `name` heeds all that `Scorer.open` was given.

    Raises:
        OdinError: naming what is of other engines.
    """
    plans = name in PLAN_ENGINES
    if not plans and options != GpuOptions(batch_size=options.batch_size):
        raise OdinError(
            f"form, driver, device and graphs are options of engines trt and rtx, not of {name}"
            "; leave them out, or open the bundle's plans with one of these"
        )
    if plans and tuning.threads is not None:
        raise OdinError(
            f"threads are of engines that compute on the CPU; leave them out with {name}, which "
            "runs plans on a GPU"
        )
    if tuning.streams is not None and name not in STREAMING:
        raise OdinError(
            f"streams are of engines {' and '.join(STREAMING)}; leave them out with {name}"
        )
    for what, number in (("threads", tuning.threads), ("streams", tuning.streams)):
        if number is not None and not 1 <= number <= MOST_THREADS:
            raise OdinError(f"{what} is {number}; it has to be from 1 to {MOST_THREADS:,}")
    if network is not None and name != "torch":
        raise OdinError(
            f"a network is for engine torch, and engine {name} runs the bundle's own; leave it "
            "out, or give engine='torch'"
        )
