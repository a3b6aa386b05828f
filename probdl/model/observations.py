"""Checks of the data of an observed site: finite, of a matching shape, and in the support."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.contrib.mue.missingdatahmm import MissingDataDiscreteHMM
from pyro.distributions.hmm import HiddenMarkovModel
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import constraints

from probdl.errors import DataError
from probdl.model.arguments import check_finite, format_index
from probdl.model.distributions import (
    NAN_MASKED,
    base_distribution,
    combined_mask,
    distribution_name,
    is_deterministic,
)
from probdl.model.program import Program

__all__ = ["check_observed", "fill_of", "scored_elements", "vectorized_plates"]

MAX_SHOWN_CATEGORIES = 6
SERIES = (HiddenMarkovModel, MissingDataDiscreteHMM)


def check_observed(program: Program, node: Any, other: Any) -> None:
    """Check that the data of a site are finite, of matching shape, and in the support."""
    name, fn, value = node["name"], node["fn"], node["value"]
    if isinstance(base_distribution(fn), dist.Unit):
        return
    marginal = isinstance(base_distribution(fn), NAN_MASKED)  # it leaves out what is NaN
    checked = value.nan_to_num(posinf=math.inf, neginf=-math.inf) if marginal else value
    check_finite(checked, f"Site '{name}', the observed data")
    source = next((n for n, t in program.named_data() if shares_data(t, value)), None)
    hint = f"Check the observed data{f' passed as {source!r}' if source else ''}."
    batch = value.shape[: value.ndim - fn.event_dim]
    plates = [f"plate '{frame.name}' of size {frame.size}" for frame in vectorized_plates(node)]
    try:
        both = broadcast_shape(batch, fn.batch_shape)
        event_fits = value.shape[value.ndim - fn.event_dim :] == fn.event_shape or isinstance(
            base_distribution(fn), SERIES
        )  # which accept any length if their parameters are constant in time
    except ValueError:
        both, event_fits = None, True
    if both is None or both not in (batch, fn.batch_shape) or not event_fits:
        raise DataError(
            f"Site '{name}': the observed data of shape {tuple(value.shape)} do not match the "
            f"distribution {distribution_name(fn)} of batch shape {tuple(fn.batch_shape)} and "
            f"event shape {tuple(fn.event_shape)} ({', '.join(plates) or 'no plate'}). {hint} "
            "Common causes are a column of shape (n, 1) instead of (n,), and a plate of a "
            f"different size.{program.row_advice}"
        )
    _check_repeated(program, node, batch, both, hint)
    _check_totals(name, base_distribution(fn), value, hint)
    supports = [_elementwise(node["fn"].support) for node in (node, other)]
    try:
        inside, again = (_check(support, value) for support, _ in supports)
    except NotImplementedError:  # the distribution does not define its support
        return
    mask = combined_mask(node)
    for _ in range(fn.event_dim - supports[0][1]):  # the support is checked per event there
        mask = mask.any(-1) if mask.ndim else mask
    # A support that depends on latent sites, as in Uniform(0, theta), may hold the data elsewhere.
    outside = ~inside & ~again & mask
    if marginal:
        missing = value.isnan()
        outside = outside & ~(missing.any(-1) if missing.ndim > outside.ndim else missing)
    if not outside.any() or not _same_support(fn.support, other["fn"].support):
        return
    encoding = program.encodings.get(source or "")
    categories = encoding.labels if encoding is not None and encoding.kind == "categories" else ()
    if isinstance(base_distribution(fn), dist.Bernoulli) and not categories:
        hint += (
            " A Bernoulli accepts 0 and 1 only: binarise the data, or use ContinuousBernoulli for "
            "values in between."
        )
    index = tuple(outside.nonzero()[0].tolist())
    event = value.shape[value.ndim - fn.event_dim + supports[0][1] :]
    example = value.expand(broadcast_shape(value.shape, outside.shape + event))[index]
    shown = example.item() if example.numel() == 1 else example.tolist()
    at = f"index {format_index(index)} = {shown}" if index else f"{shown}"
    if categories and shown in range(len(categories)):
        at += f", the code of {categories[int(shown)]!r}"
        hint += f" The categories are {', '.join(map(repr, categories[:MAX_SHOWN_CATEGORIES]))}"
        hint += "." if len(categories) <= MAX_SHOWN_CATEGORIES else ", ..."
    raise DataError(
        f"Site '{name}': {int(outside.sum())} of {outside.numel()} values are outside the support "
        f"of {distribution_name(fn)} (first: {at}). {hint}"
    )


def fill_of(node: Any, *, always: bool = False, masked: bool = False) -> Tensor | None:
    """Return an observed event that may stand for masked ones that are NaN; None if none is NaN.

    Where the log density of NaN is masked, its gradient would still be NaN.

    Args:
        node: an observed site.
        always: whether to return one if no value is NaN, but some are masked.
        masked: whether values that are NaN are masked in any case.

    Raises:
        DataError: they are, and a part of a multivariate event is NaN.
    """
    fn, value = node["fn"], node["value"]
    unscored = is_deterministic(node) or isinstance(base_distribution(fn), dist.Unit)
    if unscored or not value.is_floating_point() or isinstance(base_distribution(fn), NAN_MASKED):
        return None
    missing = value.isnan()
    events = (missing.flatten(-fn.event_dim).any(-1) if fn.event_dim else missing).reshape(-1)
    if not (events.any() or always):
        return None
    if not masked and combined_mask(node).all():
        return None
    elementwise = base_distribution(fn).event_dim == 0  # in to_event()
    if masked and not elementwise:
        whole = missing.flatten(-fn.event_dim).all(-1).reshape(-1)
        if not torch.equal(events, whole):
            raise DataError(
                f"Site '{node['name']}': a part of some observations is missing, and "
                f"{distribution_name(fn)} has no density of the rest. For a MultivariateNormal, "
                "use dist.NanMaskedMultivariateNormal; for a time series, a latent state for each "
                "time and an observation of each; for independent rows, leave these out."
            )
    if missing.all():
        return _possible(fn)
    if events.all():
        return value[~missing][0].detach().clone() if elementwise else None
    rows = value.reshape(len(events), *value.shape[value.ndim - fn.event_dim :])
    return rows[~events][0].detach().clone()


def _possible(fn: Any) -> Tensor | None:
    """Return an event of a distribution; None if it cannot be sampled."""
    try:
        drawn: Tensor = fn.sample().detach()
    except Exception:  # sampling is code of others
        return None
    return drawn.reshape(-1, *drawn.shape[drawn.ndim - fn.event_dim :])[0].clone()


def _check_repeated(
    program: Program, node: Any, batch: Sequence[int], both: Sequence[int], hint: str
) -> None:
    """Check that broadcasting does not observe the same data several times by mistake."""
    if tuple(batch) == tuple(both):
        return
    name, value = node["name"], node["value"]
    planned = {frame.dim for frame in vectorized_plates(node)}
    padded = (1,) * (len(both) - len(batch)) + tuple(batch)
    repeated = [i - len(both) for i in range(len(both)) if padded[i] != both[i]]
    outside = [dim for dim in repeated if dim not in planned]
    if outside and math.prod(batch) > 1:
        raise DataError(
            f"Site '{name}': the observed data of shape {tuple(value.shape)} would be used "
            f"{both[outside[0]]} times, because the distribution has batch shape {tuple(both)}, "
            f"whose dimension {outside[0]} belongs to no plate. A predictor of shape (n, 1) "
            "instead of (n,) is the usual cause: pass x[:, 0], or df['x'] instead of df[['x']]. "
            f"{hint}"
        )
    given = [t for _, t in program.named_data() if t.data_ptr() == value.data_ptr()]
    if math.prod(batch) == 1 and math.prod(both) > 1 and given:
        raise DataError(
            f"Site '{name}': the observed data are a single value of shape {tuple(value.shape)}, "
            f"and the distribution has batch shape {tuple(both)}. {hint} If the value is meant for "
            "all of them, expand it."
        )


def _check_totals(name: str, fn: Any, value: Tensor, hint: str) -> None:
    """Check that counts sum to the number of trials, which the support does not check."""
    if not isinstance(fn, dist.Multinomial):
        return
    totals = value.sum(-1)
    if (totals != fn.total_count).any():
        raise DataError(
            f"Site '{name}': the counts of a Multinomial must sum to its total_count, "
            f"{fn.total_count}, but sum to {sorted(set(totals.reshape(-1).tolist()))[:5]}. {hint}"
        )


def _elementwise(support: Any) -> tuple[Any, int]:
    """Return the support of single elements, and the number of event dimensions removed."""
    removed = 0
    while isinstance(support, constraints.independent):
        removed += support.reinterpreted_batch_ndims
        support = support.base_constraint
    return support, removed


def _check(support: Any, value: Tensor) -> Tensor:
    """Return which values are in a support.

    Vectors and matrices with an equation, such as unit vectors, often come from float32, where they
    satisfy it only to that precision.
    """
    inside: Tensor = support.check(value)
    if support.event_dim and value.dtype == torch.float64 and not inside.all():
        inside = inside | support.check(value.float())
    return inside


def shares_data(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and (a.data_ptr() == b.data_ptr() or torch.equal(a, b.to(a.dtype)))


def _same_support(a: Any, b: Any) -> bool:
    """Return whether two constraints, from two runs, are the same set."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same_support, a, b))
    if isinstance(a, constraints.Constraint):
        return _same_support(list(vars(a).values()), list(vars(b).values()))
    if isinstance(a, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return bool(a == b)


def vectorized_plates(node: Any) -> list[Any]:
    """List the vectorised plates around a site."""
    return [f for f in node.get("cond_indep_stack", ()) if f.vectorized]


def scored_elements(node: Any) -> Tensor:
    """Return which elements of an observed site count in the density, (*batch shape, *event shape).

    Of a factor, only the batch shape is left.

    Raises:
        ValueError, RuntimeError: the shapes of the site do not match.
    """
    fn, value, mask = node["fn"], node["value"], combined_mask(node)
    if isinstance(base_distribution(fn), NAN_MASKED):
        mask = mask & ~value.isnan()
    event = value.shape[value.ndim - fn.event_dim :]
    if isinstance(base_distribution(fn), dist.Unit):  # the event has no elements
        mask = mask[..., 0] if mask.ndim else mask
        event = torch.Size()
    batch = broadcast_shape(value.shape[: value.ndim - fn.event_dim], fn.batch_shape)
    return mask.expand(broadcast_shape(batch + event, mask.shape))
