"""What the test double notices: each wrong use of the driver library, called directly."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drivers.double_library import DEVICE_NAME, IMAGE, Double, Launch
from drivers.fixtures import Seen

ILLEGAL_ADDRESS, INVALID_VALUE, INVALID_HANDLE, INVALID_CONTEXT = 700, 1, 400, 201
NOT_INITIALIZED, CONTEXT_IS_DESTROYED, NOT_SUPPORTED = 3, 709, 801
CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED = 900, 901
CAPTURE_IMPLICIT, CAPTURE_WRONG_THREAD = 906, 908
GLOBAL, THREAD_LOCAL = 0, 1  # modes of a capture


class Api:
    """The driver library with the primary context current."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")
        context = ctypes.c_void_p()
        self.ok("cuInit", 0)
        self.ok("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self.ok("cuCtxPushCurrent_v2", context)

    def call(self, function: str, *arguments: Any) -> int:
        """Call a function, pointers and handles as int; return its CUresult."""
        wide = [ctypes.c_size_t(one) if isinstance(one, int) else one for one in arguments]
        return getattr(self.library, function)(*wide)

    def ok(self, function: str, *arguments: Any) -> None:
        """Call a function that has to succeed."""
        assert self.call(function, *arguments) == 0

    def make(self, function: str, *arguments: Any) -> int:
        """Call a function that writes a pointer or handle, and return that."""
        out = ctypes.c_size_t()
        self.ok(function, ctypes.byref(out), *arguments)
        return out.value


def kernel(double: Double, api: Api, do: Callable[[Launch], object]) -> Callable[..., int]:
    """Load a kernel (pointer); return a function that launches it on a stream."""
    double.declare({"k": [8]})
    double.on_launch(do)
    module = api.make("cuModuleLoadData", IMAGE)
    function = api.make("cuModuleGetFunction", module, b"k")

    def launch(stream: int, pointer: int) -> int:
        value = ctypes.c_size_t(pointer)
        values = (ctypes.c_void_p * 1)(ctypes.addressof(value))
        return api.call("cuLaunchKernel", function, 1, 1, 1, 32, 1, 1, 0, stream, values, None)

    return launch


def use_after_free(double: Double, name: str) -> list[int]:
    api = Api()
    stream, memory = api.make("cuStreamCreate", 1), api.make("cuMemAlloc_v2", 8)
    source, place = api.make("cuMemHostAlloc", 8, 0), ctypes.c_size_t()
    api.ok("cuMemcpyHtoDAsync_v2", memory, source, 8, stream)
    api.ok("cuMemFree_v2", memory)
    return [
        api.call("cuStreamSynchronize", stream),
        api.call("cuMemAlloc_v2", ctypes.byref(place), 8),
    ]


def free_twice(double: Double, name: str) -> list[int]:
    api = Api()
    memory, host = api.make("cuMemAlloc_v2", 8), api.make("cuMemHostAlloc", 8, 0)
    api.ok("cuMemFree_v2", memory)
    return [
        api.call("cuMemFree_v2", memory),
        api.call("cuMemFree_v2", host),
        api.call("cuMemFreeHost", host + 4),
    ]


def freed_argument(double: Double, name: str) -> list[int]:
    api = Api()
    launch, stream = kernel(double, api, lambda _: None), api.make("cuStreamCreate", 1)
    memory = api.make("cuMemAlloc_v2", 8)
    api.ok("cuMemFree_v2", memory)
    return [launch(stream, memory + 4), api.call("cuStreamSynchronize", stream)]


def wild_kernel(double: Double, name: str) -> list[int]:
    api = Api()
    memory, stream = api.make("cuMemAlloc_v2", 8), api.make("cuStreamCreate", 1)
    launch = kernel(double, api, lambda _: ctypes.memset(memory + 8, 0, 1))
    return [launch(stream, memory), api.call("cuStreamSynchronize", stream)]


def stranger_destroyed(double: Double, name: str) -> list[int]:
    api = Api()
    return [api.call("cuStreamDestroy_v2", double.foreign_stream())]


def destroyed_twice(double: Double, name: str) -> list[int]:
    api = Api()
    stream, event = api.make("cuStreamCreate", 1), api.make("cuEventCreate", 0)
    api.ok("cuStreamDestroy_v2", stream)
    api.ok("cuEventDestroy_v2", event)
    return [
        api.call("cuStreamDestroy_v2", stream),
        api.call("cuEventDestroy_v2", event),
        api.call("cuStreamSynchronize", stream),
    ]


def unloaded_kernel(double: Double, name: str) -> list[int]:
    api = Api()
    double.declare({"k": [8]})
    module = api.make("cuModuleLoadData", IMAGE)
    function = api.make("cuModuleGetFunction", module, b"k")
    api.ok("cuModuleUnload", module)
    launched = api.call("cuLaunchKernel", function, 1, 1, 1, 1, 1, 1, 0, 0, None, None)
    return [launched, api.call("cuModuleUnload", module)]


def no_context(double: Double, name: str) -> list[int]:
    api = Api()
    api.ok("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
    return [api.call("cuStreamSynchronize", 0)]


def released_too_often(double: Double, name: str) -> list[int]:
    api = Api()
    api.ok("cuDevicePrimaryCtxRelease_v2", 0)
    return [api.call("cuDevicePrimaryCtxRelease_v2", 0)]


def host_memory_mistaken(double: Double, name: str) -> list[int]:
    api = Api()
    memory, host = api.make("cuMemAlloc_v2", 8), ctypes.create_string_buffer(8)
    return [
        api.call("cuMemcpyHtoDAsync_v2", memory, memory, 8, 0),
        api.call("cuMemcpyHtoDAsync_v2", ctypes.addressof(host), memory, 8, 0),
    ]


def parameters_of_another_size(double: Double, name: str) -> list[int]:
    api = Api()
    double.declare({"k": [8, 4]})
    function = api.make("cuModuleGetFunction", api.make("cuModuleLoadData", IMAGE), b"k")
    data, size = ctypes.create_string_buffer(8), ctypes.c_size_t(8)
    pairs = (1, ctypes.addressof(data), 2, ctypes.addressof(size), 0)
    extra = (ctypes.c_void_p * 5)(*pairs)
    return [api.call("cuLaunchKernel", function, 1, 1, 1, 1, 1, 1, 0, 0, None, extra)]


def another_context(double: Double, name: str) -> list[int]:
    api = Api()
    memory, host = api.make("cuMemAlloc_v2", 8), api.make("cuMemHostAlloc", 8, 0)
    stream, event = api.make("cuStreamCreate", 1), api.make("cuEventCreate", 0)
    launch = kernel(double, api, lambda _: None)
    api.make("cuCtxCreate_v4", None, 0, 0)
    return [
        api.call("cuMemFree_v2", memory),
        api.call("cuMemFreeHost", host),
        api.call("cuStreamSynchronize", stream),
        api.call("cuEventRecord", event, 0),
        launch(0, memory),
    ]


def released_context(double: Double, name: str) -> list[int]:
    api = Api()
    api.ok("cuDevicePrimaryCtxRelease_v2", 0)
    return [api.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))]


