"""Remove the versions of a tensor that a loop writes to step by step.

``out[t] = x``, without writes in place, is a new tensor for each step, and so is the gradient of
each. What reads an element that was written, or that was not written yet, reads what was written,
or the tensor before; and the last version is put together from its elements at once.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

__all__ = ["join_writes"]

aten = torch.ops.aten
_COPIES = {aten.clone.default, aten.expand.default, aten.view.default}
_VIEWS = {*_COPIES, aten.copy.default, aten.select.int, aten.select_scatter.default}

MIN_WRITES = 8  # of a tensor; fewer versions are not worth it
MAX_WHOLE = 2  # versions that are read as a whole


@dataclass(eq=False)
class _History:
    """Writes to elements along one dimension of a tensor.

    Attributes:
        dim: the dimension.
        writes: the nodes that write, in order.
        by_index: by index, the numbers of writes.
    """

    dim: int
    writes: list[fx.Node] = field(default_factory=list)
    by_index: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))

    @property
    def base(self) -> Any:
        """The tensor before."""
        return self.writes[0].args[0]

    def add(self, index: int, write: fx.Node) -> None:
        self.by_index[index].append(len(self.writes))
        self.writes.append(write)

    def written(self, index: int, version: int) -> Any:
        """Return what is at an index after a number of writes; None if it is of the base."""
        for number in reversed(self.by_index.get(index, [])):
            if number < version:
                return self.writes[number].args[1]
        return None


Versions = dict[fx.Node, tuple[_History, int]]  # of a tensor, by the number of writes


def join_writes(graph: fx.Graph) -> None:
    """Remove the versions of written tensors from a graph without writes in place."""
    versions: Versions = {}
    for node in list(graph.nodes):
        if node.target is aten.select_scatter.default:
            base, _, dim, index = node.args
            _follow(node, base, *_place(base, dim, index), versions)
        elif node.target is aten.select.int and node.args[0] in versions:
            _read_source(node, *_place(*node.args), versions)
        elif node.target in _COPIES and node.args[0] in versions:
            _skip(node, node.args[0])
        elif node.target is aten.copy.default and node.args[1] in versions:
            _skip(node, node.args[1])
    _erase_unused_views(graph)
    whole: dict[_History, list[fx.Node]] = defaultdict(list)
    for node, (history, _) in versions.items():
        if any(versions.get(user, (None,))[0] is not history for user in node.users):
            whole[history].append(node)
    for history, nodes in whole.items():
        if len(history.writes) < MIN_WRITES or len(nodes) > MAX_WHOLE:
            continue
        for node in nodes:
            _put_together(graph, node, *versions[node])
    _erase_unused_views(graph)


def _place(x: fx.Node, dim: int, index: int) -> tuple[int, int]:
    shape = x.meta["val"].shape
    return dim % len(shape), index % shape[dim]


def _follow(node: fx.Node, base: fx.Node, dim: int, index: int, versions: Versions) -> None:
    history, version = versions.get(base, (None, 0))
    if history is None or history.dim != dim or version < len(history.writes):
        history, version = _History(dim), 0
    history.add(index, node)
    versions[node] = history, version + 1


def _read_source(node: fx.Node, dim: int, index: int, versions: Versions) -> None:
    history, version = versions[node.args[0]]  # type: ignore[index]
    if dim != history.dim:
        return
    source = history.written(index, version)
    if source is None:
        node.args = (history.base, dim, index)
    elif _are_alike(node, source) and source.meta["val"].is_contiguous():  # as views of it need
        node.replace_all_uses_with(source)


def _skip(node: fx.Node, source: fx.Node) -> None:
    if _are_alike(node, source):
        node.replace_all_uses_with(source)


def _are_alike(a: fx.Node, b: fx.Node) -> bool:
    x, y = a.meta["val"], b.meta["val"]
    return bool(x.shape == y.shape and x.dtype == y.dtype)


def _put_together(graph: fx.Graph, node: fx.Node, history: _History, version: int) -> None:
    """Replace a version by a concatenation of what was written and of what was not."""
    base, dim = history.base, history.dim
    pieces: list[fx.Node] = []
    start = 0
    length = base.meta["val"].shape[dim]

    def call(target: Any, *args: Any) -> fx.Node:
        new = graph.call_function(target, args)
        values = [a.meta["val"].to("meta") if isinstance(a, fx.Node) else a for a in args]
        new.meta["val"] = target(*values)
        return new

    with graph.inserting_before(node):
        for index in [*sorted(history.by_index), length]:
            source = history.written(index, version) if index < length else None
            if index < length and source is None:
                continue  # it was written later
            if start < index:
                pieces.append(call(aten.slice.Tensor, base, dim, start, index))
            if source is not None:
                pieces.append(call(aten.unsqueeze.default, source, dim))
            start = index + 1
        joined = graph.call_function(aten.cat.default, (pieces, dim))
    joined.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(joined)


def _erase_unused_views(graph: fx.Graph) -> None:
    for node in reversed(graph.nodes):
        if node.target in _VIEWS and not node.users:
            graph.erase_node(node)
