"""Parts of a batch, and engines that compute several at once."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from odin_engines import cores, openvino_engine
from odin_engines.batches import parts, run_in_parts
from odin_engines.bundle import Bundle
from odin_engines.cores import physical_cores, streams_of, threads_of
from odin_engines.engine import Arrays, Session, Tuning, images_at_once, open_graph, unavailable
from odin_engines.errors import OdinError
from odin_engines.files import keep_within

CPU_ENGINES = ["openvino", "ort"]


def images(count: int, size: int = 32) -> np.ndarray:
    shape = (count, 3, size, size)
    return np.random.default_rng(count).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("count", "most", "sizes"),
    [
        (0, 4, []),
        (1, 4, [1]),
        (4, 4, [4]),
        (15, 4, [4, 4, 4, 2, 1]),
        (7, 100, [4, 2, 1]),
        (13, 6, [6, 6, 1]),
    ],
)
def test_parts(count: int, most: int, sizes: list[int]) -> None:
    cuts = list(parts(count, most))
    assert [cut.stop - cut.start for cut in cuts] == sizes
    assert [index for cut in cuts for index in range(cut.start, cut.stop)] == list(range(count))


def test_half_the_bytes_are_twice_the_images() -> None:
    assert images_at_once("openvino", "bf16") == 2 * images_at_once("openvino", "fp32")
    assert images_at_once("torch", "fp32") == images_at_once("ort-cuda", "bf16") == 16


@pytest.mark.parametrize(
    ("activation_bytes", "images"),
    [(0, 4), (97_000_000, 4), (16 << 20, 4), (8 << 20, 8), (3_500_000, 16), (1, 64)],
)
def test_more_small_images_at_once(activation_bytes: int, images: int) -> None:
    assert images_at_once("openvino", "fp32", activation_bytes) == images
    assert images_at_once("openvino", "bf16", activation_bytes) == 2 * images
    assert images_at_once("rtx", "fp16", activation_bytes) == 16


# Several batches at once


@pytest.mark.parametrize("name", CPU_ENGINES)
@pytest.mark.parametrize("streams", [1, 2, 5])
def test_batches_come_back_in_order(name: str, streams: int, tiny_bundle: Bundle) -> None:
    graph = tiny_bundle.file("odin.onnx")
    session = open_graph(name, graph, tuning=Tuning(threads=2, streams=streams))
    batches = [images(count) for count in (1, 3, 4, 2, 4, 4, 1, 3)]
    found = list(session.run_all({"images": batch} for batch in batches))
    for batch, outputs in zip(batches, found, strict=True):
        expected = session.run({"images": batch})
        assert list(outputs) == list(expected)
        for key, values in expected.items():
            np.testing.assert_allclose(outputs[key], values, rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_results_are_not_written_over(name: str, tiny_bundle: Bundle) -> None:
    session = open_graph(name, tiny_bundle.file("odin.onnx"), tuning=Tuning(streams=2))
    first = session.run({"images": images(3)})["logits"]
    kept = first.copy()
    list(session.run_all({"images": images(count)} for count in (3, 3, 3, 3)))
    session.run({"images": images(3) + 1})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_a_batch_in_parts_is_the_batch(name: str, tiny_bundle: Bundle) -> None:
    session = open_graph(name, tiny_bundle.file("odin.onnx"))
    batch = images(11)
    found = run_in_parts(session, {"images": batch}, 4)
    for key, values in session.run({"images": batch}).items():
        np.testing.assert_allclose(found[key], values, rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_inputs_are_asked_for_while_others_are_computed(name: str, tiny_bundle: Bundle) -> None:
    session = open_graph(name, tiny_bundle.file("odin.onnx"), tuning=Tuning(streams=2))
    asked = []

    def batches() -> Iterator[Arrays]:
        for number in range(6):
            asked.append(number)
            yield {"images": images(1)}

    results = session.run_all(batches())
    next(results)
    assert asked == [0, 1, 2]  # two streams, and one that waits
    results.close()  # type: ignore[attr-defined]
    assert len(session.run({"images": images(2)})["score"]) == 2  # it still works


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_an_error_in_the_midst(name: str, tiny_bundle: Bundle) -> None:
    session = open_graph(name, tiny_bundle.file("odin.onnx"), tuning=Tuning(streams=2))
    wrong = np.zeros((1, 5, 32, 32), np.float32)
    with pytest.raises(OdinError, match=r"failed on .*odin.onnx, \{'images': \(1, 5, 32, 32\)\}"):
        list(session.run_all({"images": batch} for batch in (images(1), wrong, images(1))))
    assert len(session.run({"images": images(1)})["score"]) == 1


def test_an_error_on_the_graph_for_any_size(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_engine, "_MOST_SIZES", 0)
    session = open_graph("openvino", tiny_bundle.file("odin.onnx"))
    wrong = {"images": np.zeros((1, 5, 32, 32), np.float32)}
    for run in (lambda: list(session.run_all([wrong])), lambda: session.run(wrong)):
        with pytest.raises(OdinError, match="failed on") as raised:
            run()
        assert ".cpp" not in str(raised.value)
    assert len(session.run({"images": images(1)})["score"]) == 1


def test_images_are_let_go(tiny_bundle: Bundle) -> None:
    """A request that waits for its next use keeps nothing of its last."""
    session = open_graph("openvino", tiny_bundle.file("odin.onnx"), tuning=Tuning(streams=2))
    large = images(6)
    gone = weakref.ref(large)
    list(session.run_all({"images": large[cut]} for cut in parts(6, 2)))
    session.run({"images": large[:2]})
    del large
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_several_threads(name: str, tiny_bundle: Bundle) -> None:
    session = open_graph(name, tiny_bundle.file("odin.onnx"), tuning=Tuning(streams=2))
    expected = {count: session.run({"images": images(count)})["score"] for count in (1, 2, 3)}
    wrong: list[Any] = []

    def work(count: int) -> None:
        for outputs in session.run_all({"images": images(count)} for _ in range(10)):
            if not np.allclose(outputs["score"], expected[count], rtol=0, atol=1e-6):
                wrong.append(count)

    threads = [threading.Thread(target=work, args=[count]) for count in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# Sizes


def test_many_sizes(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the first few, a graph for any size serves."""
    monkeypatch.setattr(openvino_engine, "_MOST_SIZES", 2)
    session = open_graph("openvino", tiny_bundle.file("odin.onnx"))
    expected = open_graph("ort", tiny_bundle.file("odin.onnx"))
    for count, size in [(1, 32), (2, 36), (3, 40), (4, 44), (1, 32)]:
        batch = images(count, size)
        found = session.run({"images": batch})["score"]
        np.testing.assert_allclose(found, expected.run({"images": batch})["score"], atol=1e-6)
    assert len(session._slots) == 3  # type: ignore[attr-defined]


