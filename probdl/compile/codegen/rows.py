"""Row passes: loops over blocks of rows that read each row from memory once, on several threads.

The gradient of a regression reads its predictors twice: for the linear predictor, and for the
gradient of the coefficients. If the data are larger than the processor's cache, memory bandwidth
limits the speed. Therefore all statements that can be computed row by row go into one loop over
blocks of rows that stay in the cache.
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
    MIN_ROW_PASS_READS,
    Buffer,
    ByRows,
    Statement,
    Value,
    is_shape,
    reach,
)

__all__ = ["RowPass", "row_passes"]

MIN_ROWS = 64
MIN_READS_PER_TOTAL = 64  # numbers read per number of a total, which each block adds to
MIN_CHUNK_READS = 2**20  # numbers; fewer are not worth another thread
MAX_CHUNKS = 32
MAX_BLOCK_NUMBERS = 2**15  # a quarter of a common second-level cache


@dataclass(eq=False)
class RowPass:
    """One pass over rows.

    Attributes:
        rows: the number of rows.
        block: the number of rows that are computed together.
        chunks: the number of parts that threads share; each has its own memory.
        groups: the statements, as ``schedule`` orders them.
        by_rows: how each statement is computed by rows.
        chunk_buffers: for each buffer in a chunk's memory, its start and the length of a row;
            totals come first, and have rows of length 0.
        totals: the size of all totals, in numbers.
        size: the size of a chunk's memory, in numbers.
        memory: the memory of all chunks.
        reads: the values that it reads from other statements.
        results: the buffers that other statements read from it.
    """

    rows: int
    block: int
    chunks: int
    groups: list[list[Statement]]
    by_rows: dict[Statement, ByRows]
    chunk_buffers: dict[Buffer, tuple[int, int]]
    totals: int
    size: int
    memory: Buffer
    reads: list[Value]
    results: list[Buffer]


def row_passes(statements: Sequence[Statement]) -> tuple[list[Statement], list[RowPass]]:
    """Collect the statements that can be computed in passes over rows.

    Returns:
        The remaining statements, and the passes. The results of a pass that other statements read
        stay in their buffers; see ``RowPass.chunk_buffers`` for the others.
    """
    rows = _main_row_count(statements)
    if rows is None:
        return list(statements), []
    ways = {s: way for s in statements for way in _ways(s) if way.rows == rows}
    by_level: dict[int, list[Statement]] = defaultdict(list)
    for statement, level in _levels(statements, ways).items():
        if statement in ways:
            by_level[level].append(statement)
    chosen = [members for members in by_level.values() if _is_worthwhile(members, ways)]
    inside = {s for members in chosen for s in members}
    return (
        [s for s in statements if s not in inside],
        [_row_pass(rows, members, {s: ways[s] for s in members}, statements) for members in chosen],
    )


def _main_row_count(statements: Sequence[Statement]) -> int | None:
    """Return the number of rows with the most work, or None if no pass is worth it."""
    work: dict[int, int] = defaultdict(int)
    for statement in statements:
        for way in _ways(statement):
            if way.rows >= MIN_ROWS:
                work[way.rows] += _work(statement, way)
    best = max(work, key=lambda rows: (work[rows], rows), default=None)
    return best if best is not None and work[best] >= MIN_ROW_PASS_READS else None


def _ways(statement: Statement) -> tuple[ByRows, ...]:
    """Return the ways in which a statement can be computed by rows."""
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
    """Return the number of numbers that are read row by row."""
    if is_shape(statement.key):
        return math.prod(statement.key)
    reads = zip(statement.operands, way.reads, strict=True)
    return sum(value.layout.numel() for value, (step, _) in reads if step)


def _is_worthwhile(members: Sequence[Statement], ways: dict[Statement, ByRows]) -> bool:
    """Return whether a pass is worth it: it reads many numbers, also relative to its totals."""
    totals = sum(s.outputs[0].size for s in members if ways[s].total)
    return sum(_work(s, ways[s]) for s in members) >= max(
        MIN_ROW_PASS_READS, MIN_READS_PER_TOTAL * totals
    )


def _levels(statements: Sequence[Statement], ways: dict[Statement, ByRows]) -> dict[Statement, int]:
    """Return the number of passes that must finish before each statement; passes run in order."""
    levels: dict[Statement, int] = {}
    for statement in statements:
        way = ways.get(statement)
        level = 0
        for i, value in enumerate(statement.operands):
            producer = value.producer
            if producer is None:
                continue
            same_pass = way is not None and _same_rows(producer, ways, way.reads[i], value.start)
            level = max(level, levels[producer] + (producer in ways and not same_pass))
        levels[statement] = level
    return levels


def _same_rows(
    producer: Statement, ways: dict[Statement, ByRows], read: tuple[int, int], start: int
) -> bool:
    """Return whether the rows that are read are those that another statement computes."""
    way = ways.get(producer)
    if way is None or way.total:
        return False
    length = producer.outputs[0].size // way.rows
    return read[0] == length and start + read[1] < length


def _row_pass(
    rows: int,
    members: list[Statement],
    ways: dict[Statement, ByRows],
    statements: Sequence[Statement],
) -> RowPass:
    inside = set(members)
    wanted = {  # by statements outside the pass
        value.buffer for s in statements if s not in inside for value in s.operands
    }
    kept = {b for b in (s.outputs[0] for s in members) if b.keep or b.home is not None}
    groups = schedule(members)
    chunk_buffers: dict[Buffer, tuple[int, int]] = {}
    totals = 0
    for statement in members:
        if ways[statement].total:
            chunk_buffers[statement.outputs[0]] = (totals, 0)
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
    block = min(rows, max(16, MAX_BLOCK_NUMBERS // max(1, width + sum(lengths.values()))))
    end = totals
    for buffer, length in lengths.items():
        chunk_buffers[buffer] = (end, length)
        end += length * block
    work = sum(_work(s, ways[s]) for s in members)
    chunks = max(1, min(MAX_CHUNKS, work // MIN_CHUNK_READS))
    size = -(-end // 8) * 8 + 8  # no two chunks share a cache line
    memory = Buffer("", size * chunks)
    reads = [v for s in members for v in s.operands if v.producer not in inside]
    results = [s.outputs[0] for s in members if ways[s].total or s.outputs[0] in wanted | kept]
    return RowPass(
        rows, block, chunks, groups, ways, chunk_buffers, totals, size, memory, reads, results
    )


def _widths(members: Sequence[Statement], inside: set[Statement], rows: int) -> dict[Any, int]:
    """Return, by buffer, the number of numbers per row that are read from outside the pass."""
    widths: dict[Any, int] = defaultdict(int)
    for statement in members:
        for value in statement.operands:
            buffer = value.buffer
            if isinstance(buffer, Buffer) and buffer.producer not in inside:
                widths[buffer] = max(widths[buffer], min(buffer.size, value.layout.numel()) // rows)
    return widths
