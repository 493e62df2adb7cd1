"""16 clients for ten minutes: no request fails, memory stays flat, and the server keeps up.

pytest --run-slow -s tests/servers/test_load.py
ODIN_LOAD_SECONDS=10 pytest --run-slow -s tests/servers/test_load.py
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from odin_runtime.scorer import Scorer
from servers.clients import Client, same
from servers.environment import Server

pytestmark = pytest.mark.slow

CLIENTS = 16
BATCH = 8
LEAST_SHARE = 0.7  # of the local Scorer's throughput
MOST_GROWTH = 1.03  # of memory, between the second quarter of the time and the last one


def test_load(server: Server, local: Scorer, images: np.ndarray) -> None:
    seconds = float(os.environ.get("ODIN_LOAD_SECONDS", "600"))
    known = local.score(images).arrays()
    measure = min(max(seconds / 10, 3.0), 20.0)
    alone = [_local_throughput(local, images[:BATCH], measure)]
    joined = _local_throughput(local, images, measure)
    _load(server, images, known, min(seconds / 5, 15.0))  # so that buffers are as large as they get
    memory: list[int] = []
    times = _load(server, images, known, seconds, lambda: memory.append(server.memory()))
    alone.append(_local_throughput(local, images[:BATCH], measure))
    throughput = len(times) * BATCH / seconds
    p50, p99 = np.percentile(times, [50, 99]) * 1e3
    quarter = len(memory) // 4
    before, after = (np.median(part) for part in (memory[quarter : 2 * quarter], memory[-quarter:]))
    print(
        f"\n{CLIENTS} clients, {BATCH} images a request, {seconds:g} s: {len(times)} requests, "
        f"{throughput:.1f} images/s; alone {alone[0]:.1f} before and {alone[1]:.1f} after, "
        f"{joined:.1f} with {len(images)} images a call; "
        f"p50 {p50:.0f} ms, p99 {p99:.0f} ms; memory {before / 1e6:.1f} -> {after / 1e6:.1f} MB"
    )
    assert throughput >= LEAST_SHARE * np.mean(alone)
    assert after <= MOST_GROWTH * before


def _local_throughput(scorer: Scorer, images: np.ndarray, seconds: float) -> float:
    """Images a second of calls with these images."""
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        scorer.score(images)
        count += len(images)
    return count / (time.perf_counter() - began)


def _load(
    server: Server,
    images: np.ndarray,
    known: dict[str, np.ndarray],
    seconds: float,
    watch: Callable[[], None] = lambda: None,
) -> list[float]:
    """Seconds of each request that was answered in time; a failed or wrong one raises."""
    end = time.perf_counter() + seconds

    def work(number: int) -> list[float]:
        times = []
        with Client(server) as client:
            while time.perf_counter() < end:
                start = (number + len(times)) % (len(images) - BATCH)
                part = slice(start, start + BATCH)
                began = time.perf_counter()
                found = client.score(images[part])
                done = time.perf_counter()
                same(found, known, part)
                if done < end:
                    times.append(done - began)
        return times

    with ThreadPoolExecutor(CLIENTS) as pool:
        running = [pool.submit(work, number) for number in range(CLIENTS)]
        while time.perf_counter() < end:
            watch()
            time.sleep(min(1.0, seconds / 40))
        return [each for future in running for each in future.result()]
