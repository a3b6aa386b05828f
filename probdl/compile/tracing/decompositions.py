"""Decompositions of operations without a C form into operations with one.

Most are torch's own. The others are for operations that torch counts among its core and does not
decompose, and for common ones whose decomposition in torch imports its compiler, which takes a
second.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, _decomp
from torch._decomp import decomposition_table

from probdl.compile.codegen import emit

__all__ = ["decompositions", "functional_decompositions"]

aten = torch.ops.aten

_TORCH_MODULE = "torch._decomp.decompositions"

# Their decompositions are wrapped in functions that cast numbers of half precision, which there are
# not here, and that import SymPy, which takes a quarter of a second.
_CASTING = (
    aten._log_softmax_backward_data.default,
    aten._softmax_backward_data.default,
    aten.elu_backward.default,
    aten.gelu_backward.default,
    aten.hardtanh_backward.default,
    aten.leaky_relu_backward.default,
    aten.log_sigmoid_backward.default,
    aten.log_sigmoid_forward.default,
    aten.sigmoid_backward.default,
    aten.silu.default,
    aten.silu_backward.default,
    aten.softplus_backward.default,
    aten.tanh_backward.default,
)


def _core() -> Any:
    """Return torch's core list.

    Its public function adds all operations that autograd resolves before they are traced, which
    takes a tenth of a second.
    """
    name = "_core_aten_decompositions_post_autograd"
    return getattr(_decomp, name, _decomp.core_aten_decompositions)()


@functools.cache
def decompositions() -> dict[Any, Callable[..., Any]]:
    """Return the decomposition of each operation."""
    # Besides torch's core list, use its decompositions of operations that the list keeps, but not
    # its reference implementations, which result in operations of another kind.
    extra = {op: fn for op, fn in decomposition_table.items() if fn.__module__ == _TORCH_MODULE}
    table = extra | dict(_core().items())
    table |= {op: inspect.unwrap(table[op]) for op in _CASTING if op in table}
    return {op: fn for op, fn in table.items() if not emit.supports(op)} | {
        aten._log_softmax.default: _log_softmax,
        aten._softmax.default: _softmax,
        aten.addcdiv.default: lambda x, a, b, *, value=1: x + value * (a / b),
        aten.addcmul.default: lambda x, a, b, *, value=1: x + value * (a * b),
        aten.cholesky_inverse.default: _cholesky_inverse,
        aten.cholesky_solve.default: _cholesky_solve,
        aten.elu.default: _elu,
        aten.eye.default: lambda n, **options: _eye(n, n, **options),
        aten.eye.m: _eye,
        aten.gelu.default: _gelu,
        aten.hardtanh.default: lambda x, low=-1.0, high=1.0: x.clamp(low, high),
        aten.index.Tensor: _index,
        aten.index_put.default: _index_put,
        aten.index_put_.default: _index_put_in_place,
        aten.index_select.default: _index_select,
        aten.leaky_relu.default: lambda x, slope=0.01: torch.where(x > 0, x, x * slope),
        aten.linalg_vector_norm.default: _norm,
        aten.logit.default: _logit,
        aten.logsumexp.default: _logsumexp,
        aten.masked_scatter.default: _masked_scatter,
        aten.masked_scatter_backward.default: _masked_scatter_backward,
        aten.max.default: lambda x: x.amax(_all(x)),
        aten.mean.default: lambda x, dtype=None: _mean(x, dtype=dtype),
        aten.mean.dim: _mean,
        aten.min.default: lambda x: x.amin(_all(x)),
        aten.ones.default: lambda size, **options: torch.full(size, 1.0, **_typed(options)),
        aten.repeat.default: _repeat,
        aten.softplus.default: _softplus,
        aten.std.correction: lambda x, dim=None, **options: _var(x, dim, **options).sqrt(),
        aten.trace.default: lambda x: x.diagonal().sum(),
        aten.var.correction: _var,
        aten.zeros.default: lambda size, **options: torch.full(size, 0.0, **_typed(options)),
    }


@functools.cache
def functional_decompositions() -> dict[Any, Callable[..., Any]]:
    """Return the decompositions of a program without writes in place.

    There, other strides of a tensor's memory, by which autograd differentiates writes to views, are
    slices of the tensor, or else elements at other places.
    """
    return decompositions() | {
        aten.as_strided.default: _as_strided,
        aten.as_strided_copy.default: _as_strided,
        aten.as_strided_scatter.default: _as_strided_scatter,
        aten.new_empty_strided.default: _new_empty_strided,
    }


def _places(size: Sequence[int], stride: Sequence[int], offset: int | None) -> Tensor:
    """Return the places in memory (*size) of the elements of a strided tensor."""
    places = torch.full((), offset or 0)
    for length, step in zip(size, stride, strict=True):
        places = places[..., None] + step * torch.arange(length)
    return places


def _as_strided(
    x: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> Any:
    slices = _slices(x, size, stride, storage_offset)
    if slices is not None:
        for dim, part in slices:
            x = _sliced(x, dim, part)
        return x.reshape(tuple(size))
    places = _own_places(x, size, stride, storage_offset)
    if places is None:
        return NotImplemented
    return x.reshape(-1)[places.reshape(-1)].reshape(tuple(size))


def _as_strided_scatter(
    x: Tensor,
    src: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    storage_offset: int | None = None,
) -> Any:
    slices = _slices(x, size, stride, storage_offset)
    if slices is not None:
        return _with_slice(x, slices, src.expand(tuple(size)))
    own = _own_places(x, size, stride, storage_offset)
    if own is None:
        return NotImplemented
    places = own.reshape(-1)
    source = torch.arange(x.numel())
    source[places] = x.numel() + torch.arange(len(places))
    both = torch.cat([x.reshape(-1), src.expand(tuple(size)).reshape(-1)])
    return both[source].reshape(x.shape)


def _slices(
    x: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None
) -> list[tuple[int, int | slice]] | None:
    """Return the indices and slices of dimensions, from the last one, that are a strided view.

    None if it is not a view by these.
    """
    if not x.is_contiguous() or not x.numel():
        return None
    first = int(x.storage_offset())
    offset = 0 if storage_offset is None else storage_offset - first
    if not 0 <= offset < x.numel():
        return None
    wanted = [(n, step) for n, step in zip(size, stride, strict=True) if n != 1]
    found: list[tuple[int, int | slice]] = []
    for dim, (length, step) in enumerate(zip(x.shape, x.stride(), strict=True)):
        if length == 1:
            continue
        start, offset = divmod(offset, step)
        if wanted and wanted[0][1] % step == 0 and wanted[0][1] >= step:
            every, count = wanted[0][1] // step, wanted[0][0]
            if start + (count - 1) * every < length:
                if count < length:
                    found.append((dim, slice(start, start + (count - 1) * every + 1, every)))
                del wanted[0]
                continue
        found.append((dim, start))
    return None if wanted or not all(size) else found[::-1]


def _sliced(x: Tensor, dim: int, part: int | slice) -> Tensor:
    if isinstance(part, int):
        return x.select(dim, part)
    return aten.slice(x, dim, part.start, part.stop, part.step)  # type: ignore[no-any-return]


def _with_slice(x: Tensor, slices: Sequence[tuple[int, int | slice]], src: Tensor) -> Tensor:
    """Return a tensor with another part at indices and slices of its dimensions."""
    if not slices:
        return src.reshape(x.shape)
    (dim, part), *others = slices
    inner = _with_slice(_sliced(x, dim, part), others, src)
    if isinstance(part, int):
        return torch.select_scatter(x, inner, dim, part)
    return torch.slice_scatter(x, inner, dim, part.start, part.stop, part.step)


def _new_empty_strided(x: Tensor, size: Sequence[int], stride: Sequence[int], **_: Any) -> Any:
    contiguous = torch.empty(tuple(size), device="meta").stride()
    return x.new_zeros(tuple(size)) if tuple(stride) == contiguous else NotImplemented


def _own_places(
    x: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None
) -> Tensor | None:
    """Return which elements of a tensor, in order, a strided view has; None if it has others."""
    if not x.is_contiguous():
        return None
    first = int(x.storage_offset())
    places = _places(size, stride, first if storage_offset is None else storage_offset) - first
    inside = not places.numel() or (int(places.min()) >= 0 and int(places.max()) < x.numel())
    return places if inside else None


def _all(x: Tensor, dim: Any = None) -> list[int]:
    """Return the dimensions as a list; all of them if none are given."""
    return [dim] if isinstance(dim, int) else list(dim or range(x.ndim))


def _typed(options: dict[str, Any]) -> dict[str, Any]:
    """Fill in the dtype that torch uses if none is given."""
    return options | {"dtype": options.get("dtype") or torch.get_default_dtype()}


def _eye(rows: int, columns: int, **options: Any) -> Tensor:
    dtype = _typed(options)["dtype"]  # torch's own counts in a dtype without CPU kernels
    return (torch.arange(rows)[:, None] == torch.arange(columns)).to(dtype)


def _logit(x: Tensor, eps: float | None = None) -> Tensor:
    x = x if eps is None else x.clamp(eps, 1 - eps)
    return (x / (1 - x)).log()


def _logsumexp(x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    dims = _all(x, dim)
    top = x.amax(dims, keepdim=True)
    top = top.masked_fill(top.abs() == math.inf, 0.0)
    total = (x - top).exp().sum(dims, keepdim=keepdim).log()
    return total + (top if keepdim else top.squeeze(dims))


def _softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    scaled = x * beta
    return torch.where(scaled > threshold, x, scaled.exp().log1p() / beta)


def _log_softmax(x: Tensor, dim: int, _: bool) -> Tensor:
    if not x.numel():
        return x + 0.0
    shifted = x - x.amax(dim, keepdim=True)
    return shifted - shifted.exp().sum(dim, keepdim=True).log()


def _softmax(x: Tensor, dim: int, _: bool) -> Tensor:
    if not x.numel():
        return x + 0.0
    powers = (x - x.amax(dim, keepdim=True)).exp()
    return powers / powers.sum(dim, keepdim=True)


def _mean(x: Tensor, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
    dims = _all(x, dim)
    total = x.sum(dims, keepdim=keepdim, dtype=dtype)
    return total / math.prod(x.shape[d] for d in dims)


def _norm(
    x: Tensor, ord: float = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Tensor:
    dims = _all(x, dim)
    x = x if dtype is None else x.to(dtype)
    if ord == float("inf"):
        return x.abs().amax(dims, keepdim=keepdim)
    if ord == 2:
        return x.square().sum(dims, keepdim=keepdim).sqrt()
    if ord == 1:
        return x.abs().sum(dims, keepdim=keepdim)
    return NotImplemented


def _elu(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    return torch.where(x > 0, x * scale, torch.expm1(x * input_scale) * (alpha * scale))


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + torch.erf(x * math.sqrt(0.5)))


def _index_select(x: Tensor, dim: int, index: Tensor) -> Tensor:
    if not x.ndim:
        return NotImplemented
    return aten.index.Tensor(x, [None] * (dim % x.ndim) + [index])


def _repeat(x: Tensor, repeats: Sequence[int]) -> Tensor:
    sizes = [1] * (len(repeats) - x.ndim) + list(x.shape)
    apart = x.reshape([n for size in sizes for n in (1, size)])
    spread = apart.expand([n for pair in zip(repeats, sizes, strict=True) for n in pair])
    return spread.reshape([r * n for r, n in zip(repeats, sizes, strict=True)])


def _masks_as_positions(indices: Sequence[Tensor | None]) -> list[Tensor | None] | None:
    """Replace masks among indices by positions, computed from the data; None if there are none."""
    masks = (torch.bool, torch.uint8)
    if not any(i is not None and i.dtype in masks for i in indices):
        return None
    positions: list[Tensor | None] = []
    for index in indices:
        if index is None or index.dtype not in masks:
            positions.append(index)
        else:
            positions.extend(index.nonzero().unbind(1))
    return positions


def _masked_scatter(x: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    x, mask = torch.broadcast_tensors(x, mask)
    positions = mask.reshape(-1).nonzero()[:, 0]  # computed from the data
    values = source.reshape(-1)[: len(positions)]
    return aten.index_put.default(x.reshape(-1), [positions], values).reshape(x.shape)


def _masked_scatter_backward(grad: Tensor, mask: Tensor, sizes: Sequence[int]) -> Tensor:
    positions = mask.expand(grad.shape).reshape(-1).nonzero()[:, 0]
    values = grad.reshape(-1)[positions]
    rest = values.new_zeros(math.prod(sizes) - len(positions))
    return torch.cat([values, rest]).reshape(tuple(sizes))


def _index(x: Tensor, indices: Sequence[Tensor | None]) -> Any:
    positions = _masks_as_positions(indices)
    return NotImplemented if positions is None else aten.index.Tensor(x, positions)


def _index_put(
    x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False
) -> Any:
    if (mask := _mask_of_elements(x, indices, values, accumulate)) is not None:
        return torch.where(mask, values, x)
    positions = _masks_as_positions(indices)
    if positions is None:
        return NotImplemented
    return aten.index_put.default(x, positions, values, accumulate)


def _index_put_in_place(
    x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False
) -> Any:
    if not any(index is not None and index.dtype == torch.bool for index in indices):
        return NotImplemented
    return x.copy_(aten.index_put.default(x, indices, values, accumulate))


def _mask_of_elements(
    x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool
) -> Tensor | None:
    """Return the mask in ``x[mask] = number``, whose shape does not depend on values."""
    index = indices[0] if len(indices) == 1 else None
    if accumulate or values.ndim or index is None or index.dtype != torch.bool:
        return None
    return index if index.shape == x.shape else None


def _var(
    x: Tensor, dim: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> Tensor:
    dims = _all(x, dim)
    total = (x - x.mean(dims, keepdim=True)).square().sum(dims, keepdim=keepdim)
    count = math.prod(x.shape[d] for d in dims)
    return total / max(count - (1 if correction is None else correction), 0)


def _cholesky_inverse(factor: Tensor, upper: bool = False) -> Tensor:
    unit = torch.eye(factor.shape[-1], dtype=factor.dtype).expand_as(factor)
    inverse = torch.linalg.solve_triangular(factor, unit, upper=upper)
    return inverse @ inverse.mH if upper else inverse.mH @ inverse


def _cholesky_solve(right: Tensor, factor: Tensor, upper: bool = False) -> Tensor:
    lower = factor.mH if upper else factor
    half = torch.linalg.solve_triangular(lower, right, upper=False)
    return torch.linalg.solve_triangular(lower.mH, half, upper=True)
