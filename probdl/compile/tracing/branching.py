"""What the other side of a branch does, read from the byte code of the model.

A recording follows one side of ``if``. What the other side may do follows from the code alone, for
all values and for all steps of a loop: no run of it could show this.
"""

from __future__ import annotations

import builtins
import dis
import enum
import functools
import logging
import warnings
from collections.abc import Mapping
from types import CodeType
from typing import Any

from torch import Tensor

__all__ = ["Side", "may_be_caught", "other_side"]


class Side(enum.Enum):
    """What a side of a branch does."""

    RAISES = enum.auto()  # an error, whatever the values; before it, it may only warn
    WARNS = enum.auto()  # or prints, or writes to a log, and nothing else


def other_side(code: CodeType, at: int, truth: bool, names: Mapping[str, Any]) -> Side | None:
    """Return what the side that is not taken does; None if it does something else.

    Args:
        code: the function with the branch.
        at: the position of the instruction that asks for a truth.
        truth: the answer that was given.
        names: the global names of the function.
    """
    steps = _instructions(code)
    place = _index(steps, at)
    asks = steps[place].opname
    if asks == "CALL":
        if not _decides(_called(steps, place), truth):
            return None
    elif asks == "COMPARE_OP":
        if not _is_truth(steps[place]):  # it compares lists, and asks for a pair of elements
            return None
    elif not (asks in ("TO_BOOL", "UNARY_NOT") or _is_branch(steps[place])):
        return None
    inverted = False
    while not _is_branch(steps[place]):
        inverted ^= steps[place].opname == "UNARY_NOT"
        place += 1
        if not (steps[place].opname in ("TO_BOOL", "UNARY_NOT") or _is_branch(steps[place])):
            return None
    branch = steps[place]
    jump, on = _index(steps, branch.argval), branch.opname.endswith("TRUE")
    taken, other = (jump, place + 1) if (truth ^ inverted) == on else (place + 1, jump)
    if _always_raises(steps, other, names):
        return Side.RAISES
    if _only_warns(steps, other, taken, names) or _only_warns(steps, taken, other, names):
        return Side.WARNS
    return None


def may_be_caught(code: CodeType, at: int) -> bool:
    """Return whether an error at an instruction reaches a ``try`` statement of the same function.

    A ``with`` statement does not count: it rarely suppresses errors for some values only.
    """
    steps = _instructions(code)
    entries = dis.Bytecode(code).exception_entries  # type: ignore[attr-defined]
    handlers = {offset: e.target for e in entries for offset in range(e.start, e.end, 2)}
    passed = set[int]()
    while at in handlers and at not in passed:
        passed.add(at)
        at = handlers[at]  # which raises the error again, unless it is one of ``try``
        handler = _index(steps, at)
        begin = [step.opname for step in steps[handler : handler + 2]]
        if begin[0] == "PUSH_EXC_INFO" and begin[1] != "WITH_EXCEPT_START":
            return True
    return False


_STRAIGHT = (  # how the names of instructions begin that change only local names
    *("LOAD_", "BUILD_", "FORMAT_", "CONVERT_", "BINARY_", "UNARY_", "STORE_FAST", "MAKE_"),
    *("CALL", "PRECALL", "PUSH_NULL", "KW_NAMES", "COPY", "SWAP", "COMPARE_OP", "CONTAINS_OP"),
    *("IS_OP", "TO_BOOL", "NOP", "CACHE", "EXTENDED_ARG", "NOT_TAKEN", "GET_ITER", "END_FOR"),
    *("POP_TOP", "POP_ITER", "LIST_", "DICT_", "SET_", "MAP_ADD", "RESUME"),
)


@functools.lru_cache(maxsize=64)
def _instructions(code: CodeType) -> list[dis.Instruction]:
    return list(dis.get_instructions(code))


def _index(steps: list[dis.Instruction], offset: int) -> int:
    return next(i for i, step in enumerate(steps) if step.offset == offset)


def _jumps(step: dis.Instruction) -> bool:
    return step.opcode in dis.hasjrel or step.opcode in dis.hasjabs


def _is_branch(step: dis.Instruction) -> bool:
    return step.opname.startswith("POP_JUMP_") and step.opname.endswith(("IF_TRUE", "IF_FALSE"))


def _is_truth(step: dis.Instruction) -> bool:
    """Return whether a comparison asks for the truth of its result, as from Python 3.13 on."""
    return "bool(" in step.argrepr


def _called(steps: list[dis.Instruction], call: int) -> str:
    """Return the global name of the function that is called; '' without a global name."""
    start = _start(steps[call])
    for step in steps[:call] if start is not None else ():
        if step.opname in _GLOBAL and _start(step) == start:
            return str(step.argval)
    return ""


def _start(step: dis.Instruction) -> tuple[int, int] | None:
    """Return the line and column where the expression of an instruction starts, if known."""
    position = step.positions
    if position is None or position.lineno is None or position.col_offset is None:
        return None
    return position.lineno, position.col_offset


def _decides(function: str, truth: bool) -> bool:
    """Return whether the other answer to a function decides its result."""
    return function == "bool" or function == ("all" if truth else "any")


