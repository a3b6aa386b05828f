"""What the C code consists of: values in memory, and the statements that compute them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from probdl.compile.codegen.loops import Access
from probdl.errors import ProbdlError

__all__ = [
    "FEW",
    "MANY",
    "Buffer",
    "Builder",
    "ByRows",
    "Statement",
    "UnsupportedError",
    "Value",
    "empty",
    "is_shape",
    "laid_out",
    "reach",
    "shape_of",
    "squeezed",
    "squeezed_access",
]

FEW = 8  # numbers that become one expression, or a loop that is short
MANY = 2**17  # numbers that are read, from which on passes over rows pay; fewer stay in the cache


class UnsupportedError(ProbdlError, RuntimeError):
    """The graph has an operation that has no C form here."""


@dataclass(eq=False)
class Buffer:
    """A stretch of memory: the point, an array of data, or work space."""

    name: str  # the C expression that it starts at; of work space, once it has a place
    size: int
    producer: Statement | None = None
    keep: bool = False  # is read after the last statement


@dataclass(frozen=True)
class Value:
    """A tensor: a layout over a buffer, or one number everywhere."""

    buffer: Buffer | float
    layout: Tensor  # on the meta device; its storage stands for the buffer

    def like(self, layout: Tensor) -> Value:
        """Return the same memory in another layout."""
        return Value(self.buffer, layout)

    @property
    def producer(self) -> Statement | None:
        """The statement that computes it; None for what is given."""
        return self.buffer.producer if isinstance(self.buffer, Buffer) else None

    @property
    def access(self) -> Access:
        """How a loop over the shape runs along it."""
        return tuple(self.layout.stride()), int(self.layout.storage_offset())


@dataclass(frozen=True)
class ByRows:
    """How a statement can be computed some rows of its operands at a time.

    Attributes:
        rows: how many there are.
        total: whether each part adds to the whole result; else each makes its own rows of it.
        reads: of each operand, the numbers from one row to the next, and the last that is read
            beyond the start of a row; (0, …) where a part reads what other parts read too.
        write: takes the operands, the result, and C expressions of the first row and of the one
            after the last; returns code, which adds to the result if that is a total.
    """

    rows: int
    total: bool
    reads: tuple[tuple[int, int], ...]
    write: Callable[..., list[str]]


@dataclass(eq=False)
class Statement:
    """An operation that computes something."""

    index: int
    key: Any  # statements of one key may share a loop: the shape; None where none may
    operands: list[Value]
    outputs: list[Buffer]
    write: Callable[..., Any]  # loops: operand names to an expression; else code
    total: Any = None  # the operation, of a reduction to one number
    by_rows: tuple[ByRows, ...] = ()  # of a statement with code of its own
    consumers: list[tuple[Statement, bool]] = field(default_factory=list)
    group: int = -1

    @property
    def name(self) -> str:
        """The C name of the result."""
        return f"t{self.index}"


class Builder:
    """Collects statements; the operations write themselves with it.

    Attributes:
        shape: of the result of the operation that is being written.
        dtype: of that result.
        whole: whether its first input is all of its memory in torch, without gaps.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    whole: bool

    def __init__(self) -> None:
        self.statements: list[Statement] = []

    def statement(
        self,
        key: Any,
        operands: Sequence[Value],
        shapes: Sequence[Sequence[int]],
        write: Callable[..., Any],
        total: Any = None,
        by_rows: Sequence[ByRows] = (),
    ) -> list[Value]:
        """Add a statement; return its results, each in a contiguous buffer of its own."""
        layouts = [empty(shape) for shape in shapes]
        buffers = [Buffer("", layout.numel()) for layout in layouts]
        statement = Statement(
            len(self.statements), key, list(operands), buffers, write, total, tuple(by_rows)
        )
        for buffer in buffers:
            buffer.producer = statement
        self.statements.append(statement)
        return [Value(b, layout) for b, layout in zip(buffers, layouts, strict=True)]

    def copied(self, value: Value) -> Value:
        """Write a value out, one element after the other."""
        shape = tuple(value.layout.shape)
        return self.statement(squeezed(shape), [value], [shape], lambda x: x)[0]

    def in_memory(self, value: Value) -> Value:
        """Write a value out if it is a number everywhere."""
        return value if isinstance(value.buffer, Buffer) else self.copied(value)

    def stored(self, value: Value) -> Value:
        """Make a value one that lies in memory to the end."""
        value = self.in_memory(value)
        assert isinstance(value.buffer, Buffer)
        value.buffer.keep = True
        return value

    def elementwise(
        self, expression: Callable[..., str], operands: Sequence[Value], shape: tuple[int, ...]
    ) -> Value:
        """Add a statement that computes each element by itself.

        Args:
            expression: takes C expressions of the operands' elements, returns that of the result.
            operands: what it reads, each of a shape that can be expanded to the result's.
            shape: of the result.
        """
        expanded = [v.like(v.layout.expand(shape)) for v in operands]
        # Along dimensions in which nothing varies, once is enough.
        small = list(shape)
        for d, n in enumerate(shape):
            if n > 1 and not any(v.layout.stride(d) for v in expanded):
                small[d] = 1
                expanded = [v.like(v.layout.narrow(d, 0, 1)) for v in expanded]
        # In the order of memory, as torch has it: loops of one order can be one loop.
        order = _memory_order(small, expanded)
        if order is not None:
            small = [small[d] for d in order]
            expanded = [v.like(v.layout.permute(order)) for v in expanded]
        (result,) = self.statement(squeezed(small), expanded, [small], expression)
        if order is not None:
            result = result.like(result.layout.permute(sorted(order, key=order.__getitem__)))
        return result.like(result.layout.expand(shape))


