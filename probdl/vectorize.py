"""Map a function of one draw over all draws in one pass.

``torch.vmap`` does the work. It cannot follow two habits of probabilistic programs, which
are therefore rewritten, without loss of meaning:

- In-place random numbers on a fresh tensor (``torch.empty(n).normal_()``, as in many
  ``rsample`` methods) become their out-of-place twins.
- Autograd functions of the old style (Pyro's ``safe_log``, torch's Dirichlet) and in-place
  writes are traced away: the function is recorded as a graph of plain operations on one
  draw (``make_fx``), made functional, and that graph is mapped.

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
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from probdl.errors import warn

__all__ = ["vectorize"]

_CHUNK_ELEMENTS = 2**24  # of float64 results at a time: 128 MiB, and a few times that in between


def _uniform(x: Tensor) -> Tensor:
    return torch.rand(x.shape, dtype=x.dtype, device=x.device)


def _normal_(x: Tensor, mean: Any = 0.0, std: Any = 1.0, *, generator: Any = None) -> Tensor:
    return mean + std * torch.randn(x.shape, dtype=x.dtype, device=x.device)


def _uniform_(x: Tensor, low: Any = 0.0, high: Any = 1.0, *, generator: Any = None) -> Tensor:
    return low + (high - low) * _uniform(x)


def _exponential_(x: Tensor, rate: Any = 1.0, *, generator: Any = None) -> Tensor:
    return -torch.log1p(-_uniform(x)) / rate


def _cauchy_(x: Tensor, median: Any = 0.0, scale: Any = 1.0, *, generator: Any = None) -> Tensor:
    return median + scale * torch.tan(math.pi * (_uniform(x) - 0.5))


_OUT_OF_PLACE: dict[Any, Callable[..., Tensor]] = {
    Tensor.normal_: _normal_,
    Tensor.uniform_: _uniform_,
    Tensor.exponential_: _exponential_,
    Tensor.cauchy_: _cauchy_,
}


class _OutOfPlaceRandom(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return _OUT_OF_PLACE.get(func, func)(*args, **(kwargs or {}))


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
        with _OutOfPlaceRandom():
            return fn(draw)

    leaves = torch.utils._pytree.tree_leaves(draws)
    count = len(leaves[0])
    first = tree_map(lambda x: x[0], draws)
    with torch.no_grad(), _without_fallback_warnings():
        size = sum(x.numel() for x in torch.utils._pytree.tree_leaves(fn(first)))
        chunk = max(1, _CHUNK_ELEMENTS // max(size, 1))
        mapped: Any = {"randomness": "different", "chunk_size": chunk if chunk < count else None}
        try:
            return torch.vmap(one, **mapped)(draws)
        except Exception:  # whatever vmap cannot follow: try the next way, the last one is safe
            pass
        try:
            graph = make_fx(functionalize(make_fx(one)(first)))(first)
            return torch.vmap(graph, **mapped)(draws)
        except Exception as error:
            reason = str(error).splitlines()[0]
        warn(
            f"the model cannot be evaluated for all {count} draws at once ({reason}), so it "
            "runs once a draw, which is slow. Control flow in Python that depends on the value "
            "of a site is the usual cause: torch.where() instead of `if` lifts it."
        )
        each = [fn(tree_map(lambda x, i=i: x[i], draws)) for i in range(count)]
        return tree_map(lambda *xs: torch.stack(xs), *each)