def _always_raises(steps: list[dis.Instruction], start: int, names: Mapping[str, Any]) -> bool:
    """Return whether all ways from an instruction end with an error; they may warn before it."""
    ahead, seen = [start], set[int]()
    while ahead:
        i = ahead.pop()
        if i in seen:
            continue
        seen.add(i)
        step = steps[i]
        if step.opname == "RAISE_VARARGS":
            continue
        if (end := _after_warning(steps, i, names)) is not None:
            ahead.append(end)
            continue
        if _jumps(step):
            ahead.append(_index(steps, step.argval))
        elif not step.opname.startswith(_STRAIGHT) or _ends_statement(steps, i):
            return False
        if not _is_unconditional(step):
            ahead.append(i + 1)
    return True


def _is_unconditional(step: dis.Instruction) -> bool:
    return step.opname.startswith("JUMP_") and "IF" not in step.opname


def _ends_statement(steps: list[dis.Instruction], i: int) -> bool:
    """Return whether an instruction ends a statement that calls a function for its effect."""
    return steps[i].opname == "POP_TOP" and steps[i - 1].opname.startswith("CALL")


def _only_warns(
    steps: list[dis.Instruction], start: int, end: int, names: Mapping[str, Any]
) -> bool:
    """Return whether only calls that warn stand between two instructions."""
    i = start
    while not _same_place(steps, i, end):
        after = _after_warning(steps, i, names)
        if after is None:
            return False
        i = after
    return i != start


def _after_warning(steps: list[dis.Instruction], i: int, names: Mapping[str, Any]) -> int | None:
    """Return where the statement ends that starts at an instruction; None if it does not warn."""
    called, i = _resolved(steps, i, names)
    if not _warns(called):
        return None
    while not _ends_statement(steps, i):
        if not _only_reads(steps, i, names):
            return None
        i += 1
    return i + 1


def _only_reads(steps: list[dis.Instruction], i: int, names: Mapping[str, Any]) -> bool:
    """Return whether an instruction of a message computes it without code of the user."""
    step = steps[i]
    if step.opname in _GLOBAL:
        value = _global(step, names)
        known = isinstance(value, type) and value in _TYPES
        return known or isinstance(value, (Tensor, str, int, float))
    if step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
        return step.argval in _READING
    return step.opname.startswith(_PLAIN)


def _same_place(steps: list[dis.Instruction], i: int, j: int) -> bool:
    """Return whether two instructions continue in the same way."""
    i, j = _after_jumps(steps, i), _after_jumps(steps, j)
    while i != j and _key(steps[i]) == _key(steps[j]):  # as two copies of the end of a function
        if steps[i].opname.startswith("RETURN_"):
            return True
        i, j = _after_jumps(steps, i + 1), _after_jumps(steps, j + 1)
    return i == j


def _key(step: dis.Instruction) -> tuple[Any, ...]:
    return (step.opname, step.arg) if not _jumps(step) else (step.offset,)


def _after_jumps(steps: list[dis.Instruction], i: int) -> int:
    seen = set[int]()
    while i not in seen and (_is_unconditional(steps[i]) or steps[i].opname in _NOTHING):
        seen.add(i)
        i = _index(steps, steps[i].argval) if _jumps(steps[i]) else i + 1
    return i


def _resolved(steps: list[dis.Instruction], i: int, names: Mapping[str, Any]) -> tuple[Any, int]:
    """Return the function that a statement calls by a global name, and where its arguments are."""
    while steps[i].opname in _NOTHING:
        i += 1
    if steps[i].opname not in _GLOBAL:
        return None, i
    found = _global(steps[i], names)
    i += 1
    while steps[i].opname in ("LOAD_ATTR", "LOAD_METHOD"):
        found = getattr(found, steps[i].argval, None)
        i += 1
    return found, i


def _global(step: dis.Instruction, names: Mapping[str, Any]) -> Any:
    return names.get(step.argval, getattr(builtins, str(step.argval), None))


_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME")
_PLAIN = (  # without names that are given another value
    *("LOAD_CONST", "LOAD_FAST", "LOAD_SMALL_INT", "BUILD_", "FORMAT_", "CONVERT_", "KW_NAMES"),
    *("CALL", "PRECALL", "PUSH_NULL", "NOP", "CACHE", "EXTENDED_ARG", "NOT_TAKEN", "COPY_FREE"),
)
_TYPES = (float, int, str, UserWarning, RuntimeWarning, Warning)
_READING = {  # attributes and methods of tensors
    *("item", "tolist", "mean", "sum", "min", "max", "std", "var", "abs", "norm", "any", "all"),
    *("shape", "dtype", "detach", "cpu", "numpy", "float", "double", "T"),
}
_NOTHING = {"NOP", "NOT_TAKEN", "CACHE", "PUSH_NULL"}
_LOGS = {"debug", "info", "warning", "error", "exception", "critical", "log"}


def _warns(function: Any) -> bool:
    if function is warnings.warn or function is print:
        return True
    if getattr(function, "__name__", None) not in _LOGS:
        return False
    return isinstance(getattr(function, "__self__", None), logging.Logger) or function is getattr(
        logging, function.__name__
    )
