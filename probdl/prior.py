"""``prior_predictive``: what a model says before it has seen data."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyro.poutine.util import site_is_subsample

from probdl.errors import ModelError
from probdl.model.distributions import combined_mask
from probdl.model.predictive import check_proper
from probdl.model.preparing import prepared
from probdl.model.sites import discover
from probdl.model.streaming import whole
from probdl.results.container import assemble, data_groups, prior_groups
from probdl.results.labels import Labels, checked_labels
from probdl.util.isolation import isolated
from probdl.util.settings import check_int, check_seed, setting_error

__all__ = ["prior_predictive"]


def _without_density(trace: Any) -> list[str]:
    """List the latent sites of a run whose density is masked everywhere."""
    return [
        name
        for name, node in trace.nodes.items()
        if node["type"] == "sample"
        and not node["is_observed"]
        and not site_is_subsample(node)
        and not combined_mask(node).any()
    ]


def prior_predictive(
    model: Callable[..., Any],
    *args: Any,
    num_samples: int = 500,
    seed: int | None = None,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    missing: str | None = None,
    **kwargs: Any,
) -> Any:
    r"""Draw parameters from the prior and data from the model, before any fit.

    .. math:: \theta \sim p(\theta), \qquad y \sim p(y | \theta)

    Args:
        model: a Pyro program, see :func:`infer`.
        args: the arguments of the model, as for :func:`infer`. Observed data can be omitted if
            their default is None; if they are given, the container holds them for comparison.
        num_samples: number of draws.
        seed: the random seed; None draws one.
        coords: labels along dimensions by name, see :func:`infer`.
        dims: names of dimensions by site, see :func:`infer`.
        missing: as for :func:`infer`, so that a call can have the same arguments. Observed data
            may be NaN without it, too.
        kwargs: the model's keyword arguments.

    Returns:
        An ArviZ container with the groups prior, prior_predictive, observed_data and
        constant_data. Draws have the dimensions (chain, draw, *dimensions of the site), with one
        chain. A site is in prior_predictive if it is observed, or if it has the name of an
        argument that was omitted.

    Raises:
        ModelError: the model does not run on the arguments, a prior is improper, or there is no
            site to draw.
        DataError: the data are not finite, or outside the support of their site.
        SettingError: ``num_samples`` is less than 1, ``missing`` is another word, or labels do not
            fit the model.

    Example:
        >>> import numpy as np, pyro, pyro.distributions as dist, probdl
        >>> def model(x, y=None):
        ...     slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("day", len(x)):
        ...         pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
        >>> x = np.array([1.0, 2.0, 3.0])
        >>> prior = probdl.prior_predictive(model, x, num_samples=100, seed=1)
        >>> prior.prior["slope"].shape, prior.prior_predictive["y"].dims
        ((1, 100), ('chain', 'draw', 'day'))
    """
    check_int("prior_predictive", num_samples=(num_samples, 1))
    if seed is None:
        seed = secrets.randbits(32)
    else:
        check_seed("prior_predictive", seed)
    if missing not in (None, "mask"):
        raise setting_error("prior_predictive", "missing", missing, "must be 'mask' or None")
    with isolated(int(seed)):
        program = prepared(model, args, kwargs, masks_missing=True)
        all_dims, all_coords = checked_labels(program, dims, coords)
        structure = discover(program)
        if not structure.of("latent", "discrete", "observed"):
            raise ModelError(f"The model '{program.name}' samples no site.")
        check_proper(structure)
        if flat := program.run(_without_density):
            raise ModelError(
                f"The prior of {', '.join(map(repr, flat))} is flat, by mask(False), so it is "
                "improper and cannot be sampled. Give it a distribution."
            )
        rows = whole(program, structure)
        groups = prior_groups(program, structure, rows, num_samples)
        groups |= data_groups(program, structure, rows)
    return assemble(groups, Labels(structure, all_dims, all_coords), rows)
