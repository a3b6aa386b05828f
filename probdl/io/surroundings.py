"""All values around a function that it may read, and that may change between its calls.

``identify`` describes what a function takes from its surroundings so that a later process
recognises it, and leaves out what may change. Here, in one process, nothing may be left out.
"""

from __future__ import annotations

import functools
import itertools
import os
import site
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from probdl.io.identity import array_text, layers

__all__ = ["Surroundings", "surroundings"]

MAX_VALUES = 50_000
PLAIN = (type(None), bool, int, float, complex, str, bytes)
OWN = __name__.partition(".")[0]
_FOLDERS = (
    *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")),
    *site.getsitepackages(),
    site.getusersitepackages(),
)
_OF_LIBRARIES = tuple({f"{Path(folder).resolve()}{os.sep}" for folder in _FOLDERS})
_OF_MODULES = {*vars(nn.Module())}  # the attributes of all networks
_unique = itertools.count()


@dataclass
class Surroundings:
    """Texts of values by where they are, and where those in objects of the user are."""

    values: dict[str, str] = field(default_factory=dict)
    own: set[str] = field(default_factory=set)

    def changed(self, later: Surroundings) -> list[str]:
        """Return where the user's plain values, which are there before and later, differ."""
        both = self.own & later.own
        return sorted(path for path in both if self.values[path] != later.values[path])


def surroundings(function: Callable[..., Any]) -> Surroundings:
    """Return the values that a function may read.

    These are the values of its global and outer variables, of the attributes of objects and classes
    and of the elements of containers among them, and those that other functions of the user read.
    The code of libraries does not change. The parameters and buffers of networks are left out.

    >>> config = {"scale": 2.0}
    >>> def with_config(config):
    ...     return lambda: config["scale"]
    >>> model = with_config(config)
    >>> before = surroundings(model)
    >>> config["scale"] = 3.0
    >>> before.changed(surroundings(model))
    ["config['scale']"]
    """
    walk = _Walk()
    try:
        for layer in layers(function):
            walk.visit(layer, "", own=True)
    except Exception:  # of an object of a user, whose attributes may do anything
        walk.give_up()
    return walk.found


class _Walk:
    """Visits values, and notes those that are plain."""

    def __init__(self) -> None:
        self.found = Surroundings()
        self._seen: dict[int, Any] = {}  # which keeps them, so that no id is used again

    def give_up(self) -> None:
        """Make what was found equal to nothing else."""
        self.found.values["?"] = str(next(_unique))

    def visit(self, value: Any, path: str, own: bool) -> None:
        """Note a value, or what it holds, unless it was visited."""
        values = self.found.values
        if len(values) > MAX_VALUES:
            raise ValueError("too much to look at")
        if isinstance(value, PLAIN):
            values[path] = repr(value)
            if own:
                self.found.own.add(path)
        elif id(value) in self._seen:
            values[path] = f"as {self._seen[id(value)][1]}"
        else:
            self._seen[id(value)] = value, path
            self._visit_new(value, path, own)

    def _visit_new(self, value: Any, path: str, own: bool) -> None:
        text = array_text(value)
        self.found.values[path] = text or _name_of(value)
        if text or isinstance(value, Tensor):
            return
        kept = isinstance(value, (Mapping, list, tuple, type, FunctionType, MethodType))
        own = own and (kept or not _of_library(type(value)))
        parts = [*self._parts(value)]
        if not parts and not kept and not isinstance(value, ModuleType):
            self.found.values[path] = repr(value)  # of a dtype or a date, and the place of others
        for name, part in parts:
            self.visit(part, path + name if path else name.lstrip("."), own)

    def _parts(self, value: Any) -> Iterator[tuple[str, Any]]:
        """Yield what a value holds, by how it is reached."""
        if isinstance(value, Mapping):
            yield from ((f"[{key!r}]", each) for key, each in value.items())
        elif isinstance(value, (list, tuple)):
            yield from ((f"[{i}]", each) for i, each in enumerate(value))
        elif isinstance(value, (set, frozenset)):
            yield "", tuple(sorted(map(repr, value)))
        elif isinstance(value, MethodType):
            yield ".__self__", value.__self__
            yield "", value.__func__
        elif isinstance(value, FunctionType):
            yield from self._around(value)
        elif isinstance(value, functools.partial):
            yield "", (value.func, value.args, value.keywords)
        elif isinstance(value, type):
            if not _of_library(value):
                yield from self._of_class(value)
        elif not isinstance(value, ModuleType):
            yield from ((f".{name}", each) for name, each in _attributes(value))
            if not _of_library(type(value)):
                yield f".{type(value).__name__}", type(value)

    @staticmethod
    def _of_class(cls: type) -> Iterator[tuple[str, Any]]:
        found: set[str] = set()
        for base in cls.__mro__:
            if not _of_library(base):
                for name, each in vars(base).items():
                    if name in found:  # of a subclass
                        continue
                    found.add(name)
                    plain = each.__func__ if isinstance(each, (classmethod, staticmethod)) else each
                    plain = plain.fget if isinstance(plain, property) else plain
                    if isinstance(plain, FunctionType) or not name.startswith("__"):
                        yield f".{name}", plain

    @staticmethod
    def _around(function: FunctionType) -> Iterator[tuple[str, Any]]:
        code = function.__code__
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                yield f".{name}", cell.cell_contents
            except ValueError:  # it has no value yet
                yield f".{name}", None
        if _of_library(function):
            return
        yield ".__code__", (_texts(code), function.__defaults__, function.__kwdefaults__)
        if vars(function):
            yield ".__dict__", {n: v for n, v in vars(function).items() if n != "__wrapped__"}
        names = {*_names(code)}
        for name in sorted(names & function.__globals__.keys()):
            value = function.__globals__[name]
            if not isinstance(value, ModuleType):
                yield f".{name}", value
            elif not _of_library(value):
                for own in sorted(names & vars(value).keys()):
                    yield f".{name}.{own}", vars(value)[own]


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    own = dict(getattr(value, "__dict__", {}))
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            hidden = slot.startswith("__") and not slot.endswith("__")
            name = f"_{cls.__name__.lstrip('_')}{slot}" if hidden else slot
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                own[name] = getattr(value, name)
    for name, each in own.items():
        if isinstance(value, nn.Module) and (name in _OF_MODULES or name.startswith("_pyro")):
            continue
        yield name, each
    if isinstance(value, nn.Module):
        yield "_modules", dict(value.named_children())


def _name_of(value: Any) -> str:
    """Return the name of a function, class or module, or of the class of another value."""
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, Tensor):  # whose values are not read, as those of a parameter
        return f"{type(value).__name__} at {id(value)}"
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{getattr(named, '__module__', '')}.{named.__qualname__}"


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def _texts(code: CodeType) -> str:
    """Return what a function does."""
    consts = [_texts(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_code!r}{code.co_names}{consts}"


def _of_library(value: Any) -> bool:
    """Return whether a module, function or class is of a library."""
    name = value.__name__ if isinstance(value, ModuleType) else value.__module__
    module = value if isinstance(value, ModuleType) else sys.modules.get(name or "")
    return _is_library(name or "", getattr(module, "__file__", None))


@functools.cache
def _is_library(name: str, file: str | None) -> bool:
    root = name.partition(".")[0]
    if root == OWN or root in sys.stdlib_module_names:
        return True
    return file is not None and str(Path(file).resolve()).startswith(_OF_LIBRARIES)
