"""Evaluate both branches of a large selection once, and not for each of its elements.

A model with a change point computes ``where(time < change, early, late)`` for each time and, since
the change point is enumerated, for each of its values: T * T elements from two numbers or from two
series. What is computed from it, element by element, is again a selection, of what is computed from
the two branches: here, the selection moves outwards until something else reads it. Where its
elements are summed, and from one row of the mask to the next only a few of them change, so do the
sums: T + T operations take the place of T * T.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map

from probdl.compile.codegen.operations import POINTWISE
from probdl.model.recorder import Recording

__all__ = ["is_selection", "selecting"]

aten = torch.ops.aten

MIN_ELEMENTS = 10_000  # of a selection that is worth a second trace
MIN_GAIN = 4  # the branches, or the changes of the mask, must be smaller by this factor

_REORDERED = {aten.permute, aten.transpose, aten.t}
_RESHAPED = {aten.view, aten.reshape, aten.squeeze, aten.unsqueeze, aten.expand, aten._unsafe_view}


def is_selection(node: fx.Node) -> bool:
    """Return whether a node selects between branches that are much smaller than it is."""
    if node.target is not aten.where.self or node.meta["val"].numel() < MIN_ELEMENTS:
        return False
    branches = [_varying(x.meta["val"]) for x in node.args[1:] if isinstance(x, fx.Node)]
    return len(branches) == 2 and _pays(branches, node.meta["val"])


def selecting(recording: Recording) -> Callable[[Tensor], Any]:
    """Return the recorded function of z, in which selections by a constant mask move outwards."""
    (z, *_), graph = recording.graph.nodes, recording.graph
    on_z = {z}
    for node in graph.nodes:
        if any(n in on_z for n in node.all_input_nodes):
            on_z.add(node)

    def run(point: Tensor) -> Any:
        values: dict[fx.Node, Any] = {z: point}
        masks = _Masks()
        for node in graph.nodes:
            if node.op == "get_attr":
                values[node] = recording.constants[str(node.target)]
            elif node.op == "call_function":
                args = fx.node.map_arg(node.args, values.__getitem__)
                kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
                if is_selection(node) and node.args[0] not in on_z and not _selections(args):
                    cond, a, b = args
                    values[node] = masks.selected(cond, a, b, node.meta["val"].shape)
                else:
                    values[node] = _called(masks, node, args, kwargs)
            elif node.op == "output":
                return tree_map(_whole, fx.node.map_arg(node.args[0], values.__getitem__))
        raise AssertionError("a graph ends with its output")

    return run


@dataclass(frozen=True, eq=False)
class _Selected:
    """The tensor ``where(mask, a, b)``.

    Attributes:
        mask: the mask, of the shape of the tensor.
        a: the first branch, with as many axes as the mask, of length 1 where it does not vary.
        b: the second branch.
    """

    mask: Tensor
    a: Tensor
    b: Tensor

    def whole(self) -> Tensor:
        return torch.where(self.mask, self.a, self.b)


class _Masks:
    """The masks of selections, and their views; equal ones are the same object."""

    def __init__(self) -> None:
        self._masks: list[Tensor] = []
        self._views: dict[Any, Tensor] = {}

    def selected(self, cond: Tensor, a: Tensor, b: Tensor, shape: torch.Size) -> _Selected:
        mask = cond.expand(shape)
        a, b = (_narrowed(x, len(shape)) for x in (a, b))
        for known in (m for m in self._masks if m.shape == shape):
            if np.array_equal(known.numpy(), mask.numpy()):
                return _Selected(known, a, b)
            if np.array_equal(known.numpy(), ~mask.numpy()):
                return _Selected(known, b, a)
        self._masks.append(mask)
        return _Selected(mask, a, b)

    def viewed(self, mask: Tensor, key: Any, view: Callable[[Tensor], Tensor]) -> Tensor:
        key = (id(mask), repr(key))  # the mask is held, so that no other one has its id
        if key not in self._views:
            self._views[key] = view(mask)
        return self._views[key]


def _called(masks: _Masks, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Compute a node, as a selection if it can be one."""
    given = _selections((args, kwargs))
    if given and "val" in node.meta:
        target: Any = node.target
        op, shape = getattr(target, "overloadpacket", None), node.meta["val"].shape
        result: Any = None
        if op in POINTWISE:
            result = _pointwise(node, args, kwargs, given)
        elif op in _REORDERED:
            mask = masks.viewed(
                given[0].mask, (op, args[1:]), lambda m: target(m, *args[1:], **kwargs)
            )
            a, b = (target(x, *args[1:], **kwargs) for x in (given[0].a, given[0].b))
            result = _Selected(mask, a, b)
        elif op in _RESHAPED and (axes := _same_axes(given[0].mask.shape, shape)) is not None:
            same = given[0].mask.shape == shape
            mask = given[0].mask
            mask = mask if same else masks.viewed(mask, shape, lambda m: m.reshape(shape))
            a, b = (_moved(x, axes, len(shape)) for x in (given[0].a, given[0].b))
            result = _Selected(mask, a, b)
        elif node.target is aten.sum.dim_IntList and not kwargs:
            result = _sum(given[0], *args[1:])
        if result is not None:
            return result
    args, kwargs = tree_map(_whole, (args, kwargs))
    if not given and getattr(node.target, "overloadpacket", None) in POINTWISE:
        return _expanded(node, args, kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _expanded(node: fx.Node, args: Any, kwargs: Any) -> Tensor:
    """Compute an operation element by element, but once for equal elements of expanded inputs."""
    val = node.meta["val"]
    inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    if val.numel() < MIN_ELEMENTS or not inputs or not _pays([_broadcast(inputs)], val):
        return node.target(*args, **kwargs)  # type: ignore[operator, no-any-return]
    args, kwargs = tree_map(
        lambda x: _narrowed(x, val.ndim) if isinstance(x, Tensor) else x, (args, kwargs)
    )
    return node.target(*args, **kwargs).expand(val.shape)  # type: ignore[operator, no-any-return]


def _pointwise(
    node: fx.Node, args: Any, kwargs: Any, given: Sequence[_Selected]
) -> _Selected | None:
    mask, shape = given[0].mask, node.meta["val"].shape
    if any(each.mask is not mask for each in given) or mask.shape != shape:
        return None

    def branch(name: str) -> Any:
        def of(x: Any) -> Any:
            if isinstance(x, _Selected):
                return getattr(x, name)
            return _narrowed(x, len(shape)) if isinstance(x, Tensor) else x

        return tree_map(of, (args, kwargs))

    parts = [branch("a"), branch("b")]
    inputs = [x for x in tree_leaves(parts) if isinstance(x, Tensor)]
    if not _pays([_broadcast(inputs)], node.meta["val"]):
        return None
    a, b = (node.target(*of_args, **of_kwargs) for of_args, of_kwargs in parts)  # type: ignore[operator]
    return _Selected(mask, a, b)


def _sum(selected: _Selected, dims: Sequence[int], keepdim: bool = False) -> Tensor | None:
    """Sum a selection over some axes, along the others by what changes in the mask.

    Of infinite elements, the number is summed; finite sums would stay infinite after them.
    """
    mask = selected.mask
    summed = sorted(d % mask.ndim for d in dims) or list(range(mask.ndim))
    kept = [d for d in range(mask.ndim) if d not in summed]
    if any(x.shape[d] > 1 for x in (selected.a, selected.b) for d in kept):
        return None
    order = [*kept, *summed]
    rows = math.prod(mask.shape[d] for d in kept)
    within = [mask.shape[d] for d in summed]
    by_row = mask.permute(order).reshape(rows, -1).numpy()
    at_row, at_element = np.nonzero(by_row[1:] != by_row[:-1])
    if rows < 2 or len(at_row) * MIN_GAIN > mask.numel():
        return None
    sign = np.where(by_row[1:][at_row, at_element], 1.0, -1.0)
    a, b = (
        x.permute(order).reshape([x.shape[d] for d in summed]).expand(within).reshape(-1)
        for x in (selected.a, selected.b)
    )
    none = -math.inf
    of_a, of_b = (x == none for x in (a, b))
    fine = (x.masked_fill(empty, 0.0) for x, empty in ((a, of_a), (b, of_b)))
    changes = _Changes(
        torch.from_numpy(by_row[0].copy()),
        torch.from_numpy(at_row + 1),
        torch.from_numpy(at_element),
        torch.from_numpy(sign).to(a.dtype),
        rows,
    )
    total = changes.sums(*fine)
    count = changes.sums(of_a.to(a.dtype), of_b.to(a.dtype))
    total = torch.where(count > 0.5, torch.full((), none, dtype=a.dtype), total)
    sizes = [1 if d in summed else n for d, n in enumerate(mask.shape)]
    return total.reshape(sizes if keepdim else [mask.shape[d] for d in kept])


@dataclass(frozen=True)
class _Changes:
    """The first row of a mask, and the elements that change from each row to the next.

    Attributes:
        first: the first row.
        rows: the row of each change.
        elements: its element.
        sign: 1 where the first branch takes the place of the second, else -1.
        count: the number of rows.
    """

    first: Tensor
    rows: Tensor
    elements: Tensor
    sign: Tensor
    count: int

    def sums(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the sums over the rows of ``where(mask, a, b)``."""
        change = self.sign * (a - b)[self.elements]
        changes = torch.zeros(self.count, dtype=a.dtype).scatter_add(0, self.rows, change)
        return torch.where(self.first, a, b).sum() + changes.cumsum(0)


def _selections(values: Any) -> list[_Selected]:
    return [x for x in tree_leaves(values) if isinstance(x, _Selected)]


def _whole(x: Any) -> Any:
    return x.whole() if isinstance(x, _Selected) else x


def _broadcast(inputs: Sequence[Tensor]) -> int:
    """Return the number of elements to which inputs broadcast, without expanded axes."""
    ndim = max(x.ndim for x in inputs)
    return math.prod(np.max([_narrowed(x, ndim).shape for x in inputs], axis=0).tolist())


def _varying(x: Tensor) -> int:
    """Return the number of elements without the axes along which a tensor is expanded."""
    return math.prod(n for n, step in zip(x.shape, x.stride(), strict=True) if step)


def _pays(sizes: Sequence[int], whole: Tensor) -> bool:
    return max(sizes) * MIN_GAIN <= whole.numel()


def _narrowed(x: Tensor, ndim: int) -> Tensor:
    """Return a tensor with this number of axes, of length 1 where it is expanded."""
    x = x.reshape([1] * (ndim - x.ndim) + list(x.shape)) if x.ndim < ndim else x
    for d in range(ndim):
        if x.shape[d] > 1 and not x.stride(d):
            x = x.narrow(d, 0, 1)
    return x


def _same_axes(old: Sequence[int], new: Sequence[int]) -> dict[int, int] | None:
    """Return the place of each axis in another shape that has the same axes; None if it has not.

    >>> _same_axes([1, 3, 4], [3, 1, 4])
    {1: 0, 2: 2}
    >>> _same_axes([3, 4], [12]) is None
    True
    """
    here, there = ([d for d, n in enumerate(shape) if n > 1] for shape in (old, new))
    if [old[d] for d in here] != [new[d] for d in there]:
        return None
    return dict(zip(here, there, strict=True))


def _moved(x: Tensor, axes: dict[int, int], ndim: int) -> Tensor:
    sizes = [1] * ndim
    for old, new in axes.items():
        sizes[new] = x.shape[old]
    return x.reshape(sizes)
