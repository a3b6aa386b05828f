"""Cumulative sums and products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from probdl.compile.codegen.loops import Element, contiguous, nest
from probdl.compile.codegen.statements import Builder, Value

__all__ = ["RULES"]

aten = torch.ops.aten


def _scan(sign: str, initial: str) -> Callable[..., Value]:
    """Return the rule of a cumulative sum ("+") or product ("*") along a dimension."""

    def rule(builder: Builder, x: Value, dim: int, **_: Any) -> Value:
        shape = builder.shape
        if not shape:
            return x
        dim %= len(shape)
        others = [n for d, n in enumerate(shape) if d != dim]
        strides, to = list(x.layout.stride()), list(contiguous(shape))
        step, to_step = strides.pop(dim), to.pop(dim)
        access = (tuple(strides), 0)

        def lines(source: Element, target: Element) -> list[str]:
            return nest(
                others,
                [access, (tuple(to), 0)],
                lambda at: [
                    f"double total = {initial};",
                    f"for (ptrdiff_t k = 0; k < {shape[dim]}; k++) {{",
                    f"total {sign}= {source(f'{at[0]} + {step} * k')};",
                    f"{target(f'{at[1]} + {to_step} * k')} = total;",
                    "}",
                ],
                None,
            )

        return builder.statement(None, [x], [shape], lines)[0]

    return rule


RULES: dict[Any, Callable[..., Any]] = {
    aten.cumsum: _scan("+", "0.0"),
    aten.cumprod: _scan("*", "1.0"),
}
