"""Passes over many rows: each row is read from memory once, and threads share the rows.

The gradient of a regression reads its predictors twice, before and after what is computed of each
row. Where they are larger than the processor's cache, memory is what takes the time, so all that
can be computed some rows at a time goes into one loop over blocks that stay in the cache.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from probdl.compile.codegen.schedule import schedule
from probdl.compile.codegen.statements import (
    MANY,
    Buffer,
    ByRows,
    Statement,
    Value,
    is_shape,
    reach,
)

__all__ = ["RowPass", "row_passes"]

FEWEST = 64  # rows that make a pass
PER_TOTAL = 64  # numbers read for each of the totals, and more
CHUNK = 2**20  # numbers read, for which a thread is worth starting
CHUNKS = 32
CACHE = 2**15  # numbers that a block of rows may take: a quarter of a common second-level cache


@dataclass(eq=False)
class RowPass:
    """A pass over rows.

    Attributes:
        rows: how many there are.
        block: how many are computed together.
        chunks: in how many parts threads may take them; each has memory of its own.
        groups: what is computed, as ``schedule`` orders it.
        ways: how each statement is computed by rows.
        own: for buffers in a chunk's memory, where they start and how long a row is; totals come
            first, and have rows of length 0.
        totals: how many numbers those are.
        size: of a chunk's memory.
        memory: of all chunks.
        reads: what it takes from other statements.
        gives: what other statements take from it.
    """

    rows: int
    block: int
    chunks: int
    groups: list[list[Statement]]
    ways: dict[Statement, ByRows]
    own: dict[Buffer, tuple[int, int]]
    totals: int
    size: int
    memory: Buffer
    reads: list[Value]
    gives: list[Buffer]


def row_passes(statements: Sequence[Statement]) -> tuple[list[Statement], list[RowPass]]:
    """Find what can be computed in passes over rows.

    Returns the statements that are left, and the passes. What a pass gives to the others is in the
    buffers it had before; see ``RowPass`` for what lies elsewhere.
    """
    rows = _heaviest(statements)
    if rows is None:
        return list(statements), []
    ways = {s: way for s in statements for way in _ways(s) if way.rows == rows}
    members: dict[int, list[Statement]] = defaultdict(list)
    for statement, level in _levels(statements, ways).items():
        if statement in ways:
            members[level].append(statement)
    taken = [some for some in members.values() if _pays(some, ways)]
    inside = {s for some in taken for s in some}
    return (
        [s for s in statements if s not in inside],
        [_make(rows, some, {s: ways[s] for s in some}, statements) for some in taken],
    )


def _heaviest(statements: Sequence[Statement]) -> int | None:
    """Choose the number of rows that most is computed of."""
    work: dict[int, int] = defaultdict(int)
    for statement in statements:
        for way in _ways(statement):
            if way.rows >= FEWEST:
                work[way.rows] += _work(statement, way)
    best = max(work, key=lambda rows: (work[rows], rows), default=None)
    return best if best is not None and work[best] >= MANY else None


def _ways(statement: Statement) -> tuple[ByRows, ...]:
    """Tell how a statement can be computed by rows; of an element-wise one, what it reads."""
    key = statement.key
    if key is None:
        return statement.by_rows
    if not is_shape(key) or not key or statement.total not in (None, torch.ops.aten.sum):
        return ()
    reads = tuple(
        reach(value.layout.squeeze(), 0) if isinstance(value.buffer, Buffer) else (0, 0)
        for value in statement.operands
    )
    return (ByRows(key[0], statement.total is not None, reads, lambda *_: []),)


def _work(statement: Statement, way: ByRows) -> int:
    """Return how many numbers are read in rows."""
    if is_shape(statement.key):
        return math.prod(statement.key)
    reads = zip(statement.operands, way.reads, strict=True)
    return sum(value.layout.numel() for value, (step, _) in reads if step)


def _pays(members: Sequence[Statement], ways: dict[Statement, ByRows]) -> bool:
    """Tell whether the rows are many, also beside the totals, which each block adds to."""
    totals = sum(s.outputs[0].size for s in members if ways[s].total)
    return sum(_work(s, ways[s]) for s in members) >= max(MANY, PER_TOTAL * totals)


def _levels(statements: Sequence[Statement], ways: dict[Statement, ByRows]) -> dict[Statement, int]:
    """Tell how many passes must have ended before each statement; they come in order."""
    levels: dict[Statement, int] = {}
    for statement in statements:
        way = ways.get(statement)
        level = 0
        for i, value in enumerate(statement.operands):
            producer = value.producer
            if producer is None:
                continue
            goes_along = way is not None and _same_rows(producer, ways, way.reads[i])
            level = max(level, levels[producer] + (producer in ways and not goes_along))
        levels[statement] = level
    return levels


def _same_rows(producer: Statement, ways: dict[Statement, ByRows], read: tuple[int, int]) -> bool:
    """Tell whether rows that are read are rows that another statement makes beside it."""
    way = ways.get(producer)
    if way is None or way.total:
        return False
    length = producer.outputs[0].size // way.rows
    return read[0] == length and read[1] < length


def _make(
    rows: int,
    members: list[Statement],
    ways: dict[Statement, ByRows],
    statements: Sequence[Statement],
) -> RowPass:
    inside = set(members)
    wanted = {  # by what is computed elsewhere
        value.buffer for s in statements if s not in inside for value in s.operands
    }
    kept = {s.outputs[0] for s in members if s.outputs[0].keep}
    groups = schedule(members)
    own: dict[Buffer, tuple[int, int]] = {}
    totals = 0
    for statement in members:
        if ways[statement].total:
            own[statement.outputs[0]] = (totals, 0)
            totals += statement.outputs[0].size
    width = sum(_widths(members, inside, rows).values())
    lengths: dict[Buffer, int] = {}
    for statement in members:
        buffer = statement.outputs[0]
        if ways[statement].total or buffer in wanted | kept:
            continue
        here = all(c.group == statement.group and aligned for c, aligned in statement.consumers)
        if statement.key is None or not here:
            lengths[buffer] = buffer.size // rows
    block = min(rows, max(16, CACHE // max(1, width + sum(lengths.values()))))
    end = totals
    for buffer, length in lengths.items():
        own[buffer] = (end, length)
        end += length * block
    work = sum(_work(s, ways[s]) for s in members)
    chunks = max(1, min(CHUNKS, work // CHUNK))
    size = -(-end // 8) * 8 + 8  # chunks of different threads share no line of the cache
    memory = Buffer("", size * chunks)
    reads = [v for s in members for v in s.operands if v.producer not in inside]
    gives = [s.outputs[0] for s in members if ways[s].total or s.outputs[0] in wanted | kept]
    return RowPass(rows, block, chunks, groups, ways, own, totals, size, memory, reads, gives)


def _widths(members: Sequence[Statement], inside: set[Statement], rows: int) -> dict[Any, int]:
    """Tell how many numbers of a row are read from elsewhere, by buffer."""
    widths: dict[Any, int] = defaultdict(int)
    for statement in members:
        for value in statement.operands:
            buffer = value.buffer
            if isinstance(buffer, Buffer) and buffer.producer not in inside:
                widths[buffer] = max(widths[buffer], min(buffer.size, value.layout.numel()) // rows)
    return widths
