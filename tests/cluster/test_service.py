"""What the service decodes and refuses, in this process; test_ray_serve.py asks it over HTTP."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from odin_engines.bundle import Bundle
from odin_engines.errors import OdinError
from odin_runtime.image_files import decode
from odin_runtime.ray import DECODERS, FORMATS, OdinService, _Metrics
from odin_runtime.scorer import Scorer

Images = Callable[..., np.ndarray]


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def ico_of(png: bytes) -> bytes:
    """An ICO of 16x16 pixels, as its beginning says, that holds this PNG."""
    header = struct.pack("<3H4B2H2I", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(png), 22)
    return header + png


@pytest.mark.parametrize("kind", FORMATS)
def test_too_many_pixels_are_refused_before_they_are_decoded(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = encoded(Image.new("L", (50, 40)), kind)
    at_most = {"formats": FORMATS, "most_pixels": 2000}
    assert decode(io.BytesIO(body), "a", 3, **at_most).shape == (40, 50, 3)  # type: ignore[arg-type]

    def load(image: Image.Image) -> None:
        raise AssertionError(f"{image} is decoded")

    for each in {type(Image.open(io.BytesIO(body))), Image.Image}:
        monkeypatch.setattr(each, "load", load)
    with pytest.raises(OdinError, match=r"^a: 40x50 pixels, more than 1,999: scale"):
        decode(io.BytesIO(body), "a", 3, formats=FORMATS, most_pixels=1999)


@pytest.mark.filterwarnings("ignore:Image was not the expected size")
def test_formats_that_may_hold_larger_pictures_than_they_say_are_not_read() -> None:
    large, small = (encoded(Image.new("1", (90, 90)), kind) for kind in ("png", "tiff"))
    for body in (ico_of(large), small):
        assert Image.open(io.BytesIO(body)).format in ("ICO", "TIFF")
        with pytest.raises(OdinError, match=r"^a cannot be read as an image: .*want one of PNG"):
            decode(io.BytesIO(body), "a", 3, formats=FORMATS, most_pixels=1000)


class Request:
    """Of Starlette's, what the service asks for: a body that comes in parts."""

    def __init__(self, *parts: bytes) -> None:
        self.left = list(parts)

    async def stream(self) -> AsyncIterator[bytes]:
        while self.left:
            yield self.left.pop(0)


@pytest.fixture
def meters(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the metrics that are made; the service does without a cluster here."""
    reason = "Ray is not installed: pip install 'odin-ood[ray]'"
    serve = pytest.importorskip("ray.serve", reason=reason)
    metrics = pytest.importorskip("ray.serve.metrics", reason=reason)
    names: list[str] = []

    class Meter:
        def __init__(self, name: str, text: str, **_: Any) -> None:
            names.append(name)

        def set_default_tags(self, tags: dict[str, str]) -> None:
            assert tags

        def inc(self, value: float = 1, tags: dict[str, str] | None = None) -> None:
            assert value > 0

        def observe(self, value: float) -> None:
            assert value >= 0

    def batch(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        async def alone(image: np.ndarray) -> Any:
            return (await function([image]))[0]

        return alone

    monkeypatch.setattr(serve, "batch", batch)
    monkeypatch.setattr(metrics, "Counter", Meter)
    monkeypatch.setattr(metrics, "Histogram", Meter)
    return names


def answers(service: OdinService, *requests: Request) -> list[tuple[int, dict[str, Any]]]:
    """Status and answer of requests that come at once."""

    async def ask() -> list[Any]:
        return await asyncio.gather(*map(service, requests))

    return [(found.status_code, json.loads(found.body)) for found in asyncio.run(ask())]


@pytest.mark.usefixtures("meters")
def test_limits_of_a_body(tiny_bundle: Bundle, raw_images: Images) -> None:
    body = encoded(Image.fromarray(raw_images(1)[0]), "png")
    service = OdinService(tiny_bundle.path, batch_size=4, most_bytes=len(body), most_pixels=32 * 32)
    many = Request(body, b"1", b"2")
    big = encoded(Image.new("1", (33, 32)), "png")
    scored, long, large = answers(service, Request(body[:9], body[9:]), many, Request(big))
    assert scored[0] == 200
    local = Scorer.open(tiny_bundle).score(raw_images(1))
    assert scored[1]["score"] == pytest.approx(float(local.score[0]), abs=1e-6)
    assert long == (413, {"error": f"the body has more than {len(body):,} bytes"})
    assert many.left == [b"2"]  # it is not read to its end
    assert large[0] == 400
    assert "the body: 32x33 pixels, more than 1,024" in large[1]["error"]


@pytest.mark.usefixtures("meters")
def test_only_a_few_are_decoded_at_once(
    tiny_bundle: Bundle, raw_images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, now, most = threading.Lock(), 0, 0

    def slow(*arguments: Any, **options: Any) -> np.ndarray:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with lock:
            now -= 1
        return decode(*arguments, **options)

    monkeypatch.setattr("odin_runtime.ray.decode", slow)
    service = OdinService(tiny_bundle.path, batch_size=16)
    body = encoded(Image.fromarray(raw_images(1)[0]), "png")
    found = answers(service, *(Request(body) for _ in range(4 * DECODERS)))
    assert {status for status, _ in found} == {200}
    assert most == DECODERS


def test_flagged_images_are_told_of_calibrated_bundles_alone(
    tiny_bundle: Bundle, calibrated: Bundle, raw_images: Images, meters: list[str]
) -> None:
    for bundle, told in ((tiny_bundle, False), (calibrated, True)):
        meters.clear()
        scorer = Scorer.open(bundle)
        _Metrics(scorer).take(scorer.score(raw_images(9)).arrays())
        assert ("odin_flagged_images" in meters) == told
        assert "odin_images" in meters
