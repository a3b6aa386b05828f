r"""Diagnostic checks of a trained guide: the weight of the KL term, and posterior collapse."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from probdl.errors import ModelError
from probdl.findings import COLLAPSED_KL_MAX, Finding
from probdl.model.obs_mask import UNOBSERVED
from probdl.model.observations import vectorized_plates
from probdl.model.program import Program
from probdl.model.sites import Structure, data_plate, data_plates, scalar_labels
from probdl.results.latent import Proposal
from probdl.util.isolation import evaluation, isolated

__all__ = ["check_annealing", "check_collapse"]

MAX_CHECKED_ROWS = 1000
MAX_NAMED_DIMENSIONS = 10  # in one message


def check_annealing(annealing: int, steps: int) -> list[Finding]:
    """Check that the weight of the KL term had reached 1 at the step whose state was kept."""
    if steps >= annealing:
        return []
    return [
        Finding(
            "warning",
            "kl_annealing",
            f"The weight of the KL term was {steps / annealing:.2g} at the end of training, since "
            f"kl_annealing={annealing} and there were {steps} steps. The guide was fitted to "
            "another objective than the ELBO, and is probably too narrow.",
            f"Use a kl_annealing of about {max(steps // 2, 1)}, or train for more than "
            f"{annealing} steps.",
        )
    ]


def check_collapse(
    program: Program, structure: Structure, proposal: Proposal, seed: int
) -> list[Finding]:
    r"""Check for latent dimensions of rows in which the guide equals the prior.

    .. math:: \tfrac12 \left(\frac{\sigma_q^2 + (\mu_q - \mu_p)^2}{\sigma_p^2} - 1
        - \log \frac{\sigma_q^2}{\sigma_p^2}\right)

    is the KL divergence of two normal distributions, here with the means and variances of guide and
    prior, averaged over rows.

    Args:
        program: the trained model with its data.
        structure: its sites.
        proposal: the trained guide.
        seed: the seed for draws of sites on which others depend.
    """
    # Missing observations, of obs_mask, are drawn from their prior whatever the guide has learnt.
    missing = {name + UNOBSERVED for name in structure.sites}
    latent = {s.name for s in structure.of("latent")}
    local = [n for n in proposal.local if n in latent - missing]
    if not local:
        return []
    with torch.no_grad(), isolated(seed), evaluation(dtype=program.dtype):
        found = dict(_divergences(_some_rows(program, structure), structure, proposal, local))
    names = [label for name, kl in found.items() for label in _collapsed(name, kl)]
    if not names:
        return []
    sites = tuple(name for name, kl in found.items() if (kl < COLLAPSED_KL_MAX).any())
    shown = ", ".join(names[:MAX_NAMED_DIMENSIONS])
    more = len(names) - MAX_NAMED_DIMENSIONS
    shown += f" and {more} more" if more > 0 else ""
    total = sum(kl.numel() for kl in found.values())
    if len(names) == total:
        message = (
            f"The posterior has collapsed: in all {total} latent dimensions of the rows ({shown}) "
            f"the guide equals the prior (KL below {COLLAPSED_KL_MAX:g} nats), so the codes carry "
            "no information about the data."
        )
        remedy = (
            "Train for longer, use kl_annealing, a less flexible decoder, or a smaller "
            "learning_rate."
        )
        return [Finding("warning", "posterior_collapse", message, remedy, sites)]
    message = (
        f"{len(names)} of {total} latent dimensions of the rows ({shown}) are not used: there the "
        f"guide equals the prior (KL below {COLLAPSED_KL_MAX:g} nats)."
    )
    remedy = "Use fewer latent dimensions, or kl_annealing if the data should need them."
    return [Finding("info", "posterior_collapse", message, remedy, sites)]


def _some_rows(program: Program, structure: Structure) -> Program:
    """Return the program on at most MAX_CHECKED_ROWS rows, if all data have one plate."""
    try:
        size = data_plate(program, structure)[1]
    except ModelError:  # several plates
        return program
    if size <= MAX_CHECKED_ROWS:
        return program
    rows = torch.linspace(0, size - 1, MAX_CHECKED_ROWS).long()
    return program.with_tensors(
        [t[rows] if t.ndim and len(t) == size else t for t in program.tensors()]
    )


def _divergences(
    program: Program, structure: Structure, proposal: Proposal, local: list[str]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the KL divergence of each dimension of a local site, averaged over rows."""
    plates = data_plates(structure)
    of_guide, of_model = proposal.trace(program)
    guide_nodes: Any = of_guide.nodes
    model_nodes: Any = of_model.nodes
    for name in local:
        q, p = guide_nodes[name]["fn"], model_nodes[name]["fn"]
        try:
            ratio = q.variance / p.variance
            shift = (q.mean - p.mean).square() / p.variance
        except NotImplementedError:  # a flow, for example
            continue
        kl = 0.5 * (ratio + shift - 1 - ratio.log())
        kl = kl.expand(guide_nodes[name]["value"].shape)
        (dim,) = [f.dim for f in vectorized_plates(guide_nodes[name]) if f.name in plates][:1]
        mean = kl.mean(dim - q.event_dim)
        if mean.numel() and not mean.isnan().any():
            yield name, mean


def _collapsed(name: str, kl: Tensor) -> list[str]:
    labels = scalar_labels(name, kl.shape)
    return [
        label
        for label, value in zip(labels, kl.reshape(-1).tolist(), strict=True)
        if value < COLLAPSED_KL_MAX and math.isfinite(value)
    ]
