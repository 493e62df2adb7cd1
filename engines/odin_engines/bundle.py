"""The bundle on disk: a folder with `odin.json` and the graphs it lists, each with its SHA-256.

Reading a bundle checks schema and hashes and executes nothing.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from odin_engines.calibration import Calibration, as_json, read_calibration
from odin_engines.errors import OdinError
from odin_engines.files import replacing, sha256, unused_name
from odin_engines.plan_records import PLAN_SUFFIX, PlanRecord, read_records
from odin_engines.spec import SCHEMA, Spec

DESCRIPTION = "odin.json"
ODIN, GRADIENT, FORWARD = "odin.onnx", "gradient.onnx", "forward.onnx"

_CHOICES = {
    "method": ("exact", "first-order"),
    "precision": ("fp32", "fp16", "bf16"),
    "graph_precision": ("fp32", "fp16", "bf16"),
    "input_type": ("float32", "uint8"),
}
_RE_EXPORT = "export it again with odin-export"


@dataclass(frozen=True)
class Bundle:
    """A bundle whose description and graphs were found whole.

    Attributes:
        path: the folder.
        spec: what `odin.json` says.
        files: SHA-256 of each file, by name.
        plans: what is said of those of the files that are plans.
        damaged: why plans and graphs for one engine cannot be used, by file; they can be built
            again from the other graphs.
        calibration: what is known of its scores on in-distribution images.
    """

    path: Path
    spec: Spec
    files: dict[str, str]
    plans: tuple[PlanRecord, ...] = ()
    damaged: Mapping[str, str] = field(default_factory=dict)
    calibration: Calibration | None = None

    @property
    def argument(self) -> str:
        """The folder as a command line takes it: a bare name may be a network's."""
        return folder_argument(self.path)

    def file(self, name: str) -> Path:
        """Return the path of one of the bundle's files.

        Raises:
            OdinError: the bundle does not have it, or it is a damaged plan.
        """
        if name in self.damaged:
            raise OdinError(self.damaged[name])
        if name not in self.files:
            raise OdinError(f"bundle {self.path} holds no {name}; {_RE_EXPORT}")
        return self.path / name

    def odin(self, engine: str) -> Path:
        """The path of the ODIN graph in an engine's own form, or of odin.onnx if it has none.

        Raises:
            OdinError: its own form is damaged.
        """
        own = own_odin(engine)
        return self.file(own if own in (*self.files, *self.damaged) else ODIN)

    def graphs(self) -> dict[str, bytes]:
        """The content of each ONNX file but damaged ones.

        Raises:
            OdinError: one that every bundle has is not listed.
        """
        own = [name for name in self.files if _engine_of(name) and not name.endswith(PLAN_SUFFIX)]
        return {name: self.file(name).read_bytes() for name in (ODIN, GRADIENT, FORWARD, *own)}

    def plan(self, engine: str, graph: str) -> PlanRecord | None:
        """What is said of an engine's plan of a graph; None if there is no such plan."""
        return next((p for p in self.plans if (p.engine, p.graph) == (engine, graph)), None)


def own_odin(engine: str) -> str:
    """The name of the ODIN graph in the form that one engine is fastest with."""
    return f"odin.{engine}.onnx"


def _engine_of(file: str) -> str:
    """The engine that a file was derived for: that of odin.rtx.plan, odin.ort.onnx; or ""."""
    return Path(Path(file).stem).suffix.removeprefix(".")


def folder_argument(path: Path) -> str:
    """A folder as a shell takes it, and as no command takes for the name of a network."""
    bare = path.name == str(path)
    return shlex.quote(f"./{path}" if bare else str(path))


def is_bundle(path: Path) -> bool:
    """Whether `path` is a folder that holds an `odin.json`."""
    try:
        return (path / DESCRIPTION).is_file()
    except OSError:  # a name too long, or a folder that may not be looked at
        return False


def read_bundle(path: Path) -> Bundle:
    """Open a bundle and verify its schema, sizes and hashes.

    Raises:
        OdinError: there is no bundle at `path`, it was written by a newer version, or something in
            it is missing, truncated, corrupted or out of range; of plans, only `damaged` tells.
    """
    if not is_bundle(path):
        raise OdinError(
            f"no bundle at {path}: it has no {DESCRIPTION}; make one with "
            f"'odin-export MODEL --output {path}'"
        )
    description = _read_description(path / DESCRIPTION)
    files, damaged = _verified_files(path, description.pop("files", None))
    entry = description.pop("calibration", None)
    try:
        plans = read_records(description.pop("plans", None), {*files, *damaged})
        spec = _spec(path / DESCRIPTION, description)
        calibration = read_calibration(entry, spec.threshold)
    except ValueError as error:
        raise OdinError(f"{path / DESCRIPTION}: {error}; {_RE_EXPORT}") from error
    return Bundle(path, spec, files, plans, damaged, calibration)


