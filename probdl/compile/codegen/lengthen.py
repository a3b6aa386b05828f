"""Write the code for a long series from the code for short ones.

Rolled loops make the length of the code independent of the length n of a series. What is left of
n are numbers: turns of loops, strides, positions, sizes. Each of them is a + b n, or, where a
model divides an interval into n steps, a + b / n.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from probdl.compile.codegen.emit import Source

__all__ = ["DifferentError", "NotAffineError", "lengthened_number", "lengthened_source"]

_NUMBER = re.compile(r"(\d+\.\d*(?:e[+-]?\d+)?|\d+e[+-]?\d+|\d+)")
ROUNDING = 1e-13  # relative, of numbers that a model computes from n


class DifferentError(ValueError):
    """What was found for short series of different lengths differs in more than numbers."""


class NotAffineError(ValueError):
    """The numbers of short series do not determine those of long ones."""


def lengthened_number(
    numbers: Sequence[int | float], lengths: Sequence[int], length: int
) -> int | float:
    """Return the number of a long series from those of three short ones.

    Args:
        numbers: the numbers, three integers or three floats.
        lengths: the lengths of the short series.
        length: the length of the long one.

    Raises:
        NotAffineError: the numbers are neither a + b n nor a + b / n.

    >>> lengthened_number([7, 9, 13], [3, 4, 6], 100)
    201
    >>> lengthened_number([0.5, 0.25, 0.125], [2, 4, 8], 16)
    0.0625
    """
    if numbers[0] == numbers[1] == numbers[2]:
        return numbers[0]
    if all(isinstance(x, int) for x in numbers):
        whole = _on_line([*map(Fraction, numbers)], [*map(Fraction, lengths)], Fraction(length), 0)
        if whole is not None and whole.denominator == 1:
            return int(whole)
    elif all(isinstance(x, float) for x in numbers):
        exact = [*map(Fraction, numbers)]
        for of in (lambda n: 1 / Fraction(n), Fraction):
            found = _on_line(exact, [*map(of, lengths)], of(length), Fraction(ROUNDING))
            if found is not None:
                return float(found)
    raise NotAffineError(f"the numbers {numbers} of series of {lengths} steps")


def _on_line(
    ys: Sequence[Fraction], xs: Sequence[Fraction], x: Fraction, tolerance: Fraction | int
) -> Fraction | None:
    """Return the value at x of the line through two points; None if the third is not on it."""
    slope = (ys[1] - ys[0]) / (xs[1] - xs[0])
    if abs(ys[0] + slope * (xs[2] - xs[0]) - ys[2]) > tolerance * max(map(abs, ys)):
        return None
    return ys[0] + slope * (x - xs[0])


def lengthened_source(sources: Sequence[Source], lengths: Sequence[int], length: int) -> Source:
    """Return the code for a long series from that for three short ones.

    Raises:
        DifferentError: the codes differ in more than numbers.
        NotAffineError: their numbers do not determine those of the long series.
    """
    first = sources[0]
    parts = [_NUMBER.split(source.text) for source in sources]
    same = all(
        (len(part), s.uses_lapack, s.special, s.calls, s.work > 0)
        == (len(parts[0]), first.uses_lapack, first.special, (), True)
        for part, s in zip(parts, sources, strict=True)
    )
    if not same:
        raise DifferentError("the codes of short series differ")
    text = []
    for words in zip(*parts, strict=True):
        if words[0] == words[1] == words[2]:
            text.append(words[0])
        elif not all(_NUMBER.fullmatch(word) for word in words):
            raise DifferentError(f"the codes of short series differ: {words}")
        elif all(map(str.isdigit, words)):
            text.append(str(lengthened_number([*map(int, words)], lengths, length)))
        else:
            text.append(repr(lengthened_number([*map(float, words)], lengths, length)))
    work = lengthened_number([source.work for source in sources], lengths, length)
    return replace(first, text="".join(text), work=int(work))
