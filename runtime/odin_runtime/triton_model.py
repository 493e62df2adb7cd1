"""A bundle as a model of Triton's Python backend: raw images in, scores and decisions out.

The server's repository holds a model.py of one line, which takes `TritonPythonModel` from here;
`odin-export BUNDLE --triton-repository DIR` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from odin_engines.errors import OdinError
from odin_runtime.scorer import Scorer

BUNDLE = "bundle"  # the folder beside model.py
IMAGES = "images"


class TritonPythonModel:
    """What the backend calls; requests that come together are scored together."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle.

        Args:
            args: of the backend: "model_config" (JSON), "model_repository", "model_version".

        Raises:
            OdinError: as `Scorer.open`; the server then says why the model is not ready.
        """
        config = json.loads(args["model_config"])
        given = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        self._outputs = {output["name"] for output in config["output"]}
        threads = int(given.get("threads", "0"))
        self._scorer = Scorer.open(
            Path(args["model_repository"], args["model_version"], BUNDLE),
            given.get("engine", "auto"),
            precision=given.get("precision") or None,  # type: ignore[arg-type]
            threads=threads or None,
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests, each with its own images; a wrong one is told and harms no other."""
        import triton_python_backend_utils as triton

        images = [triton.get_input_tensor_by_name(each, IMAGES).as_numpy() for each in requests]
        answers: list[Any] = [None] * len(images)
        for places in _alike(images):
            try:
                found = self._scorer.score(np.concatenate([images[place] for place in places]))
            except OdinError as error:
                for place in places:
                    answers[place] = triton.InferenceResponse(error=triton.TritonError(str(error)))
                continue
            start = 0
            for place in places:
                part = slice(start, start + len(images[place]))
                start = part.stop
                answers[place] = triton.InferenceResponse(
                    [
                        triton.Tensor(name, values[part, None])
                        for name, values in found.arrays().items()
                        if name in self._outputs
                    ]
                )
        return answers

    def finalize(self) -> None:
        """Let go of what the engine holds."""
        self._scorer.close()


def _alike(images: Sequence[np.ndarray]) -> list[list[int]]:
    """Places of the arrays that can be joined."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, array in enumerate(images):
        groups.setdefault((array.dtype.str, array.shape[1:]), []).append(place)
    return list(groups.values())