def test_a_size_that_comes_again_takes_the_place_of_one_that_does_not(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_engine, "_MOST_SIZES", 2)
    monkeypatch.setattr(openvino_engine, "_IDLE_CALLS", 3)
    session = open_graph("openvino", tiny_bundle.file("odin.onnx"))
    compiled: list[Any] = []
    original = type(session)._compile  # type: ignore[attr-defined]

    def note(self: Any, sizes: Any, several: bool) -> Any:
        compiled.append(sizes and sizes[0][1][0])
        return original(self, sizes, several)

    monkeypatch.setattr(type(session), "_compile", note)
    for count in (1, 2, 3, 3, 1):
        session.run({"images": images(count)})
    assert compiled == [1, 2, None]  # 2 has not been idle for long
    for count in (3, 1):
        session.run({"images": images(count)})
    assert compiled == [1, 2, None, 3]
    for count in (4, 1, 3, 5, 1, 3, 6, 1, 3):
        session.run({"images": images(count)})
    assert compiled == [1, 2, None, 3]  # what comes once gets none


def test_a_graph_that_cannot_be_compiled_leaves_no_room_taken(tiny_bundle: Bundle) -> None:
    session = open_graph("openvino", tiny_bundle.file("odin.onnx"))
    for _ in range(2):
        with pytest.raises(OdinError, match="failed on"):
            session.run({"images": np.zeros((1, 5, 32, 32), np.float32)})
    assert not session._slots  # type: ignore[attr-defined]


def test_large_weights_are_not_kept_for_many_sizes(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_engine, "_MOST_BYTES", 1)
    session = open_graph("openvino", tiny_bundle.file("odin.onnx"))
    for count in (1, 2):
        assert len(session.run({"images": images(count)})["score"]) == count
    assert [key[0] for key in session._slots] == [None]  # type: ignore[attr-defined]


