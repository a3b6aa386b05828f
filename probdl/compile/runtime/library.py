"""C code as a loaded library: from the cache, or compiled."""

from __future__ import annotations

import ctypes
import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from probdl.compile.codegen.emit import Source
from probdl.compile.runtime import cache
from probdl.compile.runtime.toolchain import CompilerError, compile_to, find_compiler, identity
from probdl.util.isolation import stepped_aside

__all__ = ["loaded"]

_ELF = struct.Struct("=40sQ10sHHH")  # the header: where the sections are, how long, how many
_loaded: dict[tuple[Path, str], Any] = {}  # by cache folder and key; they stay loaded for good


def loaded(source: Source, *functions: str) -> Any:
    """Return the library that a source compiles to, with these functions in it.

    Raises:
        CompilerError: there is no compiler, it failed, or what it made does not load.
        TimeUp: the time limit of the fit passed while it compiled.
    """
    key = hashlib.sha256(identity(source).encode()).hexdigest()[:40]
    place = cache.folder(), key
    if place not in _loaded:
        try:
            _loaded[place] = cache.get(key, _maker(source), lambda path: _load(path, functions))
        except OSError as error:
            raise CompilerError(
                f"what {find_compiler()} makes does not load ({error}). Set CC to another "
                "compiler, or PROBDL_CACHE to a folder that code may be loaded from"
            ) from None
    return _loaded[place]


def _maker(source: Source) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with stepped_aside():  # other threads may work while the compiler does
            compile_to(path, source)

    return make


def _load(path: Path, functions: tuple[str, ...]) -> Any:
    """Load a library that has these functions.

    Raises:
        OSError: it does not load.
        AttributeError: it is another library.
    """
    _check_length(path)
    library = ctypes.CDLL(str(path))
    for name in functions:
        getattr(library, name)
    return library


def _check_length(path: Path) -> None:
    """Refuse an ELF file that was cut short, which would end the process when it is mapped."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_ELF.size)
    if len(head) == _ELF.size and head.startswith(b"\x7fELF\x02"):  # of 64 bits
        _, start, _, length, count, _ = _ELF.unpack(head)
        if start + length * count > size:  # the table of sections lies at the end
            raise OSError(f"{path.name}: file too short")
