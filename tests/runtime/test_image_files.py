"""What image files and arrays become, by the channels that a network takes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from odin_engines.errors import OdinError
from odin_runtime.image_files import decode, read_npz

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def file_of(image: Image.Image, kind: str = "png", **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "CMYK"])
@pytest.mark.parametrize(("channels", "wanted"), [(1, "L"), (3, "RGB")])
def test_any_8_bit_mode_becomes_the_networks(mode: str, channels: int, wanted: str) -> None:
    """As Pillow converts, which is what networks are trained with."""
    kind = "tiff" if mode == "CMYK" else "png"
    file = file_of(Image.fromarray(PIXELS).convert(mode), kind)
    found = decode(file, "it", channels)
    assert found.dtype == np.uint8
    assert found.shape == (5, 7, channels)
    assert found.flags.c_contiguous
    expected = np.asarray(Image.open(file).convert(wanted)).reshape(found.shape)
    np.testing.assert_array_equal(found, expected)


def test_grey_files_are_the_same_grey_in_both() -> None:
    grey = PIXELS[..., 0]
    found = decode(file_of(Image.fromarray(grey)), "it", 1)
    np.testing.assert_array_equal(found[..., 0], grey)
    colours = decode(file_of(Image.fromarray(grey)), "it", 3)
    np.testing.assert_array_equal(colours, np.repeat(found, 3, axis=2))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("pixels", "kind"),
    [
        (np.full((4, 4), 700, np.uint16), "png"),
        (np.full((4, 4), 700, np.uint16), "tiff"),
        (np.full((4, 4), 70000, np.int32), "tiff"),
        (np.full((4, 4), 0.5, np.float32), "tiff"),
    ],
)
def test_more_than_8_bits_are_refused_and_not_clipped(
    pixels: np.ndarray, kind: str, channels: int
) -> None:
    with pytest.raises(OdinError, match=r"^it: pixels of mode [IF].*want 8 bits .*: scale them"):
        decode(file_of(Image.fromarray(pixels), kind), "it", channels)


def test_colours_of_16_bits_are_read_in_8() -> None:
    """Pillow writes no such file: the PNG is made here, of one row."""
    import struct
    import zlib

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    row = np.array([[0, 700, 32768], [65535, 65280, 255]], ">u2")
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    content += chunk(b"IDAT", zlib.compress(b"\0" + row.tobytes())) + chunk(b"IEND", b"")
    found = decode(io.BytesIO(content), "it", 3)
    np.testing.assert_array_equal(found[0], row >> 8)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["png", "tiff", "webp"])
def test_pictures_are_upright(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if kind == "webp" else {}
    file = file_of(Image.fromarray(PIXELS), kind, exif=exif, **lossless)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    np.testing.assert_array_equal(decode(file, "it", 3), expected)
    grey = np.asarray(ImageOps.exif_transpose(Image.open(file).convert("L")))
    assert decode(file, "it", 1).shape == (*grey.shape, 1)


@pytest.mark.filterwarnings("ignore")  # of Pillow, about the damage
@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
@pytest.mark.parametrize(
    "exif", [b"no header", b"Exif\0\0II*\0", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\0"]
)
def test_damaged_exif_does_not_lose_the_picture(exif: bytes, kind: str) -> None:
    assert decode(file_of(Image.fromarray(PIXELS), kind, exif=exif), "it", 3).shape == PIXELS.shape


@pytest.mark.parametrize("channels", [2, 4])
def test_other_channels_want_arrays(channels: int) -> None:
    file = file_of(Image.fromarray(PIXELS))
    wanted = rf"network takes {channels}; .* x: uint8 \(N, H, W, {channels}\)"
    with pytest.raises(OdinError, match=wanted):
        decode(file, "it", channels)


@pytest.mark.parametrize(
    ("shape", "channels"), [((3, 6, 5), 1), ((3, 6, 5, 1), 1), ((3, 6, 5, 4), 4), ((3, 6, 5, 3), 3)]
)
def test_arrays_of_any_channels(shape: tuple[int, ...], channels: int, tmp_path: Path) -> None:
    images = np.arange(np.prod(shape)).astype(np.uint8).reshape(shape)
    np.savez(tmp_path / "a.npz", x=images)
    found, labels = read_npz(tmp_path / "a.npz", channels)
    np.testing.assert_array_equal(found, images.reshape(3, 6, 5, channels))
    assert labels is None


@pytest.mark.parametrize(("given", "channels"), [(3, 1), (1, 3), (4, 3)])
def test_arrays_of_other_channels(given: int, channels: int, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 6, 5, given), np.uint8))
    with pytest.raises(OdinError, match=rf"6, 5, {given}\); want uint8 \(N, H, W, {channels}\)"):
        read_npz(tmp_path / "a.npz", channels)
