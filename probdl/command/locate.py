"""Find an object, such as a model, by where it is: ``file.py:name`` or ``package.module:name``."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from probdl.errors import ModelError

__all__ = ["locate", "locate_model"]


def locate(reference: str) -> Any:
    """Import the file or the module, and return the object of that name in it.

    As when Python runs it as a script, a file finds the modules beside it.

    Args:
        reference: ``"my_model.py:model"`` or ``"package.module:name"``; the name may have dots.

    Raises:
        ModelError: there is no such file, module or name, or the file cannot be run.

    >>> locate("probdl.models:eight_schools").__name__
    'eight_schools'
    """
    place, _, name = reference.rpartition(":")
    if not place or not name:
        raise ModelError(
            f"{reference!r} does not say where the model is. Write file.py:name or "
            "package.module:name."
        )
    found: Any = _run_file(Path(place)) if place.endswith(".py") else _import(place)
    for part in name.split("."):
        if not hasattr(found, part):
            names = [n for n in vars(found) if not n.startswith("_")]
            near = difflib.get_close_matches(part, names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ModelError(f"{place} has no {name!r}{hint} (it has {', '.join(names)})")
        found = getattr(found, part)
    return found


def locate_model(reference: str) -> Any:
    """Return the object of that name, where it can be a model.

    Raises:
        ModelError: as in `locate`; or it cannot be called, or is a class.
    """
    model = locate(reference)
    if inspect.isclass(model):
        raise ModelError(
            f"{reference} is a class, and a model is a function or an instance. Put "
            f"`model = {model.__name__}(...)` into the file, and name that."
        )
    if not callable(model):
        raise ModelError(
            f"{reference} is a {type(model).__name__}, which cannot be called. Name a function "
            "with pyro.sample statements or an nn.Module."
        )
    return model


def _import(name: str) -> ModuleType:
    if os.getcwd() not in sys.path:  # a command, unlike `python -m`, does not look there
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise _failed(name, error) from error


def _run_file(path: Path) -> ModuleType:
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*.py"))
        near = difflib.get_close_matches(path.name, beside, 1)
        hint = f" Did you mean {str(path.parent / near[0])!r}?" if near else ""
        raise ModelError(f"there is no file {str(path)!r}.{hint}")
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    # A file may be called as a module that is already there, say `test.py` or `random.py`.
    name = path.stem if path.stem not in sys.modules else f"_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses in the file look themselves up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _failed(str(path), error) from error
    return module


def _failed(place: str, error: BaseException) -> ModelError:
    """Say in one line what went wrong in a file, and at which of its lines."""
    frames = traceback.extract_tb(error.__traceback__)
    at = next((f.lineno for f in reversed(frames) if f.filename.endswith(place)), None)
    if isinstance(error, SyntaxError):
        at = error.lineno
    line = f", line {at}" if at else ""
    if isinstance(error, SystemExit):
        return ModelError(
            f"{place}{line}: it ends the program (sys.exit) before its names are known. Put what "
            "is for running it as a script under `if __name__ == '__main__':`."
        )
    return ModelError(f"{place}{line}: {type(error).__name__}: {error}")
