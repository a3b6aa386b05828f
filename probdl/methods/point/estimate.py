"""Point estimates for MLE and MAP: the maximum, with standard errors by normal theory."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probdl.compile import choose
from probdl.findings import Finding
from probdl.methods.angles import unwound
from probdl.methods.base import Method
from probdl.methods.point.collapse import check_collapse
from probdl.methods.point.optimum import (
    Curvature,
    curvature,
    largest,
    maximise,
    no_maximum,
    site_names,
)
from probdl.model.density import LogDensity
from probdl.model.predictive import log_likelihood
from probdl.model.program import Program
from probdl.model.sites import Structure
from probdl.results.fit import Fit
from probdl.util.blas import one_torch_thread

__all__ = ["point_fit"]

# On R^d: at -5, a positive site is at exp(-5), or 0.7% of its unit, from the edge of its support.
EDGE_DISTANCE = 5.0
# Of such a coordinate on R^d: it has a standard error of 100, so the interval of the site has 100
# times its distance to the edge.
EDGE_INFORMATION_MAX = 1e-4
# What the way to a scale of 0, where the density has no bound, looks like.
OF_COLLAPSE = {"flat", "saddle", "boundary", "several_optima", "not_identified", "not_converged"}


def point_fit(
    method: Any,
    program: Program,
    structure: Structure,
    density: LogDensity,
    seed: int,
    progress: bool | None,
    *,
    again: bool = False,
) -> Fit:
    """Maximise the density, and return the fit, whose only draw is the maximum.

    The stats are ``log_likelihood`` (nats), ``cross_entropy`` (nats per observation),
    ``information`` (d, d) on R^d with its ``labels``, ``lp`` (the maximum of the log density), by
    site ``standard_error``, ``ci_low`` and ``ci_high``, and ``engine``.

    Args:
        method: the method, with the settings ``engine``, ``starts``, ``steps`` and ``ci_prob``.
        program: the model with its data.
        structure: its sites.
        density: the density to maximise.
        seed: all random numbers derive from it.
        progress: whether to show progress.
        again: whether this is one of many data sets, for which the engine is not verified and the
            likelihood not computed.
    """
    evaluator, findings = choose(density, method.engine, seed, trusted=again)
    generator = torch.Generator().manual_seed(seed)
    optimum = maximise(
        density, evaluator, method.starts, method.steps, generator, progress, quick=again
    )
    z = torch.from_numpy(unwound(density, evaluator, optimum.z.numpy()))
    optimum = replace(optimum, z=z)
    findings += optimum.findings
    values = {k: v.detach() for k, v in density.values(optimum.z).items()}
    stats: dict[str, Any] = {"lp": np.array([[optimum.value]]), "engine": evaluator.engine}
    if (not again) and (count := sum(s.count for s in structure.terms())):
        likelihood = _log_likelihood(program, structure, values)
        stats |= {
            "log_likelihood": likelihood,
            "cross_entropy": -likelihood / count,
            "num_observations": count,
        }
    collapse: list[Finding] = []
    if method.uses_prior and not again and not any(f.check == "no_maximum" for f in findings):
        collapse = check_collapse(density, optimum.z)
    if optimum.information is not None:
        parts = curvature(optimum.information, optimum.z)
        reported = {f.check for f in findings}
        of_curvature = []
        if not reported & {
            "not_converged",
            "boundary",
        }:  # else the curvature is not that of a maximum
            of_curvature = _check_curvature(
                density, optimum.z, parts, method, "no_maximum" in reported
            )
        if any(f.check == "flat" for f in of_curvature):  # which implies it
            findings = [f for f in findings if f.check != "not_identified"]
        findings += of_curvature
        if collapse:  # of which these are consequences
            findings = [f for f in findings if f.check not in OF_COLLAPSE]
        stats |= {"information": optimum.information.numpy(), "labels": density.labels}
        stats |= _standard_errors(density, optimum.z, parts, values, method.ci_prob)
    draws = {name: value.numpy()[None, None] for name, value in values.items()}
    return Fit(method, program, structure, draws, stats, seed, [*collapse, *findings])


def _log_likelihood(program: Program, structure: Structure, values: dict[str, Tensor]) -> float:
    free = {s.name for s in structure.of("latent", "param")}
    draws = {name: value[None] for name, value in values.items() if name in free}
    held = {s.name: s.value[None] for s in structure.of("param")}
    return float(log_likelihood(program, structure, held | draws).joint)


REMEDIES_FOR_FLATNESS = {
    "mle": "Remove or fix redundant parameters, or give them a prior and use method='map' or "
    "'nuts'.",
    "map": "Give redundant parameters a prior that is not flat, or use method='nuts', which "
    "samples all plausible values.",
}


def _check_curvature(
    density: LogDensity, z: Tensor, parts: Curvature, method: Method, no_maximum_reported: bool
) -> list[Finding]:
    """Check for directions without curvature, or with the wrong one, at the estimate.

    Args:
        density: the density that was maximised.
        z: the estimate (d,).
        parts: the curvature there.
        method: the method.
        no_maximum_reported: whether the optimiser has reported that there is no maximum.
    """
    findings = []
    what = "likelihood" if method.name == "mle" else "posterior density"
    # A coordinate far out on R^d that no longer changes the density belongs to a site at the edge
    # of its support. If its site is unbounded, the density was still rising there, because starting
    # points lie within 2.
    far = parts.unmoved & (z.abs() > EDGE_DISTANCE)
    unbounded = far & density.unconstrained_mask
    if unbounded.any() and not no_maximum_reported:
        findings.append(no_maximum(_pick(density.labels, unbounded)))
    information = parts.information_diagonal
    at_edge = (information <= EDGE_INFORMATION_MAX) & (z.abs() > EDGE_DISTANCE)
    edge = (far | at_edge) & ~density.unconstrained_mask
    if edge.any():
        labels = _pick(density.labels, edge)
        findings.append(
            Finding(
                "warning",
                "boundary",
                f"The {what} is highest at the edge of the support of {', '.join(labels[:5])}, or "
                "so close to it that normal theory (standard errors, intervals) does not hold.",
                "Use method='nuts', which samples the posterior inside the support, or a prior "
                "whose density is zero at the edge.",
                site_names(labels),
            )
        )
    if count := parts.flat.shape[1] - int(far.sum()):
        # The norm of each coordinate in the flat subspace does not depend on the basis.
        with one_torch_thread():
            basis, _ = torch.linalg.qr(parts.flat)
        labels = largest(density.labels, basis.norm(dim=1) * ~far)
        findings.append(
            Finding(
                "warning",
                "flat",
                f"The {what} is flat: the information matrix is singular in {count} direction"
                f"{'s' * (count > 1)}, which combine{'s' * (count == 1)} {', '.join(labels)}. The "
                "data do not determine these values, so the model is not identified and the "
                "estimate is one of many.",
                REMEDIES_FOR_FLATNESS[method.name],
                site_names(labels),
            )
        )
    if parts.rising.shape[1]:
        labels = largest(density.labels, parts.rising[:, 0])
        findings.append(
            Finding(
                "warning",
                "saddle",
                f"The estimate is not a maximum: the density increases along {', '.join(labels)}.",
                "Raise starts=.",
                site_names(labels),
            )
        )
    return findings


def _pick(labels: list[str], mask: Tensor) -> list[str]:
    return [label for label, picked in zip(labels, mask.tolist(), strict=True) if picked]


def _standard_errors(
    density: LogDensity, z: Tensor, parts: Curvature, values: dict[str, Tensor], prob: float
) -> dict[str, dict[str, Any]]:
    r"""Compute standard errors and intervals of the sites by the delta method.

    .. math:: \mathrm{se}(x_i)^2 = (J I^{-1} J^\top)_{ii}, \quad J = \partial x / \partial z

    A site that changes along a flat direction has an infinite standard error.
    """

    def flat_values(point: Tensor) -> Tensor:
        return torch.cat([v.reshape(-1) for v in density.values(point).values()])

    jacobian = torch.autograd.functional.jacobian(flat_values, z)
    assert isinstance(jacobian, Tensor)
    variance = (jacobian @ parts.vectors).square().div(parts.values).sum(1)
    moved = (jacobian @ parts.flat).norm(dim=1)
    norms = jacobian.norm(dim=1) * parts.flat.norm()
    variance[moved > 1e-6 * norms] = torch.inf
    errors = variance.sqrt().split([v.numel() for v in values.values()])
    width = NormalDist().inv_cdf(0.5 + prob / 2)
    result: dict[str, dict[str, Any]] = {"standard_error": {}, "ci_low": {}, "ci_high": {}}
    for (name, value), error in zip(values.items(), errors, strict=True):
        error = error.reshape(value.shape)
        result["standard_error"][name] = error.numpy()
        result["ci_low"][name] = (value - width * error).numpy()
        result["ci_high"][name] = (value + width * error).numpy()
    return result
