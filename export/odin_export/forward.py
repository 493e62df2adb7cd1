"""From a PyTorch network to the forward graph."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch
from torch.export import Dim

from odin_export import clean
from odin_export.networks import MIN_SIZE
from odin_export.rewrites import average_first


def forward_graph(network: torch.nn.Module, max_size: int) -> onnx.ModelProto:
    """Export one of the four networks: `images` (N, 3, H, W) -> `logits` (N, classes).

    The graph computes in the type of the network's parameters. Batch, height and width are dynamic.
    `max_size` is the largest height and width, see `NetworkSpec`; the smallest is `MIN_SIZE`.
    Batch norm that follows a convolution directly is folded into it.
    """
    parameter = next(network.parameters())
    images = torch.zeros(2, 3, MIN_SIZE + 4, MIN_SIZE + 8, dtype=parameter.dtype)
    sizes = {
        0: Dim("N"),
        2: Dim("H", min=MIN_SIZE, max=max_size),
        3: Dim("W", min=MIN_SIZE, max=max_size),
    }
    with _quiet_exporter():
        program = torch.onnx.export(
            network.eval(),
            (images,),
            dynamo=True,
            dynamic_shapes=(sizes,),
            opset_version=clean.OPSET,
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    model = clean.cleaned(program.model)
    clean.keep_batch_in_reshapes(model.graph)
    average_first(model.graph)
    return clean.to_proto(model)


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep PyTorch's progress and deprecation chatter from the user's terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