def pageable_memory(double: Double, name: str) -> list[int]:
    api = Api()
    memory, host = api.make("cuMemAlloc_v2", 8), ctypes.create_string_buffer(8)
    return [
        api.call("cuMemcpyHtoDAsync_v2", memory, ctypes.addressof(host), 8, 0),
        api.call("cuMemcpyDtoHAsync_v2", ctypes.addressof(host), memory, 8, 0),
    ]


def end_of_capture(api: Api, stream: int) -> int:
    return api.call("cuStreamEndCapture", stream, ctypes.byref(ctypes.c_size_t()))


def freed_in_capture(double: Double, name: str) -> list[int]:
    api = Api()
    stream, memory = api.make("cuStreamCreate", 1), api.make("cuMemAlloc_v2", 8)
    api.ok("cuStreamBeginCapture_v2", stream, THREAD_LOCAL)
    return [api.call("cuMemFree_v2", memory), end_of_capture(api, stream)]


def capture_ended_elsewhere(double: Double, name: str) -> list[int]:
    api = Api()
    stream, seen = api.make("cuStreamCreate", 1), []
    context = ctypes.c_void_p()
    api.ok("cuCtxGetCurrent", ctypes.byref(context))
    api.ok("cuStreamBeginCapture_v2", stream, THREAD_LOCAL)

    def end() -> None:
        api.ok("cuCtxPushCurrent_v2", context)
        seen.append(end_of_capture(api, stream))

    worker = threading.Thread(target=end)
    worker.start()
    worker.join()
    return [*seen, end_of_capture(api, stream)]


