"""The sites that ``pyro.sample(name, ..., obs_mask=)`` makes, without their unused elements.

Pyro makes two sites of one statement: ``<name>_observed``, with the observed elements, and
``<name>_unobserved``, a latent site of the same shape, of which only the other elements are used.
The density is flat along the rest, so that no sampler can draw it, and the entropy of a guide has
no bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import MaskedDistribution, TorchDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import constraints

from probdl.model.bijections import bijection_to

__all__ = ["UNOBSERVED", "ObsMask", "used_elements"]

OBSERVED, UNOBSERVED = "_observed", "_unobserved"


def used_elements(trace: Trace) -> dict[str, Tensor]:
    """Find which elements of the latent sites of ``obs_mask`` have an effect.

    Args:
        trace: a run of the program.

    Returns:
        By continuous latent site, a mask (*batch shape); sites that are used as a whole are left
        out. Empty if there are discrete sites to sum out, which may be in the same plates.
    """
    nodes: Any = trace.nodes
    latent = [n for n in nodes.values() if n["type"] == "sample" and not n["is_observed"]]
    if any(node["fn"].support.is_discrete for node in latent if not site_is_subsample(node)):
        return {}
    found = {}
    for name, node in nodes.items():
        stem = name.removesuffix(UNOBSERVED)
        observed, joined = nodes.get(stem + OBSERVED), nodes.get(stem)
        if stem == name or joined is None or observed is None or not observed["is_observed"]:
            continue
        fn, value = node["fn"], node["value"]
        if value.shape != joined["value"].shape or _has_own_bounds(fn.support):
            continue
        used = value == joined["value"]
        if fn.event_dim:
            used = used.flatten(-fn.event_dim).all(-1)
        if not used.all() and _is_made_of(joined["value"], node, observed, used):
            found[name] = used
    return found


def _is_made_of(joined: Tensor, latent: Any, observed: Any, used: Tensor) -> bool:
    """Return whether a value has observed elements where the latent ones are masked and unused."""
    fn = latent["fn"]
    if not isinstance(fn, _NormalWhere) or bool((fn.chosen & used).any()):
        return False
    places = used.reshape(used.shape + (1,) * fn.event_dim)
    return torch.equal(joined, torch.where(places, latent["value"], observed["value"]))


def _has_own_bounds(support: Any) -> bool:
    """Return whether the elements of a value have different supports."""
    parts = vars(support).values()
    return any(
        x.numel() > 1 if isinstance(x, Tensor) else _has_own_bounds(x)
        for x in parts
        if isinstance(x, (Tensor, constraints.Constraint))
    )


class ObsMask(Messenger):
    """Reduce the latent sites of ``obs_mask`` to the elements that are used.

    To other handlers, such a site is a vector of the used elements, without plates, or does not
    exist if there is no such element; the program gets a value of the full shape. The unused
    elements of other sites get a density that integrates to 1 and does not depend on other sites.

    Args:
        used: by site, a mask (*batch shape) of the used elements.
        minibatch: whether the rows are a part of the data. Then continuous sites, which only a
            guide of the user's can have, are as Pyro makes them.
    """

    def __init__(self, used: Mapping[str, Tensor], *, minibatch: bool) -> None:
        super().__init__()
        self.used = used
        self.minibatch = minibatch
        self._observed: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if not isinstance(name, str):  # which is reported elsewhere
            return
        if msg["is_observed"]:
            if name.endswith(OBSERVED):
                self._observed[name.removesuffix(OBSERVED)] = msg
            return
        if (used := self.used.get(name)) is None:
            self._score(msg)
        elif msg["fn"].batch_shape != used.shape:  # an automatic guide, made for the used elements
            return
        elif used.any():
            msg["fn"] = UsedElements(msg["fn"], used, msg["mask"], msg["scale"])
            msg["mask"], msg["scale"] = None, 1.0
            frames = msg["cond_indep_stack"]
            msg["cond_indep_stack"] = tuple(frame for frame in frames if not frame.vectorized)
        else:
            msg["stop"] = True
            if (observed := self._observed.get(name.removesuffix(UNOBSERVED))) is not None:
                msg["value"] = observed["value"]

    def _score(self, msg: Any) -> None:
        observed = self._observed.get(msg["name"].removesuffix(UNOBSERVED))
        if observed is None or msg["name"] == observed["name"].removesuffix(OBSERVED):
            return
        if not (isinstance(msg["mask"], Tensor) and isinstance(observed["mask"], Tensor)):
            return
        unused = observed["mask"] & ~msg["mask"]
        if not msg["fn"].support.is_discrete:  # the probabilities of a discrete site add up to 1
            if self.minibatch:
                return
            msg["fn"] = _NormalWhere(msg["fn"], unused)
        msg["mask"] = msg["mask"] | unused

    def _pyro_post_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], UsedElements):
            msg["value"] = msg["fn"].scatter(msg["value"])


class UsedElements(TorchDistribution):
    """The distribution of some elements of another one, as one event.

    Args:
        base_dist: the distribution of all elements.
        used: which elements there are, of its batch shape.
        mask: the mask of the log density, if any.
        scale: the factor of the log density.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, base_dist: Any, used: Tensor, mask: Any, scale: Any) -> None:
        self.base_dist, self.used = base_dist, used
        self.counted = used if mask is None else used & mask
        self.scale = scale
        event = torch.Size([int(used.sum())]) + base_dist.event_shape
        super().__init__(torch.Size(), event, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return bool(self.base_dist.has_rsample)

    @constraints.dependent_property
    def support(self) -> Any:
        return constraints.independent(self.base_dist.support, 1)

    def scatter(self, value: Tensor) -> Tensor:
        """Return values (*batch, *event) of the whole distribution, with copies where unused."""
        index = (self.used.reshape(-1).cumsum(0) - 1).clamp_(min=0)
        axis = value.ndim - len(self.event_shape)
        full = value.index_select(axis, index)
        return full.reshape(value.shape[:axis] + self.used.shape + self.base_dist.event_shape)

    def _select(self, value: Tensor) -> Tensor:
        """Return the used elements of values (*sample, *batch, *event)."""
        event = len(self.base_dist.event_shape)
        lead = value.ndim - event - self.used.ndim
        flat = value.flatten(lead, lead + self.used.ndim - 1)
        return flat.index_select(lead, self.used.reshape(-1).nonzero()[:, 0])

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        return self._select(self.base_dist.rsample(sample_shape))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        return self._select(self.base_dist.sample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        log_prob = self.base_dist.log_prob(self.scatter(value)) * self.scale
        return torch.where(self.counted, log_prob, 0.0).flatten(-self.used.ndim).sum(-1)


class _NormalWhere(MaskedDistribution):
    """A distribution, but for some elements, which are standard normal in R^n.

    Args:
        base_dist: the distribution.
        chosen: which elements, of its batch shape, are normal.
    """

    def __init__(self, base_dist: Any, chosen: Tensor) -> None:
        self.chosen = chosen
        super().__init__(base_dist, True)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _NormalWhere:
        shape = torch.Size(batch_shape)
        return _NormalWhere(self.base_dist.expand(shape), self.chosen)

    def log_prob(self, value: Tensor) -> Tensor:
        transform = bijection_to(self.support)
        z = transform.inv(value)
        normal = -0.5 * (z**2 + math.log(2 * math.pi))
        if transform.domain.event_dim:
            normal = normal.flatten(-transform.domain.event_dim).sum(-1)
        normal = normal - transform.log_abs_det_jacobian(z, value)
        return torch.where(self.chosen, normal, self.base_dist.log_prob(value))
