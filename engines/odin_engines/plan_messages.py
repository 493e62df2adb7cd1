"""What TensorRT logs, kept so that an error can say it; TensorRT's functions return only None."""

from __future__ import annotations

import functools
import re
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    import tensorrt

P = ParamSpec("P")
R = TypeVar("R")
# "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check] what is wrong. In f
# at /_src/file.cpp:20)": only what is wrong is of use to others.
_ERROR = re.compile(
    r"(?:\[[^]]*\] *)?(?:[\w:()]+: +)?Error Code \d+: *(?P<kind>[\w ]+?) *\((?P<what>.*)\)"
)
_PLACE = re.compile(r"^\[[^]]*\] *|\bIn \w+ at [^\s)]+")
# It probes for a driver on the way, which is no fault where only building is asked for.
_PROBE = "catchCudaError"


class Messages:
    """Errors in the order in which they were logged; threads may add at the same time."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def clear(self) -> None:
        """Forget what was logged."""
        self.errors.clear()

    def reason(self) -> str:
        """The error to show: the first that is more than a probe for a driver."""
        errors = list(self.errors)
        telling = [text for text in errors if _PROBE not in text] or errors
        return because(telling[0]) if telling else "it logged no reason"


def because(text: str) -> str:
    """A message of TensorRT on one line, without the places in its source code."""
    line = " ".join(text.split())
    match = _ERROR.fullmatch(line)
    if match is None:
        return line.rstrip(".")
    what = _PLACE.sub("", match["what"]).strip(" .")
    return (
        what.removeprefix("(").removesuffix(")") if what.startswith("(") else what or match["kind"]
    )


def letting_go(function: Callable[P, R]) -> Callable[P, R]:
    """Have an error of `function` hold none of TensorRT's objects, as its frames would.

    One that is freed by a garbage collection while TensorRT calls our logger would wait for ever
    for a lock that its own thread holds.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            each: BaseException | None = error
            while each is not None:
                traceback.clear_frames(each.__traceback__)
                each = each.__cause__ or each.__context__
            raise

    return call


def make_logger(trt: ModuleType, messages: Messages) -> tensorrt.ILogger:
    """Return a logger that keeps errors and prints nothing."""
    failures = (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)

    class Logger(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: tensorrt.ILogger.Severity, msg: str) -> None:
            if severity in failures:
                messages.errors.append(msg)

    return Logger()
