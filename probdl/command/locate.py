"""Find an object, such as a model, by its location: ``file.py:name`` or ``package.module:name``."""

from __future__ import annotations

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
from probdl.util.suggestions import did_you_mean, nearest

__all__ = ["locate", "locate_model"]


def locate(reference: str) -> Any:
    """Import a file or a module, and return the object of the given name.

    A file can import the modules in its folder, as a script can.

    Args:
        reference: ``"my_model.py:model"`` or ``"package.module:name"``; the name may have dots.

    Raises:
        ModelError: the file, module or name does not exist, or the file cannot be run.

    >>> locate("probdl.models:eight_schools").__name__
    'eight_schools'
    """
    place, _, name = reference.rpartition(":")
    if not place or not name:
        raise ModelError(
            f"{reference!r} is not the location of a model. Write file.py:name or "
            "package.module:name."
        )
    found: Any = _run_file(Path(place)) if place.endswith(".py") else _import(place)
    for part in name.split("."):
        if not hasattr(found, part):
            names = [n for n in vars(found) if not n.startswith("_")]
            hint = did_you_mean(part, names, before="; ") or "."
            raise ModelError(f"{place} has no {name!r}{hint} It defines: {', '.join(names)}.")
        found = getattr(found, part)
    return found


def locate_model(reference: str) -> Any:
    """Return the model at a location.

    Raises:
        ModelError: as in `locate`, or the object is a class or cannot be called.
    """
    model = locate(reference)
    if inspect.isclass(model):
        raise ModelError(
            f"{reference} is a class; a model is a function or an instance. Add "
            f"`model = {model.__name__}(...)` to the file, and pass that name."
        )
    if not callable(model):
        raise ModelError(
            f"{reference} is of type {type(model).__name__} and cannot be called. Pass the name "
            "of a function with pyro.sample statements, or of an nn.Module."
        )
    return model


def _import(name: str) -> ModuleType:
    if os.getcwd() not in sys.path:  # unlike `python -m`, a command does not search it
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise _import_failed(name, error) from error


def _run_file(path: Path) -> ModuleType:
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*.py"))
        similar = nearest(path.name, beside)
        hint = f" Did you mean {str(path.parent / similar)!r}?" if similar else ""
        raise ModelError(f"The file {str(path)!r} does not exist.{hint}")
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    # The file may have the name of a module that is already loaded, such as `random.py`.
    name = path.stem if path.stem not in sys.modules else f"_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses in the file look up their module here
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _import_failed(str(path), error) from error
    return module


def _import_failed(place: str, error: BaseException) -> ModelError:
    """Return an error with a one-line message that names the failing line of a file."""
    frames = traceback.extract_tb(error.__traceback__)
    at = next((f.lineno for f in reversed(frames) if f.filename.endswith(place)), None)
    if isinstance(error, SyntaxError):
        at = error.lineno
    line = f", line {at}" if at else ""
    if isinstance(error, SystemExit):
        return ModelError(
            f"{place}{line}: the file exits (sys.exit) while it is imported. Move the code that "
            "runs it as a script under `if __name__ == '__main__':`."
        )
    return ModelError(f"{place}{line}: {type(error).__name__}: {error}")
