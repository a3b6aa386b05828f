"""Map a function of one draw over all draws in one pass.

This uses ``torch.vmap``, which does not support two kinds of operations that probabilistic
programs often use. They are rewritten as equivalent ones:

- In-place random numbers (``torch.empty(n).exponential_()``, as in many ``rsample`` methods) and
  writes through a mask (as in ``Multinomial.log_prob``) become copies of out-of-place results.
- In-place writes and old-style autograd functions (Pyro's ``safe_log``, torch's Dirichlet) are
  removed by tracing: the function is recorded as a graph of plain operations on one draw
  (``record``), made functional, and this graph is mapped.

A program whose Python code reads the values of a draw, or random numbers, cannot be mapped in
either way. It is run draw by draw, with a warning.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import dirichlet
from torch.func import functionalize
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from probdl.errors import ModelError, ProbdlError, SettingError, warn
from probdl.model.recorder import DispatchMode, record
from probdl.model.scatters import replace_scatters
from probdl.util.blas import threads_for
from probdl.util.clock import check_time_limit
from probdl.util.isolation import evaluation, generator_states
from probdl.util.lock import GLOBAL_LOCK
from probdl.util.memory import machine_memory
from probdl.util.progress import bar

__all__ = ["chunks", "vectorize"]

MAX_NUMBERS_PER_CHUNK = 2**25  # 256 MiB in float64
# Larger tensors do not stay in the cache, and the system gives them new pages each time.
MAX_NUMBERS_PER_TENSOR = 2**20
NUMBERS_PER_OPERATION = 3000  # that take as long in new pages as the call of an operation
COMPARED_DRAWS = 3  # at which recorded operations are compared with the function


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
    """Write without reading the index, or making a shape depend on it."""
    if _is_position(index):
        index = torch.arange(len(x)) == _positive(index, len(x))
    elif not (isinstance(index, Tensor) and index.dtype == torch.bool) or isinstance(value, Tensor):
        x[index] = value
        return
    mask = index.reshape(index.shape + (1,) * (x.ndim - index.ndim))
    x.copy_(torch.where(mask, value, x))


def _get_item(x: Tensor, index: Any) -> Tensor:
    """Select at positions that are scalar tensors without reading them, as ``x[z]`` does."""
    parts = list(index) if isinstance(index, tuple) else [index]
    tensors = [part for part in parts if isinstance(part, (Tensor, list, np.ndarray))]
    if not tensors or not all(map(_is_position, tensors)):
        return x[index]
    x = x[tuple(slice(None) if _is_position(part) else part for part in parts)]
    for i in reversed(range(len(parts))):
        if not _is_position(parts[i]):
            continue
        before, after = parts[:i], parts[i + 1 :]
        if any(part is Ellipsis for part in before):
            dim = x.ndim - 1 - sum(_keeps_dim(part) for part in after)
        else:
            dim = sum(_keeps_dim(part) or _is_position(part) for part in before)
        position = _positive(parts[i], x.shape[dim]).reshape(1)
        x = x.index_select(dim, position).squeeze(dim)
    return x


def _is_position(index: Any) -> bool:
    return (
        isinstance(index, Tensor)
        and index.ndim == 0
        and not index.is_floating_point()
        and index.dtype != torch.bool
    )


def _keeps_dim(part: Any) -> bool:
    """Return whether a part of an index leaves one dimension in the result."""
    return part is None or isinstance(part, slice)


def _positive(position: Tensor, size: int) -> Tensor:
    return torch.where(position < 0, position + size, position)


def _binomial(count: Tensor, prob: Tensor, *, generator: Any = None) -> Tensor:
    """Broadcast the counts first: torch allocates the result in the shape of the counts."""
    return torch.binomial(count + torch.zeros_like(prob), prob, generator=generator)


_REWRITTEN: dict[Any, Callable[..., Any]] = {
    Tensor.normal_: _normal_,
    Tensor.uniform_: _uniform_,
    Tensor.exponential_: _exponential_,
    Tensor.cauchy_: _cauchy_,
    Tensor.__getitem__: _get_item,
    Tensor.__setitem__: _set_item,
    Tensor.data.__get__: Tensor.detach,  # type: ignore[attr-defined]
    torch.binomial: _binomial,
}


_ALLOCATIONS = {
    torch.empty, torch.empty_like, torch.zeros, torch.zeros_like, torch.ones, torch.ones_like,
    torch.full, torch.full_like, torch.eye, torch.tensor, torch.arange, torch.linspace,
    torch.clone, Tensor.clone, Tensor.new, Tensor.new_empty, Tensor.new_zeros, Tensor.new_ones,
    Tensor.new_full, Tensor.new_tensor,
}  # fmt: skip


class _Rewrite(TorchFunctionMode):
    """Rewrite calls that ``vmap`` does not support.

    Args:
        draw: the draw, within ``vmap``: memory that is allocated becomes memory of each draw, to
            which results of the draw can be written. None leaves it as it is.
    """

    def __init__(self, draw: Any = None) -> None:
        super().__init__()
        leaves = [x for x in tree_leaves(draw) if isinstance(x, Tensor) and x.numel()]
        self._zero = torch.zeros_like(leaves[0]).reshape(-1)[0] if leaves else None

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = _REWRITTEN.get(func, func)(*args, **(kwargs or {}))
        if self._zero is not None and func in _ALLOCATIONS and result.is_floating_point():
            return result + self._zero.to(result.dtype)
        return result


class _Dirichlet:
    """In the place of torch's class of that name, which ``vmap`` refuses, without gradients."""

    original = getattr(dirichlet, "_Dirichlet", None)

    @classmethod
    @contextmanager
    def in_place(cls) -> Iterator[None]:
        """Put it in the place of torch's class."""
        torchs: Any = dirichlet
        torchs._Dirichlet = cls
        try:
            yield
        finally:
            torchs._Dirichlet = cls.original

    @classmethod
    def apply(cls, concentration: Tensor) -> Tensor:
        """Draw from a Dirichlet distribution."""
        if torch.is_grad_enabled() and cls.original is not None:  # in another thread
            return cls.original.apply(concentration)  # type: ignore[no-any-return]
        return torch._sample_dirichlet(concentration)


