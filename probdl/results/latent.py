r"""What a model with latent variables says through its guide: the ELBO, evidence, codes.

.. math::
    \log p(x) = E_q[\log p(x|z)] - KL(q(z|x) \| p(z)) + KL(q(z|x) \| p(z|x))   \quad\text{(20, 21)}

The first two terms are the ELBO, and the third, which cannot be negative, is what it falls short
by (Eq. 22). Importance sampling gets at the left side itself:

.. math:: p(x) \approx \frac1K \sum_k \frac{p(x, z_k)}{q(z_k|x)}, \quad z_k \sim q(z|x)
    \qquad\text{(Eqs. 16 to 19)}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.linalg import LinAlgError  # type: ignore[attr-defined]
from torch.utils._pytree import tree_leaves

from probdl.errors import FindingWarning, ModelError, ProbdlError, warn
from probdl.findings import Finding
from probdl.io.idata import psis
from probdl.model.density import LogDensity
from probdl.model.program import Program, Substitute, base_distribution
from probdl.model.sites import Structure, data_plate
from probdl.model.vectorize import vectorize
from probdl.results.diagnostics import interrupted
from probdl.util.clock import look
from probdl.util.isolation import evaluation
from probdl.util.progress import bar

__all__ = ["Elbo", "LogEvidence", "Proposal", "decode", "elbo", "encode", "log_evidence", "propose"]

Array = NDArray[Any]

_ELEMENTS = 2**22  # of data that are scored at a time
_CODE_DRAWS = 100  # that a mean is taken of, where it has no formula


@dataclass(frozen=True)
class Proposal:
    """A distribution over the latent sites: a guide as it was trained, or the prior.

    Attributes:
        program: the guide; None stands for the prior.
        values: its parameters and those of the model, by name.
        parameters: the modules' own parameters behind some of them.
        local: the latent sites inside the data plate, which belong to one row each.
    """

    program: Program | None = None
    values: Mapping[str, Tensor] = field(default_factory=dict)
    parameters: Mapping[str, nn.Parameter] = field(default_factory=dict)
    local: tuple[str, ...] = ()

    def swap(self, at: Program) -> dict[nn.Parameter, Tensor]:
        """Map the modules' own parameters to their values, in the dtype of a program."""
        return {p: self.values[name].to(at.dtype) for name, p in self.parameters.items()}

    def sample(self, at: Program) -> Trace:
        """Sample the latent sites at these arguments; return the trace of what sampled them."""
        program = at if self.program is None else self.program.with_arguments(at.args, at.kwargs)
        return program.run(_identity, Substitute(self.values), parameters=self.swap(at))

    def trace(self, at: Program) -> tuple[Trace, Trace]:
        """Sample the latent sites, and run the model at them; return the traces of both."""
        of_guide = self.sample(at)
        if self.program is None:
            return of_guide, of_guide
        replay: Callable[[Any], Any] = lambda model: poutine.replay(model, trace=of_guide)  # noqa: E731
        values = Substitute(self.values)
        return of_guide, at.run(_identity, values, replay, parameters=self.swap(at))

    def scores(self, at: Program) -> tuple[Trace, Trace]:
        """Sample as ``trace`` does, and compute all log probabilities."""
        of_guide, of_model = self.trace(at)
        try:
            with evaluation(dtype=at.dtype):  # a draw outside the support has a density of zero
                of_guide.compute_log_prob()
                of_model.compute_log_prob()
        except (ProbdlError, LinAlgError):
            raise
        except Exception as error:
            raise at.explain(error) from None
        return of_guide, of_model


def _identity(trace: Trace) -> Trace:
    return trace


@dataclass(frozen=True)
class Elbo:
    """The evidence lower bound of data, in nats, in its two parts.

    Attributes:
        reconstruction: E_q[log p(x_i | z_i)] of each row.
        kl: KL(q(z_i | x_i) || p(z_i)) of each row.
        global_kl: the KL term of the latent sites that all rows share.
        standard_error: of the total, from the draws of z.
    """

    reconstruction: Array
    kl: Array
    global_kl: float
    standard_error: float

    @property
    def pointwise(self) -> Array:
        """The bound of each row, without what all rows share."""
        return self.reconstruction - self.kl

    @property
    def total(self) -> float:
        """The bound of all the data."""
        return float(self.pointwise.sum() - self.global_kl)

    def __repr__(self) -> str:
        rows = self.reconstruction.size
        shared = f", global KL {self.global_kl:.2f}" if self.global_kl else ""
        return (
            f"Elbo(total={self.total:.2f} ± {self.standard_error:.2g}; over {rows} rows the mean "
            f"reconstruction is {self.reconstruction.mean():.2f} and the mean KL "
            f"{self.kl.mean():.2f}{shared})"
        )


