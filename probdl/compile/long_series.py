"""Compile a long loop over time from its first steps.

To trace a loop takes time in proportion to its steps. The code for a long series differs from that
for a short one in its numbers only, so the model is traced on the first steps of the data, three
times with different numbers of them, and the code is extended to all. Whether the steps after the
first ones are of the same kind is checked as for any compiled code, by comparison with the model
on all data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from probdl.compile.codegen.emit import Source, emit
from probdl.compile.codegen.lengthen import (
    DifferentError,
    NotAffineError,
    lengthened_number,
    lengthened_source,
)
from probdl.compile.shortening import FAILURES, shortened
from probdl.compile.tracing.lengthen import lengthened_preparation
from probdl.compile.tracing.trace import Prepared, Traced, trace
from probdl.errors import TimeLimitError
from probdl.model.density import LogDensity
from probdl.util.calls import call_leaves

__all__ = ["Series", "of_first_steps"]

MIN_STEPS = 400  # of a loop, for which this is faster than to trace all of it
MIN_CALLS = 2500  # of functions of torch
MAX_SHARE = 1 / 2  # of the calls, in the short series that are traced
FEW_STEPS = (24, 36, 48)  # to count the calls in a step
CALLS = 1500  # of functions of torch on the shortest series that is traced
MIN_TRACED, MAX_TRACED = 36, 72  # steps
CHECKED = 36  # steps, by which the series is longer on which the gradient is compared
APART = 12  # steps, so that n // 2, n // 3 and n // 4 are on a line, too
ROUNDING = 1e-12  # relative, of numbers that a model computes from the number of steps
# Uses of a tensor, and steps over which they go, up to the third from the last: it is from before
# the loop.
OFTEN, LONG, LATE = 6, 6, 3
_POSITIONS = {Tensor.__getitem__, Tensor.__setitem__}


@dataclass(frozen=True)
class Series:
    """The code of a density with a loop over its data, extended from that for short series.

    Attributes:
        density: the density.
        prepared: the preparation of the data.
        source: the code.
    """

    density: LogDensity
    prepared: Prepared
    source: Source


def of_first_steps(density: LogDensity) -> tuple[Series, Series] | None:
    """Return the code of a density with a long loop over its data, from traces of a part of them.

    Returns:
        The code for all data, and that for a part, which is longer than what was traced and short
        enough to compare all that depends on the code; None if there is no such loop, or if the
        first steps do not determine the code.
    """
    sizes = Counter(n for x in density.program.tensors() for n in x.shape if n >= MIN_STEPS)
    if not sizes or density.program.is_large:
        return None
    try:
        calls = _calls(density)
    except FAILURES:  # at this point
        return None
    for length in (n for n, _ in sizes.most_common() if calls.count >= MIN_CALLS):
        try:
            return _lengthened(density, length, _few_steps(density, length, calls))
        except TimeLimitError:
            raise
        except FAILURES:
            continue
    return None


def _few_steps(density: LogDensity, length: int, calls: _Calls) -> list[int]:
    """Return numbers of steps to trace, if the calls are those of a loop over a length.

    Raises:
        DifferentError: they are not, or later steps differ from the first ones.
        NotAffineError: the same.
    """
    few = [n + length % APART for n in FEW_STEPS]
    counted: list[_Calls] = []
    for n in few:
        counted.append(_calls(shortened(density, length, n)))
        if counted[-1].count > MAX_SHARE * calls.count:
            raise DifferentError(f"no long loop has {length} steps")
    if any(c.numbers_by_call.keys() != counted[0].numbers_by_call.keys() for c in counted):
        raise DifferentError("the steps call other functions, or with other numbers")
    # Numbers that differ in short series may be equal in the long one, such as 10 / n and 0.01.
    places = [
        calls.place_of(lengthened_number(numbers, few, length))
        for numbers in zip(*(c.numbers for c in counted), strict=True)
    ]
    expected: Counter[tuple[Any, ...]] = Counter()
    for func, *numbers in counted[0].numbers_by_call:
        times = [c.numbers_by_call[(func, *numbers)] for c in counted]
        call = (func, *(places[i] for i in numbers))
        expected[call] += int(lengthened_number(times, few, length))
    if expected != calls.numbers_by_call:
        raise DifferentError(f"the calls are not those of {length} equal steps")
    a_step = (counted[-1].count - counted[0].count) / (few[-1] - few[0])
    before = counted[0].count - few[0] * a_step  # calls before the loop, and after it
    _check_uses([c.uses for c in (*counted, calls)], (*few, length), before, a_step)
    first = max(MIN_TRACED, min(MAX_TRACED, int(CALLS / a_step))) // APART * APART + length % APART
    if 3 * (counted[-1].count + a_step * (first + APART - few[-1])) > MAX_SHARE * calls.count:
        raise DifferentError("it is faster to trace all steps")
    return [first + APART * i for i in range(3)]


def _lengthened(density: LogDensity, length: int, lengths: Sequence[int]) -> tuple[Series, Series]:
    traced, sources, dims = list[Traced](), list[Source](), list[int]()
    for n in lengths:
        short = shortened(density, length, n)
        start = short.initial(torch.Generator().manual_seed(0))
        traced.append(trace(short, start, smallest=lengths[0] // 2))  # not what is of one step
        sources.append(emit(traced[-1].density, short.dim, reuse=False))
        dims.append(short.dim)

    def of_length(density: LogDensity, length: int) -> Series:
        if lengthened_number(dims, lengths, length) != density.dim:
            raise DifferentError("the number of coordinates is another one")
        prepared = lengthened_preparation(traced, lengths, length)
        return Series(density, prepared, lengthened_source(sources, lengths, length))

    checked = lengths[-1] + CHECKED
    return of_length(density, length), of_length(shortened(density, length, checked), checked)


class _Calls(TorchFunctionMode):
    """Count the calls of functions of torch, by the Python numbers that they are given.

    Attributes:
        count: the number of calls.
        numbers_by_call: the number of calls by function and by its numbers, in place of which are
            their positions in ``numbers``. Positions in a series differ by step, and do not count.
        numbers: the numbers, in the order of their first use.
        uses: how often each tensor is an argument, see ``_Uses``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.numbers_by_call: Counter[tuple[Any, ...]] = Counter()
        self.numbers: list[int | float] = []
        self.uses = _Uses()
        self._known: dict[tuple[type, int | float], int] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        call = [func]
        numbers: Iterable[Any] = call_leaves(args, kwargs)
        if func in _POSITIONS:
            positions = [*_numbers_in(args[1])]
            numbers = [*args[2:], *positions]
            call = [(func, *map(type, positions))]
            self.uses.add(args[0])
            if max(args[0].shape, default=0) >= FEW_STEPS[0]:
                self.uses.add_element(args[0], positions)
                numbers = [x for x in numbers if isinstance(x, Tensor)]
        for x in numbers:
            if isinstance(x, Tensor):
                self.uses.add(x)
            elif type(x) is float or type(x) is int:
                call.append(self._number(x))
        self.numbers_by_call[tuple(call)] += 1
        result = func(*args, **(kwargs or {}))
        self.uses.end(result)
        return result

    def place_of(self, x: float) -> int:
        """Return the position of a number that is equal but for rounding.

        Raises:
            DifferentError: there is none.
        """
        if (type(x), x) in self._known:
            return self._known[type(x), x]
        for place, number in enumerate(self.numbers):
            if type(x) is type(number) and abs(x - number) <= ROUNDING * abs(number):
                return place
        raise DifferentError(f"no function is called with {x}")

    def _number(self, x: float) -> int:
        key = (type(x), x)
        if key not in self._known:
            self._known[key] = len(self.numbers)
            self.numbers.append(x)
        return self._known[key]


