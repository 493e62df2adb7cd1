"""Which names of TensorRT's Python module our source uses, read off its syntax.

`trt.A.B` is a use of A.B, and so is `level.B` after `level = trt.A`. A parameter, variable or
attribute that is annotated as `tensorrt.C` makes `x.name` a use of C.name. A class derived from
`trt.C` uses C's methods of the same names.
"""

from __future__ import annotations

import ast
from pathlib import Path

_MODULE = "trt"
_TYPES = ("tensorrt.", "tensorrt_rtx.")


def names_used(file: Path) -> set[str]:
    """Return the dotted names, such as "BuilderFlag.TF32"."""
    tree = ast.parse(file.read_text("utf-8"))
    used: set[str] = set()
    for owner in (tree, *(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))):
        attributes = _attributes(owner)
        for function in owner.body:
            if isinstance(function, ast.FunctionDef):
                used |= _in_function(function, attributes)
    return used


def _type_name(path: str | None) -> str | None:
    """The class that an annotation names: tensorrt.Builder -> Builder."""
    prefix = next((each for each in _TYPES if path is not None and path.startswith(each)), None)
    return path[len(prefix) :] if path is not None and prefix is not None else None


def _attributes(owner: ast.Module | ast.ClassDef) -> dict[str, str]:
    """What is known of self._x: a class of TensorRT, or "" for its module."""
    known: dict[str, str] = {}
    for function in owner.body if isinstance(owner, ast.ClassDef) else ():
        if isinstance(function, ast.FunctionDef):
            variables = _variables(function)
            for name, value in _assignments(function):
                if name.startswith("self.") and (type_ := _type_of(value, variables)) is not None:
                    known[name] = type_
    return known


def _in_function(function: ast.FunctionDef, attributes: dict[str, str]) -> set[str]:
    known = attributes | _variables(function)
    used: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute):
            path = _dotted(node)
            if path is None:
                continue
            for name, type_ in known.items():
                if path.startswith(f"{name}."):
                    used.add(".".join(filter(None, (type_, path[len(name) + 1 :]))))
            if (annotated := _type_name(path)) is not None:
                used.add(annotated)
        elif isinstance(node, ast.ClassDef):
            used |= _inherited(node)
    return used


def _inherited(node: ast.ClassDef) -> set[str]:
    bases = [path for base in node.bases if (path := _dotted(base)) is not None]
    return {
        f"{base[len(_MODULE) + 1 :]}.{method.name}"
        for base in bases
        if base.startswith(f"{_MODULE}.")
        for method in node.body
        if isinstance(method, ast.FunctionDef)
    }


def _variables(function: ast.FunctionDef) -> dict[str, str]:
    """Classes of TensorRT by name of a variable; "" for its module."""
    known = {_MODULE: ""}
    arguments = (*function.args.args, *function.args.kwonlyargs)
    for argument in arguments:
        _learn(known, argument.arg, argument.annotation)
    for node in ast.walk(function):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            _learn(known, node.target.id, node.annotation)
    loops = (n for n in ast.walk(function) if isinstance(n, ast.comprehension | ast.For))
    for loop in loops:  # of a list, each element is what the list is annotated with
        source, each = _dotted(loop.iter), _dotted(loop.target)
        if source in known and each is not None:
            known[each] = known[source]
    for name, value in _assignments(function):
        path = _dotted(value)
        if "." not in name and path is not None and path.startswith(f"{_MODULE}."):
            known[name] = path[len(_MODULE) + 1 :]
    return known


def _learn(known: dict[str, str], name: str, annotation: ast.expr | None) -> None:
    for node in ast.walk(annotation) if annotation is not None else ():
        annotated = _type_name(_dotted(node))
        if annotated is not None:
            known[name] = annotated
            return


def _type_of(value: ast.expr, variables: dict[str, str]) -> str | None:
    return variables.get(value.id) if isinstance(value, ast.Name) else None


def _assignments(function: ast.FunctionDef) -> list[tuple[str, ast.expr]]:
    """Every `name = value`, those in `a, b = c, d` one by one."""
    pairs: list[tuple[ast.expr, ast.expr]] = []
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                pairs += zip(target.elts, value.elts, strict=True)
            else:
                pairs.append((target, value))
    return [(path, value) for target, value in pairs if (path := _dotted(target)) is not None]


def _dotted(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = _dotted(node.value)
        return None if inner is None else f"{inner}.{node.attr}"
    return None
