"""What the README tells a new user to type works as it stands there."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from native.c_api.programs import calibrated
from native.toolchain import cmake
from odin_engines.bundle import Bundle
from odin_runtime import Scorer

ROOT = Path(__file__).parent.parent
_MODULES = {
    "odin-export": "odin_export.cli",
    "odin-bench": "odin_bench.cli",
    "odin-score": "odin_runtime.score_cli",
}


def commands(mark: str) -> list[str]:
    """The lines of the block of the README behind a mark."""
    return block(rf"<!-- {re.escape(mark)} -->\n```").splitlines()


def program(comment: str) -> str:
    """The block of the README that begins with a comment, which names its file."""
    return block(rf"```\w+(?=\n{re.escape(comment)}\n)")


def block(start: str) -> str:
    """What stands between a block's first line, a pattern, and its end."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"{start}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert found is not None, start
    return found[1]


def write_photos(data: Path, folder: Path) -> None:
    """Images of CIFAR-10 and of noise, and one of the former, 0.png."""
    folder.mkdir()
    known = np.load(data / "cifar10_test.npz")["x"][:40]
    noise = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    for name, images in (("known", known), ("noise", noise)):
        for index, pixels in enumerate(images):
            Image.fromarray(pixels).save(folder / f"{name}-{index:02}.png")
    Image.fromarray(known[0]).save(folder / "0.png")


@pytest.fixture
def shell(tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """A function: a line -> what it did, in an empty folder with this tree's commands."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, module in _MODULES.items():
        program = programs / name
        program.write_text(
            f"#!{sys.executable}\nimport sys\nfrom {module} import main\nsys.exit(main())\n"
        )
        program.chmod(0o755)
    (tmp_path / "here").mkdir()
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }

    def run(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            line,
            shell=True,
            cwd=tmp_path / "here",
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.mark.long
def test_from_a_network_to_a_scored_folder(
    shell: Callable[[str], subprocess.CompletedProcess[str]], tmp_path: Path, data_folder: Path
) -> None:
    """A third of the images are noise, which is nearly all flagged; of the others few are."""
    write_photos(data_folder, tmp_path / "here" / "photos")
    for line in commands("score"):
        # Three hundred images of the 9,000 tell the threshold well enough here.
        line += " --limit 300" if "--calibrate" in line else ""
        done = shell(line)
        assert done.returncode == 0, (line, done.stderr)
    with (tmp_path / "here" / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 61
    flagged = {
        name: np.mean([row["is_ood"] == "true" for row in rows if f"/{name}-" in row["path"]])
        for name in ("known", "noise")
    }
    assert flagged["known"] < 0.2
    assert flagged["noise"] > flagged["known"]


def test_a_program_in_cpp(
    scorer_prefix: Path,
    make_tiny_bundle: Callable[..., Bundle],
    raw_images: Callable[..., np.ndarray],
    shell: Callable[[str], subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    """All but the first line, for which stands the library that all tests share."""
    here = tmp_path / "here"
    bundle = calibrated(make_tiny_bundle, raw_images(16))
    (here / "my-bundle").symlink_to(bundle.path)
    (here / "score.cpp").write_text(program("// score.cpp"), "utf-8")
    (here / "build" / "odin").mkdir(parents=True)
    (library,) = scorer_prefix.rglob("libodin.so")
    (here / "build" / "odin" / "include").symlink_to(scorer_prefix / "include")
    (here / "build" / "odin" / "lib").symlink_to(library.parent)
    for line in commands("c++")[1:]:
        done = shell(line)
        assert done.returncode == 0, (line, done.stderr)
    score, decision = done.stdout.split()
    wanted = Scorer.open(bundle, "openvino").score(np.full((16, 32, 32, 3), 128, np.uint8))
    assert abs(float(score) - wanted.score[0]) <= 1.5e-6
    assert decision == ("out" if wanted.is_ood[0] else "in")


@pytest.mark.slow
def test_all_as_written(tmp_path: Path, data_folder: Path) -> None:
    """From pip to a scored folder, a server that answers and a C++ program, in a copy of this tree.

    pytest --run-slow tests/test_readme.py -k as_written
    """
    for port in (8000, 8001, 8002):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip(f"something listens on port {port}, which the README's server takes")
    here = tmp_path / "odin-ood"
    left_out = shutil.ignore_patterns(".*", "build", "__pycache__")
    shutil.copytree(ROOT, here, ignore=left_out)
    write_photos(data_folder, here / "photos")
    for comment in ("# serve.py", "# ask.py", "// score.cpp"):
        (here / comment.split()[1]).write_text(program(comment), "utf-8")
    lines = [line for mark in ("install", "score", "server", "c++") for line in commands(mark)]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL"))}
    environment = kept | {
        "PATH": f"{os.environ['PATH']}{os.pathsep}{cmake().parent}",
        # Where the server's embedded Python lies, if the system's linker does not know it.
        "LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR")),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", "\n".join(lines)],
            cwd=here,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        assert process.wait(timeout=1800) == 0, log.read_text("utf-8", "replace")[-4000:]
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # the server
    said = log.read_text("utf-8", "replace")
    assert (here / "scores.csv").is_file()
    answer = re.search(r"\{.*'score': array\(\[(.*?)\].*\}", said, re.DOTALL)
    assert answer is not None, said[-4000:]
    with np.load(data_folder / "cifar10_test.npz") as data:
        wanted = Scorer.open(here / "my-bundle").score(data["x"][:1])
    assert abs(float(answer[1]) - wanted.score[0]) <= 1e-6
    assert re.search(r"^0\.\d+ (in|out)$", said, re.MULTILINE)
