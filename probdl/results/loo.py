"""Leave-one-out cross-validation of a fit by ArviZ, all terms of the likelihood together."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdl.errors import FindingWarning, SettingError, warn
from probdl.io import idata
from probdl.model import predictive
from probdl.model.density import LogDensity
from probdl.model.program import Program
from probdl.model.sites import Structure

__all__ = [
    "check_moment_matching",
    "is_flexible",
    "matched",
    "warn_of_flexible",
    "warn_of_high_k",
    "warn_of_one_observation",
]

Array = NDArray[Any]

FLEXIBLE_SHARE = 0.5  # effective parameters per observation; beyond, weights of draws do not do


def check_moment_matching(program: Program) -> None:
    """Check that ArviZ has moment matching, and that the density of all data can be evaluated.

    Raises:
        SettingError: not so.
    """
    if not idata.has_moment_matching():
        raise SettingError(
            f"ArviZ {importlib.metadata.version('arviz')} has no loo_moment_match, which "
            "moment_match=True needs; ArviZ 1 has. Refit instead: fit.cross_validate(), or "
            "probdl.compare() of several fits, which refits for rows with a high k-hat only."
        )
    if program.loader is not None:
        raise SettingError(
            "moment_match=True needs all the data at once, but they came from a DataLoader. Fit "
            "the data themselves, with batch_size=."
        )


def matched(
    program: Program,
    structure: Structure,
    draws: Mapping[str, Tensor],
    flatten: Callable[[Mapping[str, Array]], Array],
    container: Any,
    name: str,
    elpd: Any,
) -> Any:
    """Improve a leave-one-out result by moment matching; see ``idata.moment_match``.

    Args:
        program: the model with its data.
        structure: its sites.
        draws: the latent and param sites, (chain * draw, *shape).
        flatten: joins pointwise log likelihoods by site to (n, observations), in the order of the
            result.
        container: the ArviZ container of the result.
        name: its variable of the log likelihood.
        elpd: the result.
    """
    density = LogDensity(program, structure)
    held = {n: v for n, v in draws.items() if n not in density.blocks}
    chains, count = idata.num_chains(container), idata.num_draws(container)
    points = density.unconstrain(draws).numpy().reshape(chains, count, density.dim)

    def log_density(at: Array) -> Array:
        return density.batch(torch.from_numpy(np.ascontiguousarray(at))).numpy()

    def log_likelihood(at: Array, i: int) -> Array:
        flat = torch.from_numpy(np.ascontiguousarray(at)).reshape(-1, density.dim)
        values = held | density.constrain(flat)
        scored = predictive.log_likelihood(program, structure, values, quiet=True)
        each = flatten({n: v.numpy() for n, v in scored.points.items()})
        return each[:, i].reshape(at.shape[:-1])

    return idata.moment_match(container, name, elpd, points, log_density, log_likelihood)


def warn_of_one_observation(elpd: Any) -> None:
    """Warn if the likelihood has one observation, such as a whole series."""
    if idata.pareto_k(elpd).size == 1:
        warn(
            "The likelihood has one observation, such as a whole series, so leave-one-out "
            "cross-validation leaves out all data: the score is that of the prior, and its "
            "standard error is not known. Write the model with a site for each observation, or "
            "score held-out data by fit.log_predictive(...).",
            FindingWarning,
        )


def is_flexible(elpd: Any) -> bool:
    """Return whether a model has about as many effective parameters as observations."""
    count = idata.pareto_k(elpd).size
    return count > 1 and idata.effective_parameters(elpd) > FLEXIBLE_SHARE * count


def warn_of_flexible(subject: str, elpd: Any) -> None:
    """Warn that the leave-one-out estimate of a flexible model is too high, at any k-hat."""
    warn(
        f"{subject} about {idata.effective_parameters(elpd):.0f} effective parameters (p_loo) for "
        f"{idata.pareto_k(elpd).size} observations, so that each of them changes the posterior "
        "much, and the LOO estimate is too high even where Pareto k-hat is low. Use "
        "fit.cross_validate(), which refits.",
        FindingWarning,
    )


def warn_of_high_k(elpd: Any, matched: bool) -> None:
    """Warn of observations whose leave-one-out estimate is unreliable."""
    limit, flexible = idata.good_k(elpd), is_flexible(elpd)
    high = int((idata.pareto_k(elpd) > limit).sum())
    if flexible and not high:
        warn_of_flexible("The model has", elpd)
    if high:
        can_match = not (matched or flexible) and idata.has_moment_matching()
        remedy = "fit.loo(moment_match=True), or " if can_match else ""
        warn(
            f"Pareto k-hat is above {limit:.2g} for {high} observation{'s' * (high > 1)}, so the "
            f"LOO estimate is unreliable. Use {remedy}fit.cross_validate(), which refits. The "
            "model may be misspecified or very flexible.",
            FindingWarning,
        )
