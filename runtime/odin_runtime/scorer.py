"""Images in, scores out."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from odin_engines import engine as engines
from odin_engines.batches import parts
from odin_engines.bundle import Bundle, read_bundle
from odin_engines.calibration import Calibration
from odin_engines.engine import Session, Tuning, cache_folder
from odin_engines.errors import OdinError
from odin_engines.spec import Precision, Spec
from odin_runtime.gpu_options import PLAN_ENGINES, FormName, GpuOptions, check_options
from odin_runtime.images import check_images, check_layout, normalised
from odin_runtime.scores import Scores
from odin_runtime.settings import check_built_in, check_range

if TYPE_CHECKING:
    from odin_runtime.gpu_results import DeviceScores
    from odin_runtime.gpu_scorer import GpuSession

STREAM_MEMORY = 2 << 30
_SEVERAL = "scores of several magnitudes have no threshold in common; score with one"


@dataclass(frozen=True)
class Scorer:
    """A bundle opened in an engine. Safe to use from several threads.

    Leaving it as a context manager closes it, which only engines "trt" and "rtx" need.

    Attributes:
        bundle: what was opened.
        engine: the engine's name; never "auto".
        precision: in which the engine computes.
        session: the opened graph.
        input_type: what the session takes, "float32" or "uint8".
        batch_size: the most images of a batch; several may be computed at once.
        memory: about how many bytes the activations of a call may take.
    """

    bundle: Bundle
    engine: str
    precision: Precision
    session: Session | GpuSession
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
        streams: int | None = None,
        cache: bool = True,
        network: Any = None,
        batch_size: int | None = None,
        memory: int | None = None,
        form: FormName = "auto",
        driver: str = "auto",
        device: int = 0,
        graphs: bool | None = None,
    ) -> Scorer:
        """Open a bundle.

        Args:
            bundle: the folder that odin-export wrote.
            engine: one of
                "auto": the first that can run here, of these but "torch";
                "openvino", "ort": OpenVINO and ONNX Runtime on the CPU;
                "ort-cuda", "ort-trt": ONNX Runtime on a GPU, with CUDA or TensorRT;
                "trt", "rtx": the bundle's plans of TensorRT or TensorRT for RTX on a GPU;
                "torch": PyTorch autograd on the CPU, the reference.
            precision: None takes the bundle's. A bundle exported with --precision fp16 or bf16
                has that one alone; of any other, "openvino" makes "fp32" or "bf16".
            threads: of "openvino", "ort" and the CPU's part of "ort-cuda" and "ort-trt"; None
                leaves it to the engine. Engine "torch" goes by torch.set_num_threads.
            streams: of "openvino" and "ort": how many batches are computed at once, each with its
                share of the threads; None takes one for each core. A call that is a single batch
                gets all threads.
            cache: whether "openvino" keeps what it compiles in the user's cache folder, and takes
                it from there. What is in it beyond 2 GiB is removed the next time.
            network: for engine "torch" alone: the PyTorch network, which a bundle does not hold.
            batch_size: the most images of a batch; None takes what the engine is fastest with, and
                with "trt" and "rtx", whose memory is made for it, the largest batch of the plans.
            memory: about how many bytes the activations of a call may take. Where it is too little
                for a batch on each stream, batches come one after the other. None allows 2 GiB a
                stream. Plans have their own bound.
            form, driver, device, graphs: of engines "trt" and "rtx" alone.
            form: "fused" (one plan, images to scores: one magnitude a call), "split" (gradient and
                forward plans with kernels between them: one gradient for many magnitudes) or
                "auto": fused for bundles with further scores (--scores), split for other tunable
                ones, else fused; the other one if plans are missing.
            driver: "cuda-core", "pycuda", or "auto" for the first that works.
            device: number of the GPU, as CUDA_VISIBLE_DEVICES leaves it.
            graphs: whether batches of a size that comes again are replayed as CUDA graphs. None:
                where the driver (cuda-core) and TensorRT can; a warning says once where TensorRT
                cannot. True: an error where they cannot. Images on the device always run directly.

        Raises:
            OdinError: the bundle is missing, damaged or newer than this version; the engine is
                not available here or does not compute in the precision; there are no plans of
                the form, or not for this GPU and version; the GPU has too little memory; an option
                is of another engine. The message says which, and what to do.
        """
        opened = bundle if isinstance(bundle, Bundle) else read_bundle(Path(bundle))
        if batch_size is not None and batch_size < 1:
            raise OdinError(f"batch_size is {batch_size}; it has to be 1 or more")
        options = GpuOptions(form, driver, device, graphs, batch_size)
        precision = precision or opened.spec.precision
        name = engines.resolve(engine, precision)
        tuning = Tuning(threads, streams, cache_folder(name) if cache else None)
        check_options(name, options, tuning, network)
        session: Session | GpuSession
        if name == "torch":
            session, input_type = _reference(opened.spec, precision, network), "float32"
        else:
            problem = engines.takes_precision(name, opened.spec, precision)
            if problem is not None:
                raise OdinError(problem)
            input_type = opened.spec.input_type
            if name in PLAN_ENGINES:
                from odin_runtime.gpu_scorer import open_gpu

                session = open_gpu(opened, name, options)
                batch_size = session.pipeline.batch_size
            else:
                session = engines.open_graph(name, opened.odin(name), precision, tuning)
        drift = opened.calibration and opened.calibration.drift(name, precision)
        if drift:
            warnings.warn(drift, stacklevel=2)
        if batch_size is None:
            batch_size = engines.images_at_once(name, precision, opened.spec.activation_bytes)
        if memory is None:
            memory = STREAM_MEMORY * getattr(session, "streams", 1)
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
        magnitudes: Sequence[float] | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Scores:
        """Score any number of images.

        Args:
            images: (N, H, W, C) uint8, raw; or (N, C, H, W) float32, already normalised. Engines
                "trt" and "rtx" take arrays on the device too. A threshold is meant for images
                scaled and cropped as the calibration's (its `size` and `crop`): nothing here
                sees to that.
            temperature, magnitude: in place of the bundle's; only for a bundle exported with
                --tunable, or the torch engine; split plans take any magnitude.
            magnitudes: several at once, in place of `magnitude`, at most 512; for split plans
                alone.
            progress: called after each chunk with its number of images; for an array on the device
                once, with N.

        Raises:
            OdinError: the images have another type, layout or size, or the bundle is not tunable.
        """
        if self.engine in PLAN_ENGINES:
            gpu = cast("GpuSession", self.session)
            wanted = _wanted_magnitudes(magnitude, magnitudes)
            placed = gpu.placed(images)
            _check_placed(placed, self.spec)
            results = gpu.score(placed, temperature, wanted, progress)
            several = magnitudes is not None
            known = _SEVERAL if several else self.calibration(temperature, magnitude)
            return Scores(**self._fields(results, several), calibration=known)
        if magnitudes is not None:
            raise OdinError(
                f"engine {self.engine} takes one magnitude at a time: score once for each, or use "
                "the split plans of engine trt or rtx"
            )
        check_images(images, self.spec)
        found = []
        names = ("score", "baseline", "label", *self._extra_names())
        for chunk, outputs in self._outputs(images, self.tuning(temperature, magnitude)):
            _check_rows(outputs, chunk, self.bundle)
            outputs = {name: outputs[name] for name in names}  # not the logits, which may be large
            found.append(_with_nan(outputs, chunk))
            if progress:
                progress(len(chunk))
        return Scores(
            _joined(found, "score", np.float32),
            _joined(found, "baseline", np.float32),
            _joined(found, "label", np.int64),
            {name: _joined(found, name, np.float32) for name in self._extra_names()},
            self.calibration(temperature, magnitude),
        )

    def calibration(
        self, temperature: float | None = None, magnitude: float | None = None
    ) -> Calibration | str:
        """What tells the meaning of scores made so, or why there is nothing, in words.

        Args:
            temperature, magnitude: None takes the bundle's.
        """
        known = self.bundle.calibration
        if known is None:
            return (
                f"bundle {self.bundle.path} is not calibrated, so there is no threshold: run "
                f"'odin-bench {self.bundle.argument} --calibrate IN_DATASET'"
            )
        temperature = self.spec.temperature if temperature is None else temperature
        magnitude = self.spec.magnitude if magnitude is None else magnitude
        return known.unlike(self.spec, temperature, magnitude) or known

    def _outputs(
        self, images: np.ndarray, scalars: dict[str, np.ndarray]
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """The network's input of each batch, and what the engine gives for it."""
        session = cast("Session", self.session)
        streams, most = self._at_once(images)
        cuts = list(parts(len(images), most))
        given: deque[np.ndarray] = deque()

        def feeds() -> Iterator[dict[str, np.ndarray]]:
            for cut in cuts:
                given.append(self._network_input(images[cut]))
                yield {"images": given[-1], **scalars}

        several = streams > 1 and len(cuts) > 1
        run_all = session.run_all if several else partial(map, session.run)
        for outputs in run_all(feeds()):
            yield given.popleft(), outputs

    def score_on_device(
        self,
        images: Any,
        *,
        stream: Any = None,
        temperature: float | None = None,
        magnitude: float | None = None,
        magnitudes: Sequence[float] | None = None,
    ) -> DeviceScores:
        """Queue scoring images that lie on the GPU, without a copy; returns before it is done.

        It comes after what `stream` holds now, and what comes to `stream` later finds the scores,
        and may change the images. Work of other streams has to wait for it.

        Args:
            images: as `score`, dense, of any library with `__cuda_array_interface__` or DLPack.
            stream: a CUDA stream of any library, or its handle; None takes the array's own where
                it names one, else the default stream. PyTorch's arrays name none: where another
                stream than the default is current, give torch.cuda.current_stream().
            temperature, magnitude, magnitudes: as `score`.

        Returns:
            Arrays on the device (`gpu_results.DeviceScores`), which others take as theirs:
            torch.from_dlpack(scores.score), cupy.asarray(scores.score). They last until they and
            what was taken from them are dropped, also beyond the scorer.

        Raises:
            OdinError: not engine "trt" or "rtx"; images of another device, context, type, layout or
                size, or not dense; a stream being captured; or settings that are not the plans'.
        """
        if self.engine not in PLAN_ENGINES:
            raise OdinError(
                f"engine {self.engine} takes images of the host: use score(), or open the bundle's "
                "plans with engine trt or rtx"
            )
        from odin_runtime.gpu_results import DeviceScores

        gpu = cast("GpuSession", self.session)
        wanted = _wanted_magnitudes(magnitude, magnitudes)
        placed = gpu.placed(images, stream)
        _check_placed(placed, self.spec)
        results = gpu.score_on_device(placed, stream, temperature, wanted)
        return DeviceScores(**self._fields(results, several=magnitudes is not None))

    def _fields(self, results: dict[str, Any], several: bool) -> dict[str, Any]:
        """The fields of Scores or DeviceScores, from what a GpuSession gives."""
        fields = {name: results[name] for name in ("score", "baseline", "label")}
        if not several:
            fields["score"] = results["score"][0]
        return fields | {"extra": {name: results[name] for name in self._extra_names()}}

    def close(self) -> None:
        """Free what the engine holds on a GPU; a second call does nothing."""
        close = getattr(self.session, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check_setting(self, temperature: float | None, magnitude: float | None) -> None:
        """Check, before there are images, that they can be scored so; None takes the bundle's.

        Raises:
            OdinError: a value is out of range, or the bundle or its plans have another built in.
        """
        if self.engine in PLAN_ENGINES:
            cast("GpuSession", self.session).check_setting(temperature, magnitude)
        else:
            self.tuning(temperature, magnitude)

    def tuning(self, temperature: float | None, magnitude: float | None) -> dict[str, np.ndarray]:
        """Return the inputs that set temperature and magnitude; None takes the bundle's.

        Raises:
            OdinError: they are out of range, or the bundle has others built in.
        """
        asked = {"temperature": temperature, "magnitude": magnitude}
        values = {
            name: float(getattr(self.spec, name) if value is None else value)
            for name, value in asked.items()
        }
        check_range(values["temperature"], [values["magnitude"]])
        if not self.spec.tunable and self.engine != "torch":
            for name, value in values.items():
                check_built_in(self.spec, name, value, owner=f"bundle {self.bundle.path} has")
            return {}
        return {name: np.array(value, np.float32) for name, value in values.items()}

    def _extra_names(self) -> tuple[str, ...]:
        """The further scores; the reference, which is plain ODIN, has none."""
        return () if self.engine == "torch" else self.spec.scores

    def _at_once(self, images: np.ndarray) -> tuple[int, int]:
        """How many batches to compute at once, and their most images, within the memory bound."""
        streams = cast("Session", self.session).streams
        if not self.spec.activation_bytes:
            return streams, self.batch_size
        pixels = images[0].size // self.spec.channels if len(images) else 1
        smallest = self.spec.height[0] * self.spec.width[0]
        per_image = self.spec.activation_bytes * max(pixels / smallest, 1)
        fitting = int(self.memory // per_image)
        if fitting < streams:
            streams = 1
        return streams, max(1, min(self.batch_size, fitting // streams))

    def _network_input(self, images: np.ndarray) -> np.ndarray:
        if images.dtype == np.uint8 and self.input_type == "float32":
            return normalised(images, self.spec)
        if images.dtype != np.uint8 and self.input_type == "uint8":
            raise OdinError(
                f"bundle {self.bundle.path} takes raw uint8 images and normalises them itself; "
                "give it (N, H, W, C) uint8, or export it with --input-type float32"
            )
        return np.ascontiguousarray(images)


def _wanted_magnitudes(
    magnitude: float | None, magnitudes: Sequence[float] | None
) -> Sequence[float] | None:
    if magnitude is None:
        return magnitudes
    if magnitudes is not None:
        raise OdinError("magnitude and magnitudes are both given; give one of them")
    return [magnitude]


def _check_placed(images: Any, spec: Spec) -> None:
    """Check images of the host or of the device."""
    if hasattr(images, "pointer"):
        check_layout(images.shape, images.dtype, spec)
    else:
        check_images(images, spec)


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
