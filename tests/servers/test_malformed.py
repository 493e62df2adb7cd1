"""1,000 requests that are wrong, as many messages, and a client beside them that never fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from odin_runtime.scorer import Scorer
from servers.clients import Client, same
from servers.environment import Server
from servers.malformed import answer, is_refusal, request, well_formed

pytestmark = pytest.mark.slow

REQUESTS = 1000


@contextmanager
def client_beside(
    server: Server, local: Scorer, images: np.ndarray
) -> Iterator[Callable[[int], None]]:
    """A client that scores images all the while, and whose every answer must be right.

    Yields:
        A function: how many wrong requests were sent -> waits until the client has had its share,
        one request for 20 of them, so that the two overlap.
    """
    known = local.score(images).arrays()
    stop = threading.Event()
    failures: list[BaseException] = []
    answered = []

    def good() -> None:
        try:
            with Client(server) as client:
                while not stop.is_set():
                    part = slice(len(answered) % 60, len(answered) % 60 + 2)
                    same(client.score(images[part]), known, part)
                    answered.append(part)
        except BaseException as error:  # noqa: BLE001 - the test tells it
            failures.append(error)

    def keep_up(sent: int) -> None:
        while len(answered) * 20 <= sent and beside.is_alive():
            time.sleep(0.001)

    beside = threading.Thread(target=good)
    beside.start()
    try:
        yield keep_up
    finally:
        stop.set()
        beside.join(60)
    assert not failures, failures[0]
    assert answered
    assert server.process.poll() is None
    assert server.is_ready()


def test_wrong_requests_get_errors_and_harm_nobody(
    server: Server, local: Scorer, images: np.ndarray
) -> None:
    taken = []
    with client_beside(server, local, images) as keep_up:
        for seed in range(REQUESTS):
            keep_up(seed)
            data, what = request(seed)
            status = answer(server.http, data)
            if not is_refusal(status, seed):
                taken.append(f"{what}: {status}")
    assert not taken, taken


def test_wrong_messages_get_errors_and_harm_nobody(
    server_of_one_size: Server, local: Scorer, images: np.ndarray
) -> None:
    """Over gRPC, by which this server hands negative sides on where a model takes any size."""
    server = server_of_one_size
    grpc = pytest.importorskip("grpc")
    pytest.importorskip("tritonclient.grpc")
    from servers import malformed_grpc as made

    taken = []
    place = f"127.0.0.1:{server.grpc}"
    with grpc.insecure_channel(place) as channel, client_beside(server, local, images) as keep_up:
        assert made.answer(channel, made.well_formed()) == grpc.StatusCode.OK
        for seed in range(REQUESTS):
            keep_up(seed)
            data, what = made.request(seed)
            status = made.answer(channel, data)
            if status in (grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED):
                taken.append(f"{what}: {status}")
    assert not taken, taken


def test_a_right_request_made_by_the_same_means_is_answered(server: Server) -> None:
    """Else the errors would tell nothing."""
    assert answer(server.http, well_formed()) == 200
