"""The timing cache of a plan's build: TensorRT's alone, so on a test double."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from odin_engines import plans
from odin_engines.errors import OdinError
from odin_engines.plans import TimingCache


class CacheDouble:
    """Of the builder's configuration, as far as its timing cache goes; b"odd" is no cache."""

    def __init__(self) -> None:
        self.given: list[bytes] = []

    def create_timing_cache(self, content: bytes) -> Any:
        self.given.append(content)
        return SimpleNamespace(serialize=lambda: content + b" and more")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        return not cache.serialize().startswith(b"odd")


def opened(timing: TimingCache) -> tuple[Any, list[bytes]]:
    """What a build gets of it, and what its configuration was given."""
    config: Any = CacheDouble()
    return plans._open_cache(config, timing), config.given


def test_timing_cache(tmp_path: Path) -> None:
    timing = TimingCache(tmp_path / "deep" / "er" / "timing.cache")
    for before, after in ((b"", b" and more"), (b" and more", b" and more and more")):
        cache, given = opened(timing)
        assert given == [before]
        plans._save_cache(cache, timing)
        assert timing.file.read_bytes() == after
        assert list(timing.file.parent.iterdir()) == [timing.file]


def test_timing_caches_that_are_refused(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"odd")
    with pytest.raises(OdinError, match=r"photo\.jpg is no timing cache of this version"):
        opened(TimingCache(photo))
    for file in (tmp_path, photo / "deep" / "timing.cache"):
        with pytest.raises(OdinError, match=r"cannot use timing cache .* another --timingCache"):
            opened(TimingCache(file))
    cache: Any = SimpleNamespace(serialize=lambda: b"measured")
    with pytest.raises(OdinError, match="cannot write"):
        plans._save_cache(cache, TimingCache(tmp_path / "gone" / "timing.cache"))
    assert photo.read_bytes() == b"odd"


def test_a_timing_cache_of_ours_never_stops_a_build(tmp_path: Path) -> None:
    file = tmp_path / "timing.cache"
    file.write_bytes(b"odd")
    ours = TimingCache(file, asked=False)
    cache, given = opened(ours)
    assert given == [b"odd", b""]
    plans._save_cache(cache, ours)
    assert file.read_bytes() == b" and more"
    unwritable = TimingCache(file / "deep" / "timing.cache", asked=False)
    cache, given = opened(unwritable)
    assert given == [b""]
    plans._save_cache(cache, TimingCache(tmp_path / "gone" / "timing.cache", asked=False))
    assert list(tmp_path.iterdir()) == [file]
