"""Importance sampling: weighted draws from a proposal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from probdl.errors import ModelError
from probdl.findings import TAIL_DRAWS_MIN, pareto_k_max
from probdl.methods.approximate.weighting import draw_weighted, resample
from probdl.methods.base import Method
from probdl.methods.fixed_params import held_params
from probdl.methods.guide_sites import compare_sites
from probdl.model.program import Program
from probdl.model.sites import Structure
from probdl.results.fit import Fit
from probdl.results.guided import GuidedFit
from probdl.results.latent import Proposal
from probdl.results.weights import check_weights

__all__ = ["Importance"]


@dataclass(frozen=True, repr=False)
class Importance(Method, name="importance"):
    r"""Importance sampling: weighted draws from a proposal.

    .. math:: p(x) \approx \frac1K \sum_k w_k, \quad w_k = \frac{p(x, z_k)}{q(z_k)}, \quad
        E[f(z) | x] \approx \frac{\sum_k w_k f(z_k)}{\sum_k w_k} \qquad\text{(Eqs. 16 to 19)}

    The weights are smoothed by a generalised Pareto fit to their tail (by ArviZ), and the draws of
    the fit are resampled in proportion to them. ``stats`` holds ``log_evidence`` (nats) with
    ``log_evidence_standard_error``, ``pareto_k``, ``ess`` (effective sample size of the weights),
    ``log_weights`` (smoothed and normalised, one per sample), and ``lp`` of each draw.

    Args:
        guide: the proposal: a function or module that samples the latent sites, with its
            parameters at their current values; or a fit by SVI of the same model, whose guide is
            used. None means the prior. Default: None.
        num_samples: number of weighted draws from the proposal, at least 25. Default: 10_000.
        draws: number of draws that the fit holds. Default: 1000.

    Raises:
        SettingError: a setting is out of range.
        ModelError: a prior is flat and cannot be sampled, or guide and model differ in their sites.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, probdl
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> fit = probdl.infer(model, torch.tensor(1.0), method="importance", seed=1)
        >>> exact = dist.Normal(0.0, 2**0.5).log_prob(torch.tensor(1.0)).item()
        >>> error = fit.stats["log_evidence_standard_error"]
        >>> bool(abs(fit.stats["log_evidence"] - exact) < 4 * error)
        True

    Source: Vehtari, Simpson, Gelman, Yao and Gabry, "Pareto smoothed importance sampling",
    JMLR 25 (2024).
    """

    fit_type: ClassVar[type[Fit]] = GuidedFit
    draws_are_independent: ClassVar[bool] = True

    guide: Callable[..., Any] | Fit | None = None
    num_samples: int = 10_000
    draws: int = 1000

    def __post_init__(self) -> None:
        self._check_int(num_samples=TAIL_DRAWS_MIN, draws=1)
        if not (self.guide is None or callable(self.guide) or isinstance(self.guide, Fit)):
            self._refuse("guide", "must be a function, a module, a fit by SVI, or None")
        if isinstance(self.guide, Fit) and getattr(self.guide, "proposal", None) is None:
            self._refuse("guide", "is a fit without a guide; pass a fit by method='svi'")

    def run(self, program: Program, seed: int, progress: bool | None) -> Fit:
        """Draw from the proposal, and resample by the importance weights."""
        structure = self._discover(program)
        if not structure.of("latent"):  # discrete sites are summed out and have no draws
            raise ModelError(
                f"The model '{program.name}' has no continuous latent site to draw. If it has "
                "parameters, fit it by method='mle'."
            )
        flat = [s.name for s in structure.of("latent") if s.flat]
        if flat and self.guide is None:
            raise ModelError(
                f"The prior of {', '.join(map(repr, flat))} is flat (ImproperUniform) and cannot "
                "be sampled. Pass a guide."
            )
        proposal = self._proposal(program, structure)
        if proposal.program is not None and not isinstance(self.guide, Fit):
            compare_sites(program, proposal.program, structure, *proposal.trace(program))
        findings = held_params(structure)
        weighted = draw_weighted(program, structure, proposal, self.num_samples, findings)
        if not np.isfinite(weighted.log_ratios).any():
            raise ModelError(
                f"None of {self.num_samples} draws from the proposal has a positive posterior "
                "density. Raise num_samples, or pass a guide that is closer to the posterior."
            )
        generator = torch.Generator().manual_seed(seed)
        chosen = resample(weighted.log_weights, self.draws, generator)
        draws = {name: value[chosen].numpy()[None] for name, value in weighted.draws.items()}
        weights = np.exp(weighted.log_ratios - weighted.log_evidence)
        stats = {
            "lp": weighted.lp[chosen.numpy()][None],
            "log_evidence": weighted.log_evidence,
            "log_evidence_standard_error": weights.std(ddof=1) / math.sqrt(len(weights)),
            "pareto_k": weighted.pareto_k,
            "ess": weighted.ess,
            "log_weights": weighted.log_weights,
        }
        limit = pareto_k_max(len(weighted.log_weights))
        if weighted.ess < self.draws / 10 or weighted.pareto_k > limit:
            findings += check_weights(
                weighted.log_weights,
                weighted.pareto_k,
                "the proposal",
                "Increase num_samples, or use a better proposal (guide=).",
                resampled=True,
            )
        return GuidedFit(self, program, structure, draws, stats, seed, findings, proposal=proposal)

    def _proposal(self, program: Program, structure: Structure) -> Proposal:
        if isinstance(self.guide, Fit):
            assert isinstance(self.guide, GuidedFit)
            assert self.guide.proposal is not None
            return self.guide.proposal
        values = {s.name: s.value for s in structure.of("param")}
        parameters = {s.name: s.parameter for s in structure.of("param") if s.parameter is not None}
        guide = None if self.guide is None else program.companion(self.guide)
        return Proposal(guide, values, parameters)

    def restore(
        self,
        program: Program,
        structure: Structure,
        saved: Proposal,
        start: Mapping[str, Tensor],
    ) -> Proposal:
        """Rebuild the proposal of a saved fit."""
        return self._proposal(program, structure)
