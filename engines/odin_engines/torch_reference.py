"""ODIN by plain PyTorch autograd: the reference that the other engines are checked against.

Liang, Li, Srikant, ICLR 2018, section 3. Written to be read, not to be fast.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odin_engines.engine import Arrays, Session
from odin_engines.spec import Spec


@dataclass(frozen=True)
class TorchReference(Session):
    """A session around a PyTorch network.

    Attributes:
        network: normalised images (N, C, H, W) -> logits (N, classes), in evaluation mode; it
            computes in the type of its parameters, float32 or float64.
        spec: tells mean, std, method, and the temperature and magnitude used where the feeds give
            none.
    """

    network: nn.Module
    spec: Spec

    def run(self, feeds: Arrays) -> dict[str, np.ndarray]:
        """Score normalised `images` (N, C, H, W); `temperature`, `magnitude` override the spec.

        Returns `score` and `baseline` (N,), `label` int64 (N,), `logits` (N, classes), and
        `input_gradient` (N, C, H, W), that of -log S_y(x; T).
        """
        temperature = float(feeds.get("temperature", self.spec.temperature))
        magnitude = float(feeds.get("magnitude", self.spec.magnitude))
        images = self._tensor(feeds["images"])
        logits, gradient = self._logits_and_gradient(images, temperature)
        std = torch.tensor(self.spec.std, dtype=images.dtype).view(1, -1, 1, 1)
        if self.spec.method == "first-order":
            log_score = F.log_softmax(logits / temperature, dim=1).amax(dim=1)
            score = (log_score + magnitude * (gradient.abs() / std).sum(dim=(1, 2, 3))).exp()
        else:
            sign = torch.where(gradient >= 0, 1.0, -1.0).to(images.dtype)
            perturbed = images - magnitude * sign / std
            with torch.no_grad():
                score = F.softmax(self.network(perturbed) / temperature, dim=1).amax(dim=1)
        return {
            "score": score.numpy(),
            "baseline": F.softmax(logits, dim=1).amax(dim=1).numpy(),
            "label": logits.argmax(dim=1).numpy(),
            "logits": logits.numpy(),
            "input_gradient": gradient.numpy(),
        }

    def _logits_and_gradient(self, images: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        images = images.requires_grad_()
        logits = self.network(images)
        label = logits.argmax(dim=1)
        # A sum, not a mean: each image's gradient is its own.
        loss = F.cross_entropy(logits / temperature, label, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, images)
        return logits.detach(), gradient

    def _tensor(self, images: np.ndarray) -> Tensor:
        dtype = next(self.network.parameters()).dtype
        return torch.from_numpy(np.ascontiguousarray(images)).to(dtype, copy=True)
