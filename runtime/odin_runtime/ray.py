"""Scoring on a Ray cluster: data sets in batches, and a service over HTTP.

    scored = ray.data.read_images("photos", mode="RGB").map_batches(
        OdinPredictor, fn_constructor_kwargs={"bundle": "my-bundle"}, concurrency=(1, 8)
    )
    serve.run(deployment("my-bundle"))

Ray starts workers anew that die, and gives their batches to others; nothing here adds to that.
"""

from __future__ import annotations

import asyncio
import io
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from odin_engines import engine as engines
from odin_engines.bundle import read_bundle
from odin_engines.errors import OdinError
from odin_engines.spec import Spec
from odin_runtime.gpu_options import STREAMING
from odin_runtime.image_files import decode
from odin_runtime.images import check_images
from odin_runtime.metrics import SECONDS, score_buckets
from odin_runtime.preparation import Preparation, usual, usual_size
from odin_runtime.scorer import Scorer

Columns = dict[str, np.ndarray]
# What a service decodes: formats whose size stands at their beginning, and is all that Pillow reads
# before it is checked. An ICO is decoded as it is opened, a TIFF may have tiles larger than itself,
# and an EPS is a program.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM")
DECODERS = 4  # at once: each takes 11 to 25 bytes of memory for a pixel


class OdinPredictor:
    """A callable class for `ray.data.Dataset.map_batches`: the batch, and a column for each score.

    The columns are those of `Scores.arrays`: "score", "baseline", "label" and so on.

    Args:
        bundle: the folder, where each node finds it.
        column: which holds the images: (H, W, C) uint8 each, raw and of any sizes; or (C, H, W)
            float32, normalised.
        keep_images: whether that column stays.
        prefix: of the new columns' names.
        prepare: how raw images become the network's; None does as `preparation.usual`: what was
            done to the calibration's, else scaling to the network's size. Normalised ones are taken
            as they are.
        options: of `Scorer.open`. On the CPU, `threads` is what Ray gives the worker (num_cpus).

    Raises:
        OdinError: as `Scorer.open`. Ray does not try again, and tells it where the data set is
            consumed.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        column: str = "image",
        keep_images: bool = False,
        prefix: str = "",
        prepare: Preparation | None = None,
        **options: Any,
    ) -> None:
        self._scorer = _opened(bundle, options)
        self._column = column
        self._keep = keep_images
        self._prefix = prefix
        self._prepare = prepare or usual(self._scorer.bundle)

    def __call__(self, batch: Columns) -> Columns:
        """Score a batch of format "numpy", which is the default.

        Args:
            batch: columns of N rows.

        Raises:
            OdinError: there is no such column, the network does not take an image, or a new column
                has the name of an old one. Ray drops such a block if
                `DataContext.max_errored_blocks` allows, and else ends the job.
        """
        # Ray passes blocks without rows on, some of which have no columns either.
        empty = not any(map(len, batch.values()))
        if self._column not in batch and not empty:
            raise OdinError(
                f"the batch has no column {self._column!r}, only {', '.join(map(repr, batch))}: "
                "name the one that holds the images with column="
            )
        images = [self._image(image, row) for row, image in enumerate(batch.get(self._column, ()))]
        found = {self._prefix + name: values for name, values in _scored(self._scorer, images)}
        left = dict(batch)
        if not self._keep:
            left.pop(self._column, None)
        taken = [name for name in found if name in left]
        if taken:
            raise OdinError(
                f"the batch has a column {taken[0]!r} already: name the new ones otherwise with "
                "prefix='odin_'"
            )
        return left | found

    def _image(self, image: Any, row: int) -> np.ndarray:
        try:
            return _prepared(image, self._prepare, self._scorer.spec)
        except OdinError as error:
            raise OdinError(f"column {self._column!r}, row {row} of a batch: {error}") from error


class OdinService:
    """Answers HTTP requests: an encoded image in (PNG, JPEG, ...), its scores out, as JSON.

    Requests that come within `wait` of each other are scored together. A body that is no image of
    `FORMATS`, or none that the network takes, gets status 400, and one that is too long 413, with
    {"error": the reason}. NaN is told as null.

    Args:
        bundle: the folder, where each node finds it.
        batch_size: the most requests that are scored together.
        wait: seconds that a request waits for others.
        most_bytes: of a body.
        most_pixels: of an image, before it is prepared.
        prepare: how decoded images become the network's; None does as `preparation.usual`.
        options: of `Scorer.open`. On the CPU, `threads` is what Ray gives the replica (num_cpus).

    Raises:
        OdinError: as `Scorer.open`.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        batch_size: int = 64,
        wait: float = 0.002,
        most_bytes: int = 1 << 24,
        most_pixels: int = 1 << 24,
        prepare: Preparation | None = None,
        **options: Any,
    ) -> None:
        from ray import serve

        self._scorer = _opened(bundle, options)
        self._prepare = prepare or usual(self._scorer.bundle)
        self._most_bytes = most_bytes
        self._most_pixels = most_pixels
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
        self._metrics = _Metrics(self._scorer)
        self._score = serve.batch(
            self._score_together, max_batch_size=batch_size, batch_wait_timeout_s=wait
        )
        # The first call of an engine may take seconds; Serve sends requests once this is done.
        for count in (1, batch_size):
            self._scorer.score(_blank(count, self._scorer.spec, self._prepare))

    async def __call__(self, request: Any) -> Any:
        """Answer one request of Starlette's."""
        from starlette.responses import JSONResponse

        began, status = time.perf_counter(), 500
        try:
            status, answer = await self._answer(request)
        finally:  # what raises is counted too
            self._metrics.answered(status, time.perf_counter() - began)
        return JSONResponse(answer, status_code=status)

    async def _answer(self, request: Any) -> tuple[int, dict[str, Any]]:
        body = await self._body(request)
        if body is None:
            return 413, {"error": f"the body has more than {self._most_bytes:,} bytes"}
        # In threads, so that others are heard meanwhile: Pillow and the engines let go of Python's
        # lock. Of a request that is cancelled the decoding goes on, and keeps its thread.
        loop = asyncio.get_running_loop()
        try:
            image = await loop.run_in_executor(self._decoders, self._decoded, body)
        except OdinError as error:
            return 400, {"error": str(error)}
        return 200, await self._score(image)

    async def _body(self, request: Any) -> bytes | None:
        """None where it is too long; the rest of such a one is not read."""
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self._most_bytes:
                return None
        return bytes(body)

    def _decoded(self, body: bytes) -> np.ndarray:
        spec = self._scorer.spec
        image = decode(
            io.BytesIO(body),
            "the body",
            spec.channels,
            formats=FORMATS,
            most_pixels=self._most_pixels,
        )
        return _prepared(image, self._prepare, spec)

    async def _score_together(self, images: list[np.ndarray]) -> list[dict[str, Any]]:
        return await asyncio.to_thread(self._answers, images)

    def _answers(self, images: list[np.ndarray]) -> list[dict[str, Any]]:
        found = dict(_scored(self._scorer, images))
        self._metrics.take(found)
        return [
            {name: _plain(values[place]) for name, values in found.items()}
            for place in range(len(images))
        ]


