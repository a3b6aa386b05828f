"""The addresses of functions that Cython modules export."""

from __future__ import annotations

import ctypes
from types import ModuleType
from typing import Any

__all__ = ["exported"]


def exported(module: ModuleType, name: str) -> tuple[str, int] | None:
    """Return the signature and the address of a C function of a module, if it exports one."""
    capsule = getattr(module, "__pyx_capi__", {}).get(name)
    if capsule is None:
        return None
    signature = _function("PyCapsule_GetName", ctypes.c_char_p, ctypes.py_object)(capsule)
    pointer = _function("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    return signature.decode(), int(pointer(capsule, signature))


def _function(name: str, result: type, *arguments: type) -> Any:
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))
