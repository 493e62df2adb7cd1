"""The Ray Serve deployment behind HTTP on loopback.

    pytest tests/cluster --run-slow

Starting the cluster takes about 20 s, each service some 10 s.
"""

from __future__ import annotations

import io
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest

from odin_engines.bundle import Bundle
from odin_runtime import Scorer

pytest.importorskip("ray", reason="Ray is not installed: pip install 'odin-ood[ray]'")

import ray
from ray import serve

from odin_runtime.ray import OdinService, deployment
from runtime.small_bundles import bundle_of

pytestmark = pytest.mark.slow
Images = Callable[..., np.ndarray]
CLIENTS, EACH = 32, 6


@pytest.fixture(scope="module")
def port(cluster: Any) -> Iterator[int]:
    """Where Serve listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    # Both nodes are on this machine, which has each port once.
    serve.start(http_options={"host": "127.0.0.1", "port": number, "location": "HeadOnly"})
    yield number
    serve.shutdown()


@contextmanager
def running(application: Any, name: str) -> Iterator[str]:
    """The path of an application, while it runs."""
    serve.run(application, name=name, route_prefix=f"/{name}")
    try:
        yield f"/{name}"
    finally:
        serve.delete(name)


@pytest.fixture(scope="module")
def service(port: int, calibrated: Bundle) -> Iterator[str]:
    with running(deployment(calibrated.path, wait=0.02), "odin") as path:
        yield path


def ask(port: int, path: str, body: bytes, method: str = "POST") -> tuple[int, Any]:
    """Status and answer."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def encoded(image: np.ndarray, kind: str) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def decoded(body: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(body)).convert("RGB"))


def assert_as_local(answers: list[tuple[int, Any]], bundle: Bundle, images: np.ndarray) -> None:
    local = Scorer.open(bundle).score(images).arrays()
    assert [status for status, _ in answers] == [200] * len(images)
    for name, values in local.items():
        found = [answer[name] for _, answer in answers]
        # A score may move by its last bits, and a percentile then by many times as much.
        atol = 0.02 if name == "percentile" else 1e-6
        np.testing.assert_allclose(found, values, rtol=0, atol=atol, err_msg=name)
    assert all(answer.keys() == local.keys() for _, answer in answers)


def metrics(application: str) -> dict[str, float]:
    """What Ray tells Prometheus of an application, by name (and "le"), summed over the rest."""
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, float] = {}
    for node in ray.nodes():
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urlopen(address, timeout=10) as page:
            text = page.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.labels.get("application") == application:
                    name = f"{sample.name} {sample.labels.get('le', '')}".strip()
                    found[name] = found.get(name, 0) + sample.value
    return found


def test_one_image(service: str, port: int, calibrated: Bundle, raw_images: Images) -> None:
    image = raw_images(1, seed=3)
    answers = [ask(port, service, encoded(image[0], "png"))]
    assert_as_local(answers, calibrated, image)
    assert type(answers[0][1]["is_ood"]) is bool
    assert type(answers[0][1]["label"]) is int


