"""Compile the branches of a model that only check values, and raise an error or a warning.

A trace follows one side of ``if`` on the value of a site. Where the other side does nothing but
raise an error (``assert scale > 0``, the checks in constructors of distributions), the trace holds
wherever the model has a value; elsewhere, its log density is -inf. Where a side only warns, the
trace holds everywhere.
"""

from __future__ import annotations

import io
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from probdl.compile.tracing.branching import Side, may_be_caught, other_side
from probdl.model.advice import is_library
from probdl.model.recorder import Branches, ControlFlowError, Place, Recording
from probdl.util.isolation import rewinding

__all__ = ["record_checked"]

MAX_BRANCHES = 20  # in the source code of the model; each costs a recording


def record_checked(run: Callable[[Branches], Recording]) -> Recording:
    """Record a function whose branches on the values of sites are checks.

    Args:
        run: records the function, given what its branches do.

    Raises:
        ControlFlowError: a branch is not a check.
    """
    taken = Branches()
    with rewinding():
        run(taken)
    positions: dict[Place, list[int]] = {}
    for position, question in enumerate(taken.asked):
        positions.setdefault(question.place, []).append(position)
    if len(positions) > MAX_BRANCHES:
        raise ControlFlowError(f"More than {MAX_BRANCHES} branches depend on values")
    required = set[int]()
    for place, at in positions.items():
        code, instruction = place[0]
        sides = {
            other_side(code, instruction, question.truth, question.names)
            for question in map(taken.asked.__getitem__, at)
        }
        caught = any(may_be_caught(*call) for call in place if not is_library(call[0].co_filename))
        recorded = any("catch_warnings" in code.co_names for code, _ in place)
        if sides == {Side.RAISES} and not caught and _is_fatal(run, at[0], taken):
            required.update(at)
        elif sides != {Side.WARNS} or recorded:
            raise ControlFlowError("A branch that depends on a value is more than a check")
    return run(Branches(required=frozenset(required)))


def _is_fatal(run: Callable[[Branches], Recording], position: int, taken: Branches) -> bool:
    """Return whether the error of the other side ends the function, as nothing catches it."""
    other = Branches(other_side=position)
    try:
        with rewinding(), _silence():
            run(other)
    except ControlFlowError:
        return False
    except (Exception, SystemExit) as error:
        before = position + 1
        place = taken.asked[position].place
        more = [question.place for question in other.asked[before:]]  # for the message
        alike = other.asked[:before] == taken.asked[:before] and place not in more
        return alike and isinstance(error, Exception) and _first_raised_in(error, place)
    return False


def _first_raised_in(error: BaseException, place: Place) -> bool:
    """Return whether the first of the errors was raised by the function with the branch."""
    while error.__context__ is not None:
        error = error.__context__
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    code, _ = place[0]
    return bool(frames) and frames[-1].f_code is code


@contextmanager
def _silence() -> Iterator[None]:
    """Drop warnings and what is printed or logged: it is of a value that is not there."""
    nowhere, before = io.StringIO(), logging.root.manager.disable
    logging.disable()
    try:
        with warnings.catch_warnings(), redirect_stdout(nowhere), redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
