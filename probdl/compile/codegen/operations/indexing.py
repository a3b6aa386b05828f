"""Elements chosen by an index tensor: indexing, gather and scatter.

An index that is out of range is clamped, so that no memory outside the tensor is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probdl.compile.codegen.loops import Access, Element, contiguous, copy, nest
from probdl.compile.codegen.statements import Buffer, Builder, UnsupportedError, Value, empty

__all__ = ["RULES"]

aten = torch.ops.aten


@dataclass(frozen=True)
class _Selection:
    """Loops over the elements of a tensor that indices select.

    Attributes:
        shape: the shape of the selection.
        indices: the index tensors, in memory.
        accesses: how a loop over ``shape`` runs along each index tensor, and last along the
            dimensions that are not indexed.
        position: takes the C names of the indices and the C positions in them, and returns lines
            that compute the position ``p`` of the element.
    """

    shape: tuple[int, ...]
    indices: list[Value]
    accesses: list[Access]
    position: Callable[[Sequence[Element], Sequence[str]], list[str]]

    def inside(self, element: str) -> str:
        """Return C for an element, or NaN where a computed index is out of range.

        Torch raises an error there. Indices that are data were in range when they were read.
        """
        return f"(inside ? {element} : NAN)" if _is_computed(self.indices) else element


def _is_computed(indices: Sequence[Value]) -> bool:
    return any(isinstance(i.buffer, Buffer) and not i.buffer.name for i in indices)


def _selection(builder: Builder, x: Tensor, indices: Sequence[Value | None]) -> _Selection:
    """Prepare loops over the elements that ``x[indices]`` selects from a layout."""
    indexed = [d for d, i in enumerate(indices) if i is not None]
    first = indexed[0]
    if indexed != list(range(first, indexed[-1] + 1)):
        raise UnsupportedError(
            "indexing with tensors separated by a slice is not supported by the native engine"
        )
    picked = tuple(np.broadcast_shapes(*(i.layout.shape for i in indices if i is not None)))
    rest = x
    for d in reversed(indexed):
        rest = rest.select(d, 0)
    shape = (*rest.shape[:first], *picked, *rest.shape[first:])
    used = [builder.in_memory(i) for i in indices if i is not None]
    accesses: list[Access] = []
    for value in used:
        expanded = value.layout.expand(picked)
        strides = [0] * len(shape)
        strides[first : first + len(picked)] = expanded.stride()
        accesses.append((tuple(strides), 0))
    along = [0] * len(shape)
    along[:first] = rest.stride()[:first]
    along[first + len(picked) :] = rest.stride()[first:]
    accesses.append((tuple(along), 0))
    sizes = [x.shape[d] for d in indexed]
    steps = [x.stride()[d] for d in indexed]

    def position(names: Sequence[Element], at: Sequence[str]) -> list[str]:
        lines = [f"ptrdiff_t p = {at[len(used)]};"]
        lines += ["int inside = 1;"] if _is_computed(used) else []
        for name, where, size, step in zip(names, at, sizes, steps, strict=False):
            lines += [
                "{",
                f"ptrdiff_t q = (ptrdiff_t){name(where)};",
                f"q += q < 0 ? {size} : 0;",
                *([f"inside &= q >= 0 && q < {size};"] if _is_computed(used) else []),
                f"p += {step} * (q < 0 ? 0 : q >= {size} ? {size - 1} : q);",
                "}",
            ]
        return lines

    return _Selection(shape, used, accesses, position)


def _index(builder: Builder, x: Value, indices: Sequence[Value | None]) -> Value:
    x = builder.in_memory(x)
    chosen = _selection(builder, x.layout, indices)

    def lines(*names: Element) -> list[str]:
        source, *of_indices, target = names
        return nest(
            chosen.shape,
            [*chosen.accesses, (contiguous(chosen.shape), 0)],
            lambda at: [
                *chosen.position(of_indices, at),
                f"{target(at[-1])} = {chosen.inside(source('p'))};",
            ],
            "",
        )

    return builder.statement(None, [x, *chosen.indices], [chosen.shape], lines)[0]


def _index_put(
    builder: Builder,
    x: Value,
    indices: Sequence[Value | None],
    values: Value,
    accumulate: bool = False,
) -> Value:
    _refuse_logical_sums(builder, accumulate)
    result = builder.shape
    chosen = _selection(builder, empty(result), indices)
    spread = values.layout.expand(chosen.shape)
    of_values = (tuple(spread.stride()), 0)
    sign = "+=" if accumulate else "="

    def lines(*names: Element) -> list[str]:
        base, given, *of_indices, target = names
        return copy(x.access, (contiguous(result), 0), result, base, target) + nest(
            chosen.shape,
            [*chosen.accesses, of_values],
            lambda at: [
                *chosen.position(of_indices, at),
                f"{target('p')} {sign} {chosen.inside(given(at[-1]))};",
            ],
            None,
        )

    return builder.statement(None, [x, values, *chosen.indices], [result], lines)[0]


def _selection_along(x: Tensor, dim: int, index: Value) -> _Selection:
    """Prepare loops over an index whose entries are positions along one dimension of a layout."""
    shape = tuple(index.layout.shape)
    if not shape:
        raise UnsupportedError(
            "gather and scatter on 0-dimensional tensors are not supported by the native engine"
        )
    dim %= len(shape)
    strides, size = list(x.stride()), x.shape[dim]
    step, strides[dim] = strides[dim], 0

    def position(names: Sequence[Element], at: Sequence[str]) -> list[str]:
        return [
            f"ptrdiff_t q = (ptrdiff_t){names[0](at[0])};",
            *([f"const int inside = q >= 0 && q < {size};"] if _is_computed([index]) else []),
            f"const ptrdiff_t p = {at[1]} + {step} * (q < 0 ? 0 : q >= {size} ? {size - 1} : q);",
        ]

    accesses = [index.access, (tuple(strides), 0)]
    return _Selection(shape, [index], accesses, position)


def _gather(builder: Builder, x: Value, dim: int, index: Value, **_: Any) -> Value:
    x, index = builder.in_memory(x), builder.in_memory(index)
    chosen = _selection_along(x.layout, dim, index)

    def lines(*names: Element) -> list[str]:
        source, of_index, target = names
        return nest(
            chosen.shape,
            [*chosen.accesses, (contiguous(chosen.shape), 0)],
            lambda at: [
                *chosen.position([of_index], at),
                f"{target(at[2])} = {chosen.inside(source('p'))};",
            ],
            "",
        )

    return builder.statement(None, [x, index], [chosen.shape], lines)[0]


def _scatter(sign: str) -> Callable[..., Value]:
    """Return the rule of ``scatter`` ("=") or ``scatter_add`` ("+=")."""

    def rule(
        builder: Builder, x: Value, dim: int, index: Value, source: Any, reduce: Any = None
    ) -> Value:
        _refuse_logical_sums(builder, sign == "+=")
        if reduce is not None:
            raise UnsupportedError("scatter with reduce= is not supported by the native engine")
        result, index = builder.shape, builder.in_memory(index)
        chosen = _selection_along(empty(result), dim, index)
        if not isinstance(source, Value):
            source = Value(float(source), torch.empty((), device="meta").expand(chosen.shape))
        part = source.layout[tuple(slice(n) for n in chosen.shape)]
        of_source = (tuple(part.stride()), 0)

        def lines(*names: Element) -> list[str]:
            base, of_index, given, target = names
            return copy(x.access, (contiguous(result), 0), result, base, target) + nest(
                chosen.shape,
                [*chosen.accesses, of_source],
                lambda at: [
                    *chosen.position([of_index], at),
                    f"{target('p')} {sign} {chosen.inside(given(at[2]))};",
                ],
                None,
            )

        return builder.statement(None, [x, index, source], [result], lines)[0]

    return rule


def _refuse_logical_sums(builder: Builder, accumulate: bool) -> None:
    if accumulate and builder.dtype is torch.bool:
        raise UnsupportedError(
            "accumulation of Boolean tensors is not supported by the native engine"
        )


RULES: dict[Any, Callable[..., Any]] = {
    aten.index: _index,
    aten._unsafe_index: _index,
    aten.index_put: _index_put,
    aten._unsafe_index_put: _index_put,
    aten.gather: _gather,
    aten.scatter: _scatter("="),
    aten.scatter_add: _scatter("+="),
}
