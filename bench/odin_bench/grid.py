"""Grids of numbers, as flags spell them; imports nothing heavy."""

from __future__ import annotations

import math
from decimal import Decimal, InvalidOperation

from odin_engines.errors import OdinError

_MOST = 1000
_HOW = "give one number, a list such as 1,10,1000, or FIRST:LAST:COUNT such as 0:0.004:21"


def is_grid(text: str | None) -> bool:
    """Whether a flag's text asks for several numbers; `parse_grid` tells whether it holds them."""
    return text is not None and any(mark in text for mark in ",:")


def parse_grid(text: str) -> tuple[float, ...]:
    """Read "0:0.004:21" (21 numbers from 0 to 0.004, evenly spaced), "1,2,5", or both together.

    Numbers are what their decimals say: the eighth of 0:0.004:21 is 0.0014 and not a float beside.

    Returns:
        The numbers, each once, in ascending order.

    Raises:
        OdinError: something in it is no number or no range, or there are more than 1,000 numbers.
    """
    numbers: set[float] = set()
    for part in text.split(","):
        numbers.update(_range(part, text) if ":" in part else [float(_number(part, text))])
    if len(numbers) > _MOST:
        raise OdinError(f"grid {text!r} has {len(numbers):,} numbers; give at most {_MOST:,}")
    return tuple(sorted(numbers))


def _range(part: str, text: str) -> list[float]:
    pieces = part.split(":")
    if len(pieces) != 3:
        raise OdinError(f"grid {text!r}: {part!r} is no range; {_HOW}")
    first, last = _number(pieces[0], text), _number(pieces[1], text)
    if not pieces[2].strip().isdecimal() or not 2 <= int(pieces[2]) <= _MOST:
        raise OdinError(
            f"grid {text!r}: {pieces[2]!r} is how many numbers {part!r} has; "
            f"give a whole number from 2 to {_MOST:,}"
        )
    if first >= last:
        raise OdinError(f"grid {text!r}: {part!r} does not ascend; write the smaller number first")
    steps = int(pieces[2]) - 1
    return [float(first + (last - first) * step / steps) for step in range(steps + 1)]


def _number(piece: str, text: str) -> Decimal:
    try:
        number = Decimal(piece.strip())
    except InvalidOperation:
        number = Decimal("NaN")
    if not (number.is_finite() and math.isfinite(float(number))):
        raise OdinError(f"grid {text!r}: {piece.strip()!r} is no number; {_HOW}")
    return number
