"""The CUDA kernels from Python: one function a kernel, queued on a stream.

What each computes is documented in runtime/include/odin/kernels.h, which the block and grid sizes
here follow. Tensors are dense and on the device, given by address; 0 is "may be NULL" there.
"""

from __future__ import annotations

from importlib.resources import files

import numpy as np

from odin_engines.errors import OdinError
from odin_runtime.driver import Argument, Driver, Pointer, Stream

FATBIN = "odin_kernels.fatbin"
# Of an element, by the suffix of the kernels' names.
ITEM_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
NORMALIZE_BLOCK, PERTURB_BLOCK, SCORE_BLOCK, FIRST_ORDER_BLOCK = 256, 256, 128, 256
SCORE_WARP_CLASSES = 1024  # rows of more classes take a whole block
MOST_BLOCKS = 4096
_GROUP_BYTES = 16
_WARP = 32


def fat_binary() -> bytes:
    """Return the compiled kernels that the package carries.

    Raises:
        OdinError: the package was built without nvcc.
    """
    file = files("odin_runtime") / FATBIN
    if not file.is_file():
        raise OdinError(
            f"odin_runtime holds no CUDA kernels ({FATBIN}): it was built without nvcc; install "
            "nvcc ('pip install nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-crt "
            "nvidia-cuda-cccl nvidia-nvvm') and then odin-ood again"
        )
    return file.read_bytes()


def grid_size(work: int, per_block: int) -> int:
    """The number of blocks for some work; with the most blocks they take turns."""
    return min(max(-(-work // per_block), 1), MOST_BLOCKS)


class Kernels:
    """The kernels for tensors of one type, loaded on a device.

    Attributes:
        suffix: "f32", "f16" or "bf16": the type of all tensors that are called T below.
    """

    def __init__(self, driver: Driver, image: bytes, suffix: str = "f32") -> None:
        """Load them.

        Args:
            driver: of the device.
            image: a fat binary, as `fat_binary` gives it, or PTX.
            suffix: of the type T.

        Raises:
            OdinError: the type is unknown, or the device does not take the binary.
        """
        if suffix not in ITEM_BYTES:
            raise OdinError(f"no kernels for {suffix!r}; choose from {', '.join(ITEM_BYTES)}")
        self.suffix = suffix
        self._driver = driver
        self._module = driver.load(image)
        try:
            self._kernels = {
                name: self._module.kernel(f"odin_{name}_{suffix}")
                for name in ("normalize", "perturb", "score", "first_order")
            }
        except OdinError:
            self._module.close()
            raise
        self._group = _GROUP_BYTES // ITEM_BYTES[suffix]

    def close(self) -> None:
        """Unload them; a second call does nothing."""
        self._module.close()

    def normalize(
        self,
        pixels: int,
        images: int,
        scale: int,
        offset: int,
        *,
        count: int,
        plane: int,
        channels: int,
        stream: Stream,
    ) -> None:
        """Queue images = pixels * scale - offset, channels last to channels first.

        Args:
            pixels: uint8 (count, plane, channels).
            images: T (count, channels, plane), written.
            scale, offset: float32 (channels): 1 / (255 std) and mean / std.
        """
        arguments = [*map(Pointer, (pixels, images, scale, offset)), *_sizes(count, plane)]
        grid = grid_size(count * plane, NORMALIZE_BLOCK * self._group)
        self._launch("normalize", grid, NORMALIZE_BLOCK, [*arguments, np.int32(channels)], stream)

    def perturb(
        self,
        images: int,
        gradient: int,
        perturbed: int,
        steps: int,
        channel_scale: int,
        *,
        count: int,
        plane: int,
        channels: int,
        magnitudes: int,
        stream: Stream,
        low: int = 0,
        high: int = 0,
    ) -> None:
        """Queue ODIN's perturbation (ICLR 2018, equation 2) for several magnitudes.

        Args:
            images, gradient: T (count, channels, plane).
            perturbed: T (magnitudes, count, channels, plane), written.
            steps: float32 (magnitudes).
            channel_scale: float32 (channels): 1 / std.
            low, high: float32 (channels), the range to clamp to, or 0.
        """
        pointers = (images, gradient, perturbed, steps, channel_scale, low, high)
        arguments = [*map(Pointer, pointers), *_sizes(count, plane)]
        arguments += [np.int32(channels), np.int32(magnitudes)]
        grid = grid_size(count * channels * plane, PERTURB_BLOCK * self._group)
        self._launch("perturb", grid, PERTURB_BLOCK, arguments, stream)

    def score(
        self,
        logits: int,
        *,
        rows: int,
        classes: int,
        stream: Stream,
        temperature: float = 1.0,
        seed_scale: float = 1.0,
        score: int = 0,
        baseline: int = 0,
        label: int = 0,
        energy: int = 0,
        seed: int = 0,
    ) -> None:
        """Queue what the logits tell; each output that is 0 is left out.

        Args:
            logits: T (rows, classes).
            temperature: of `score` and `seed`.
            seed_scale: of `seed`.
            score: float32 (rows): the largest softmax(logits / temperature), written.
            baseline: float32 (rows): the largest softmax(logits), written.
            label: int64 (rows): the index of the first largest logit, written.
            energy: float32 (rows): log sum exp(logits), written.
            seed: T (rows, classes): the gradient at the logits, written.
        """
        pointers = map(Pointer, (logits, score, baseline, label, energy, seed))
        scalars = [np.float32(temperature), np.float32(seed_scale)]
        rows_per_block = SCORE_BLOCK // _WARP if classes <= SCORE_WARP_CLASSES else 1
        arguments = [*pointers, *scalars, *_sizes(rows, classes)]
        self._launch("score", grid_size(rows, rows_per_block), SCORE_BLOCK, arguments, stream)

    def first_order(
        self,
        gradient: int,
        channel_scale: int,
        *,
        count: int,
        plane: int,
        channels: int,
        magnitudes: int,
        stream: Stream,
        probability: int = 0,
        steps: int = 0,
        total: int = 0,
        score: int = 0,
    ) -> None:
        """Queue the first-order score for several magnitudes.

        Args:
            gradient: T (count, channels, plane).
            channel_scale: float32 (channels): 1 / std.
            probability: float32 (count); needed for `score`.
            steps: float32 (magnitudes); needed for `score`.
            total: float32 (count): the sums of |gradient| channel_scale, written; or 0.
            score: float32 (magnitudes, count): probability exp(steps total), written; or 0.
        """
        pointers = (gradient, channel_scale, probability, steps, total, score)
        arguments = [*map(Pointer, pointers), *_sizes(count, plane)]
        arguments += [np.int32(channels), np.int32(magnitudes)]
        self._launch("first_order", grid_size(count, 1), FIRST_ORDER_BLOCK, arguments, stream)

    def _launch(
        self, name: str, grid: int, block: int, arguments: list[Argument], stream: Stream
    ) -> None:
        self._driver.launch(self._kernels[name], grid, block, arguments, stream)


def _sizes(*sizes: int) -> list[Argument]:
    return [np.int64(size) for size in sizes]
