"""What every command line of this project does around its work."""

from __future__ import annotations

import sys
from collections.abc import Callable

from odin_engines.errors import OdinError
from odin_engines.packages import install_command

REFUSED, INTERRUPTED = 1, 130


def run(name: str, work: Callable[[], int]) -> int:
    """Run a command; return its exit status.

    What the user can mend becomes a line on standard error, or two (why, and what would help), and
    status 1; Ctrl-C is 130.
    """
    try:
        return work()
    except OdinError as error:
        _complain(name, str(error))
        return REFUSED
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("odin_"):
            raise
        _complain(name, f"{error.name} is not installed; try: {install_command()}")
        return REFUSED
    except OSError as error:  # a full disk, a file taken away, permissions
        _complain(name, f"{error.filename or 'a file'}: {error.strerror or error}")
        return REFUSED
    except KeyboardInterrupt:
        _complain(name, "interrupted; nothing was left half-written")
        return INTERRUPTED


def _complain(name: str, text: str) -> None:
    print(f"{name}: {text}", file=sys.stderr, flush=True)
