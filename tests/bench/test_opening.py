"""Opening a bundle in processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from odin_bench import opening
from odin_bench.opening import Opening, measure
from odin_bench.tables import opening_table
from odin_engines.bundle import Bundle
from odin_engines.errors import OdinError


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_RUNS", 1)


def test_openvino_finds_what_the_first_process_compiled(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs: list[set[Path]] = []
    run = opening._in_process

    def look(arguments: list[str], cache: str) -> tuple[float, ...]:
        found = run(arguments, cache)
        blobs.append(set(Path(cache).rglob("*.blob")))
        return found

    monkeypatch.setattr(opening, "_in_process", look)
    told: list[None] = []
    empty, filled = measure(
        tiny_bundle, "openvino", "fp32", (32, 32), threads=1, progress=lambda: told.append(None)
    )
    assert (empty.cache, filled.cache) == ("empty", "filled")
    assert (empty.engine, empty.precision, empty.method) == ("openvino", "fp32", "exact")
    for row in (empty, filled):
        assert min(row.start, row.opening, row.first, row.later) > 0
        assert row.later < row.first
        assert row.total == pytest.approx(row.start + row.opening + row.first)
    assert blobs[0]
    assert blobs[0] == blobs[1]  # the second process added nothing
    assert len(told) == 2


def test_an_engine_without_a_cache_has_one_row(tiny_bundle: Bundle) -> None:
    (row,) = measure(tiny_bundle, "ort", "fp32", (40, 36))
    assert (row.engine, row.cache) == ("ort", "none")


def test_the_run_of_the_median_counts(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = iter([(9.0,) * 4, *((0.1 * n, 0.2, 0.3, 0.4) for n in (5, 1, 3))])
    monkeypatch.setattr(opening, "_RUNS", 3)
    monkeypatch.setattr(opening, "_in_process", lambda *_: next(runs))
    empty, filled = measure(tiny_bundle, "openvino", "bf16", (32, 32))
    assert empty.total == 27
    assert filled.start == pytest.approx(0.3)


def test_what_the_engine_refuses(tiny_bundle: Bundle) -> None:
    with pytest.raises(
        OdinError, match=r"opens .* in ort failed: images are .*20 pixels high"
    ) as caught:
        list(measure(tiny_bundle, "ort", "fp32", (20, 20)))
    assert "\n" not in str(caught.value)


def test_table() -> None:
    row = Opening("openvino", "bf16", "first-order", "filled", 0.111, 0.222, 0.444, 0.0056)
    cells = [cell.strip() for cell in opening_table([row]).splitlines()[-1].split("|")[1:-1]]
    names = ["openvino", "bf16", "first-order", "filled"]
    assert cells == [*names, "0.11", "0.22", "0.44", "0.78", "0.006"]