def default_stream_in_capture(double: Double, name: str) -> list[int]:
    api = Api()
    launch, stream = kernel(double, api, lambda _: None), api.make("cuStreamCreate", 0)
    api.ok("cuStreamBeginCapture_v2", stream, GLOBAL)
    return [launch(0, 0), end_of_capture(api, stream)]


def used_after_a_fork(double: Double, name: str) -> list[int]:
    api = Api()
    child = os.fork()
    if child == 0:
        os._exit(api.call("cuInit", 0))
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), api.call("cuInit", 0)]


def strange_argument(double: Double, name: str) -> list[int]:
    """Memory of another context, of the same device."""
    api = Api()
    launch, stream = kernel(double, api, lambda _: None), api.make("cuStreamCreate", 1)
    api.make("cuCtxCreate_v4", 0, 0, 0)
    memory = api.make("cuMemAlloc_v2", 8)
    api.ok("cuCtxPopCurrent_v2", 0)
    return [launch(stream, memory), api.call("cuStreamSynchronize", stream)]


def not_in_the_double(double: Double, name: str) -> list[int]:
    return [Api().call("cuLaunchGrid", 0, 1, 1)]


WRONG = [
    (use_after_free, [ILLEGAL_ADDRESS, ILLEGAL_ADDRESS], ["use after free of d"]),
    (
        free_twice,
        [INVALID_VALUE] * 3,
        ["double free of d", "not the start of an allocation", "not the start of an allocation"],
    ),
    (freed_argument, [0, ILLEGAL_ADDRESS], ["k parameter 0: use after free of d"]),
    (wild_kernel, [0, 0], ["k: wrote outside d"]),
    (stranger_destroyed, [0], ["a stream of the caller's was destroyed"]),
    (
        destroyed_twice,
        [INVALID_HANDLE] * 3,
        ["use of a stream that", "use of an event that", "use of a stream that"],
    ),
    (unloaded_kernel, [INVALID_HANDLE] * 2, ["use of a kernel whose module", "unloaded twice"]),
    (no_context, [INVALID_CONTEXT], ["no context is current"]),
    (released_too_often, [INVALID_CONTEXT], ["released more often than retained"]),
    (
        host_memory_mistaken,
        [INVALID_VALUE] * 2,
        ["is device memory, not host memory", "an address that is not device memory"],
    ),
    (parameters_of_another_size, [INVALID_VALUE], ["8 bytes of parameters, not 12"]),
    (
        another_context,
        [INVALID_VALUE, INVALID_VALUE, INVALID_HANDLE, INVALID_HANDLE, INVALID_HANDLE],
        [f"use of {thing}" for thing in ("d", "h", "a stream", "an event", "kernel k in another")],
    ),
    (released_context, [CONTEXT_IS_DESTROYED], ["the current context has been released"]),
    (pageable_memory, [0, 0], ["cuMemcpyHtoDAsync: from or to page", "cuMemcpyDtoHAsync: from or"]),
    (
        freed_in_capture,
        [CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED],
        ["cuMemFree while s"],
    ),
    (capture_ended_elsewhere, [CAPTURE_WRONG_THREAD, 0], []),
    (
        default_stream_in_capture,
        [CAPTURE_IMPLICIT, CAPTURE_INVALIDATED],
        ["use of the legacy stream while a blocking stream is being captured"],
    ),
    (used_after_a_fork, [NOT_INITIALIZED, 0], []),
    (strange_argument, [0, ILLEGAL_ADDRESS], ["k parameter 0: d3+0 is memory of another context"]),
    (not_in_the_double, [NOT_SUPPORTED], ["cuLaunchGrid is not part of the double"]),
]


