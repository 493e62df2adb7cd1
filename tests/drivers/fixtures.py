"""Scenarios: functions that run in a process whose driver library is the test double."""

from __future__ import annotations

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
from drivers.pycuda_build import is_installed, pycuda_path
from native.fixtures import made_once
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
    return made_once(tmp_path_factory, "odin-driver-double", build_double)


class Server:
    """Processes that run scenarios: one, and one more where pycuda is built for the tests alone.

    Attributes:
        printed: the file with what they and the scenarios print.
    """

    def __init__(self, double: Path, printed: Path) -> None:
        self.printed = printed
        self._double = double
        self._processes: dict[str, subprocess.Popen[str]] = {}

    def ask(self, request: dict[str, Any]) -> str:
        """Send a request; return how the scenario's process ended, "0" if well."""
        process = self._process(extra_path(request["driver"]))
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    def _process(self, extra: str) -> subprocess.Popen[str]:
        if extra not in self._processes:
            with self.printed.open("a") as errors:
                self._processes[extra] = subprocess.Popen(
                    [sys.executable, str(Path(__file__).with_name("server.py"))],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    env=in_double(self._double, extra),
                )
        return self._processes[extra]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes.values():
            process.communicate(timeout=60)


def extra_path(driver: str) -> str:
    """What a driver needs on the path beside what this process has; empty for nothing."""
    return str(pycuda_path()) if driver == "pycuda" and not is_installed() else ""


def in_double(double: Path, extra: str = "") -> dict[str, str]:
    """The environment of a process whose driver library is the double in this folder."""
    libraries = [str(double), os.environ.get("LD_LIBRARY_PATH", "")]
    return {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
        "PYTHONPATH": os.pathsep.join(filter(None, [extra, *sys.path])),
    }


@pytest.fixture(scope="session")
def server(double_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """What runs scenarios."""
    opened = Server(double_folder, tmp_path_factory.mktemp("server") / "printed")
    yield opened
    opened.close()


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
    """Skip the test if a driver's package is not installed; pycuda is built where it can be.

    It is not imported: this process has no driver library, without which pycuda cannot be.
    """
    if extra_path(name):
        return
    reason = missing_package(name, try_import=False)
    if reason is not None:
        pytest.skip(f"{reason.cause}; {reason.remedy}")


@pytest.fixture
def scenario(run_in_double: Callable[..., Seen], driver_name: str) -> Callable[..., Seen]:
    """A function: scenario, options of the double -> Seen; for each driver."""

    def run(function: Scenario, **options: Any) -> Seen:
        return run_in_double(function, driver_name, **options)

    return run
