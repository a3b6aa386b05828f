r"""Quantities of a model with a guide: the ELBO, the log evidence, and codes.

.. math::
    \log p(x) = E_q[\log p(x|z)] - KL(q(z|x) \| p(z)) + KL(q(z|x) \| p(z|x))   \quad\text{(20, 21)}

The first two terms are the ELBO, a lower bound since the third term is not negative (Eq. 22).
Importance sampling estimates the left side itself:

.. math:: p(x) \approx \frac1K \sum_k \frac{p(x, z_k)}{q(z_k|x)}, \quad z_k \sim q(z|x)
    \qquad\text{(Eqs. 16 to 19)}
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]
from torch.utils._pytree import tree_leaves

from probdl.errors import FindingWarning, ModelError, ProbdlError, SettingError, warn
from probdl.findings import TAIL_DRAWS_MIN, Finding, pareto_k_max
from probdl.io.pareto import psis
from probdl.model import streaming
from probdl.model.density import LogDensity
from probdl.model.distributions import distribution_name
from probdl.model.messengers import Substitute
from probdl.model.precision import Precision
from probdl.model.predictive import log_prior
from probdl.model.program import Program
from probdl.model.sites import Site, Structure, data_plate, data_plates, discover
from probdl.model.vectorize import chunks
from probdl.results.diagnostics import interrupted
from probdl.results.enumeration import (
    AtMean,
    EnumeratedTraces,
    enumerate_marked,
    enumerate_others,
    enumerated_sites,
    expected_value,
    guide_weights,
    model_weights,
    sampled_sites,
)
from probdl.util.clock import check_overtime, check_time_limit
from probdl.util.isolation import evaluation
from probdl.util.progress import bar

__all__ = [
    "Elbo",
    "LogEvidence",
    "Proposal",
    "Scorer",
    "computes_rows",
    "decode",
    "draw_guide",
    "draw_shared",
    "elbo",
    "encode",
    "local_sites",
    "log_evidence",
    "propose",
    "reconstruct",
]

Array = NDArray[Any]

Scorer = Callable[[Mapping[str, Tensor]], tuple[Tensor, KeyboardInterrupt | None] | None]
"""Log p(z, x) of draws by site; fewer values after an interruption, which is returned, too.

