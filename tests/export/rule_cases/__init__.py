"""Cases for the gradient rules: small models of one op or a few, from `x` to `y`, as data.

A case is a model in ONNX's text form plus constants, and the sizes to run it at. Constants are
given by their shape (filled with random numbers away from zero), as lists (integers: axes, shapes)
or as arrays. `CASES` has several for each rule, `COMPOSITES` has graphs of several ops.
"""

from export.rule_cases import (
    activations,
    convolutions,
    einsum,
    elementwise,
    extrema,
    indexing,
    moves,
    normalizations,
    pools,
    products,
    reductions,
    resize,
    slicing,
)
from export.rule_cases.case import (
    Case,
    away_from_zero,
    build,
    central_differences,
    image_off_kinks,
    random_for,
)
from export.rule_cases.composites import COMPOSITES

__all__ = [
    "CASES",
    "COMPOSITES",
    "Case",
    "away_from_zero",
    "build",
    "central_differences",
    "image_off_kinks",
    "random_for",
]

CASES = [
    *elementwise.CASES,
    *activations.CASES,
    *extrema.CASES,
    *products.CASES,
    *convolutions.CASES,
    *pools.CASES,
    *resize.CASES,
    *reductions.CASES,
    *normalizations.CASES,
    *einsum.CASES,
    *moves.CASES,
    *slicing.CASES,
    *indexing.CASES,
]
