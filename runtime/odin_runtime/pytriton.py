"""A bundle as a model of a server that PyTriton starts: raw images in, scores and decisions out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from odin_runtime.scorer import Scorer


def bind(
    server: Any,
    bundle: str | Path,
    name: str = "odin",
    *,
    batch_size: int = 64,
    wait: float = 0.002,
    size: tuple[int, int] | Literal["any"] | None = None,
    **options: Any,
) -> Scorer:
    """Let a server score with a bundle.

    The model takes `images`, uint8 (N, H, W, channels), raw; each output is one number an image,
    (N, 1): `score`, `baseline`, `label`, and `is_ood` and `percentile` of a calibrated bundle.

    Args:
        server: a `pytriton.triton.Triton` that does not serve yet.
        bundle: the folder that odin-export wrote.
        name: of the model.
        batch_size: most images that are scored at once; the server joins requests up to it, and
            refuses larger ones.
        wait: seconds that a request waits for others to join it.
        size: height and width of all images; "any": whatever the network takes; None: that of the
            calibration's images, or any, if there is none. Any size is for clients that are trusted
            alone: server 2.51 loses its Python process over two negative sides, by gRPC.
        options: of `Scorer.open`, such as `engine`, `precision`, `threads`.

    Returns:
        The scorer, which has scored one image already; close it after the server has stopped.

    Raises:
        OdinError: as `Scorer.open`; or the network does not take the size.
    """
    from pytriton.decorators import batch
    from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor

    scorer = Scorer.open(bundle, **options)
    shape = _shape(scorer, size)
    least = (scorer.spec.height[0], scorer.spec.width[0], scorer.spec.channels)
    sides = [low if side < 0 else side for side, low in zip(shape, least, strict=True)]
    outputs = scorer.score(np.zeros((1, *sides), np.uint8)).arrays()
    server.bind(
        model_name=name,
        infer_func=batch(_answers(scorer)),
        inputs=[Tensor(name="images", dtype=np.uint8, shape=shape)],
        outputs=[Tensor(name=k, dtype=v.dtype.type, shape=(1,)) for k, v in outputs.items()],
        config=ModelConfig(
            max_batch_size=batch_size,
            batcher=DynamicBatcher(max_queue_delay_microseconds=round(wait * 1e6)),
        ),
    )
    return scorer


def _answers(scorer: Scorer) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    def answer(images: np.ndarray) -> dict[str, np.ndarray]:
        return {name: values[:, None] for name, values in scorer.score(images).arrays().items()}

    return answer


def _shape(scorer: Scorer, size: tuple[int, int] | Literal["any"] | None) -> tuple[int, ...]:
    """Of one image; -1 where several sizes are taken."""
    spec, known = scorer.spec, scorer.bundle.calibration
    size = size or (known.size if known else None) or "any"
    if size != "any":
        return (*size, spec.channels)
    sides = (least if least == most else -1 for least, most in (spec.height, spec.width))
    return (*sides, spec.channels)
