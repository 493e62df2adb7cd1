"""docs/serving.md, as written: its commands and scripts, in the server's environment."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest

from odin_engines.bundle import Bundle
from odin_export import cli
from odin_runtime.scorer import Scorer
from servers.environment import ROOT, Environment, Server, free_ports, serving, stop, wait_until

pytestmark = pytest.mark.slow

PORT = "localhost:8000"  # in the scripts; the tests' servers are on free ones


@pytest.fixture
def folder(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's folder, with a bundle."""
    (tmp_path / "my-bundle").symlink_to(bundle.path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(language: str) -> list[str]:
    """The page's blocks of code in a language."""
    page = (ROOT / "docs" / "serving.md").read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def script(name: str) -> str:
    """The block whose first line names this file."""
    return next(text for text in blocks("python") if text.startswith(f"# {name}; "))


def check_client(environment: Environment, port: int, folder: Path, local: Scorer) -> None:
    """Run the page's client; what it prints is what the local scorer gives."""
    assert PORT in script("client.py")
    (folder / "client.py").write_text(script("client.py").replace(PORT, f"localhost:{port}"))
    done = subprocess.run(
        [environment.python, "client.py"],
        cwd=folder,
        env=environment.variables(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    known = local.score(images)
    lines = [line.split() for line in done.stdout.splitlines()]
    np.testing.assert_allclose([float(line[0]) for line in lines], known.score, rtol=0, atol=2e-6)
    assert [line[1] == "out" for line in lines] == known.is_ood.tolist()


def test_export_and_call(triton_environment: Environment, folder: Path, local: Scorer) -> None:
    command = next(text for text in blocks("sh") if text.startswith("odin-export"))
    arguments = shlex.split(command)[1:]
    # This server has the Python backend alone.
    assert cli.main([*arguments, "--triton-scorer", "python"]) == 0
    with serving(triton_environment, folder / "models", folder) as server:
        check_client(triton_environment, server.http, folder, local)


def test_pytriton(triton_environment: Environment, folder: Path, local: Scorer) -> None:
    library = pytest.importorskip("grpc")
    pytest.importorskip("tritonclient.grpc")
    from servers import malformed_grpc

    (folder / "serve.py").write_text(script("serve.py"), "utf-8")
    http, grpc, metrics = free_ports(3)
    ports = {"HTTP": http, "GRPC": grpc, "METRICS": metrics}
    variables = triton_environment.variables() | {
        f"PYTRITON_TRITON_CONFIG_{name}_PORT": str(port) for name, port in ports.items()
    }
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [triton_environment.python, "serve.py"],
            cwd=folder,
            env=variables,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        server = Server(process, http, grpc, metrics, log)
        wait_until(lambda: server.is_ready("odin"), process, log)
        check_client(triton_environment, http, folder, local)
        with library.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
            status = malformed_grpc.answer(channel, malformed_grpc.negative_sides())
            assert status == library.StatusCode.INVALID_ARGUMENT
        check_client(triton_environment, http, folder, local)
    finally:
        stop(process)