def _numbers_in(position: Any) -> Iterator[Any]:
    """Yield the numbers and tensors of a position, such as those of slices."""
    if isinstance(position, (list, tuple)):
        for part in position:
            yield from _numbers_in(part)
    elif isinstance(position, slice):
        yield from (position.start, position.stop, position.step)
    else:
        yield position


def _check_uses(
    uses: Sequence[_Uses], lengths: Sequence[int], before: float, a_step: float
) -> None:
    """Check that all steps use the tensors from before the loop as the first ones do.

    Args:
        uses: the uses in three short series and in the long one.
        lengths: their lengths.
        before: at least the number of calls before the loop.
        a_step: the number of calls in a step.

    Raises:
        DifferentError: they do not.
        NotAffineError: the same.
    """
    *few, length = lengths
    *of_few, of_all = [of.early(before) for of in uses]
    if len({*map(len, of_few), len(of_all)}) > 1:
        raise DifferentError("the tensors from before the loop are others")
    for *counts, count in zip(*of_few, of_all, strict=True):
        try:
            expected = lengthened_number(counts, few, length)
        except NotAffineError:  # it is of a step, and used after a longer time than the series
            continue
        if count != expected:
            raise DifferentError("later steps use other tensors")
    for groups in ([of.older() for of in uses], [of.elements() for of in uses]):
        rare = [Counter(x for x in of if x < OFTEN) for of in groups]
        for x in range(1, OFTEN):
            *numbers, number = (of[x] for of in rare)
            if lengthened_number(numbers, few, length) != number:
                raise DifferentError("later steps use other tensors, or other elements")
        _check_often([[x for x in of if x >= OFTEN] for of in groups], lengths)
    _check_often([of.over(LONG * a_step) for of in uses], lengths)


