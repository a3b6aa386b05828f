"""Effect handlers that put values into a program: for its sites, its data, its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import TransformedDistribution
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from probdl.errors import DataError
from probdl.model.arguments import check_dense
from probdl.model.distributions import (
    NAN_MASKED,
    base_distribution,
    combined_mask,
    is_deterministic,
)

__all__ = [
    "CastObservations",
    "FreshTransforms",
    "LeaveOut",
    "MinibatchPlates",
    "ParallelEnumeration",
    "Substitute",
    "replaced",
]

_REQUIRES_GRAD = Tensor.requires_grad.__get__  # type: ignore[attr-defined]


class Substitute(Messenger):
    """Set latent and param sites to given values, and leave the others to be sampled.

    A latent site keeps its own distribution but is not sampled. A value whose shape differs from
    the site's shape is not used: the site is then sampled from its conditional prior.

    Args:
        values: the values by site.
        fit_value: a function of name, value and distribution that makes a value fit the site at
            other arguments, such as a group effect at new groups; it returns None to leave the
            site to be sampled.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        fit_value: Callable[[str, Tensor, Any], Tensor | None] | None = None,
    ) -> None:
        super().__init__()
        self.values = values
        self.fit_value = fit_value

    def _pyro_sample(self, msg: Any) -> None:
        value = self.values.get(msg["name"])
        if value is None or msg["is_observed"] or msg["done"]:
            return
        shape = msg["fn"].shape()
        if self.fit_value is not None:
            value = self.fit_value(msg["name"], value, msg["fn"])
            if value is not None:  # discrete sites may add dimensions to the distribution
                shape = shape[len(shape) - value.ndim :]
        if value is not None and value.shape == shape:
            msg["value"] = value

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]


class CastObservations(Messenger):
    """Convert observed values to tensors of the program's dtype.

    Args:
        dtype: the dtype.
        fills: by site, an event that takes the place of masked ones, which may be NaN.
        masks_missing: whether to mask observations that are NaN.
    """

    def __init__(
        self, dtype: torch.dtype, fills: Mapping[str, Tensor], *, masks_missing: bool = False
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.fills = fills
        self.masks_missing = masks_missing

    def _pyro_sample(self, msg: Any) -> None:
        value = msg["value"]
        if not msg["is_observed"] or value is None:
            return
        if not isinstance(value, Tensor):
            try:
                value = torch.as_tensor(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise DataError(
                    f"Site '{msg['name']}': the observed value is a {type(value).__name__} that "
                    f"does not convert to a tensor ({error}). Pass a tensor or a numeric array."
                ) from None
        check_dense(value, f"Site '{msg['name']}', the observed data,")
        # The labels of a Bernoulli are often integers, and torch scores floating-point labels
        # only. Booleans have no arithmetic in torch.
        is_binary = value.dtype == torch.bool or isinstance(
            base_distribution(msg["fn"]), dist.Bernoulli
        )
        if value.is_floating_point() or is_binary:
            value = value.to(self.dtype)
        if self.masks_missing and value.is_floating_point() and not is_deterministic(msg):
            _mask_missing(msg, value.isnan())
        if (fill := self.fills.get(msg["name"])) is not None:
            value = torch.where(combined_mask(msg), value, fill)
        msg["value"] = value


def _mask_missing(msg: Any, missing: Tensor) -> None:
    """Mask elements of an observed site, or whole events of a multivariate distribution."""
    fn = msg["fn"]
    if isinstance(base_distribution(fn), (dist.Unit, *NAN_MASKED)):
        return
    if fn.event_dim and base_distribution(fn).event_dim == 0 and isinstance(fn, dist.Independent):
        base = fn.base_dist
        wide = base.expand(torch.broadcast_shapes(base.batch_shape, missing.shape))
        msg["fn"] = dist.Independent(wide.mask(~missing), fn.reinterpreted_batch_ndims)
        return
    kept = ~(missing.flatten(-fn.event_dim).any(-1) if fn.event_dim else missing)
    msg["mask"] = kept if msg["mask"] is None else msg["mask"] & kept


class LeaveOut(Messenger):
    """Leave rows of a plate out of the likelihood, and keep their latent values.

    Args:
        plate: the name of the plate.
        kept: which rows count, (rows,), bool.
        imputed: by site, which elements of its batch count in any case, since their values are
            latent: they are no observations.
    """

    def __init__(self, plate: str, kept: Tensor, imputed: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.plate = plate
        self.kept = kept
        self.imputed = imputed

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] or site_is_subsample(msg):
            return
        for frame in msg["cond_indep_stack"]:
            if frame.name == self.plate and frame.dim is not None:
                mask = self.kept.reshape(-1, *[1] * (-frame.dim - 1))
                if (imputed := self.imputed.get(msg["name"])) is not None:
                    mask = mask | imputed
                msg["mask"] = mask if msg["mask"] is None else msg["mask"] & mask


class ParallelEnumeration(Messenger):
    """Sum out sites that ask for sequential enumeration in one run instead of several."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["infer"].get("enumerate") == "sequential":
            msg["infer"] = msg["infer"] | {"enumerate": "parallel"}


class FreshTransforms(Messenger):
    """Let the transforms of a distribution forget the values of earlier runs.

    A transform keeps its last value and the point that it maps to it. With data, which are the same
    in every run, it would return the point of other parameters.
    """

    def _pyro_sample(self, msg: Any) -> None:
        fn = base_distribution(msg["fn"])
        for transform in fn.transforms if isinstance(fn, TransformedDistribution) else ():
            _forget(transform)


def _forget(transform: Any) -> None:
    if transform._cache_size:
        transform._cached_x_y = None, None
    for part in getattr(transform, "parts", ()):
        _forget(part)
    if (base := getattr(transform, "base_transform", None)) is not None:
        _forget(base)


class MinibatchPlates(Messenger):
    """Let a plate of all rows hold those of a minibatch.

    With ``plate("data", N, subsample_size=len(x))``, Pyro draws random indices and scales the sites
    by N / len(x). Here the rows are those of the arguments, and the method scales the sites.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            if msg["value"] is None and msg["fn"].subsample_size is not None:
                msg["value"] = torch.arange(msg["fn"].subsample_size)
            return
        for frame in msg["cond_indep_stack"]:
            if frame.full_size is not None and frame.full_size != frame.size:
                msg["scale"] = msg["scale"] * (frame.size / frame.full_size)


class _ReplaceTensors(TorchFunctionMode):
    """Replace tensors, such as a module's parameters, wherever torch functions receive them.

    A network reads its parameters as attributes, not through Pyro, so new values can only be
    substituted at the calls of torch.

    Args:
        values: the replacement by the ``id`` of the original tensor.
    """

    def __init__(self, values: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _replace(self, x: Any) -> Any:
        if isinstance(x, (list, tuple, dict)):  # tree_map costs more than most operations
            return tree_map(self._replace_leaf, x) if x else x
        return self._replace_leaf(x)

    def _replace_leaf(self, x: Any) -> Any:
        return self.values.get(id(x), x)

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func == _REQUIRES_GRAD:  # Pyro reads it to recognise the original parameter
            return func(*args)
        return func(*map(self._replace, args), **self._replace(kwargs or {}))


def replaced(values: Mapping[int, Tensor]) -> AbstractContextManager[Any]:
    """Replace the tensors with these ids in all calls of torch, within a context."""
    return _ReplaceTensors(values) if values else nullcontext()