@contextmanager
def _without_fallback_warnings() -> Iterator[None]:
    """Silence the warnings that an operation is mapped by a loop in C++, which is correct."""
    functorch: Any = torch._C._functorch  # type: ignore[attr-defined]
    functorch._set_vmap_fallback_warning_enabled(False)
    try:
        with GLOBAL_LOCK, warnings.catch_warnings():  # from Binomial under vmap
            warnings.filterwarnings("ignore", "An output with one or more elements was resized")
            yield
    finally:  # torch cannot report the previous value; the default is True
        functorch._set_vmap_fallback_warning_enabled(True)


def _plain(fn: Callable[[Any], Any], example: Any) -> Callable[[Any], Any]:
    """Record a function of one draw as plain operations, without in-place writes."""
    values, structure = tree_flatten(example)
    recording = record(lambda *xs: fn(tree_unflatten(xs, structure)), values)
    dtype = recording.default_dtype
    if recording.has_mutation:
        with evaluation(dtype=dtype):
            recording = record(functionalize(recording.function()), values)
        replace_scatters(recording.graph)
    plain = recording.function()

    def run(draw: Any) -> Any:
        with evaluation(dtype=dtype):
            return plain(*tree_flatten(draw)[0])

    return run


class _CountNumbers(DispatchMode):
    """Count the numbers in the results of all operations, intermediate ones included.

    Attributes:
        operations: the number of operations.
        numbers: the numbers of all results.
        largest: those of the largest.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.numbers = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            sizes = [x.numel() for x in tree_leaves(result) if isinstance(x, Tensor)]
            self.operations += 1
            self.numbers += sum(sizes)
            self.largest = max([self.largest, *sizes])
        return result

    @property
    def draws_per_chunk(self) -> int:
        """The number of draws to compute at once."""
        in_memory = max(1, MAX_NUMBERS_PER_CHUNK // max(self.numbers, 1))
        in_cache = max(1, MAX_NUMBERS_PER_TENSOR // max(self.largest, 1))
        # Many small operations, as of a long loop, take most of the time of a small chunk.
        if self.operations * NUMBERS_PER_OPERATION > self.numbers * in_cache:
            return in_memory
        return min(in_memory, in_cache)


def vectorize(fn: Callable[[Any], Any], draws: Any) -> Any:
    """Apply ``fn`` to every draw: ``[fn(d) for d in draws]``, stacked, in one pass.

    ``draws`` is a pytree (tensor, or dict of tensors) whose leaves share their leading
    dimension; ``fn`` takes the tree without that dimension and returns a tree of tensors.
    A tree without leaves is one draw. Each draw gets its own random numbers. No gradient is
    recorded.

    Raises:
        SettingError: the result is larger than the memory of the machine.

    >>> x = torch.arange(3.0)
    >>> vectorize(lambda d: {"square": d["x"] ** 2}, {"x": x})["square"]
    tensor([0., 1., 4.])
    """
    count = len(tree_leaves(draws)[0]) if tree_leaves(draws) else 1
    result, done = None, 0
    for part in chunks(fn, draws):
        if not tree_leaves(part):
            return part
        size = len(tree_leaves(part)[0])
        if size == count:
            return part
        if result is None:
            result = _allocate(part, count)
        for whole, some in zip(tree_leaves(result), tree_leaves(part), strict=True):
            whole[done : done + size] = some
        done += size
    return result


def _allocate(part: Any, count: int) -> Any:
    """Allocate the results of all draws, like those of a part of the draws."""
    per_draw = sum(x[0].numel() * x.element_size() for x in tree_leaves(part))
    if count * per_draw > machine_memory(unknown=math.inf):
        raise SettingError(
            f"{count} draws of {per_draw / 2**20:.3g} MiB each need {count * per_draw / 2**30:.3g} "
            "GiB, more than the memory of this machine. Write them to files with "
            "predict(..., out=folder), or predict fewer rows at a time."
        )
    return tree_map(lambda x: x.new_empty((count, *x.shape[1:])), part)


def chunks(fn: Callable[[Any], Any], draws: Any) -> Iterator[Any]:
    """Yield the results of :func:`vectorize` in chunks of draws, in bounded memory.

    The size of a chunk depends on the numbers that one draw computes, not on the machine, so that
    the random numbers are the same on every machine.
    """

    def one(draw: Any) -> Any:
        with _Rewrite():
            return fn(draw)

    count = len(tree_leaves(draws)[0]) if tree_leaves(draws) else 1
    first = tree_map(lambda x: x[0], draws)
    state = generator_states(torch_too=False)
    with torch.no_grad(), _CountNumbers() as count_mode:
        once = fn(first)
    if count == 1:
        yield tree_map(lambda x: x[None], once)
        return
    size = min(count, count_mode.draws_per_chunk)
    parts = [tree_map(lambda x, i=i: x[i : i + size], draws) for i in range(0, count, size)]
    if generator_states(torch_too=False) == state:
        with threads_for(size * count_mode.numbers):
            mapped, result = _fastest_mapping(fn, one, first, parts[0])
    else:
        _warn_slow(
            "it draws random numbers with NumPy or Python",
            "Draw random numbers with pyro.sample or torch.",
        )
        mapped = _each(fn)
        result = mapped(parts[0])
    if len(parts) == 1:
        yield result
        return
    with bar(count, "evaluating draws", None) as progress:
        progress.update(size)
        yield result
        for part in parts[1:]:
            check_time_limit()
            result = mapped(part)
            progress.update(len(tree_leaves(part)[0]))
            yield result


def _quietly(mapped: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def run(draws: Any) -> Any:
        with torch.no_grad(), _without_fallback_warnings():
            return mapped(draws)

    return run


def _each(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a function that runs ``fn`` draw by draw."""

    def each(draws: Any) -> Any:
        count = len(tree_leaves(draws)[0])
        results = []
        with bar(count, "evaluating draws one by one", None) as progress:
            for i in range(count):
                check_time_limit()
                results.append(fn(tree_map(lambda x, i=i: x[i], draws)))
                progress.update()
        return _stacked(results)

    return _quietly(each)


