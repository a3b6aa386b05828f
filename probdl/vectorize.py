"""Map a function of one draw over all draws in one pass.

``torch.vmap`` does the work. It cannot follow two habits of probabilistic programs, which
are therefore rewritten, without loss of meaning:

- In-place random numbers (``torch.empty(n).exponential_()``, as in many ``rsample`` methods) and
  writes through a mask (as in ``Multinomial.log_prob``) become copies of out-of-place twins.
- In-place writes and autograd functions of the old style (Pyro's ``safe_log``, torch's
  Dirichlet) are traced away: the function is recorded as a graph of plain operations on one
  draw (``record``), made functional, and that graph is mapped.

A program whose control flow depends on the values of a draw cannot be mapped by any of
these. It is run draw by draw, and a warning says so.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import functionalize
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from probdl.errors import warn
from probdl.record import record

__all__ = ["vectorize"]

_CHUNK_ELEMENTS = 2**24  # of float64 results at a time: 128 MiB, and a few times that in between


def _uniform(x: Tensor) -> Tensor:
    return torch.rand(x.shape, dtype=x.dtype, device=x.device)


def _normal_(x: Tensor, mean: Any = 0.0, std: Any = 1.0, *, generator: Any = None) -> Tensor:
    return x.copy_(mean + std * torch.randn(x.shape, dtype=x.dtype, device=x.device))


def _uniform_(x: Tensor, low: Any = 0.0, high: Any = 1.0, *, generator: Any = None) -> Tensor:
    return x.copy_(low + (high - low) * _uniform(x))


def _exponential_(x: Tensor, rate: Any = 1.0, *, generator: Any = None) -> Tensor:
    return x.copy_(-torch.log1p(-_uniform(x)) / rate)


def _cauchy_(x: Tensor, median: Any = 0.0, scale: Any = 1.0, *, generator: Any = None) -> Tensor:
    return x.copy_(median + scale * torch.tan(math.pi * (_uniform(x) - 0.5)))


def _set_item(x: Tensor, index: Any, value: Any) -> None:
    """Write ``x[mask] = number`` as a choice, whose shape does not depend on the values."""
    if isinstance(index, Tensor) and index.dtype == torch.bool and not isinstance(value, Tensor):
        mask = index.reshape(index.shape + (1,) * (x.ndim - index.ndim))
        x.copy_(torch.where(mask, value, x))
    else:
        x[index] = value


_REWRITTEN: dict[Any, Callable[..., Any]] = {
    Tensor.normal_: _normal_,
    Tensor.uniform_: _uniform_,
    Tensor.exponential_: _exponential_,
    Tensor.cauchy_: _cauchy_,
    Tensor.__setitem__: _set_item,
}


class _Rewrite(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return _REWRITTEN.get(func, func)(*args, **(kwargs or {}))


@contextmanager
def _without_fallback_warnings() -> Iterator[None]:
    """Silence C++ notes that an operation is mapped by a (correct) loop in C++."""
    functorch: Any = torch._C._functorch  # type: ignore[attr-defined]
    functorch._set_vmap_fallback_warning_enabled(False)
    try:
        with warnings.catch_warnings():  # torch's own, of Binomial under vmap
            warnings.filterwarnings("ignore", "An output with one or more elements was resized")
            yield
    finally:  # torch has no way to ask what it was; on is its default
        functorch._set_vmap_fallback_warning_enabled(True)


def _plain(fn: Callable[[Any], Any], example: Any) -> Callable[[Any], Any]:
    """Record a function of one draw as plain operations, without writes in place."""
    values, structure = tree_flatten(example)
    recording = record(lambda *xs: fn(tree_unflatten(xs, structure)), values)
    if recording.has_mutation:
        recording = record(functionalize(recording.function()), values)
    plain = recording.function()
    return lambda draw: plain(*tree_flatten(draw)[0])


def vectorize(fn: Callable[[Any], Any], draws: Any) -> Any:
    """Apply ``fn`` to every draw: ``[fn(d) for d in draws]``, stacked, in one pass.

    ``draws`` is a pytree (tensor, or dict of tensors) whose leaves share their leading
    dimension; ``fn`` takes the tree without that dimension and returns a tree of tensors.
    Random numbers that ``fn`` draws differ from draw to draw. No gradient is recorded.

    >>> x = torch.arange(3.0)
    >>> vectorize(lambda d: {"square": d["x"] ** 2}, {"x": x})["square"]
    tensor([0., 1., 4.])
    """

    def one(draw: Any) -> Any:
        with _Rewrite():
            return fn(draw)

    leaves = torch.utils._pytree.tree_leaves(draws)
    count = len(leaves[0])
    first = tree_map(lambda x: x[0], draws)
    with torch.no_grad(), _without_fallback_warnings():
        once = fn(first)
        if count == 1:
            return tree_map(lambda x: x[None], once)
        size = sum(x.numel() for x in torch.utils._pytree.tree_leaves(once))
        chunk = max(1, _CHUNK_ELEMENTS // max(size, 1))
        mapped: Any = {"randomness": "different", "chunk_size": chunk if chunk < count else None}
        try:
            return torch.vmap(one, **mapped)(draws)
        except Exception:  # whatever vmap cannot follow: try the next way, the last one is safe
            pass
        try:
            return torch.vmap(_plain(one, first), **mapped)(draws)
        except Exception as error:
            reason = str(error).splitlines()[0]
        warn(
            f"the model cannot be evaluated for all {count} draws at once ({reason}), so it "
            "runs once a draw, which is slow. Control flow in Python that depends on the value "
            "of a site is the usual cause: torch.where() instead of `if` lifts it."
        )
        each = [fn(tree_map(lambda x, i=i: x[i], draws)) for i in range(count)]
        return tree_map(lambda *xs: torch.stack(xs), *each)
