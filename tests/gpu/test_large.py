"""Tensors of more than 2^31 elements, whose indices and offsets do not fit in 32 bits.

A tensor is one chunk again and again; so must the results be, and the first of them those of the
host twin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from gpu.support import free_memory
from native.twins import Twins
from odin_runtime.driver import Driver, HostMemory, Memory, Stream
from odin_runtime.kernels import Kernels

pytestmark = pytest.mark.gpu
ELEMENTS = 2**31
IMAGES, CHANNELS, PLANE = 256, 3, 224 * 224  # of a chunk
ROWS, CLASSES = 1 << 16, 1000
STEP, TEMPERATURE = 0.25, 1000.0
GARBAGE = 0xA5
HALF = np.dtype(np.float16)


class Chunks:
    """Tensors on the device that are made of `count` chunks."""

    def __init__(self, driver: Driver, count: int, stack: ExitStack) -> None:
        self.driver, self.count, self._stack = driver, count, stack
        self.stream: Stream = driver.stream()
        stack.callback(self.stream.close)
        self._host: dict[int, HostMemory] = {}

    def host(self, size: int) -> HostMemory:
        if size not in self._host:
            self._host[size] = self.driver.pinned(size)
            self._stack.callback(self._host[size].free)
        return self._host[size]

    def tensor(self, chunk: np.ndarray) -> Memory:
        """All chunks are this one."""
        memory = self._stack.enter_context(self.driver.allocate(self.count * chunk.nbytes))
        host = self.host(chunk.nbytes)
        host.array[:] = chunk.reshape(-1).view(np.uint8)
        for place in range(0, memory.size, chunk.nbytes):
            self.driver.copy_to_device(
                memory.pointer + place, host.pointer, chunk.nbytes, self.stream
            )
        self.stream.synchronize()
        return memory

    def result(self, shape: tuple[int, ...], dtype: Any) -> Memory:
        """To be written: not what an earlier test left there."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.tensor(np.full(size, GARBAGE, np.uint8))

    def all_alike(self, memory: Memory) -> np.ndarray:
        """The bytes of the first chunk, once all others are seen to be the same."""
        size = memory.size // self.count
        host, first = self.host(size), np.zeros(0, np.uint8)
        for number in range(self.count):
            self.driver.copy_to_host(
                host.pointer, memory.pointer + number * size, size, self.stream
            )
            self.stream.synchronize()
            if number == 0:
                first = host.array.copy()
            assert np.array_equal(host.array, first), f"chunk {number} of {self.count} differs"
        return first


@pytest.fixture
def chunks(gpu: Driver) -> Iterator[Callable[[int, int], Chunks]]:
    """A function: elements in a chunk, bytes an element in all -> chunks for enough elements."""
    with ExitStack() as stack:

        def make(elements: int, element_bytes: int) -> Chunks:
            count = ELEMENTS // elements + 2
            needed, free = count * elements * element_bytes + (1 << 30), free_memory(gpu)
            if free < needed:
                pytest.skip(f"needs {needed >> 20} MiB of free GPU memory; there are {free >> 20}")
            return Chunks(gpu, count, stack)

        yield make


@pytest.fixture
def kernels(gpu: Driver, fat_binary: bytes) -> Iterator[Kernels]:
    loaded = Kernels(gpu, fat_binary, "f16")
    yield loaded
    loaded.close()


def test_perturb(chunks: Callable[..., Chunks], kernels: Kernels, twins: Twins) -> None:
    shape = (IMAGES, CHANNELS, PLANE)
    made = chunks(IMAGES * CHANNELS * PLANE, 3 * HALF.itemsize)
    rng = np.random.default_rng(1)
    x, g = (rng.standard_normal(shape, np.float32).astype(HALF) for _ in range(2))
    factors = np.array([STEP, 1.0, 2.0, 3.0], np.float32)  # the step, then the channels' scale
    images, gradient, small = made.tensor(x), made.tensor(g), made.tensor(factors)
    perturbed = made.result(shape, HALF)
    kernels.perturb(
        images.pointer,
        gradient.pointer,
        perturbed.pointer,
        small.pointer,
        small.pointer + 4,
        count=made.count * IMAGES,
        plane=PLANE,
        channels=CHANNELS,
        magnitudes=1,
        stream=made.stream,
    )
    found = made.all_alike(perturbed).view(HALF).reshape(shape)
    np.testing.assert_array_equal(found, twins.perturb(x, g, factors[:1], factors[1:])[0])


def test_score(chunks: Callable[..., Chunks], kernels: Kernels, twins: Twins) -> None:
    shape = (ROWS, CLASSES)
    made = chunks(ROWS * CLASSES, 2 * HALF.itemsize)
    values = np.random.default_rng(2).standard_normal(shape, np.float32).astype(HALF)
    logits, seed = made.tensor(values), made.result(shape, HALF)
    score, label = made.result((ROWS,), np.float32), made.result((ROWS,), np.int64)
    kernels.score(
        logits.pointer,
        rows=made.count * ROWS,
        classes=CLASSES,
        stream=made.stream,
        temperature=TEMPERATURE,
        score=score.pointer,
        label=label.pointer,
        seed=seed.pointer,
    )
    expected = twins.score(values, TEMPERATURE)
    found = made.all_alike(score).view(np.float32)
    np.testing.assert_allclose(found, expected["score"], rtol=5e-6)
    np.testing.assert_array_equal(made.all_alike(label).view(np.int64), expected["label"])
    seeds = made.all_alike(seed).view(HALF).reshape(shape)
    # Exponentials differ by an ulp; then a seed may round to its neighbour.
    np.testing.assert_allclose(
        seeds.astype(np.float32), expected["seed"].astype(np.float32), rtol=2.0**-10, atol=1e-7
    )
