"""Reductions along dimensions, and extremes with their positions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from probdl.compile.codegen.loops import Access, Element, contiguous, nest
from probdl.compile.codegen.operations.pointwise import POINTWISE, literal
from probdl.compile.codegen.operations.views import slices_along
from probdl.compile.codegen.statements import (
    MAX_SHORT_LOOP,
    Builder,
    ByRows,
    Value,
    empty,
    reach,
    squeezed,
)

__all__ = ["REDUCTIONS", "RULES", "reduction"]

aten = torch.ops.aten

# By operation: the initial value, and how to accumulate one more element.
REDUCTIONS: dict[Any, tuple[str, str]] = {
    aten.sum: ("0.0", "{0} += {1};"),
    aten.prod: ("1.0", "{0} *= {1};"),
    aten.amax: ("(-INFINITY)", "{0} = at_least({0}, {1});"),
    aten.amin: ("INFINITY", "{0} = at_most({0}, {1});"),
    aten.any: ("0.0", "{0} = ({1} != 0) ? 1.0 : {0};"),
    aten.all: ("1.0", "{0} = ({1} == 0) ? 0.0 : {0};"),
}

# By reduction: the operation that combines two elements.
_COMBINED = {
    aten.sum: aten.add, aten.prod: aten.mul, aten.amax: aten.maximum, aten.amin: aten.minimum,
    aten.any: aten.logical_or, aten.all: aten.logical_and,
}  # fmt: skip
_LOGICAL = {aten.any, aten.all}


def reduction(
    builder: Builder, op: Any, x: Value, dims: Any = None, keepdim: bool = False
) -> Value:
    """Reduce a tensor along dimensions; along all of them where none are given."""
    axes = _axes(x.layout.ndim, dims)
    if op is aten.sum:
        x = _constant_axes_summed(builder, x, axes)
    shape = tuple(x.layout.shape)
    if x.layout.numel() == 1:
        same = "(double)({} != 0)" if op in _LOGICAL else "{}"
        return builder.elementwise(
            same.format, [x.like(x.layout.reshape(builder.shape))], builder.shape
        )
    if all(n == 1 for d, n in enumerate(shape) if d not in axes):
        return _to_one_number(builder, op, x)
    if 0 < math.prod(shape[d] for d in axes) <= MAX_SHORT_LOOP:
        return _unrolled(builder, op, x, axes)
    return _looped(builder, op, x, axes)


def _axes(ndim: int, dims: Any) -> set[int]:
    """Return the dimensions to reduce, counted from the front."""
    if dims is None or dims == []:
        return set(range(ndim))
    return {d % ndim for d in ([dims] if isinstance(dims, int) else dims)} if ndim else set()


def _constant_axes_summed(builder: Builder, x: Value, axes: set[int]) -> Value:
    """Sum along the axes in which nothing varies, as the size of the axis times one element."""
    for d in axes:
        n = x.layout.shape[d]
        if n > 1 and x.layout.stride(d) == 0:
            one = x.like(x.layout.narrow(d, 0, 1))
            times = literal(n)
            x = builder.elementwise(
                lambda v, times=times: f"({v} * {times})", [one], tuple(one.layout.shape)
            )
    return x


def _to_one_number(builder: Builder, op: Any, x: Value) -> Value:
    """Reduce all elements to one number, in a loop that other statements may share."""
    key: tuple[Any, ...] = squeezed(x.layout.shape)
    if op is not aten.sum:
        key = (*key, str(op))
    return builder.statement(key, [x], [builder.shape], lambda v: v, total=op)[0]


def _unrolled(builder: Builder, op: Any, x: Value, axes: set[int]) -> Value:
    """Reduce along few elements, as one expression of them."""
    parts = slices_along(x, list(axes))
    initial = [REDUCTIONS[op][0]] if op in _LOGICAL else []  # converts elements to 0.0 or 1.0
    result = builder.elementwise(
        lambda *names: functools.reduce(POINTWISE[_COMBINED[op]], [*initial, *names]),
        parts,
        tuple(parts[0].layout.shape),
    )
    return result.like(result.layout.view(builder.shape))


def _looped(builder: Builder, op: Any, x: Value, axes: set[int]) -> Value:
    """Reduce in loops of the statement's own."""
    shape = tuple(x.layout.shape)
    kept = [d for d in range(len(shape)) if d not in axes]
    loops = _Loops.of(op, x, kept, sorted(axes))
    by_rows = []
    first = next(d for d, n in enumerate(shape) if n != 1)
    if first in kept or op is aten.sum:
        some_rows = loops.reduced_outside if first in axes else loops.reduced_inside
        by_rows = [
            ByRows(
                shape[first],
                first in axes,
                (reach(x.layout, first),),
                lambda source, target, *rows: some_rows(source, target, rows),
            )
        ]
    return builder.statement(None, [x], [builder.shape], loops.write, by_rows=by_rows)[0]


