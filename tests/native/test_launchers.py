"""The C library's launchers, the objects of the library itself, above a double of CUDA's runtime.

What each of the twelve hands to cudaLaunchKernel is compared with what the header promises: kernel,
grid, block, stream and the parameters in the kernel's order. Nothing is executed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from native.toolchain import INCLUDE, KERNELS, SOURCES, cxx, run
from native.twins import CODES, I64, PARAMETERS, POINTER, Library

STREAM = 0x5EA000
ILLEGAL_ADDRESS = 700
SIGNATURE = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_size_t,
    ctypes.c_void_p,
)


class Launch(NamedTuple):
    """As the double of cudaLaunchKernel saw it."""

    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_bytes: int
    stream: int | None
    parameters: list[Any]


# Sizes in the kernel's order, and the blocks for float32 and for the two types of 16 bits.
ROWS, PIXELS = 2**35 + 1, 2**33 + 5  # of which 32 bits would keep the smaller part
NORMALIZE = [
    ((3, 1024, 5), (3, 2)),  # 256 groups are 1024 or 2048 pixels
    ((3, 1025, 5), (4, 2)),
    ((1, 1, 1), (1, 1)),
    ((4096, 2048, 3), (4096, 4096)),
    ((2, PIXELS, 3), (4096, 4096)),
]
PERTURB = [
    ((2, 1024, 3, 7), (6, 3)),  # magnitudes take turns in a thread
    ((1, 1025, 3, 1), (4, 2)),
    ((1, 1, 1, 1), (1, 1)),
    ((2, PIXELS, 3, 7), (4096, 4096)),
]
SCORE = [
    ((8, 1024), (2, 2)),  # 4 rows a block
    ((9, 10), (3, 3)),
    ((9, 1025), (9, 9)),  # one
    ((ROWS, 1000), (4096, 4096)),
    ((2, PIXELS), (2, 2)),
]
FIRST_ORDER = [
    ((17, 1024, 3, 5), (17, 17)),
    ((4097, 1, 3, 5), (4096, 4096)),
    ((ROWS, 11, 3, 5), (4096, 4096)),
]
SIZES = {
    "normalize": NORMALIZE,
    "perturb": PERTURB,
    "score": SCORE,
    "first_order": FIRST_ORDER,
}
BLOCKS = {"normalize": 256, "perturb": 256, "score": 128, "first_order": 256}
EVERY = [(function, *each) for function, sizes in SIZES.items() for each in sizes]


@pytest.fixture(scope="module")
def library(cuda_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The library's own objects, linked with the double."""
    target = tmp_path_factory.mktemp("launchers") / "libodin_kernels.so"
    launchers = cuda_build / "odin_nvcc" / "launch.o"
    sources = [SOURCES / "api.cpp", SOURCES / "status.cpp", Path(__file__).with_name("cudart.cpp")]
    includes = [f"-I{folder}" for folder in (INCLUDE, KERNELS, SOURCES)]
    flags = ["-std=c++17", "-shared", "-fPIC", "-ffp-contract=off", "-Wl,--no-undefined"]
    run([cxx(), *flags, *includes, *sources, launchers, "-o", target])
    return Library(target)


@pytest.fixture
def launches(library: Library) -> Iterator[Callable[[int], list[Launch]]]:
    """A function: what cudaLaunchKernel is to return -> the launches from now on."""
    kept = []

    def begin(status: int) -> list[Launch]:
        seen: list[Launch] = []

        def note(kernel: bytes, shape: Any, addresses: Any, shared: int, stream: int | None) -> int:
            name = kernel.decode()
            types = PARAMETERS[name.removeprefix("odin_").rpartition("_")[0]]
            values = [
                ctypes.cast(addresses[number], ctypes.POINTER(of)).contents.value
                for number, of in enumerate(types)
            ]
            grid, block = tuple(shape[:3]), tuple(shape[3:6])
            seen.append(Launch(name, grid, block, shared, stream, values))
            return status

        kept.append(SIGNATURE(note))
        library.functions.test_on_launch(kept[-1])
        return seen

    yield begin
    library.functions.test_on_launch(None)


def arguments(function: str, sizes: tuple[int, ...]) -> list[Any]:
    """Pointers, each another, then the numbers, then the sizes."""
    pointers = [
        0x7000_0000_0000 + 0x1000 * number
        for number in range(1, PARAMETERS[function].count(POINTER) + 1)
    ]
    return [*pointers, *((1000.0, -0.5) if function == "score" else ()), *sizes]


@pytest.mark.parametrize("element", CODES)
@pytest.mark.parametrize(("function", "sizes", "blocks"), EVERY)
def test_what_is_launched(
    library: Library,
    launches: Callable[[int], list[Launch]],
    function: str,
    sizes: tuple[int, ...],
    blocks: tuple[int, int],
    element: str,
) -> None:
    seen, given = launches(0), arguments(function, sizes)
    launcher = getattr(library.functions, f"odin_{function}")
    assert launcher(CODES[element], *given, STREAM) == 0, library.last_error()
    grid = (blocks[element != "f32"], 1, 1)
    block = (BLOCKS[function], 1, 1)
    assert seen == [Launch(f"odin_{function}_{element}", grid, block, 0, STREAM, given)]


@pytest.mark.parametrize("function", PARAMETERS)
def test_null_pointers_and_the_default_stream(
    library: Library, launches: Callable[[int], list[Launch]], function: str
) -> None:
    """What may be null arrives as null."""
    optional = {"perturb": (5, 6), "score": (1, 2, 3, 4, 5), "first_order": (2, 4, 5)}
    given = arguments(function, SIZES[function][0][0])
    for number in optional.get(function, ()):
        given[number] = None
    seen = launches(0)
    assert getattr(library.functions, f"odin_{function}")(0, *given, None) == 0
    assert [(each.stream, each.parameters) for each in seen] == [(None, given)]


@pytest.mark.parametrize("function", PARAMETERS)
def test_nothing_is_launched_for_nothing(
    library: Library, launches: Callable[[int], list[Launch]], function: str
) -> None:
    given = arguments(function, SIZES[function][0][0])
    given[PARAMETERS[function].index(I64)] = 0
    seen = launches(0)
    assert getattr(library.functions, f"odin_{function}")(0, *given, STREAM) == 0
    assert seen == []


def test_a_failed_launch_is_told_and_forgotten(
    library: Library, launches: Callable[[int], list[Launch]]
) -> None:
    """The caller's own next check must not find the error again."""
    seen = launches(ILLEGAL_ADDRESS)
    status = library.functions.odin_score(0, *arguments("score", (4, 10)), STREAM)
    assert (status, len(seen)) == (7, 1)
    assert library.last_error() == (
        "odin_score: the launch, or work before it, failed: cudaErrorIllegalAddress: an address"
    )
    assert library.functions.test_last_error() == 0
