"""What a bundle says of each of its plans: everything that, once changed, makes it another plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]

# The Python module that builds and runs the plans of each engine, and what it is called.
ENGINE_MODULES = {"trt": "tensorrt", "rtx": "tensorrt_rtx"}
ENGINE_TITLES = {"trt": "TensorRT", "rtx": "TensorRT for RTX"}
PLAN_SUFFIX = ".plan"
FORMS = ("fused", "split")
COMPATIBILITIES = ("none", "ampere+", "same-cc")
PRECISIONS = ("fp32", "fp16", "bf16")
LEVELS = range(6)


@dataclass(frozen=True)
class Limits:
    """The shapes of an input that a plan takes, and the one that it is tuned for."""

    minimum: Shape
    optimum: Shape
    maximum: Shape

    def hold(self, shape: Shape) -> bool:
        """Whether a tensor of this shape is taken."""
        return len(shape) == len(self.minimum) and all(
            least <= size <= most
            for least, size, most in zip(self.minimum, shape, self.maximum, strict=True)
        )


@dataclass(frozen=True)
class PlanRecord:
    """One plan. Two plans with equal records are interchangeable.

    Attributes:
        file: its name in the bundle.
        form: "fused" (images to scores in one plan) or "split" (gradient or forward pass alone).
        engine: "trt" or "rtx".
        version: of TensorRT, or of TensorRT for RTX.
        device: name of the GPU it was tuned for; "" where it is for all of some generation.
        compute_capabilities: of the GPUs that take it, such as ("8.6", "8.9"); with hardware
            compatibility "ampere+", of the GPU it was built on.
        precision: in which the graph computes.
        profile: for each input of dynamic shape, its limits.
        tf32: whether float32 products may be rounded to TensorFloat-32.
        optimization_level: of the builder, 0 to 5; None for its own default.
        hardware_compatibility: "none", "ampere+" or "same-cc".
        graph: the ONNX file in the bundle that it was built from.
        graph_sha256: of that file, weights included.
    """

    file: str
    form: str
    engine: str
    version: str
    device: str
    compute_capabilities: tuple[str, ...]
    precision: str
    profile: dict[str, Limits]
    tf32: bool
    optimization_level: int | None
    hardware_compatibility: str
    graph: str
    graph_sha256: str

    @property
    def batches(self) -> tuple[int, int]:
        """The smallest and the largest number of images that the plan takes at once."""
        limits = self.profile["images"]
        return limits.minimum[0], limits.maximum[0]


def shape_text(shape: Shape) -> str:
    """A shape as trtexec spells it: 1x3x32x32."""
    return "x".join(map(str, shape))


def read_records(entries: object, files: Collection[str]) -> tuple[PlanRecord, ...]:
    """Read what odin.json says of its plans.

    Args:
        entries: the value of "plans"; None in bundles that have none.
        files: the names of the files in the bundle.

    Raises:
        ValueError: something is missing, of the wrong kind or out of range; says what.
    """
    if entries is None:
        return ()
    if not isinstance(entries, list):
        raise ValueError("plans is not a list")
    records = tuple(_read_record(entry) for entry in entries)
    for record in records:
        for name in (record.file, record.graph):
            if name not in files:
                raise ValueError(f"plans name {name!r}, which is not among the files")
    if len({record.file for record in records}) != len(records):
        raise ValueError("plans name a file twice")
    return records


def _read_record(entry: object) -> PlanRecord:
    names = [field.name for field in dataclasses.fields(PlanRecord)]
    if not isinstance(entry, dict):
        raise ValueError("plans hold something that is not a plan")
    missing = [name for name in names if name not in entry]
    if missing:
        raise ValueError(f"a plan does not say {', '.join(missing)}")
    known: dict[str, Any] = {name: entry[name] for name in names}
    known["profile"] = _read_profile(known["profile"])
    capabilities = known["compute_capabilities"]
    if not isinstance(capabilities, list) or not all(isinstance(c, str) for c in capabilities):
        raise ValueError("a plan's compute_capabilities is not a list of text")
    known["compute_capabilities"] = tuple(capabilities)
    for name in ("file", "version", "device", "graph", "graph_sha256"):
        if not isinstance(known[name], str):
            raise ValueError(f"a plan's {name} is not text")
    _check_choices(known)
    return PlanRecord(**known)


def _check_choices(known: dict[str, Any]) -> None:
    choices: dict[str, Collection[object]] = {
        "form": FORMS,
        "engine": tuple(ENGINE_MODULES),
        "precision": PRECISIONS,
        "hardware_compatibility": COMPATIBILITIES,
        "optimization_level": (None, *LEVELS),
        "tf32": (False, True),
    }
    for name, allowed in choices.items():
        value = known[name]
        # 0 == False, but a level is no truth value, nor the reverse.
        if not any(type(value) is type(each) and value == each for each in allowed):
            raise ValueError(f"a plan's {name} is {value!r}")


def _read_profile(entry: object) -> dict[str, Limits]:
    if not isinstance(entry, dict) or "images" not in entry:
        raise ValueError("a plan's profile does not tell the shapes of images")
    return {str(name): _read_limits(limits) for name, limits in entry.items()}


def _read_limits(entry: object) -> Limits:
    shapes = []
    for name in ("minimum", "optimum", "maximum"):
        shape = entry.get(name) if isinstance(entry, dict) else None
        if not isinstance(shape, list) or not shape:
            raise ValueError(f"a plan's profile has no {name} shape")
        if not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"a plan's profile has a {name} shape that is not one")
        shapes.append(tuple(shape))
    low, usual, high = shapes
    if not len(low) == len(usual) == len(high):
        raise ValueError("a plan's profile has shapes of several ranks")
    if any(not a <= b <= c for a, b, c in zip(low, usual, high, strict=True)):
        raise ValueError("a plan's profile has a smallest shape above its largest")
    return Limits(low, usual, high)
