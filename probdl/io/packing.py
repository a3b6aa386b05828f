"""Convert trees of settings, numbers and arrays to JSON and named arrays, and back; no pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Opaque", "opaque_parts", "pack", "unpack"]


class Opaque:
    """A placeholder for an object that cannot be saved: a function, a module, a data loader.

    >>> Opaque("a function")
    <a function, not saved>
    """

    def __init__(self, what: str) -> None:
        self.what = what

    def __repr__(self) -> str:
        return f"<{self.what}, not saved>"


def pack(tree: Any, arrays: dict[str, Tensor], name: str) -> Any:
    """Return a tree as JSON values, and add its arrays to ``arrays`` with the prefix ``name``.

    >>> arrays = {}
    >>> packed = pack({"x": torch.ones(2), "n": 3}, arrays, "data")
    >>> packed
    {'dict': [['x', {'tensor': 'data.x'}], ['n', 3]]}
    >>> unpack(packed, arrays)
    {'x': tensor([1., 1.]), 'n': 3}
    """
    if tree is None or type(tree) in (bool, int, float, str):
        return tree
    if isinstance(tree, np.generic) and tree.dtype.kind in "biuf":
        return tree.item()
    while name in arrays:  # keys that contain dots can lead to the same name
        name += "_"
    if isinstance(tree, Tensor) and tree.layout == torch.strided:
        arrays[name] = tree.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(tree, np.ndarray) and tree.dtype.kind in "biuf":
        arrays[name] = torch.from_numpy(np.array(tree, order="C"))
        return {"array": name}
    if isinstance(tree, Mapping) and all(isinstance(key, str) for key in tree):
        return {"dict": [[key, pack(v, arrays, f"{name}.{key}")] for key, v in tree.items()]}
    if type(tree) in (list, tuple):
        items = [pack(v, arrays, f"{name}.{i}") for i, v in enumerate(tree)]
        return {type(tree).__name__: items}
    kind = tree if callable(tree) and hasattr(tree, "__qualname__") else type(tree)
    return {"opaque": f"{kind.__module__}.{kind.__qualname__}"}


def unpack(packed: Any, arrays: Mapping[str, Tensor]) -> Any:
    """Return the packed tree; objects that could not be saved are :class:`Opaque`."""
    if not isinstance(packed, dict):
        return packed
    ((kind, of),) = packed.items()
    if kind == "tensor":
        return arrays[of]
    if kind == "array":
        return arrays[of].numpy()
    if kind == "dict":
        return {_text(key): unpack(v, arrays) for key, v in of}
    if kind in ("list", "tuple"):
        return (list if kind == "list" else tuple)(unpack(v, arrays) for v in of)
    return Opaque(of)


def _text(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"a key is {key!r}")
    return key


def opaque_parts(tree: Any, name: str) -> dict[str, Opaque]:
    """Return the objects of a tree that could not be saved, by their path in the tree."""
    if isinstance(tree, Opaque):
        return {name: tree}
    items: Any = ()
    if isinstance(tree, Mapping):
        items = tree.items()
    elif isinstance(tree, (list, tuple)):
        items = enumerate(tree)
    return {n: o for key, v in items for n, o in opaque_parts(v, f"{name}[{key!r}]").items()}
