"""Find where a sequence repeats itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Repeat", "repeats", "rule_of"]

MIN_TURNS = 6  # fewer are not worth a loop
CONTEXT = 8  # items that must be equal before two places are compared further
MAX_HEAD = 3  # numbers before those that follow a rule
MAX_CYCLE = 12  # numbers, such as the months of a year
MIN_CYCLES = 3  # of which a rule is found
MAX_CANDIDATES = 24  # next places with the same context; one step of a loop may repeat itself


@dataclass(frozen=True)
class Repeat:
    """A part of a sequence: ``turns`` equal blocks of ``period`` items, from ``start`` on."""

    start: int
    period: int
    turns: int

    @property
    def end(self) -> int:
        """The index after the last item."""
        return self.start + self.period * self.turns


def repeats(items: Sequence[int]) -> Iterator[Repeat]:
    """Yield the parts that repeat themselves, from left to right.

    >>> list(repeats([0, *[1, 2] * 9, 3]))
    [Repeat(start=1, period=2, turns=9)]
    """
    contexts = [hash(tuple(items[i : i + CONTEXT])) for i in range(len(items))]
    following = _next_equal(contexts)
    start = 0
    while start < len(items):
        best = _longest(items, contexts, following, start)
        if best is None:
            start += 1
            continue
        yield best
        start = best.end


def _next_equal(keys: Sequence[int]) -> list[int]:
    """Return, for each place, the next one with the same key; the length where there is none."""
    last: dict[int, int] = {}
    following = [len(keys)] * len(keys)
    for i in range(len(keys) - 1, -1, -1):
        following[i] = last.get(keys[i], len(keys))
        last[keys[i]] = i
    return following


def _longest(
    items: Sequence[int], contexts: Sequence[int], following: Sequence[int], start: int
) -> Repeat | None:
    """Return the repeat from a place on that covers the most items."""
    best: Repeat | None = None
    there = start
    for _ in range(MAX_CANDIDATES):
        there = following[there]
        period = there - start
        if start + period * MIN_TURNS > len(items):
            break
        last = start + period * (MIN_TURNS - 1)
        whole = last + CONTEXT <= len(items)  # else the context reaches over the end
        if whole and contexts[last] != contexts[start]:
            continue
        end = there
        while end < len(items) and items[end] == items[end - period]:
            end += 1
        found = Repeat(start, period, (end - start) // period)
        if found.turns >= MIN_TURNS and (best is None or found.end > best.end + period):
            best = found
        if end == len(items):
            break
    return best


def rule_of(numbers: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], int] | None:
    """Find the rule that numbers follow, after the first ones: a cycle, with a step for each cycle.

    Texts may take the place of numbers; their step is 0.

    Returns:
        The first numbers, the first cycle, and the step; None if there is no such rule.

    >>> rule_of([7, 0, 1, 4, 5, 8, 9, 12])
    ([7], [0, 1], 4)
    """
    for head in range(MAX_HEAD + 1):
        rest = numbers[head:]
        for length in range(1, MAX_CYCLE + 1):
            if len(rest) < (MIN_CYCLES * length if head or length > 1 else 1):
                break
            later = zip(rest[length:], rest, strict=False)
            whole = isinstance(rest[0], int)
            steps = {b - a if whole else int(b != a) for b, a in later} or {0}
            if len(steps) == 1 and (whole or steps == {0}):
                return numbers[:head], rest[:length], steps.pop()
    return None
