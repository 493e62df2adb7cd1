"""Scoring on a Ray cluster: data sets in batches, and a service over HTTP.

    scored = ray.data.read_images("photos/").map_batches(
        OdinPredictor, fn_constructor_kwargs={"bundle": "my-bundle"}, concurrency=2, batch_size=256
    )
    serve.run(deployment("my-bundle"))

Ray starts workers anew that die, and gives their batches to others; nothing here adds to that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from odin_engines.errors import OdinError
from odin_runtime.image_files import decode_rgb
from odin_runtime.preparation import Preparation, usual_size
from odin_runtime.scorer import Scorer


class OdinPredictor:
    """A callable class for `ray.data.Dataset.map_batches`: the batch, and a column for each score.

    Args:
        bundle: the folder, on every node.
        column: which holds the images: arrays (N, H, W, 3) uint8, or one of arrays of any sizes.
        keep_images: whether the images stay in the batch.
        options: of `Scorer.open`.

    Raises:
        OdinError: as `Scorer.open`.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        column: str = "image",
        keep_images: bool = False,
        **options: Any,
    ) -> None:
        self._scorer = Scorer.open(bundle, **options)
        self._column = column
        self._keep = keep_images
        self._prepare = Preparation(size=usual_size(self._scorer.spec))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Score a batch.

        Raises:
            OdinError: there is no such column, or the network does not take the images.
        """
        if self._column not in batch:
            raise OdinError(
                f"the batch has no column {self._column!r}, only {', '.join(batch)}; give column="
            )
        images = batch[self._column]
        raw = [self._prepare(np.asarray(image), self._scorer.spec) for image in images]
        found = self._scorer.score(np.stack(raw)) if raw else None
        left = {name: values for name, values in batch.items() if name != self._column}
        if self._keep:
            left[self._column] = images
        return left | ({} if found is None else found.arrays())


class OdinService:
    """Answers HTTP requests: an encoded image in (PNG, JPEG, ...), its scores out, as JSON.

    Requests that come within `wait` seconds are scored together. A body that is no image gets
    status 400 and the reason.

    Args:
        bundle: the folder, on every node.
        batch_size: the most requests that are scored together.
        wait: seconds.
        options: of `Scorer.open`.
    """

    def __init__(
        self, bundle: str | Path, batch_size: int = 64, wait: float = 0.002, **options: Any
    ) -> None:
        from ray import serve

        self._scorer = Scorer.open(bundle, **options)
        self._prepare = Preparation(size=usual_size(self._scorer.spec))
        self._score = serve.batch(
            self._score_together, max_batch_size=batch_size, batch_wait_timeout_s=wait
        )

    async def __call__(self, request: Any) -> Any:
        """Answer one request."""
        from starlette.responses import JSONResponse

        try:
            image = self._decoded(await request.body())
            return JSONResponse(await self._score(image))
        except OdinError as error:
            return JSONResponse({"error": str(error)}, status_code=400)

    def _decoded(self, body: bytes) -> np.ndarray:
        import io

        return self._prepare(decode_rgb(io.BytesIO(body), "the body"), self._scorer.spec)

    async def _score_together(self, images: list[np.ndarray]) -> list[dict[str, Any]]:
        found = self._scorer.score(np.stack(images)).arrays()
        return [
            {name: values[place].item() for name, values in found.items()}
            for place in range(len(images))
        ]


def deployment(bundle: str | Path, *, replicas: int = 1, **options: Any) -> Any:
    """A Ray Serve application of `OdinService`, for `ray.serve.run`.

    Args:
        bundle: the folder, on every node.
        replicas: how many processes serve.
        options: of `OdinService`.
    """
    from ray import serve

    service = serve.deployment(OdinService, name="odin", num_replicas=replicas)
    return service.bind(str(bundle), **options)
