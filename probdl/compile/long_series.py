"""Compile a long loop over time from its first steps.

To trace a loop takes time in proportion to its steps. The code for a long series differs from that
for a short one in its numbers only, so the model is traced on the first steps of the data, three
times with different numbers of them, and the code is extended to all. Whether the steps after the
first ones are of the same kind is checked as for any compiled code, by comparison with the model
on all data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch.overrides import TorchFunctionMode

from probdl.compile.codegen.emit import Source, emit
from probdl.compile.codegen.lengthen import NotAffineError, lengthened_number, lengthened_source
from probdl.compile.tracing.lengthen import lengthened_preparation
from probdl.compile.tracing.trace import Prepared, Traced, trace
from probdl.errors import ProbdlError, TimeLimitError
from probdl.model.density import LogDensity
from probdl.model.sites import discover

__all__ = ["of_first_steps"]

MIN_STEPS = 400  # of a loop, for which this is faster than to trace all of it
MIN_CALLS = 2500  # of functions of torch
FEW_STEPS = (24, 36, 48)  # to count the calls in a step
CALLS = 1500  # of functions of torch on the shortest series that is traced
MIN_TRACED, MAX_TRACED = 36, 72  # steps
APART = 12  # steps, so that n // 2, n // 3 and n // 4 are on a line, too
_FAILURES = (ProbdlError, RuntimeError, TypeError, ValueError, LookupError, AttributeError)


def of_first_steps(density: LogDensity) -> tuple[Prepared, Source] | None:
    """Return the code of a density with a long loop over its data, from traces of a part of them.

    Returns:
        The preparation of the data and the code; None if there is no such loop, or if the first
        steps do not determine the code.
    """
    sizes = Counter(n for x in density.program.tensors() for n in x.shape if n >= MIN_STEPS)
    if not sizes or density.program.is_large:
        return None
    try:
        calls = _calls(density)
    except _FAILURES:  # at this point
        return None
    for length in (n for n, _ in sizes.most_common() if calls >= MIN_CALLS):
        try:
            few = _few_steps(density, length, calls)
            for longer in (1, 3):  # from some length on, the order of the work space is the same
                lengths = [longer * few + length % APART + APART * i for i in range(3)]
                try:
                    return _lengthened(density, length, lengths)
                except NotAffineError:
                    continue
        except TimeLimitError:
            raise
        except _FAILURES:
            continue
    return None


def _few_steps(density: LogDensity, length: int, calls: int) -> int:
    """Return the number of steps to trace, if the calls are those of a loop over a length.

    Raises:
        NotAffineError: they are not.
    """
    few = [n + length % APART for n in FEW_STEPS]
    counts = [_calls(_shortened(density, length, n)) for n in few]
    if counts[0] == counts[-1] or lengthened_number(counts, few, length) != calls:
        raise NotAffineError(f"no loop has {length} steps")
    wanted = CALLS * (few[-1] - few[0]) // (counts[-1] - counts[0])
    return max(MIN_TRACED, min(MAX_TRACED, wanted)) // APART * APART


def _lengthened(
    density: LogDensity, length: int, lengths: Sequence[int]
) -> tuple[Prepared, Source]:
    traced, sources = list[Traced](), list[Source]()
    for n in lengths:
        short = _shortened(density, length, n)
        start = short.initial(torch.Generator().manual_seed(0))
        traced.append(trace(short, start, smallest=lengths[0] // 2))  # not what is of one step
        sources.append(emit(traced[-1].density, short.dim, stack=False))
    preparation = lengthened_preparation(traced, lengths, length)
    return preparation, lengthened_source(sources, lengths, length)


def _shortened(density: LogDensity, length: int, to: int) -> LogDensity:
    program = density.program.shortened(length, to)
    if program is None:
        raise ValueError("the data cannot be cut")
    return LogDensity(
        program,
        discover(program),
        prior=density.prior,
        jacobian=density.jacobian,
        params=any(block.site.kind == "param" for block in density.blocks.values()),
    )


class _Calls(TorchFunctionMode):
    """Count the calls of functions of torch."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return func(*args, **(kwargs or {}))


def _calls(density: LogDensity) -> int:
    """Return the number of functions of torch that an evaluation of a density calls."""
    with torch.no_grad(), _Calls() as calls:
        density(torch.zeros(density.dim, dtype=torch.float64))
    return calls.count
