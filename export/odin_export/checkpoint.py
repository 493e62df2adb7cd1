"""Weights from a checkpoint file, whatever PyTorch wrote it, without executing what is in it.

Read are
- `.safetensors` files,
- PyTorch's files, new (zip) and legacy, with a state dict, a dict that holds one (under
  `state_dict`, `model_state_dict`, `model` or `net`) or a whole module, also of DataParallel,
- among them the files of the ODIN release: whole modules that PyTorch 0.1 and 0.2 pickled,
- any of these inside gzip, tar or both.

A file is known by its content, never by its name: what is called `.pth.tar` is rarely a tar.
Nothing is written to disk.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import stat
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import safetensors.torch
import torch
from safetensors import SafetensorError

from odin_engines.errors import OdinError
from odin_export.networks import NETWORKS, build, check_name
from odin_export.torch_files import read_legacy, read_zip
from odin_export.unpickle import MAX_BYTES, FormatError

_RELEASE = "github.com/facebookresearch/odin"
_PACKAGED = {"densenet10": "densenet10.safetensors"}

_REPACK = "if you trust it, unpack it and give the checkpoint inside it"
_MAX_MEMBERS = 10_000
_MAX_WRAPPERS = 4
# Weights hardly compress. Something that grows a hundredfold was made to fill the memory.
_MAX_RATIO, _ALWAYS_ALLOWED = 100, 64 << 20
_MAX_NAME = 500
_SHOWN = 3

_Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's content and where it came from."""

    file: str  # the file's name, without its folder
    sha256: str  # of the file as it lies on disk, compressed or not
    state_dict: dict[str, torch.Tensor]  # without the "module." of DataParallel


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint's tensors, with their dtypes as saved, on the CPU.

    Raises:
        OdinError: the file is missing, not a checkpoint, cut off, damaged, too large, or refers to
            code; or an archive holds no checkpoint, several, or an unsafe member.
    """
    data = _content(path)
    try:
        state_dict = _plain_names(_read(data, _MAX_WRAPPERS))
    except FormatError as error:
        raise OdinError(f"{path} {error}") from error
    return Checkpoint(path.name, hashlib.sha256(data).hexdigest(), state_dict)


def default_checkpoint(name: str) -> Path:
    """Return the weights that come with this package for the network `name`.

    Raises:
        OdinError: there is no such network, or it comes without weights.
    """
    check_name(name)
    if name not in _PACKAGED:
        raise OdinError(
            f"{name} comes without weights: give them with --checkpoint FILE. The README of "
            f"{_RELEASE} links to {name}.pth.tar.gz, which holds {name}.pth; either file will do"
        )
    return Path(__file__).parent / "weights" / _PACKAGED[name]


def load_network(name: str, path: Path | None) -> tuple[torch.nn.Module, Checkpoint]:
    """Build the network `name` with the weights of `path`, or of the package if it is None.

    The network is in evaluation mode, in float32, on the CPU. Batch norm's `num_batches_tracked`
    is ignored: inference does not use it, and PyTorch before 0.4.1 did not have it.

    Raises:
        OdinError: as `read_checkpoint`; or the weights are of another network, or not finite.
    """
    check_name(name)
    path = default_checkpoint(name) if path is None else path
    checkpoint = read_checkpoint(path)
    found = _shapes(checkpoint.state_dict)
    network = build(name)
    if found != (expected := _shapes(network.state_dict())):
        raise OdinError(f"{path} does not fit {name}: {_differences(found, expected, name)}")
    weights = {key: _to_float32(key, checkpoint.state_dict[key], path) for key in expected}
    network.load_state_dict(weights, strict=False)
    return network.eval(), checkpoint


def _plain_names(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # Names appear in messages: what a file's author wrote must not command the terminal.
    if not all(name.isprintable() and len(name) <= _MAX_NAME for name in state_dict):
        raise FormatError("is damaged: the names of its tensors are not text")
    while state_dict and all(name.startswith("module.") for name in state_dict):
        state_dict = {name.removeprefix("module."): value for name, value in state_dict.items()}
    return state_dict


def _to_float32(name: str, tensor: torch.Tensor, path: Path) -> torch.Tensor:
    if not tensor.is_floating_point():
        raise OdinError(
            f"{path}: tensor {name} is of type {tensor.dtype}, not float; "
            "quantised weights do not fit, so use the checkpoint that they were made from"
        )
    tensor = tensor.to(torch.float32)
    if not tensor.isfinite().all():
        raise OdinError(
            f"{path}: tensor {name} has values that are infinite or not a number; the training "
            "diverged or the file is damaged. Use another checkpoint"
        )
    return tensor


def _shapes(state_dict: dict[str, torch.Tensor]) -> _Shapes:
    return {
        name: tuple(tensor.shape)
        for name, tensor in state_dict.items()
        if name.rpartition(".")[2] != "num_batches_tracked"
    }


def _differences(found: _Shapes, expected: _Shapes, name: str) -> str:
    parts = []
    for what, some, others in (("missing", expected, found), ("unexpected", found, expected)):
        if tensors := [f"{key} {shape}" for key, shape in some.items() if key not in others]:
            parts.append(f"{what} {_some(tensors)}")
    if tensors := [
        f"{key} is {found[key]} instead of {shape}"
        for key, shape in expected.items()
        if key in found and found[key] != shape
    ]:
        parts.append(f"of another shape {_some(tensors)}")
    fitting = [other for other in NETWORKS if found == _network_shapes(other)]
    if fitting:
        hint = f"it fits {' and '.join(fitting)}: name that network, or give weights of {name}"
    else:
        hint = f"it fits none of {', '.join(NETWORKS)}: give weights of {name}"
    return "; ".join([*parts, hint])


def _some(items: list[str]) -> str:
    rest = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _network_shapes(name: str) -> _Shapes:
    with torch.device("meta"):
        return _shapes(build(name).state_dict())


def _content(path: Path) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise OdinError(f"{path} is a folder; give the checkpoint file inside it")
        if not stat.S_ISREG(status.st_mode):
            raise OdinError(f"{path} is not a file; give a checkpoint file")
        if status.st_size > MAX_BYTES:
            raise OdinError(
                f"{path} has {status.st_size} bytes, more than any checkpoint of these networks "
                f"({MAX_BYTES} at most); give the checkpoint file"
            )
        return path.read_bytes()
    except OSError as error:
        raise OdinError(
            f"cannot read {path}: {error.strerror}; check the name and the permissions"
        ) from error
    except ValueError as error:
        raise OdinError(f"cannot read {str(path)!r}: {error}; check the name") from error


def _kind(data: bytes) -> str | None:
    """Tell what a file is by its content."""
    if data.startswith(b"PK\x03\x04"):
        return "zip"
    if data.startswith(b"\x1f\x8b"):
        return "gzip"
    if data.startswith(b"\x80"):
        return "pickle"
    # The header's length, which the format limits, and the header, a JSON object.
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= 100_000_000:
        return "safetensors"
    try:
        tarfile.TarInfo.frombuf(data[:512], "utf-8", "surrogateescape")
    except tarfile.TarError:
        return None
    return "tar"


def _read(data: bytes, wrappers: int) -> dict[str, torch.Tensor]:
    """Read a checkpoint inside at most `wrappers` archives."""
    kind = _kind(data)
    if kind in ("gzip", "tar") and not wrappers:
        raise FormatError(f"is an archive in more than {_MAX_WRAPPERS} archives")
    match kind:
        case "gzip":
            return _read(_unzip(data), wrappers - 1)
        case "tar":
            return _read(_only_member(data), wrappers - 1)
        case "zip":
            return read_zip(data)
        case "pickle":
            return read_legacy(data)
        case "safetensors":
            return _read_safetensors(data)
    raise FormatError(_unknown(data))


def _unknown(data: bytes) -> str:
    start = data[:4096].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not data:
        return "is empty"
    if start.startswith(b"<"):
        return "is a web page instead of a checkpoint: its download gave a page about the file"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer instead of a checkpoint: fetch the file with git lfs pull"
    return "is not a checkpoint: neither a PyTorch file nor safetensors, gzip or tar"


def _read_safetensors(data: bytes) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, LookupError, RuntimeError, ValueError) as error:
        raise FormatError(f"is a safetensors file cut off or damaged ({error})") from error


def _unzip(data: bytes) -> bytes:
    limit = min(MAX_BYTES, max(_ALWAYS_ALLOWED, _MAX_RATIO * len(data)))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            content = file.read(limit + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise FormatError(f"is compressed, and cut off or damaged ({error})") from error
    if len(content) > limit:
        raise FormatError(f"unpacks to more than {limit} bytes, which no checkpoint does")
    return content


def _only_member(data: bytes) -> bytes:
    """Return the one checkpoint in a tar archive, without extracting anything."""
    found: dict[str, bytes] = {}
    names = set()
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for count, member in enumerate(archive):
                _check_member(member, count)
                names.add(member.name)
                file = archive.extractfile(member) if member.isfile() else None
                content = file.read() if file else b""
                # macOS adds a ._NAME with attributes beside each NAME.
                if _kind(content) and not PurePosixPath(member.name).name.startswith("._"):
                    found[member.name] = content
    except (tarfile.TarError, OSError, EOFError, ValueError, RecursionError) as error:
        raise FormatError(f"is a tar archive that is cut off or damaged ({error})") from error
    if {"pickle", "storages", "tensors"} <= names:
        raise FormatError(
            "is in the tar format of PyTorch before 0.1.10, which is not read here",
            "load it with torch.load of a PyTorch you have, if you trust it, and write its weights "
            "with torch.save(model.state_dict(), FILE)",
        )
    if not found:
        raise FormatError("is a tar archive without a checkpoint")
    if len(found) > 1:
        raise FormatError(
            f"is a tar archive with several checkpoints, {_some(list(found))}",
            "unpack it and give one of them",
        )
    return found.popitem()[1]


def _check_member(member: tarfile.TarInfo, count: int) -> None:
    # Nothing is extracted, so these could do no harm; but no honest archive of weights has them.
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise FormatError(
            f"is a tar archive whose member {member.name!r} leads outside of it", _REPACK
        )
    if not (member.isfile() or member.isdir()) or member.issparse():
        raise FormatError(
            f"is a tar archive whose member {member.name!r} is a link, a device or sparse", _REPACK
        )
    # The archive is in memory, so its size bounds its members', unless they point back.
    if member.size < 0 or count >= _MAX_MEMBERS:
        raise FormatError(f"is a damaged tar archive, at member {member.name!r}")
