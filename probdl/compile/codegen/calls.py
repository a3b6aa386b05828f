"""Operations without a C form, which compiled code asks torch to compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from probdl.compile.codegen.statements import real

__all__ = ["Call", "Operand", "call_of", "in_memory", "is_complex"]

DTYPES = (torch.float64, torch.int64, torch.int32, torch.bool)  # that a float64 holds
COMPLEX = torch.complex128  # pairs of float64


@dataclass(frozen=True)
class Operand:
    """The place of a tensor among the arguments of a call.

    Attributes:
        index: its place.
        shape: its shape; of a complex one without the parts.
        dtype: its dtype.
    """

    index: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """The number of float64 in memory."""
        return math.prod(self.shape) * (2 if self.dtype is COMPLEX else 1)

    def of(self, memory: Tensor) -> Tensor:
        """Return the tensor that is in memory (float64)."""
        if self.dtype is COMPLEX:
            return torch.view_as_complex(memory.clone().reshape(*self.shape, 2))  # aligned
        return memory.reshape(self.shape).to(self.dtype)


@dataclass(frozen=True)
class Call:
    """A call of an operation of torch on tensors in the memory of compiled code.

    Attributes:
        op: the operation.
        args: its arguments, with operands in the places of tensors.
        kwargs: its keyword arguments.
        results: the shapes of the results in memory, in order; None where one is None. The last
            dimension of complex ones is the real and the imaginary part.
    """

    op: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    results: tuple[tuple[int, ...] | None, ...]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the results that are tensors."""
        return [shape for shape in self.results if shape is not None]

    @property
    def description(self) -> str:
        """All of the call as text: equal calls have equal ones."""
        return f"{self.op} {self.args} {dict(self.kwargs)} {self.results}"

    def run(self, tensors: Sequence[Tensor], results: Sequence[Tensor]) -> None:
        """Compute the results (float64) of operands (float64), all of them contiguous."""

        def given(x: Any) -> Any:
            return x.of(tensors[x.index]) if isinstance(x, Operand) else x

        found = self.op(*_mapped(self.args, given), **_mapped(dict(self.kwargs), given))
        every = found if isinstance(found, (tuple, list)) else [found]
        parts = [part for part in every if part is not None]
        for result, part in zip(results, parts, strict=True):
            result.copy_(real(part).reshape(-1))


def in_memory(val: Tensor) -> tuple[int, ...]:
    """Return the shape of a tensor in the memory of compiled code."""
    return (*val.shape, 2) if val.is_complex() else tuple(val.shape)


def is_complex(node: fx.Node) -> bool:
    """Return whether a node has complex operands or results."""
    return any(
        isinstance(val, Tensor) and val.is_complex()
        for n in (node, *node.all_input_nodes)
        for val in (n.meta.get("val"), *n.meta.get("vals", ()))
    )


def _mapped(x: Any, f: Callable[[Any], Any]) -> Any:
    if isinstance(x, (list, tuple)):
        return type(x)(_mapped(item, f) for item in x)
    if isinstance(x, dict):
        return {key: _mapped(item, f) for key, item in x.items()}
    return f(x)


def call_of(node: fx.Node) -> tuple[Call, list[fx.Node]] | None:
    """Return the call that computes a node, and its tensors; None if memory cannot hold them."""
    op = node.target
    results: list[Any] = node.meta["vals"] if "vals" in node.meta else [node.meta.get("val")]
    if not isinstance(op, torch._ops.OpOverload) or op._schema.is_mutable:
        return None
    if op.is_view and not is_complex(node):
        return None
    if torch.Tag.nondeterministic_seeded in op.tags:
        return None
    tensors: list[fx.Node] = []

    def operand(x: Any) -> Any:
        if not isinstance(x, fx.Node):
            return x
        tensors.append(x)
        val = x.meta["val"]
        return Operand(len(tensors) - 1, tuple(val.shape), val.dtype)

    args = _mapped(tuple(node.args), operand)
    kwargs = _mapped(dict(node.kwargs), operand)
    every = [*(r for r in results if r is not None), *(t.meta["val"] for t in tensors)]
    if "val" not in node.meta and "vals" not in node.meta:
        return None
    if any(not isinstance(val, Tensor) or val.dtype not in (*DTYPES, COMPLEX) for val in every):
        return None
    shapes = tuple(None if val is None else in_memory(val) for val in results)
    return Call(op, args, kwargs, shapes), tensors
