"""The intermediate form of the C code: values in memory, and statements that compute them."""

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
    "MAX_SHORT_LOOP",
    "MIN_ROW_PASS_READS",
    "Buffer",
    "Builder",
    "ByRows",
    "Numbers",
    "Parts",
    "Statement",
    "UnsupportedError",
    "Value",
    "empty",
    "is_shape",
    "laid_out",
    "reach",
    "real",
    "shape_of",
    "squeezed",
    "squeezed_access",
]

MAX_SHORT_LOOP = 8  # iterations; shorter loops are unrolled, or put outside longer ones
MIN_ROW_PASS_READS = 2**17  # numbers; with fewer, the data stay in the cache between two loops


class UnsupportedError(ProbdlError, RuntimeError):
    """The graph contains an operation that the native engine does not support."""


@dataclass(eq=False)
class Buffer:
    """A contiguous piece of memory: the point, a data array, or work space."""

    name: str  # the C array; '' for work space, whose position is assigned later
    size: int
    producer: Statement | None = None
    keep: bool = False  # whether it is read after the last statement
    home: tuple[Buffer, int] | None = None  # a larger buffer that it is a part of, and where
    whole: bool = False  # whether it has such parts

    @property
    def place(self) -> tuple[Buffer, int]:
        """The buffer itself or the one that it is a part of, and its position there."""
        return self.home or (self, 0)


@dataclass(eq=False)
class Parts(Buffer):
    """Memory that is another part of some buffers in each turn of a loop."""

    parts: Sequence[tuple[Buffer, int]] = ()


@dataclass(eq=False)
class Numbers(Buffer):
    """Another number in each turn of a loop."""

    numbers: Sequence[float] = ()


@dataclass(frozen=True)
class Value:
    """A tensor: a layout over a buffer, or one number for all elements."""

    buffer: Buffer | float
    layout: Tensor  # shape and strides, as a tensor on the meta device whose offset is 0
    start: int = 0  # the position of the first element in the buffer

    def like(self, layout: Tensor) -> Value:
        """Return the same memory in another layout, whose offset counts from the first element."""
        offset = int(layout.storage_offset())
        if offset:
            layout = layout.as_strided(layout.shape, layout.stride(), 0)
        return Value(self.buffer, layout, self.start + offset)

    @property
    def producer(self) -> Statement | None:
        """The statement that computes it, or None for an input."""
        return self.buffer.producer if isinstance(self.buffer, Buffer) else None

    @property
    def access(self) -> Access:
        """How a loop runs along the elements, from the first one."""
        return tuple(self.layout.stride()), 0


@dataclass(frozen=True)
class ByRows:
    """How a statement can be computed for a block of rows of its operands at a time.

    Attributes:
        rows: the number of rows.
        total: whether each block adds to the whole result; otherwise each computes its own rows.
        reads: for each operand, the distance between two rows, and the last position that is read
            relative to the first one in a row; (0, ...) where all blocks read the same elements.
        write: takes the operands, the result, and C expressions of the first row and the row after
            the last; returns code, which adds to the result if that is a total.
    """

    rows: int
    total: bool
    reads: tuple[tuple[int, int], ...]
    write: Callable[..., list[str]]


@dataclass(eq=False)
class Statement:
    """One computation, which becomes an expression in a shared loop or a piece of code."""

    index: int
    key: Any  # statements with the same key may share a loop: the shape; None: never
    operands: list[Value]
    outputs: list[Buffer]
    write: Callable[..., Any]  # names to an expression; if the key is None, to lines of code
    total: Any = None  # of a reduction to one number: the operation
    by_rows: tuple[ByRows, ...] = ()  # if the key is None: the ways to compute it in blocks
    consumers: list[tuple[Statement, bool]] = field(default_factory=list)
    group: int = -1

    @property
    def name(self) -> str:
        """The C name of the result."""
        return f"t{self.index}"


