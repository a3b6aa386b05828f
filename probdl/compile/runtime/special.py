"""The addresses of SciPy's special functions, for compiled code.

``scipy.special.cython_special`` exports them for code that is compiled elsewhere. This is the only
file that reads its table.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Sequence
from typing import Any

from probdl.compile.codegen.operations import special_arity
from probdl.compile.runtime.addresses import exported

__all__ = ["special"]


def special(names: Sequence[str]) -> Any:
    """Return an array of the addresses of functions.

    Raises:
        ImportError: SciPy does not export one of them, or with other arguments.

    >>> special(["erfcx"])[0] != 0
    True
    """
    module = importlib.import_module("scipy.special.cython_special")
    return (ctypes.c_void_p * len(names))(*(_address(module, name) for name in names))


def _address(module: Any, name: str) -> int:
    signature = f"double ({'double, ' * special_arity(name)}int __pyx_skip_dispatch)"
    # A function of several types is exported once for each.
    for form in (name, f"__pyx_fuse_0{name}", f"__pyx_fuse_1{name}"):
        found = exported(module, form)
        if found is not None and found[0] == signature:
            return found[1]
    raise ImportError(f"{module.__name__} does not export {name} as {signature}")
