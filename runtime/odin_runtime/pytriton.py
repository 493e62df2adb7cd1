"""A bundle as a model of a server that PyTriton starts: raw images in, scores and decisions out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from odin_engines.spec import Spec
from odin_runtime.scorer import Scorer


def bind(
    server: Any,
    bundle: str | Path,
    name: str = "odin",
    *,
    batch_size: int = 64,
    wait: float = 0.002,
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
        options: of `Scorer.open`, such as `engine`, `precision`, `threads`.

    Returns:
        The scorer, which has scored one image already; close it after the server has stopped.

    Raises:
        OdinError: as `Scorer.open`.
    """
    from pytriton.decorators import batch
    from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor

    scorer = Scorer.open(bundle, **options)
    spec = scorer.spec
    least = np.zeros((1, spec.height[0], spec.width[0], spec.channels), np.uint8)
    outputs = scorer.score(least).arrays()
    server.bind(
        model_name=name,
        infer_func=batch(_answers(scorer)),
        inputs=[Tensor(name="images", dtype=np.uint8, shape=_shape(spec))],
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


def _shape(spec: Spec) -> tuple[int, ...]:
    """Of one image; -1 where the network takes several sizes."""
    sides = (least if least == most else -1 for least, most in (spec.height, spec.width))
    return (*sides, spec.channels)
