"""C code as a loaded library, from the cache or newly compiled."""

from __future__ import annotations

import ctypes
import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from probdl.compile.codegen.emit import Source
from probdl.compile.runtime import cache
from probdl.compile.runtime.callback import callback
from probdl.compile.runtime.lapack import lapack
from probdl.compile.runtime.special import special
from probdl.compile.runtime.toolchain import CompilerError, compile_to, find_compiler, identity
from probdl.util.isolation import lock_suspended

__all__ = ["loaded"]

_ELF = struct.Struct("=40sQ10sHHH")  # the header: offset, size and number of the sections
_loaded: dict[tuple[Path, str], Any] = {}  # by cache folder and key; libraries are never unloaded


def loaded(source: Source, *functions: str) -> Any:
    """Return the library compiled from a source, which must contain these functions.

    Raises:
        CompilerError: there is no compiler, it failed, or its library does not load; or SciPy does
            not export the functions that it needs.
        TimeUp: the time limit of the fit passed while it compiled.
    """
    key = hashlib.sha256(identity(source).encode()).hexdigest()[:40]
    place = cache.folder(), key
    if place not in _loaded:
        try:
            library = cache.get(key, _maker(source), lambda path: _load(path, functions))
            if source.uses_lapack:
                library.use_lapack(ctypes.byref(lapack()))
            if source.special:
                library.use_special(special(source.special))
            if source.calls:
                library.callback = callback(source.calls)  # as long as the library
                library.use_torch(library.callback)
            _loaded[place] = library
        except ImportError as error:
            raise CompilerError(f"{error}. Use another release of SciPy") from None
        except OSError as error:
            raise CompilerError(
                f"a library made by {find_compiler()} does not load ({error}). Set CC to another "
                "compiler, or PROBDL_CACHE to a folder that allows loading code"
            ) from None
    return _loaded[place]


def _maker(source: Source) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with lock_suspended():  # other threads may run during the compilation
            compile_to(path, source)

    return make


def _load(path: Path, functions: tuple[str, ...]) -> Any:
    """Load a library, and check that it contains these functions.

    Raises:
        OSError: the library does not load.
        AttributeError: a function is missing.
    """
    _check_length(path)
    library = ctypes.CDLL(str(path))
    for name in functions:
        getattr(library, name)
    return library


def _check_length(path: Path) -> None:
    """Raise OSError for a truncated ELF file, which would crash the process when it is mapped."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_ELF.size)
    if len(head) == _ELF.size and head.startswith(b"\x7fELF\x02"):  # 64-bit ELF
        _, start, _, length, count, _ = _ELF.unpack(head)
        if start + length * count > size:  # the section table is at the end
            raise OSError(f"{path.name}: file too short")
