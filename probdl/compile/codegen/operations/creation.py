"""Operations that create a tensor from a number, or convert one to another dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from probdl.compile.codegen.statements import Builder, Value

__all__ = ["ALLOCATIONS", "CONSTANTS", "EXACT", "RULES"]

aten = torch.ops.aten


def _full(builder: Builder, shape: Any, fill: Any = None, **_: Any) -> Value:
    number = shape if fill is None else fill
    if isinstance(number, Value):
        return number.like(number.layout.expand(builder.shape))
    return Value(float(number), torch.empty((), device="meta").expand(builder.shape))


def _to_copy(builder: Builder, x: Value, dtype: Any = None, **_: Any) -> Value:
    if builder.dtype is torch.bool:
        return builder.elementwise(lambda v: f"(double)({v} != 0)", [x], builder.shape)
    if builder.dtype is not None and not builder.dtype.is_floating_point:
        return builder.elementwise(lambda v: f"trunc({v})", [x], builder.shape)
    return x


def _copy(builder: Builder, target: Value, source: Value, *_: Any) -> Value:
    return _to_copy(builder, source.like(source.layout.expand(builder.shape)))


# Operations whose result depends on the shape of a tensor but not on its values.
CONSTANTS: dict[Any, float] = {
    aten.zeros_like: 0.0,
    aten.ones_like: 1.0,
    aten.new_zeros: 0.0,
    aten.new_ones: 1.0,
}
ALLOCATIONS = {aten.empty_like, aten.new_empty, aten.new_empty_strided}  # contents undefined
EXACT = {aten.full, aten.scalar_tensor}  # a float32 number has the same value in float64
RULES: dict[Any, Callable[..., Any]] = {
    aten.full: _full,
    aten.scalar_tensor: _full,
    aten._to_copy: _to_copy,
    aten.copy: _copy,
}
