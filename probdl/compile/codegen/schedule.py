"""In what order statements run, which of them share a loop, and where results lie in memory."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from probdl.compile.codegen.loops import contiguous
from probdl.compile.codegen.statements import (
    Buffer,
    Statement,
    Value,
    is_shape,
    shape_of,
    squeezed_access,
)

__all__ = ["place", "schedule"]

LOOP_STATEMENTS = 400  # that share a loop; compilers take more than linear time over long ones
REUSED = 512  # numbers from which on memory is worth using twice


def schedule(statements: Sequence[Statement]) -> list[list[Statement]]:
    """Order the statements so that those of one shape come together, as far as they can."""
    waiting = [0] * len(statements)
    for i, statement in enumerate(statements):
        statement.index, statement.consumers = i, []
    own = set(statements)
    for statement in statements:
        for value in statement.operands:
            producer = value.producer
            if producer is not None and producer in own:
                waiting[statement.index] += 1
                producer.consumers.append((statement, _aligned(value, producer, statement)))
    ready: dict[Any, list[int]] = defaultdict(list)
    order: list[tuple[int, int, Any]] = []  # keys by size, the smallest first

    def release(statement: Statement) -> None:
        key = statement.key if statement.key is not None else ("alone", statement.index)
        if not ready[key]:
            heapq.heappush(order, (_size(statement), statement.index, key))
        heapq.heappush(ready[key], statement.index)

    for statement in statements:
        if not waiting[statement.index]:
            release(statement)
    groups: list[list[Statement]] = []
    while order:
        _, _, key = heapq.heappop(order)
        if not ready[key]:
            continue
        group: list[Statement] = []
        later: list[Statement] = []
        while ready[key] and len(group) < LOOP_STATEMENTS:
            statement = statements[heapq.heappop(ready[key])]
            statement.group = len(groups)
            group.append(statement)
            for consumer, aligned in statement.consumers:
                if not aligned:
                    later.append(consumer)
                    continue
                waiting[consumer.index] -= 1
                if not waiting[consumer.index]:
                    heapq.heappush(ready[key], consumer.index)
        if ready[key]:
            rest = statements[ready[key][0]]
            heapq.heappush(order, (_size(rest), rest.index, key))
        for consumer in later:
            waiting[consumer.index] -= 1
            if not waiting[consumer.index]:
                release(consumer)
        groups.append(group)
    return groups


def place(groups: Sequence[Sequence[Statement]]) -> tuple[dict[Buffer, int], int]:
    """Give each buffer that is read outside its loop a place in the work space.

    Returns the places, and how large the work space is.
    """
    last: dict[Buffer, int] = {}
    for statement in (s for group in groups for s in group):
        for value in statement.operands:
            if isinstance(value.buffer, Buffer) and value.buffer.producer is not None:
                last[value.buffer] = max(last.get(value.buffer, 0), statement.group)
    ends: dict[int, list[Buffer]] = defaultdict(list)
    offsets: dict[Buffer, int] = {}
    free: list[tuple[int, int]] = []  # (size, offset)
    top = 0
    for i, group in enumerate(groups):
        for statement in group:
            for buffer in statement.outputs:
                inside = all(c.group == i and aligned for c, aligned in statement.consumers)
                if inside and statement.key is not None and not buffer.keep and not statement.total:
                    continue
                fitting = [f for f in free if f[0] >= buffer.size >= REUSED]
                if fitting:
                    size, offset = min(fitting)
                    free.remove((size, offset))
                    if size > buffer.size:
                        free.append((size - buffer.size, offset + buffer.size))
                else:
                    offset, top = top, top + buffer.size
                offsets[buffer] = offset
                if not buffer.keep:
                    ends[last.get(buffer, i)].append(buffer)
        for buffer in ends.pop(i, []):
            if buffer.size >= REUSED:
                free.append((buffer.size, offsets[buffer]))
    return offsets, top


def _size(statement: Statement) -> int:
    """Return how large a statement's loop is; one with loops of its own comes after the numbers."""
    return math.prod(statement.key) if is_shape(statement.key) else 2


def _aligned(value: Value, producer: Statement, consumer: Statement) -> bool:
    """Tell whether a statement reads just the elements that another computes beside it."""
    if producer.total or producer.key is None or producer.key != consumer.key:
        return False
    shape = shape_of(producer.key)
    return not shape or squeezed_access(value) == (contiguous(shape), 0)
