"""A virtual environment with a real Triton server, and that server on free ports."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The server's package wants numpy below 2, and so an environment of its own.
REQUIREMENTS = ("nvidia-pytriton==0.7.*", "numpy<2", "openvino>=2025.2", "onnxruntime>=1.22")
LEAST_GLIBC = (2, 35)
START_SECONDS = 90


@dataclass(frozen=True)
class Environment:
    """A virtual environment that holds the server; this project is on its path.

    Attributes:
        folder: of the environment.
    """

    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def packages(self) -> Path:
        """Where its packages lie."""
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return self.folder / "lib" / version / "site-packages"

    def variables(self) -> dict[str, str]:
        """The variables of a process in it."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        libraries = [
            sysconfig.get_config_var("LIBDIR"),
            str(self.packages / "nvidia_pytriton.libs"),
        ]
        path = f"{self.folder / 'bin'}{os.pathsep}{kept.get('PATH', os.defpath)}"
        # An embedded interpreter takes for its own the environment whose python comes first.
        return kept | {"PATH": path, "LD_LIBRARY_PATH": os.pathsep.join(libraries)}


def unfit() -> str | None:
    """Why the server cannot run on this machine, in words; None if it can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "nvidia-pytriton has a server for Linux on x86-64 alone"
    glibc = tuple(int(part) for part in platform.libc_ver()[1].split("."))
    if glibc < LEAST_GLIBC:
        return f"the server wants glibc 2.35, and this is {platform.libc_ver()[1]}"
    library = Path(sysconfig.get_config_var("LIBDIR"), str(sysconfig.get_config_var("INSTSONAME")))
    if not library.is_file():
        return f"the server's Python backend wants a shared libpython, and there is no {library}"
    return None


def made(cache: Path) -> Environment:
    """The environment, which is kept in `cache` for the next run.

    Raises:
        RuntimeError: pip could not install the packages; the message is its own.
    """
    wanted = repr((REQUIREMENTS, sys.version, str(ROOT)))
    folder = cache / f"triton-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    done = folder / "complete"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            found = Environment(folder)
            _run([sys.executable, "-m", "venv", str(folder)], found)
            _run([str(found.python), "-m", "pip", "install", "--quiet", *REQUIREMENTS], found)
            paths = "\n".join(str(ROOT / name) for name in ("engines", "runtime"))
            (found.packages / "odin.pth").write_text(paths + "\n", "utf-8")
            done.touch()
    return Environment(folder)


def _run(command: Sequence[str], environment: Environment) -> None:
    # Without PYTHONPATH, whose packages pip would take for installed.
    variables = environment.variables()
    ended = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=900)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)}: {ended.stderr.strip()[-500:]}")


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        process: of the server; its models' processes are its children.
        http, grpc, metrics: ports on 127.0.0.1.
        log: what it says.
    """

    process: subprocess.Popen[bytes]
    http: int
    grpc: int
    metrics: int
    log: Path

    def is_ready(self, model: str | None = None) -> bool:
        """Whether it takes requests: all that it has loaded, or one model."""
        place = "health/ready" if model is None else f"models/{model}/ready"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/v2/{place}", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def page_of_metrics(self) -> str:
        """What Prometheus reads."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=5) as page:
            return page.read().decode()

    def memory(self) -> int:
        """Resident bytes of the server and its models' processes."""
        return sum(map(_resident, _family(self.process.pid)))


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for `ready()` to hold.

    Raises:
        RuntimeError: the process ended, or it takes too long; the message ends with its log.
    """
    end = time.monotonic() + START_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            what = "is not ready" if process.poll() is None else f"ended with {process.returncode}"
            raise RuntimeError(f"the server {what}:\n{log.read_text('utf-8', 'replace')[-4000:]}")
        time.sleep(0.1)


@contextmanager
def serving(
    environment: Environment,
    repository: Path,
    folder: Path,
    models: Sequence[str] = ("odin",),
    ports: Sequence[int] = (),
) -> Iterator[Server]:
    """Run a server.

    Args:
        environment: that holds it.
        repository: of its models.
        folder: for its log and backends.
        models: which it is to load, with what they depend on.
        ports: for HTTP, gRPC and metrics; free ones, if none are given.
    """
    http, grpc, metrics = ports or free_ports(3)
    package = environment.packages / "pytriton" / "tritonserver"
    backends = _backends(package, folder / "backends")
    command = [
        str(package / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in models),
        *(f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")),
        f"--http-port={http}",
        f"--grpc-port={grpc}",
        f"--metrics-port={metrics}",
    ]
    log = folder / "server.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env=environment.variables(), stdout=output, stderr=subprocess.STDOUT
        )
    server = Server(process, http, grpc, metrics, log)
    try:
        wait_until(server.is_ready, process, log)
        yield server
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process, with its own clean-up if it does not take too long."""
    process.terminate()
    try:
        process.wait(40)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _backends(package: Path, folder: Path) -> Path:
    """The Python backend, with the program that embeds this version of Python beside it."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = package / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not folder.exists():
        shutil.copytree(package / "backends", folder)
        shutil.copy(stub, folder / "python")
    return folder


def _family(process: int) -> Iterator[int]:
    yield process
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        for child in file.read_text("ascii").split():
            yield from _family(int(child))


def _resident(process: int) -> int:
    pages = Path(f"/proc/{process}/statm").read_text("ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
