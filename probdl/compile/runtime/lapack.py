"""The addresses of BLAS and LAPACK in SciPy, for compiled code.

``scipy.linalg.cython_blas`` and ``cython_lapack`` export them for code that is compiled elsewhere,
so nothing is linked. This is the only file that reads their tables.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import re

from probdl.compile.runtime.addresses import exported
from probdl.util.lazy import linalg

__all__ = ["Lapack", "lapack"]

# By function: the module that exports it, and the types of its arguments, all of them pointers.
_FUNCTIONS = {
    "dgemm": ("blas", "char char int int int double double int double int double double int"),
    "dsymm": ("blas", "char char int int double double int double int double double int"),
    "dtrsm": ("blas", "char char char char int int double double int double int"),
    "dtrsv": ("blas", "char char char int double int double int"),
    "dpotrf": ("lapack", "char int double int int"),
}


class Lapack(ctypes.Structure):
    """The struct ``Lapack`` of lapack.h."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in _FUNCTIONS)


@functools.cache
def lapack() -> Lapack:
    """Return the addresses of the functions.

    Raises:
        ImportError: SciPy does not export one of them, or with other arguments.

    >>> lapack().dgemm != 0
    True
    """
    return Lapack(*(_address(name, *of) for name, of in _FUNCTIONS.items()))


def _address(name: str, where: str, types: str) -> int:
    _ = linalg.blas  # on one thread, where that is asked for
    module = importlib.import_module(f"scipy.linalg.cython_{where}")
    found = exported(module, name)
    if found is None:
        raise ImportError(f"{module.__name__} does not export {name}")
    signature, address = found
    plain = re.sub(r"__pyx_t_\w+_d\b", "double", signature)
    if plain != f"void ({', '.join(f'{t} *' for t in types.split())})":
        raise ImportError(f"{module.__name__} exports {name} as {signature}")
    return address
