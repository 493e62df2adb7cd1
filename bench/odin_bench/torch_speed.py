"""PyTorch as the yardstick of speed: ODIN by autograd, as well as PyTorch does it.

Gradients of parameters are not computed. What is timed includes the copy of the images and the
conversion of the scores, as with the other engines.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from odin_bench.throughput import EAGER, PLAIN, Program
from odin_engines.engine import Arrays
from odin_engines.errors import OdinError
from odin_engines.spec import Method, Precision
from odin_engines.torch_reference import TorchReference


class Arranged(nn.Module):
    """A copy of a network that computes in a layout of tensors and a precision.

    Args:
        network: normalised images (N, C, H, W) -> logits (N, classes), float32.
        precision: "fp32", or "bf16" for PyTorch's autocast.
        layout: "eager" for contiguous tensors, or "channels_last".
    """

    def __init__(self, network: nn.Module, precision: Precision, layout: str) -> None:
        super().__init__()
        last = layout != PLAIN[1]
        self._format = torch.channels_last if last else torch.contiguous_format
        self._cast = precision == "bf16"
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.network.to(memory_format=self._format)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, float32."""
        images = images.contiguous(memory_format=self._format)
        with torch.autocast("cpu", torch.bfloat16, enabled=self._cast):
            return self.network(images).float()


def eager_programs(reference: TorchReference, methods: Sequence[Method]) -> list[Program]:
    """The forward pass and ODIN in each arrangement of `throughput.EAGER`."""
    programs: list[Program] = []
    for precision, layout in EAGER:
        network = Arranged(reference.network, precision, layout)
        programs += _programs(network, reference, precision, layout, methods)
    return programs


def compiled_programs(
    reference: TorchReference, methods: Sequence[Method], planes: np.ndarray
) -> list[Program]:
    """The same by torch.compile, in channels_last, compiled here for the first time.

    Args:
        reference, methods: as `eager_programs`.
        planes: the first batch that they are to be called with, normalised.

    Raises:
        OdinError: PyTorch cannot compile here, or not this network.
    """
    programs: list[Program] = []
    renew = _Renewal()
    for precision, layout in EAGER:
        if (precision, layout) == PLAIN:
            continue
        arranged = Arranged(reference.network, precision, layout)
        # Without fullgraph, PyTorch would run eagerly what it cannot compile, and not tell.
        network = cast("nn.Module", torch.compile(arranged, fullgraph=True, dynamic=False))
        name = f"{layout} compile"
        for program in _programs(network, reference, precision, name, methods):
            programs.append(replace(program, call=renew.before(program.call)))
    for program in programs:
        try:
            program.call({"images": planes})
        except Exception as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise OdinError(f"torch.compile fails here: {said[0]}") from error
    return programs


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let PyTorch compute with so many threads; None leaves their number to it."""
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def _programs(
    network: nn.Module,
    reference: TorchReference,
    precision: Precision,
    layout: str,
    methods: Sequence[Method],
) -> Iterator[Program]:
    def forward(feeds: Arrays) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(feeds["images"])).numpy()

    yield Program("torch", precision, None, forward, layout)
    for method in methods:
        session = TorchReference(network, replace(reference.spec, method=method))
        yield Program("torch", precision, method, session.run, layout)


class _Renewal:
    """Drops what was compiled for another batch size: PyTorch keeps a few sizes only."""

    def __init__(self) -> None:
        self._batch = 0

    def before(self, call: Callable[[Arrays], object]) -> Callable[[Arrays], object]:
        def renewed(feeds: Arrays) -> object:
            if len(feeds["images"]) != self._batch:
                torch.compiler.reset()
                self._batch = len(feeds["images"])
            return call(feeds)

        return renewed
