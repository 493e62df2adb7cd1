"""Images in, scores out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from odin_engines import engine as engines
from odin_engines.bundle import ODIN, Bundle, read_bundle
from odin_engines.engine import Session
from odin_engines.errors import OdinError
from odin_engines.spec import LEAST_TEMPERATURE, MOST, Precision, Spec

# On a CPU, batches beyond this are no faster: their activations leave the cache.
DEFAULT_BATCH = 16
DEFAULT_MEMORY = 2 << 30


@dataclass(frozen=True)
class Scores:
    """What is known of each image; higher scores mean in-distribution.

    Attributes:
        score: ODIN score, float32 (N,).
        baseline: largest softmax probability (Hendrycks and Gimpel, ICLR 2017), float32 (N,).
        label: the predicted class, int64 (N,).
        extra: the further scores that the bundle was exported with (--scores), float32 (N,) each,
            by name.
    """

    score: np.ndarray
    baseline: np.ndarray
    label: np.ndarray
    extra: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.score)

    def first(self, count: int) -> Scores:
        """Those of the first `count` images."""
        extra = {name: values[:count] for name, values in self.extra.items()}
        return Scores(self.score[:count], self.baseline[:count], self.label[:count], extra)


@dataclass(frozen=True)
class Scorer:
    """A bundle opened in an engine. Safe to use from several threads.

    Attributes:
        bundle: what was opened.
        engine: the engine's name; never "auto".
        precision: in which the engine computes.
        session: the opened graph.
        input_type: what the session takes, "float32" or "uint8".
        batch_size: the most images given to the engine at once.
        memory: about how many bytes of activations one call of the engine may take.
    """

    bundle: Bundle
    engine: str
    precision: Precision
    session: Session
    input_type: str
    batch_size: int
    memory: int

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle,
        engine: str = "auto",
        *,
        precision: Precision | None = None,
        threads: int | None = None,
        network: Any = None,
        batch_size: int = DEFAULT_BATCH,
        memory: int = DEFAULT_MEMORY,
    ) -> Scorer:
        """Open a bundle.

        Args:
            bundle: the folder that odin-export wrote.
            engine: "auto" (the fastest that is installed), "openvino", "ort", "torch", "trt" or
                "rtx".
            precision: "fp32" or "bf16"; None takes the bundle's.
            threads: of the engine; None leaves it to the engine.
            network: for engine "torch" alone: the PyTorch network, which a bundle does not hold.
            batch_size: the most images given to the engine at once.
            memory: about how many bytes of activations one call of the engine may take.

        Raises:
            OdinError: the bundle is missing, damaged or newer than this version, or the engine is
                not available; the message says which, and what to do.
        """
        opened = bundle if isinstance(bundle, Bundle) else read_bundle(Path(bundle))
        if batch_size < 1:
            raise OdinError(f"batch_size is {batch_size}; it has to be 1 or more")
        precision = precision or opened.spec.precision
        name = engines.resolve(engine, precision)
        if name == "torch":
            session, input_type = _reference(opened.spec, precision, network), "float32"
        else:
            session = engines.open_graph(name, opened.file(ODIN), precision, threads)
            input_type = opened.spec.input_type
        return cls(opened, name, precision, session, input_type, batch_size, memory)

    @property
    def spec(self) -> Spec:
        """What the bundle says of itself."""
        return self.bundle.spec

    def score(
        self,
        images: np.ndarray,
        *,
        temperature: float | None = None,
        magnitude: float | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Scores:
        """Score any number of images.

        Args:
            images: (N, H, W, C) uint8, raw; or (N, C, H, W) float32, already normalised.
            temperature, magnitude: in place of the bundle's; only for a bundle exported with
                --tunable, or the torch engine.
            progress: called after each chunk with its number of images.

        Raises:
            OdinError: the images have another type, layout or size, or the bundle is not tunable.
        """
        check_images(images, self.spec)
        scalars = self.tuning(temperature, magnitude)
        parts = []
        size = self._chunk_size(images)
        for start in range(0, len(images), size):
            chunk = self._network_input(images[start : start + size])
            outputs = self.session.run({"images": chunk, **scalars})
            _check_rows(outputs, chunk, self.bundle)
            parts.append(_with_nan(outputs, chunk))
            if progress:
                progress(len(chunk))
        return Scores(
            _joined(parts, "score", np.float32),
            _joined(parts, "baseline", np.float32),
            _joined(parts, "label", np.int64),
            {name: _joined(parts, name, np.float32) for name in self._extra_names()},
        )

    def tuning(self, temperature: float | None, magnitude: float | None) -> dict[str, np.ndarray]:
        """Return the inputs that set temperature and magnitude; None takes the bundle's.

        Raises:
            OdinError: they are out of range, or the bundle has others built in.
        """
        asked = {"temperature": temperature, "magnitude": magnitude}
        if not self.spec.tunable and self.engine != "torch":
            for name, value in asked.items():
                if value is not None and np.float32(value) != np.float32(getattr(self.spec, name)):
                    raise OdinError(
                        f"bundle {self.bundle.path} has {name} {getattr(self.spec, name):g} built "
                        f"in, not {value:g}; export it with --{name} {value:g}, or with --tunable"
                    )
            return {}
        values = {
            name: float(getattr(self.spec, name) if value is None else value)
            for name, value in asked.items()
        }
        for name, least in (("temperature", LEAST_TEMPERATURE), ("magnitude", 0)):
            if not least <= values[name] <= MOST:
                raise OdinError(
                    f"{name} is {values[name]}; it has to be a number from {least:g} to {MOST:g}"
                )
        return {name: np.array(value, np.float32) for name, value in values.items()}

    def _extra_names(self) -> tuple[str, ...]:
        """The further scores; the reference, which is plain ODIN, has none."""
        return () if self.engine == "torch" else self.spec.scores

    def _chunk_size(self, images: np.ndarray) -> int:
        """As many images as fit the memory bound, but no more than the batch size."""
        if not self.spec.activation_bytes:
            return self.batch_size
        pixels = images[0].size // self.spec.channels if len(images) else 1
        smallest = self.spec.height[0] * self.spec.width[0]
        per_image = self.spec.activation_bytes * max(pixels / smallest, 1)
        return int(max(1, min(self.batch_size, self.memory // per_image)))

    def _network_input(self, images: np.ndarray) -> np.ndarray:
        if images.dtype == np.uint8 and self.input_type == "float32":
            return normalised(images, self.spec)
        if images.dtype != np.uint8 and self.input_type == "uint8":
            raise OdinError(
                f"bundle {self.bundle.path} takes raw uint8 images and normalises them itself; "
                "give it (N, H, W, C) uint8, or export it with --input-type float32"
            )
        return np.ascontiguousarray(images)


def normalised(images: np.ndarray, spec: Spec) -> np.ndarray:
    """Raw images, uint8 (N, H, W, C) -> (pixel / 255 - mean) / std, float32 (N, C, H, W)."""
    planes = images.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    planes /= np.float32(255)
    planes -= np.asarray(spec.mean, np.float32).reshape(1, -1, 1, 1)
    planes /= np.asarray(spec.std, np.float32).reshape(1, -1, 1, 1)
    return planes


def check_images(images: np.ndarray, spec: Spec) -> None:
    """Check type, layout and size.

    Raises:
        OdinError: naming what was given and what is wanted.
    """
    wanted = (
        f"(N, H, W, {spec.channels}) uint8, raw, or (N, {spec.channels}, H, W) float32, normalised"
    )
    if not isinstance(images, np.ndarray):
        raise OdinError(f"images are a {type(images).__name__}; give a numpy array, {wanted}")
    given = f"images are {images.shape} {images.dtype}"
    if images.ndim == 3 and spec.channels == 1 and images.dtype == np.uint8:
        raise OdinError(f"{given}, without an axis for the only channel; give images[..., None]")
    if images.ndim == 3:
        raise OdinError(f"{given}: one image without a batch axis; give images[None], {wanted}")
    if images.ndim != 4 or images.dtype not in (np.uint8, np.float32):
        hint = "; convert with .astype(numpy.float32)" if images.dtype.kind == "f" else ""
        raise OdinError(f"{given}; give {wanted}{hint}")
    raw = images.dtype == np.uint8
    if images.shape[3 if raw else 1] != spec.channels:
        other = images.shape[1 if raw else 3] == spec.channels
        remedy = "move the channels with .transpose" if other else "check the number of channels"
        raise OdinError(f"{given}; give {wanted}: {remedy}")
    height, width = images.shape[1:3] if raw else images.shape[2:4]
    for name, size, (least, most) in (
        ("high", height, spec.height),
        ("wide", width, spec.width),
    ):
        if not least <= size <= most:
            allowed = f"{least}" if least == most else f"{least} to {most}"
            remedy = "scale the images up" if size < least else "resize or crop the images"
            raise OdinError(
                f"{given}: {size} pixels {name}, where {spec.model} takes {allowed}; {remedy}"
            )


def _reference(spec: Spec, precision: Precision, network: Any) -> Session:
    if network is None:
        raise OdinError(
            "engine torch needs the PyTorch network, which a bundle does not hold: use "
            "Scorer.open(..., engine='torch', network=module), or odin-bench --engine torch"
        )
    if network.training:
        raise OdinError("the network is in training mode; call network.eval() first")
    if precision != "fp32":
        raise OdinError(f"engine torch is the float32 reference; it does not take {precision}")
    from odin_engines.torch_reference import TorchReference

    return TorchReference(network, spec)


def _check_rows(outputs: dict[str, np.ndarray], images: np.ndarray, bundle: Bundle) -> None:
    """A network that reshapes to (-1, features) makes several rows of too large an image."""
    for name in ("score", "baseline", "label"):
        if len(outputs[name]) != len(images):
            raise OdinError(
                f"bundle {bundle.path} gives {len(outputs[name])} scores for {len(images)} images "
                f"of {images.shape}: the network does not take this size; resize or crop the images"
            )


def _with_nan(outputs: dict[str, np.ndarray], images: np.ndarray) -> dict[str, np.ndarray]:
    """Let images with NaN or infinite pixels score NaN; OpenVINO's Relu turns NaN into 0."""
    if images.dtype == np.uint8 or np.isfinite(images).all():
        return outputs
    bad = ~np.isfinite(images).all(axis=(1, 2, 3))
    scores = [name for name in outputs if name not in ("label", "logits", "input_gradient")]
    masked = {name: np.where(bad, np.nan, outputs[name]) for name in scores}
    return {**outputs, **masked}


def _joined(parts: list[dict[str, np.ndarray]], name: str, dtype: type) -> np.ndarray:
    if not parts:
        return np.empty(0, dtype)
    return np.concatenate([part[name] for part in parts]).astype(dtype, copy=False)
