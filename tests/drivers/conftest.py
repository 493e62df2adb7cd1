"""Scenarios: functions that run in a process whose driver library is the test double."""

from __future__ import annotations

import fcntl
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from drivers.double_library import Double, build_double
from native.conftest import build_once, host_build  # noqa: F401 - fixtures
from odin_runtime.driver import DRIVERS
from odin_runtime.driver_reasons import missing_package

Scenario = Callable[[Double, str], Any]


@dataclass(frozen=True)
class Seen:
    """What a scenario gave, and the double's books after it.

    Attributes:
        result: what the scenario returned; it has to be JSON's.
        log: what was called and done, in order.
        errors: what was done wrong, in the double's words.
        leaks: what was not given back.
        faults: tracebacks of what stood for the kernels.
    """

    result: Any
    log: list[str]
    errors: list[str]
    leaks: list[str]
    faults: list[str]

    def calls(self, function: str) -> list[str]:
        """The calls of one function, with their arguments."""
        return [line for line in self.log if line.split(" ")[:2] == ["call", function]]

    def runs(self) -> list[str]:
        """What the double's device did, in order."""
        return [line.removeprefix("run ") for line in self.log if line.startswith("run ")]


@pytest.fixture(scope="session")
def double_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the double, built once for parallel test processes."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if base.name.startswith("popen-") else base
    folder = shared / "odin-driver-double"
    with (shared / "odin-driver-double.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            folder.mkdir(exist_ok=True)
            build_double(folder)
            (folder / "done").touch()
    return folder


@dataclass(frozen=True)
class Server:
    """The process that runs scenarios, and the file with what it and they print."""

    process: subprocess.Popen[str]
    printed: Path

    def ask(self, request: dict[str, Any]) -> str:
        """Send a request; return how the scenario's process ended, "0" if well."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


@pytest.fixture(scope="session")
def server(double_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The process that runs scenarios."""
    libraries = [str(double_folder), os.environ.get("LD_LIBRARY_PATH", "")]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    printed = tmp_path_factory.mktemp("server") / "printed"
    with printed.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
    yield Server(process, printed)
    process.communicate(timeout=60)


@pytest.fixture
def run_in_double(server: Server, tmp_path: Path) -> Callable[..., Seen]:
    """A function: scenario, name of the driver, options of the double -> Seen.

    `files`, by name, are paths for the scenario.
    """

    def run(
        function: Scenario, driver: str, /, files: Mapping[str, Path] | None = None, **options: int
    ) -> Seen:
        answer = tmp_path / "answer.json"
        request = {
            "file": inspect.getfile(function),
            "function": function.__name__,
            "driver": driver,
            "options": options,
            "files": {name: str(path) for name, path in (files or {}).items()},
            "answer": str(answer),
        }
        status = server.ask(request)
        assert status == "0", f"it ended with {status}\n{server.printed.read_text()[-4000:]}"
        found = json.loads(answer.read_text())
        failure = found.pop("failure")
        assert failure is None, f"{failure}\n" + "\n".join(found["faults"] + found["log"][-30:])
        return Seen(**found)

    return run


@pytest.fixture(params=DRIVERS)
def driver_name(request: pytest.FixtureRequest) -> str:
    """Each driver in turn; skipped where its package is missing."""
    name: str = request.param
    skip_without(name)
    return name


def skip_without(name: str) -> None:
    """Skip the test if a driver's package is not installed.

    Not `why_not`: without the double there is no driver here. pycuda cannot even be imported then,
    so whether it is there is all that is asked.
    """
    reason = missing_package(name, try_import=False)
    if reason is not None:
        pytest.skip(f"{reason.cause}; {reason.remedy}")


@pytest.fixture
def scenario(run_in_double: Callable[..., Seen], driver_name: str) -> Callable[..., Seen]:
    """A function: scenario, options of the double -> Seen; for each driver."""

    def run(function: Scenario, **options: Any) -> Seen:
        return run_in_double(function, driver_name, **options)

    return run
