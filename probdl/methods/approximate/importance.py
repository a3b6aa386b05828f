"""Importance sampling: draws of a proposal, weighed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probdl.errors import ModelError
from probdl.findings import TAIL_DRAWS_MIN
from probdl.methods.approximate.weighting import resample, weigh
from probdl.methods.base import Method
from probdl.methods.fixed_params import held_params
from probdl.methods.variational.guides import compare_sites
from probdl.model.program import Program
from probdl.model.sites import Structure
from probdl.results.diagnostics import check_weights
from probdl.results.fit import Fit
from probdl.results.latent import Proposal

__all__ = ["Importance"]


@dataclass(frozen=True, repr=False)
class Importance(Method, name="importance"):
    r"""Draw from the posterior by weighing draws of a proposal.

    .. math:: p(x) \approx \frac1K \sum_k w_k, \quad w_k = \frac{p(x, z_k)}{q(z_k)}, \quad
        E[f(z) | x] \approx \frac{\sum_k w_k f(z_k)}{\sum_k w_k} \qquad\text{(Eqs. 16 to 19)}

    The weights are smoothed by a Pareto fit to their tail (ArviZ), and the draws of the fit are
    resampled by them. ``stats`` holds ``log_evidence`` (nats) with
    ``log_evidence_standard_error``, ``pareto_k``, ``ess`` (how many independent draws the
    weighed ones are worth), ``log_weights`` (smoothed and normalised, one a sample), and ``lp``
    of each draw.

    Args:
        guide: the proposal: a function or module that samples the latent sites, its parameters
            at their present values; a fit by SVI of the same model, whose guide is taken; None
            is the prior.
        num_samples: how many draws of the proposal are weighed, at least 25.
        draws: how many draws the fit holds.

    Raises:
        SettingError: a setting is out of range.
        ModelError: a prior is flat and cannot be sampled, or guide and model differ in sites.

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

    guide: Callable[..., Any] | Fit | None = None
    num_samples: int = 10_000
    draws: int = 1000

    def __post_init__(self) -> None:
        self._check_int(num_samples=TAIL_DRAWS_MIN, draws=1)
        if not (self.guide is None or callable(self.guide) or isinstance(self.guide, Fit)):
            self._refuse("guide", "must be a function, a module, a fit by SVI, or None")
        if isinstance(self.guide, Fit) and self.guide.proposal is None:
            self._refuse("guide", "is a fit without a guide; one by method='svi' has one")

    def run(self, program: Program, seed: int, progress: bool | None) -> Fit:
        """Weigh draws of the proposal."""
        structure = self._discover(program)
        if not structure.of("latent"):  # discrete sites are summed out, so they have no draws
            raise ModelError(
                f"the model '{program.name}' has no continuous latent site to draw. Fit by "
                "method='mle' where it has parameters."
            )
        flat = [s.name for s in structure.of("latent") if s.flat]
        if flat and self.guide is None:
            raise ModelError(
                f"the prior of {', '.join(map(repr, flat))} is flat (ImproperUniform) and cannot "
                "be sampled. Pass a guide."
            )
        proposal = self._proposal(program, structure)
        if proposal.program is not None and not isinstance(self.guide, Fit):
            compare_sites(program, proposal.program, structure, *proposal.trace(program))
        findings = held_params(structure)
        weighed = weigh(program, structure, proposal, self.num_samples, findings)
        if not np.isfinite(weighed.log_ratios).any():
            raise ModelError(
                f"none of {self.num_samples} draws of the proposal has a posterior density above "
                "zero. Raise num_samples, or pass a guide that is nearer to the posterior."
            )
        generator = torch.Generator().manual_seed(seed)
        chosen = resample(weighed.log_weights, self.draws, generator)
        draws = {name: value[chosen].numpy()[None] for name, value in weighed.draws.items()}
        weights = np.exp(weighed.log_ratios - weighed.log_evidence)
        stats = {
            "lp": weighed.lp[chosen.numpy()][None],
            "log_evidence": weighed.log_evidence,
            "log_evidence_standard_error": weights.std(ddof=1) / math.sqrt(len(weights)),
            "pareto_k": weighed.pareto_k,
            "ess": weighed.ess,
            "log_weights": weighed.log_weights,
        }
        if weighed.ess < self.draws / 10 or weighed.pareto_k > 0.7:
            findings += check_weights(weighed.log_weights, weighed.pareto_k, "the proposal")
        return Fit(self, program, structure, draws, stats, seed, findings, proposal=proposal)

    def _proposal(self, program: Program, structure: Structure) -> Proposal:
        if isinstance(self.guide, Fit):
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
        """Put the proposal back on a model."""
        return self._proposal(program, structure)
