"""Diagnostic checks of adversarial training: saturation, the value function, and coverage."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdl.findings import COVERED_MIN, SATURATED_MIN, VALUE_DISTANCE, Finding
from probdl.results.fit import Fit

__all__ = ["check_coverage", "check_game", "suggest_loss"]

VALUE_AT_EQUILIBRIUM = -math.log(4.0)  # where the discriminator cannot separate draws from data
NEIGHBOURS = 5
COVERAGE_ROWS_MAX = 1000  # distances between all pairs of rows are computed
LOSSES_WITHOUT_PROBABILITIES = ("wasserstein", "hinge")


def suggest_loss(loss: str) -> str:
    """Return advice to use another loss, or '' if the loss is one of those already."""
    return "" if loss in LOSSES_WITHOUT_PROBABILITIES else "Use loss='wasserstein' or 'hinge'."


def check_game(loss: str, recorded: Mapping[str, NDArray[np.float64]]) -> list[Finding]:
    """Check the discriminator's outputs and the value function in the last tenth of the steps.

    Args:
        loss: name of the loss.
        recorded: by name, the values recorded at each step.
    """
    if loss in LOSSES_WITHOUT_PROBABILITIES:
        return []
    count = max(1, len(recorded["value"]) // 10)
    real, fake, value = (
        float(recorded[name][-count:].mean()) if len(recorded[name]) else math.nan
        for name in ("d_real", "d_fake", "value")
    )
    if real - fake > SATURATED_MIN:
        effect = (
            "the generator has almost no gradient"
            if loss == "minimax"
            else "its output gives the generator little useful information"
        )
        return [
            Finding(
                "warning",
                "saturated",
                f"The discriminator is saturated: D(x) is {real:.3f} and D(G(z)) is {fake:.3f} at "
                f"the end. It separates draws from data almost perfectly, so {effect}.",
                "Use loss='wasserstein' or 'hinge', a smaller discriminator, or a lower "
                "discriminator_learning_rate.",
            )
        ]
    if abs(value - VALUE_AT_EQUILIBRIUM) > VALUE_DISTANCE:
        return [
            Finding(
                "warning",
                "value_function",
                f"The value function is {value:.3f} at the end. It is -2 log 2 = "
                f"{VALUE_AT_EQUILIBRIUM:.3f} if draws and data have the same distribution.",
                "Train for longer, and check fit.divergence(x) on held-out data.",
            )
        ]
    return []


def check_coverage(fit: Fit, data: Tensor, site: str, loss: str) -> list[Finding]:
    """Check for data that no draw is near: coverage (Naeem et al., 2020).

    A row of data is covered if a draw is nearer to it than its k-th neighbour among the data. With
    as many draws from the distribution of the data, an expected share of 1 - 2^-k is covered.

    Args:
        fit: the fit, from which draws are made.
        data: the data (n, *shape of a row).
        site: name of the site that is drawn.
        loss: name of the loss.
    """
    count = min(len(data), COVERAGE_ROWS_MAX)
    if count < 10 * NEIGHBOURS:
        return []
    real = data[torch.randperm(len(data))[:count]].reshape(count, -1).to(torch.float64)
    drawn = torch.as_tensor(fit.predict(num_samples=count)[site]).reshape(count, -1).to(real.dtype)
    radius = torch.cdist(real, real).kthvalue(NEIGHBOURS + 1, dim=1).values
    covered = float((torch.cdist(real, drawn).min(1).values <= radius).double().mean())
    if covered >= COVERED_MIN:
        return []
    remedy = f"{suggest_loss(loss)} A larger batch_size or longer training may also help."
    return [
        Finding(
            "warning",
            "mode_collapse",
            f"Only {covered:.0%} of the data have a draw in their neighbourhood "
            f"({1 - 2.0**-NEIGHBOURS:.0%} would be expected if draws and data had the same "
            "distribution): the generator misses parts of the data, or its draws do not resemble "
            "the data.",
            remedy.lstrip(),
        )
    ]
