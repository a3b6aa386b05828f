"""A property that is computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

__all__ = ["cached"]

T = TypeVar("T")


class cached(Generic[T]):  # noqa: N801
    """Compute a property when it is first read, and keep it in the instance.

    ``functools.cached_property`` does the same, but under a lock in Python 3.11, one for all
    instances: two threads of which one holds it and one holds the turn would wait for each other.

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
        # It has no __set__, so that what stands in the instance comes first from now on.
        value = instance.__dict__[self._name] = self._compute(instance)
        return value
