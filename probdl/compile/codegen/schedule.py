"""The order of statements, which of them share a loop, and where results are stored."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from probdl.compile.codegen.loops import contiguous
from probdl.compile.codegen.statements import (
    Buffer,
    Parts,
    Statement,
    Value,
    is_shape,
    shape_of,
    squeezed_access,
)

__all__ = ["place", "schedule"]

MAX_LOOP_STATEMENTS = 400  # in a shared loop; compile time grows faster than linearly with it
MIN_REUSED_SIZE = 512  # numbers; smaller pieces of work space are not reused


def schedule(statements: Sequence[Statement]) -> list[list[Statement]]:
    """Order the statements into groups that share a loop, as large as dependencies allow."""
    waiting = [0] * len(statements)
    for i, statement in enumerate(statements):
        statement.index, statement.consumers = i, []
    present = set(statements)
    for statement in statements:
        for value in statement.operands:
            producer = value.producer
            if producer is not None and producer in present:
                waiting[statement.index] += 1
                producer.consumers.append((statement, _aligned(value, producer, statement)))
    ready: dict[Any, list[int]] = defaultdict(list)
    order: list[tuple[int, int, Any]] = []  # heap of (size of the loop, statement, key)

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
        while ready[key] and len(group) < MAX_LOOP_STATEMENTS:
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


def place(
    groups: Sequence[Sequence[Statement]], *, reuse: bool = True, outside: Buffer | None = None
) -> tuple[dict[Buffer, int], int]:
    """Assign a position in the work space to each buffer that is read outside its loop.

    Args:
        groups: the statements.
        reuse: whether the place of a buffer that is no longer read can be that of another.
        outside: a buffer that has its own memory, whose position is 0.

    Returns:
        The positions, and the size of the work space, in numbers.
    """
    last_used: dict[Buffer, int] = {}  # the last group that reads or writes a buffer
    for i, group in enumerate(groups):
        for statement in group:
            used = [v.buffer for v in statement.operands if isinstance(v.buffer, Buffer)]
            last_used.update((buffer.place[0], i) for buffer in [*used, *statement.outputs])
    ends: dict[int, list[Buffer]] = defaultdict(list)
    offsets: dict[Buffer, int] = {} if outside is None else {outside: 0}
    free: list[tuple[int, int]] = []  # (size, offset)
    end = 0
    for i, group in enumerate(groups):
        for statement in group:
            for buffer in statement.outputs:
                if isinstance(buffer, Parts):
                    continue
                inside = all(c.group == i and aligned for c, aligned in statement.consumers)
                stored = buffer.keep or buffer.home is not None or bool(statement.total)
                if inside and statement.key is not None and not stored:
                    continue
                root, at = buffer.place
                if root not in offsets:
                    fitting = [f for f in free if f[0] >= root.size >= MIN_REUSED_SIZE]
                    if fitting:
                        size, offset = min(fitting)
                        free.remove((size, offset))
                        if size > root.size:
                            free.append((size - root.size, offset + root.size))
                    else:
                        offset, end = end, end + root.size
                    offsets[root] = offset
                    if not root.keep:
                        ends[last_used[root]].append(root)
                offsets[buffer] = offsets[root] + at
        for buffer in ends.pop(i, []):
            if reuse and buffer.size >= MIN_REUSED_SIZE:
                free.append((buffer.size, offsets[buffer]))
    return offsets, end


def _size(statement: Statement) -> int:
    """Return the size of a statement's loop; 2, after single numbers, if it has its own loops."""
    return math.prod(statement.key) if is_shape(statement.key) else 2


def _aligned(value: Value, producer: Statement, consumer: Statement) -> bool:
    """Return whether a statement reads, in each iteration, the element just computed by another."""
    if producer.total or producer.key is None or producer.key != consumer.key:
        return False
    shape = shape_of(producer.key)
    return not shape or squeezed_access(value) == (contiguous(shape), 0)
