"""Tensors assembled from others: concatenation, padding, and writing to slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from probdl.compile.codegen.loops import Element, copy, nest
from probdl.compile.codegen.operations.pointwise import literal
from probdl.compile.codegen.statements import Builder, UnsupportedError, Value, empty

__all__ = ["RULES"]

aten = torch.ops.aten


def _assembled(
    builder: Builder, base: Value | float, pieces: Sequence[tuple[Tensor, Value]]
) -> Value:
    """Make a tensor of ``builder.shape`` from a base, with values written over parts of it.

    Args:
        builder: collects the statement.
        base: the tensor, or the number, that fills what no piece covers.
        pieces: for each, the layout of the part within a contiguous tensor of ``builder.shape``,
            and the value to write there.
    """
    shape = builder.shape
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
            access = (tuple(value.layout.expand(part.shape).stride()), 0)
            lines += copy(access, to, tuple(part.shape), source, target)
        return lines

    operands = [base] if isinstance(base, Value) else []
    return builder.statement(None, [*operands, *(v for _, v in pieces)], [shape], write)[0]


def _part(builder: Builder, view: Any, *args: Any) -> Tensor:
    """Return the layout of a view of the result."""
    return view(empty(builder.shape), *args)


def _cat(builder: Builder, tensors: Sequence[Value], dim: int = 0) -> Value:
    pieces, start = [], 0
    for value in tensors:
        if value.layout.shape == (0,) and len(builder.shape) != 1:  # torch ignores these
            continue
        length = value.layout.shape[dim]
        pieces.append((_part(builder, torch.narrow, dim, start, length), value))
        start += length
    return _assembled(builder, 0.0, pieces)


def _stack(builder: Builder, tensors: Sequence[Value], dim: int = 0) -> Value:
    pieces = [(_part(builder, torch.select, dim, i), value) for i, value in enumerate(tensors)]
    return _assembled(builder, 0.0, pieces)


def _pad(builder: Builder, x: Value, pad: Sequence[int], value: float = 0.0) -> Value:
    part, layout = empty(builder.shape), x.layout
    for k in range(len(pad) // 2):
        dim, before, after = layout.ndim - 1 - k, pad[2 * k], pad[2 * k + 1]
        layout = layout.narrow(
            dim, max(-before, 0), layout.shape[dim] + min(before, 0) + min(after, 0)
        )
        part = part.narrow(dim, max(before, 0), part.shape[dim] - max(before, 0) - max(after, 0))
    return _assembled(builder, value, [(part, x.like(layout))])


def _slice_backward(
    builder: Builder, grad: Value, sizes: Any, dim: int, start: int, end: int, step: int
) -> Value:
    part = aten.slice(empty(builder.shape), dim, start, end, step)
    return _assembled(builder, 0.0, [(part, grad)])


def _select_backward(builder: Builder, grad: Value, sizes: Any, dim: int, index: int) -> Value:
    return _assembled(builder, 0.0, [(_part(builder, torch.select, dim, index), grad)])


def _diagonal_backward(
    builder: Builder, grad: Value, sizes: Any, offset: int, dim1: int, dim2: int
) -> Value:
    part = _part(builder, torch.diagonal, offset, dim1, dim2)
    return _assembled(builder, 0.0, [(part, grad)])


def _view_scatter(view: Callable[..., Tensor]) -> Callable[..., Value]:
    """Return the rule that writes a source over a view of a copy of the base."""

    def rule(builder: Builder, base: Value, source: Value, *args: Any) -> Value:
        return _assembled(builder, base, [(view(empty(builder.shape), *args), source)])

    return rule


def _as_strided_scatter(builder: Builder, base: Value, source: Value, *args: Any) -> Value:
    if not builder.input_fills_storage:
        raise UnsupportedError("as_strided of a view is not supported by the native engine")
    part = torch.as_strided(empty(builder.shape), *args)
    return _assembled(builder, base, [(part, source)])


RULES: dict[Any, Callable[..., Any]] = {
    aten.cat: _cat,
    aten.stack: _stack,
    aten.constant_pad_nd: _pad,
    aten.slice_backward: _slice_backward,
    aten.select_backward: _select_backward,
    aten.diagonal_backward: _diagonal_backward,
    aten.slice_scatter: _view_scatter(aten.slice),
    aten.select_scatter: _view_scatter(torch.select),
    aten.diagonal_scatter: _view_scatter(torch.diagonal),
    aten.as_strided_scatter: _as_strided_scatter,
}