It returns None for draws that it cannot evaluate.
"""

MAX_SCORED_ELEMENTS = 2**22  # of data at a time, to bound the memory
MAX_SHARED_ELEMENTS, MIN_SHARED_DRAWS = 2**28, 100  # data that a guide reads for all draws
CODE_MEAN_DRAWS = 100  # to estimate the mean of a code that has no closed form


@dataclass(frozen=True)
class Proposal:
    """A distribution over the latent sites: a trained guide, or the prior.

    Attributes:
        program: the guide; None means the prior.
        values: the parameters of guide and model, by name.
        parameters: those of them that belong to modules, by name.
        local: the names of the latent sites inside a data plate, one value per row.
    """

    program: Program | None = None
    values: Mapping[str, Tensor] = field(default_factory=dict)
    parameters: Mapping[str, nn.Parameter] = field(default_factory=dict)
    local: tuple[str, ...] = ()

    def swap(self, program: Program) -> dict[nn.Parameter, Tensor]:
        """Map the parameters of modules to their trained values, in the dtype of a program."""
        return {p: self.values[name].to(program.dtype) for name, p in self.parameters.items()}

    def sample(self, model: Program) -> Trace:
        """Sample the latent sites at the arguments of a model; return the trace of the guide."""
        guide = model
        if self.program is not None:
            guide = self.program.alongside(model)
        return guide.run(_identity, Substitute(self.values), parameters=self.swap(model))

    def trace(self, model: Program) -> tuple[Trace, Trace]:
        """Sample the latent sites and run the model at them; return the traces of guide and model.

        The prior is the model itself, so then both are one trace.
        """
        of_guide = self.sample(model)
        if self.program is None:
            return of_guide, of_guide
        replay: Callable[[Any], Any] = lambda function: poutine.replay(function, trace=of_guide)  # noqa: E731
        values = Substitute(self.values)
        return of_guide, model.run(_identity, values, replay, parameters=self.swap(model))

    def scores(self, model: Program) -> tuple[Trace, Trace]:
        """Return traces as ``trace`` does, with all log probabilities."""
        return _scored(model, *self.trace(model))

    def enumerated(
        self, model: Program, first_dim: int, *handlers: Messenger, marked: bool
    ) -> tuple[Trace, Trace]:
        """Return traces as ``trace`` does, with discrete sites enumerated.

        Args:
            model: the model on its arguments.
            first_dim: the first dimension to the left of all plates.
            handlers: effect handlers of the guide.
            marked: whether to enumerate the sites that the guide marks. Those that only the model
                has are enumerated in any case.
        """
        values, swap = Substitute(self.values), self.swap(model)
        guide = model
        if self.program is not None:
            guide = self.program.alongside(model)
        enumerate_guide: Callable[[Any], Any] = lambda function: enumerate_marked(  # noqa: E731
            function, first_dim, enabled=marked
        )
        of_guide = guide.run(_identity, enumerate_guide, *handlers, values, parameters=swap)
        if self.program is None:
            return of_guide, of_guide
        enumerate_model: Callable[[Any], Any] = lambda function: enumerate_others(  # noqa: E731
            function, given=of_guide.nodes
        )
        replay: Callable[[Any], Any] = lambda function: poutine.replay(function, trace=of_guide)  # noqa: E731
        of_model = model.run(_identity, enumerate_model, values, replay, parameters=swap)
        return of_guide, of_model

    def can_enumerate(self, model: Program, first_dim: int) -> bool:
        """Return whether the guide runs with the sites enumerated that it marks."""
        try:
            with torch.no_grad():
                self.enumerated(model, first_dim, marked=True)
        except ProbdlError:  # if it marks none, the next run raises the same error
            return False
        return True


def _scored(model: Program, of_guide: Trace, of_model: Trace) -> tuple[Trace, Trace]:
    """Compute all log probabilities of two traces."""
    try:
        # Draws outside the support have density zero.
        with evaluation(dtype=model.dtype), Precision(model.dtype).enforced():
            of_guide.compute_log_prob()
            of_model.compute_log_prob()
    except (ProbdlError, LinAlgError):
        raise
    except Exception as error:
        raise model.explain(error) from None
    return of_guide, of_model


def _identity(trace: Trace) -> Trace:
    return trace


@dataclass(frozen=True)
class Elbo:
    """The evidence lower bound (ELBO) of data and its terms, in nats.

    Attributes:
        reconstruction: E_q[log p(x_i | z_i)] of each row, (rows,).
        kl: KL(q(z_i | x_i) || p(z_i)) of each row, (rows,).
        global_kl: the KL term of the latent sites that all rows share.
        standard_error: the Monte Carlo standard error of the total.
        rows: the number of rows of each data plate by name. Of several plates, the rows follow one
            another in this order.
    """

    reconstruction: Array
    kl: Array
    global_kl: float
    standard_error: float
    rows: Mapping[str, int] = field(default_factory=dict)

    @property
    def pointwise(self) -> Array:
        """The ELBO of each row, without the terms that all rows share."""
        return self.reconstruction - self.kl

    @property
    def total(self) -> float:
        """The ELBO of all data."""
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
        pointwise: log p(x_i) of each row, (rows,); a single number for all data if rows share a
            latent site.
        standard_error: the standard error of each, by the delta method.
        pareto_k: the Pareto k-hat of the importance weights. Above min(1 - 1/log10(S), 0.7), with
            S = ``num_samples``, the estimate and its standard error tend to be too low.
        num_samples: the number of draws of the latent sites.
        rows: the number of rows of each data plate by name. Of several plates, the rows follow one
            another in this order.
    """

    pointwise: Array
    standard_error: Array
    pareto_k: Array
    num_samples: int
    rows: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """The log evidence of all data."""
        return float(self.pointwise.sum())

    def __repr__(self) -> str:
        count = self.pointwise.size
        limit = pareto_k_max(self.num_samples)
        bad = int((self.pareto_k > limit).sum())
        each = f", mean={self.total / count:.2f} over {count} rows" if count > 1 else ""
        error = float(np.sqrt(np.square(self.standard_error).sum()))
        return (
            f"LogEvidence(total={self.total:.2f} ± {error:.2g}{each}, pareto_k above "
            f"{limit:.2g} for {bad} of {count})"
        )


