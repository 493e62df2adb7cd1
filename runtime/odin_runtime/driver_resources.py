"""What both drivers share: the list of what is open, and memory that frees itself once."""

from __future__ import annotations

import ctypes
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np

from odin_engines.errors import OdinError

T = TypeVar("T")


def own(thing: object, kind: type[T]) -> T:
    """Return `thing`, which a driver of this kind has made.

    Raises:
        OdinError: it is another driver's.
    """
    if not isinstance(thing, kind):
        raise OdinError(
            f"a {type(thing).__name__} was given where a {kind.__name__} is needed; use streams, "
            "events and kernels with the driver that made them"
        )
    return thing


class Closable(Protocol):
    """Anything that a driver hands out and that has to be given back."""

    def release(self) -> None:
        """Give it back to CUDA, without waiting; a second call does nothing."""


class Ledger:
    """What a driver has handed out and not got back."""

    def __init__(self) -> None:
        self._open: dict[int, Closable] = {}

    def add(self, resource: Closable) -> None:
        """Remember a resource."""
        self._open[id(resource)] = resource

    def remove(self, resource: Closable) -> bool:
        """Forget a resource; False if it had been given back before."""
        return self._open.pop(id(resource), None) is not None

    def release_all(self) -> list[OdinError]:
        """Give all back, the youngest first; return what went wrong."""
        errors = []
        for resource in reversed(list(self._open.values())):
            try:
                resource.release()
            except OdinError as error:
                errors.append(error)
        return errors


class Resource(ABC):
    """Something of CUDA's that a driver has handed out, and that is destroyed once.

    Attributes:
        what: it is, with an article, for messages.
    """

    what = ""

    def __init__(self, ledger: Ledger, raw: Any) -> None:
        """Take over what the driver's package knows it by."""
        self._ledger = ledger
        self._raw = raw  # None once it is destroyed
        ledger.add(self)

    def check_open(self) -> None:
        """Check that it has not been closed.

        Raises:
            OdinError: it has.
        """
        if self._raw is None:
            raise OdinError(f"{self.what} is used after it was closed; close it later")

    @property
    def raw(self) -> Any:
        """What the driver's package knows it by.

        Raises:
            OdinError: it has been closed.
        """
        self.check_open()
        return self._raw

    def close(self) -> None:
        """Destroy it; a second call does nothing."""
        self.release()

    def release(self) -> None:
        """Destroy it, without waiting."""
        if self._ledger.remove(self):
            self._destroy(f"closing {self.what}")

    @abstractmethod
    def _destroy(self, doing: str) -> None:
        """Destroy it and set `_raw` to None; `doing` says it, for an error."""


class OpenStreams:
    """The streams that a driver has handed out and that somebody still holds."""

    def __init__(self) -> None:
        self._streams: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock = threading.Lock()

    def add(self, stream: Any) -> None:
        """Remember a stream, as long as it is not dropped."""
        with self._lock:
            self._streams.add(stream)

    def settle(self) -> None:
        """Wait for the work of all of them that are not being captured."""
        with self._lock:  # another thread may be adding one, which a set does not stand
            streams = list(self._streams)
        for stream in streams:
            stream.settle()


class OwnedMemory:
    """Device memory that `give_back` frees; `settle` waits for work that may use it."""

    kind = "device memory"

    def __init__(
        self,
        ledger: Ledger,
        address: int,
        size: int,
        give_back: Callable[[], None],
        settle: Callable[[], None],
    ) -> None:
        self.size = size
        self._ledger = ledger
        self._address = address
        self._give_back = give_back
        self._settle = settle
        self._freed = False
        ledger.add(self)

    @property
    def pointer(self) -> int:
        """The address.

        Raises:
            OdinError: the memory has been freed.
        """
        if self._freed:
            raise OdinError(
                f"{self.kind} of {self.size} bytes is used after it was freed; free it later, or "
                "allocate it again"
            )
        return self._address

    def free(self) -> None:
        """Wait for the device's work and give the memory back; a second call does nothing."""
        if not self._freed:
            try:
                self._settle()
            finally:  # also when the device has failed: the memory is not to be used again
                self.release()

    def release(self) -> None:
        """Give the memory back without waiting."""
        if self._ledger.remove(self):
            self._freed = True
            if self.size:
                self._give_back()

    def __enter__(self) -> OwnedMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.free()


class OwnedHostMemory(OwnedMemory):
    """Page-locked host memory."""

    kind = "pinned memory"

    @property
    def array(self) -> np.ndarray:
        """The memory, uint8 (size,).

        Raises:
            OdinError: the memory has been freed.
        """
        if not self.size:
            return np.empty(0, np.uint8)
        return np.ctypeslib.as_array((ctypes.c_uint8 * self.size).from_address(self.pointer))

    def __enter__(self) -> OwnedHostMemory:
        return self


def close_all(settle: Callable[[], None], ledger: Ledger, end: Callable[[], None]) -> None:
    """Close a driver: wait, give everything back, release the context.

    Raises:
        OdinError: the first thing that went wrong, after all has been tried.
    """
    errors = []
    try:
        settle()
    except OdinError as error:
        errors.append(error)
    errors += ledger.release_all()
    try:
        end()
    except OdinError as error:
        errors.append(error)
    if errors:
        raise errors[0]


def close_after(error: BaseException | None, close: Callable[[], None]) -> None:
    """Close at the end of a with block without hiding an error of the block.

    Raises:
        OdinError: closing failed and the block did not.
    """
    try:
        close()
    except OdinError as second:
        if error is None:
            raise
        error.add_note(f"closing the CUDA driver failed too: {second}")
