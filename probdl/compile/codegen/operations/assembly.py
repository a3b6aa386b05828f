"""Tensors assembled from others: concatenation, padding, and writing to slices.

The gradient of a loop over time is a sum of many tensors that are zero but for one step. They are
kept as their slices until something else than a sum reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probdl.compile.codegen.loops import Element, copy, nest
from probdl.compile.codegen.operations.pointwise import literal
from probdl.compile.codegen.statements import (
    Buffer,
    Builder,
    UnsupportedError,
    Value,
    empty,
    squeezed,
)

__all__ = ["RULES", "Slices", "added", "assembled"]

aten = torch.ops.aten

MIN_APART = 32  # slices that are written by separate statements, which a loop can run
MAX_SPLIT = 8  # length of slices that are split if they overlap
MIN_MOVED = 512  # numbers; smaller slices are copied to where they belong


@dataclass
class Slices:
    """The sum of a tensor and others that are zero but for slices along one dimension.

    Attributes:
        shape: the shape of the tensor.
        dim: the dimension.
        parts: by the first index of a slice and the one after the last, its value.
        covered: the indices in slices.
        base: the tensor; zero if it is None.
        split: whether all slices have the length 1.
    """

    shape: tuple[int, ...]
    dim: int
    parts: dict[tuple[int, int], Value]
    covered: set[int]
    base: Value | None = None
    split: bool = False

    @classmethod
    def of(cls, shape: Sequence[int], dim: int, first: int, last: int, value: Value) -> Slices:
        """Return a tensor with one slice."""
        parts = {(first, last): value} if first < last else {}
        return cls(tuple(shape), dim, parts, set(range(first, last)))


def added(builder: Builder, a: Slices, b: Slices | Value) -> Slices | None:
    """Add a tensor to another in place; return None if their slices overlap without being equal."""
    if isinstance(b, Value):
        if tuple(b.layout.shape) != a.shape:
            return None
        a.base = b if a.base is None else _sum(builder, a.base, b)
        return a
    if a.shape != b.shape or a.dim != b.dim or b.base is not None:
        return None
    parts = b.parts
    if any(part not in a.parts and not a.covered.isdisjoint(range(*part)) for part in parts):
        long = [*parts, *(() if a.split else a.parts)]
        if max(last - first for first, last in long) > MAX_SPLIT:
            return None
        if not a.split:
            a.parts, a.split = _split(a), True
        parts = _split(b)
    a.split = a.split and all(last - first == 1 for first, last in parts)
    for part, value in parts.items():
        if part in a.parts:
            value = _sum(builder, a.parts[part], value)
        a.parts[part] = value
        a.covered.update(range(*part))
    return a


def _split(x: Slices) -> dict[tuple[int, int], Value]:
    """Return slices of length 1."""
    return {
        (i, i + 1): value.like(value.layout.narrow(x.dim, i - first, 1))
        for (first, last), value in x.parts.items()
        for i in range(first, last)
    }


def _sum(builder: Builder, a: Value, b: Value) -> Value:
    return builder.elementwise(lambda x, y: f"({x} + {y})", [a, b], tuple(a.layout.shape))


def assembled(builder: Builder, x: Slices) -> Value:
    """Return a tensor in memory."""
    pieces = [(first, last, value) for (first, last), value in x.parts.items()]
    in_place = x.base is None and any(_is_movable(value, x.dim) for _, _, value in pieces)
    if len(pieces) < MIN_APART and not in_place:
        whole = empty(x.shape)
        layouts = [(whole.narrow(x.dim, at, end - at), value) for at, end, value in pieces]
        sparse = _assembled(builder, 0.0, layouts, x.shape)
        return sparse if x.base is None else _sum(builder, x.base, sparse)
    if x.base is not None:
        pieces = [(at, end, _sum(builder, _slice(x, at, end), v)) for at, end, v in pieces]
    return _assembled_apart(builder, x.shape, x.dim, [*pieces, *_gaps(x)])


def _slice(x: Slices, first: int, last: int) -> Value:
    """Return a slice of the base."""
    if x.base is not None:
        return x.base.like(x.base.layout.narrow(x.dim, first, last - first))
    shape = [last - first if d == x.dim else n for d, n in enumerate(x.shape)]
    return Value(0.0, empty(()).expand(shape))


def _gaps(x: Slices) -> list[tuple[int, int, Value]]:
    """Return the slices of the base between those that are given."""
    gaps, start = [], 0
    for first, last in sorted([*x.parts, (x.shape[x.dim],) * 2]):
        if start < first:
            gaps.append((start, first, _slice(x, start, first)))
        start = last
    return gaps


def _is_movable(value: Value, dim: int) -> bool:
    """Return whether a slice along a dimension is large, and can be computed where it belongs."""
    buffer, layout = value.buffer, value.layout.movedim(dim, 0)
    return (
        isinstance(buffer, Buffer)
        and buffer.size == layout.numel() >= MIN_MOVED
        and value.start == 0
        and layout.is_contiguous()
        and buffer.producer is not None
        and not (buffer.home or buffer.whole or buffer.keep)
    )


def _assembled_apart(
    builder: Builder, shape: Sequence[int], dim: int, pieces: Sequence[tuple[int, int, Value]]
) -> Value:
    """Make a tensor whose slices along a dimension are written by separate statements."""
    others = [n for d, n in enumerate(shape) if d != dim]
    layout = empty([shape[dim], *others])
    whole = Buffer("", layout.numel(), whole=True)
    row = int(layout.stride(0))
    written = []
    for first, last, value in pieces:
        if _is_movable(value, dim):
            assert isinstance(value.buffer, Buffer)
            value.buffer.home = (whole, row * first)
            written.append(value)
            continue
        at = (last - first, *others)
        part = Buffer("", row * (last - first), home=(whole, row * first))
        source = value.like(value.layout.movedim(dim, 0))
        written += builder.statement(squeezed(at), [source], [at], lambda x: x, into=[part])
    builder.statement(None, written, [layout.shape], lambda *_: [], into=[whole])
    return Value(whole, layout.movedim(0, dim))


def _assembled(
    builder: Builder,
    base: Value | float,
    pieces: Sequence[tuple[Tensor, Value]],
    shape: Sequence[int],
) -> Value:
    """Make a tensor from a base, with values written over parts of it.

    Args:
        builder: collects the statement.
        base: the tensor, or the number, that fills what no piece covers.
        pieces: for each, the layout of the part within a contiguous tensor of the shape, and the
            value to write there.
        shape: the shape.
    """
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


def _cat(builder: Builder, tensors: Sequence[Value], dim: int = 0) -> Value:
    shape = builder.shape
    result, start = Slices(shape, dim % len(shape), {}, set()), 0
    for value in tensors:
        if value.layout.shape == (0,) and len(shape) != 1:  # torch ignores these
            continue
        end = start + value.layout.shape[dim]
        if start < end:
            result.parts[start, end] = value
        start = end
    return assembled(builder, result)


def _stack(builder: Builder, tensors: Sequence[Value], dim: int = 0) -> Value:
    dim %= len(builder.shape)
    return _cat(builder, [v.like(v.layout.unsqueeze(dim)) for v in tensors], dim)


def _pad(builder: Builder, x: Value, pad: Sequence[int], value: float = 0.0) -> Value:
    part, layout = empty(builder.shape), x.layout
    for k in range(len(pad) // 2):
        dim, before, after = layout.ndim - 1 - k, pad[2 * k], pad[2 * k + 1]
        layout = layout.narrow(
            dim, max(-before, 0), layout.shape[dim] + min(before, 0) + min(after, 0)
        )
        part = part.narrow(dim, max(before, 0), part.shape[dim] - max(before, 0) - max(after, 0))
    return _assembled(builder, value, [(part, x.like(layout))], builder.shape)


def _slice_backward(
    builder: Builder, grad: Value, sizes: Any, dim: int, start: int, end: int, step: int
) -> Value | Slices:
    if step == 1:
        first, last, _ = slice(start, end).indices(builder.shape[dim])
        return Slices.of(builder.shape, dim % len(builder.shape), first, last, grad)
    part = aten.slice(empty(builder.shape), dim, start, end, step)
    return _assembled(builder, 0.0, [(part, grad)], builder.shape)


def _select_backward(builder: Builder, grad: Value, sizes: Any, dim: int, index: int) -> Slices:
    dim %= len(builder.shape)
    index %= builder.shape[dim]
    part = grad.like(grad.layout.unsqueeze(dim))
    return Slices.of(builder.shape, dim, index, index + 1, part)


def _diagonal_backward(
    builder: Builder, grad: Value, sizes: Any, offset: int, dim1: int, dim2: int
) -> Value:
    part = torch.diagonal(empty(builder.shape), offset, dim1, dim2)
    return _assembled(builder, 0.0, [(part, grad)], builder.shape)


def _view_scatter(view: Callable[..., Tensor]) -> Callable[..., Value]:
    """Return the rule that writes a source over a view of a copy of the base."""

    def rule(builder: Builder, base: Value, source: Value, *args: Any) -> Value:
        part = view(empty(builder.shape), *args)
        return _assembled(builder, base, [(part, source)], builder.shape)

    return rule


def _as_strided_scatter(builder: Builder, base: Value, source: Value, *args: Any) -> Value:
    if not builder.input_fills_storage:
        raise UnsupportedError("as_strided of a view is not supported by the native engine")
    part = torch.as_strided(empty(builder.shape), *args)
    return _assembled(builder, base, [(part, source)], builder.shape)


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
