"""Clients of the server: HTTP and gRPC of `tritonclient`, alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from servers.environment import Server

OUTPUTS = ("score", "baseline", "label", "is_ood", "percentile")
KINDS = {"float32": "FP32", "uint8": "UINT8", "int64": "INT64", "float64": "FP64"}


class Client:
    """A connection; one thread may use it.

    Args:
        server: that answers.
        protocol: "http" or "grpc".
    """

    def __init__(self, server: Server, protocol: str = "http") -> None:
        reason = "tritonclient is not installed: pip install 'odin-ood[test]'"
        self._library: Any = pytest.importorskip(f"tritonclient.{protocol}", reason=reason)
        port = getattr(server, protocol)
        self.connection = self._library.InferenceServerClient(f"127.0.0.1:{port}")

    def score(
        self,
        images: np.ndarray,
        *,
        model: str = "odin",
        name: str = "images",
        outputs: Sequence[str] = OUTPUTS,
    ) -> dict[str, np.ndarray]:
        """What the server answers, (N,) each; a refusal raises InferenceServerException."""
        given = self._library.InferInput(name, list(images.shape), KINDS[images.dtype.name])
        given.set_data_from_numpy(images)
        wanted = [self._library.InferRequestedOutput(each) for each in outputs]
        answer = self.connection.infer(model, [given], outputs=wanted)
        found = {each: answer.as_numpy(each) for each in outputs}
        for each in outputs:
            assert found[each].shape == (len(images), 1)
        return {each: values[:, 0] for each, values in found.items()}

    def close(self) -> None:
        """End the connection."""
        self.connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def same(found: dict[str, np.ndarray], known: dict[str, np.ndarray], part: slice) -> None:
    """Check what a server answered against the local scores of the same images."""
    for name in ("score", "baseline"):
        np.testing.assert_allclose(found[name], known[name][part], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found["label"], known["label"][part])
    if "is_ood" in found:
        np.testing.assert_array_equal(found["is_ood"], known["is_ood"][part])
        # A score may move by its last bits, and so past one of the calibration's images.
        np.testing.assert_allclose(found["percentile"], known["percentile"][part], atol=0.02)