def _stacked(results: list[Any]) -> Any:
    kinds = [
        (structure, [leaf.shape for leaf in leaves])
        for leaves, structure in map(tree_flatten, results)
    ]
    if any(kind != kinds[0] for kind in kinds):
        raise ModelError(
            "The sites of the model, or their shapes, differ between draws. They must not depend "
            "on the values of sites or on random choices: use torch.where() instead of `if`."
        )
    return tree_map(lambda *xs: torch.stack(xs), *results)


def _fastest_mapping(
    fn: Callable[[Any], Any], one: Callable[[Any], Any], first: Any, part: Any
) -> tuple[Callable[[Any], Any], Any]:
    """Return the fastest mapped version of a function that works, and its result for a part."""

    def own_memory(draw: Any) -> Any:
        with _Rewrite(draw), _Dirichlet.in_place():
            return fn(draw)

    for function in (one, own_memory):
        with contextlib.suppress(Exception):  # vmap raises many types; the last way always works
            mapped = _quietly(torch.vmap(function, randomness="different"))
            return mapped, mapped(part)
    try:
        with torch.no_grad(), _without_fallback_warnings():
            plain = _plain(one, first)
            _compare(plain, one, part)
        mapped = _quietly(torch.vmap(plain, randomness="different"))
        return mapped, mapped(part)
    except Exception as error:
        reason = str(error).splitlines()[0]
    _warn_slow(
        reason,
        "The usual cause is Python control flow that depends on the value of a site: use "
        "torch.where() instead of `if`, and do not read values by .item(), float() or .numpy().",
    )
    mapped = _each(fn)
    return mapped, mapped(part)


def _compare(plain: Callable[[Any], Any], one: Callable[[Any], Any], part: Any) -> None:
    """Compare recorded operations with the function, at other draws and the same random numbers.

    Raises:
        ProbdlError: they differ.
    """
    count = len(tree_leaves(part)[0])
    for i in sorted({count * k // COMPARED_DRAWS for k in range(COMPARED_DRAWS)}, reverse=True):
        draw = tree_map(lambda x, i=i: x[i], part)
        results = []
        for function in (one, plain):
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(i)
                results.append(tree_leaves(function(draw)))
        for expected, found in zip(*results, strict=True):
            tolerance = 1e-4 if expected.dtype == torch.float32 else 1e-8
            if not torch.allclose(found, expected, tolerance, tolerance, equal_nan=True):
                raise ProbdlError("Python code reads the value of a tensor that changes")


def _warn_slow(reason: str, advice: str) -> None:
    warn(
        f"The model cannot be evaluated for all draws at once ({reason}), so it runs once per "
        f"draw, which is slow. {advice}"
    )
