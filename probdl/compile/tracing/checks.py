"""Find the branches of a model that only check values, and raise an error or a warning.

A trace follows one side of ``if`` on the value of a site. Where the other side does nothing but
raise an error (``assert scale > 0``, the checks in constructors of distributions), the trace holds
wherever the model has a value; elsewhere, its log density is -inf. Where the other side computes
the same (it warns), the trace holds everywhere. To find out, each branch takes its other side once.
"""

from __future__ import annotations

import dis
import enum
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import CodeType
from typing import Any

from torch import Tensor, fx

from probdl.model.recorder import Branches, ControlFlowError, Recording
from probdl.util.isolation import rewinding

__all__ = ["record_checked"]

MAX_BRANCHES = 20  # in the source code of the model; each costs one or two recordings
MESSAGE_QUESTIONS = 100  # that the message of an error may ask


class _Other(enum.Enum):
    """What the other side of a branch does."""

    RAISES = enum.auto()
    SAME = enum.auto()
    DIFFERS = enum.auto()


def record_checked(run: Callable[[Branches], Recording]) -> Recording:
    """Record a function whose branches on the values of sites are checks.

    Args:
        run: records the function, given what its branches do.

    Raises:
        ControlFlowError: a branch is not a check.
    """
    taken = Branches()
    with rewinding():
        recording = run(taken)
    positions: dict[Any, list[int]] = {}
    for position, (place, _) in enumerate(taken.asked):
        positions.setdefault(place, []).append(position)
    if len(positions) > MAX_BRANCHES:
        raise ControlFlowError(f"More than {MAX_BRANCHES} branches depend on values")
    kinds: dict[Any, _Other] = {}
    for place, at in positions.items():
        # In a loop, the last step stands for those that are not as the first.
        found = {_other_side(run, i, taken, recording) for i in {at[0], at[-1]}}
        if _Other.DIFFERS in found or len(found) > 1:
            raise ControlFlowError("A branch that depends on a value is more than a check")
        (kinds[place],) = found
    required = [i for i, (place, _) in enumerate(taken.asked) if kinds[place] is _Other.RAISES]
    return run(Branches(required=frozenset(required)))


def _other_side(
    run: Callable[[Branches], Recording], position: int, taken: Branches, recording: Recording
) -> _Other:
    other = Branches(other_side=position, most=2 * len(taken.asked) + MESSAGE_QUESTIONS)
    try:
        with rewinding(), _silence():
            found = run(other)
    except ControlFlowError:
        return _Other.DIFFERS
    except Exception as error:
        place, _ = taken.asked[position]
        code, _ = place[0]
        alike = other.asked[: position + 1] == taken.asked[: position + 1]
        return _Other.RAISES if alike and _raised_in(error, code) else _Other.DIFFERS
    alike = other.asked == taken.asked and not other.reads
    same = alike and _computes_the_same(found, recording)
    return _Other.SAME if same else _Other.DIFFERS


@contextmanager
def _silence() -> Iterator[None]:
    """Drop warnings and what is printed: it is of a value that is not there."""
    nowhere = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(nowhere), redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        yield


def _raised_in(error: BaseException, code: CodeType) -> bool:
    """Return whether the first error was raised by a statement of the function with the branch."""
    while error.__context__ is not None:
        error = error.__context__
    traceback: Any = error.__traceback__
    if traceback is None:
        return False
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    statements = {i.offset for i in dis.get_instructions(code) if i.opname == "RAISE_VARARGS"}
    return traceback.tb_frame.f_code is code and traceback.tb_lasti in statements


def _computes_the_same(a: Recording, b: Recording) -> bool:
    if len(a.graph.nodes) != len(b.graph.nodes) or a.constants.keys() != b.constants.keys():
        return False
    same = dict(zip(a.graph.nodes, b.graph.nodes, strict=True))

    def differs(x: fx.Node, y: fx.Node) -> bool:
        args, kwargs = (fx.node.map_arg(given, same.__getitem__) for given in (x.args, x.kwargs))
        # The repr distinguishes 1, 1.0 and True, which compare equal, and NaN equals NaN.
        as_text = (x.op, str(x.target), repr(args), repr(kwargs))
        return as_text != (y.op, str(y.target), repr(y.args), repr(y.kwargs))

    return not any(differs(x, y) for x, y in same.items()) and all(
        _equal(a.constants[name], b.constants[name]) for name in a.constants
    )


def _equal(x: Tensor, y: Tensor) -> bool:
    if x.dtype != y.dtype or x.shape != y.shape:
        return False
    return bool(((x == y) | ((x != x) & (y != y))).all())  # NaN equals NaN
