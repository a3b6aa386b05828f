"""What maximum likelihood and MAP share: the maximum, and the normal theory around it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from probdl.compile import choose
from probdl.findings import Finding
from probdl.methods.base import Method
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
from probdl.util.lazy import special

__all__ = ["point_fit"]

FAR = 5.0  # on R^d; exp(-5) is 0.7 % of the unit that the site is measured in


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
    """Maximise the density, and return the fit with one draw: the maximum.

    ``again`` is for one of many data sets: nothing is verified, and no likelihood is told.

    The stats are ``log_likelihood`` (nats), ``cross_entropy`` (nats for each observation),
    ``information`` (d, d) on R^d with its ``labels``, ``lp`` (the density's maximum), and by site
    ``standard_error``, ``ci_low`` and ``ci_high``; and ``engine``.
    """
    evaluator, findings = choose(density, method.engine, seed, trusted=again)
    generator = torch.Generator().manual_seed(seed)
    optimum = maximise(
        density, evaluator, method.starts, method.steps, generator, progress, quick=again
    )
    findings += optimum.findings
    values = {k: v.detach() for k, v in density.values(optimum.z).items()}
    stats: dict[str, Any] = {"lp": np.array([[optimum.value]]), "engine": evaluator.engine}
    if (not again) and (
        count := sum(s.count for s in structure.of("observed") or structure.of("factor"))
    ):
        likelihood = _log_likelihood(program, structure, values)
        stats |= {
            "log_likelihood": likelihood,
            "cross_entropy": -likelihood / count,
            "num_observations": count,
        }
    if optimum.information is not None:
        parts = curvature(optimum.information, optimum.z)
        told = any(f.check == "no_maximum" for f in findings)
        flat = _flat(density, optimum.z, parts, method, told)
        if any(f.check == "flat" for f in flat):  # it says all that this would
            findings = [f for f in findings if f.check != "not_identified"]
        findings += flat
        stats |= {"information": optimum.information.numpy(), "labels": density.labels}
        stats |= _standard_errors(density, optimum.z, parts, values, method.ci_prob)
    draws = {name: value.numpy()[None, None] for name, value in values.items()}
    return Fit(method, program, structure, draws, stats, seed, findings)


def _log_likelihood(program: Program, structure: Structure, values: dict[str, Tensor]) -> float:
    free = {s.name for s in structure.of("latent", "param")}
    draws = {name: value[None] for name, value in values.items() if name in free}
    held = {s.name: s.value[None] for s in structure.of("param")}
    return float(log_likelihood(program, structure, held | draws)[1])


_REMEDIES = {
    "mle": "Drop or fix what is redundant, or give it a prior and use method='map' or 'nuts'.",
    "map": "Give what is redundant a prior that is not flat, or use method='nuts', which averages.",
}


def _flat(
    density: LogDensity, z: Tensor, parts: Curvature, method: Method, told: bool
) -> list[Finding]:
    """Tell along which parameters the density does not change at all.

    ``told`` is whether the optimiser has said already that there is no maximum.
    """
    findings = []
    what = "likelihood" if method.name == "mle" else "posterior density"
    # A coordinate far out on R^d that no longer matters is a site at the edge of its support.
    # A coordinate without bounds that got there was driven there: starts are within 2.
    far = parts.unmoved & (z.abs() > FAR)
    endless = far & density.unconstrained_mask
    if endless.any() and not told:
        findings.append(no_maximum(_pick(density.labels, endless)))
    edge = far & ~endless
    if edge.any():
        labels = _pick(density.labels, edge)
        findings.append(
            Finding(
                "warning",
                "boundary",
                f"the {what} is highest at the edge of the support of {', '.join(labels[:5])}: "
                "the estimate is as near to it as double precision sees, and normal theory "
                "(standard errors, intervals) does not hold there.",
                "Use method='nuts', which averages over the posterior and has no such edge, or a "
                "prior that keeps off it.",
                site_names(labels),
            )
        )
    if count := parts.flat.shape[1] - int(far.sum()):
        # The share of each coordinate in the flat directions, whatever basis they came in.
        basis, _ = torch.linalg.qr(parts.flat)
        labels = largest(density.labels, basis.norm(dim=1) * ~far)
        findings.append(
            Finding(
                "warning",
                "flat",
                f"the {what} is flat: the information matrix is singular in {count} direction"
                f"{'s' * (count > 1)}, made up of {', '.join(labels)}. The data cannot tell these "
                "apart, so the model is not identified and the estimate is one of many.",
                _REMEDIES[method.name],
                site_names(labels),
            )
        )
    if parts.rising.shape[1]:
        labels = largest(density.labels, parts.rising[:, 0])
        findings.append(
            Finding(
                "warning",
                "saddle",
                f"the point found is not a maximum: the density rises along {', '.join(labels)}.",
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
    r"""Carry the covariance on R^d over to the sites by the delta method.

    .. math:: \mathrm{se}(x_i)^2 = (J I^{-1} J^\top)_{ii}, \quad J = \partial x / \partial z

    A site that moves along a flat direction has an infinite standard error.
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
    width = special.ndtri(0.5 + prob / 2)
    result: dict[str, dict[str, Any]] = {"standard_error": {}, "ci_low": {}, "ci_high": {}}
    for (name, value), error in zip(values.items(), errors, strict=True):
        error = error.reshape(value.shape)
        result["standard_error"][name] = error.numpy()
        result["ci_low"][name] = (value - width * error).numpy()
        result["ci_high"][name] = (value + width * error).numpy()
    return result
