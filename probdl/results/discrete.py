"""Posterior draws of the discrete sites that were summed out."""

from __future__ import annotations

import torch
from torch import Tensor

from probdl.errors import ModelError, SettingError
from probdl.model import streaming
from probdl.model.elements import Elements
from probdl.model.program import Program
from probdl.model.sites import Structure

__all__ = ["draw_discrete"]

POINT_DRAWS = 1000  # given a point estimate


def draw_discrete(
    program: Program,
    structure: Structure,
    draws: dict[str, Tensor],
    elements: Elements,
    count: int | None,
) -> dict[str, Tensor]:
    """Draw the discrete sites given the data and each draw of the other sites.

    Args:
        program: the model on its data.
        structure: its sites on these data.
        draws: the latent and param sites of the fit, each (n, *shape).
        elements: how the elements of the plates of these data match those of the fit.
        count: number of draws; None means one for each draw, and 1000 for a single one.

    Returns:
        By site name, (count, *shape).

    Raises:
        ModelError: the model has no discrete latent site, or continuous ones have no draws.
        SettingError: the number of draws is not positive.
    """
    names = [s.name for s in structure.of("discrete")]
    if not names:
        raise ModelError(
            f"The model '{program.name}' has no discrete latent site to draw. A distribution that "
            "sums its states out itself, such as DiscreteHMM or MixtureSameFamily, has no such "
            "site: write the states as pyro.sample sites."
        )
    local = [s.name for s in structure.of("latent") if s.name not in draws]
    if local:
        raise ModelError(
            f"The latent sites {', '.join(map(repr, local))} lie in the data plate and have no "
            "draws, so the discrete sites cannot be drawn given them."
        )
    if not draws:
        raise ModelError(
            f"The model '{program.name}' has no continuous site, so there are no draws given which "
            "its discrete sites could be drawn. The parameters of a guide that samples them are in "
            "fit.stats['params']."
        )
    available = len(next(iter(draws.values())))
    if count is None:
        count = available if available > 1 else POINT_DRAWS
    if count < 1:
        raise SettingError(f"num_samples={count} must be at least 1.")
    chosen = torch.arange(count) * available // count
    rows = {name: value[chosen] for name, value in draws.items()}
    return streaming.sample_discrete(program, structure, rows, elements)
