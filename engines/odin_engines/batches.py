"""Many images in parts that engines compute fastest."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from odin_engines.engine import Arrays, Session


def parts(count: int, most: int) -> Iterator[slice]:
    """Cut `count` images into parts of `most`, and what is left into powers of two.

    An engine that compiles a graph for each size of a batch meets few sizes that way.
    """
    start = 0
    while start < count:
        left = count - start
        size = most if left >= most else 1 << (left.bit_length() - 1)
        yield slice(start, start + size)
        start += size


def run_in_parts(session: Session, feeds: Arrays, most: int) -> dict[str, np.ndarray]:
    """Run a batch whose images do not mix, at most so many images at once.

    Args:
        session: whose outputs all begin with the batch.
        feeds: `images` (N, ...), N at least 1, and scalars.
        most: images a part; several parts may be computed at once.
    """
    images = feeds["images"]
    cuts = list(parts(len(images), most))
    if len(cuts) == 1:
        return session.run(feeds)
    scalars = {name: value for name, value in feeds.items() if name != "images"}
    found = list(session.run_all({"images": images[cut], **scalars} for cut in cuts))
    return {name: np.concatenate([outputs[name] for outputs in found]) for name in found[0]}
