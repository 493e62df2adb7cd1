"""Memory of the GPU pipelines: all of it is allocated when a pipeline is opened."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from odin_engines.spec import Spec
from odin_runtime.driver import Driver, Event, HostMemory, Memory, Stream

ALIGNMENT = 256  # of every tensor: TensorRT asks for it
# Where a slot's settings lie, in bytes.
TEMPERATURE, MAGNITUDE, STEPS = 0, ALIGNMENT, 2 * ALIGNMENT
MOST_MAGNITUDES = 1024


def aligned(size: int) -> int:
    """A size in bytes, rounded up."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class Regions:
    """One allocation on the device, cut into named parts."""

    def __init__(self, driver: Driver, sizes: Mapping[str, int]) -> None:
        offsets, end = {}, 0
        for name, size in sizes.items():
            offsets[name] = end
            end += aligned(size)
        self._memory = driver.allocate(end)
        self._offsets = offsets

    def __getitem__(self, name: str) -> int:
        return self._memory.pointer + self._offsets[name]

    def free(self) -> None:
        """Free it."""
        self._memory.free()


@dataclass(frozen=True)
class OutputLayout:
    """Where one batch's results lie: labels, then rows of float32.

    Attributes:
        count: images in the batch, padding included.
        rows: one for each magnitude, one for the baseline, one for each further score.
    """

    count: int
    rows: int

    @property
    def pitch(self) -> int:
        """Bytes from a row to the next."""
        return aligned(4 * self.count)

    @property
    def first_row(self) -> int:
        """Bytes before the first row."""
        return aligned(8 * self.count)

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self.first_row + self.rows * self.pitch

    def row(self, index: int) -> int:
        """Bytes before a row."""
        return self.first_row + index * self.pitch


def constants(driver: Driver, spec: Spec, zeros: int, stream: Stream) -> Regions:
    """Put what never changes on the device.

    Parts, float32: `scale` = 1 / (255 std), `offset` = mean / std, `inverse_std`, `one`, `zeros`.
    """
    mean, std = np.asarray(spec.mean), np.asarray(spec.std)
    parts = {
        "scale": 1 / (255 * std),
        "offset": mean / std,
        "inverse_std": 1 / std,
        "one": np.ones(1),
        "zeros": np.zeros(zeros),
    }
    values = {name: part.astype(np.float32).view(np.uint8) for name, part in parts.items()}
    with ExitStack() as stack:
        regions = Regions(driver, {name: len(value) for name, value in values.items()})
        stack.callback(regions.free)
        for name, value in values.items():
            host = driver.pinned(len(value))
            with host:
                host.array[:] = value
                driver.copy_to_device(regions[name], host.pointer, len(value), stream)
                stream.synchronize()
        stack.pop_all()
    return regions


class Slot:
    """What one batch needs of its own while others are copied or computed.

    Attributes:
        index: of the slot.
        device: parts `input` and `settings`.
        host_input: page-locked, for what is copied to `input`.
        output: results, as an OutputLayout says; `host_output` for their copy.
        uploaded, computed, downloaded: events after each of the three steps.
        reads_settings: whether the copy of the settings may still be reading the host's memory.
    """

    def __init__(self, driver: Driver, index: int, input_bytes: int) -> None:
        self.index = index
        self._driver = driver
        self._settings: bytes | None = None
        self.reads_settings = False
        self.output: Memory | None = None
        self.host_output: HostMemory | None = None
        size = STEPS + 4 * MOST_MAGNITUDES
        with ExitStack() as stack:
            self.device = Regions(driver, {"input": input_bytes, "settings": size})
            stack.callback(self.device.free)
            self.host_input = driver.pinned(input_bytes)
            stack.callback(self.host_input.free)
            self._host_settings = driver.pinned(size)
            stack.callback(self._host_settings.free)
            stack.callback(self._free_output)
            self.uploaded, self.computed, self.downloaded = (self._event(stack) for _ in range(3))
            self._stack = stack.pop_all()

    def _event(self, stack: ExitStack) -> Event:
        event = self._driver.event()
        stack.callback(event.close)
        return event

    def grow(self, size: int) -> None:
        """Make room for results of so many bytes; nothing may be using the slot."""
        self._free_output()
        self.output = self._driver.allocate(size)
        self.host_output = self._driver.pinned(size)

    def _free_output(self) -> None:
        with ExitStack() as stack:
            for memory in (self.output, self.host_output):
                if memory is not None:
                    stack.callback(memory.free)
            self.output = self.host_output = None

    def set(self, temperature: float, magnitudes: tuple[float, ...], stream: Stream) -> None:
        """Queue putting temperature and magnitudes on the device, unless they are there."""
        values = np.zeros((STEPS // 4) + len(magnitudes), np.float32)
        values[TEMPERATURE // 4] = temperature
        values[MAGNITUDE // 4] = magnitudes[0]
        values[STEPS // 4 :] = magnitudes
        wanted = values.tobytes()
        if wanted == self._settings:
            return
        if self.reads_settings:
            self.uploaded.synchronize()
        self._settings = None  # unknown, if what follows fails
        host = self._host_settings
        host.array[: len(wanted)] = values.view(np.uint8)
        size = len(wanted)
        self._driver.copy_to_device(self.device["settings"], host.pointer, size, stream)
        self.uploaded.record(stream)
        self._settings, self.reads_settings = wanted, True

    def free(self) -> None:
        """Free all of it."""
        self._stack.close()