@dataclass(frozen=True)
class LogEvidence:
    """The log evidence of data, in nats, by importance sampling.

    Attributes:
        pointwise: log p(x_i) of each row; of all the data together where rows share a site.
        standard_error: of each, by the delta method.
        pareto_k: how heavy the tail of the weights is; above 0.7 the estimate is too low, and
            the standard error with it.
    """

    pointwise: Array
    standard_error: Array
    pareto_k: Array

    @property
    def total(self) -> float:
        """The log evidence of all the data."""
        return float(self.pointwise.sum())

    def __repr__(self) -> str:
        count = self.pointwise.size
        bad = int((self.pareto_k > 0.7).sum())
        each = f", mean={self.total / count:.2f} of {count} rows" if count > 1 else ""
        error = float(np.sqrt(np.square(self.standard_error).sum()))
        return (
            f"LogEvidence(total={self.total:.2f} ± {error:.2g}{each}, pareto_k above 0.7 at {bad})"
        )


def propose(
    program: Program,
    structure: Structure,
    proposal: Proposal,
    count: int,
    findings: list[Finding] | None = None,
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Draw the latent sites from a proposal, and score each draw.

    Discrete sites beside continuous ones are summed out exactly. An interruption, which leaves
    fewer draws, enters the findings.

    Returns:
        By site name the draws (count, *shape), and (count,) of log p(z, x) and log q(z), in nats.
    """
    latent = {s.name for s in structure.of("latent")}
    summed = {s.name for s in structure.of("discrete")} if latent else set()

    def one(_: Tensor) -> dict[str, Tensor]:
        of_guide, of_model = proposal.scores(program)
        nodes: Any = of_model.nodes
        values = {f"site {n}": node["value"] for n, node in nodes.items() if n in latent}
        log_p = log_q = torch.zeros((), dtype=program.dtype)
        for name, node in _sampled(of_guide):
            if name not in summed:
                log_q = log_q + node["log_prob"].sum()
        for _site, node in _sampled(of_model, observed=True):
            log_p = log_p + node["log_prob"].sum()
        return values | {"log_p": log_p, "log_q": log_q}

    drawn = _over_draws(one, program, count, findings=findings)
    log_p, log_q = drawn.pop("log_p"), drawn.pop("log_q")
    values = {name.removeprefix("site "): v for name, v in drawn.items()}
    if summed:
        density = LogDensity(program, structure, jacobian=False)
        log_p = density.batch(density.unconstrain(values))
    return values, log_p, log_q


def elbo(program: Program, structure: Structure, proposal: Proposal, count: int) -> Elbo:
    """Estimate the ELBO from ``count`` draws of the latent sites; KL terms exactly where known."""
    if structure.of("discrete"):
        raise ModelError(
            f"the model '{program.name}' has discrete sites, which are summed out, so its ELBO "
            "does not split by rows. stats['elbo'] has the whole; log_evidence() what it bounds."
        )
    plate, size = data_plate(program, structure)

    def one(_: Tensor) -> dict[str, Tensor]:
        of_guide, of_model = proposal.scores(program)
        nodes: Any = of_model.nodes
        zero = torch.zeros((), dtype=program.dtype)
        parts = {"reconstruction": zero, "kl": zero, "shared": zero}
        for _site, node in _sampled(of_model, observed=True):
            if node["is_observed"]:
                _add(parts, "reconstruction", node, node["log_prob"], plate)
        for name, node in _sampled(of_guide):
            prior = nodes.get(name)
            divergence = _divergence(node, prior)
            _add(parts, "kl", node, divergence, plate)
        return parts

    parts = {k: v.numpy() for k, v in _over_draws(one, program, count).items()}
    rows = [np.broadcast_to(parts[k].T, (size, count)).T for k in ("reconstruction", "kl")]
    totals = rows[0].sum(1) - rows[1].sum(1) - parts["shared"]
    error = float(totals.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    return Elbo(rows[0].mean(0), rows[1].mean(0), float(parts["shared"].mean()), error)


def log_evidence(
    program: Program,
    structure: Structure,
    proposal: Proposal,
    count: int,
    progress: bool | None = None,
) -> LogEvidence:
    """Estimate log p(x) from ``count`` draws of the latent sites."""
    latent = {s.name for s in structure.of("latent")}
    if latent and latent <= set(proposal.local):
        plate = data_plate(program, structure)[0]

        def one(_: Tensor) -> Tensor:
            of_guide, of_model = proposal.scores(program)
            parts = {"ratio": torch.zeros((), dtype=program.dtype), "shared": torch.zeros(())}
            for _site, node in _sampled(of_model, observed=True):
                _add(parts, "ratio", node, node["log_prob"], plate)
            for _site, node in _sampled(of_guide):
                _add(parts, "ratio", node, -node["log_prob"], plate)
            return parts["ratio"] + parts["shared"]

        ratios = _over_draws(one, program, count, progress).numpy().T
    else:
        _, log_p, log_q = propose(program, structure, proposal, count)
        ratios = (log_p - log_q).numpy()
    ratios = ratios.astype(np.float64)
    count = ratios.shape[-1]
    log_mean = np.logaddexp.reduce(ratios, -1) - math.log(count)
    weights = np.exp(ratios - log_mean[..., None])
    error = (
        weights.std(-1, ddof=1) / math.sqrt(count) if count > 1 else np.full_like(log_mean, np.nan)
    )
    k = np.array([psis(row)[1] for row in ratios.reshape(-1, count)]) if count >= 25 else np.nan
    return LogEvidence(log_mean, error, np.broadcast_to(k, log_mean.size).reshape(log_mean.shape))


def encode(program: Program, proposal: Proposal, count: int | None) -> dict[str, Tensor]:
    """Return the mean of each local site under the guide, or ``count`` draws of it."""

    def one(_: Tensor) -> dict[str, Tensor]:
        nodes: Any = proposal.sample(program).nodes
        return {name: nodes[name]["value"] for name in proposal.local}

    if count is not None:
        return _over_draws(one, program, count)
    nodes: Any = proposal.sample(program).nodes
    if len(proposal.local) == 1:  # with several, one may depend on draws of another
        with torch.no_grad():
            try:
                return {name: nodes[name]["fn"].mean for name in proposal.local}
            except NotImplementedError:
                pass
    return {name: v.mean(0) for name, v in _over_draws(one, program, _CODE_DRAWS).items()}


def decode(
    program: Program, structure: Structure, proposal: Proposal, codes: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the mean of each observed site given the local sites."""
    names = [s.name for s in structure.of("observed")]

    def means(trace: Trace) -> dict[str, Tensor]:
        nodes: Any = trace.nodes
        return {name: nodes[name]["fn"].mean for name in names}

    values = Substitute({**proposal.values, **codes})
    with torch.no_grad():
        return program.run(means, values, parameters=proposal.swap(program))


def _sampled(trace: Trace, *, observed: bool = False) -> Iterator[tuple[str, Any]]:
    nodes: Any = trace.nodes
    for name, node in nodes.items():
        if node["type"] != "sample" or site_is_subsample(node):
            continue
        if observed or not node["is_observed"]:
            yield name, node


def _divergence(node: Any, prior: Any) -> Tensor:
    """Return the KL divergence of a guide's site from the prior; at its draw where not known."""
    if prior is None:  # a site of the guide alone
        return node["log_prob"]
    if not isinstance(base_distribution(node["fn"]), dist.Delta):  # Pyro's leaves out its density
        try:
            return kl_divergence(node["fn"], prior["fn"])
        except NotImplementedError:
            pass
    return node["log_prob"] - prior["log_prob"]


def _add(parts: dict[str, Tensor], key: str, node: Any, term: Tensor, plate: str) -> None:
    """Add a term to that of the rows where it runs along the plate, or else to what is shared."""
    for frame in node["cond_indep_stack"]:
        if frame.name == plate and frame.vectorized:
            axis = frame.dim % term.ndim if term.ndim >= -frame.dim else None
            if axis is None:  # the same for all rows
                parts[key] = parts[key] + term.sum().expand(frame.size)
            else:
                rest = [d for d in range(term.ndim) if d != axis]
                parts[key] = parts[key] + (term.sum(rest) if rest else term)
            return
    sign = -1.0 if key == "reconstruction" else 1.0
    parts["shared"] = parts["shared"] + sign * term.sum()


def _over_draws(
    one: Callable[[Tensor], Any],
    program: Program,
    count: int,
    progress: bool | None = False,
    findings: list[Finding] | None = None,
) -> Any:
    """Evaluate something random ``count`` times, as many at once as memory is used sparingly.

    An interruption that leaves fewer enters the findings, or is a warning where there are none.
    """
    rows = max((t.numel() for t in program.tensors()), default=1)
    size = min(count, max(1, _ELEMENTS // max(rows, 1)))
    parts = []
    with bar(count, "importance sampling", progress) as shown, torch.no_grad():
        try:
            for start in range(0, count, size):
                look()
                here = min(size, count - start)
                parts.append(vectorize(one, torch.zeros(here)))
                shown.update(here)
        except KeyboardInterrupt as stop:
            if not parts:
                raise
            done = sum(len(tree_leaves(part)[0]) for part in parts)
            found = interrupted(stop, done, f"{count} draws", "those are used", "of them")
            if findings is None:
                warn(str(found), FindingWarning)
            else:
                findings.append(found)
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