def test_many_clients_are_scored_together(
    port: int, calibrated: Bundle, raw_images: Images
) -> None:
    images = raw_images(CLIENTS * EACH, seed=4)
    bodies = [encoded(image, "jpeg" if place % 2 else "png") for place, image in enumerate(images)]
    bad = [b"", b"no image", bodies[0][: len(bodies[0]) // 2]]
    with (
        running(deployment(calibrated.path, wait=0.02), "counted") as path,
        ThreadPoolExecutor(CLIENTS) as clients,
    ):
        answers = list(clients.map(lambda body: ask(port, path, body), bodies))
        refused = [ask(port, path, body)[0] for body in bad]
        told = _metrics_of(len(bodies), len(bad), "counted")
    assert_as_local(answers, calibrated, np.stack([decoded(body) for body in bodies]))
    assert refused == [400] * len(bad)
    # The sum of this histogram is Ray's guess from the buckets; its count is exact.
    assert CLIENTS * EACH / told["ray_serve_actual_batch_size_count"] > 2
    _assert_told(told, [answer for _, answer in answers])


def _metrics_of(answered: int, failed: int, application: str) -> dict[str, float]:
    """The metrics, once they have reached the page."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        told = metrics(application)
        counts = [told.get(f"ray_odin_{name}_total") for name in ("requests", "failed_requests")]
        if counts == [answered, failed] and told.get("ray_odin_images_total") == answered:
            time.sleep(2)  # they do not come all at once
            return metrics(application)
        time.sleep(0.5)
    raise AssertionError(f"after 60 s the metrics are {told}")


def _assert_told(told: dict[str, float], answers: list[dict[str, Any]]) -> None:
    scores = np.array([answer["score"] for answer in answers])
    assert told["ray_odin_images_total"] == len(answers)
    assert told["ray_odin_flagged_images_total"] == sum(answer["is_ood"] for answer in answers)
    assert 0 < told["ray_odin_flagged_images_total"] < len(answers)
    buckets = {
        name.split()[1]: count
        for name, count in told.items()
        if name.startswith("ray_odin_score_bucket_total ")
    }
    assert buckets.pop("+Inf") == len(answers)
    assert len(set(buckets.values())) > 5
    for end, count in buckets.items():
        near = np.abs(scores - float(end)) < 1e-6
        assert abs(count - (scores <= float(end)).sum()) <= near.sum()
    assert told["ray_odin_request_seconds_count"] == len(answers)


def test_a_network_of_grey_images(
    port: int, tmp_path_factory: pytest.TempPathFactory, raw_images: Images
) -> None:
    """Colours come in, and lie on their side; grey is scored, upright."""
    from PIL import Image

    bundle = bundle_of(1, tmp_path_factory.mktemp("grey") / "bundle")
    picture = Image.fromarray(raw_images(1, 8, 8)[0])
    turned, exif, file = picture.transpose(Image.Transpose.ROTATE_90), Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # turn it back by 90 degrees, clockwise
    turned.save(file, "png", exif=exif)
    with running(deployment(bundle.path), "grey") as path:
        answers = [ask(port, path, file.getvalue())]
    assert_as_local(answers, bundle, np.asarray(picture.convert("L"))[None, ..., None])


def test_bodies_of_many_pixels_or_bytes_are_refused_and_harm_nobody(
    service: str, port: int, calibrated: Bundle, raw_images: Images
) -> None:
    """21 kB of PNG that would be 700 MB decoded, and a body of 20 MB."""
    from PIL import Image

    file, images = io.BytesIO(), raw_images(8, seed=6)
    Image.new("1", (13_000, 13_000)).save(file, "png")
    bad = [file.getvalue(), bytes(20_000_000)] * 4
    bodies = [
        body
        for image, each in zip(images, bad, strict=True)
        for body in (encoded(image, "png"), each)
    ]
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda body: ask(port, service, body), bodies))
    assert_as_local(answers[0::2], calibrated, images)
    assert [status for status, _ in answers[1::2]] == [400, 413] * 4
    assert "13000x13000 pixels, more than 16,777,216" in answers[1][1]["error"]
    assert "more than 16,777,216 bytes" in answers[3][1]["error"]


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_what_is_no_image_gets_the_reason(service: str, port: int, method: str) -> None:
    status, answer = ask(port, service, b"no image" if method == "POST" else b"", method)
    assert status == 400
    assert answer["error"].startswith("the body cannot be read as an image")


def test_bodies_at_random_harm_nobody(
    service: str, port: int, calibrated: Bundle, raw_images: Images
) -> None:
    images = raw_images(40, seed=5)
    good = [encoded(image, "png") for image in images]
    bad = list(_damaged(np.random.default_rng(6), good))
    bodies = [body for pair in zip(bad, good * 5, strict=True) for body in pair]
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda body: ask(port, service, body), bodies))
    assert_as_local(answers[1:80:2], calibrated, images)
    assert {status for status, _ in answers[1::2]} == {200}
    for status, answer in answers[0::2]:
        assert status == 400 and answer["error"], answer


def _damaged(generator: np.random.Generator, good: list[bytes]) -> Iterator[bytes]:
    """200 bodies: noise, noise after a PNG's first bytes, and PNGs that break off."""
    for place in range(200):
        image = good[place % len(good)]
        noise = generator.bytes(int(generator.integers(0, 5000)))
        yield (noise, image[:8] + noise, image[: int(generator.integers(len(image) // 2))])[
            place % 3
        ]


def test_scoring_does_not_keep_others_waiting(
    port: int, tiny_bundle: Bundle, raw_images: Images, tmp_path: Path
) -> None:
    begun, release = tmp_path / "begun", tmp_path / "release"

    def wait_for(file: Path) -> None:
        deadline = time.monotonic() + 120
        while not file.exists():
            assert time.monotonic() < deadline, file
            time.sleep(0.01)

    class Held(OdinService):
        def _answers(self, images: list[np.ndarray]) -> list[dict[str, Any]]:
            begun.touch()
            wait_for(release)
            return super()._answers(images)

    made = serve.deployment(Held, max_ongoing_requests=8).bind(tiny_bundle.path, batch_size=1)
    with running(made, "held") as path, ThreadPoolExecutor(1) as clients:
        image = encoded(raw_images(1)[0], "png")
        answer = clients.submit(ask, port, path, image)
        try:
            wait_for(begun)
            assert ask(port, path, b"no image")[0] == 400
            assert not answer.done()
        finally:
            release.touch()
        assert answer.result()[0] == 200


def test_a_missing_bundle_is_told(port: int) -> None:
    with pytest.raises(RuntimeError, match="Deploying application nowhere failed"):
        serve.run(deployment("/nowhere/bundle"), name="nowhere", route_prefix="/nowhere")
    [failed] = serve.status().applications["nowhere"].deployments.values()
    serve.delete("nowhere")
    assert "/nowhere/bundle" in failed.message
