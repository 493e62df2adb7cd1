"""Einsum."""

from __future__ import annotations

from collections.abc import Sequence

from export.rule_cases.case import FIXED, ONE_AND_THREE, Case

LENGTHS = ({"N": 1, "T": 3}, {"N": 3, "T": 1}, {"N": 2, "T": 4})
UPPER_CASE = "TensorRT takes no upper case letters"


def einsum(
    what: str,
    equation: str,
    shape: tuple[int | str, ...],
    *constants: tuple[int, ...],
    call: str = "",
    opset: int = 20,
) -> Case:
    """A case of one Einsum; its operands are x and the constants a, b, c unless `call` tells."""
    names = "abc"[: len(constants)]
    at = LENGTHS if "T" in shape else ONE_AND_THREE if "N" in shape else FIXED
    text = f'y = Einsum <equation = "{equation}"> ({call or ", ".join(["x", *names])})'
    held: dict[str, Sequence[int]] = dict(zip(names, constants, strict=True))
    rtx = UPPER_CASE if equation != equation.lower() else ""
    return Case("Einsum", what, shape, text, held, at, opset=opset, rtx=rtx)


TWO = ("N", 3)
THREE = ("N", 2, 3)

CASES = [
    einsum("matrix product", "ni,io->no", TWO, (3, 4)),
    einsum("matrix product, opset 13", "ni,io->no", TWO, (3, 4), opset=13),
    einsum("square weight", "ni,io->no", TWO, (3, 3)),
    einsum("transposed weight", "ni,oi->no", TWO, (3, 3)),
    einsum("x is the second", "oi,ni->on", TWO, (2, 3), call="a, x"),
    einsum("spaces", " n i , i o -> n o ", TWO, (3, 4)),
    einsum("implicit output", "ni,io", TWO, (3, 4)),
    einsum("implicit output, letters out of order", "zi,ia", TWO, (3, 4)),
    einsum("implicit output of one operand", "ba", TWO),
    einsum("implicit output of upper and lower case", "bi,iA", TWO, (3, 4)),
    einsum("upper case", "Ni,Io->NI", TWO, (2, 4)),
    einsum("transpose", "nij->nji", THREE),
    einsum("identity", "nij->nij", THREE),
    einsum("sum", "nij->nj", THREE),
    einsum("sum of all", "nij->", THREE),
    einsum("implicit, no index left", "ni,ni", TWO, call="x, x"),
    einsum("index of x alone", "nij,jk->nk", THREE, (3, 2)),
    einsum("index of the other alone", "ni,jk->nk", TWO, (2, 4)),
    einsum("outer product", "ni,j->nij", TWO, (2,)),
    einsum("elementwise", "ni,i->ni", TWO, (3,)),
    einsum("inner product", "i,i->", (3,), (3,)),
    einsum("scalar factor", "ni,->ni", TWO, ()),
    einsum("x is a scalar factor", ",ij->ji", (), (2, 3)),
    einsum("both depend on x", "nij,nkj->nik", THREE, call="x, x"),
    einsum("both depend on x, dynamic", "nij,nkj->nik", ("N", "T", 2), call="x, x"),
    einsum("attention of heads", "nthd,nshd->nhts", ("N", "T", 2, 2), call="x, x"),
    einsum("three operands", "ni,ij,nj->n", TWO, (3, 3), call="x, a, x"),
    einsum("four operands", "ni,ij,kj,k->nk", TWO, (3, 2), (4, 2), (4,)),
    einsum("ellipsis", "...i,io->...o", ("N", 2, 2, 3), (3, 4)),
    einsum("ellipsis of nothing", "...i,io->...o", (3,), (3, 4)),
    einsum("ellipsis in both", "...ij,...jk->...ik", ("N", 2, 3), (1, 3, 2)),
    einsum("ellipsis, x repeated", "...i,...i->...", (1, 3), (4, 3)),
    einsum("ellipsis, each repeated", "...i,...i->...i", (2, 1, 3), (1, 4, 3)),
    einsum("ellipsis, the other repeated", "...i,...i->...", ("N", 2, 3), (1, 1, 3)),
    einsum("ellipsis in the middle", "n...i,i->i...n", ("N", 2, 3), (3,)),
    einsum("ellipsis, implicit output", "...i,ij", ("N", 2, 3), (3, 2)),
    einsum("ellipsis, dynamic", "...i,ij->...j", ("N", "T", 3), (3, 2)),
    einsum("x has size 1 and is repeated", "ni,ij->nj", ("N", 1), (3, 2)),
    einsum("the other has size 1 and is repeated", "ni,ij->nij", TWO, (1, 2)),
    einsum("all have size 1", "ni,ij->nj", ("N", 1), (1, 1)),
    Case(
        "Einsum",
        "several operands of different rank depend on x",
        THREE,
        's = ReduceSum <keepdims = 0> (x, last)\ny = Einsum <equation = "nij,jk,ni->nk"> (x, w, s)',
        {"last": [2], "w": (3, 3)},
    ),
]
