"""Find the model that a fit's folder names, for a user who trusts the folder.

A folder can name any file and any function, and has the arguments of its call. So its file is
imported only if it is no library, uses Pyro, and contains, at the recorded name, a function with
the recorded source; and only what this file defines is used.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import io
import re
import sys
import sysconfig
import tokenize
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from probdl.command.locate import locate_model
from probdl.errors import ModelError
from probdl.io.files import open_plain

__all__ = ["recorded_place", "trusted_model"]

SOURCE_MAX_BYTES = 2**24
REMEDY = "Pass --model file.py:name."
_LIBRARY_FOLDERS = re.compile(r"(site|dist)-packages|python\d+\.\d+", re.IGNORECASE)


def recorded_place(recorded: Mapping[str, Any]) -> str | None:
    """Return the location of a model that an index records, as ``file.py:name``.

    None if it records no function in a file that is the whole model: a model in a wrapper such as
    ``functools.partial``, or an instance, is named by the user.

    Args:
        recorded: the entry ``model`` of the index.
    """
    file, name = recorded.get("file"), recorded.get("object")
    if not file or not name or not file.endswith(".py") or not recorded.get("whole"):
        return None
    return f"{file}:{name}" if all(part.isidentifier() for part in name.split(".")) else None


def trusted_model(recorded: Mapping[str, Any]) -> Callable[..., Any]:
    """Import and return the model that an index records.

    Args:
        recorded: the entry ``model`` of the index.

    Raises:
        ModelError: the location is not recorded, its file is missing or that of a library, or the
            file does not contain the recorded source.
    """
    place = recorded_place(recorded)
    if place is None:
        raise ModelError(f"The folder does not name a file and a function in it. {REMEDY}")
    file, _, name = place.rpartition(":")
    path = Path(file).resolve()
    if _is_library(path):
        raise ModelError(f"{file!r} is a file of Python or of a library. {REMEDY}")
    lines = _lines(path)
    if not any("pyro" in line for line in lines):
        raise ModelError(f"{file!r} does not mention Pyro, so it holds no model. {REMEDY}")
    wanted = recorded.get("source_sha256")
    if wanted is None or _digest_in(lines, name.split(".")) != wanted:
        raise ModelError(
            f"{file!r} has no {name!r} with the source that was fitted: the model was changed "
            f"since, or the folder is not what it seems. {REMEDY}"
        )
    model = locate_model(_importable(path, name))
    if Path(inspect.getsourcefile(inspect.unwrap(model)) or "").resolve() != path:
        raise ModelError(f"{name!r} is not defined in {file!r}, only imported there. {REMEDY}")
    return model


def _is_library(path: Path) -> bool:
    folders = {Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "purelib")}
    folders.add(Path(__file__).resolve().parents[1])  # this package
    return any(folder in path.parents for folder in folders) or any(
        _LIBRARY_FOLDERS.fullmatch(part) for part in path.parts[:-1]
    )


def _lines(path: Path) -> list[str]:
    """Return the lines of a file as Python reads them."""
    try:
        with open_plain(path, SOURCE_MAX_BYTES) as opened:
            data = opened.read()
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        return io.TextIOWrapper(io.BytesIO(data), encoding).readlines()
    except FileNotFoundError:
        raise ModelError(
            f"The model was in {str(path)!r}, which does not exist. {REMEDY}"
        ) from None
    except (SyntaxError, UnicodeDecodeError):
        raise ModelError(f"{path} is not a Python file. {REMEDY}") from None


def _importable(path: Path, name: str) -> str:
    """Return the location of an object; a module in a package is imported by its full name."""
    module = path.parent if path.name == "__init__.py" else path.with_suffix("")
    parts = [module.name]
    root = module.parent
    while (root / "__init__.py").exists():
        parts.insert(0, root.name)
        root = root.parent
    if len(parts) == 1 and path.name != "__init__.py":
        return f"{path}:{name}"
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return f"{'.'.join(parts)}:{name}"


def _digest_in(lines: list[str], names: list[str]) -> str | None:
    """Return the checksum of the source of a function, found without running anything."""
    try:
        node: Any = ast.parse("".join(lines))
        for name in names:
            node = [each for each in _definitions(node) if each.name == name][-1]
    except (SyntaxError, ValueError, RecursionError, MemoryError, IndexError):
        return None
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    block = inspect.getblock(lines[first - 1 :])
    return hashlib.sha256("".join(block).encode()).hexdigest()


def _definitions(node: ast.AST) -> Iterator[Any]:
    """Yield the functions and classes in the body of a node, also under ``if`` and ``try``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            yield child
        elif isinstance(child, (ast.If, ast.Try, ast.ExceptHandler, ast.With)):
            yield from _definitions(child)
