"""odin-export --triton-repository as a user runs it: what it writes, says and refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from odin_engines.bundle import Bundle, read_bundle, write_bundle
from odin_engines.errors import OdinError
from odin_export import cli, triton


def test_the_command(
    calibrated: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "below" / "models"
    assert cli.main([str(calibrated.path), "--triton-repository", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "odin_python, odin_onnx, odin_prepare, odin_decide, odin" in printed
    assert "--load-model odin" in printed
    assert "is_ood" not in printed
    files = {str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file()}
    assert "odin_python/1/model.py" in files
    assert "odin/config.pbtxt" in files
    assert (folder / "odin" / "1").is_dir()
    inside = read_bundle(folder / "odin_python" / "1" / "bundle")
    assert inside.calibration == calibrated.calibration
    graph = (folder / "odin_onnx" / "1" / "model.onnx").read_bytes()
    assert graph == calibrated.file("odin.onnx").read_bytes()


@pytest.mark.parametrize("there", ["a file", "a folder with something", "a link"])
def test_nothing_is_written_over(tiny_bundle: Bundle, tmp_path: Path, there: str) -> None:
    target, other = tmp_path / "models", tmp_path / "other"
    if there == "a file":
        target.write_text("mine")
    elif there == "a link":
        other.mkdir()
        target.symlink_to(other)
    else:
        (target / "mine").mkdir(parents=True)
    with pytest.raises(OdinError, match=r"there is something; give a new folder"):
        triton.write(target, triton.repository(tiny_bundle))
    assert len(list(tmp_path.iterdir())) == (2 if there == "a link" else 1)
    assert not list(other.iterdir()) if there == "a link" else True


def test_an_empty_folder_is_taken(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    triton.write(tmp_path / "models", triton.repository(tiny_bundle))
    assert (tmp_path / "models" / "odin" / "config.pbtxt").is_file()


def test_a_disk_that_fills_leaves_nothing(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, real, written = triton.repository(tiny_bundle), Path.write_bytes, []

    def full(self: Path, content: bytes) -> int:
        written.append(self)
        if len(written) > 2:
            raise OSError(28, "No space left on device")
        return real(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OdinError, match=r"cannot write .*models: No space left on device"):
        triton.write(tmp_path / "models", models)
    assert not list(tmp_path.iterdir())


def test_refused_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = ["--triton-repository", str(tmp_path / "models")]
    for arguments, message in (
        (["nowhere", *target], "takes a bundle, and nowhere is none: export it first"),
        (["densenet10", "--triton-scorer", "python"], "goes with --triton-repository"),
    ):
        assert cli.main(arguments) == 1
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("31x32", "--triton-size 31x32: images may be 32 to 63 high and 32 to 63 wide"),
        ("32x64", "--triton-size 32x64: images may be 32 to 63 high and 32 to 63 wide"),
        ("32", "'32': give height and width, such as 224x224, or any"),
        ("0x32", "'0x32': give height and width, such as 224x224, or any"),
    ],
)
def test_sizes_that_are_refused(
    calibrated: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: str, said: str
) -> None:
    target = tmp_path / "models"
    arguments = [str(calibrated.path), "--triton-repository", str(target), "--triton-size", given]
    try:
        assert cli.main(arguments) == 1
    except SystemExit as ended:
        assert ended.code == 2
    assert said in capsys.readouterr().err
    assert not target.exists()


def test_the_size_is_the_calibrations(
    calibrated: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = dataclasses.replace(calibrated.calibration, size=(40, 33))  # type: ignore[type-var]
    write_bundle(tmp_path / "b", calibrated.spec, calibrated.graphs(), (), known)
    for given, sides, said in [
        ([], [40, 33, 3], "for images of 40x33 pixels"),
        (["--triton-size", "32x32"], [32, 32, 3], "for images of 32x32 pixels"),
        (["--triton-size", "any"], [-1, -1, 3], "for images of any size"),
    ]:
        target = tmp_path / f"models{len(given)}{sides[0]}"
        assert cli.main([str(tmp_path / "b"), "--triton-repository", str(target), *given]) == 0
        assert said in capsys.readouterr().out
        config = (target / "odin" / "config.pbtxt").read_text("utf-8")
        assert f"dims: [ {', '.join(map(str, sides))} ]" in config


def test_a_threshold_of_another_precision_is_warned_about(
    calibrated: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = dataclasses.replace(calibrated.calibration, precision="bf16")  # type: ignore[type-var]
    write_bundle(tmp_path / "b", calibrated.spec, calibrated.graphs(), (), known)
    command = [str(tmp_path / "b"), "--triton-repository"]
    assert cli.main([*command, str(tmp_path / "onnx")]) == 0
    assert "warning: the bundle was calibrated in bf16" in capsys.readouterr().out
    assert cli.main([*command, str(tmp_path / "python"), "--triton-scorer", "python"]) == 0
    assert "warning" not in capsys.readouterr().out  # its Scorer tells, of the engine it takes