def propose(
    program: Program,
    structure: Structure,
    proposal: Proposal,
    count: int,
    findings: list[Finding] | None = None,
    evaluator: Scorer | None = None,
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Draw the latent sites from a proposal and score each draw.

    If there are continuous latent sites, discrete ones are summed out exactly. After an
    interruption there are fewer draws, and a finding.

    Args:
        program: the model with its data.
        structure: its sites.
        proposal: the distribution to draw from.
        count: number of draws.
        findings: receives a finding if the drawing is interrupted.
        evaluator: a fast evaluation of log p(z, x), if there is one.

    Returns:
        The draws of the latent and deterministic sites by name, (count, *shape); log p(z, x) and
        log q(z), each (count,), in nats.
    """
    if program.loader is not None:
        return propose_streamed(program, structure, proposal, count)
    if evaluator is not None:
        values, log_q = draw_guide(program, structure, proposal, count, findings)
        count = len(log_q)
        if (scored := evaluator(values)) is None:
            return values, LogDensity(program, structure).of_values(values), log_q
        log_p, stop = scored
        if stop is not None:
            done = len(log_p)
            _report_fewer(stop, done, count, findings)
            values, log_q = {name: v[:done] for name, v in values.items()}, log_q[:done]
        return values, log_p, log_q
    latent = {s.name for s in structure.of("latent")}
    summed = {s.name for s in structure.of("discrete")} if latent else set()
    kept = latent | {s.name for s in structure.of("deterministic")}

    def score_draw(_: Tensor) -> dict[str, Tensor]:
        of_guide, of_model = proposal.scores(program)
        nodes: Any = of_model.nodes
        values = {f"site {n}": node["value"] for n, node in nodes.items() if n in kept}
        log_p = log_q = torch.zeros((), dtype=program.dtype)
        for name, node in sampled_sites(of_guide):
            if name not in summed:
                log_q = log_q + node["log_prob"].sum()
        for name, node in sampled_sites(of_model, observed=True):
            # A site that only the model has was drawn from its prior, so the two densities cancel.
            if node["is_observed"] or name in of_guide.nodes:
                log_p = log_p + node["log_prob"].sum()
        return values | {"log_p": log_p, "log_q": log_q}

    drawn = _evaluate_draws(score_draw, count, findings=findings)
    log_p, log_q = drawn.pop("log_p"), drawn.pop("log_q")
    values = {name.removeprefix("site "): v for name, v in drawn.items()}
    if summed:
        density = LogDensity(program, structure)
        log_p = density.of_values(values)
        computed = density.constrain(density.unconstrain(values), deterministic=True)
        values = computed | {name: values[name] for name in density.blocks}
    return values, log_p, log_q


def draw_guide(
    program: Program,
    structure: Structure,
    proposal: Proposal,
    count: int,
    findings: list[Finding] | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Draw the latent sites from a guide, without the model.

    Discrete sites of the guide are left out of log q, since log p is summed over them.

    Returns:
        The draws by site name, (count, *shape); log q(z), (count,), in nats.
    """
    latent = [s.name for s in structure.of("latent")]
    summed = {s.name for s in structure.of("discrete")}

    def draw(_: Tensor) -> dict[str, Tensor]:
        of_guide = proposal.sample(program)
        with evaluation(dtype=program.dtype), Precision(program.dtype).enforced():
            of_guide.compute_log_prob()
        nodes: Any = of_guide.nodes
        log_q = torch.zeros((), dtype=program.dtype)
        for name, node in sampled_sites(of_guide):
            if name not in summed:
                log_q = log_q + node["log_prob"].sum()
        return {f"site {n}": nodes[n]["value"] for n in latent} | {"log_q": log_q}

    drawn = _evaluate_draws(draw, count, findings=findings)
    log_q = drawn.pop("log_q")
    return {name.removeprefix("site "): v for name, v in drawn.items()}, log_q


def propose_streamed(
    program: Program, structure: Structure, proposal: Proposal, count: int
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Draw from a proposal, and score the draws on all rows of a DataLoader, see ``propose``.

    Raises:
        ModelError: the guide computes shared sites from a minibatch.
    """
    batch = program.with_arguments(program.args, program.kwargs)
    values, log_q = draw_guide(program, structure, proposal, count)
    _check_shared_guide(program, structure, proposal, list(values))
    params = {s.name: s.value.expand(count, *s.shape) for s in structure.of("param")}
    prior = log_prior(batch, structure, params | values)
    log_p = streaming.joint_log_likelihood(program, structure, params | values)
    for term in prior.values():
        log_p = log_p + term.reshape(count, -1).sum(1)
    return values, log_p, log_q


def _check_shared_guide(
    program: Program, structure: Structure, proposal: Proposal, latent: Sequence[str]
) -> None:
    """Raise ModelError if a guide draws other values of shared sites on another minibatch."""
    found: list[Any] = []
    for part in itertools.chain(
        [program.with_arguments(program.args, program.kwargs)],
        itertools.islice(streaming.parts(program, structure), 2),
    ):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            nodes: Any = proposal.sample(part).nodes
        found.append({name: nodes[name]["value"].detach() for name in latent})
    differing = [
        name
        for name in latent
        if any(
            of[name].shape != found[0][name].shape or not torch.allclose(of[name], found[0][name])
            for of in found
        )
    ]
    if differing:
        raise ModelError(
            f"The guide computes {', '.join(map(repr, differing))}, which all rows share, from a "
            "minibatch, so it is no distribution given all the data. Give it parameters of its "
            "own, or put the site in the data plate."
        )


def elbo(program: Program, structure: Structure, proposal: Proposal, count: int) -> Elbo:
    """Estimate the ELBO from ``count`` draws of the latent sites.

    KL terms are exact where torch knows them in closed form.
    """
    if program.loader is not None:
        blocks = [
            elbo(part, discover(part), proposal, count)
            for part in streaming.parts(program, structure)
        ]
        return Elbo(
            np.concatenate([block.reconstruction for block in blocks]),
            np.concatenate([block.kl for block in blocks]),
            float(np.mean([block.global_kl for block in blocks])),
            math.hypot(*(block.standard_error for block in blocks)),
            _joined_rows(blocks),
        )
    plates = data_plates(structure)
    if not plates:
        plates = dict([data_plate(program, structure)])  # raises the error
    _check_rows_are_separate(program, structure, proposal, plates)
    first_dim = -1 - structure.plate_depth
    marked = proposal.can_enumerate(program, first_dim)

    def terms_of_draw(_: Tensor) -> dict[str, Tensor]:
        pair = proposal.enumerated(program, first_dim, marked=marked)
        traces = EnumeratedTraces(*_scored(program, *pair))
        rows = {what: _Rows(traces, plates) for what in ("reconstruction", "kl")}
        for what, term, ordinal in traces.elbo_terms():
            rows[what].add(term, ordinal)
        shared = rows["kl"].shared - rows["reconstruction"].shared
        return {what: of.joined() for what, of in rows.items()} | {"shared": shared}

    parts = {k: v.numpy() for k, v in _evaluate_draws(terms_of_draw, count).items()}
    reconstruction, kl = parts["reconstruction"], parts["kl"]
    totals = reconstruction.sum(1) - kl.sum(1) - parts["shared"]
    with np.errstate(invalid="ignore"):  # of rows with density zero
        error = float(totals.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    shared = float(parts["shared"].mean())
    return Elbo(reconstruction.mean(0), kl.mean(0), shared, error, plates)


def _joined_rows(blocks: Sequence[Elbo] | Sequence[LogEvidence]) -> dict[str, int]:
    """Return the number of rows of all parts by plate."""
    return {name: sum(block.rows[name] for block in blocks) for name in blocks[0].rows}


class _Rows:
    """Sums of terms for each row of the data plates, and of those that all rows share."""

    def __init__(self, traces: EnumeratedTraces, plates: Mapping[str, int]) -> None:
        self.traces = traces
        self.of = {name: torch.zeros(size) for name, size in plates.items()}
        self.shared = torch.zeros(())

    def add(self, term: Tensor, ordinal: frozenset[str]) -> None:
        """Add a term with one dimension for each plate of the ordinal, in sorted order."""
        names = [self.traces.plate_of[symbol] for symbol in sorted(ordinal)]
        for axis, name in enumerate(names):
            if name in self.of:
                others = [d for d in range(term.ndim) if d != axis]
                self.of[name] = self.of[name] + (term.sum(others) if others else term)
                return
        self.shared = self.shared + term.sum()

    def joined(self) -> Tensor:
        """Return the sums of the rows of all plates, one plate after the other."""
        return torch.cat(list(self.of.values()))


def _in_plates(site: Site, plates: Container[str]) -> bool:
    return any(dim in plates for dim in site.dims)


def _check_rows_are_separate(
    program: Program, structure: Structure, proposal: Proposal, plates: Mapping[str, int]
) -> None:
    """Raise ModelError if summing out a discrete site couples the rows."""
    shared = {s.name for s in structure.of("discrete") if not _in_plates(s, plates)}
    if shared and proposal.program is not None:
        shared -= {name for name, _ in sampled_sites(proposal.sample(program))}
    if shared and proposal.program is not None:
        raise ModelError(
            f"The discrete sites {', '.join(map(repr, sorted(shared)))} of the model "
            f"'{program.name}' are shared by the rows and are summed out, so the ELBO cannot be "
            "split by rows. Use stats['elbo'] for the total, or log_evidence()."
        )


def log_evidence(
    program: Program,
    structure: Structure,
    proposal: Proposal,
    count: int,
    progress: bool | None = None,
) -> LogEvidence:
    """Estimate log p(x) by importance sampling from ``count`` draws of the latent sites."""
    plates = data_plates(structure)
    sites = structure.of("latent", "discrete", "observed", "factor")
    rows: Mapping[str, int] = {}
    if proposal.local and all(_in_plates(s, plates) for s in sites):
        if program.loader is not None:
            blocks = [
                log_evidence(part, discover(part), proposal, count, progress)
                for part in streaming.parts(program, structure)
            ]
            return LogEvidence(
                np.concatenate([block.pointwise for block in blocks]),
                np.concatenate([block.standard_error for block in blocks]),
                np.concatenate([block.pareto_k for block in blocks]),
                min(block.num_samples for block in blocks),
                _joined_rows(blocks),
            )
        rows, first_dim = plates, -1 - structure.plate_depth
        marked = proposal.can_enumerate(program, first_dim)

        def ratios_of_draw(_: Tensor) -> Tensor:
            pair = proposal.enumerated(program, first_dim, marked=marked)
            traces = EnumeratedTraces(*_scored(program, *pair))
            sums = _Rows(traces, plates)
            for term, ordinal in traces.log_ratios():
                sums.add(term, ordinal)
            return sums.joined()

        ratios = _evaluate_draws(ratios_of_draw, count, progress).numpy().T
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
    enough = count >= TAIL_DRAWS_MIN
    k = np.array([psis(row)[1] for row in ratios.reshape(-1, count)]) if enough else np.nan
    k = np.broadcast_to(k, log_mean.size).reshape(log_mean.shape)
    return LogEvidence(log_mean, error, k, count, rows)


def local_sites(structure: Structure, of_guide: Trace) -> tuple[str, ...]:
    """List the latent sites of a guide, discrete ones included, that lie in a data plate."""
    plates = data_plates(structure)
    sampled = [structure.sites.get(name) for name, _ in sampled_sites(of_guide)]
    kinds = ("latent", "discrete")
    return tuple(s.name for s in sampled if s and s.kind in kinds and _in_plates(s, plates))


def encode(
    program: Program, structure: Structure, proposal: Proposal, count: int | None
) -> dict[str, Tensor]:
    """Return the mean of each local site under the guide, or ``count`` draws.

    The sites that the guide enumerates are summed over exactly. The mean of labels is the vector
    of their probabilities.
    """
    if program.loader is not None:
        axis = 0 if count is None else 1
        return streaming.over_rows(
            program, structure, lambda p: encode(p, structure, proposal, count), axis
        )
    names = local_sites(structure, proposal.sample(program))
    first_dim = -1 - structure.plate_depth
    marked = proposal.can_enumerate(program, first_dim)

    def sample_codes(_: Tensor) -> dict[str, Tensor]:
        nodes: Any = proposal.sample(program).nodes
        return {name: nodes[name]["value"] for name in names}

    def means_at_draw(_: Tensor) -> dict[str, Tensor]:
        of_guide = proposal.enumerated(program, first_dim, marked=marked)[0]
        nodes: Any = of_guide.nodes
        return {
            n: expected_value(nodes[n], guide_weights(of_guide, nodes[n]), structure.plate_depth)
            for n in names
        }

    if count is not None:
        return _evaluate_draws(sample_codes, count)
    # A mean that depends on draws of other sites, or is not known, is averaged over draws.
    first, second = (_evaluate_draws(means_at_draw, 1) for _ in range(2))
    exact = {name: v[0] for name, v in first.items() if torch.allclose(v, second[name])}
    if len(exact) == len(names):
        return exact
    averages = _evaluate_draws(means_at_draw, CODE_MEAN_DRAWS)
    return {name: exact[name] if name in exact else averages[name].mean(0) for name in names}


def computes_rows(
    program: Program, structure: Structure, guide: Program, names: Sequence[str]
) -> bool:
    """Return whether a guide computes the sites of each row from the data, for any rows.

    A guide with a parameter for each row of the data works for these rows only.

    Args:
        program: the model with its data.
        structure: its sites.
        guide: the guide.
        names: the latent sites that have a value for each row.
    """
    sizes = data_plates(structure)
    more = program.with_tensors(
        [torch.cat([t, t]) if t.ndim and len(t) in sizes.values() else t for t in program.tensors()]
    )
    with torch.random.fork_rng(devices=[]):
        nodes: Any = guide.run(_identity).nodes
        params = {name: node["value"] for name, node in nodes.items() if node["type"] == "param"}
        try:
            other = guide.with_arguments(more.args, more.kwargs)
            nodes = other.run(_identity, Substitute(params)).nodes
        except ProbdlError:
            return False
    return all(
        2 * sizes[plate] in nodes[name]["value"].shape
        for name in names
        for plate in structure.sites[name].dims
        if plate in sizes
    )


def draw_shared(
    program: Program, structure: Structure, proposal: Proposal, names: Sequence[str], count: int
) -> dict[str, Tensor]:
    """Draw the latent sites that all rows share from a guide; fewer draws for large data.

    Args:
        program: the model with its data.
        structure: its sites.
        proposal: the guide.
        names: the sites.
        count: number of draws, at most.

    Raises:
        ModelError: the guide computes shared sites from a minibatch.
    """
    if program.loader is not None:
        _check_shared_guide(program, structure, proposal, names)

    def sample(_: Tensor) -> dict[str, Tensor]:
        nodes: Any = proposal.sample(program).nodes
        return {name: nodes[name]["value"].to(torch.float64) for name in names}

    elements = sum(t.numel() for t in program.tensors())
    count = min(count, max(MIN_SHARED_DRAWS, MAX_SHARED_ELEMENTS // max(elements, 1)))
    return _evaluate_draws(sample, count)


def decode(
    program: Program, structure: Structure, proposal: Proposal, codes: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the mean of each observed site given values of the local sites.

    Discrete sites without a value are summed out, given the other values.

    Raises:
        SettingError: a code has another shape than its site, or lies outside its support.
    """
    names = [s.name for s in structure.of("observed")]
    first_dim = -1 - structure.plate_depth

    def means(trace: Trace) -> dict[str, Tensor]:
        nodes: Any = trace.nodes
        return {
            n: expected_value(nodes[n], model_weights(trace, nodes[n]), structure.plate_depth)
            for n in names
        }

    wrong: set[str] = set()

    def fit_code(name: str, value: Tensor, fn: Any) -> Tensor:
        if name in codes and value.shape != fn.shape():
            wrong.add(name)
        return value

    values = Substitute({**proposal.values, **codes}, fit_code)
    others: Callable[[Any], Any] = lambda function: enumerate_others(  # noqa: E731
        function, first_dim, given=codes
    )
    with torch.no_grad():
        found = program.run(
            means, others, values, _CheckSupport(codes), parameters=proposal.swap(program)
        )
    if wrong:
        raise SettingError(
            f"The codes of {', '.join(map(repr, sorted(wrong)))} do not have as many rows as the "
            "arguments of the model. Pass codes and arguments of the same rows."
        )
    return found


class _CheckSupport(Messenger):
    """Raise SettingError where a code lies outside the support of its site."""

    def __init__(self, names: Container[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.names and not msg["fn"].support.check(msg["value"]).all():
            raise SettingError(
                f"The codes of site '{msg['name']}' have values outside the support of its "
                f"distribution, {distribution_name(msg['fn'])}."
            )


def reconstruct(program: Program, structure: Structure, proposal: Proposal) -> dict[str, Tensor]:
    """Return the mean of each observed site, decoded from the means of the continuous codes.

    It is averaged over the discrete sites of the guide, each with its own codes.
    """
    first_dim = -1 - structure.plate_depth
    marked = proposal.can_enumerate(program, first_dim)
    at_means = AtMean({s.name for s in structure.of("latent")})
    with torch.no_grad():
        of_guide, of_model = proposal.enumerated(program, first_dim, at_means, marked=marked)
        nodes: Any = of_model.nodes
        guided = enumerated_sites(of_guide)
        means = {}
        with evaluation(dtype=program.dtype):
            for site in structure.of("observed"):
                node = nodes[site.name]
                weights = guide_weights(of_guide, node) + model_weights(of_model, node, guided)
                means[site.name] = expected_value(node, weights, structure.plate_depth)
    return means


def _evaluate_draws(
    function: Callable[[Tensor], Any],
    count: int,
    progress: bool | None = False,
    findings: list[Finding] | None = None,
) -> Any:
    """Evaluate a function of random draws ``count`` times, vectorised in bounded memory.

    Args:
        function: the function; its argument is ignored.
        count: number of evaluations.
        progress: whether to show progress; None means only on a terminal and in a notebook.
        findings: where the finding of an interruption is added; None makes it a warning.

    Returns:
        The values, stacked along a new first dimension; fewer than ``count`` after an interruption.
    """
    parts = []
    with bar(count, "importance sampling", progress) as shown, torch.no_grad():
        try:
            check_time_limit()
            for part in chunks(function, torch.zeros(count)):
                parts.append(part)
                shown.update(len(tree_leaves(part)[0]))
                check_overtime()
        except KeyboardInterrupt as stop:
            if not parts:
                raise
            done = sum(len(tree_leaves(part)[0]) for part in parts)
            _report_fewer(stop, done, count, findings)
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _report_fewer(
    stop: KeyboardInterrupt, done: int, count: int, findings: list[Finding] | None
) -> None:
    finding = interrupted(stop, done, f"{count} draws", "these draws are used", "get all draws")
    if findings is None:
        warn(str(finding), FindingWarning)
    else:
        findings.append(finding)
