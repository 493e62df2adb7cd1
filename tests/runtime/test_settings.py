"""Settings and options that an engine refuses, whichever engine it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from odin_engines.bundle import Bundle
from odin_engines.engine import Tuning
from odin_engines.errors import OdinError
from odin_runtime import Scorer
from odin_runtime.gpu_options import GpuOptions, check_options
from odin_runtime.settings import check_built_in


def test_a_built_in_setting_is_a_float32(tiny_bundle: Bundle) -> None:
    spec = tiny_bundle.spec
    own = np.float32(spec.magnitude)
    check_built_in(spec, "magnitude", float(own))  # which is not the spec's float64
    check_built_in(spec, "magnitude", spec.magnitude)
    for other in (np.nextafter(own, np.float32(0)), np.nextafter(own, np.float32(1))):
        with pytest.raises(OdinError, match="built in, not ") as raised:
            check_built_in(spec, "magnitude", float(other))
        built_in, asked = str(raised.value).split("; ")[0].split(" built in, not ")
        assert built_in.split()[-1] != asked  # written alike they would say nothing


@pytest.mark.parametrize(
    ("name", "options", "tuning", "network", "message"),
    [
        ("trt", GpuOptions(), Tuning(2), None, "threads are of engines that compute on the CPU"),
        ("torch", GpuOptions(), Tuning(streams=2), None, "streams are of engines openvino and ort"),
        ("ort", GpuOptions(), Tuning(streams=0), None, "streams is 0; it has to be from 1 to"),
        ("openvino", GpuOptions(), Tuning(-1), None, "threads is -1; it has to be from 1 to"),
        ("rtx", GpuOptions(), Tuning(), 1, "a network is for engine torch, and engine rtx runs"),
        ("ort", GpuOptions(), Tuning(2), 1, "a network is for engine torch, and engine ort runs"),
        (
            "ort",
            GpuOptions(form="split"),
            Tuning(),
            None,
            "form, driver, device and graphs are op",
        ),
        ("torch", GpuOptions(graphs=False), Tuning(), 1, "form, driver, device and graphs are op"),
    ],
)
def test_options_of_other_engines(
    name: str, options: GpuOptions, tuning: Tuning, network: Any, message: str
) -> None:
    with pytest.raises(OdinError, match=f"^{message}"):
        check_options(name, options, tuning, network)


def test_options_of_the_engine() -> None:
    check_options("trt", GpuOptions("split", "pycuda", 1, True, 8), Tuning(), None)
    check_options("ort", GpuOptions(batch_size=8), Tuning(2, 3), None)
    check_options("torch", GpuOptions(), Tuning(), object())


def test_opening_refuses_a_network_that_would_not_run(tiny_bundle: Bundle) -> None:
    with pytest.raises(OdinError, match="engine ort runs the bundle's own; leave it out, or give"):
        Scorer.open(tiny_bundle, "ort", network=object())
