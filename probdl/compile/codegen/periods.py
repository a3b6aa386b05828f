"""Find where a sequence repeats itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Repeat", "repeats"]

MIN_TURNS = 6  # fewer are not worth a loop
CONTEXT = 8  # items that must be equal before two places are compared further
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