class Builder:
    """Collects the statements that the rules of operations add.

    Attributes:
        shape: the shape of the result of the current operation.
        dtype: the dtype of that result.
        input_fills_storage: whether the operation's first input covers its storage in torch
            without gaps.
        uses_lapack: whether a statement calls a function of lapack.h.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    input_fills_storage: bool

    def __init__(self) -> None:
        self.statements: list[Statement] = []
        self.uses_lapack = False

    def statement(
        self,
        key: Any,
        operands: Sequence[Value],
        shapes: Sequence[Sequence[int]],
        write: Callable[..., Any],
        total: Any = None,
        by_rows: Sequence[ByRows] = (),
        into: Sequence[Buffer] | None = None,
    ) -> list[Value]:
        """Add a statement, and return its results, contiguous in new or given buffers."""
        layouts = [empty(shape) for shape in shapes]
        buffers = into or [Buffer("", layout.numel()) for layout in layouts]
        statement = Statement(
            len(self.statements), key, list(operands), list(buffers), write, total, tuple(by_rows)
        )
        for buffer in buffers:
            buffer.producer = statement
        self.statements.append(statement)
        return [Value(b, layout) for b, layout in zip(buffers, layouts, strict=True)]

    def copied(self, value: Value) -> Value:
        """Copy a value to a contiguous buffer."""
        shape = tuple(value.layout.shape)
        return self.statement(squeezed(shape), [value], [shape], lambda x: x)[0]

    def in_memory(self, value: Value) -> Value:
        """Return the value, copied to a buffer if it is a single number for all elements."""
        return value if isinstance(value.buffer, Buffer) else self.copied(value)

    def stored(self, value: Value) -> Value:
        """Return the value in a buffer that is kept until the end of the call."""
        value = self.in_memory(value)
        assert isinstance(value.buffer, Buffer)
        value.buffer.keep = True
        return value

    def elementwise(
        self, expression: Callable[..., str], operands: Sequence[Value], shape: tuple[int, ...]
    ) -> Value:
        """Add a statement that computes each element independently.

        Args:
            expression: takes C expressions of the operands' elements and returns one of the
                result's element.
            operands: the operands, each of a shape that can be expanded to the result's.
            shape: the shape of the result.
        """
        if not shape:
            return self.statement((), operands, [()], expression)[0]
        expanded = [v.like(v.layout.expand(shape)) for v in operands]
        # Where no operand varies along a dimension, compute one element of it.
        small = list(shape)
        for d, n in enumerate(shape):
            if n > 1 and not any(v.layout.stride(d) for v in expanded):
                small[d] = 1
                expanded = [v.like(v.layout.narrow(d, 0, 1)) for v in expanded]
        # Loop in the order of memory, as torch does: equal orders can share a loop.
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

    If there is no such operand, short loops go outside, so that a long inner loop is vectorized;
    except for data so large that they are processed in row passes, where rows must come first.
    Return None if the present order is right.
    """
    dims = [d for d, n in enumerate(shape) if n != 1]
    if len(dims) < 2:
        return None
    short = MAX_SHORT_LOOP if math.prod(shape) < MIN_ROW_PASS_READS else 1
    order = sorted(dims, key=lambda d: shape[d] > short)
    for value in operands:
        strides = value.layout.stride()
        if all(strides[d] for d in dims):
            order = sorted(dims, key=lambda d: -strides[d])
            break
    return None if order == dims else [*order, *(d for d, n in enumerate(shape) if n == 1)]


def empty(shape: Sequence[int]) -> Tensor:
    """Return the layout of a contiguous tensor."""
    return torch.empty(tuple(shape), device="meta", dtype=torch.float64)


def laid_out(x: Tensor) -> Tensor:
    """Return an array in the memory order that the C code expects: contiguous, row by row.

    A matrix of few columns is stored column by column, so that loops over its rows are vectorized,
    unless it is so large that it is processed in row passes.
    """
    few_columns = x.ndim == 2 and 1 < x.shape[1] <= MAX_SHORT_LOOP < x.shape[0]
    if few_columns and x.numel() < MIN_ROW_PASS_READS:
        return x.T.contiguous().T
    return x.contiguous()


def real(x: Tensor) -> Tensor:
    """Return a tensor as it is in memory: float64, with complex parts in the last dimension."""
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj())
    return x.resolve_neg().to(torch.float64)


def squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """Remove the dimensions of size 1."""
    return tuple(n for n in shape if n != 1)


def is_shape(key: Any) -> bool:
    """Return whether a key is only a shape."""
    return isinstance(key, tuple) and all(isinstance(n, int) for n in key)


def shape_of(key: Any) -> tuple[int, ...]:
    """Return the shape that statements with this key loop over."""
    return tuple(n for n in key if isinstance(n, int))


def reach(layout: Tensor, dim: int) -> tuple[int, int]:
    """Return where the rows along a dimension are, from the first element on; see ``ByRows``."""
    others = zip(layout.stride(), layout.shape, strict=True)
    last = sum(step * (n - 1) for d, (step, n) in enumerate(others) if d != dim)
    return int(layout.stride(dim)), last


def squeezed_access(value: Value) -> Access:
    """Return the access of a value in its buffer, without its dimensions of size 1."""
    layout = value.layout
    strides = tuple(s for s, n in zip(layout.stride(), layout.shape, strict=True) if n != 1)
    return strides, value.start
