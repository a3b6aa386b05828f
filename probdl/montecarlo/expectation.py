r"""Expectations by Monte Carlo simulation.

.. math:: E[f(X)] \approx \hat\mu = \frac1n \sum_{i=1}^n f(x_i), \qquad
    \mathrm{se}(\hat\mu) = \sqrt{\mathrm{Var}(f(X)) / n}

The four steps: define the domain of the inputs, draw random inputs, compute f of each, aggregate.
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
from probdl.findings import EXPECTATION_K_MAX, PARETO_K_MAX, Finding, Findings
from probdl.io.pareto import psis
from probdl.model import predictive
from probdl.model.advice import explained
from probdl.model.program import Program
from probdl.model.sites import discover
from probdl.model.vectorize import vectorize
from probdl.montecarlo.quantile import AtUniforms, dimension, from_uniforms, sites_dimension
from probdl.results.diagnostics import interrupted
from probdl.util.isolation import isolated
from probdl.util.progress import bar
from probdl.util.seeds import stream
from probdl.util.settings import (
    check_choice,
    check_flag,
    check_function,
    check_int,
    check_progress,
    check_real,
    check_seed,
    setting_error,
)

__all__ = ["Expectation", "expectation"]

SAMPLINGS = ("random", "antithetic", "sobol")
DEFAULT_SAMPLES = 100_000
DEFAULT_MAX_SAMPLES = 100_000_000  # with a tolerance
MIN_SAMPLES = 100
_BATCH_SIZE = 16_384  # a power of 2, which keeps Sobol's points balanced
_NUM_SCRAMBLINGS = 16  # independent; the standard error follows from their spread
_TAIL_SAMPLES = 100_000  # the first evaluations, kept to check for heavy tails
_MIN_TAIL_VALUES = 100  # distinct values: fewer have no tail
_MIN_GROUPS_FOR_TOLERANCE = 30  # before a standard error can stop the simulation

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Expectation:
    """An expectation estimated by simulation.

    Attributes:
        value: the estimate, in the shape of one value of f.
        standard_error: its Monte Carlo standard error, in the same shape.
        num_samples: the number of evaluations of f.
        variance_reduction: the variance of plain Monte Carlo with the same number of draws,
            divided by the variance of this estimate; below 1, plain draws are better.
        pareto_k: Pareto k-hat of the tails of the values (of the weighted values, with a
            proposal). Above 0.5 their variance may be infinite, so the standard error is
            unreliable; above 0.7 the estimate is unreliable too.
        findings: the findings.
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

    Values are aggregated in batches, so memory is bounded.

    Args:
        fn: the function f, vectorised over draws: it maps draws (n, *shape of a draw), or for a
            program a dict of them by site name, to (n,) or (n, *shape).
        source: the distribution of X, or a Pyro program, whose sites are sampled from the prior
            and the model.
        args: the arguments of the program.
        num_samples: the number of evaluations of f, or the maximum number with ``tol``; at least
            100. None means 100,000, or 100 million with ``tol``.
        tol: stop when the standard error of every component is at most this, in units of f.
        sampling: ``"random"``; ``"antithetic"``, which pairs each draw with its mirror image, for
            monotone f; or ``"sobol"``, quasi-Monte Carlo with 16 scrambled Sobol sequences, for
            smooth f in moderate dimensions. The last two need inverse CDFs.
        control: a control variate: a function g like f, and its known expectation E[g(X)]. The
            optimal multiple of g - E[g] is subtracted; g may have several components.
        proposal: a distribution q to sample from instead of the source p, with weights p / q
            (importance sampling).
        normalised: whether the density of the source is normalised; if not, the weights are
            divided by their mean.
        seed: the random seed.
        progress: whether to show progress; None shows it on a terminal only.

    Returns:
        The estimate. After Ctrl-C, the estimate from the draws so far, with a finding.

    Raises:
        SettingError: a setting is out of range, or f returns values of the wrong shape.
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
    check_choice("expectation", sampling=(sampling, SAMPLINGS))
    if num_samples is not None:
        check_int("expectation", num_samples=(num_samples, MIN_SAMPLES))
    if tol is not None:
        check_real("expectation", tol=(tol, 0, math.inf))
    check_seed("expectation", seed)
    check_progress("expectation", progress)
    check_flag("expectation", normalised=normalised)
    check_function("expectation", fn=fn)
    if control is not None:
        listed = isinstance(control, (tuple, list)) and len(control) == 2
        if not listed or not callable(control[0]):
            rule = "must be a function and its known expectation"
            raise setting_error("expectation", "control", control, rule)
    if proposal is not None and not hasattr(source, "log_prob"):
        raise SettingError(
            "proposal= needs a source with log_prob. Pass a distribution, not a program."
        )
    if not normalised and proposal is None:
        raise SettingError(
            "normalised=False needs weights, but there is no proposal. Pass proposal=."
        )
    if not normalised and control is not None:
        raise SettingError("control= and normalised=False cannot be combined. Omit one of them.")
    count = num_samples or (DEFAULT_MAX_SAMPLES if tol is not None else DEFAULT_SAMPLES)
    inputs = _Inputs(proposal if proposal is not None else source, args, sampling)
    total = _Total(control is not None, not normalised)
    findings: list[Finding] = []
    with (
        explained("expectation()"),
        isolated(seed),
        torch.no_grad(),
        bar(count, "simulating", progress) as shown,
    ):
        try:
            for x, groups in inputs.batches(count, seed):
                values = _values(fn, x, "fn")
                weights = None
                if proposal is not None:
                    weights = torch.exp(source.log_prob(x) - proposal.log_prob(x)).double()
                controls = _values(control[0], x, "control") if control is not None else None
                total.add(values, weights, controls, groups)
                shown.update(len(values))
                enough = total.groups > _MIN_GROUPS_FOR_TOLERANCE
                if tol is not None and enough and total.reached(tol, control):
                    break
        except KeyboardInterrupt as stop:
            if total.groups < 2:
                raise
            of, kept = f"{count:,} samples", "the estimate uses those"
            findings.append(interrupted(stop, total.count, of, kept, "draw all samples"))
    return total.result(control, tol, findings)