@pytest.mark.parametrize(
    ("function", "results", "errors"), WRONG, ids=[case[0].__name__ for case in WRONG]
)
def test_a_wrong_use_is_seen(
    run_in_double: Callable[..., Seen], function: Any, results: list[int], errors: list[str]
) -> None:
    seen = run_in_double(function, "none")
    assert seen.result == results
    assert len(seen.errors) == len(errors)
    for found, part in zip(seen.errors, errors, strict=True):
        assert part in found


def leave_everything(double: Double, name: str) -> None:
    api = Api()
    api.make("cuMemAlloc_v2", 24)
    api.make("cuMemHostAlloc", 8, 0)
    stream = api.make("cuStreamCreate", 1)
    api.make("cuEventCreate", 0)
    api.make("cuModuleLoadData", IMAGE)
    api.ok("cuStreamBeginCapture_v2", stream, 2)
    graph = ctypes.c_size_t()
    api.ok("cuStreamEndCapture", stream, ctypes.byref(graph))
    api.make("cuGraphInstantiateWithFlags", graph.value, 0)


def test_leaks_are_listed(run_in_double: Callable[..., Seen]) -> None:
    seen = run_in_double(leave_everything, "none")
    assert seen.errors == []
    assert sorted(seen.leaks[:2]) == [  # in the order of their addresses
        "device memory d1+0 of 24 bytes",
        "pinned memory h2+0 of 8 bytes",
    ]
    assert [leak.rstrip("0123456789") for leak in seen.leaks[2:]] == [
        "stream s",
        "event e",
        "module o",
        "graph g",
        "executable graph g",
        "primary context of device 0, retained 1 times",
        "1 contexts still current in this thread",
    ]


def handle_again(double: Double, name: str) -> list[Any]:
    """A stream with the handle of one that was destroyed with work left, which a free waits for."""
    api, done = Api(), []
    launch = kernel(double, api, lambda one: done.append(one.parameters[0]))
    first = api.make("cuStreamCreate", 1)
    launch(first, 1)
    api.ok("cuStreamDestroy_v2", first)
    second = api.make("cuStreamCreate", 1)
    api.ok("cuStreamSynchronize", second)
    found = [first == second, list(done)]
    api.ok("cuMemFree_v2", api.make("cuMemAlloc_v2", 8))
    return [*found, done]


def test_handles_come_again_and_freeing_waits_where_asked_for(
    run_in_double: Callable[..., Seen],
) -> None:
    seen = run_in_double(handle_again, "none", reuse_streams=1, free_waits=1)
    assert seen.result == [True, [], [1]]
    assert run_in_double(handle_again, "none").result == [False, [], []]


def order(double: Double, name: str) -> list[str]:
    api = Api()
    seen: list[int] = []
    launch = kernel(double, api, lambda one: seen.append(one.parameters[0]))
    streams = [api.make("cuStreamCreate", 1) for _ in range(2)]
    for number in range(6):
        launch(streams[number % 2], number)
    for stream in streams:
        api.ok("cuStreamSynchronize", stream)
    return seen


def test_seeds_give_different_orders_that_all_streams_allow(
    run_in_double: Callable[..., Seen],
) -> None:
    orders = [run_in_double(order, "none", seed=seed).result for seed in range(8)]
    assert orders[0] == [0, 2, 4, 1, 3, 5]  # seed 0: only what is waited for
    assert len({tuple(one) for one in orders}) > 3
    for one in orders:
        assert [number for number in one if number % 2 == 0] == [0, 2, 4]
        assert [number for number in one if number % 2] == [1, 3, 5]


def asked_again(double: Double, name: str) -> list[int]:
    api = Api()
    launch, stream = kernel(double, api, lambda _: None), api.make("cuStreamCreate", 1)
    launch(stream, 0)
    launch(stream, 0)
    return [api.call("cuStreamQuery", stream) for _ in range(3)]


def test_asking_again_and_again_comes_to_an_end(run_in_double: Callable[..., Seen]) -> None:
    assert run_in_double(asked_again, "none").result == [600, 600, 0]  # CUDA_ERROR_NOT_READY


def test_the_double_says_what_it_is() -> None:
    sources = Path(__file__).parent / "double"
    assert "not a GPU" in DEVICE_NAME
    assert f'kName[] = "{DEVICE_NAME}"' in (sources / "device.cpp").read_text("utf-8")
