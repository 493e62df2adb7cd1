"""Temperature and magnitude: judged alike on every engine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from odin_engines.errors import OdinError
from odin_engines.spec import LEAST_TEMPERATURE, MOST, Spec


def check_range(temperature: float, magnitudes: Sequence[float]) -> None:
    """Check that float32 holds the settings and what is computed from them.

    Raises:
        OdinError: naming the first that is out of range or no number.
    """
    for name, least, values in (
        ("temperature", LEAST_TEMPERATURE, (temperature,)),
        ("magnitude", 0.0, magnitudes),
    ):
        wrong = [value for value in values if not least <= value <= MOST]
        if wrong:
            raise OdinError(
                f"{name} is {wrong[0]}; it has to be a number from {least:g} to {MOST:g}"
            )


def check_built_in(
    spec: Spec, name: str, value: float, *, owner: str = "the plans have", flags: str = "--tunable"
) -> None:
    """Check that a setting is the one that the graphs have as a constant, which is float32.

    Args:
        spec: of the bundle.
        name: "temperature" or "magnitude".
        value: asked for; within `check_range`.
        owner: what has it built in, for the message.
        flags: the other ways to have it, for the message.

    Raises:
        OdinError: it is another one.
    """
    own = getattr(spec, name)
    if np.float32(value) != np.float32(own):
        raise OdinError(  # nine digits tell any two of float32 apart
            f"{owner} {name} {own:.9g} built in, not {value:.9g}; export the bundle with "
            f"--{name} {value:.9g}, or with {flags}"
        )
