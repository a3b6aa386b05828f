"""The function by which compiled code asks torch to compute an operation."""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from probdl.compile.codegen.calls import Call, Operand

__all__ = ["callback", "interrupt", "is_interrupted", "raise_interrupt"]

_POINTERS = ctypes.POINTER(ctypes.c_void_p)
_interrupt = threading.local()  # what ended a call, until C code returns
_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_int64, _POINTERS, _POINTERS)


def callback(calls: Sequence[Call]) -> Any:
    """Return a C function that computes these calls; it takes the interpreter's lock.

    Where torch raises an error, such as for an index out of range, the results are NaN.
    """
    sizes = [(_operand_sizes(call), [math.prod(s) for s in call.shapes]) for call in calls]

    def run(index: int, operands: Any, results: Any) -> None:
        of_operands, of_results = sizes[index]
        targets = [_memory(results[i], size) for i, size in enumerate(of_results)]
        try:
            tensors = [_memory(operands[i], size) for i, size in enumerate(of_operands)]
            with torch.no_grad():
                calls[index].run(tensors, targets)
        except BaseException as error:
            for target in targets:
                target.fill_(torch.nan)
            if isinstance(error, MemoryError) or not isinstance(error, Exception):
                interrupt(error)

    return _FUNCTION(run)


def interrupt(error: BaseException) -> None:
    """Keep an error, which cannot pass through the C code that this thread runs."""
    _interrupt.error = error


def is_interrupted() -> bool:
    """Return whether an error is kept until the C code that this thread runs has returned."""
    return getattr(_interrupt, "error", None) is not None


def raise_interrupt() -> None:
    """Raise the error that ended a call from the C code that this thread has just run.

    Raises:
        KeyboardInterrupt: the user pressed Ctrl-C.
        MemoryError: there is too little memory.
        Exception: an error of a density in Python.
    """
    if (error := getattr(_interrupt, "error", None)) is not None:
        _interrupt.error = None
        raise error


def _operand_sizes(call: Call) -> list[int]:
    found: dict[int, int] = {}

    def visit(x: Any) -> None:
        if isinstance(x, Operand):
            found[x.index] = x.size
        elif isinstance(x, (list, tuple)):
            for item in x:
                visit(item)
        elif isinstance(x, dict):
            visit(list(x.values()))

    visit([call.args, dict(call.kwargs)])
    return [found[i] for i in range(len(found))]


def _memory(address: int, size: int) -> Tensor:
    """Return a tensor (size,) over memory of float64."""
    if not size:
        return torch.empty(0, dtype=torch.float64)
    return torch.frombuffer((ctypes.c_double * size).from_address(address), dtype=torch.float64)
