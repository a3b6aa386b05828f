"""Other layouts of the same elements: views, which cost nothing, and those that need a copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from probdl.compile.codegen.loops import contiguous, copy
from probdl.compile.codegen.statements import Builder, UnsupportedError, Value

__all__ = ["RULES", "VIEWS", "slices_along"]

aten = torch.ops.aten


def slices_along(x: Value, dims: Sequence[int]) -> list[Value]:
    """Split a tensor into its slices along some dimensions, which the slices no longer have."""
    parts = [x.layout]
    for d in sorted(dims, reverse=True):
        parts = [piece for part in parts for piece in part.unbind(d)]
    return [x.like(part) for part in parts]


def _as_strided(
    builder: Builder,
    x: Value,
    size: Sequence[int],
    stride: Sequence[int],
    offset: int | None = None,
) -> Value:
    if not builder.input_fills_storage:
        raise UnsupportedError("as_strided of a view is not supported by the native engine")
    x = builder.copied(x)
    return x.like(x.layout.as_strided(size, stride, offset or 0))


def _flip(builder: Builder, x: Value, dims: Sequence[int]) -> Value:
    flipped = {d % x.layout.ndim for d in dims}
    strides, start = list(x.layout.stride()), 0
    for d in flipped:
        start += strides[d] * (x.layout.shape[d] - 1)
        strides[d] = -strides[d]
    shape = builder.shape
    target_access = (contiguous(shape), 0)
    return builder.statement(
        None,
        [x],
        [shape],
        lambda source, target: copy((tuple(strides), start), target_access, shape, source, target),
    )[0]


VIEWS = {aten._unsafe_view, aten.expand, aten.reshape}  # besides those that torch calls views
RULES: dict[Any, Callable[..., Any]] = {
    aten.as_strided: _as_strided,
    aten.flip: _flip,
}
