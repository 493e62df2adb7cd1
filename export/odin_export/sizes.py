"""Sizes that shape inference leaves open, found by trying.

Exporters compute shapes at run time (Shape, Gather, Concat, Reshape ...), and ONNX's inference
loses track of them: every lost size gets a name of its own, and two branches of equal size look
different. With numbers in place of the input's symbols, the same inference together with constant
folding knows every size. What comes out equal at several sizes of the image is taken to be equal.
"""

from __future__ import annotations

import onnx_ir as ir

from odin_export import clean
from odin_export.emit import dims

Sizes = list[int | str | None]

# Batches and images to try. The first images are multiples of 32, which every usual network takes;
# height and width differ, so that they are not taken for one another. A network may not take the
# others, but where it does, odd ones tell the two halves of an image apart, and small ones a size
# that is always so from one that a bound such as x[:100] makes so for large images only.
_BATCHES = (2, 5, 7, 3, 11, 13)
_HEIGHTS = (224, 448, 320, 225, 25, 8)
_WIDTHS = (256, 192, 544, 193, 39, 12)
_SURE = 3  # trials that must have an answer


def resolve_sizes(model: ir.Model) -> None:
    """Fill in, in place, sizes of a model's values that are unknown or have names of inference's.

    A size becomes a number where it is the same at every trial, the name of an input's dimension
    where it follows that, and otherwise a name that equal sizes share.
    """
    graph = model.graph
    symbols = _input_symbols(graph)
    if not _is_open(graph, set(symbols)):
        return
    assignments = [_assignment(symbols, index) for index in range(len(_BATCHES))]
    if len(symbols) < 2:  # nothing but the batch is dynamic
        assignments = assignments[:_SURE]
    trials = [_shapes_at(model, assignment) for assignment in assignments]
    own = {
        symbol: tuple(assignment[symbol] for assignment in assignments)
        for symbol in reversed(symbols)
    }
    for node in graph:
        for value in node.outputs:
            shapes = [trial.get(value.name or "") for trial in trials]
            if all(shape is not None for shape in shapes[:_SURE]):
                _set_sizes(value, shapes, own)


def _input_symbols(graph: ir.Graph) -> list[str]:
    """The names of dynamic sizes of the inputs, the batch's first."""
    names = [dim for value in graph.inputs for dim in dims(value) if isinstance(dim, str)]
    return list(dict.fromkeys(names))


def _is_open(graph: ir.Graph, symbols: set[str]) -> bool:
    """Whether some float value has a size that is neither a number nor an input's symbol."""
    values = [value for node in graph for value in node.outputs]
    return any(
        value.shape is None
        or any(not isinstance(dim, int) and dim not in symbols for dim in dims(value))
        for value in values
        if value.dtype is None or value.dtype.is_floating_point()
    )


def _assignment(symbols: list[str], trial: int) -> dict[str, int]:
    values = (_BATCHES, _HEIGHTS, _WIDTHS)
    return {
        symbol: values[min(index, 2)][trial] + 32 * max(index - 2, 0)
        for index, symbol in enumerate(symbols)
    }


def _shapes_at(model: ir.Model, sizes: dict[str, int]) -> dict[str, Sizes]:
    """Every value's shape when the input's symbols have these sizes."""
    trial = model.clone()
    for value in trial.graph.inputs:
        value.shape = ir.Shape([sizes.get(str(dim), dim) for dim in dims(value)])
    for value in trial.graph.outputs:
        value.shape = None
    for node in trial.graph.all_nodes():
        for value in node.outputs:
            value.shape = None
    shapes: dict[str, Sizes] = {}
    for _ in range(2):  # what folding reveals, inference takes further
        clean.infer_shapes(trial)
        clean.fold(trial)
        for node in trial.graph:
            for value in node.outputs:
                if value.name and value.shape is not None:
                    shapes[value.name] = dims(value)
    return shapes


def _set_sizes(
    value: ir.Value, shapes: list[Sizes | None], own: dict[str, tuple[int, ...]]
) -> None:
    """Give a value the shape that the trials show."""
    found = [shape for shape in shapes if shape is not None]
    if len({len(shape) for shape in found}) != 1:
        return
    known = [None] * len(found[0]) if value.shape is None else dims(value)
    value.shape = ir.Shape(
        [
            before if isinstance(before, int) else _size(before, _along(axis, shapes), own)
            for axis, before in enumerate(known)
        ]
    )


def _along(axis: int, shapes: list[Sizes | None]) -> list[int | None]:
    """The sizes of an axis in each trial; None where a trial has no sensible one."""
    sizes = [None if shape is None else shape[axis] for shape in shapes]
    return [size if isinstance(size, int) and size > 0 else None for size in sizes]


def _size(
    before: int | str | None, trials: list[int | None], own: dict[str, tuple[int, ...]]
) -> int | str | None:
    """The number, symbol or name for a size that was this in each trial."""
    if None in trials[:_SURE]:
        return before
    seen = [size for size in trials if size is not None]
    for symbol, sizes in own.items():
        if all(size in (None, expected) for size, expected in zip(trials, sizes, strict=True)):
            return symbol
    if len(set(seen)) == 1:
        return seen[0]
    return f"size_{'_'.join(str(size) if size else 'x' for size in trials)}"