def deployment(
    bundle: str | Path,
    *,
    replicas: int = 1,
    batch_size: int = 64,
    resources: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """A Ray Serve application of `OdinService`, for `ray.serve.run`.

    Args:
        bundle: the folder, where each node finds it.
        replicas: how many processes serve.
        batch_size: the most requests that a replica scores together.
        resources: of a replica, as Ray's `ray_actor_options`: {"num_cpus": 4}, {"num_gpus": 1}.
        options: of `OdinService`.
    """
    from ray import serve

    made = serve.deployment(
        OdinService,
        name="odin",
        num_replicas=replicas,
        # While a batch is scored, the next one gathers. Serve's own limit is a batch of 5.
        max_ongoing_requests=2 * batch_size,
        ray_actor_options=dict(resources or {}),
    )
    return made.bind(str(bundle), batch_size=batch_size, **options)


class _Metrics:
    """What a replica tells Prometheus, through the port of its node's Ray.

    Ray puts "ray_" before the names, and adds application, deployment and replica to the labels.

    Scores are counted for each upper end of `score_buckets` by a counter with Prometheus' own label
    "le", since the ends are the bundle's, and Ray's histograms have to have the same ones in all
    processes of a node: it takes those of the first and drops or misplaces what others tell.
    """

    def __init__(self, scorer: Scorer) -> None:
        from ray.serve.metrics import Counter, Histogram

        def made(kind: Any, name: str, text: str, *labels: str, **more: Any) -> Any:
            meter = kind(f"odin_{name}", text, tag_keys=("model", *labels), **more)
            meter.set_default_tags({"model": scorer.spec.model})
            return meter

        self._requests = made(Counter, "requests", "Requests answered with scores.")
        self._failures = made(Counter, "failed_requests", "Requests answered with an error.")
        self._images = made(Counter, "images", "Images scored.")
        self._flagged = None  # of no calibration; a 0 would read as a share of 0 %
        if scorer.bundle.calibration is not None:
            self._flagged = made(Counter, "flagged_images", "Images taken for out-of-distribution.")
        self._below = made(Counter, "score_bucket", "Images that score at or below le.", "le")
        self._seconds = made(
            Histogram, "request_seconds", "From request to answer.", boundaries=list(SECONDS)
        )
        self._ends = (*score_buckets(scorer), math.inf)

    def answered(self, status: int, seconds: float) -> None:
        """Count a request with this status of HTTP."""
        if status == 200:
            self._requests.inc()
            self._seconds.observe(seconds)
        else:
            self._failures.inc()

    def take(self, found: Columns) -> None:
        """Count images with these scores."""
        scores = found["score"].astype(np.float64)
        self._images.inc(len(scores))
        if self._flagged is not None:
            _add(self._flagged, found["is_ood"])
        for end in self._ends:
            label = "+Inf" if end == math.inf else f"{end:.9g}"
            _add(self._below, scores <= end, {"le": label})


def _add(counter: Any, which: np.ndarray, labels: dict[str, str] | None = None) -> None:
    count = int(which.sum())
    if count:  # Ray's counters refuse a step of nothing
        counter.inc(count, labels)


def _opened(bundle: str | Path, options: dict[str, Any]) -> Scorer:
    """A scorer with no more threads than this process has cores of Ray's, unless told otherwise."""
    read = read_bundle(Path(bundle))
    precision = options.get("precision") or read.spec.precision
    if engines.resolve(options.get("engine", "auto"), precision) in STREAMING:
        options = {"threads": _cores(), **options}
    return Scorer.open(read, **options)


def _cores() -> int | None:
    """How many cores Ray gives this process; None where it does not say."""
    import ray

    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return None
    assigned = ray.get_runtime_context().get_assigned_resources().get("CPU")
    return None if not assigned else max(int(assigned), 1)


def _prepared(image: Any, prepare: Preparation, spec: Spec) -> np.ndarray:
    """One image as the network takes it.

    Raises:
        OdinError: it is no such array, or not of a size that the network takes.
    """
    array = np.asarray(image)
    if array.dtype == np.float32 and array.ndim == 3:
        check_images(array[None], spec)
        return array
    if array.ndim == 2 and spec.channels == 1:
        array = array[..., None]
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != spec.channels:
        mode = {1: "L", 3: "RGB"}.get(spec.channels)
        hint = f"; read_images(..., mode='{mode}') gives such of any file" if mode else ""
        raise OdinError(
            f"an image is {array.shape} {array.dtype}; give (H, W, {spec.channels}) uint8, raw, or "
            f"({spec.channels}, H, W) float32, normalised{hint}"
        )
    return prepare(array, spec)


def _scored(scorer: Scorer, images: Sequence[np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Each score's name and its values, (N,); images of one size are scored together."""
    if not images:
        yield from scorer.score(_blank(0, scorer.spec, Preparation())).arrays().items()
        return
    alike: dict[Any, list[int]] = {}
    for place, image in enumerate(images):
        alike.setdefault((image.shape, image.dtype.char), []).append(place)
    parts = [
        scorer.score(np.stack([images[place] for place in places])).arrays()
        for places in alike.values()
    ]
    order = np.argsort(np.concatenate(list(alike.values())))
    for name in parts[0]:
        yield name, np.concatenate([part[name] for part in parts])[order]


def _blank(count: int, spec: Spec, prepare: Preparation) -> np.ndarray:
    """Images as they come out of a preparation."""
    size = prepare.final(spec) or usual_size(spec)
    return np.zeros((count, *size, spec.channels), np.uint8)


def _plain(value: np.generic) -> Any:
    """For JSON, which has neither NaN nor infinities."""
    number = value.item()
    return None if isinstance(number, float) and not math.isfinite(number) else number
