"""What odin-bench's modes print alike: messages, progress bars, and the surroundings of times."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

SHARE = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"  # a bar's look, without counts
_COLUMNS = 100


def say(text: str) -> None:
    """Tell the user what is no result."""
    print(text, file=sys.stderr, flush=True)


def progress_bar(title: str, total: int | None, **look: str) -> Any:
    """A bar of tqdm on standard error, gone when it is done; none where that is no terminal."""
    from tqdm import tqdm

    return tqdm(total=total, desc=title, leave=False, mininterval=0.5, disable=None, **look)


def surroundings(parsed: argparse.Namespace, first: str, more: Sequence[str] = ()) -> str:
    """The machine, the versions and the settings that times depend on.

    Args:
        parsed: odin-bench's flags.
        first, more: lines before and after.
    """
    from odin_bench import machine
    from odin_bench.report import environment

    here, known = machine.describe(), environment()
    packages = ", ".join(f"{name} {version}" for name, version in known["packages"].items())
    cores = f"{here.cores} cores, " if here.cores else ""
    lines = [
        first,
        f"{here.cpu}: {cores}{here.usable_threads} threads for this process"
        + (f"; {', '.join(here.vectors)}" if here.vectors else ""),
        f"{here.system}, Python {here.python}; {packages}",
        f"threads: {parsed.threads or 'as each engine takes by itself'}; streams: "
        f"{parsed.streams or 'one for each thread or core'}",
        *more,
    ]
    return "\n".join(textwrap.fill(line, _COLUMNS, subsequent_indent="  ") for line in lines)