# The cache


def test_what_is_compiled_is_kept(tiny_bundle: Bundle, tmp_path: Path) -> None:
    graph, folder = tiny_bundle.file("odin.onnx"), tmp_path / "cache"
    batch = {"images": images(2)}
    first = open_graph("openvino", graph, tuning=Tuning(cache=folder)).run(batch)
    blobs = {file.name: file.stat().st_mtime_ns for file in folder.rglob("*.blob")}
    assert blobs
    again = open_graph("openvino", graph, tuning=Tuning(cache=folder)).run(batch)
    assert {file.name: file.stat().st_mtime_ns for file in folder.rglob("*.blob")} == blobs
    for key, values in first.items():
        np.testing.assert_array_equal(again[key], values, err_msg=key)


def test_what_is_kept_is_of_one_precision(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """OpenVINO would take the one for the other."""
    if unavailable("openvino", "bf16") is not None:
        pytest.skip("this CPU has no bfloat16 instructions")
    graph, batch = tiny_bundle.file("odin.onnx"), {"images": images(2)}
    for precision in ("bf16", "fp32"):
        open_graph("openvino", graph, precision, Tuning(cache=tmp_path)).run(batch)
    session = open_graph("openvino", graph, tuning=Tuning(streams=2, threads=2, cache=tmp_path))
    list(session.run_all([batch]))
    assert len(list(tmp_path.rglob("*.blob"))) == len(list(tmp_path.iterdir())) == 3


def test_a_damaged_cache_is_made_anew(tiny_bundle: Bundle, tmp_path: Path) -> None:
    graph, tuning = tiny_bundle.file("odin.onnx"), Tuning(cache=tmp_path)
    batch = {"images": images(2)}
    first = open_graph("openvino", graph, tuning=tuning).run(batch)
    for file in tmp_path.rglob("*.blob"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    again = open_graph("openvino", graph, tuning=tuning).run(batch)
    np.testing.assert_array_equal(again["score"], first["score"])


def test_a_cache_is_kept_within_its_limit(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for age, name in enumerate(["new.blob", "folder/old.blob", "oldest.blob", "users.bin"]):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    keep_within(tmp_path, "*.blob", 25)
    left = {file.name for file in tmp_path.rglob("*.*")}
    assert left == {"new.blob", "old.blob", "users.bin"}
    keep_within(tmp_path / "nowhere", "*.blob", 0)


# Cores


def test_threads_of_one_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 4, 5}, raising=False)
    assert physical_cores(tmp_path, tmp_path / "none") == 4  # nothing is known of them
    for thread in range(8):
        folder = tmp_path / f"cpu{thread}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{thread % 4},{thread % 4 + 4}\n")
    nowhere = tmp_path / "cpu.max"
    assert physical_cores(tmp_path, nowhere) == 2
    for quota, wanted in (("max 100000", 2), ("150000 100000", 1), ("900000 100000", 2), ("", 2)):
        nowhere.write_text(quota + "\n")
        assert physical_cores(tmp_path, nowhere) == wanted


def test_a_containers_quota_is_told_to_engines(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert threads_of(Tuning(threads=3)) == 3
    monkeypatch.setattr(cores, "quota_cores", lambda *_: None)
    assert threads_of(Tuning()) is None
    monkeypatch.setattr(cores, "quota_cores", lambda *_: 1)
    assert threads_of(Tuning(threads=3)) == 3
    assert threads_of(Tuning()) == streams_of(Tuning()) == 1
    session = open_graph("openvino", tiny_bundle.file("odin.onnx"))
    assert session._settings["INFERENCE_NUM_THREADS"] == 1  # type: ignore[attr-defined]


def test_no_stream_without_a_thread() -> None:
    assert streams_of(Tuning(threads=2, streams=5)) == 2
    assert streams_of(Tuning(threads=4)) == 4
    assert streams_of(Tuning(streams=1)) == 1


def test_by_default_one_after_the_other() -> None:
    class Doubling(Session):
        def run(self, feeds: Arrays) -> dict[str, np.ndarray]:
            return {"y": 2 * feeds["x"]}

    double: Callable[[int], Arrays] = lambda value: {"x": np.array(value)}  # noqa: E731
    assert [int(out["y"]) for out in Doubling().run_all(map(double, (1, 2)))] == [2, 4]
