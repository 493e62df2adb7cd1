"""1,000 requests that are wrong, and a client beside them that never fails."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from odin_runtime.scorer import Scorer
from servers.clients import Client, same
from servers.environment import Server
from servers.malformed import answer, request, well_formed

pytestmark = pytest.mark.slow

REQUESTS = 1000


def test_wrong_requests_get_errors_and_harm_nobody(
    server: Server, local: Scorer, images: np.ndarray
) -> None:
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

    beside = threading.Thread(target=good)
    beside.start()
    taken = []
    try:
        for seed in range(REQUESTS):
            while len(answered) * 20 <= seed and beside.is_alive():  # they are to overlap
                time.sleep(0.001)
            data, what = request(seed)
            status = answer(server.http, data)
            if 200 <= status < 400:
                taken.append(f"{what}: {status}")
    finally:
        stop.set()
        beside.join(60)
    assert not failures, failures[0]
    assert not taken, taken
    assert len(answered) >= REQUESTS / 20
    assert server.process.poll() is None
    assert server.is_ready()


def test_a_right_request_made_by_the_same_means_is_answered(server: Server) -> None:
    """Else the errors would tell nothing."""
    assert answer(server.http, well_formed()) == 200
