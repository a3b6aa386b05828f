"""Writes to a part of a tensor, in operations that ``torch.vmap`` maps well.

Its own rules for these operations use memory in proportion to the square of the number of draws,
and refuse slices that end at -1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["replace_scatters"]

aten = torch.ops.aten


def replace_scatters(graph: fx.Graph) -> None:
    """Replace the operations for writes to a part of a tensor.

    Args:
        graph: a graph without writes in place, from ``torch.func.functionalize``.
    """
    for node in graph.nodes:
        if node.op == "call_function":
            node.target = _REPLACEMENTS.get(node.target, node.target)


def _copy(x: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    return source.to(x.dtype).expand(x.shape)


def _select_scatter(x: Tensor, source: Tensor, dim: int, index: int) -> Tensor:
    here = torch.arange(x.shape[dim]) == index % x.shape[dim]
    return torch.where(_along(here, x, dim), source.unsqueeze(dim), x)


def _slice_scatter(
    x: Tensor,
    source: Tensor,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Tensor:
    size = x.shape[dim]
    written = range(size)[slice(start, end, step)]
    if not written:
        return x.clone()
    of = dict(zip(written, range(len(written)), strict=True))
    rows = torch.tensor([of.get(i, -1) for i in range(size)])
    source = source.index_select(dim, rows.clamp(min=0))
    return torch.where(_along(rows >= 0, x, dim), source, x)


def _along(mask: Tensor, x: Tensor, dim: int) -> Tensor:
    """Reshape a mask of the elements along one dimension, to broadcast with a tensor."""
    shape = [1] * x.ndim
    shape[dim] = -1
    return mask.reshape(shape)


_REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    aten.copy.default: _copy,
    aten.select_scatter.default: _select_scatter,
    aten.slice_scatter.default: _slice_scatter,
}
