r"""Expectations by simulation: the four steps of Monte Carlo.

.. math:: E[f(X)] \approx \hat\mu = \frac1n \sum_{i=1}^n f(x_i), \qquad
    \mathrm{se}(\hat\mu) = \sqrt{\mathrm{Var}(f(X)) / n}

Define the domain of the inputs; draw inputs at random from it; compute f of each; aggregate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.quasirandom import SobolEngine

from probdl.errors import FindingWarning, SettingError, warn
from probdl.findings import PARETO_K_MAX, Finding, Findings
from probdl.io import idata
from probdl.model import predictive
from probdl.model.program import Program
from probdl.model.sites import discover
from probdl.model.vectorize import vectorize
from probdl.montecarlo.quantile import AtUniforms, dimension, from_uniforms, sites_dimension
from probdl.results.diagnostics import interrupted
from probdl.util.isolation import isolated
from probdl.util.progress import bar
from probdl.util.seeds import stream

__all__ = ["Expectation", "expectation"]

SAMPLINGS = ("random", "antithetic", "sobol")
_SAMPLES = 100_000
_MOST = 100_000_000  # where a tolerance says when to stop
_BATCH = 16_384  # a power of 2, which keeps Sobol's points balanced
_SCRAMBLINGS = 16  # independent ones, whose spread is the standard error
_KEPT = 100_000  # evaluations that are looked at for heavy tails

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Expectation:
    """An expectation by simulation.

    Attributes:
        value: the estimate, of the shape of one value of f.
        standard_error: its Monte Carlo standard error, of the same shape.
        num_samples: how often f was evaluated.
        variance_reduction: by how much the variance is smaller than that of as many plain draws;
            below 1 means that plain draws are better.
        pareto_k: how heavy the tails of the values are (of the weighted values, with a proposal);
            above 0.7 neither estimate nor error can be trusted.
        findings: what was seen.
    """

    value: Array
    standard_error: Array
    num_samples: int
    variance_reduction: Array
    pareto_k: float
    findings: Findings = field(default_factory=Findings)

    def __repr__(self) -> str:
        if self.value.ndim:
            return (
                f"Expectation({np.array2string(self.value, precision=5)} ± "
                f"{np.array2string(self.standard_error, precision=2)}, "
                f"{self.num_samples:,} samples)"
            )
        return (
            f"Expectation({float(self.value):.6g} ± {float(self.standard_error):.2g}, "
            f"{self.num_samples:,} samples, variance reduction "
            f"{float(self.variance_reduction):.3g})"
        )


def expectation(
    fn: Callable[[Any], Any],
    source: Any,
    *args: Any,
    num_samples: int | None = None,
    tol: float | None = None,
    sampling: str = "random",
    control: tuple[Callable[[Any], Any], Any] | None = None,
    proposal: Any = None,
    normalised: bool = True,
    seed: int = 0,
    progress: bool | None = None,
) -> Expectation:
    r"""Estimate E[f(X)] by simulation, with its standard error.

    Memory is bounded: values are aggregated as they come.

    Args:
        fn: f, of many draws at once: from (n, *shape of a draw), or of a program from a dict of
            such by site name, to (n,) or (n, *shape).
        source: the distribution of X, or a Pyro program, whose sites are drawn from the prior and
            the model; it is run on ``args``.
        args: the arguments of the program.
        num_samples: how often to evaluate f, at most if there is a ``tol``. None means 100,000,
            or with ``tol`` up to 100 million.
        tol: stop once the standard error of every component is at most this, in units of f.
        sampling: ``"random"``; ``"antithetic"``, which pairs each draw with its mirror image,
            good where f is monotone; or ``"sobol"``, quasi-Monte Carlo with 16 scrambled Sobol
            sequences, good where f is smooth and the dimension moderate. The last two need
            inverse CDFs.
        control: a control variate: a function g like f, of which E[g(X)] is known, and that
            value. The best multiple of g - E[g] is taken off; g may have several components.
        proposal: a distribution q to draw from in the place of the source p, with weights p / q
            (importance sampling).
        normalised: whether the source's density is normalised; else weights are divided by their
            mean.
        seed: of the draws.
        progress: whether to show progress; None shows it on a terminal.

    Returns:
        The estimate. Ctrl-C returns that of the draws so far, with a finding.

    Raises:
        SettingError: a setting is out of range, or f returns something of a wrong shape.
        ModelError: the program fails, or a distribution has no inverse CDF.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> square = dist.Uniform(torch.zeros(2), 1.0).to_event(1)
        >>> inside = lambda x: 4.0 * (x.square().sum(-1) < 1)
        >>> found = expectation(inside, square, seed=1)
        >>> abs(float(found.value) - math.pi) < 4 * float(found.standard_error)
        True

    Source: Owen, *Monte Carlo theory, methods and examples* (2013), chapters 2, 8, 9 and 17.
    """
    if sampling not in SAMPLINGS:
        raise SettingError(
            f"sampling={sampling!r} must be one of {', '.join(map(repr, SAMPLINGS))}."
        )
    if num_samples is not None and num_samples < 100:
        raise SettingError(f"num_samples={num_samples} must be at least 100.")
    if tol is not None and not tol > 0:
        raise SettingError(f"tol={tol!r} must be positive.")
    if proposal is not None and not hasattr(source, "log_prob"):
        raise SettingError("a proposal needs a source with log_prob, and a program has none.")
    if not normalised and proposal is None:
        raise SettingError("normalised=False is for weights, and there is no proposal.")
    if not normalised and control is not None:
        raise SettingError("control= and normalised=False do not go together.")
    count = num_samples or (_MOST if tol is not None else _SAMPLES)
    inputs = _Inputs(proposal if proposal is not None else source, args, sampling)
    total = _Total(control is not None, not normalised)
    findings: list[Finding] = []
    with isolated(seed), torch.no_grad(), bar(count, "simulating", progress) as shown:
        try:
            for x, groups in inputs.batches(count, seed):
                values = _values(fn, x, "fn")
                weights = None
                if proposal is not None:
                    weights = torch.exp(source.log_prob(x) - proposal.log_prob(x)).double()
                others = _values(control[0], x, "control") if control is not None else None
                total.add(values, weights, others, groups)
                shown.update(len(values))
                if tol is not None and total.groups > 30 and total.reached(tol, control):
                    break
        except KeyboardInterrupt as stop:
            if total.groups < 2:
                raise
            of, kept = f"{count:,} samples", "the estimate is of those"
            findings.append(interrupted(stop, total.count, of, kept, "of them"))
    return total.result(control, tol, findings)


def _values(fn: Callable[[Any], Any], x: Any, what: str) -> Tensor:
    """Evaluate a function at a batch, as float64 (n, *shape)."""
    rows = len(next(iter(x.values()))) if isinstance(x, dict) else len(x)
    value = torch.as_tensor(fn(x))
    if not value.ndim or len(value) != rows:
        raise SettingError(
            f"{what} maps {rows} draws to a value of the shape {tuple(value.shape)}: it must keep "
            "the leading dimension, a value for each draw."
        )
    value = value.to(torch.float64)
    if not torch.isfinite(value).all():
        bad = int((~torch.isfinite(value.reshape(rows, -1))).any(1).nonzero()[0])
        at = {k: v[bad].tolist() for k, v in x.items()} if isinstance(x, dict) else x[bad].tolist()
        raise SettingError(f"{what} is not finite at the draw {at}.")
    return value


class _Inputs:
    """The first two steps: the domain, and random inputs from it."""

    def __init__(self, source: Any, args: tuple[Any, ...], sampling: str) -> None:
        self.source, self.sampling = source, sampling
        self.program = None
        if hasattr(source, "sample") and hasattr(source, "log_prob"):
            self.dim = dimension(source) if sampling != "random" else 0
            return
        if not callable(source):
            raise SettingError(
                f"the source is a {type(source).__name__}; pass a distribution or a Pyro program."
            )
        self.program = Program(source, args, {})
        self.structure = discover(self.program)
        self.dim = sites_dimension(self.program, self.structure)

    def batches(self, count: int, seed: int) -> Iterator[tuple[Any, int]]:
        """Make batches of draws, and say how many consecutive rows of each belong together.

        Rows that belong together are averaged, since only their averages are independent.
        """
        if self.sampling == "sobol":
            yield from self._sobol(count, seed)
            return
        done = 0
        while done < count:
            size = min(_BATCH, count - done)
            if self.sampling == "antithetic":
                half = torch.rand((max(1, size // 2), self.dim), dtype=torch.float64)
                u = torch.stack([half, 1 - half], 1).reshape(-1, self.dim)
                yield self.at(u), 2
                size = len(u)
            elif self.program is not None:
                yield predictive.sample_prior(self.program, self.structure, size), 1
            else:
                yield self.source.sample((size,)), 1
            done += size

    def _sobol(self, count: int, seed: int) -> Iterator[tuple[Any, int]]:
        """Draw as many points of each scrambling, in rounds that double what there is."""
        engines = [
            SobolEngine(self.dim, scramble=True, seed=stream(seed, "sobol", i))
            for i in range(_SCRAMBLINGS)
        ]
        each = 2 ** max(3, int(math.log2(max(count // _SCRAMBLINGS, 8))))
        step = min(each, _BATCH)
        for _ in range(each // step):
            for engine in engines:
                u = engine.draw(step, dtype=torch.float64)
                # torch's points are corners of cells of 2^-30; anywhere in its cell is uniform.
                yield self.at(u + torch.rand(u.shape, dtype=u.dtype) * 2.0**-30), -1

    def at(self, u: Tensor) -> Any:
        """Turn points of the unit cube (n, d) into draws."""
        tiny = torch.finfo(torch.float64).eps
        u = u.clamp(tiny, 1 - tiny)
        if self.program is None:
            return from_uniforms(self.source, u.reshape(len(u), *self.source.shape()))
        program, wanted = (
            self.program,
            {s.name for s in self.structure.of("latent", "discrete", "observed", "deterministic")},
        )

        def run(point: Tensor) -> dict[str, Tensor]:
            def read(trace: Any) -> dict[str, Tensor]:
                return {n: node["value"] for n, node in trace.nodes.items() if n in wanted}

            return program.run(read, predictive.Unobserve(), AtUniforms(point))

        return vectorize(run, u)


class _Total:
    """The last step: sums over independent groups of values, kept in bounded memory.

    Co-moments of the columns (f, then controls or weights) are updated batch by batch (Chan,
    Golub and LeVeque, 1979).
    """

    def __init__(self, controlled: bool, ratio: bool) -> None:
        self.controlled, self.ratio = controlled, ratio
        self.count = 0  # evaluations
        self.groups = 0  # independent ones
        self.shape: tuple[int, ...] = ()
        self.mean = np.zeros(0)
        self.moments = np.zeros((0, 0))  # sums of products of deviations
        self.plain: Any = 0.0  # sums of f² and f under the source
        self.weight = 0.0
        self.outputs = 0
        self.kept: list[Array] = []
        self.replicates: dict[int, list[Any]] = {}
        self.round = 0

    def add(
        self, values: Tensor, weights: Tensor | None, controls: Tensor | None, groups: int
    ) -> None:
        """Take up a batch."""
        rows = len(values)
        self.shape = tuple(values.shape[1:])
        f = values.reshape(rows, -1).numpy()
        self.outputs = f.shape[1]
        columns, ones = [f], np.ones((rows, 1))
        if weights is not None:
            ones = weights.numpy()[:, None]
            columns = [f * ones, ones] if self.ratio else [f * ones]
        if controls is not None:
            g = controls.reshape(rows, -1).numpy()
            columns.append(g * ones)
        table = np.concatenate(columns, 1)
        self._keep(table[:, : self.outputs])
        # The variance that plain draws of the source would have: E f² and E f under it.
        self.plain = self.plain + np.stack([(ones * f**2).sum(0), (ones * f).sum(0)])
        self.weight += float(ones.sum()) if self.ratio else rows
        self.count += rows
        if groups < 0:  # one scrambling of several: averaged over all of its points
            which = self.round % _SCRAMBLINGS
            self.replicates.setdefault(which, []).append(table.mean(0))
            self.round += 1
            if self.round % _SCRAMBLINGS == 0:
                done = np.array([np.mean(v, 0) for v in self.replicates.values()])
                self.groups, self.mean = len(done), done.mean(0)
                self.moments = (done - self.mean).T @ (done - self.mean)
            return
        self._merge(table.reshape(-1, groups, table.shape[1]).mean(1))

    def _merge(self, table: Array) -> None:
        n, m = self.groups, len(table)
        mean = table.mean(0)
        deviations = table - mean
        if not n:
            self.mean, self.moments = mean, deviations.T @ deviations
        else:
            gap = mean - self.mean
            self.moments = (
                self.moments + deviations.T @ deviations + np.outer(gap, gap) * n * m / (n + m)
            )
            self.mean = self.mean + gap * m / (n + m)
        self.groups = n + m

    def _keep(self, f: Array) -> None:
        """Keep the first evaluations, of which the tails are looked at."""
        if self.count < _KEPT:
            self.kept.append(f[: _KEPT - self.count].astype(np.float64))

    def estimate(self, control: Any) -> tuple[Array, Array]:
        """Return the estimate and the variance of it, by component."""
        k, n = self.outputs, self.groups
        covariance = self.moments / max(n - 1, 1) / n
        mean, variance = self.mean[:k], np.diag(covariance)[:k]
        if self.ratio:  # the delta method for a ratio of means
            w = self.mean[k]
            value = mean / w
            variance = variance - 2 * value * covariance[:k, k] + value**2 * covariance[k, k]
            return value, np.maximum(variance, 0.0) / w**2
        if not self.controlled:
            return mean, variance
        known = np.broadcast_to(
            np.asarray(control[1], dtype=np.float64).ravel(), self.mean[k:].shape
        )
        slopes = np.linalg.lstsq(covariance[k:, k:], covariance[k:, :k], rcond=None)[0]
        left = variance - np.einsum("ij,ij->j", slopes, covariance[k:, :k])
        # The slopes are estimated too: degrees of freedom that the residuals lack.
        spent = max(n - 1, 1) / max(n - 1 - len(slopes), 1)
        return mean - (self.mean[k:] - known) @ slopes, np.maximum(left, 0.0) * spent

    def reached(self, tol: float, control: Any) -> bool:
        """Tell whether the standard errors are small enough."""
        return bool((np.sqrt(self.estimate(control)[1]) <= tol).all())

    def result(self, control: Any, tol: float | None, findings: list[Finding]) -> Expectation:
        """Aggregate."""
        value, variance = self.estimate(control)
        square, mean = self.plain / self.weight
        plain = np.maximum(square - mean**2, 0.0) / self.count
        plain = np.where(plain > 1e-14 * square, plain, 0.0)  # rounding, of a constant
        with np.errstate(divide="ignore", invalid="ignore"):
            reduction = np.where(variance > 0, plain / variance, np.where(plain > 0, np.inf, 1.0))
        if not plain.all():
            findings.append(
                Finding(
                    "warning",
                    "no_variation",
                    f"all {self.count:,} values of some component of f are the same, so a standard "
                    "error of 0 may only mean that what matters was never drawn.",
                    "For a rare event draw from a proposal= under which it is not rare.",
                )
            )
        k = self._pareto_k()
        if k > PARETO_K_MAX:
            findings.append(
                Finding(
                    "warning",
                    "heavy_tail",
                    f"the values have a tail so heavy (Pareto k-hat {k:.2f}, above "
                    f"{PARETO_K_MAX}) that neither estimate nor standard error can be trusted.",
                    "Draw from a proposal= that is wider where the values are large, or change "
                    "the variable.",
                )
            )
        error = np.sqrt(variance)
        if tol is not None and (error > tol).any():
            findings.append(
                Finding(
                    "warning",
                    "tolerance",
                    f"after {self.count:,} samples the standard error is {error.max():.3g}, above "
                    f"tol={tol:g}.",
                    "Raise num_samples, or use sampling='sobol' or a control variate.",
                )
            )
        if findings:
            warn("\n".join(map(str, findings)), FindingWarning)
        return Expectation(
            value.reshape(self.shape),
            error.reshape(self.shape),
            self.count,
            reduction.reshape(self.shape),
            k,
            Findings(findings),
        )

    def _pareto_k(self) -> float:
        """Return the largest k-hat of the tails of the components' absolute values."""
        worst = -math.inf
        kept = np.concatenate(self.kept)
        for column in kept.T:
            size = np.abs(column - column.mean())
            size = size[size > 0]
            if len(np.unique(size)) > 100:  # few values have no tail
                worst = max(worst, idata.psis(np.log(size))[1])
        return worst