@dataclass(frozen=True)
class _Loops:
    """Loops over the dimensions that a reduction keeps, and over those that it reduces.

    Attributes:
        op: the reduction.
        kept: sizes and strides of the dimensions that it keeps.
        reduced: sizes and strides of the dimensions that it reduces.
    """

    op: Any
    kept: tuple[tuple[int, ...], tuple[int, ...]]
    reduced: tuple[tuple[int, ...], tuple[int, ...]]

    @classmethod
    def of(cls, op: Any, x: Value, kept: Sequence[int], reduced: Sequence[int]) -> _Loops:
        layout = x.layout.permute(*kept, *reduced)
        sizes, strides, k = tuple(layout.shape), tuple(layout.stride()), len(kept)
        return cls(op, (sizes[:k], strides[:k]), (sizes[k:], strides[k:]))

    @property
    def target(self) -> Access:
        """How loops over the kept dimensions run along the result."""
        return contiguous(self.kept[0]), 0

    def write(self, source: Element, target: Element) -> list[str]:
        """Write the reduction with the smaller strides in the inner loops."""
        if _smallest_stride(*self.reduced) <= _smallest_stride(*self.kept):
            return self.reduced_inside(source, target)
        initial = REDUCTIONS[self.op][0]
        fill = nest(self.kept[0], [self.target], lambda at: [f"{target(at[0])} = {initial};"], "")
        return fill + self.reduced_outside(source, target)

    def reduced_inside(self, source: Element, target: Element, rows: Any = None) -> list[str]:
        """Write loops that finish one element of the result before the next."""
        initial, accumulate = REDUCTIONS[self.op]
        sizes, strides = self.kept
        inner_sizes, inner_strides = self.reduced
        clause = " reduction(+ : sum)" if self.op is aten.sum else None
        return nest(
            sizes,
            [(strides, 0), self.target],
            lambda at: [
                f"double sum = {initial};",
                *nest(
                    inner_sizes,
                    [(inner_strides, 0)],
                    lambda inner: [accumulate.format("sum", source(f"{at[0]} + {inner[0]}"))],
                    clause,
                    "j",
                ),
                f"{target(at[1])} = sum;",
            ],
            None,
            rows=rows,
        )

    def reduced_outside(self, source: Element, target: Element, rows: Any = None) -> list[str]:
        """Write loops that accumulate into all elements of the result, which has a value."""
        accumulate = REDUCTIONS[self.op][1]
        inner_sizes, inner_strides = self.kept
        sizes, strides = self.reduced
        return nest(
            sizes,
            [(strides, 0)],
            lambda outer: nest(
                inner_sizes,
                [(inner_strides, 0), self.target],
                lambda at: [accumulate.format(target(at[1]), source(f"{outer[0]} + {at[0]}"))],
                "",
                "j",
            ),
            None,
            rows=rows,
        )


def _smallest_stride(sizes: Sequence[int], strides: Sequence[int]) -> int:
    return min((s for s, n in zip(strides, sizes, strict=True) if n > 1), default=0)


def _extreme(sign: str) -> Callable[..., list[Value]]:
    """Return the rule of ``max`` (">") or ``min`` ("<") along a dimension, with the positions."""

    def rule(builder: Builder, x: Value, dim: int, keepdim: bool = False) -> list[Value]:
        shape = tuple(x.layout.shape)
        if not shape:
            return [x, Value(0.0, empty(()))]
        dim %= len(shape)
        others = [n for d, n in enumerate(shape) if d != dim]
        result = tuple(1 if d == dim else n for d, n in enumerate(shape) if d != dim or keepdim)
        if 0 < shape[dim] <= MAX_SHORT_LOOP:
            return [
                v.like(v.layout.unsqueeze(dim) if keepdim else v.layout)
                for v in _unrolled_extreme(builder, sign, slices_along(x, [dim]))
            ]
        strides = list(x.layout.stride())
        step = strides.pop(dim)
        access = (tuple(strides), 0)

        def lines(source: Element, best: Element, position: Element) -> list[str]:
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
                    f"{position(at[1])} = (double)place;",
                ],
                None,
            )

        return builder.statement(None, [x], [result, result], lines)

    return rule


def _unrolled_extreme(builder: Builder, sign: str, parts: Sequence[Value]) -> list[Value]:
    """Return the extreme of a few tensors, and the first of them that has it; NaN is extreme."""
    more_extreme = POINTWISE[aten.maximum if sign == ">" else aten.minimum]
    shape = tuple(parts[0].layout.shape)
    found, position = parts[0], Value(0.0, empty(()).expand(shape))
    for k, part in enumerate(parts[1:], 1):
        position = builder.elementwise(
            lambda v, f, p, k=k: f"({v} {sign} {f} || ({v} != {v} && {f} == {f}) ? {k}.0 : {p})",
            [part, found, position],
            shape,
        )
        found = builder.elementwise(more_extreme, [part, found], shape)
    return [found, position]


RULES: dict[Any, Callable[..., Any]] = {
    aten.max: _extreme(">"),
    aten.min: _extreme("<"),
}