def _values(fn: Callable[[Any], Any], x: Any, what: str) -> Tensor:
    """Evaluate a function at a batch of draws, as float64 (n, *shape)."""
    rows = len(next(iter(x.values()))) if isinstance(x, dict) else len(x)
    with explained(what):
        value = torch.as_tensor(fn(x))
    if not value.ndim or len(value) != rows:
        raise SettingError(
            f"{what} maps {rows} draws to a value of shape {tuple(value.shape)}. It must keep the "
            "leading dimension: one value per draw."
        )
    value = value.to(torch.float64)
    if not torch.isfinite(value).all():
        bad = int((~torch.isfinite(value.reshape(rows, -1))).any(1).nonzero()[0])
        at = {k: v[bad].tolist() for k, v in x.items()} if isinstance(x, dict) else x[bad].tolist()
        raise SettingError(f"{what} is not finite at the draw {at}.")
    return value


class _Inputs:
    """Steps 1 and 2: the domain, and random inputs from it."""

    def __init__(self, source: Any, args: tuple[Any, ...], sampling: str) -> None:
        self.source, self.sampling = source, sampling
        self.program = None
        if hasattr(source, "sample") and hasattr(source, "log_prob"):
            self.dim = dimension(source) if sampling != "random" else 0
            return
        if not callable(source):
            raise SettingError(
                f"The source is a {type(source).__name__}. It must be a distribution or a Pyro "
                "program."
            )
        self.program = Program(source, args, {})
        self.structure = discover(self.program)
        self.dim = sites_dimension(self.program, self.structure)

    def batches(self, count: int, seed: int) -> Iterator[tuple[Any, int]]:
        """Yield batches of draws, each with the number of consecutive rows in a group.

        The rows of a group are averaged, because only the averages are independent. -1 stands for
        one group of all rows, of one scrambling.
        """
        if self.sampling == "sobol":
            yield from self._sobol(count, seed)
            return
        done = 0
        while done < count:
            size = min(_BATCH_SIZE, count - done)
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
        """Yield the points of each scrambling in turn, in rounds of equal size."""
        engines = [
            SobolEngine(self.dim, scramble=True, seed=stream(seed, "sobol", i))
            for i in range(_NUM_SCRAMBLINGS)
        ]
        each = 2 ** max(3, int(math.log2(max(count // _NUM_SCRAMBLINGS, 8))))
        step = min(each, _BATCH_SIZE)
        for _ in range(each // step):
            for engine in engines:
                u = engine.draw(step, dtype=torch.float64)
                # torch returns corners of cells of width 2^-30; add a uniform point of the cell.
                yield self.at(u + torch.rand(u.shape, dtype=u.dtype) * 2.0**-30), -1

    def at(self, u: Tensor) -> Any:
        """Map points of the unit cube (n, d) to draws."""
        tiny = torch.finfo(torch.float64).eps
        u = u.clamp(tiny, 1 - tiny)
        if self.program is None:
            return from_uniforms(self.source, u.reshape(len(u), *self.source.shape()))
        program = self.program
        kinds = self.structure.of("latent", "discrete", "observed", "deterministic")
        names = {site.name for site in kinds}

        def run(point: Tensor) -> dict[str, Tensor]:
            def read(trace: Any) -> dict[str, Tensor]:
                return {n: node["value"] for n, node in trace.nodes.items() if n in names}

            return program.run(read, predictive.Unobserve(), AtUniforms(point))

        return vectorize(run, u)


class _Total:
    """Step 4: the mean over independent groups of values, aggregated in bounded memory.

    The co-moments of the columns (f, then controls or weights) are updated by batches (Chan, Golub
    and LeVeque, 1979).
    """

    def __init__(self, controlled: bool, ratio: bool) -> None:
        self.controlled, self.ratio = controlled, ratio
        self.count = 0  # evaluations
        self.groups = 0  # independent groups of them
        self.shape: tuple[int, ...] = ()  # of one value of f
        self.outputs = 0  # components of f
        self.mean = np.zeros(0)
        self.comoments = np.zeros((0, 0))  # sums of products of deviations
        self.source_sums: Any = 0.0  # of f² and f, under the source
        self.source_weight = 0.0
        self.tail_samples: list[Array] = []
        self.scrambling_means: dict[int, list[Any]] = {}
        self.batches = 0  # of scrambled points

    def add(
        self, values: Tensor, weights: Tensor | None, controls: Tensor | None, groups: int
    ) -> None:
        """Add a batch."""
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
        self._keep_for_tails(table[:, : self.outputs])
        # For the variance of plain draws: E f² and E f under the source.
        self.source_sums = self.source_sums + np.stack([(ones * f**2).sum(0), (ones * f).sum(0)])
        self.source_weight += float(ones.sum()) if self.ratio else rows
        self.count += rows
        if groups < 0:  # a batch of one scrambling: average over all of its points
            scrambling = self.batches % _NUM_SCRAMBLINGS
            self.scrambling_means.setdefault(scrambling, []).append(table.mean(0))
            self.batches += 1
            if self.batches % _NUM_SCRAMBLINGS == 0:
                means = np.array([np.mean(v, 0) for v in self.scrambling_means.values()])
                self.groups, self.mean = len(means), means.mean(0)
                self.comoments = (means - self.mean).T @ (means - self.mean)
            return
        self._merge(table.reshape(-1, groups, table.shape[1]).mean(1))

    def _merge(self, table: Array) -> None:
        n, m = self.groups, len(table)
        mean = table.mean(0)
        deviations = table - mean
        if not n:
            self.mean, self.comoments = mean, deviations.T @ deviations
        else:
            gap = mean - self.mean
            self.comoments = (
                self.comoments + deviations.T @ deviations + np.outer(gap, gap) * n * m / (n + m)
            )
            self.mean = self.mean + gap * m / (n + m)
        self.groups = n + m

    def _keep_for_tails(self, f: Array) -> None:
        """Keep the first evaluations, to check for heavy tails."""
        if self.count < _TAIL_SAMPLES:
            self.tail_samples.append(f[: _TAIL_SAMPLES - self.count].astype(np.float64))

    def estimate(self, control: Any) -> tuple[Array, Array]:
        """Return the estimate and its variance, by component."""
        k, n = self.outputs, self.groups
        covariance = self.comoments / max(n - 1, 1) / n
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
        residual = variance - np.einsum("ij,ij->j", slopes, covariance[k:, :k])
        # The estimated slopes reduce the degrees of freedom of the residuals.
        correction = max(n - 1, 1) / max(n - 1 - len(slopes), 1)
        return mean - (self.mean[k:] - known) @ slopes, np.maximum(residual, 0.0) * correction

    def reached(self, tol: float, control: Any) -> bool:
        """Return whether all standard errors are at most the tolerance."""
        return bool((np.sqrt(self.estimate(control)[1]) <= tol).all())

    def result(self, control: Any, tol: float | None, findings: list[Finding]) -> Expectation:
        """Return the estimate, with findings about its reliability."""
        value, variance = self.estimate(control)
        square, mean = self.source_sums / self.source_weight
        plain = np.maximum(square - mean**2, 0.0) / self.count
        plain = np.where(plain > 1e-14 * square, plain, 0.0)  # rounding errors of a constant
        with np.errstate(divide="ignore", invalid="ignore"):
            reduction = np.where(variance > 0, plain / variance, np.where(plain > 0, np.inf, 1.0))
        if not plain.all():
            findings.append(
                Finding(
                    "warning",
                    "no_variation",
                    f"All {self.count:,} values of a component of f are equal. A standard error of "
                    "0 may only mean that no draw reached the relevant region.",
                    "For a rare event, pass a proposal= under which it is not rare.",
                )
            )
        k = self._pareto_k()
        if k > EXPECTATION_K_MAX:
            unreliable = (
                "The estimate and its standard error are"
                if k > PARETO_K_MAX
                else "The standard error is"
            )
            findings.append(
                Finding(
                    "warning",
                    "heavy_tail",
                    f"The tail of the values is too heavy (Pareto k-hat {k:.2f}, above "
                    f"{EXPECTATION_K_MAX}): their variance may be infinite. {unreliable} "
                    "unreliable.",
                    "Pass a proposal= with more mass where the values are large, or transform the "
                    "variable.",
                )
            )
        error = np.sqrt(variance)
        if tol is not None and (error > tol).any():
            findings.append(
                Finding(
                    "warning",
                    "tolerance",
                    f"After {self.count:,} samples the standard error is {error.max():.3g}, above "
                    f"tol={tol:g}.",
                    "Increase num_samples, or use sampling='sobol' or a control variate.",
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
        """Return the largest k-hat over components, of the absolute deviations from the mean."""
        worst = -math.inf
        for column in np.concatenate(self.tail_samples).T:
            deviations = np.abs(column - column.mean())
            deviations = deviations[deviations > 0]
            if len(np.unique(deviations)) > _MIN_TAIL_VALUES:
                worst = max(worst, psis(np.log(deviations))[1])
        return worst
