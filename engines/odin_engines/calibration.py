"""What is known of a bundle's scores on in-distribution images, and the threshold that follows.

The percentile is the p-value of conformal prediction: of images like those of the calibration, a
share p at most scores at or below the value whose percentile is p. Vovk, Gammerman, Shafer,
"Algorithmic Learning in a Random World" (2005), equation 2.20.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Any, get_args

import numpy as np

from odin_engines.spec import Method, Precision, Spec

MOST_QUANTILES = 1001
DECISION = "is_ood"  # the output of an ODIN graph that carries it


@dataclass(frozen=True)
class Calibration:
    """Scores of held-out in-distribution images.

    They say something of images that were prepared in the same way alone: scaled and cropped
    likewise. `odin-score` and the services that decode image files see to that by `size` and
    `crop`; who gives arrays to a `Scorer` has to do so too.

    Attributes:
        threshold: images that score below it are taken for out-of-distribution.
        tpr: share of in-distribution images that score at or above it.
        interval: of the threshold, bootstrap, 95 % confidence: (low, high).
        images: how many were scored.
        quantiles: scores at equal shares of them, from the smallest to the largest; at most
            `MOST_QUANTILES`.
        dataset: name of the set.
        pixels: what was done to the images before they were scored, in words.
        sha256: of the images before they were scaled: shape and pixels.
        date: when, in ISO 8601, UTC.
        engine: by which they were scored.
        precision: in which.
        method, temperature, magnitude: of the score.
        size: height and width of the images as they were scored; None in a bundle that was
            calibrated before odin.json told it.
        crop: inner pixels of each side that were kept before that; None kept all.
        scaled: whether they were then scaled to `size`, or had it.
    """

    threshold: float
    tpr: float
    interval: tuple[float, float]
    images: int
    quantiles: tuple[float, ...]
    dataset: str
    pixels: str
    sha256: str
    date: str
    engine: str
    precision: Precision
    method: Method
    temperature: float
    magnitude: float
    size: tuple[int, int] | None = None
    crop: int | None = None
    scaled: bool = False

    def is_ood(self, scores: np.ndarray) -> np.ndarray:
        """Whether each image is taken for out-of-distribution, bool; a score that is NaN is."""
        return ~(scores >= np.float32(self.threshold))

    def percentile(self, scores: np.ndarray) -> np.ndarray:
        """The conformal p-value of each score, float64 from 1 / (images + 1) to 1.

        (1 + images * `share_below`) / (images + 1); NaN for a score that is NaN.
        """
        below = np.where(np.isnan(scores), np.nan, self.share_below(scores))
        return (1 + below * self.images) / (self.images + 1)

    def share_below(self, scores: np.ndarray) -> np.ndarray:
        """The share of the calibration's images below each score, float64 from 0 to 1.

        Interpolated between the quantiles, of which the first has the share 0 and the last 1; of
        several that equal the score the last one counts, and the share jumps there.
        """
        values = np.asarray(self.quantiles)
        scores = np.asarray(scores, np.float64)
        above = np.searchsorted(values, scores, side="right")
        left = np.clip(above - 1, 0, len(values) - 2)  # of the interval in which the score lies
        # Of intervals of no width, and infinite scores, which the last line leaves out.
        with np.errstate(divide="ignore", invalid="ignore"):
            part = (scores - values[left]) / (values[left + 1] - values[left])
        inside = (above > 0) & (above < len(values))
        return np.where(inside, (left + part) / (len(values) - 1), above > 0)

    def unlike(self, spec: Spec, temperature: float, magnitude: float) -> str | None:
        """Why the threshold says nothing of scores made so; None if it does.

        Scores of another method, temperature or magnitude lie elsewhere.
        """
        used = {"method": spec.method, "temperature": temperature, "magnitude": magnitude}
        for name, value in used.items():
            own = getattr(self, name)
            same = own == value if name == "method" else np.float32(own) == np.float32(value)
            if not same:
                return (
                    f"the bundle was calibrated with {name} {_plain(own)}, and these scores are of "
                    f"{name} {_plain(value)}: calibrate it so, or score as it was calibrated"
                )
        return None

    def drift(self, engine: str, precision: Precision) -> str | None:
        """What moves scores away from those of the calibration, in words; None if nothing much.

        In float32 engines differ by rounding alone. In half precision some images' labels change,
        and each engine rounds in its own way.
        """
        if precision == self.precision and (precision == "fp32" or engine == self.engine):
            return None
        return (
            f"the bundle was calibrated in {self.precision} by {self.engine}, and is opened in "
            f"{precision} by {engine}: scores near the threshold may fall on its other side; "
            "calibrate with the engine and the precision that are to decide"
        )


def as_json(calibration: Calibration) -> dict[str, Any]:
    """What odin.json says of it beside `threshold`, which stands by itself there."""
    content = dataclasses.asdict(calibration)
    del content["threshold"]
    return content


def read_calibration(entry: object, threshold: float | None) -> Calibration | None:
    """Read what odin.json says of it.

    Args:
        entry: the value of "calibration"; None in a bundle that is not calibrated.
        threshold: of the bundle.

    Raises:
        ValueError: something is missing, of the wrong kind or out of range; says what.
    """
    if entry is None:
        return None
    if not isinstance(entry, dict):
        raise ValueError("calibration is not a description")
    if threshold is None:
        raise ValueError("there is a calibration without a threshold")
    fields = [each for each in dataclasses.fields(Calibration) if each.name != "threshold"]
    missing = [each.name for each in fields if each.default is MISSING and each.name not in entry]
    if missing:
        raise ValueError(f"calibration does not say {', '.join(missing)}")
    known = {each.name: entry.get(each.name, each.default) for each in fields}
    _check(known)
    _check_preparation(known)
    for name in ("interval", "quantiles"):
        known[name] = tuple(map(float, known[name]))
    known["size"] = known["size"] and tuple(known["size"])
    return Calibration(threshold=float(threshold), **known)


def _check(known: Mapping[str, Any]) -> None:
    for name in ("dataset", "pixels", "sha256", "date", "engine"):
        if not isinstance(known[name], str):
            raise ValueError(f"calibration's {name} is not text")
    for name, choices in (("precision", get_args(Precision)), ("method", get_args(Method))):
        if known[name] not in choices:
            raise ValueError(f"calibration's {name} is {known[name]!r}")
    for name in ("tpr", "temperature", "magnitude"):
        if not _is_finite(known[name]):
            raise ValueError(f"calibration's {name} is not a number")
    if not 0 < known["tpr"] < 1:
        raise ValueError(f"calibration's tpr is {known['tpr']}, not between 0 and 1")
    if known["temperature"] <= 0:
        raise ValueError(f"calibration's temperature is {known['temperature']}, not above 0")
    if not _is_count(known["images"]) or known["images"] > 1 << 53:
        raise ValueError("calibration's images is not a number of images")
    for name, least, most in (("interval", 2, 2), ("quantiles", 2, MOST_QUANTILES)):
        values = known[name]
        if not isinstance(values, list) or not least <= len(values) <= most:
            raise ValueError(f"calibration's {name} is not a list of {least} to {most} numbers")
        if not all(map(_is_finite, values)):
            raise ValueError(f"calibration's {name} holds something that is not a number")
        if any(a > b for a, b in itertools.pairwise(values)):
            raise ValueError(f"calibration's {name} does not ascend")


def _check_preparation(known: Mapping[str, Any]) -> None:
    """What was done to the images."""
    size = known["size"]
    if size is not None and not (
        isinstance(size, list) and len(size) == 2 and all(map(_is_count, size))
    ):
        raise ValueError("calibration's size is not a height and a width")
    if known["crop"] is not None and not _is_count(known["crop"]):
        raise ValueError("calibration's crop is not a number of pixels")
    if type(known["scaled"]) is not bool:
        raise ValueError("calibration's scaled is neither true nor false")


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


def _is_finite(value: object) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
    except OverflowError:  # an integer beyond every float
        return False


def _plain(value: object) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)