def write_bundle(
    path: Path,
    spec: Spec,
    contents: Mapping[str, bytes],
    plans: tuple[PlanRecord, ...] = (),
    calibration: Calibration | None = None,
) -> Bundle:
    """Write a bundle; it appears at `path` whole, or not at all.

    Args:
        path: a folder that does not exist, or is empty, or holds a bundle, which is replaced.
        spec: what `odin.json` is to say.
        contents: of each file, graph or plan, by name.
        plans: what `odin.json` is to say of the plans.
        calibration: what it is to say of the scores; None for nothing.

    Raises:
        OdinError: `path` holds something else, or cannot be written.
    """
    path = path.absolute()
    if calibration is not None:
        spec = dataclasses.replace(spec, threshold=calibration.threshold)
    temporary = _folder_beside(path)
    try:
        files = _write_files(temporary, spec, contents, plans, calibration)
        _take_place(temporary, path)
    except OSError as error:
        raise OdinError(f"cannot write {path}: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Bundle(path, spec, files, plans, calibration=calibration)


def write_calibration(bundle: Bundle, calibration: Calibration) -> Bundle:
    """Put a calibration into a bundle on disk, whose files stay as they are.

    Raises:
        OdinError: its description cannot be read any more, or not be written.
    """
    file = bundle.path / DESCRIPTION
    description = {"schema": SCHEMA, **_read_description(file)}
    description |= {"threshold": calibration.threshold, "calibration": as_json(calibration)}
    with replacing(file) as temporary:
        temporary.write_text(_text(description), encoding="utf-8")
    spec = dataclasses.replace(bundle.spec, threshold=calibration.threshold)
    return dataclasses.replace(bundle, spec=spec, calibration=calibration)


def check_output(path: Path) -> None:
    """Check, before any work, that a bundle can be written to `path`.

    Raises:
        OdinError: `path` holds something else than a bundle, or cannot be written.
    """
    _folder_beside(path.absolute()).rmdir()


def _folder_beside(path: Path) -> Path:
    """Make an empty folder from which a bundle can be moved to `path`."""
    try:
        if path.exists() and not is_bundle(path) and not _is_empty_folder(path):
            raise OdinError(f"{path} exists and is not a bundle; choose another --output")
        if is_bundle(path) and (others := _others(path)):
            raise OdinError(
                f"{path} holds a bundle and also {others[0]}, which would be lost; move it away or "
                "choose another --output"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = unused_name(path)
        temporary.mkdir()
        return temporary
    except OSError as error:
        raise OdinError(
            f"cannot write to {path.parent}: {error.strerror}; choose another --output"
        ) from error


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _others(path: Path) -> list[str]:
    """What lies in a bundle's folder and is not of a bundle."""
    own = {DESCRIPTION}
    try:
        own.update(_read_description(path / DESCRIPTION).get("files", ()))
    except (OdinError, TypeError):  # a damaged bundle may still be replaced
        own.update((ODIN, GRADIENT, FORWARD))
    return sorted(file.name for file in path.iterdir() if file.name not in own)


def _write_files(
    folder: Path,
    spec: Spec,
    contents: Mapping[str, bytes],
    plans: tuple[PlanRecord, ...],
    calibration: Calibration | None,
) -> dict[str, str]:
    entries = {}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        entries[name] = {"bytes": len(content), "sha256": sha256(folder / name)}
    description = {"schema": SCHEMA, **dataclasses.asdict(spec), "files": entries}
    if plans:
        description["plans"] = [dataclasses.asdict(record) for record in plans]
    if calibration is not None:
        description["calibration"] = as_json(calibration)
    (folder / DESCRIPTION).write_text(_text(description), encoding="utf-8")
    return {name: str(entry["sha256"]) for name, entry in entries.items()}


def _text(description: Mapping[str, Any]) -> str:
    return json.dumps(description, indent=1, allow_nan=False) + "\n"


def _take_place(temporary: Path, path: Path) -> None:
    if not path.exists():
        temporary.rename(path)
        return
    old = unused_name(path)
    try:
        path.rename(old)
        temporary.rename(path)
    finally:
        if not path.exists():  # an error, or Ctrl-C, came between the two
            old.rename(path)
        if old.is_symlink():
            old.unlink()
        shutil.rmtree(old, ignore_errors=True)


def _read_description(file: Path) -> dict[str, Any]:
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OdinError(f"{file} cannot be read ({error}); {_RE_EXPORT}") from error
    if not isinstance(description, dict) or not _is_int(description.get("schema")):
        raise OdinError(f"{file} is not a bundle's description; {_RE_EXPORT}")
    schema = description.pop("schema")
    if schema > SCHEMA:
        raise OdinError(
            f"{file} has schema {schema}, from a newer odin-ood; this one reads up to {SCHEMA}: "
            "upgrade with 'pip install --upgrade odin-ood'"
        )
    if schema < 1:
        raise OdinError(f"{file} has schema {schema}, which never existed; {_RE_EXPORT}")
    return description


def _verified_files(path: Path, entries: object) -> tuple[dict[str, str], dict[str, str]]:
    """The hashes of the files, and what is wrong with those for one engine, by name."""
    if not isinstance(entries, dict) or ODIN not in entries:
        raise OdinError(f"{path / DESCRIPTION} lists no {ODIN}; {_RE_EXPORT}")
    files, damaged = {}, {}
    for name, entry in entries.items():
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise OdinError(
                f"{path / DESCRIPTION} lists {name!r}, which is not a plain file name; {_RE_EXPORT}"
            )
        if not isinstance(entry, dict) or not {"bytes", "sha256"} <= set(entry):
            raise OdinError(f"{path / DESCRIPTION} gives no size and hash of {name}; {_RE_EXPORT}")
        try:
            files[name] = _verified(path / name, entry["bytes"], entry["sha256"])
        except OdinError as error:
            if not _engine_of(name):
                raise
            damaged[name] = str(error)
    return files, damaged


def _verified(file: Path, size: object, digest: object) -> str:
    remedy = _RE_EXPORT
    if engine := _engine_of(file.name):
        folder = folder_argument(file.parent)
        remedy = f"build it again with 'odin-export {folder} --engine {engine}'"
    if not file.is_file():
        raise OdinError(f"{file} is missing; copy the whole bundle, or {remedy}")
    found = file.stat().st_size
    if found != size:
        raise OdinError(f"{file} has {found} bytes, not {size}: it was cut or changed; {remedy}")
    try:
        actual = sha256(file)
    except OSError as error:
        raise OdinError(
            f"{file} cannot be read: {error.strerror}; check its permissions"
        ) from error
    if actual != digest:
        raise OdinError(f"{file} does not match its SHA-256: it was changed; {remedy}")
    return actual


def _spec(file: Path, description: dict[str, Any]) -> Spec:
    fields = {field.name: field for field in dataclasses.fields(Spec)}
    missing = [
        name
        for name, field in fields.items()
        if name not in description
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise OdinError(f"{file} does not say {', '.join(missing)}; {_RE_EXPORT}")
    known = {name: value for name, value in description.items() if name in fields}
    for name in ("mean", "std", "height", "width", "scores"):
        if isinstance(known.get(name), list):
            known[name] = tuple(known[name])
    spec = Spec(**known)
    problem = _problem(spec)
    if problem:
        raise OdinError(f"{file}: {problem}; {_RE_EXPORT}")
    return spec


def _problem(spec: Spec) -> str | None:
    """What is wrong with the values, if anything."""
    for name, choices in _CHOICES.items():
        if getattr(spec, name) not in choices:
            return f"{name} is {getattr(spec, name)!r}, not one of {', '.join(choices)}"
    for name in ("model", "architecture", "checkpoint", "checkpoint_sha256"):
        if not isinstance(getattr(spec, name), str):
            return f"{name} is not text"
    if spec.in_dataset is not None and not isinstance(spec.in_dataset, str):
        return "in_dataset is not text"
    for name in ("classes", "channels"):
        if not _is_int(getattr(spec, name)) or getattr(spec, name) < 1:
            return f"{name} is not a positive whole number"
    for name in ("mean", "std"):
        values = getattr(spec, name)
        if not isinstance(values, tuple) or len(values) != spec.channels:
            return f"{name} does not have {spec.channels} values"
        if not all(_is_number(value) for value in values):
            return f"{name} holds something that is not a number"
    if min(spec.std) <= 0:
        return "std is not positive"
    for name in ("height", "width"):
        sizes = getattr(spec, name)
        if not isinstance(sizes, tuple) or len(sizes) != 2 or not all(map(_is_int, sizes)):
            return f"{name} is not a smallest and a largest size"
        if not 1 <= sizes[0] <= sizes[1]:
            return f"{name} is {sizes[0]} to {sizes[1]}, which no image has"
    if not _is_number(spec.temperature) or spec.temperature <= 0:
        return "temperature is not a positive number"
    if not _is_number(spec.magnitude) or spec.magnitude < 0:
        return "magnitude is not a number from 0"
    if spec.graph_precision not in ("fp32", spec.precision):
        return f"graph_precision is {spec.graph_precision}, but precision is {spec.precision}"
    if not _is_number(spec.seed_scale) or math.frexp(spec.seed_scale)[0] != 0.5:
        return "seed_scale is not a power of two"
    if not isinstance(spec.scores, tuple) or not all(isinstance(n, str) for n in spec.scores):
        return "scores is not a list of names"
    if not isinstance(spec.tunable, bool):
        return "tunable is neither true nor false"
    if spec.threshold is not None and not _is_number(spec.threshold):
        return "threshold is not a number"
    if not _is_int(spec.activation_bytes) or spec.activation_bytes < 0:
        return "activation_bytes is not a whole number from 0"
    if not isinstance(spec.tools, dict):
        return "tools is not a list of versions by name"
    return None


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    # JSON's whole numbers may be too large for a float; comparing with one is exact.
    return abs(value) <= sys.float_info.max
