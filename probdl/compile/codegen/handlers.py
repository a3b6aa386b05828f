"""The operations that need loops of their own: reductions, assembly, matrices, indices."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from probdl.compile.codegen.loops import Access, Element, contiguous, copy, nest
from probdl.compile.codegen.operations import POINTWISE, REDUCTIONS, literal
from probdl.compile.codegen.statements import (
    FEW,
    Builder,
    ByRows,
    UnsupportedError,
    Value,
    empty,
    reach,
    squeezed,
)

__all__ = ["EXACT", "HANDLERS", "VIEWS", "reduction"]

aten = torch.ops.aten

_JOINED = {
    aten.sum: aten.add, aten.prod: aten.mul, aten.amax: aten.maximum, aten.amin: aten.minimum,
    aten.any: aten.logical_or, aten.all: aten.logical_and,
}  # fmt: skip


def reduction(e: Builder, op: Any, x: Value, dims: Any = None, keepdim: bool = False) -> Value:
    """Reduce a tensor along dimensions; none given means all."""
    shape = tuple(x.layout.shape)
    if dims is None or dims == []:
        dims = list(range(len(shape)))
    axes = {d % len(shape) for d in ([dims] if isinstance(dims, int) else dims)} if shape else set()
    if op is aten.sum:
        for d in axes:  # what does not vary along a dimension is its size times that
            n = x.layout.shape[d]
            if n > 1 and x.layout.stride(d) == 0:
                one = x.like(x.layout.narrow(d, 0, 1))
                times = literal(n)
                x = e.elementwise(
                    lambda v, times=times: f"({v} * {times})", [one], tuple(one.layout.shape)
                )
        shape = tuple(x.layout.shape)
    if x.layout.numel() == 1:
        same = "(double)({} != 0)" if op in (aten.any, aten.all) else "{}"
        return e.elementwise(same.format, [x.like(x.layout.reshape(e.shape))], e.shape)
    if all(n == 1 for i, n in enumerate(shape) if i not in axes):
        key = squeezed(shape)
        kind = "sum" if op is aten.sum else str(op)
        return e.statement(
            key if kind == "sum" else (*key, kind), [x], [e.shape], lambda v: v, total=op
        )[0]
    kept = [i for i in range(len(shape)) if i not in axes]
    if 0 < math.prod(shape[d] for d in axes) <= FEW:
        parts = _slices(x, list(axes))
        begin = [REDUCTIONS[op][0]] if op in (aten.any, aten.all) else []  # makes truth values
        result = e.elementwise(
            lambda *names: functools.reduce(POINTWISE[_JOINED[op]], [*begin, *names]),
            parts,
            tuple(parts[0].layout.shape),
        )
        return result.like(result.layout.view(e.shape))
    start, step = REDUCTIONS[op]
    outer = x.layout.permute(*kept, *sorted(axes))
    sizes, strides = tuple(outer.shape), outer.stride()
    k = len(kept)
    inner_first = min(
        (s for s, n in zip(strides[k:], sizes[k:], strict=True) if n > 1), default=0
    ) <= min((s for s, n in zip(strides[:k], sizes[:k], strict=True) if n > 1), default=0)
    offset = int(outer.storage_offset())
    along = contiguous(sizes[:k])

    def inside_first(source: Element, target: Element, rows: Any = None) -> list[str]:
        clause = " reduction(+ : sum)" if op is aten.sum else None
        return nest(
            sizes[:k],
            [(tuple(strides[:k]), offset), (along, 0)],
            lambda at: [
                f"double sum = {start};",
                *nest(
                    sizes[k:],
                    [(tuple(strides[k:]), 0)],
                    lambda inner: [step.format("sum", source(f"{at[0]} + {inner[0]}"))],
                    clause,
                    "j",
                ),
                f"{target(at[1])} = sum;",
            ],
            None,
            rows=rows,
        )

    def added(source: Element, target: Element, rows: Any = None) -> list[str]:
        return nest(
            sizes[k:],
            [(tuple(strides[k:]), offset)],
            lambda outer_at: nest(
                sizes[:k],
                [(tuple(strides[:k]), 0), (along, 0)],
                lambda at: [step.format(target(at[1]), source(f"{outer_at[0]} + {at[0]}"))],
                "",
                "j",
            ),
            None,
            rows=rows,
        )

    def write(source: Element, target: Element) -> list[str]:
        if inner_first:
            return inside_first(source, target)
        fill = nest(sizes[:k], [(along, 0)], lambda at: [f"{target(at[0])} = {start};"], "")
        return fill + added(source, target)

    by_rows = []
    first = next(i for i, n in enumerate(shape) if n != 1)
    if first in kept or op is aten.sum:
        some = added if first in axes else inside_first
        by_rows = [
            ByRows(
                shape[first],
                first in axes,
                (reach(x.layout, first),),
                lambda source, target, *rows: some(source, target, rows),
            )
        ]
    return e.statement(None, [x], [e.shape], write, by_rows=by_rows)[0]


def _slices(x: Value, dims: Sequence[int]) -> list[Value]:
    """Take a tensor apart along dimensions, which the parts no longer have."""
    parts = [x.layout]
    for d in sorted(dims, reverse=True):
        parts = [piece for part in parts for piece in part.unbind(d)]
    return [x.like(part) for part in parts]


def _assembled(e: Builder, base: Value | float, pieces: Sequence[tuple[Tensor, Value]]) -> Value:
    """Make a tensor of ``e.shape`` from a base and values written over parts of it.

    Each part is a layout over a contiguous tensor of that shape.
    """
    shape = e.shape
    whole = empty(shape)

    def write(*names: Element) -> list[str]:
        *sources, target = names
        lines: list[str] = []
        if isinstance(base, Value):
            lines += copy(base.access, (tuple(whole.stride()), 0), shape, sources[0], target)
            sources = sources[1:]
        elif sum(part.numel() for part, _ in pieces) < whole.numel():
            lines += nest(
                shape,
                [(tuple(whole.stride()), 0)],
                lambda at: [f"{target(at[0])} = {literal(base)};"],
                "",
            )
        for (part, value), source in zip(pieces, sources, strict=True):
            to = (tuple(part.stride()), int(part.storage_offset()))
            expanded = value.layout.expand(part.shape)
            access = (tuple(expanded.stride()), int(expanded.storage_offset()))
            lines += copy(access, to, tuple(part.shape), source, target)
        return lines

    operands = [base] if isinstance(base, Value) else []
    return e.statement(None, [*operands, *(v for _, v in pieces)], [shape], write)[0]


def _full(e: Builder, shape: Any, fill: Any = None, **_: Any) -> Value:
    number = shape if fill is None else fill
    if isinstance(number, Value):
        return number.like(number.layout.expand(e.shape))
    return Value(float(number), torch.empty((), device="meta").expand(e.shape))


def _to_copy(e: Builder, x: Value, dtype: Any = None, **_: Any) -> Value:
    if e.dtype is torch.bool:
        return e.elementwise(lambda v: f"(double)({v} != 0)", [x], e.shape)
    if e.dtype is not None and not e.dtype.is_floating_point:
        return e.elementwise(lambda v: f"trunc({v})", [x], e.shape)
    return x


def _part(e: Builder, view: Any, *args: Any) -> Tensor:
    return view(empty(e.shape), *args)


def _cat(e: Builder, tensors: Sequence[Value], dim: int = 0) -> Value:
    pieces, start = [], 0
    for value in tensors:
        if value.layout.shape == (0,) and len(e.shape) != 1:  # torch lets these pass
            continue
        length = value.layout.shape[dim]
        pieces.append((_part(e, torch.narrow, dim, start, length), value))
        start += length
    return _assembled(e, 0.0, pieces)


def _stack(e: Builder, tensors: Sequence[Value], dim: int = 0) -> Value:
    return _assembled(
        e, 0.0, [(_part(e, torch.select, dim, i), value) for i, value in enumerate(tensors)]
    )


def _pad(e: Builder, x: Value, pad: Sequence[int], value: float = 0.0) -> Value:
    part, layout = empty(e.shape), x.layout
    for k in range(len(pad) // 2):
        dim, before, after = layout.ndim - 1 - k, pad[2 * k], pad[2 * k + 1]
        layout = layout.narrow(
            dim, max(-before, 0), layout.shape[dim] + min(before, 0) + min(after, 0)
        )
        part = part.narrow(dim, max(before, 0), part.shape[dim] - max(before, 0) - max(after, 0))
    return _assembled(e, value, [(part, x.like(layout))])


def _slice_backward(
    e: Builder, grad: Value, sizes: Any, dim: int, start: int, end: int, step: int
) -> Value:
    return _assembled(e, 0.0, [(aten.slice(empty(e.shape), dim, start, end, step), grad)])


def _select_backward(e: Builder, grad: Value, sizes: Any, dim: int, index: int) -> Value:
    return _assembled(e, 0.0, [(_part(e, torch.select, dim, index), grad)])


def _diagonal_backward(
    e: Builder, grad: Value, sizes: Any, offset: int, dim1: int, dim2: int
) -> Value:
    return _assembled(e, 0.0, [(_part(e, torch.diagonal, offset, dim1, dim2), grad)])


def _scatter(view: Callable[..., Tensor]) -> Callable[..., Value]:
    def write(e: Builder, base: Value, source: Value, *args: Any) -> Value:
        return _assembled(e, base, [(view(empty(e.shape), *args), source)])

    return write


def _strided_scatter(e: Builder, base: Value, source: Value, *args: Any) -> Value:
    if not e.whole:
        raise UnsupportedError("as_strided of a view has no C form")
    return _assembled(e, base, [(torch.as_strided(empty(e.shape), *args), source)])


def _copy_(e: Builder, target: Value, source: Value, *_: Any) -> Value:
    return _to_copy(e, source.like(source.layout.expand(e.shape)))


def _as_strided(
    e: Builder, x: Value, size: Sequence[int], stride: Sequence[int], offset: int | None = None
) -> Value:
    if not e.whole:
        raise UnsupportedError("as_strided of a view has no C form")
    x = e.copied(x)
    return x.like(x.layout.as_strided(size, stride, offset or 0))


def _flip(e: Builder, x: Value, dims: Sequence[int]) -> Value:
    flipped = {d % x.layout.ndim for d in dims}
    strides, start = list(x.layout.stride()), int(x.layout.storage_offset())
    for d in flipped:
        start += strides[d] * (x.layout.shape[d] - 1)
        strides[d] = -strides[d]
    shape = e.shape
    target_access = (contiguous(shape), 0)
    return e.statement(
        None,
        [x],
        [shape],
        lambda source, target: copy((tuple(strides), start), target_access, shape, source, target),
    )[0]


def _triangle(keep: str) -> Callable[..., Value]:
    def write(e: Builder, x: Value, diagonal: int = 0) -> Value:
        *batch, rows, columns = e.shape
        *outer, row_stride, column_stride = x.layout.stride()
        access = (tuple(outer), int(x.layout.storage_offset()))
        whole = tuple(s * rows * columns for s in contiguous(batch))

        def lines(source: Element, target: Element) -> list[str]:
            return nest(
                batch,
                [access, (whole, 0)],
                lambda at: [
                    f"for (ptrdiff_t r = 0; r < {rows}; r++)",
                    f"for (ptrdiff_t c = 0; c < {columns}; c++)",
                    f"{target(f'{at[1]} + {columns} * r + c')} = c - r {keep} {diagonal} ? "
                    f"{source(f'{at[0]} + {row_stride} * r + {column_stride} * c')} : 0.0;",
                ],
                None,
            )

        return e.statement(None, [x], [e.shape], lines)[0]

    return write


def _scan(sign: str, start: str) -> Callable[..., Value]:
    def write(e: Builder, x: Value, dim: int, **_: Any) -> Value:
        shape = e.shape
        if not shape:
            return x
        dim %= len(shape)
        others = [n for d, n in enumerate(shape) if d != dim]
        strides, to = list(x.layout.stride()), list(contiguous(shape))
        step, to_step = strides.pop(dim), to.pop(dim)
        access = (tuple(strides), int(x.layout.storage_offset()))

        def lines(source: Element, target: Element) -> list[str]:
            return nest(
                others,
                [access, (tuple(to), 0)],
                lambda at: [
                    f"double total = {start};",
                    f"for (ptrdiff_t k = 0; k < {shape[dim]}; k++) {{",
                    f"total {sign}= {source(f'{at[0]} + {step} * k')};",
                    f"{target(f'{at[1]} + {to_step} * k')} = total;",
                    "}",
                ],
                None,
            )

        return e.statement(None, [x], [shape], lines)[0]

    return write


def _extreme(sign: str) -> Callable[..., list[Value]]:
    def write(e: Builder, x: Value, dim: int, keepdim: bool = False) -> list[Value]:
        shape = tuple(x.layout.shape)
        if not shape:
            return [x, Value(0.0, empty(()))]
        dim %= len(shape)
        others = [n for d, n in enumerate(shape) if d != dim]
        result = tuple(1 if d == dim else n for d, n in enumerate(shape) if d != dim or keepdim)
        if 0 < shape[dim] <= FEW:
            return [
                v.like(v.layout.unsqueeze(dim) if keepdim else v.layout)
                for v in _extreme_of_few(e, sign, _slices(x, [dim]))
            ]
        strides = list(x.layout.stride())
        step = strides.pop(dim)
        access = (tuple(strides), int(x.layout.storage_offset()))

        def lines(
            source: Element,
            best: Element,
            where: Element,
        ) -> list[str]:
            return nest(
                others,
                [access, (contiguous(others), 0)],
                lambda at: [
                    f"double found = {source(at[0])};",
                    "ptrdiff_t place = 0;",
                    f"for (ptrdiff_t k = 1; k < {shape[dim]}; k++) {{",
                    f"const double v = {source(f'{at[0]} + {step} * k')};",
                    f"if (v {sign} found || (v != v && found == found)) found = v, place = k;",
                    "}",
                    f"{best(at[1])} = found;",
                    f"{where(at[1])} = (double)place;",
                ],
                None,
            )

        return e.statement(None, [x], [result, result], lines)

    return write


def _extreme_of_few(e: Builder, sign: str, parts: Sequence[Value]) -> list[Value]:
    """Return the extreme element of some tensors, and in which it is first; NaN is extreme."""
    join = POINTWISE[aten.maximum if sign == ">" else aten.minimum]
    shape = tuple(parts[0].layout.shape)
    found, place = parts[0], Value(0.0, empty(()).expand(shape))
    for k, part in enumerate(parts[1:], 1):
        place = e.elementwise(
            lambda v, f, p, k=k: f"({v} {sign} {f} || ({v} != {v} && {f} == {f}) ? {k}.0 : {p})",
            [part, found, place],
            shape,
        )
        found = e.elementwise(join, [part, found], shape)
    return [found, place]


def _product_of_few(e: Builder, left: Value, right: Value) -> Value:
    """Multiply matrices (…, m, k) and (…, k, n) as a sum of k outer products."""
    columns = [x.like(x.layout.unsqueeze(-1)) for x in _slices(left, [left.layout.ndim - 1])]
    rows = [x.like(x.layout.unsqueeze(-2)) for x in _slices(right, [right.layout.ndim - 2])]
    k = len(columns)
    return e.elementwise(
        lambda *xs: f"({' + '.join(f'{a} * {b}' for a, b in zip(xs[:k], xs[k:], strict=True))})",
        [*columns, *rows],
        e.shape,
    )


def _product(e: Builder, a: Value, b: Value) -> Value:
    """Multiply matrices (…, m, k) and (…, k, n); vectors get the dimension they lack."""
    shape = e.shape
    left = a.layout if a.layout.ndim > 1 else a.layout[None]
    right = b.layout if b.layout.ndim > 1 else b.layout[:, None]
    *batch, m, k = left.shape
    n = right.shape[-1]
    if batch and 0 < k <= FEW:
        return _product_of_few(e, a, b)
    ar, ac = left.stride()[-2:]
    br, bc = right.stride()[-2:]
    a_access = (tuple(left.stride()[:-2]), int(left.storage_offset()))
    b_access = (tuple(right.stride()[:-2]), int(right.storage_offset()))
    to = tuple(s * m * n for s in contiguous(batch))

    def code(names: Sequence[Element], at: Sequence[str], m: Any, k: Any, add: int) -> str:
        x, y, z = names
        return (
            f"multiply({m}, {n}, {k}, &{x(at[0])}, {ar}, {ac}, &{y(at[1])}, {br}, {bc}, "
            f"&{z(at[2])}, {add});"
        )

    def lines(*names: Element) -> list[str]:
        accesses = [a_access, b_access, (to, 0)]
        return nest(batch, accesses, lambda at: [code(names, at, m, k, 0)], None)

    def some_rows(*given: Any) -> list[str]:
        *names, first, last = given
        at = [f"{a_access[1]} + {ar} * {first}", str(b_access[1]), f"{n} * {first}"]
        return [code(names, at, f"{last} - {first}", k, 0)]

    def some_terms(*given: Any) -> list[str]:
        *names, first, last = given
        at = [f"{a_access[1]} + {ac} * {first}", f"{b_access[1]} + {br} * {first}", "0"]
        return [code(names, at, m, f"{last} - {first}", 1)]

    by_rows = []
    if not batch:
        whole = reach(right, 0)[1] + br * (k - 1)
        by_rows = [
            ByRows(m, False, (reach(left, 0), (0, whole)), some_rows),
            ByRows(k, True, (reach(left, 1), reach(right, 0)), some_terms),
        ]
    return e.statement(None, [e.in_memory(a), e.in_memory(b)], [shape], lines, by_rows=by_rows)[0]


def _cholesky(
    e: Builder, a: Value, *, upper: bool = False, check_errors: bool = False
) -> list[Value]:
    if upper:
        raise UnsupportedError("an upper Cholesky factor has no C form; use the lower one")
    a = e.copied(a)
    shape = tuple(a.layout.shape)
    *batch, n, _ = shape
    step = tuple(s * n * n for s in contiguous(batch))

    def lines(*names: Element) -> list[str]:
        source, factor, info = names
        return nest(
            batch,
            [(step, 0), (contiguous(batch), 0)],
            lambda at: [f"{info(at[1])} = cholesky({n}, &{source(at[0])}, &{factor(at[0])});"],
            None,
        )

    return e.statement(None, [a], [shape, batch], lines)


def _solve_triangular(
    e: Builder,
    a: Value,
    b: Value,
    *,
    upper: bool,
    left: bool = True,
    unitriangular: bool = False,
) -> Value:
    shape = e.shape
    if not left:  # x a = b is a' x' = b'
        e.shape = (*shape[:-2], shape[-1], shape[-2])
        x = _solve_triangular(
            e, a.like(a.layout.mT), b.like(b.layout.mT), upper=not upper,
            unitriangular=unitriangular,
        )  # fmt: skip
        e.shape = shape
        return x.like(x.layout.mT)
    a = e.in_memory(a)
    *batch, n, m = shape
    matrix = a.layout.expand(*batch, n, n)
    ar, ac = matrix.stride()[-2:]
    a_access = (tuple(matrix.stride()[:-2]), int(matrix.storage_offset()))
    right = b.layout.expand(shape)
    b_access = (tuple(right.stride()), int(right.storage_offset()))
    to = tuple(s * n * m for s in contiguous(batch))

    def lines(*names: Element) -> list[str]:
        source, given, target = names
        return copy(b_access, (contiguous(shape), 0), shape, given, target) + nest(
            batch,
            [a_access, (to, 0)],
            lambda at: [
                f"solve_triangular({n}, {m}, &{source(at[0])}, {ar}, {ac}, {int(upper)}, "
                f"{int(unitriangular)}, &{target(at[1])});"
            ],
            None,
        )

    return e.statement(None, [a, b], [shape], lines)[0]


def _places(
    indices: Sequence[Value | None], layout: Tensor
) -> tuple[tuple[int, ...], list[int], Tensor]:
    """Return the shape of the indices together, the indexed dims, and the layout of the rest."""
    indexed = [d for d, i in enumerate(indices) if i is not None]
    if indexed != list(range(indexed[0], indexed[-1] + 1)):
        raise UnsupportedError("indices with a slice between them have no C form")
    shape = torch.broadcast_shapes(*(i.layout.shape for i in indices if i is not None))
    rest = layout
    for d in reversed(indexed):
        rest = rest.select(d, 0)
    return tuple(shape), indexed, rest


def _index_code(
    e: Builder, x_layout: Tensor, indices: Sequence[Value | None]
) -> tuple[tuple[int, ...], int, list[Value], list[Access], Callable[..., Any]]:
    """Prepare loops over the elements that indices pick out of a tensor.

    Returns the shape of the result, operands and their accesses along it, and a function from
    the names of the operands and the C indices to the lines that compute the place ``p``.
    """
    picked, indexed, rest = _places(indices, x_layout)
    first = indexed[0]
    shape = (*rest.shape[:first], *picked, *rest.shape[first:])
    used = [e.in_memory(i) for i in indices if i is not None]
    accesses: list[Access] = []
    for value in used:
        expanded = value.layout.expand(picked)
        strides = [0] * len(shape)
        strides[first : first + len(picked)] = expanded.stride()
        accesses.append((tuple(strides), int(expanded.storage_offset())))
    along = [0] * len(shape)
    along[:first] = rest.stride()[:first]
    along[first + len(picked) :] = rest.stride()[first:]
    accesses.append((tuple(along), int(rest.storage_offset())))
    sizes = [x_layout.shape[d] for d in indexed]
    steps = [x_layout.stride()[d] for d in indexed]

    def place(names: Sequence[Element], at: Sequence[str]) -> list[str]:
        lines = [f"ptrdiff_t p = {at[len(used)]};"]
        for name, where, size, step in zip(names, at, sizes, steps, strict=False):
            lines += [
                "{",
                f"ptrdiff_t q = (ptrdiff_t){name(where)};",
                f"q += q < 0 ? {size} : 0;",
                f"p += {step} * (q < 0 ? 0 : q >= {size} ? {size - 1} : q);",
                "}",
            ]
        return lines

    return shape, first, used, accesses, place


def _index(e: Builder, x: Value, indices: Sequence[Value | None]) -> Value:
    x = e.in_memory(x)
    shape, _, used, accesses, place = _index_code(e, x.layout, indices)

    def lines(*names: Element) -> list[str]:
        source, *of_indices, target = names
        return nest(
            shape,
            [*accesses, (contiguous(shape), 0)],
            lambda at: [*place(of_indices, at), f"{target(at[-1])} = {source('p')};"],
            "",
        )

    return e.statement(None, [x, *used], [shape], lines)[0]


def _index_put(
    e: Builder, x: Value, indices: Sequence[Value | None], values: Value, accumulate: bool = False
) -> Value:
    if accumulate and e.dtype is torch.bool:
        raise UnsupportedError("accumulating truth values has no C form")
    whole = empty(e.shape)
    shape, _, used, accesses, place = _index_code(e, whole, indices)
    spread = values.layout.expand(shape)
    of_values = (tuple(spread.stride()), int(spread.storage_offset()))
    sign = "+=" if accumulate else "="
    result = e.shape

    def lines(*names: Element) -> list[str]:
        base, given, *of_indices, target = names
        return copy(x.access, (contiguous(result), 0), result, base, target) + nest(
            shape,
            [*accesses, of_values],
            lambda at: [*place(of_indices, at), f"{target('p')} {sign} {given(at[-1])};"],
            None,
        )

    return e.statement(None, [x, values, *used], [result], lines)[0]


def _along(
    e: Builder, layout: Tensor, dim: int, index: Value
) -> tuple[tuple[int, ...], list[Access], Callable[..., list[str]]]:
    """Prepare loops over an index whose entries are places along one dimension of a tensor."""
    shape = tuple(index.layout.shape)
    if not shape:
        raise UnsupportedError("gather and scatter of single numbers have no C form")
    dim %= len(shape)
    strides, size = list(layout.stride()), layout.shape[dim]
    step, strides[dim] = strides[dim], 0

    def place(name: Element, at: Sequence[str]) -> list[str]:
        return [
            f"ptrdiff_t q = (ptrdiff_t){name(at[0])};",
            f"const ptrdiff_t p = {at[1]} + {step} * (q < 0 ? 0 : q >= {size} ? {size - 1} : q);",
        ]

    return shape, [index.access, (tuple(strides), int(layout.storage_offset()))], place


def _gather(e: Builder, x: Value, dim: int, index: Value, **_: Any) -> Value:
    x, index = e.in_memory(x), e.in_memory(index)
    shape, accesses, place = _along(e, x.layout, dim, index)

    def lines(*names: Element) -> list[str]:
        source, of_index, target = names
        return nest(
            shape,
            [*accesses, (contiguous(shape), 0)],
            lambda at: [*place(of_index, at), f"{target(at[2])} = {source('p')};"],
            "",
        )

    return e.statement(None, [x, index], [shape], lines)[0]


def _scatter_along(sign: str) -> Callable[..., Value]:
    def write(
        e: Builder, x: Value, dim: int, index: Value, source: Any, reduce: Any = None
    ) -> Value:
        if sign == "+=" and e.dtype is torch.bool:
            raise UnsupportedError("accumulating truth values has no C form")
        if reduce is not None:
            raise UnsupportedError("scatter with reduce has no C form")
        result, index = e.shape, e.in_memory(index)
        shape, accesses, place = _along(e, empty(result), dim, index)
        if not isinstance(source, Value):
            source = Value(float(source), torch.empty((), device="meta").expand(shape))
        part = source.layout[tuple(slice(n) for n in shape)]
        of_source = (tuple(part.stride()), int(part.storage_offset()))

        def lines(*names: Element) -> list[str]:
            base, of_index, given, target = names
            return copy(x.access, (contiguous(result), 0), result, base, target) + nest(
                shape,
                [*accesses, of_source],
                lambda at: [*place(of_index, at), f"{target('p')} {sign} {given(at[2])};"],
                None,
            )

        return e.statement(None, [x, index, source], [result], lines)[0]

    return write


EXACT = {aten.full, aten.scalar_tensor}
VIEWS = {aten._unsafe_view, aten.expand, aten.reshape}
HANDLERS: dict[Any, Callable[..., Any]] = {
    aten.full: _full,
    aten.scalar_tensor: _full,
    aten._to_copy: _to_copy,
    aten.copy: _copy_,
    aten.cat: _cat,
    aten.stack: _stack,
    aten.constant_pad_nd: _pad,
    aten.slice_backward: _slice_backward,
    aten.select_backward: _select_backward,
    aten.diagonal_backward: _diagonal_backward,
    aten.slice_scatter: _scatter(aten.slice),
    aten.select_scatter: _scatter(torch.select),
    aten.diagonal_scatter: _scatter(torch.diagonal),
    aten.as_strided_scatter: _strided_scatter,
    aten.as_strided: _as_strided,
    aten.flip: _flip,
    aten.tril: _triangle("<="),
    aten.triu: _triangle(">="),
    aten.cumsum: _scan("+", "0.0"),
    aten.cumprod: _scan("*", "1.0"),
    aten.max: _extreme(">"),
    aten.min: _extreme("<"),
    aten.mm: _product,
    aten.bmm: _product,
    aten.mv: _product,
    aten.dot: _product,
    aten.linalg_cholesky_ex: _cholesky,
    aten.linalg_solve_triangular: _solve_triangular,
    aten.index: _index,
    aten._unsafe_index: _index,
    aten.index_put: _index_put,
    aten.gather: _gather,
    aten.scatter: _scatter_along("="),
    aten.scatter_add: _scatter_along("+="),
    aten._unsafe_index_put: _index_put,
}