def _memory_order(shape: Sequence[int], operands: Sequence[Value]) -> list[int] | None:
    """Order the dimensions by the strides of the first operand that varies along all of them.

    Where there is none, short loops go outside, so that a long one can use vectors; but not where
    rows are so many that they are taken in passes, for which they must come first. None means
    that the order is as it should be.
    """
    dims = [d for d, n in enumerate(shape) if n != 1]
    if len(dims) < 2:
        return None
    short = FEW if math.prod(shape) < MANY else 1
    order = sorted(dims, key=lambda d: shape[d] > short)
    for value in operands:
        strides = value.layout.stride()
        if all(strides[d] for d in dims):
            order = sorted(dims, key=lambda d: -strides[d])
            break
    return None if order == dims else [*order, *(d for d, n in enumerate(shape) if n == 1)]


def empty(shape: Sequence[int]) -> Tensor:
    """Return the layout of a tensor without gaps."""
    return torch.empty(tuple(shape), device="meta", dtype=torch.float64)


def laid_out(x: Tensor) -> Tensor:
    """Return an array as the code expects it in memory: without gaps, row by row.

    A matrix of few columns lies column by column, so that loops over its rows can use vectors; but
    not where its rows are so many that they are taken in passes.
    """
    if x.ndim == 2 and 1 < x.shape[1] <= FEW < x.shape[0] and x.numel() < MANY:
        return x.T.contiguous().T
    return x.contiguous()


def squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """Leave out the dimensions of size 1."""
    return tuple(n for n in shape if n != 1)


def is_shape(key: Any) -> bool:
    """Tell whether a key is a shape and nothing more."""
    return isinstance(key, tuple) and all(isinstance(n, int) for n in key)


def shape_of(key: Any) -> tuple[int, ...]:
    """Return the shape that statements of a key loop over."""
    return tuple(n for n in key if isinstance(n, int))


def reach(layout: Tensor, dim: int) -> tuple[int, int]:
    """Tell how rows along a dimension lie in memory: see ``ByRows.reads``."""
    others = zip(layout.stride(), layout.shape, strict=True)
    last = sum(step * (n - 1) for d, (step, n) in enumerate(others) if d != dim)
    return int(layout.stride(dim)), int(layout.storage_offset()) + last


def squeezed_access(value: Value) -> Access:
    """Return how a loop over the shape without its dimensions of size 1 runs along a value."""
    layout = value.layout
    strides = tuple(s for s, n in zip(layout.stride(), layout.shape, strict=True) if n != 1)
    return strides, int(layout.storage_offset())
