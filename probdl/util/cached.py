"""A property that is computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

__all__ = ["cached"]

T = TypeVar("T")


class cached(Generic[T]):  # noqa: N801
    """A property that is computed on first access, and stored in the instance.

    ``functools.cached_property`` does the same, but in Python 3.11 under a lock that all instances
    share: a thread that holds it and a thread that holds ``GLOBAL_LOCK`` would deadlock.

    >>> class Circle:
    ...     @cached
    ...     def area(self):
    ...         print("computed")
    ...         return 3.14
    >>> circle = Circle()
    >>> circle.area, circle.area
    computed
    (3.14, 3.14)
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> cached[T]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: object | None, owner: type) -> cached[T] | T:
        if instance is None:
            return self
        # Without __set__, Python reads the stored value directly from now on.
        value = instance.__dict__[self._name] = self._compute(instance)
        return value
