"""Find the preparation of a long series from that of short ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from probdl.compile.codegen.lengthen import DifferentError, lengthened_number
from probdl.compile.tracing.trace import Prepared
from probdl.model.recorder import Graph

__all__ = ["lengthened_preparation"]


def lengthened_preparation(
    short: Sequence[Prepared], lengths: Sequence[int], length: int
) -> Prepared:
    """Return the preparation of the data of a long series from those of three short ones.

    Raises:
        DifferentError: they differ in more than numbers.
        NotAffineError: their numbers do not determine those of the long series.
    """

    def lengthened(values: Sequence[Any]) -> Any:
        first, *others = values
        if any(type(x) is not type(first) for x in others):
            raise DifferentError(f"the preparations of short series differ: {values}")
        if isinstance(first, fx.Node):
            copy, *of_others = (of[x] for of, x in zip(copies, values, strict=True))
            if any(x is not copy for x in of_others):
                raise DifferentError("the preparations of short series differ")
            return copy
        if isinstance(first, (list, tuple)):
            if len({len(x) for x in values}) != 1:
                raise DifferentError(f"the preparations of short series differ: {values}")
            return type(first)(map(lengthened, zip(*values, strict=True)))
        if isinstance(first, (int, float)) and not isinstance(first, bool):
            return lengthened_number(values, lengths, length)
        if any(x != first for x in others):
            raise DifferentError(f"the preparations of short series differ: {values}")
        return first

    if not all(s.reads_data for s in short):
        raise DifferentError("the short series are constants")
    if len({len(s.shapes) for s in short}) != 1:
        raise DifferentError("each step has its own array")
    nodes = [list(s.prepare.graph.nodes) for s in short]
    if len({len(of_one) for of_one in nodes}) != 1:
        raise DifferentError("the preparations of short series differ")
    graph, constants = Graph(), dict[str, Tensor]()
    copies: list[dict[fx.Node, fx.Node]] = [{} for _ in short]
    for same in zip(*nodes, strict=True):
        node = same[0]
        if any(n.op != node.op or n.kwargs.keys() != node.kwargs.keys() for n in same):
            raise DifferentError("the preparations of short series differ")
        args = lengthened([tuple(n.args) for n in same])
        if node.op == "output":
            graph.output(args[0])
            continue
        if node.op == "get_attr":
            values = [getattr(s.prepare, str(n.target)) for s, n in zip(short, same, strict=True)]
            if not all(_equal(values[0], value) for value in values):
                raise DifferentError("constants of short series differ")
            constants[str(node.target)] = values[0]
        elif node.op == "call_function" and any(n.target is not node.target for n in same):
            raise DifferentError("the preparations of short series differ")
        kwargs = {name: lengthened([n.kwargs[name] for n in same]) for name in node.kwargs}
        new = graph.create_node(node.op, node.target, args, kwargs, node.name)
        for of, n in zip(copies, same, strict=True):
            of[n] = new
    shapes = tuple(
        torch.Size(lengthened([tuple(shape) for shape in of_one]))
        for of_one in zip(*(s.shapes for s in short), strict=True)
    )
    return Prepared(fx.GraphModule(constants, graph), shapes, True)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
