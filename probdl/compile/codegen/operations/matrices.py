"""Matrices: products, triangles, Cholesky factors and triangular systems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from probdl.compile.codegen.loops import Element, contiguous, copy, nest
from probdl.compile.codegen.operations.views import slices_along
from probdl.compile.codegen.own import cholesky_backward
from probdl.compile.codegen.statements import (
    MAX_SHORT_LOOP,
    Buffer,
    Builder,
    ByRows,
    UnsupportedError,
    Value,
    reach,
)

__all__ = ["RULES"]

aten = torch.ops.aten

# From these sizes on BLAS and LAPACK are faster than loops that the compiler can vectorise.
MIN_PRODUCT = 2**16  # multiplications
MIN_PRODUCT_SIDE = 8
MIN_FACTOR = 32  # rows


def _triangle(*, lower: bool) -> Callable[..., Value]:
    """Return the rule that keeps the elements up to the diagonal, or from it on."""

    def rule(builder: Builder, x: Value, diagonal: int = 0) -> Value:
        *batch, rows, columns = builder.shape
        *outer, row_stride, column_stride = x.layout.stride()
        access = (tuple(outer), 0)
        whole = tuple(s * rows * columns for s in contiguous(batch))

        def lines(source: Element, target: Element) -> list[str]:
            def of_matrix(at: list[str]) -> list[str]:
                to = target(f"{at[1]} + {columns} * r + c")
                given = source(f"{at[0]} + {row_stride} * r + {column_stride} * c")
                # The first column on the other side of the boundary.
                end = f"r + {diagonal + lower}"
                before, after = (given, "0.0") if lower else ("0.0", given)
                return [
                    f"for (ptrdiff_t r = 0; r < {rows}; r++) {{",
                    f"const ptrdiff_t end = {end} < 0 ? 0 : {end} < {columns} ? {end} : {columns};",
                    f"for (ptrdiff_t c = 0; c < end; c++) {to} = {before};",
                    f"for (ptrdiff_t c = end; c < {columns}; c++) {to} = {after};",
                    "}",
                ]

            return nest(batch, [access, (whole, 0)], of_matrix, None)

        return builder.statement(None, [x], [builder.shape], lines)[0]

    return rule


def _unrolled_product(builder: Builder, left: Value, right: Value) -> Value:
    """Multiply matrices (..., m, k) and (..., k, n) as a sum of k outer products."""
    columns = [x.like(x.layout.unsqueeze(-1)) for x in slices_along(left, [left.layout.ndim - 1])]
    rows = [x.like(x.layout.unsqueeze(-2)) for x in slices_along(right, [right.layout.ndim - 2])]
    k = len(columns)
    return builder.elementwise(
        lambda *xs: f"({' + '.join(f'{a} * {b}' for a, b in zip(xs[:k], xs[k:], strict=True))})",
        [*columns, *rows],
        builder.shape,
    )


def _product(builder: Builder, a: Value, b: Value) -> Value:
    """Multiply matrices (..., m, k) and (..., k, n); a vector is a matrix with m = 1 or n = 1."""
    shape = builder.shape
    left = a.layout if a.layout.ndim > 1 else a.layout[None]
    right = b.layout if b.layout.ndim > 1 else b.layout[:, None]
    *batch, m, k = left.shape
    n = right.shape[-1]
    if batch and 0 < k <= MAX_SHORT_LOOP:
        return _unrolled_product(builder, a, b)
    large = m * n * k >= MIN_PRODUCT and min(m, n, k) >= MIN_PRODUCT_SIDE
    if large:
        builder.uses_lapack = True
        a, a_stored = _stored_rows(builder, a)
        b, b_stored = _stored_rows(builder, b)
        left, right = a.layout, b.layout
    # Strides of the rows and columns of both matrices.
    ar, ac = left.stride()[-2:]
    br, bc = right.stride()[-2:]
    a_access, b_access = (tuple(left.stride()[:-2]), 0), (tuple(right.stride()[:-2]), 0)
    to = tuple(s * m * n for s in contiguous(batch))

    def call(names: Sequence[Element], at: Sequence[str], m: Any, k: Any, add: int) -> str:
        x, y, z = names
        if large:
            return (
                f"product({m}, {n}, {k}, 1.0, &{x(at[0])}, {a_stored}, &{y(at[1])}, {b_stored}, "
                f"{'ONE' if add else 'ZERO'}, &{z(at[2])}, {n});"
            )
        return (
            f"multiply({m}, {n}, {k}, &{x(at[0])}, {ar}, {ac}, &{y(at[1])}, {br}, {bc}, "
            f"&{z(at[2])}, {add});"
        )

    def lines(*names: Element) -> list[str]:
        accesses = [a_access, b_access, (to, 0)]
        return nest(batch, accesses, lambda at: [call(names, at, m, k, 0)], None)

    def rows_of_left(*given: Any) -> list[str]:
        *names, first, last = given
        at = [f"{ar} * {first}", "0", f"{n} * {first}"]
        return [call(names, at, f"{last} - {first}", k, 0)]

    def rows_of_right(*given: Any) -> list[str]:
        *names, first, last = given
        at = [f"{ac} * {first}", f"{br} * {first}", "0"]
        return [call(names, at, m, f"{last} - {first}", 1)]

    by_rows = []
    if not batch:
        last_of_right = reach(right, 0)[1] + br * (k - 1)
        by_rows = [
            ByRows(m, False, (reach(left, 0), (0, last_of_right)), rows_of_left),
            ByRows(k, True, (reach(left, 1), reach(right, 0)), rows_of_right),
        ]
    operands = [builder.in_memory(a), builder.in_memory(b)]
    return builder.statement(None, operands, [shape], lines, by_rows=by_rows)[0]


def _row_by_row(builder: Builder, x: Value) -> Value:
    """Return matrices that are contiguous, copied if need be."""
    shape = x.layout.shape
    plain = isinstance(x.buffer, Buffer) and tuple(x.layout.stride()) == contiguous(shape)
    return x if plain else builder.copied(x)


def _stored_rows(builder: Builder, x: Value) -> tuple[Value, str]:
    """Return matrices whose rows or columns are contiguous, copied if need be.

    Returns:
        The matrices; in C whether they are stored as their transposes, and the length of a row as
        stored.
    """
    x = builder.in_memory(x)
    rows, columns = x.layout.shape[-2:]
    down, along = x.layout.stride()[-2:]
    if along == 1 and down >= columns:
        return x, f"0, {down}"
    if down == 1 and along >= rows:
        return x, f"1, {along}"
    return builder.copied(x), f"0, {columns}"


def _cholesky(
    builder: Builder, a: Value, *, upper: bool = False, check_errors: bool = False
) -> list[Value]:
    if upper:
        raise UnsupportedError(
            "an upper Cholesky factor is not supported by the native engine; use the lower one"
        )
    a = _row_by_row(builder, a)
    shape = tuple(a.layout.shape)
    *batch, n, _ = shape
    step = tuple(s * n * n for s in contiguous(batch))
    large = n >= MIN_FACTOR
    call = "large_cholesky" if large else "cholesky"
    builder.uses_lapack |= large

    def lines(*names: Element) -> list[str]:
        source, factor, info = names
        return nest(
            batch,
            [(step, 0), (step, 0), (contiguous(batch), 0)],
            lambda at: [f"{info(at[2])} = {call}({n}, &{source(at[0])}, &{factor(at[1])});"],
            None,
        )

    return builder.statement(None, [a], [shape, batch], lines)


def _solve_triangular(
    builder: Builder,
    a: Value,
    b: Value,
    *,
    upper: bool,
    left: bool = True,
    unitriangular: bool = False,
) -> Value:
    shape = builder.shape
    if not left:  # x a = b is equivalent to a' x' = b'
        builder.shape = (*shape[:-2], shape[-1], shape[-2])
        x = _solve_triangular(
            builder, a.like(a.layout.mT), b.like(b.layout.mT), upper=not upper,
            unitriangular=unitriangular,
        )  # fmt: skip
        builder.shape = shape
        return x.like(x.layout.mT)
    a = builder.in_memory(a)
    *batch, n, m = shape
    large = n >= MIN_FACTOR
    stored = ""
    if large:
        builder.uses_lapack = True
        a, stored = _stored_rows(builder, a)
    matrix = a.layout.expand(*batch, n, n)
    ar, ac = matrix.stride()[-2:]
    a_access = (tuple(matrix.stride()[:-2]), 0)
    b_access = (tuple(b.layout.expand(shape).stride()), 0)
    to = tuple(s * n * m for s in contiguous(batch))
    call = "large_solve_triangular" if large else "solve_triangular"

    def lines(*names: Element) -> list[str]:
        source, given, target = names
        return copy(b_access, (contiguous(shape), 0), shape, given, target) + nest(
            batch,
            [a_access, (to, 0)],
            lambda at: [
                f"{call}({n}, {m}, &{source(at[0])}, {stored or f'{ar}, {ac}'}, {int(upper)}, "
                f"{int(unitriangular)}, &{target(at[1])});"
            ],
            None,
        )

    return builder.statement(None, [a, b], [shape], lines)[0]


def _cholesky_backward(builder: Builder, factor: Value, grad: Value) -> Value:
    factor, grad = _row_by_row(builder, factor), _row_by_row(builder, grad)
    shape = builder.shape
    *batch, n, _ = shape
    step = tuple(s * n * n for s in contiguous(batch))
    builder.uses_lapack = True

    def lines(*names: Element) -> list[str]:
        source, given, target = names
        return nest(
            batch,
            [(step, 0), (step, 0), (step, 0)],
            lambda at: [
                f"cholesky_gradient({n}, &{source(at[0])}, &{given(at[1])}, &{target(at[2])});"
            ],
            None,
        )

    return builder.statement(None, [factor, grad], [shape], lines)[0]


RULES: dict[Any, Callable[..., Any]] = {
    aten.tril: _triangle(lower=True),
    aten.triu: _triangle(lower=False),
    aten.mm: _product,
    aten.bmm: _product,
    aten.mv: _product,
    aten.dot: _product,
    aten.linalg_cholesky_ex: _cholesky,
    aten.linalg_solve_triangular: _solve_triangular,
    cholesky_backward: _cholesky_backward,
}