def _check_often(uses: list[list[int]], lengths: Sequence[int]) -> None:
    """Check the numbers of uses of what is used often, in three short series and the long one."""
    *few, length = lengths
    if len({*map(len, uses)}) > 1:  # there are some of each step, with few and equal uses
        times = [Counter(of) for of in uses]
        often = [{x for x in of if of[x] >= n // 3} for of, n in zip(times, lengths, strict=True)]
        if any(of != often[0] for of in often):
            raise DifferentError("later steps use other tensors")
        uses = [
            [*(number[x] for x in sorted(often[0])), *(x for x in of if x not in often[0])]
            for of, number in zip(uses, times, strict=True)
        ]
        if len({*map(len, uses)}) > 1:
            raise DifferentError("later steps use other tensors")
    if any(lengthened_number(of, few, length) != of_all for *of, of_all in zip(*uses, strict=True)):
        raise DifferentError("later steps use other tensors")


class _Uses:
    """Count how often each tensor is an argument, in the order in which they came about.

    Of two tensors that a step may take, later steps may take the other one.
    """

    def __init__(self) -> None:
        self._calls = 0
        self._made: list[int] = []  # the number of calls before each tensor
        self._used: list[int] = []  # the places of arguments in this list
        self._at: list[int] = []  # the number of calls before each use
        self._older: list[int] = []  # the places of tensors from before the evaluation
        self._elements: Counter[tuple[Any, ...]] = Counter()
        self._places: dict[int, int] = {}  # by id, which a later tensor may have again

    def add(self, x: Tensor) -> None:
        """Count a use of a tensor."""
        place = self._places.get(id(x))
        if place is None:  # it is older than the evaluation
            place = self._places[id(x)] = len(self._made)
            self._made.append(self._calls)
            self._older.append(place)
        self._used.append(place)
        self._at.append(self._calls)

    def add_element(self, x: Tensor, positions: Sequence[Any]) -> None:
        """Count a use of an element, or of a part, of a tensor."""
        place = self._places[id(x)]
        plain = (i if isinstance(i, int) else type(i) for i in positions)
        self._elements[(place, *plain)] += 1

    def end(self, result: Any) -> None:
        """End a call, which has a result."""
        self._calls += 1
        if isinstance(result, Tensor):
            self._places[id(result)] = len(self._made)
        elif isinstance(result, (tuple, list)):
            for x in tree_leaves(result):
                if isinstance(x, Tensor):
                    self._places[id(x)] = len(self._made)
        self._made.append(self._calls)

    def early(self, before: float) -> list[int]:
        """Return the counts of the tensors that the first calls made."""
        older = {*self._older}
        counts = np.bincount(self._used, minlength=len(self._made))
        return [
            int(counts[place])
            for place, made in enumerate(self._made)
            if made < before and place not in older
        ]

    def older(self) -> list[int]:
        """Return the counts of the tensors from before the evaluation, by their first uses."""
        counts = np.bincount(self._used, minlength=len(self._made))
        return [int(counts[place]) for place in self._older]

    def elements(self) -> list[int]:
        """Return the counts of the elements of series, by their first uses."""
        return [*self._elements.values()]

    def over(self, calls: float) -> list[int]:
        """Return the counts of tensors that are used often, over more than some calls.

        A result of a step may be used once or twice more after the loop.
        """
        used = np.array(self._used)
        counts = np.bincount(used, minlength=len(self._made))
        late = np.array(self._at)[np.argsort(used, kind="stable")][np.cumsum(counts) - LATE]
        return counts[(counts >= OFTEN) & (late - self._made > calls)].tolist()  # type: ignore[no-any-return]


def _calls(density: LogDensity) -> _Calls:
    """Return the functions of torch that an evaluation of a density calls."""
    with torch.no_grad(), _Calls() as calls:
        density(torch.zeros(density.dim, dtype=torch.float64))
    return calls
